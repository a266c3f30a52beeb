-- Version 4: secrets, key-value, tasks that are held back by what they wait for.

-- Sealed with the operator's key, which is not in here.
CREATE TABLE secret (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    -- The nonce and what was sealed.
    sealed     BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;

-- What tasks keep through wasi:keyvalue.
CREATE TABLE key_value (
    tenant TEXT NOT NULL,
    bucket TEXT NOT NULL,
    key    TEXT NOT NULL,
    value  BLOB NOT NULL,
    PRIMARY KEY (tenant, bucket, key)
) WITHOUT ROWID;

-- What a tenant's keys and values add up to, kept in the transaction of every change.
CREATE TABLE key_value_use (
    tenant  TEXT PRIMARY KEY,
    entries INTEGER NOT NULL,
    bytes   INTEGER NOT NULL
) WITHOUT ROWID;

-- Whether a task is still held back is the same for all of a type and a version: so they are looked at together.
DROP INDEX task_held;
CREATE INDEX task_held ON task (tenant, task_type, component, id) WHERE held = 1;
