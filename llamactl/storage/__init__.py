"""Storage that survives a crash: atomic writes, locks, and records that are read without following links."""
