"""Plain NumPy that says it is on a GPU."""
