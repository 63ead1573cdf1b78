"""Foreign changes on record: grouped into alerts, looked for in later commits, with their cures."""
