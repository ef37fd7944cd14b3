"""The label value that every room leaves out."""

IGNORE = -100
"""A label of this value means "nothing to learn here", for tokens and concepts alike; PyTorch's cross-entropy's own."""
