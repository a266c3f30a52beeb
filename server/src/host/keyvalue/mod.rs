//! `wasi:keyvalue` for guests: the buckets that their type is granted. What both drafts of it do is here.
//!
//! A call keeps its guest until it is done: so an attempt has one under way, and not more.

mod draft;
mod draft2;

use std::ops::RangeInclusive;
use std::sync::Arc;

use wasmtime::component::{HasSelf, Linker, Resource, ResourceTableError};

use super::Host;
use super::memory::HeldMemory;
use super::objects::undone;
use crate::key_value::{Bucket, KEY_BYTES, Refused, check_key};

/// Bindings of both drafts.
mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "keyvalue",
        imports: { default: async | trappable },
        with: {
            "wasi:keyvalue/store@0.2.0-draft.bucket": crate::key_value::Bucket,
            "wasi:keyvalue/store@0.2.0-draft2.bucket": crate::key_value::Bucket,
            "wasi:keyvalue/atomics@0.2.0-draft2.cas": super::Cas,
        },
        trappable_error_type: {
            "wasi:keyvalue/store@0.2.0-draft.error" => super::Fault,
            "wasi:keyvalue/store@0.2.0-draft2.error" => super::Fault,
        },
    });
}

/// Most keys of a page of a list.
const PAGE_KEYS: u64 = 1000;

/// What a key costs the host that it holds for a guest, beside its bytes and those of its value.
const ENTRY_BYTES: u64 = 128;

/// Why a call did not do what it was to do.
enum Fault {
    /// The bucket is not granted.
    AccessDenied,
    /// The guest is told this.
    Other(String),
    /// The guest is not told: it ends.
    Trap(wasmtime::Error),
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Fault {
        Fault::Other(match refused {
            Refused::Undone(why) => undone(why),
            refused => refused.to_string(),
        })
    }
}

impl From<ResourceTableError> for Fault {
    fn from(error: ResourceTableError) -> Fault {
        Fault::Trap(error.into())
    }
}

type Answer<T> = Result<T, Fault>;

/// A compare-and-swap that a guest may make: no larger than what a handle costs.
#[expect(unreachable_pub, reason = "the bindings export it once more")]
pub struct Cas {
    bucket: Bucket,
    key: String,
    /// What the swap is for: the version that was current when the guest looked last.
    version: Option<u64>,
}

type Found = (String, Option<Vec<u8>>);

impl Host {
    fn open_bucket(&mut self, name: &str) -> Answer<Resource<Bucket>> {
        self.calls += 1;
        if !self.grants.keyvalue.iter().any(|granted| granted == name) {
            return Err(Fault::AccessDenied);
        }
        let bucket = self.services.key_values.bucket(&self.tenant, Arc::from(name));
        Ok(self.table.push(bucket)?)
    }

    fn bucket(&mut self, bucket: &Resource<Bucket>) -> Answer<Bucket> {
        self.calls += 1;
        Ok(self.table.get(bucket)?.clone())
    }

    fn take(&self, bytes: u64) -> Answer<HeldMemory> {
        self.host_memory.take(bytes).map_err(|_| Refused::NoMemory(bytes).into())
    }

    async fn value_of(&mut self, bucket: &Bucket, key: String) -> Answer<(Option<u64>, Option<Vec<u8>>)> {
        let memory = self.host_memory.clone();
        let (found, _held) = bucket.get(vec![key], move |bytes| memory.take(bytes).ok()).await?;
        let found = found.into_iter().find_map(|(_, found)| found);
        self.io_bytes += found.as_ref().map_or(0, |found| found.value.len() as u64);
        Ok(found.map(|found| (Some(found.version), Some(found.value))).unwrap_or_default())
    }

    async fn value(&mut self, bucket: &Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        let bucket = self.bucket(bucket)?;
        Ok(self.value_of(&bucket, key).await?.1)
    }

    async fn values(&mut self, bucket: &Resource<Bucket>, keys: Vec<String>) -> Answer<Vec<Found>> {
        let bucket = self.bucket(bucket)?;
        let _keys = self.take(keys.iter().map(|key| key.len() as u64 + ENTRY_BYTES).sum())?;
        let memory = self.host_memory.clone();
        let (found, _held) = bucket.get(keys, move |bytes| memory.take(bytes).ok()).await?;
        let found: Vec<Found> = found.into_iter().map(|(key, found)| (key, found.map(|found| found.value))).collect();
        self.io_bytes += found.iter().flat_map(|(_, value)| value).map(|value| value.len() as u64).sum::<u64>();
        Ok(found)
    }

