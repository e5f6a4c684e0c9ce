-- The index, schema 1. Integers that are times end in _ms: milliseconds since 1970-01-01T00:00:00Z.

CREATE TABLE sandboxes (
    id                TEXT PRIMARY KEY NOT NULL,
    owner             TEXT NOT NULL,
    name              TEXT NOT NULL,
    record_json       TEXT NOT NULL,
    created_at_ms     INTEGER NOT NULL,
    last_active_at_ms INTEGER NOT NULL,
    UNIQUE (owner, name)
) STRICT;

-- AUTOINCREMENT: a number that was given once is not given again, even after its row went.
CREATE TABLE events (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms        INTEGER NOT NULL,
    owner        TEXT NOT NULL,
    sandbox_id   TEXT,
    sandbox_name TEXT,
    kind         TEXT NOT NULL,
    detail_json  TEXT NOT NULL
) STRICT;

CREATE INDEX events_by_owner ON events (owner, seq);

CREATE TABLE settings (
    key   TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) STRICT;

-- Schema 2: long work that outlives its request.

CREATE TABLE tasks (
    id            TEXT PRIMARY KEY NOT NULL,
    owner         TEXT NOT NULL,
    finished      INTEGER NOT NULL,
    record_json   TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;

-- Schema 3: what is published, an alias each for a port of a sandbox.

CREATE TABLE publications (
    alias         TEXT PRIMARY KEY NOT NULL,
    owner         TEXT NOT NULL,
    sandbox_id    TEXT NOT NULL,
    port          INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX publications_by_sandbox ON publications (sandbox_id);

-- Schema 4: secrets, each sealed to the host's key; the index cannot read them.

CREATE TABLE secrets (
    owner         TEXT NOT NULL,
    name          TEXT NOT NULL,
    sealed        BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT;

-- Schema 5: users, and of their keys only hashes.

CREATE TABLE users (
    name          TEXT PRIMARY KEY NOT NULL,
    key_hash      BLOB UNIQUE NOT NULL,
    quota_json    TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    rotated_at_ms INTEGER NOT NULL
) STRICT;
