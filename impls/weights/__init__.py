"""The weight file: canonical form, synthesis from a seed, reading and writing, and exact transformations."""
