"""An implementation that is wrong only where an ordinary certificate does not look."""
