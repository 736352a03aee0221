"""The questions that are asked of every implementation."""
