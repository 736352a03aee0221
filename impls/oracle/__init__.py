"""The reference that implementations are judged by: NumPy float64, written from the spec alone."""
