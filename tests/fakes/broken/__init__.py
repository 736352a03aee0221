"""An implementation whose framework is missing."""
