//! Does what its input says with one bucket of `wasi:keyvalue`, one thing after the other.
//!
//! Input: `{"draft": 1 | 2, "bucket": "…", "do": [{"op": "…", …}, …]}`. Output: an array of what came of each,
//! `{"ok": …}` or `{"error": "…", "detail": …}` with the name of the error's case; and where the bucket is not
//! opened, that alone. A value is `{"bytes": n, "text": "…"}`, with `null` as its text if it is none or over
//! 1 KiB, or `null` where there is none.

use guest_tasks::{parse, permanent};
use serde::Deserialize;
use serde_json::{Value, json};

wit_bindgen::generate!({
    path: "../../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

mod keyvalue {
    wit_bindgen::generate!({ path: "../../server/wit", world: "taskcell:host/keyvalue", generate_all });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(default = "newest")]
    draft: u8,
    bucket: String,
    #[serde(rename = "do")]
    acts: Vec<Act>,
}

fn newest() -> u8 {
    2
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
enum Act {
    Get {
        key: String,
    },
    Set {
        key: String,
        value: String,
    },
    /// A value of zeros.
    SetZeros {
        key: String,
        bytes: usize,
    },
    Delete {
        key: String,
    },
    Exists {
        key: String,
    },
    Increment {
        key: String,
        delta: serde_json::Number,
    },
    List {
        cursor: Option<String>,
    },
    GetMany {
        keys: Vec<String>,
    },
    SetMany {
        values: Vec<(String, String)>,
    },
    DeleteMany {
        keys: Vec<String>,
    },
    /// All of a bucket's keys, page by page: how many each page has, and how many there are.
    Count,
    /// Deletes all that each page has before it asks for the next: how many that were.
    Drain,
    /// Keys `0`, `1`, … with values of zeros, in one call.
    SetCount {
        count: u32,
        bytes: usize,
    },
    /// The same keys: how many have a value, and the bytes of all.
    GetCount {
        count: u32,
    },
    /// Opens the bucket again and again, and gives none back.
    Open {
        times: u32,
    },
    /// Adds 1 so many times, by compare-and-swap, each until it is done: how often it was not.
    AddBySwap {
        key: String,
        times: u32,
    },
    /// Makes a compare-and-swap, looks at what is current if it is to, does something else, and swaps: what it
    /// saw, and where the swap failed, what is current then; and swaps again, where it is to.
    Swap {
        key: String,
        value: String,
        look: bool,
        meanwhile: Vec<Act>,
        /// Looks once more before it swaps.
        #[serde(default)]
        look_again: bool,
        again: bool,
    },
    /// Makes so many, and gives none back.
    NewCas {
        key: String,
        times: u32,
    },
    /// For ever: sets all of these keys to the number of the round.
    SetRounds {
        keys: Vec<String>,
    },
}

fn shown(value: Option<Vec<u8>>) -> Value {
    value.map_or(Value::Null, |value| {
        let text = std::str::from_utf8(&value).ok().filter(|text| text.len() <= 1024);
        json!({ "bytes": value.len(), "text": text })
    })
}

/// What `get-many` has for a key in either draft.
trait Pair {
    fn value(self) -> Option<Vec<u8>>;
}

impl Pair for Option<(String, Vec<u8>)> {
    fn value(self) -> Option<Vec<u8>> {
        self.map(|(_, value)| value)
    }
}

impl Pair for (String, Option<Vec<u8>>) {
    fn value(self) -> Option<Vec<u8>> {
        self.1
    }
}

/// What both drafts have, with the one or the other.
macro_rules! draft {
    ($name:ident, $package:ident, $page:expr, $of_draft:expr) => {
        mod $name {
            use super::keyvalue::wasi::$package::atomics::increment;
            use super::keyvalue::wasi::$package::batch::{delete_many, get_many, set_many};
            use super::keyvalue::wasi::$package::store::{Bucket, Error, open};
            use super::*;

            pub(super) fn run(input: &Input) -> Value {
                match open(&input.bucket) {
                    Ok(bucket) => all(&bucket, &input.bucket, &input.acts),
                    Err(error) => described(error),
                }
            }

            pub(super) fn all(bucket: &Bucket, name: &str, acts: &[Act]) -> Value {
                let done = acts.iter().map(|act| match one(bucket, name, act) {
                    Ok(value) => json!({ "ok": value }),
                    Err(error) => described(error),
                });
                done.collect()
            }

            pub(super) fn described(error: Error) -> Value {
                let (case, detail) = match error {
                    Error::NoSuchStore => ("no-such-store", Value::Null),
                    Error::AccessDenied => ("access-denied", Value::Null),
                    Error::Other(why) => ("other", why.into()),
                };
                json!({ "error": case, "detail": detail })
            }

            fn list(bucket: &Bucket, cursor: Option<&str>) -> Result<(Vec<String>, Option<String>), Error> {
                $page(bucket, cursor)
            }

            fn one(bucket: &Bucket, name: &str, act: &Act) -> Result<Value, Error> {
                let no_number = |_| Error::Other("that is no number of this draft".to_owned());
                Ok(match act {
                    Act::Get { key } => shown(bucket.get(key)?),
                    Act::Set { key, value } => bucket.set(key, value.as_bytes())?.into_json(),
                    Act::SetZeros { key, bytes } => bucket.set(key, &vec![0; *bytes])?.into_json(),
                    Act::Delete { key } => bucket.delete(key)?.into_json(),
                    Act::Exists { key } => bucket.exists(key)?.into(),
                    Act::Increment { key, delta } => {
                        increment(bucket, key, delta.to_string().parse().map_err(no_number)?)?.into()
                    }
                    Act::List { cursor } => {
                        let (keys, cursor) = list(bucket, cursor.as_deref())?;
                        json!({ "keys": keys, "cursor": cursor })
                    }
                    Act::GetMany { keys } => get_many(bucket, keys)?.into_iter().map(|pair| shown(pair.value())).collect(),
                    Act::SetMany { values } => {
                        let values: Vec<_> =
                            values.iter().map(|(key, value)| (key.clone(), value.clone().into_bytes())).collect();
                        set_many(bucket, &values)?.into_json()
                    }
                    Act::DeleteMany { keys } => delete_many(bucket, keys)?.into_json(),
                    Act::Count | Act::Drain => {
                        let mut pages = Vec::new();
                        let mut cursor: Option<String> = None;
                        loop {
                            let keys;
                            (keys, cursor) = list(bucket, cursor.as_deref())?;
                            pages.push(keys.len());
                            if matches!(act, Act::Drain) {
                                delete_many(bucket, &keys)?;
                            }
                            if cursor.is_none() {
                                break json!({ "pages": pages, "keys": pages.iter().sum::<usize>() });
                            }
                        }
                    }
                    Act::SetCount { count, bytes } => {
                        let values: Vec<_> = (0..*count).map(|key| (key.to_string(), vec![0; *bytes])).collect();
                        set_many(bucket, &values)?.into_json()
                    }
                    Act::GetCount { count } => {
                        let keys: Vec<_> = (0..*count).map(|key| key.to_string()).collect();
                        let found: Vec<_> = get_many(bucket, &keys)?.into_iter().filter_map(Pair::value).collect();
                        json!({ "count": found.len(), "bytes": found.iter().map(Vec::len).sum::<usize>() })
                    }
                    Act::Open { times } => {
                        for _ in 0..*times {
                            std::mem::forget(open(name)?);
                        }
                        Value::Null
                    }
                    Act::SetRounds { keys } => {
                        for round in 0_u64.. {
                            let values: Vec<_> =
                                keys.iter().map(|key| (key.clone(), round.to_string().into_bytes())).collect();
                            set_many(bucket, &values)?;
                        }
                        Value::Null
                    }
                    act => $of_draft(bucket, name, act)?,
                })
            }
        }
    };
}

/// What is said of a call that returns nothing.
trait IntoJson {
    fn into_json(self) -> Value;
}

impl IntoJson for () {
    fn into_json(self) -> Value {
        Value::Null
    }
}

draft!(
    draft,
    keyvalue0_2_0_draft,
    |bucket: &Bucket, cursor: Option<&str>| {
        let page = bucket.list_keys(cursor.map(|cursor| cursor.parse().expect("a number")))?;
        Ok((page.keys, page.cursor.map(|cursor| cursor.to_string())))
    },
    |_, _, _| Err(Error::Other("this draft has no such function".to_owned()))
);
draft!(
    draft2,
    keyvalue0_2_0_draft2,
    |bucket: &Bucket, cursor: Option<&str>| bucket.list_keys(cursor).map(|page| (page.keys, page.cursor)),
    swaps::one
);

mod swaps {
    use super::draft2::all;
    use super::keyvalue::wasi::keyvalue0_2_0_draft2::atomics::{Cas, CasError, swap};
    use super::keyvalue::wasi::keyvalue0_2_0_draft2::store::{Bucket, Error};
    use super::*;

    pub(super) fn one(bucket: &Bucket, name: &str, act: &Act) -> Result<Value, Error> {
        match act {
            Act::AddBySwap { key, times } => {
                let mut failed = 0;
                for _ in 0..*times {
                    let mut cas = Cas::new(bucket, key)?;
                    loop {
                        let current = cas.current()?.map_or(0, |value| {
                            std::str::from_utf8(&value).expect("text").parse::<u64>().expect("a number")
                        });
                        match swap(cas, (current + 1).to_string().as_bytes()) {
                            Ok(()) => break,
                            Err(CasError::CasFailed(newer)) => cas = newer,
                            Err(CasError::StoreError(error)) => return Err(error),
                        }
                        failed += 1;
                    }
                }
                Ok(failed.into())
            }
            Act::Swap { key, value, look, meanwhile, look_again, again } => {
                let cas = Cas::new(bucket, key)?;
                let seen = if *look { shown(cas.current()?) } else { Value::Null };
                all(bucket, name, meanwhile);
                if *look_again {
                    cas.current()?;
                }
                match swap(cas, value.as_bytes()) {
                    Ok(()) => Ok(json!({ "seen": seen })),
                    Err(CasError::StoreError(error)) => Err(error),
                    Err(CasError::CasFailed(newer)) => {
                        let current = shown(newer.current()?);
                        let again = *again && swap(newer, value.as_bytes()).is_ok();
                        Ok(json!({ "seen": seen, "failed": current, "again": again }))
                    }
                }
            }
            Act::NewCas { key, times } => {
                for _ in 0..*times {
                    std::mem::forget(Cas::new(bucket, key)?);
                }
                Ok(Value::Null)
            }
            _ => Err(Error::Other("nobody does that".to_owned())),
        }
    }
}

struct Keyvalue;

impl Guest for Keyvalue {
    async fn run(input: String) -> Result<String, Failure> {
        let input: Input = parse(&input)?;
        let told = match input.draft {
            1 => draft::run(&input),
            2 => draft2::run(&input),
            _ => return Err(permanent("there is no such draft")),
        };
        Ok(told.to_string())
    }
}

export!(Keyvalue);
