-- Schema 3: what is published, an alias each for a port of a sandbox.

CREATE TABLE publications (
    alias         TEXT PRIMARY KEY NOT NULL,
    owner         TEXT NOT NULL,
    sandbox_id    TEXT NOT NULL,
    port          INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX publications_by_sandbox ON publications (sandbox_id);
