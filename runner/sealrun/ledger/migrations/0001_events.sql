-- The one table that counts: what happened, in order. Everything else is made from it.

CREATE TABLE ledger (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    repository TEXT NOT NULL,
    made_at TEXT NOT NULL
) STRICT;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    at_utc TEXT NOT NULL,
    monotonic_ns INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    run TEXT,
    payload TEXT NOT NULL,
    previous BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT;

CREATE INDEX events_of_run ON events (run, seq) WHERE run IS NOT NULL;
CREATE INDEX events_of_kind ON events (kind, seq);

-- These three guard against accidents; against intent there is the chain.
CREATE TRIGGER events_only_grow BEFORE INSERT ON events
WHEN new.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM events)
BEGIN
    SELECT raise(ABORT, 'events are appended one after the other');
END;

CREATE TRIGGER events_stay BEFORE DELETE ON events
BEGIN
    SELECT raise(ABORT, 'events are never removed');
END;

CREATE TRIGGER events_keep_their_content BEFORE UPDATE ON events
BEGIN
    SELECT raise(ABORT, 'events are never changed');
END;
