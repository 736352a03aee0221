"""A trainer for audits of the timed path."""
