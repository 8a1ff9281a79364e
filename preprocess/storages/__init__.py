"""Places for sources and results."""
