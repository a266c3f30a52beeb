//! A tenant's named byte objects: the rules for names and sizes, and the way to the store. Guests
//! and clients use the same.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use unicode_normalization::is_nfc;

use crate::manager;
use crate::quotas::UsedUp;
use crate::storage::Storage;
use crate::store::{ObjectMeta, ObjectWrite, Precondition, StoreError};

/// Most bytes of a name.
pub const NAME_BYTES: usize = 512;

/// Why an object was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is none of that name.
    #[error("there is no such object")]
    NotFound,
    /// The name is not allowed.
    #[error("{0}")]
    InvalidName(&'static str),
    /// Larger than this many bytes.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    /// The tenant may not keep more.
    #[error(transparent)]
    QuotaExceeded(UsedUp),
    /// The precondition does not hold.
    #[error("the precondition does not hold")]
    PreconditionFailed,
    /// It was not done, and that has nothing to do with objects; trying again may help. Whoever
    /// answers the client logs it, where it is to be logged.
    #[error(transparent)]
    Undone(#[from] manager::Refused),
}

/// All tenants' objects.
#[derive(Clone)]
pub struct Objects {
    storage: Storage,
    max_bytes: u64,
}

/// A name that is allowed: 1 to 512 bytes of UTF-8 in NFC, `/`-separated segments, none empty, `.`
/// or `..`, no control characters.
pub fn check_name(name: &str) -> Result<(), Refused> {
    let why = if name.is_empty() {
        "the name is empty"
    } else if name.len() > NAME_BYTES {
        "the name is longer than 512 bytes"
    } else if name.chars().any(char::is_control) {
        "the name has a control character"
    } else if name.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        "a segment of the name is empty, '.' or '..'"
    } else if !is_nfc(name) {
        "the name is not in Unicode normalization form C"
    } else {
        return Ok(());
    };
    Err(Refused::InvalidName(why))
}

impl Objects {
    /// The objects in that storage, each of at most `max_bytes`.
    pub fn new(storage: Storage, max_bytes: u64) -> Objects {
        Objects { storage, max_bytes }
    }

    /// Bytes of the largest object.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// An object's data. At most `max_bytes`: a larger one is refused.
    pub async fn get(&self, tenant: &Arc<str>, name: String, max_bytes: u64) -> Result<(ObjectMeta, Vec<u8>), Refused> {
        check_name(&name)?;
        match self.storage.readers.object(tenant.clone(), name, max_bytes).await {
            Ok(Some(Ok(found))) => Ok(found),
            Ok(Some(Err(_size))) => Err(Refused::TooLarge(max_bytes)),
            Ok(None) => Err(Refused::NotFound),
            Err(error) => Err(undone(error)),
        }
    }

    /// What is known of an object.
    pub async fn head(&self, tenant: &Arc<str>, name: String) -> Result<ObjectMeta, Refused> {
        check_name(&name)?;
        match self.storage.readers.object_meta(tenant.clone(), name).await {
            Ok(found) => found.ok_or(Refused::NotFound),
            Err(error) => Err(undone(error)),
        }
    }

    /// An object's size in bytes.
    pub async fn size(&self, tenant: &Arc<str>, name: &str) -> Result<u64, Refused> {
        Ok(self.head(tenant, name.to_owned()).await?.size)
    }

    /// Creates or replaces an object; durable when it returns.
    pub async fn put(&self, tenant: &Arc<str>, name: String, data: Vec<u8>) -> Result<(), Refused> {
        self.put_if(tenant, name, data.into(), Precondition::None).await.map(|_| ())
    }

    /// Creates or replaces an object where the precondition holds. Returns its entity tag, and
    /// whether it is a new object.
    pub async fn put_if(
        &self,
        tenant: &Arc<str>,
        name: String,
        data: bytes::Bytes,
        precondition: Precondition,
    ) -> Result<(String, bool), Refused> {
        check_name(&name)?;
        if data.len() as u64 > self.max_bytes {
            return Err(Refused::TooLarge(self.max_bytes));
        }
        // The same bytes have the same tag: strong in the sense of RFC 9110, section 8.8.1.
        let etag = crate::task::Digest(Sha256::digest(&data).into()).hex();
        let _turn = self.storage.turn_to_write().await;
        let written = self.storage.manager.put_object(tenant, name, etag.clone(), data, precondition).await;
        match written {
            Ok(ObjectWrite::Created) => Ok((etag, true)),
            Ok(ObjectWrite::Replaced) => Ok((etag, false)),
            Ok(other) => Err(refused(other)),
            Err(why) => Err(why.into()),
        }
    }

    /// Removes an object.
    pub async fn remove(&self, tenant: &Arc<str>, name: String) -> Result<(), Refused> {
        self.remove_if(tenant, name, Precondition::None).await
    }

    /// Removes an object where the precondition holds.
    pub async fn remove_if(&self, tenant: &Arc<str>, name: String, precondition: Precondition) -> Result<(), Refused> {
        check_name(&name)?;
        let _turn = self.storage.turn_to_write().await;
        match self.storage.manager.remove_object(tenant, name, precondition).await {
            Ok(ObjectWrite::Removed) => Ok(()),
            Ok(other) => Err(refused(other)),
            Err(why) => Err(why.into()),
        }
    }

    /// Objects whose names start with `prefix`, in byte order, after `after`.
    pub async fn list(
        &self,
        tenant: &Arc<str>,
        prefix: String,
        after: Option<String>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, Refused> {
        self.storage.readers.objects(tenant.clone(), prefix, after, limit).await.map_err(undone)
    }
}

fn refused(write: ObjectWrite) -> Refused {
    match write {
        ObjectWrite::NotFound => Refused::NotFound,
        ObjectWrite::PreconditionFailed => Refused::PreconditionFailed,
        ObjectWrite::QuotaExceeded(used_up) => Refused::QuotaExceeded(used_up),
        ObjectWrite::Created | ObjectWrite::Replaced | ObjectWrite::Removed => {
            manager::Refused::Internal(anyhow::anyhow!("the store answered another question")).into()
        }
    }
}

fn undone(error: StoreError) -> Refused {
    manager::Refused::from(error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "a/b.txt", "…", "é", &"x".repeat(512), "..a", " "] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
        for bad in ["", "/", "a/", "/a", "a//b", ".", "a/../b", "a\nb", "a\u{0}b", "e\u{301}", &"x".repeat(513)] {
            assert!(matches!(check_name(bad), Err(Refused::InvalidName(_))), "{bad:?}");
        }
    }
}
