//! What tasks keep through `wasi:keyvalue`: keys with values, in buckets of a tenant.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::{Readers, StoreError, Writer};
use crate::quotas::{Quotas, UsedUp};

type Result<T> = std::result::Result<T, StoreError>;

/// The longest number that is read, in digits: an `i128` has no more.
const NUMBER_BYTES: usize = 40;

/// A change in a bucket, made as a whole or not at all.
#[derive(Clone, Debug)]
pub enum KeyValueChange {
    /// These keys get these values.
    Set(BTreeMap<String, Vec<u8>>),
    /// These keys are gone, where they were there.
    Delete(Vec<String>),
    /// The number that is the key's value becomes larger by so much; where there is no key, it is 0.
    Add {
        /// The key.
        key: String,
        /// By how much.
        delta: i128,
        /// Where the sum has to be.
        within: RangeInclusive<i128>,
    },
    /// The key gets this value, if the one that it has is still of that version.
    Swap {
        /// The key.
        key: String,
        /// The version; `None` where there was no such key.
        version: Option<u64>,
        /// The value.
        value: Vec<u8>,
    },
}

impl KeyValueChange {
    /// How many keys it is about.
    pub fn keys(&self) -> usize {
        match self {
            KeyValueChange::Set(values) => values.len(),
            KeyValueChange::Delete(keys) => keys.len(),
            KeyValueChange::Add { .. } | KeyValueChange::Swap { .. } => 1,
        }
    }
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyValueWrite {
    /// It is made.
    Done,
    /// It is made, and this is the sum.
    Sum(i128),
    /// Not made: the value is no number in decimal.
    NoNumber,
    /// Not made: the sum would be out of the range.
    OutOfRange,
    /// Not made: the value is of this version, or the key is gone.
    Changed(Option<u64>),
    /// Not made: the tenant's quota does not allow it.
    QuotaExceeded(UsedUp),
}

/// A value, and its version: no two that a tenant writes have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The version.
    pub version: u64,
    /// The value.
    pub value: Vec<u8>,
}

/// A key and its value, if it has one.
pub type KeyWithValue = (String, Option<Versioned>);

/// What a tenant's keys and values add up to.
#[derive(Clone, Copy, Default)]
struct Use {
    entries: u64,
    bytes: u64,
    writes: u64,
}

impl Writer {
    /// Makes a change in a tenant's bucket.
    pub fn change_key_values(
        &mut self,
        tenant: &str,
        bucket: &str,
        change: &KeyValueChange,
        quotas: &Quotas,
    ) -> Result<KeyValueWrite> {
        let used_up = match change {
            KeyValueChange::Set(values) => {
                let values: Vec<_> = values.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
                self.set_values(tenant, bucket, &values, quotas)?
            }
            KeyValueChange::Delete(keys) => {
                self.delete_keys(tenant, bucket, keys)?;
                None
            }
            KeyValueChange::Add { key, delta, within } => {
                let Some(number) = self.number(tenant, bucket, key)? else { return Ok(KeyValueWrite::NoNumber) };
                let sum = number.checked_add(*delta).filter(|sum| within.contains(sum));
                let Some(sum) = sum else { return Ok(KeyValueWrite::OutOfRange) };
                let used_up = self.set_values(tenant, bucket, &[(key, sum.to_string().as_bytes())], quotas)?;
                return Ok(used_up.map_or(KeyValueWrite::Sum(sum), KeyValueWrite::QuotaExceeded));
            }
            KeyValueChange::Swap { key, version, value } => {
                let current = self.version(tenant, bucket, key)?;
                if current != *version {
                    return Ok(KeyValueWrite::Changed(current));
                }
                self.set_values(tenant, bucket, &[(key, value)], quotas)?
            }
        };
        Ok(used_up.map_or(KeyValueWrite::Done, KeyValueWrite::QuotaExceeded))
    }

    /// Sets all of them, each key once. Where a quota does not allow that it is returned, and none is set.
    fn set_values(
        &mut self,
        tenant: &str,
        bucket: &str,
        values: &[(&str, &[u8])],
        quotas: &Quotas,
    ) -> Result<Option<UsedUp>> {
        let before = self.key_value_use(tenant)?;
        let mut after = before;
        for (key, value) in values {
            match self.value_bytes(tenant, bucket, key)? {
                Some(old) => after.bytes = after.bytes.saturating_sub(old),
                None => {
                    after.entries += 1;
                    after.bytes += key.len() as u64;
                }
            }
            after.bytes += value.len() as u64;
        }
        // What does not grow is always taken, also from a tenant that is over a quota lowered since.
        let used_up = |what, most: Option<u64>, before: u64, after: u64| {
            let limit = most.filter(|most| after > before && after > *most)?;
            Some(UsedUp { what, limit, left: limit.saturating_sub(before), whole_in: None })
        };
        let used_up = used_up("keyvalue keys", quotas.keyvalue_keys, before.entries, after.entries)
            .or_else(|| used_up("keyvalue bytes", quotas.keyvalue_bytes, before.bytes, after.bytes));
        if used_up.is_some() {
            return Ok(used_up);
        }
        let mut set = self.conn.prepare_cached(
            "INSERT INTO key_value (tenant, bucket, key, place, version, value) VALUES (?1, ?2, ?3, ?4, ?4, ?5)
             ON CONFLICT (tenant, bucket, key) DO UPDATE SET version = ?4, value = ?5",
        )?;
        for (key, value) in values {
            after.writes += 1;
            set.execute(params![tenant, bucket, key, after.writes as i64, value])?;
        }
        drop(set);
        self.set_key_value_use(tenant, after)?;
        Ok(None)
    }

