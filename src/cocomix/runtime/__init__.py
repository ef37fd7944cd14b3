"""The machine, the process and what a person is told; knows nothing of models."""

__all__: list[str] = []
