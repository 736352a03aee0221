"""Plain NumPy that keeps a file for the next process."""
