"""What asv sees of the project: its configuration and its benchmarks (docs/history.md)."""
