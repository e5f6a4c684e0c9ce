-- Schema 5: users, and of their keys only hashes.

CREATE TABLE users (
    name          TEXT PRIMARY KEY NOT NULL,
    key_hash      BLOB UNIQUE NOT NULL,
    quota_json    TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    rotated_at_ms INTEGER NOT NULL
) STRICT;
