-- Schema 2: long work that outlives its request.

CREATE TABLE tasks (
    id            TEXT PRIMARY KEY NOT NULL,
    owner         TEXT NOT NULL,
    finished      INTEGER NOT NULL,
    record_json   TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;
