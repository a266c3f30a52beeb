//! The limits of an attempt: which there are, and how the server's defaults and ceilings, the
//! type's settings and the task's own wishes become one set. Pure.

use serde::{Deserialize, Serialize};

/// Declares the limits once: the record of all, the record of those that are overridden, and the
/// list that ties their names to both. A new limit is one line here, and then it must be enforced.
macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident = $default:expr, at most $ceiling:expr;)*) => {
        /// All limits of one attempt.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub struct Limits { $($(#[$doc])* pub $name: u64,)* }

        /// Limits that somebody set; the others are left as they are.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct LimitOverrides {
            $(
                $(#[$doc])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                #[schema(minimum = 1)]
                pub $name: Option<u64>,
            )*
        }

        impl Limits {
            /// What an attempt gets where nobody says otherwise.
            pub const DEFAULT: Limits = Limits { $($name: $default,)* };
            /// The most an attempt can be given, where the operator does not say otherwise.
            pub const CEILING: Limits = Limits { $($name: $ceiling,)* };
            /// The names of all limits.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)*];

            /// The limit of that name.
            pub fn get_mut(&mut self, name: &str) -> Option<&mut u64> {
                match name { $(stringify!($name) => Some(&mut self.$name),)* _ => None }
            }

            /// Name and value of each.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        impl LimitOverrides {
            /// Name and value of each that is set.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*]
                    .into_iter()
                    .filter_map(|(name, value)| value.map(|value| (name, value)))
            }
        }
    };
}

const MIB: u64 = 1 << 20;

limits! {
    /// Fuel: about one unit for each instruction, and one for each byte of a bulk memory operation.
    fuel = 100_000_000_000, at most 10_000_000_000_000;
    /// CPU time in milliseconds, host calls included.
    cpu_ms = 10_000, at most 600_000;
    /// Wall-clock time in milliseconds, waiting for the host included.
    timeout_ms = 300_000, at most 3_600_000;
    /// All linear memories and tables together, in bytes.
    memory_bytes = 64 * MIB, at most 64 * MIB;
    /// What the host holds for the attempt (buffers, handles, pending calls), in bytes.
    host_memory_bytes = 16 * MIB, at most 64 * MIB;
    /// The output, in bytes.
    output_bytes = MIB, at most 16 * MIB;
    /// Log lines kept, in bytes; each line counts its text and 64 bytes.
    log_bytes = 256 * 1024, at most 4 * MIB;
    /// The input, in bytes.
    input_bytes = MIB, at most 16 * MIB;
}

/// A limit that is above what is allowed, or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} must be between 1 and {ceiling}")]
pub struct BadLimit {
    /// Its name.
    pub name: &'static str,
    /// The most it can be.
    pub ceiling: u64,
}

impl Limits {
    /// These limits with `overrides` in place, none of which may be above `ceiling`.
    pub fn with(mut self, overrides: &LimitOverrides, ceiling: &Limits) -> Result<Limits, Vec<BadLimit>> {
        let mut bad = Vec::new();
        let mut ceiling = *ceiling;
        for (name, value) in overrides.iter() {
            let (Some(slot), Some(ceiling)) = (self.get_mut(name), ceiling.get_mut(name)) else { continue };
            if value == 0 || value > *ceiling {
                bad.push(BadLimit { name, ceiling: *ceiling });
            }
            *slot = value;
        }
        if bad.is_empty() { Ok(self) } else { Err(bad) }
    }

    /// These limits lowered by what a task asked for when it was created. What is not lower is left
    /// out: the operator may have lowered a limit since, and that holds for tasks that wait, too.
    pub fn lowered(mut self, overrides: &LimitOverrides) -> Limits {
        for (name, value) in overrides.iter() {
            if let Some(slot) = self.get_mut(name) {
                *slot = value.min(*slot);
            }
        }
        self
    }

    /// These limits with every one that is above `ceiling` lowered to it.
    pub fn capped(mut self, ceiling: &Limits) -> Limits {
        for (name, value) in ceiling.iter() {
            if let Some(slot) = self.get_mut(name) {
                *slot = value.min(*slot);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_may_lower_and_not_raise() {
        let of_type = Limits::DEFAULT;
        let lower = LimitOverrides { fuel: Some(5), ..Default::default() };
        assert_eq!(of_type.with(&lower, &of_type).unwrap().fuel, 5);
        let higher =
            LimitOverrides { fuel: Some(of_type.fuel + 1), cpu_ms: Some(0), timeout_ms: Some(1), ..Default::default() };
        let bad = of_type.with(&higher, &of_type).unwrap_err();
        assert_eq!(bad.iter().map(|bad| bad.name).collect::<Vec<_>>(), ["fuel", "cpu_ms"]);
    }

    #[test]
    fn every_default_is_within_its_ceiling() {
        assert_eq!(Limits::DEFAULT.capped(&Limits::CEILING), Limits::DEFAULT);
    }

    #[test]
    fn a_limit_lowered_by_the_operator_holds_for_a_task_that_waits() {
        let overrides = LimitOverrides { cpu_ms: Some(500), fuel: Some(10), ..Default::default() };
        let limits = Limits { cpu_ms: 100, ..Limits::DEFAULT }.lowered(&overrides);
        assert_eq!((limits.cpu_ms, limits.fuel), (100, 10));
    }
}
