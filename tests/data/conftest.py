import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "sigma",
    "tau",
]


def story(number: int, words: int = 60) -> str:
    """A text that differs for every number."""
    return f"Story {number}. " + " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(words)) + ".\n\nEnd."


class RecordingReporter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.bars: list[dict[str, object]] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)

    @contextmanager
    def progress(self, description: str, total: float | None, unit: str) -> Iterator[object]:
        bar = {"description": description, "total": total, "unit": unit, "done": 0.0}
        self.bars.append(bar)

        def advance(amount: float) -> None:
            bar["done"] += amount

        yield advance


@pytest.fixture
def reporter() -> RecordingReporter:
    return RecordingReporter()


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    data = "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts)).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Forty short documents."""
    return write_jsonl(tmp_path / "corpus.jsonl", [story(i) for i in range(40)])
