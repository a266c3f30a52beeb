-- Version 5: the bytes of components in pieces, events by tenant.

-- A large component is written over several transactions, beside those of everybody else. It is there once a
-- component has the upload that brought it; what no component has is what was left of an upload.
CREATE TABLE component_piece (
    upload INTEGER NOT NULL,
    -- Its place among the pieces of the upload, from 0.
    at     INTEGER NOT NULL,
    bytes  BLOB NOT NULL,
    PRIMARY KEY (upload, at)
);
INSERT INTO component_piece (upload, at, bytes) SELECT rowid, 0, bytes FROM component;

ALTER TABLE component ADD COLUMN upload INTEGER NOT NULL DEFAULT 0;
-- Of all its pieces, in bytes.
ALTER TABLE component ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
UPDATE component SET upload = rowid, size = length(bytes), bytes = x'';
CREATE INDEX component_upload ON component (upload);

DROP TRIGGER version_added;
DROP TRIGGER version_removed;
ALTER TABLE component DROP COLUMN bytes;
CREATE TRIGGER version_added AFTER INSERT ON task_type_version BEGIN
    INSERT INTO version_use (tenant, bytes) SELECT NEW.tenant, size FROM component WHERE digest = NEW.component
        ON CONFLICT (tenant) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER version_removed AFTER DELETE ON task_type_version BEGIN
    UPDATE version_use SET bytes = bytes - (SELECT size FROM component WHERE digest = OLD.component)
        WHERE tenant = OLD.tenant;
END;

-- The numbers of events count for each tenant by itself, so that none sees how much the others do. Those that are
-- given go on after all that were given before, which clients may know.
CREATE TABLE event_number (
    tenant TEXT PRIMARY KEY,
    -- The last one that was given, though its event may be gone.
    last   INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO event_number (tenant, last)
    SELECT tenant, max(coalesce((SELECT max(seq) FROM event), 0), coalesce((SELECT max(events) FROM server), 0))
    FROM (SELECT name AS tenant FROM tenant UNION SELECT tenant FROM event);
ALTER TABLE server DROP COLUMN events;

-- Anew, by tenant.
CREATE TABLE event_5 (
    tenant  TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    task    BLOB NOT NULL,
    kind    INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    data    TEXT,
    PRIMARY KEY (tenant, seq)
) WITHOUT ROWID;
INSERT INTO event_5 (tenant, seq, task, kind, attempt, at, data)
    SELECT tenant, seq, task, kind, attempt, at, data FROM event ORDER BY tenant, seq;
DROP TABLE event;
ALTER TABLE event_5 RENAME TO event;
CREATE INDEX event_task ON event (task, seq);
CREATE INDEX event_deleted ON event (at) WHERE kind = 6;
