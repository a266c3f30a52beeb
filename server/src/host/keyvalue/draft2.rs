//! `wasi:keyvalue@0.2.0-draft2`. Its cursors are texts, and it has compare-and-swap.

use wasmtime::component::Resource;

use super::bindings::wasi::keyvalue0_2_0_draft2::{atomics, batch, store};
use super::{Answer, Cas, Fault};
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

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<String>) -> Answer<store::KeyResponse> {
        let after = cursor.map_or(Ok(0), |cursor| cursor.parse());
        let after = after.map_err(|_| Fault::Other("the cursor is none that a list came with".into()))?;
        let (keys, cursor) = self.keys(&bucket, after).await?;
        Ok(store::KeyResponse { keys, cursor: cursor.map(|cursor| cursor.to_string()) })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::HostCas for Host {
    async fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Resource<Cas>> {
        self.new_cas(&bucket, key).await
    }

    async fn current(&mut self, cas: Resource<Cas>) -> Answer<Option<Vec<u8>>> {
        Host::current(self, &cas).await
    }

    async fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

impl atomics::Host for Host {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: i64) -> Answer<i64> {
        let sum = self.add(&bucket, key, delta.into(), i64::MIN.into()..=i64::MAX.into()).await?;
        Ok(sum as i64)
    }

    async fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> wasmtime::Result<Result<(), atomics::CasError>> {
        Ok(match self.swap_value(cas, value).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(newer)) => Err(atomics::CasError::CasFailed(newer)),
            Err(fault) => Err(atomics::CasError::StoreError(store::Host::convert_error(self, fault)?)),
        })
    }
}

impl batch::Host for Host {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<(String, Option<Vec<u8>>)>> {
        self.values(&bucket, keys).await
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, values: Vec<(String, Vec<u8>)>) -> Answer<()> {
        self.set_values(&bucket, values).await
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        self.delete_keys(&bucket, keys).await
    }
}
