-- What is made from events, to find them by. Content is always read from the events themselves.

CREATE TABLE runs (
    run TEXT PRIMARY KEY,
    opened INTEGER NOT NULL REFERENCES events (seq),
    opened_at TEXT NOT NULL,
    ended INTEGER REFERENCES events (seq),
    "commit" TEXT NOT NULL,
    verdict TEXT,
    outcome TEXT NOT NULL,
    metric TEXT,
    value REAL,
    direction TEXT,
    -- 1 when the number belongs to the commit alone: every reason of the verdict is harmless
    belongs INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE INDEX runs_by_commit ON runs ("commit");
CREATE INDEX runs_open ON runs (run) WHERE ended IS NULL;
CREATE INDEX runs_by_metric ON runs (metric, direction, value) WHERE value IS NOT NULL;

CREATE TABLE alerts (
    seq INTEGER PRIMARY KEY REFERENCES events (seq),
    id TEXT NOT NULL,
    run TEXT,
    path TEXT NOT NULL,
    phase TEXT NOT NULL,
    reason TEXT NOT NULL,
    category TEXT NOT NULL
) STRICT;

CREATE INDEX alerts_by_id ON alerts (id, seq);
CREATE INDEX alerts_by_run ON alerts (run, seq);

-- Every path that an alert's event names.
CREATE TABLE alert_paths (
    seq INTEGER NOT NULL REFERENCES events (seq),
    path TEXT NOT NULL,
    PRIMARY KEY (seq, path)
) STRICT, WITHOUT ROWID;

CREATE INDEX alert_paths_by_path ON alert_paths (path, seq);

CREATE TABLE acceptances (
    seq INTEGER PRIMARY KEY REFERENCES events (seq),
    alert TEXT NOT NULL,
    upto INTEGER NOT NULL
) STRICT;

CREATE TABLE approvals (
    seq INTEGER PRIMARY KEY REFERENCES events (seq),
    policy TEXT NOT NULL,
    first INTEGER NOT NULL
) STRICT;

CREATE TABLE pins (
    ref TEXT PRIMARY KEY,
    seq INTEGER NOT NULL REFERENCES events (seq),
    "commit" TEXT NOT NULL,
    run TEXT
) STRICT, WITHOUT ROWID;
