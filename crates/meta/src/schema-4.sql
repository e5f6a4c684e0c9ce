-- Schema 4: secrets, each sealed to the host's key; the index cannot read them.

CREATE TABLE secrets (
    owner         TEXT NOT NULL,
    name          TEXT NOT NULL,
    sealed        BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT;
