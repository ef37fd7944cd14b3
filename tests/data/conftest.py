import gzip
import json
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


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    data = "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts)).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Forty short documents."""
    return write_jsonl(tmp_path / "corpus.jsonl", [story(i) for i in range(40)])