    async fn set_values(&mut self, bucket: &Resource<Bucket>, values: Vec<(String, Vec<u8>)>) -> Answer<()> {
        let bucket = self.bucket(bucket)?;
        let bytes: u64 = values.iter().map(|(_, value)| value.len() as u64).sum();
        let keys: u64 = values.iter().map(|(key, _)| key.len() as u64 + ENTRY_BYTES).sum();
        let _held = self.take(keys + bytes)?;
        bucket.set(values).await?;
        self.io_bytes += bytes;
        Ok(())
    }

    async fn delete_keys(&mut self, bucket: &Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        let bucket = self.bucket(bucket)?;
        let _held = self.take(keys.iter().map(|key| key.len() as u64 + ENTRY_BYTES).sum())?;
        Ok(bucket.delete(keys).await?)
    }

    async fn has_key(&mut self, bucket: &Resource<Bucket>, key: String) -> Answer<bool> {
        let bucket = self.bucket(bucket)?;
        Ok(bucket.version(key).await?.is_some())
    }

    /// A page of keys after a place, and the place after which there are more.
    async fn keys(&mut self, bucket: &Resource<Bucket>, after: u64) -> Answer<(Vec<String>, Option<u64>)> {
        let bucket = self.bucket(bucket)?;
        // A page may be of any size: it is as large as there is room for.
        let each = KEY_BYTES as u64 + ENTRY_BYTES;
        let count = (self.host_memory.left() / each).clamp(2, PAGE_KEYS + 1);
        let _held = self.take(count * each)?;
        // With one more than is told, as there is more if it comes.
        let mut found = bucket.list(after, count as usize).await?;
        let more = found.len() as u64 == count;
        if more {
            found.pop();
        }
        let next = found.last().map(|(place, _)| *place).filter(|_| more);
        Ok((found.into_iter().map(|(_, key)| key).collect(), next))
    }

    async fn add(
        &mut self,
        bucket: &Resource<Bucket>,
        key: String,
        delta: i128,
        within: RangeInclusive<i128>,
    ) -> Answer<i128> {
        let bucket = self.bucket(bucket)?;
        Ok(bucket.add(key, delta, within).await?)
    }

    async fn new_cas(&mut self, bucket: &Resource<Bucket>, key: String) -> Answer<Resource<Cas>> {
        let bucket = self.bucket(bucket)?;
        check_key(&key)?;
        let version = bucket.version(key.clone()).await?;
        Ok(self.table.push(Cas { bucket, key, version })?)
    }

    async fn current(&mut self, cas: &Resource<Cas>) -> Answer<Option<Vec<u8>>> {
        self.calls += 1;
        let Cas { bucket, key, .. } = self.table.get(cas)?;
        let (bucket, key) = (bucket.clone(), key.clone());
        let (version, value) = self.value_of(&bucket, key).await?;
        self.table.get_mut(cas)?.version = version;
        Ok(value)
    }

    /// Swaps, or returns another [`Cas`] for what has changed meanwhile.
    async fn swap_value(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> Answer<Result<(), Resource<Cas>>> {
        self.calls += 1;
        let Cas { bucket, key, version } = self.table.delete(cas)?;
        let bytes = value.len() as u64;
        let _held = self.take(bytes)?;
        match bucket.swap(key.clone(), version, value).await? {
            Ok(()) => {
                self.io_bytes += bytes;
                Ok(Ok(()))
            }
            Err(version) => Ok(Err(self.table.push(Cas { bucket, key, version })?)),
        }
    }
}

/// Puts both drafts into a linker.
pub(super) fn add_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    use bindings::wasi::{keyvalue0_2_0_draft as draft, keyvalue0_2_0_draft2 as draft2};
    draft::store::add_to_linker::<_, HasSelf<_>>(linker, |host: &mut Host| host)?;
    draft::atomics::add_to_linker::<_, HasSelf<_>>(linker, |host: &mut Host| host)?;
    draft::batch::add_to_linker::<_, HasSelf<_>>(linker, |host: &mut Host| host)?;
    draft2::store::add_to_linker::<_, HasSelf<_>>(linker, |host: &mut Host| host)?;
    draft2::atomics::add_to_linker::<_, HasSelf<_>>(linker, |host: &mut Host| host)?;
    draft2::batch::add_to_linker::<_, HasSelf<_>>(linker, |host: &mut Host| host)?;
    Ok(())
}
