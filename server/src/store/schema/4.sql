-- Version 4: secrets, key-value, tenants with their keys and quotas, the audit log, the ledger, concurrency.

-- Sealed with the operator's key, which is not in here.
CREATE TABLE secret (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    -- The nonce, and the value with its tag: ChaCha20-Poly1305, for this tenant and this name.
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

CREATE TABLE tenant (
    name       TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL,
    -- Its share of the machine beside the others'.
    weight     INTEGER NOT NULL,
    -- What is set of its quotas; the others are as the server has them.
    quotas     TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;
-- The one that is served without keys, and the one that administers the others.
INSERT INTO tenant (name, created_at, weight) VALUES
    ('default', unixepoch('subsec') * 1000, 100), ('operator', unixepoch('subsec') * 1000, 100);

-- Keys of clients. One that was taken back stays for the record: that there is none means that none was ever made.
CREATE TABLE api_key (
    -- As 8 bytes, the highest first.
    id           BLOB PRIMARY KEY,
    tenant       TEXT NOT NULL REFERENCES tenant (name),
    role         TEXT NOT NULL,
    -- A JSON array of names; NULL: all types.
    task_types   TEXT,
    -- The SHA-256 of the whole key.
    hash         BLOB NOT NULL,
    label        TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    revoked_at   INTEGER,
    last_used_at INTEGER
) WITHOUT ROWID;
CREATE INDEX api_key_tenant ON api_key (tenant, created_at);

-- What was administered, by whom. Lines are added, and removed when they are old, which is a day at least; none is
-- changed.
CREATE TABLE audit (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    -- Whose key it was.
    tenant   TEXT NOT NULL,
    -- Which; NULL: none was needed.
    key      BLOB,
    -- The address that the request came from, or 'private socket', or 'command line'.
    peer     TEXT NOT NULL,
    action   TEXT NOT NULL,
    -- Whose thing it was done to, and which.
    of       TEXT NOT NULL,
    target   TEXT NOT NULL,
    detail   TEXT
);
CREATE INDEX audit_age ON audit (at);
CREATE INDEX audit_of ON audit (of, seq);
CREATE TRIGGER audit_unchanged BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is not changed');
END;
CREATE TRIGGER audit_kept BEFORE DELETE ON audit WHEN OLD.at > unixepoch('subsec') * 1000 - 86400000 BEGIN
    SELECT RAISE(ABORT, 'the audit log is kept');
END;

-- What each tenant's attempts came to and what they used, by day, written in the transaction that ends them.
CREATE TABLE usage (
    tenant        TEXT NOT NULL,
    -- Days since 1970-01-01, UTC.
    day           INTEGER NOT NULL,
    -- 'completed' or the kind of the error; 'given_back'; 'test'.
    came_to       TEXT NOT NULL,
    -- Tasks that ended so, and attempts.
    tasks         INTEGER NOT NULL,
    attempts      INTEGER NOT NULL,
    -- Times in microseconds.
    cpu_us        INTEGER NOT NULL,
    wall_us       INTEGER NOT NULL,
    queue_us      INTEGER NOT NULL,
    fuel          INTEGER NOT NULL,
    -- The most memory of each attempt times how long it ran.
    memory_kib_ms INTEGER NOT NULL,
    host_calls    INTEGER NOT NULL,
    io_bytes      INTEGER NOT NULL,
    log_bytes     INTEGER NOT NULL,
    PRIMARY KEY (tenant, day, came_to)
) WITHOUT ROWID;
CREATE INDEX usage_age ON usage (day);

-- How many tasks of a type run at once.
ALTER TABLE task_type ADD COLUMN concurrency TEXT NOT NULL DEFAULT '{}';
-- So many tasks of the tenant's type that have it run at once.
ALTER TABLE task ADD COLUMN concurrency_key TEXT;
-- `held` is 2: as many tasks of the type run as may; 3: as many that have the key.
CREATE INDEX task_type_queue ON task (tenant, task_type, rank, id) WHERE held = 2;
CREATE INDEX task_key_queue ON task (tenant, task_type, concurrency_key, rank, id) WHERE held = 3;
CREATE INDEX task_at_once ON task (tenant, task_type, id) WHERE held >= 2;

-- The queue, by tenant.
DROP INDEX task_ready;
CREATE INDEX task_ready ON task (tenant, rank, id) WHERE status = 0 AND due_at IS NULL AND held = 0;

-- Anew, with what the lines count as in front of them.
CREATE TABLE log_lines_4 (
    task    BLOB NOT NULL,
    -- The number of the first line, and how many there are.
    first   INTEGER NOT NULL,
    count   INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    -- Of each line its text and 64 bytes. 0: it is the marker of lines that were dropped.
    bytes   INTEGER NOT NULL,
    -- A JSON array of [time, level, message].
    lines   TEXT NOT NULL,
    PRIMARY KEY (task, first)
) WITHOUT ROWID;
INSERT INTO log_lines_4 (task, first, count, attempt, bytes, lines)
    SELECT task, first, count, attempt, (SELECT sum(octet_length(value ->> 2) + 64) FROM json_each(lines)), lines
    FROM log_lines;
DROP TABLE log_lines;
ALTER TABLE log_lines_4 RENAME TO log_lines;

-- What a tenant's log lines add up to, kept in the transaction of every change.
CREATE TABLE log_use (
    tenant TEXT PRIMARY KEY,
    bytes  INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO log_use (tenant, bytes)
    SELECT tenant, sum(bytes) FROM log_lines JOIN task ON id = log_lines.task GROUP BY tenant;

-- The same of its task types. Each version counts, also where two have the same component.
CREATE TABLE version_use (
    tenant TEXT PRIMARY KEY,
    bytes  INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO version_use (tenant, bytes)
    SELECT tenant, sum(length(bytes)) FROM task_type_version JOIN component ON digest = component GROUP BY tenant;
CREATE TRIGGER version_added AFTER INSERT ON task_type_version BEGIN
    INSERT INTO version_use (tenant, bytes)
        SELECT NEW.tenant, length(bytes) FROM component WHERE digest = NEW.component
        ON CONFLICT (tenant) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER version_removed AFTER DELETE ON task_type_version BEGIN
    UPDATE version_use SET bytes = bytes - (SELECT length(bytes) FROM component WHERE digest = OLD.component)
        WHERE tenant = OLD.tenant;
END;

-- Whether a task is still held back is the same for all of a type and a version: so they are looked at together.
DROP INDEX task_held;
CREATE INDEX task_held ON task (tenant, task_type, component, id) WHERE held = 1;
