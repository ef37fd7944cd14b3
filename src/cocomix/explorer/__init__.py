"""The explorer: a web page that shows what a run makes of a text, its concepts, and what turning them does."""

__all__: list[str] = []
