-- Version 1. Times are milliseconds since the Unix epoch, UTC.

-- The bytes of components, by their SHA-256. A task is pinned to one, so a version stays as long
-- as something refers to it.
CREATE TABLE component (
    digest     BLOB PRIMARY KEY,
    bytes      BLOB NOT NULL,
    created_at INTEGER NOT NULL
);

-- Task types by name. The tenant '' is the operator: its types are shared with all tenants.
CREATE TABLE task_type (
    tenant    TEXT NOT NULL,
    name      TEXT NOT NULL,
    component BLOB NOT NULL REFERENCES component (digest),
    limits    TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;

CREATE TABLE task_type_version (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    component  BLOB NOT NULL REFERENCES component (digest),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, name, component)
) WITHOUT ROWID;

CREATE TABLE task (
    id            BLOB PRIMARY KEY,
    tenant        TEXT NOT NULL,
    task_type     TEXT NOT NULL,
    component     BLOB NOT NULL,
    status        INTEGER NOT NULL,
    -- When it is its turn among the Pending: see schedule::rank. Lower first.
    rank          INTEGER NOT NULL,
    priority      INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    started_at    INTEGER,
    finished_at   INTEGER,
    attempt       INTEGER NOT NULL,
    interruptions INTEGER NOT NULL,
    limits        TEXT,
    input         TEXT NOT NULL,
    output        TEXT,
    progress      TEXT,
    error_kind    TEXT,
    error         TEXT,
    usage         TEXT,
    usage_total   TEXT
) WITHOUT ROWID;

-- The queue. Tasks that start as soon as they are created never enter it.
CREATE INDEX task_ready ON task (rank, id) WHERE status = 0;
-- Which attempts a crash cut off, and the lists of what is not Completed. Completed tasks, the
-- great majority, are read off the table itself and cost no index.
CREATE INDEX task_status ON task (status, tenant, id) WHERE status <> 2;

CREATE TABLE log (
    task    BLOB NOT NULL,
    seq     INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    level   INTEGER NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (task, seq)
) WITHOUT ROWID;

CREATE TABLE object (
    rowid      INTEGER PRIMARY KEY,
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    etag       TEXT NOT NULL,
    size       INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    data       BLOB NOT NULL,
    UNIQUE (tenant, name)
);

-- What a tenant's objects add up to, kept in the transaction of every change.
CREATE TABLE object_use (
    tenant  TEXT PRIMARY KEY,
    objects INTEGER NOT NULL,
    bytes   INTEGER NOT NULL
) WITHOUT ROWID;
