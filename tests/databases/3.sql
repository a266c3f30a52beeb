-- A database of schema 3, as a server of that version left it when it was killed; the components' bytes
-- are left out.
PRAGMA application_id = 1952671084;
PRAGMA user_version = 3;
BEGIN TRANSACTION;
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
CREATE TABLE component (
    digest     BLOB PRIMARY KEY,
    bytes      BLOB NOT NULL,
    created_at INTEGER NOT NULL
, failure TEXT, failed_with TEXT);
INSERT INTO "component" VALUES(X'00EFD0E877108D663048B50337F25BB08CACDFF53BC52B623ADEF881FDCA3504',X'00',1795662585790,NULL,NULL);
INSERT INTO "component" VALUES(X'0077DBC8DEEEA07E380293886385975EF01FC906E746B9CA1C4FB109CB09397E',X'00',1795662585791,NULL,NULL);
INSERT INTO "component" VALUES(X'001D144016850E1CF4F6F84FD9F0892906145A30004433E7922811BCA1D09D48',X'00',1795662585791,NULL,NULL);
INSERT INTO "component" VALUES(X'00FF137F2E63085826D48FD3BDCD18B9DA7EAB9C295911CB731CE8B268F1AB7F',X'00',1795662585792,NULL,NULL);
INSERT INTO "component" VALUES(X'006BC819FD0754CB7AB099769E117E20376EF8D662EB3E4B00699E3DA6F3932C',X'00',1795662585792,NULL,NULL);
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
INSERT INTO "event" VALUES(2,'default',X'01A215D4A2A571C18E6204456AFC3318',1,1,1795662586533,'"created"');
INSERT INTO "event" VALUES(3,'default',X'01A215D4A2A571C18E6204456AFC3318',4,1,1795662586534,NULL);
INSERT INTO "event" VALUES(5,'default',X'01A215D4A2B072A0BFC505ABA5A39968',1,1,1795662586544,'"created"');
INSERT INTO "event" VALUES(6,'default',X'01A215D4A2B072A0BFC505ABA5A39968',5,1,1795662586597,'{"kind":"cpu_exceeded","message":"its CPU time of 50 ms is used up","retryable":false}');
INSERT INTO "event" VALUES(8,'default',X'01A215D4A2EF76C6A7C2AC238BCE9E59',1,1,1795662586608,'"created"');
INSERT INTO "event" VALUES(9,'default',X'01A215D4A2EF76C6A7C2AC238BCE9E59',3,1,1795662586614,'[1,2]');
INSERT INTO "event" VALUES(10,'default',X'01A215D4A2EF76C6A7C2AC238BCE9E59',2,1,1795662586614,'{"fraction":1.0,"note":"done"}');
INSERT INTO "event" VALUES(11,'default',X'01A215D4A2EF76C6A7C2AC238BCE9E59',4,1,1795662586614,NULL);
INSERT INTO "event" VALUES(13,'default',X'01A215D4A31A72EE86684C79D492D065',1,1,1795662586650,'"created"');
INSERT INTO "event" VALUES(14,'default',X'01A215D4A31A72EE86684C79D492D065',2,1,1795662586710,'{"fraction":0.0,"note":"sleeping"}');
INSERT INTO "event" VALUES(15,'default',X'01A215D4A4517160A739CD8C1E430876',0,0,1795662586961,NULL);
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
INSERT INTO "idempotency" VALUES('default','k1',-1,X'EF6B7946340428BB3DE7B25580E601F13B54CCB64B150FF3D65D916564F6FE2C',X'01A215D4A2A571C18E6204456AFC3318',1795662586533);
CREATE TABLE label (
    tenant TEXT NOT NULL,
    key    TEXT NOT NULL,
    value  TEXT NOT NULL,
    task   BLOB NOT NULL,
    PRIMARY KEY (tenant, key, value, task)
) WITHOUT ROWID;
INSERT INTO "label" VALUES('default','team','a',X'01A215D4A2A571C18E6204456AFC3318');
INSERT INTO "label" VALUES('default','team','b',X'01A215D4A4517160A739CD8C1E430876');
CREATE TABLE log_lines (
    task    BLOB NOT NULL,
    -- The number of the first line, and how many there are.
    first   INTEGER NOT NULL,
    count   INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    lines   TEXT NOT NULL,
    PRIMARY KEY (task, first)
) WITHOUT ROWID;
INSERT INTO "log_lines" VALUES(X'01A215D4A2EF76C6A7C2AC238BCE9E59',1,2,1,'[[1795662586610,2,"5 sleeps of 1 ms at once"],[1795662586613,2,"object io/01a215d4-a2ef-76c6-a7c2-ac238bce9e59: 4096 bytes"]]');
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
INSERT INTO "object" VALUES(1,'default','kept/a','277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9',5,1795662586624,X'6279746573');
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
INSERT INTO "schedule" VALUES('default','nightly',1,1795662586632,1795662586632,1795744800000,0,NULL,NULL,'{"cron":"0 3 * * *","time_zone":"Europe/Berlin","task":{"task_type":"echo","input":null,"labels":{},"priority":0,"unique_key":null,"limits":{},"retry":{}},"overlap":"skip","catch_up":"none","paused":true}');
CREATE TABLE server (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    started_at INTEGER NOT NULL,
    -- Numbers of events that were given, though the events may be gone.
    events     INTEGER NOT NULL
);
INSERT INTO "server" VALUES(1,1795662586425,0);
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
, labels TEXT, retry TEXT, due_at INTEGER, expires_at INTEGER, unique_key TEXT, failures INTEGER NOT NULL DEFAULT 0, server INTEGER, schedule TEXT, held INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
INSERT INTO "task" VALUES(X'01A215D4A2A571C18E6204456AFC3318','default','echo',X'00EFD0E877108D663048B50337F25BB08CACDFF53BC52B623ADEF881FDCA3504',2,1795662586533,0,1795662586533,1795662586533,1795662586534,1,0,NULL,'{"a" : 1.00}','{"a" : 1.00}',NULL,NULL,NULL,'{"fuel":2065,"cpu_ms":0.218,"wall_ms":0.277,"queue_ms":0.0,"peak_memory_bytes":1115056,"host_calls":0,"io_bytes":0,"log_bytes":0}',NULL,'{"team":"a"}',NULL,NULL,NULL,NULL,0,NULL,NULL,0);
INSERT INTO "task" VALUES(X'01A215D4A2B072A0BFC505ABA5A39968','default','primes',X'00FF137F2E63085826D48FD3BDCD18B9DA7EAB9C295911CB731CE8B268F1AB7F',3,1795662586544,0,1795662586544,1795662586544,1795662586597,1,0,'{"cpu_ms":50}','{"up_to":100000000}',NULL,NULL,'cpu_exceeded','{"kind":"cpu_exceeded","message":"its CPU time of 50 ms is used up","retryable":false}','{"fuel":471253432,"cpu_ms":50.037,"wall_ms":52.181,"queue_ms":0.0,"peak_memory_bytes":7341504,"host_calls":0,"io_bytes":0,"log_bytes":0}',NULL,NULL,NULL,NULL,NULL,NULL,1,NULL,NULL,0);
INSERT INTO "task" VALUES(X'01A215D4A2EF76C6A7C2AC238BCE9E59','default','io',X'0077DBC8DEEEA07E380293886385975EF01FC906E746B9CA1C4FB109CB09397E',2,1795662586607,0,1795662586607,1795662586608,1795662586614,1,0,NULL,'{"sleep_ms":1,"parallel":5}','{"attempt":1,"steps":[{"name":"sleep","ms":2.203},{"name":"parallel sleeps","ms":2.18},{"name":"write","ms":0.654},{"name":"read","ms":0.463},{"name":"remove","ms":0.368}],"total_ms":5.87,"object":"io/01a215d4-a2ef-76c6-a7c2-ac238bce9e59","bytes":4096,"kept":false}','{"fraction":1.0,"note":"done"}',NULL,NULL,'{"fuel":296150,"cpu_ms":0.881,"wall_ms":6.259,"queue_ms":1.0,"peak_memory_bytes":1116000,"host_calls":17,"io_bytes":8192,"log_bytes":210}',NULL,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,0);
INSERT INTO "task" VALUES(X'01A215D4A31A72EE86684C79D492D065','default','io',X'0077DBC8DEEEA07E380293886385975EF01FC906E746B9CA1C4FB109CB09397E',1,1795662586650,0,1795662586650,1795662586650,NULL,1,0,NULL,'{"sleep_ms":60000}',NULL,NULL,NULL,NULL,NULL,NULL,NULL,'{"max_attempts":2,"initial_backoff_ms":1000,"max_backoff_ms":60000}',NULL,NULL,NULL,0,1,NULL,0);
INSERT INTO "task" VALUES(X'01A215D4A4517160A739CD8C1E430876','default','echo',X'00EFD0E877108D663048B50337F25BB08CACDFF53BC52B623ADEF881FDCA3504',0,1795662586961,0,1795662586961,NULL,NULL,0,0,NULL,'null',NULL,NULL,NULL,NULL,NULL,NULL,'{"team":"b"}',NULL,NULL,NULL,'only',0,NULL,NULL,0);
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
    input_schema TEXT,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
