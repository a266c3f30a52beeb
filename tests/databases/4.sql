-- A database of schema 4, as a server of that version left it when it was killed; the components' bytes
-- are left out.
PRAGMA application_id = 1952671084;
PRAGMA user_version = 4;
BEGIN TRANSACTION;
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
INSERT INTO "audit" VALUES(1,1795700099575,'default',NULL,'127.0.0.1','schedule.put','default','nightly','echo; 0 3 * * *; Europe/Berlin; paused');
INSERT INTO "audit" VALUES(2,1795700099592,'default',NULL,'127.0.0.1','task_type.change','','word-count','paused true; grants');
CREATE TABLE component (
    digest     BLOB PRIMARY KEY,
    bytes      BLOB NOT NULL,
    created_at INTEGER NOT NULL
, failure TEXT, failed_with TEXT);
INSERT INTO "component" VALUES(X'00EFD0E877108D663048B50337F25BB08CACDFF53BC52B623ADEF881FDCA3504',X'00',1795700098244,NULL,NULL);
INSERT INTO "component" VALUES(X'0077DBC8DEEEA07E380293886385975EF01FC906E746B9CA1C4FB109CB09397E',X'00',1795700098245,NULL,NULL);
INSERT INTO "component" VALUES(X'001D144016850E1CF4F6F84FD9F0892906145A30004433E7922811BCA1D09D48',X'00',1795700098245,NULL,NULL);
INSERT INTO "component" VALUES(X'00FF137F2E63085826D48FD3BDCD18B9DA7EAB9C295911CB731CE8B268F1AB7F',X'00',1795700098250,NULL,NULL);
INSERT INTO "component" VALUES(X'006BC819FD0754CB7AB099769E117E20376EF8D662EB3E4B00699E3DA6F3932C',X'00',1795700098250,NULL,NULL);
CREATE TABLE component_use (
    digest BLOB PRIMARY KEY,
    tasks  INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "component_use" VALUES(X'00EFD0E877108D663048B50337F25BB08CACDFF53BC52B623ADEF881FDCA3504',2);
INSERT INTO "component_use" VALUES(X'0077DBC8DEEEA07E380293886385975EF01FC906E746B9CA1C4FB109CB09397E',2);
INSERT INTO "component_use" VALUES(X'00FF137F2E63085826D48FD3BDCD18B9DA7EAB9C295911CB731CE8B268F1AB7F',1);
CREATE TABLE event (
    seq     INTEGER PRIMARY KEY,
    tenant  TEXT NOT NULL,
    task    BLOB NOT NULL,
    kind    INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    data    TEXT
);
INSERT INTO "event" VALUES(2,'default',X'01A21811096076BDA22CF04C65EC8E50',1,1,1795700099424,'"created"');
INSERT INTO "event" VALUES(3,'default',X'01A21811096076BDA22CF04C65EC8E50',4,1,1795700099426,NULL);
INSERT INTO "event" VALUES(5,'default',X'01A218110977734E947DEB2EEDBDE349',1,1,1795700099447,'"created"');
INSERT INTO "event" VALUES(6,'default',X'01A218110977734E947DEB2EEDBDE349',5,1,1795700099499,'{"kind":"cpu_exceeded","message":"its CPU time of 50 ms is used up","retryable":false}');
INSERT INTO "event" VALUES(8,'default',X'01A2181109C076A69EF04C6BE4E96004',1,1,1795700099520,'"created"');
INSERT INTO "event" VALUES(9,'default',X'01A2181109C076A69EF04C6BE4E96004',3,1,1795700099538,'[1,2]');
INSERT INTO "event" VALUES(10,'default',X'01A2181109C076A69EF04C6BE4E96004',2,1,1795700099538,'{"fraction":1.0,"note":"done"}');
INSERT INTO "event" VALUES(11,'default',X'01A2181109C076A69EF04C6BE4E96004',4,1,1795700099538,NULL);
INSERT INTO "event" VALUES(13,'default',X'01A218110A1373F5A1073A8869091097',1,1,1795700099603,'"created"');
INSERT INTO "event" VALUES(14,'default',X'01A218110A1373F5A1073A8869091097',2,1,1795700099624,'{"fraction":0.0,"note":"sleeping"}');
INSERT INTO "event" VALUES(15,'default',X'01A218110B4D76B592224813459858B9',0,0,1795700099917,NULL);
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
INSERT INTO "idempotency" VALUES('default','k1',-1,X'EF6B7946340428BB3DE7B25580E601F13B54CCB64B150FF3D65D916564F6FE2C',X'01A21811096076BDA22CF04C65EC8E50',1795700099424);
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
CREATE TABLE key_value_use (
    tenant  TEXT PRIMARY KEY,
    entries INTEGER NOT NULL,
    bytes   INTEGER NOT NULL,
    writes  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE label (
    tenant TEXT NOT NULL,
    key    TEXT NOT NULL,
    value  TEXT NOT NULL,
    task   BLOB NOT NULL,
    PRIMARY KEY (tenant, key, value, task)
) WITHOUT ROWID;
INSERT INTO "label" VALUES('default','team','a',X'01A21811096076BDA22CF04C65EC8E50');
INSERT INTO "label" VALUES('default','team','b',X'01A218110B4D76B592224813459858B9');
CREATE TABLE "log_lines" (
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
INSERT INTO "log_lines" VALUES(X'01A2181109C076A69EF04C6BE4E96004',1,2,1,210,'[[1795700099524,2,"5 sleeps of 1 ms at once"],[1795700099527,2,"object io/01a21811-09c0-76a6-9ef0-4c6be4e96004: 4096 bytes"]]');
CREATE TABLE log_use (
    tenant TEXT PRIMARY KEY,
    bytes  INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "log_use" VALUES('default',210);
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
INSERT INTO "object" VALUES(1,'default','kept/a','277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9',5,1795700099555,X'6279746573');
CREATE TABLE object_use (
    tenant  TEXT PRIMARY KEY,
    objects INTEGER NOT NULL,
    bytes   INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "object_use" VALUES('default',1,5);
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
INSERT INTO "schedule" VALUES('default','nightly',1,1795700099575,1795700099575,1795744800000,0,NULL,NULL,'{"cron":"0 3 * * *","time_zone":"Europe/Berlin","task":{"task_type":"echo","input":null,"labels":{},"priority":0,"unique_key":null,"concurrency_key":null,"limits":{},"retry":{}},"overlap":"skip","catch_up":"none","paused":true}');
CREATE TABLE secret (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    -- The nonce, and the value with its tag: ChaCha20-Poly1305, for this tenant and this name.
    sealed     BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE TABLE server (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    started_at INTEGER NOT NULL,
    -- Numbers of events that were given, though the events may be gone.
    events     INTEGER NOT NULL
);
INSERT INTO "server" VALUES(1,1795700099307,0);
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
, labels TEXT, retry TEXT, due_at INTEGER, expires_at INTEGER, unique_key TEXT, failures INTEGER NOT NULL DEFAULT 0, server INTEGER, schedule TEXT, held INTEGER NOT NULL DEFAULT 0, concurrency_key TEXT) WITHOUT ROWID;
INSERT INTO "task" VALUES(X'01A21811096076BDA22CF04C65EC8E50','default','echo',X'00EFD0E877108D663048B50337F25BB08CACDFF53BC52B623ADEF881FDCA3504',2,1795700099424,0,1795700099424,1795700099424,1795700099426,1,0,NULL,'{"a" : 1.00}','{"a" : 1.00}',NULL,NULL,NULL,'{"fuel":2065,"cpu_ms":0.223,"wall_ms":0.728,"queue_ms":0.0,"peak_memory_bytes":1115056,"host_calls":0,"io_bytes":0,"log_bytes":0}',NULL,'{"team":"a"}',NULL,NULL,NULL,NULL,0,NULL,NULL,0,NULL);
INSERT INTO "task" VALUES(X'01A218110977734E947DEB2EEDBDE349','default','primes',X'00FF137F2E63085826D48FD3BDCD18B9DA7EAB9C295911CB731CE8B268F1AB7F',3,1795700099447,0,1795700099447,1795700099447,1795700099499,1,0,'{"cpu_ms":50}','{"up_to":100000000}',NULL,NULL,'cpu_exceeded','{"kind":"cpu_exceeded","message":"its CPU time of 50 ms is used up","retryable":false}','{"fuel":745253447,"cpu_ms":50.059,"wall_ms":51.133,"queue_ms":0.0,"peak_memory_bytes":7341504,"host_calls":0,"io_bytes":0,"log_bytes":0}',NULL,NULL,NULL,NULL,NULL,NULL,1,NULL,NULL,0,NULL);
INSERT INTO "task" VALUES(X'01A2181109C076A69EF04C6BE4E96004','default','io',X'0077DBC8DEEEA07E380293886385975EF01FC906E746B9CA1C4FB109CB09397E',2,1795700099520,0,1795700099520,1795700099520,1795700099538,1,0,NULL,'{"sleep_ms":1,"parallel":5}','{"attempt":1,"steps":[{"name":"sleep","ms":1.222},{"name":"parallel sleeps","ms":2.17},{"name":"write","ms":2.932},{"name":"read","ms":3.934},{"name":"remove","ms":4.045}],"total_ms":14.305,"object":"io/01a21811-09c0-76a6-9ef0-4c6be4e96004","bytes":4096,"kept":false}','{"fraction":1.0,"note":"done"}',NULL,NULL,'{"fuel":296129,"cpu_ms":0.774,"wall_ms":14.577,"queue_ms":0.0,"peak_memory_bytes":1116000,"host_calls":17,"io_bytes":8192,"log_bytes":210}',NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,0,NULL);
INSERT INTO "task" VALUES(X'01A218110A1373F5A1073A8869091097','default','io',X'0077DBC8DEEEA07E380293886385975EF01FC906E746B9CA1C4FB109CB09397E',1,1795700099603,0,1795700099603,1795700099603,NULL,1,0,NULL,'{"sleep_ms":60000}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'{"max_attempts":2,"initial_backoff_ms":1000,"max_backoff_ms":60000}',NULL,NULL,NULL,0,1,NULL,0,NULL);
INSERT INTO "task" VALUES(X'01A218110B4D76B592224813459858B9','default','echo',X'00EFD0E877108D663048B50337F25BB08CACDFF53BC52B623ADEF881FDCA3504',0,1795700099917,0,1795700099917,NULL,NULL,0,0,NULL,'null',NULL,NULL,NULL,NULL,NULL,NULL,'{"team":"b"}',NULL,NULL,NULL,'only',0,NULL,NULL,0,NULL);
CREATE TABLE "task_type" (
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
    input_schema TEXT, concurrency TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
INSERT INTO "task_type" VALUES('','echo',X'00EFD0E877108D663048B50337F25BB08CACDFF53BC52B623ADEF881FDCA3504',NULL,'{}','{}',NULL,0,'{}',NULL,'{}');
INSERT INTO "task_type" VALUES('','io',X'0077DBC8DEEEA07E380293886385975EF01FC906E746B9CA1C4FB109CB09397E',NULL,'{}','{}',NULL,0,'{}',NULL,'{}');
INSERT INTO "task_type" VALUES('','io-blocking',X'001D144016850E1CF4F6F84FD9F0892906145A30004433E7922811BCA1D09D48',NULL,'{}','{}',NULL,0,'{}',NULL,'{}');
INSERT INTO "task_type" VALUES('','primes',X'00FF137F2E63085826D48FD3BDCD18B9DA7EAB9C295911CB731CE8B268F1AB7F',NULL,'{}','{}',NULL,0,'{}',NULL,'{}');
INSERT INTO "task_type" VALUES('','word-count',X'006BC819FD0754CB7AB099769E117E20376EF8D662EB3E4B00699E3DA6F3932C',NULL,'{}','{}',NULL,1,'{"env":{"A":"b"}}',NULL,'{}');
CREATE TABLE task_type_version (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    component  BLOB NOT NULL REFERENCES component (digest),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, name, component)
) WITHOUT ROWID;
INSERT INTO "task_type_version" VALUES('','echo',X'00EFD0E877108D663048B50337F25BB08CACDFF53BC52B623ADEF881FDCA3504',1795700098244);
INSERT INTO "task_type_version" VALUES('','io',X'0077DBC8DEEEA07E380293886385975EF01FC906E746B9CA1C4FB109CB09397E',1795700098245);
INSERT INTO "task_type_version" VALUES('','io-blocking',X'001D144016850E1CF4F6F84FD9F0892906145A30004433E7922811BCA1D09D48',1795700098245);
INSERT INTO "task_type_version" VALUES('','primes',X'00FF137F2E63085826D48FD3BDCD18B9DA7EAB9C295911CB731CE8B268F1AB7F',1795700098250);
INSERT INTO "task_type_version" VALUES('','word-count',X'006BC819FD0754CB7AB099769E117E20376EF8D662EB3E4B00699E3DA6F3932C',1795700098250);
CREATE TABLE tenant (
    name       TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL,
    -- Its share of the machine beside the others'.
    weight     INTEGER NOT NULL,
    -- What is set of its quotas; the others are as the server has them.
    quotas     TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;
INSERT INTO "tenant" VALUES('default',1795700098209,100,'{}');
INSERT INTO "tenant" VALUES('operator',1795700098209,100,'{}');
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
INSERT INTO "usage" VALUES('default',20783,'completed',2,2,997,15305,0,298194,16678,17,8192,210);
INSERT INTO "usage" VALUES('default',20783,'cpu_exceeded',1,1,50059,51133,0,745253447,366594,0,0,0);
CREATE TABLE version_use (
    tenant TEXT PRIMARY KEY,
    bytes  INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "version_use" VALUES('',684419);
CREATE INDEX task_status ON task (status, tenant, id) WHERE status <> 2;
CREATE INDEX task_due ON task (due_at, id) WHERE status = 0 AND due_at IS NOT NULL;
CREATE INDEX task_expires ON task (expires_at, id) WHERE status = 0 AND expires_at IS NOT NULL;
CREATE UNIQUE INDEX task_unique ON task (tenant, unique_key) WHERE status < 2 AND unique_key IS NOT NULL;
CREATE INDEX task_schedule ON task (tenant, schedule, id) WHERE schedule IS NOT NULL;
CREATE INDEX task_schedule_open ON task (tenant, schedule) WHERE schedule IS NOT NULL AND status < 2;
CREATE INDEX task_ended ON task (tenant, task_type, finished_at) WHERE status >= 2;
CREATE INDEX idempotency_age ON idempotency (created_at);
CREATE INDEX event_task ON event (task, seq);
CREATE INDEX event_deleted ON event (at) WHERE kind = 6;
CREATE INDEX schedule_next ON schedule (next_at) WHERE next_at IS NOT NULL AND paused = 0;
CREATE INDEX schedule_queued ON schedule (tenant, name) WHERE queued > 0 AND paused = 0;
CREATE INDEX operation_tenant ON operation (tenant, id);
CREATE INDEX operation_open ON operation (tenant) WHERE finished_at IS NULL;
CREATE INDEX operation_age ON operation (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX task_type_version_component ON task_type_version (component);
CREATE UNIQUE INDEX key_value_place ON key_value (tenant, bucket, place);
CREATE INDEX api_key_tenant ON api_key (tenant, created_at);
CREATE INDEX audit_age ON audit (at);
CREATE INDEX audit_of ON audit (of, seq);
CREATE TRIGGER audit_unchanged BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is not changed');
END;
CREATE TRIGGER audit_kept BEFORE DELETE ON audit WHEN OLD.at > unixepoch('subsec') * 1000 - 86400000 BEGIN
    SELECT RAISE(ABORT, 'the audit log is kept');
END;
CREATE INDEX usage_age ON usage (day);
CREATE INDEX task_type_queue ON task (tenant, task_type, rank, id) WHERE held = 2;
CREATE INDEX task_key_queue ON task (tenant, task_type, concurrency_key, rank, id) WHERE held = 3;
CREATE INDEX task_at_once ON task (tenant, task_type, id) WHERE held >= 2;
CREATE INDEX task_ready ON task (tenant, rank, id) WHERE status = 0 AND due_at IS NULL AND held = 0;
CREATE TRIGGER version_added AFTER INSERT ON task_type_version BEGIN
    INSERT INTO version_use (tenant, bytes)
        SELECT NEW.tenant, length(bytes) FROM component WHERE digest = NEW.component
        ON CONFLICT (tenant) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER version_removed AFTER DELETE ON task_type_version BEGIN
    UPDATE version_use SET bytes = bytes - (SELECT length(bytes) FROM component WHERE digest = OLD.component)
        WHERE tenant = OLD.tenant;
END;
CREATE INDEX task_held ON task (tenant, task_type, component, id) WHERE held = 1;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('server',1);
INSERT INTO "sqlite_sequence" VALUES('audit',2);
COMMIT;
