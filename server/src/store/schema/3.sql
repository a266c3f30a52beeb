-- Version 3: task types that are uploaded.

-- Anew, as a type need not have a version that can be used.
CREATE TABLE task_type_3 (
    tenant       TEXT NOT NULL,
    name         TEXT NOT NULL,
    -- The current version; NULL: none can be used yet.
    component    BLOB REFERENCES component (digest),
    -- The version that becomes current once it is compiled and granted; NULL: none.
    next         BLOB REFERENCES component (digest),
    limits       TEXT NOT NULL DEFAULT '{}',
    retry        TEXT NOT NULL DEFAULT '{}',
    -- How long ended tasks are kept, in milliseconds; NULL: as the server says.
    retention_ms INTEGER,
    -- Whether its tasks are held back.
    paused       INTEGER NOT NULL DEFAULT 0,
    -- What its tasks may touch.
    grants       TEXT NOT NULL DEFAULT '{}',
    -- What inputs have to be like; NULL: anything.
    input_schema TEXT,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
INSERT INTO task_type_3 (tenant, name, component, limits, retry, retention_ms)
    SELECT tenant, name, component, limits, retry, retention_ms FROM task_type;
DROP TABLE task_type;
ALTER TABLE task_type_3 RENAME TO task_type;

CREATE INDEX task_type_version_component ON task_type_version (component);

-- Why it cannot be compiled, and which compiler said so: another may say something else.
ALTER TABLE component ADD COLUMN failure TEXT;
ALTER TABLE component ADD COLUMN failed_with TEXT;

-- How many tasks are pinned to a component, kept in the transaction of every change.
CREATE TABLE component_use (
    digest BLOB PRIMARY KEY,
    tasks  INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO component_use (digest, tasks) SELECT component, count(*) FROM task GROUP BY component;

-- Pending and ready, but held back: its type is paused, or its version is not loaded yet.
ALTER TABLE task ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
DROP INDEX task_ready;
CREATE INDEX task_ready ON task (rank, id) WHERE status = 0 AND due_at IS NULL AND held = 0;
CREATE INDEX task_held ON task (task_type, id) WHERE held = 1;
