//! What tasks keep through `wasi:keyvalue`: the rules for keys and sizes, and the way to the store.
//!
//! A tenant has buckets, apart from its objects. A bucket is a name: it is there for whoever is granted it, and
//! empty until something is set in it.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::manager;
use crate::quotas::UsedUp;
use crate::storage::Storage;
use crate::store::{KeyValueChange, KeyValueWrite, KeyWithValue, StoreError};

/// Most bytes of a key.
pub const KEY_BYTES: usize = 512;

/// Most keys of one call.
pub const MOST_KEYS: usize = 1000;

/// Why something was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The key is not allowed.
    #[error("{0}")]
    InvalidKey(&'static str),
    /// More keys than one call may have.
    #[error("more than {MOST_KEYS} keys in one call")]
    TooManyKeys,
    /// The value is larger than this many bytes.
    #[error("the value is larger than {0} bytes")]
    TooLarge(u64),
    /// What is read does not fit into what may be held for it.
    #[error("{0} bytes are more than the task's host_memory_bytes have room for")]
    NoMemory(u64),
    /// The value is no number.
    #[error("the value is no whole number in decimal digits")]
    NoNumber,
    /// The sum would be.
    #[error("the sum is out of the range of its type")]
    OutOfRange,
    /// The tenant may not keep more.
    #[error("of the tenant: {0}")]
    QuotaExceeded(UsedUp),
    /// It was not done, and that has nothing to do with what was asked for; trying again may help.
    #[error(transparent)]
    Undone(#[from] manager::Refused),
}

/// All tenants' buckets.
#[derive(Clone)]
pub struct KeyValues {
    storage: Storage,
    max_bytes: u64,
}

/// A tenant's bucket.
#[derive(Clone)]
pub struct Bucket {
    of: KeyValues,
    tenant: Arc<str>,
    name: Arc<str>,
}

/// A key that is allowed: 1 to 512 bytes without NUL.
pub fn check_key(key: &str) -> Result<(), Refused> {
    let why = if key.is_empty() {
        "the key is empty"
    } else if key.len() > KEY_BYTES {
        "the key is longer than 512 bytes"
    } else if key.contains('\0') {
        "the key has a NUL"
    } else {
        return Ok(());
    };
    Err(Refused::InvalidKey(why))
}

fn check_keys<'a>(keys: impl ExactSizeIterator<Item = &'a str>) -> Result<(), Refused> {
    if keys.len() > MOST_KEYS {
        return Err(Refused::TooManyKeys);
    }
    keys.into_iter().try_for_each(check_key)
}

impl KeyValues {
    /// The buckets in that storage, with values of at most `max_bytes`.
    pub fn new(storage: Storage, max_bytes: u64) -> KeyValues {
        KeyValues { storage, max_bytes }
    }

    /// The tenant's bucket of that name.
    pub fn bucket(&self, tenant: &Arc<str>, name: Arc<str>) -> Bucket {
        Bucket { of: self.clone(), tenant: tenant.clone(), name }
    }
}

impl Bucket {
    /// The values of keys, all as of one moment, with what `hold` returned. It is told how many bytes they have
    /// before they are read; where it returns nothing, they are not.
    pub async fn get<H: Send + 'static>(
        &self,
        keys: Vec<String>,
        hold: impl FnOnce(u64) -> Option<H> + Send + 'static,
    ) -> Result<(Vec<KeyWithValue>, H), Refused> {
        check_keys(keys.iter().map(String::as_str))?;
        let read = self.of.storage.readers.values(self.tenant.clone(), self.name.clone(), keys, hold).await;
        read.map_err(undone)?.map_err(Refused::NoMemory)
    }

    /// The version of a key's value, if there is one.
    pub async fn version(&self, key: String) -> Result<Option<u64>, Refused> {
        check_key(&key)?;
        let readers = &self.of.storage.readers;
        readers.version_of_value(self.tenant.clone(), self.name.clone(), key).await.map_err(undone)
    }

    /// Keys in the order in which they came, after the place `after`, each with its own.
    pub async fn list(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, Refused> {
        let readers = &self.of.storage.readers;
        readers.keys(self.tenant.clone(), self.name.clone(), after, limit).await.map_err(undone)
    }

    /// Sets all of these or none; of a key that is there twice, the last value. Durable when it returns.
    pub async fn set(&self, values: Vec<(String, Vec<u8>)>) -> Result<(), Refused> {
        check_keys(values.iter().map(|(key, _)| key.as_str()))?;
        values.iter().try_for_each(|(_, value)| self.check_value(value))?;
        self.change(KeyValueChange::Set(values.into_iter().collect())).await.map(drop)
    }

    /// Removes all of these that are there, or none; durable when it returns.
    pub async fn delete(&self, keys: Vec<String>) -> Result<(), Refused> {
        check_keys(keys.iter().map(String::as_str))?;
        self.change(KeyValueChange::Delete(keys)).await.map(drop)
    }

    /// Adds to the number that the key's value is, 0 where there is none, and returns the sum, which has to be
    /// within that range; durable when it returns.
    pub async fn add(&self, key: String, delta: i128, within: RangeInclusive<i128>) -> Result<i128, Refused> {
        check_key(&key)?;
        match self.change(KeyValueChange::Add { key, delta, within }).await? {
            KeyValueWrite::Sum(sum) => Ok(sum),
            _ => Err(another_question()),
        }
    }

    /// Sets the key's value where the one that it has is of that version; durable when it returns. Otherwise
    /// what its version is.
    pub async fn swap(
        &self,
        key: String,
        version: Option<u64>,
        value: Vec<u8>,
    ) -> Result<Result<(), Option<u64>>, Refused> {
        check_key(&key)?;
        self.check_value(&value)?;
        match self.change(KeyValueChange::Swap { key, version, value }).await? {
            KeyValueWrite::Changed(version) => Ok(Err(version)),
            _ => Ok(Ok(())),
        }
    }

    fn check_value(&self, value: &[u8]) -> Result<(), Refused> {
        let most = self.of.max_bytes;
        if value.len() as u64 > most { Err(Refused::TooLarge(most)) } else { Ok(()) }
    }

    async fn change(&self, change: KeyValueChange) -> Result<KeyValueWrite, Refused> {
        let storage = &self.of.storage;
        let _turn = storage.turn_to_write().await;
        match storage.manager.change_key_values(&self.tenant, &self.name, change).await? {
            KeyValueWrite::NoNumber => Err(Refused::NoNumber),
            KeyValueWrite::OutOfRange => Err(Refused::OutOfRange),
            KeyValueWrite::QuotaExceeded(used_up) => Err(Refused::QuotaExceeded(used_up)),
            written => Ok(written),
        }
    }
}

fn another_question() -> Refused {
    manager::Refused::Internal(anyhow::anyhow!("the store answered another question")).into()
}

fn undone(error: StoreError) -> Refused {
    manager::Refused::from(error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for good in ["a", "a/b", "/", "..", "\n", "…", "e\u{301}", " ", &"x".repeat(512)] {
            assert!(check_key(good).is_ok(), "{good:?}");
        }
        for bad in ["", "\0", "a\0b", &"x".repeat(513), &"é".repeat(257)] {
            assert!(matches!(check_key(bad), Err(Refused::InvalidKey(_))), "{bad:?}");
        }
    }
}