    fn delete_keys(&mut self, tenant: &str, bucket: &str, keys: &[String]) -> Result<()> {
        let mut of_tenant = self.key_value_use(tenant)?;
        for key in keys {
            let Some(bytes) = self.value_bytes(tenant, bucket, key)? else { continue };
            self.conn
                .prepare_cached("DELETE FROM key_value WHERE tenant = ?1 AND bucket = ?2 AND key = ?3")?
                .execute(params![tenant, bucket, key])?;
            of_tenant.entries = of_tenant.entries.saturating_sub(1);
            of_tenant.bytes = of_tenant.bytes.saturating_sub(bytes + key.len() as u64);
        }
        self.set_key_value_use(tenant, of_tenant)
    }

    /// How large a key's value is. Reads nothing of it.
    fn value_bytes(&mut self, tenant: &str, bucket: &str, key: &str) -> Result<Option<u64>> {
        Ok(self
            .conn
            .prepare_cached("SELECT length(value) FROM key_value WHERE tenant = ?1 AND bucket = ?2 AND key = ?3")?
            .query_row(params![tenant, bucket, key], |row| row.get(0))
            .optional()?)
    }

    fn version(&mut self, tenant: &str, bucket: &str, key: &str) -> Result<Option<u64>> {
        Ok(self.conn.prepare_cached(VERSION)?.query_row(params![tenant, bucket, key], |row| row.get(0)).optional()?)
    }

    /// A key's value as a number: 0 where there is no such key, `None` where it is none.
    fn number(&mut self, tenant: &str, bucket: &str, key: &str) -> Result<Option<i128>> {
        match self.value_bytes(tenant, bucket, key)? {
            None => return Ok(Some(0)),
            Some(bytes) if bytes > NUMBER_BYTES as u64 => return Ok(None),
            Some(_) => {}
        }
        let value: Vec<u8> = self
            .conn
            .prepare_cached("SELECT value FROM key_value WHERE tenant = ?1 AND bucket = ?2 AND key = ?3")?
            .query_row(params![tenant, bucket, key], |row| row.get(0))?;
        Ok(std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()))
    }

    fn key_value_use(&mut self, tenant: &str) -> Result<Use> {
        let row = self
            .conn
            .prepare_cached("SELECT entries, bytes, writes FROM key_value_use WHERE tenant = ?1")?
            .query_row([tenant], |row| Ok(Use { entries: row.get(0)?, bytes: row.get(1)?, writes: row.get(2)? }))
            .optional()?;
        Ok(row.unwrap_or_default())
    }

    fn set_key_value_use(&mut self, tenant: &str, Use { entries, bytes, writes }: Use) -> Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO key_value_use (tenant, entries, bytes, writes) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (tenant) DO UPDATE SET entries = ?2, bytes = ?3, writes = ?4",
            )?
            .execute(params![tenant, entries as i64, bytes as i64, writes as i64])?;
        Ok(())
    }
}

const VERSION: &str = "SELECT version FROM key_value WHERE tenant = ?1 AND bucket = ?2 AND key = ?3";

