-- Version 2: retries, times, labels, keys, events, schedules, operations.

-- Each start of a server on this database. A Running task belongs to one.
CREATE TABLE server (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    started_at INTEGER NOT NULL,
    -- Numbers of events that were given, though the events may be gone.
    events     INTEGER NOT NULL
);

ALTER TABLE task_type ADD COLUMN retry TEXT NOT NULL DEFAULT '{}';
-- How long ended tasks are kept, in milliseconds; NULL: as the server says.
ALTER TABLE task_type ADD COLUMN retention_ms INTEGER;

ALTER TABLE task ADD COLUMN labels TEXT;
-- Its retry policy; NULL: the default one.
ALTER TABLE task ADD COLUMN retry TEXT;
-- Pending and not to start before; NULL: at once.
ALTER TABLE task ADD COLUMN due_at INTEGER;
ALTER TABLE task ADD COLUMN expires_at INTEGER;
ALTER TABLE task ADD COLUMN unique_key TEXT;
-- Attempts that ended by themselves without success, since it was created or retried by hand.
ALTER TABLE task ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
-- Which start of a server runs its attempt.
ALTER TABLE task ADD COLUMN server INTEGER;
-- The schedule that created it.
ALTER TABLE task ADD COLUMN schedule TEXT;

DROP INDEX task_ready;
CREATE INDEX task_ready ON task (rank, id) WHERE status = 0 AND due_at IS NULL;
CREATE INDEX task_due ON task (due_at, id) WHERE status = 0 AND due_at IS NOT NULL;
CREATE INDEX task_expires ON task (expires_at, id) WHERE status = 0 AND expires_at IS NOT NULL;
CREATE UNIQUE INDEX task_unique ON task (tenant, unique_key) WHERE status < 2 AND unique_key IS NOT NULL;
CREATE INDEX task_schedule ON task (tenant, schedule, id) WHERE schedule IS NOT NULL;
CREATE INDEX task_schedule_open ON task (tenant, schedule) WHERE schedule IS NOT NULL AND status < 2;
-- For retention.
CREATE INDEX task_ended ON task (tenant, task_type, finished_at) WHERE status >= 2;

CREATE TABLE label (
    tenant TEXT NOT NULL,
    key    TEXT NOT NULL,
    value  TEXT NOT NULL,
    task   BLOB NOT NULL,
    PRIMARY KEY (tenant, key, value, task)
) WITHOUT ROWID;

-- Attempts that are over, but for a task's last one, which is in its own row.
CREATE TABLE attempt (
    task        BLOB NOT NULL,
    number      INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    completed   INTEGER NOT NULL,
    error       TEXT,
    usage       TEXT,
    PRIMARY KEY (task, number)
) WITHOUT ROWID;

CREATE TABLE idempotency (
    tenant      TEXT NOT NULL,
    key         TEXT NOT NULL,
    -- The place in the array of a POST /tasks; -1: a POST /task.
    item        INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    task        BLOB NOT NULL,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant, key, item)
) WITHOUT ROWID;
CREATE INDEX idempotency_age ON idempotency (created_at);

-- What happened to tasks. The writer gives the numbers, which only grow.
CREATE TABLE event (
    seq     INTEGER PRIMARY KEY,
    tenant  TEXT NOT NULL,
    task    BLOB NOT NULL,
    kind    INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    data    TEXT
);
CREATE INDEX event_task ON event (task, seq);
-- Those of tasks that are gone.
CREATE INDEX event_deleted ON event (at) WHERE kind = 6;

-- Log lines, some at a time: a JSON array of [time, level, message].
CREATE TABLE log_lines (
    task    BLOB NOT NULL,
    -- The number of the first line, and how many there are.
    first   INTEGER NOT NULL,
    count   INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    lines   TEXT NOT NULL,
    PRIMARY KEY (task, first)
) WITHOUT ROWID;
INSERT INTO log_lines (task, first, count, attempt, lines)
    SELECT task, seq, 1, attempt, json_array(json_array(at, level, message)) FROM log;
DROP TABLE log;

CREATE TABLE schedule (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    paused     INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    -- The due time that comes next, or with which it goes on after a pause; NULL: there is none.
    next_at    INTEGER,
    -- Due times that wait for the task before them (overlap: queue).
    queued     INTEGER NOT NULL DEFAULT 0,
    -- Why the last due time made no task, and when that was.
    error      TEXT,
    error_at   INTEGER,
    -- What the client said. The last column: it may be large.
    spec       TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE INDEX schedule_next ON schedule (next_at) WHERE next_at IS NOT NULL AND paused = 0;
CREATE INDEX schedule_queued ON schedule (tenant, name) WHERE queued > 0 AND paused = 0;

-- Cancels, retries and deletes of all tasks that match a filter.
CREATE TABLE operation (
    id          BLOB PRIMARY KEY,
    tenant      TEXT NOT NULL,
    action      TEXT NOT NULL,
    filter      TEXT NOT NULL,
    matched     INTEGER,
    done        INTEGER NOT NULL,
    skipped     INTEGER NOT NULL,
    -- The last task that it is done with.
    after       BLOB,
    created_at  INTEGER NOT NULL,
    finished_at INTEGER
) WITHOUT ROWID;
CREATE INDEX operation_tenant ON operation (tenant, id);
CREATE INDEX operation_open ON operation (tenant) WHERE finished_at IS NULL;
CREATE INDEX operation_age ON operation (finished_at) WHERE finished_at IS NOT NULL;
