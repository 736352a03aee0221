"""The catalogue of faults: ways in which somebody's network computes another function, each a pure change that the oracle can run."""
