"""The machine, the process and what a person is told; knows nothing of models."""
