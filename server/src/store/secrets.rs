//! Secrets, as they are stored: sealed. What is sealed is nothing to this module.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::{Readers, StoreError, Writer};
use crate::task::Timestamp;

type Result<T> = std::result::Result<T, StoreError>;

/// What is shown of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretMeta {
    /// Its name.
    pub name: String,
    /// When it was written first.
    pub created_at: Timestamp,
    /// When it was written last.
    pub updated_at: Timestamp,
    /// Whether it can be opened.
    pub usable: bool,
}

impl Writer {
    /// When the tenant's secret of that name was written first, and last.
    pub fn secret_times(&mut self, tenant: &str, name: &str) -> Result<Option<(Timestamp, Timestamp)>> {
        Ok(self
            .conn
            .prepare_cached("SELECT created_at, updated_at FROM secret WHERE tenant = ?1 AND name = ?2")?
            .query_row([tenant, name], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?)
    }

    /// How many secrets a tenant has.
    pub fn count_secrets(&mut self, tenant: &str) -> Result<u64> {
        let mut statement = self.conn.prepare_cached("SELECT count(*) FROM secret WHERE tenant = ?1")?;
        Ok(statement.query_row([tenant], |row| row.get(0))?)
    }

    /// Stores a secret in place of the one of that name, if there is one.
    pub fn put_secret(
        &mut self,
        tenant: &str,
        name: &str,
        sealed: &[u8],
        created_at: Timestamp,
        updated_at: Timestamp,
    ) -> Result<()> {
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO secret (tenant, name, sealed, created_at, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![tenant, name, sealed, created_at, updated_at])?;
        Ok(())
    }

    /// Removes a secret.
    pub fn delete_secret(&mut self, tenant: &str, name: &str) -> Result<()> {
        let mut statement = self.conn.prepare_cached("DELETE FROM secret WHERE tenant = ?1 AND name = ?2")?;
        statement.execute([tenant, name])?;
        Ok(())
    }
}

impl Readers {
    /// The tenant's secrets of these names; `None` where there is none.
    pub async fn sealed_secrets(&self, tenant: Arc<str>, names: Vec<String>) -> Result<Vec<Option<Vec<u8>>>> {
        self.read(&tenant.clone(), move |conn| {
            let mut statement = conn.prepare_cached("SELECT sealed FROM secret WHERE tenant = ?1 AND name = ?2")?;
            let sealed = names.iter().map(|name| statement.query_row([&*tenant, name], |row| row.get(0)).optional());
            sealed.collect()
        })
        .await
    }

    /// The tenant's secrets after `after` in the order of their names, at most `limit`. `is_usable` is asked with
    /// the name and what is sealed.
    pub async fn secrets(
        &self,
        tenant: Arc<str>,
        after: String,
        limit: usize,
        is_usable: impl Fn(&str, &[u8]) -> bool + Send + 'static,
    ) -> Result<Vec<SecretMeta>> {
        self.read(&tenant.clone(), move |conn| {
            let mut statement = conn.prepare_cached(
                "SELECT name, created_at, updated_at, sealed FROM secret
                 WHERE tenant = ?1 AND name > ?2 ORDER BY name LIMIT ?3",
            )?;
            let rows = statement.query_map(params![&*tenant, after, limit as i64], |row| {
                let name: String = row.get(0)?;
                let usable = is_usable(&name, row.get_ref(3)?.as_blob()?);
                Ok(SecretMeta { name, created_at: row.get(1)?, updated_at: row.get(2)?, usable })
            })?;
            rows.collect()
        })
        .await
    }
}
