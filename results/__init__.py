"""What was measured: the record's schema, provenance, the append-only store and the statistics on it."""
