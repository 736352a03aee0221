"""A fifth framework that is none."""
