"""One run on one, two and four processes: the same curves."""