impl Readers {
    /// The values of keys in a tenant's bucket, all as of one moment, with what `hold` returned. It is told how
    /// many bytes they have before they are read; where it returns nothing, they are not: `Err` of their size.
    pub async fn values<H: Send + 'static>(
        &self,
        tenant: Arc<str>,
        bucket: Arc<str>,
        keys: Vec<String>,
        hold: impl FnOnce(u64) -> Option<H> + Send + 'static,
    ) -> Result<std::result::Result<(Vec<KeyWithValue>, H), u64>> {
        self.read(&tenant.clone(), move |conn| {
            // What was measured is what is read.
            let snapshot = conn.unchecked_transaction()?;
            let of_key = "FROM key_value WHERE tenant = ?1 AND bucket = ?2 AND key = ?3";
            let mut sizes = snapshot.prepare_cached(&format!("SELECT length(value) {of_key}"))?;
            let mut bytes = 0;
            for key in &keys {
                let size = sizes.query_row(params![&*tenant, &*bucket, key], |row| row.get::<_, u64>(0)).optional()?;
                bytes += size.unwrap_or(0);
            }
            let Some(held) = hold(bytes) else { return Ok(Err(bytes)) };
            let mut values = snapshot.prepare_cached(&format!("SELECT version, value {of_key}"))?;
            let mut found = Vec::with_capacity(keys.len());
            for key in keys {
                let value = values
                    .query_row(params![&*tenant, &*bucket, key], |row| {
                        Ok(Versioned { version: row.get(0)?, value: row.get(1)? })
                    })
                    .optional()?;
                found.push((key, value));
            }
            Ok(Ok((found, held)))
        })
        .await
    }

    /// The version of a key's value; `None` where there is no such key.
    pub async fn version_of_value(&self, tenant: Arc<str>, bucket: Arc<str>, key: String) -> Result<Option<u64>> {
        self.read(&tenant.clone(), move |conn| {
            conn.prepare_cached(VERSION)?.query_row(params![&*tenant, &*bucket, key], |row| row.get(0)).optional()
        })
        .await
    }

    /// Keys of a tenant's bucket in the order in which they came, those after the place `after`, each with its
    /// own. A place is above 0.
    pub async fn keys(
        &self,
        tenant: Arc<str>,
        bucket: Arc<str>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(u64, String)>> {
        self.read(&tenant.clone(), move |conn| {
            let mut statement = conn.prepare_cached(
                "SELECT place, key FROM key_value WHERE tenant = ?1 AND bucket = ?2 AND place > ?3
                 ORDER BY place LIMIT ?4",
            )?;
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows =
                statement.query_map(params![&*tenant, &*bucket, after, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas() -> Quotas {
        Quotas { keyvalue_keys: Some(2), keyvalue_bytes: Some(10), ..Quotas::default() }
    }

    fn used_up(what: &'static str, limit: u64, left: u64) -> KeyValueWrite {
        KeyValueWrite::QuotaExceeded(UsedUp { what, limit, left, whole_in: None })
    }

    fn set(writer: &mut Writer, tenant: &str, bucket: &str, key: &str, value: &str) -> KeyValueWrite {
        let change = KeyValueChange::Set([(key.to_owned(), value.into())].into());
        writer.change_key_values(tenant, bucket, &change, &quotas()).unwrap()
    }

    /// Whatever one tenant does, another sees nothing of it, neither in values nor in quotas, places and versions.
    #[test]
    fn tenants_are_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, readers) = super::super::open(dir.path(), 1).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let value = |tenant: &str, bucket: &str| {
            let keys = vec!["k".to_owned()];
            let read = runtime.block_on(readers.values(tenant.into(), bucket.into(), keys, Some));
            let (mut found, bytes) = read.unwrap().unwrap();
            let found = found.pop().unwrap().1;
            assert_eq!(bytes, found.as_ref().map_or(0, |found| found.value.len() as u64));
            found.map(|found| (found.version, String::from_utf8(found.value).unwrap()))
        };
        let keys =
            |tenant: &str, bucket: &str| runtime.block_on(readers.keys(tenant.into(), bucket.into(), 0, 10)).unwrap();
        let version = |tenant: &str, bucket: &str| {
            runtime.block_on(readers.version_of_value(tenant.into(), bucket.into(), "k".into())).unwrap()
        };
        assert_eq!(set(&mut writer, "a", "x", "k", "of a"), KeyValueWrite::Done);
        for (tenant, bucket) in [("b", "x"), ("a", "y"), ("", "x")] {
            assert_eq!((value(tenant, bucket), keys(tenant, bucket), version(tenant, bucket)), (None, vec![], None));
            let gone = KeyValueChange::Delete(vec!["k".into()]);
            assert_eq!(writer.change_key_values(tenant, bucket, &gone, &quotas()).unwrap(), KeyValueWrite::Done);
            let swap = KeyValueChange::Swap { key: "k".into(), version: Some(1), value: vec![] };
            assert_eq!(
                writer.change_key_values(tenant, bucket, &swap, &quotas()).unwrap(),
                KeyValueWrite::Changed(None)
            );
        }
        assert_eq!(value("a", "x"), Some((1, "of a".into())));
        assert_eq!(set(&mut writer, "b", "x", "k", "of b"), KeyValueWrite::Done);
        assert_eq!(set(&mut writer, "b", "x", "l", "1234"), KeyValueWrite::Done);
        assert_eq!(set(&mut writer, "b", "x", "m", ""), used_up("keyvalue keys", 2, 0));
        assert_eq!(set(&mut writer, "b", "x", "l", "12345"), used_up("keyvalue bytes", 10, 0));
        assert_eq!(set(&mut writer, "a", "y", "k", "1234"), KeyValueWrite::Done);
        assert_eq!((value("b", "x"), version("b", "x")), (Some((1, "of b".into())), Some(1)));
        assert_eq!(keys("b", "x"), [(1, "k".into()), (2, "l".into())]);
        assert_eq!((keys("a", "x"), keys("a", "y")), (vec![(1, "k".into())], vec![(2, "k".into())]));
        let one = KeyValueChange::Add { key: "k".into(), delta: 1, within: 0..=10 };
        assert_eq!(writer.change_key_values("b", "x", &one, &quotas()).unwrap(), KeyValueWrite::NoNumber);
        assert_eq!(writer.change_key_values("b", "z", &one, &quotas()).unwrap(), used_up("keyvalue keys", 2, 0));
    }
}
