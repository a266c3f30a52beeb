//! `wasi:keyvalue@0.2.0-draft`.

use wasmtime::component::Resource;

use super::bindings::wasi::keyvalue0_2_0_draft::{atomics, batch, store};
use super::{Answer, Fault};
use crate::host::Host;
use crate::key_value::Bucket;

impl store::Host for Host {
    async fn open(&mut self, identifier: String) -> Answer<Resource<Bucket>> {
        self.open_bucket(&identifier)
    }

    fn convert_error(&mut self, fault: Fault) -> wasmtime::Result<store::Error> {
        match fault {
            Fault::AccessDenied => Ok(store::Error::AccessDenied),
            Fault::Other(why) => Ok(store::Error::Other(why)),
            Fault::Trap(error) => Err(error),
        }
    }
}

impl store::HostBucket for Host {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        self.value(&bucket, key).await
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        self.set_values(&bucket, vec![(key, value)]).await
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<()> {
        self.delete_keys(&bucket, vec![key]).await
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<bool> {
        self.has_key(&bucket, key).await
    }

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Answer<store::KeyResponse> {
        let (keys, cursor) = self.keys(&bucket, cursor.unwrap_or(0)).await?;
        Ok(store::KeyResponse { keys, cursor })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for Host {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Answer<u64> {
        let sum = self.add(&bucket, key, delta.into(), 0..=u64::MAX.into()).await?;
        Ok(sum as u64)
    }
}

impl batch::Host for Host {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        let found = self.values(&bucket, keys).await?;
        Ok(found.into_iter().map(|(key, value)| Some((key, value?))).collect())
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, values: Vec<(String, Vec<u8>)>) -> Answer<()> {
        self.set_values(&bucket, values).await
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        self.delete_keys(&bucket, keys).await
    }
}
