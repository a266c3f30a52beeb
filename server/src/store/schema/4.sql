-- Version 4: secrets, key-value.

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

-- What tasks keep through wasi:keyvalue. With a rowid: values may be large.
CREATE TABLE key_value (
    tenant  TEXT NOT NULL,
    bucket  TEXT NOT NULL,
    key     TEXT NOT NULL,
    -- The tenant's write that the key came with: its place in lists, for as long as it is there.
    place   INTEGER NOT NULL,
    -- The tenant's write that the value came with.
    version INTEGER NOT NULL,
    -- The last column: a list of keys reads nothing of it.
    value   BLOB NOT NULL,
    PRIMARY KEY (tenant, bucket, key)
);
CREATE UNIQUE INDEX key_value_place ON key_value (tenant, bucket, place);

-- What a tenant's keys and values add up to, kept in the transaction of every change, and how many writes
-- there were.
CREATE TABLE key_value_use (
    tenant  TEXT PRIMARY KEY,
    entries INTEGER NOT NULL,
    bytes   INTEGER NOT NULL,
    writes  INTEGER NOT NULL
) WITHOUT ROWID;
