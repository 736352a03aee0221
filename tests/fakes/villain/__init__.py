"""An implementation that does everything wrong."""