INSERT INTO "task_type" VALUES('','echo',X'00EFD0E877108D663048B50337F25BB08CACDFF53BC52B623ADEF881FDCA3504',NULL,'{}','{}',NULL,0,'{}',NULL);
INSERT INTO "task_type" VALUES('','io',X'0077DBC8DEEEA07E380293886385975EF01FC906E746B9CA1C4FB109CB09397E',NULL,'{}','{}',NULL,0,'{}',NULL);
INSERT INTO "task_type" VALUES('','io-blocking',X'001D144016850E1CF4F6F84FD9F0892906145A30004433E7922811BCA1D09D48',NULL,'{}','{}',NULL,0,'{}',NULL);
INSERT INTO "task_type" VALUES('','primes',X'00FF137F2E63085826D48FD3BDCD18B9DA7EAB9C295911CB731CE8B268F1AB7F',NULL,'{}','{}',NULL,0,'{}',NULL);
INSERT INTO "task_type" VALUES('','word-count',X'006BC819FD0754CB7AB099769E117E20376EF8D662EB3E4B00699E3DA6F3932C',NULL,'{}','{}',NULL,1,'{"env":{"A":"b"}}',NULL);
CREATE TABLE task_type_version (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    component  BLOB NOT NULL REFERENCES component (digest),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, name, component)
) WITHOUT ROWID;
INSERT INTO "task_type_version" VALUES('','echo',X'00EFD0E877108D663048B50337F25BB08CACDFF53BC52B623ADEF881FDCA3504',1795662585790);
INSERT INTO "task_type_version" VALUES('','io',X'0077DBC8DEEEA07E380293886385975EF01FC906E746B9CA1C4FB109CB09397E',1795662585791);
INSERT INTO "task_type_version" VALUES('','io-blocking',X'001D144016850E1CF4F6F84FD9F0892906145A30004433E7922811BCA1D09D48',1795662585791);
INSERT INTO "task_type_version" VALUES('','primes',X'00FF137F2E63085826D48FD3BDCD18B9DA7EAB9C295911CB731CE8B268F1AB7F',1795662585792);
INSERT INTO "task_type_version" VALUES('','word-count',X'006BC819FD0754CB7AB099769E117E20376EF8D662EB3E4B00699E3DA6F3932C',1795662585792);
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
CREATE INDEX task_ready ON task (rank, id) WHERE status = 0 AND due_at IS NULL AND held = 0;
CREATE INDEX task_held ON task (task_type, id) WHERE held = 1;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('server',1);
COMMIT;
