//! Tenants and their keys.

use std::sync::Arc;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput};
use rusqlite::{OptionalExtension, Row, params};

use super::rows::Json;
use super::{Readers, StoreError, Writer};
use crate::keys::{KeyId, Role, StoredKey};
use crate::quotas::Quotas;
use crate::task::Timestamp;
use crate::tenants::Tenant;

type Result<T> = std::result::Result<T, StoreError>;

/// The columns of a tenant, in the order of [`tenant`].
const TENANT_COLUMNS: &str = "name, created_at, weight, quotas";

/// The columns of a key, in the order of [`key`].
const KEY_COLUMNS: &str = "id, tenant, role, task_types, hash, label, created_at, expires_at, revoked_at, last_used_at";

impl ToSql for KeyId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.to_be_bytes().to_vec().into())
    }
}

impl FromSql for KeyId {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_blob()?.try_into().map(u64::from_be_bytes).map(KeyId).map_err(FromSqlError::other)
    }
}

impl ToSql for Role {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

impl FromSql for Role {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map_err(|_| FromSqlError::InvalidType)
    }
}

fn key(row: &Row<'_>) -> rusqlite::Result<StoredKey> {
    Ok(StoredKey {
        id: row.get(0)?,
        tenant: row.get::<_, String>(1)?.into(),
        role: row.get(2)?,
        task_types: row.get::<_, Option<Json<_>>>(3)?.map(|types| types.0),
        hash: row.get(4)?,
        label: row.get(5)?,
        created_at: row.get(6)?,
        expires_at: row.get(7)?,
        revoked_at: row.get(8)?,
        last_used_at: row.get(9)?,
    })
}

fn tenant(row: &Row<'_>) -> rusqlite::Result<Tenant> {
    Ok(Tenant {
        name: row.get::<_, String>(0)?.into(),
        created_at: row.get(1)?,
        weight: row.get(2)?,
        quotas: row.get::<_, Json<_>>(3)?.0,
    })
}

impl Writer {
    /// All tenants.
    pub fn tenants(&mut self) -> Result<Vec<Tenant>> {
        let sql = format!("SELECT {TENANT_COLUMNS} FROM tenant ORDER BY name");
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map([], tenant)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The tenant of that name.
    pub fn tenant(&mut self, name: &str) -> Result<Option<Tenant>> {
        let sql = format!("SELECT {TENANT_COLUMNS} FROM tenant WHERE name = ?1");
        Ok(self.conn.prepare_cached(&sql)?.query_row([name], tenant).optional()?)
    }

    /// Writes a tenant, in place of the one of that name.
    pub fn put_tenant(&mut self, tenant: &Tenant) -> Result<()> {
        let Tenant { name, created_at, weight, quotas } = tenant;
        let sql = format!(
            "INSERT INTO tenant ({TENANT_COLUMNS}) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (name) DO UPDATE SET weight = ?3, quotas = ?4"
        );
        self.conn.prepare_cached(&sql)?.execute(params![&**name, created_at, weight, Json(quotas)])?;
        Ok(())
    }

    /// All keys, of all tenants.
    pub fn keys(&mut self) -> Result<Vec<StoredKey>> {
        let mut statement = self.conn.prepare_cached(&format!("SELECT {KEY_COLUMNS} FROM api_key"))?;
        let rows = statement.query_map([], key)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// A tenant's keys, the first made first.
    pub fn keys_of(&mut self, tenant: &str) -> Result<Vec<StoredKey>> {
        let sql = format!("SELECT {KEY_COLUMNS} FROM api_key WHERE tenant = ?1 ORDER BY created_at, id");
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map([tenant], key)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether a key is there, and neither taken back nor expired.
    pub fn is_key_good(&mut self, id: KeyId, now: Timestamp) -> Result<bool> {
        let sql =
            "SELECT 1 FROM api_key WHERE id = ?1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?2)";
        Ok(self.conn.prepare_cached(sql)?.exists(params![id, now])?)
    }

    /// Whether a key was ever made.
    pub fn has_keys(&mut self) -> Result<bool> {
        Ok(self.conn.prepare_cached("SELECT 1 FROM api_key LIMIT 1")?.exists([])?)
    }

    /// Adds a key.
    pub fn insert_key(&mut self, key: &StoredKey) -> Result<()> {
        let sql = format!("INSERT INTO api_key ({KEY_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)");
        self.conn.prepare_cached(&sql)?.execute(params![
            key.id,
            &*key.tenant,
            key.role,
            key.task_types.as_ref().map(Json),
            key.hash,
            key.label,
            key.created_at,
            key.expires_at,
            key.revoked_at,
            key.last_used_at,
        ])?;
        Ok(())
    }

    /// Notes that a key was taken back.
    pub fn revoke_key(&mut self, id: KeyId, now: Timestamp) -> Result<()> {
        self.conn.prepare_cached("UPDATE api_key SET revoked_at = ?2 WHERE id = ?1")?.execute(params![id, now])?;
        Ok(())
    }

    /// Notes when a key was used last.
    pub fn key_used(&mut self, id: KeyId, at: Timestamp) -> Result<()> {
        self.conn.prepare_cached("UPDATE api_key SET last_used_at = ?2 WHERE id = ?1")?.execute(params![id, at])?;
        Ok(())
    }

    /// Removes a key.
    pub fn delete_key(&mut self, id: KeyId) -> Result<()> {
        self.conn.prepare_cached("DELETE FROM api_key WHERE id = ?1")?.execute([id])?;
        Ok(())
    }
}

impl Readers {
    /// What a tenant uses of the quotas of what is stored.
    pub async fn stored_use(&self, tenant: Arc<str>) -> Result<Quotas> {
        self.read(&tenant.clone(), move |conn| {
            conn.prepare_cached(
                "SELECT (SELECT count(*) FROM task_type WHERE tenant = ?1),
                     coalesce((SELECT bytes FROM version_use WHERE tenant = ?1), 0),
                     coalesce((SELECT objects FROM object_use WHERE tenant = ?1), 0),
                     coalesce((SELECT bytes FROM object_use WHERE tenant = ?1), 0),
                     coalesce((SELECT bytes FROM log_use WHERE tenant = ?1), 0),
                     (SELECT count(*) FROM schedule WHERE tenant = ?1),
                     (SELECT count(*) FROM secret WHERE tenant = ?1),
                     coalesce((SELECT entries FROM key_value_use WHERE tenant = ?1), 0),
                     coalesce((SELECT bytes FROM key_value_use WHERE tenant = ?1), 0)",
            )?
            .query_row([&*tenant], |row| {
                Ok(Quotas {
                    task_types: row.get(0)?,
                    component_bytes: row.get(1)?,
                    objects: row.get(2)?,
                    object_bytes: row.get(3)?,
                    log_bytes: row.get(4)?,
                    schedules: row.get(5)?,
                    secrets: row.get(6)?,
                    keyvalue_keys: row.get(7)?,
                    keyvalue_bytes: row.get(8)?,
                    ..Quotas::default()
                })
            })
        })
        .await
    }
}
