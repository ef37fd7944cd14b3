"""Texts that run.sh prepares: python results/reproduction/documents.py CORPUS_FOLDER OUTPUT_FOLDER.

`heldout1000`: the first 1,000 characters of each of the 156 held-out documents; `heldout_every_fourth`: every fourth of
them, whole, for the teachers. For the distribution shift, from the
sources the corpus names: `books` (8 MB), `manuals` (2.6 MB) and the first 2,500 characters of the held-out manuals.
"""

import gzip
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

corpus, output = Path(sys.argv[1]), Path(sys.argv[2])
BOOKS, MANUALS = "github:", "debian:"


def documents(*shards: str) -> Iterator[dict[str, str]]:
    """All documents of the shards, in order."""
    for shard in shards:
        with gzip.open(corpus / f"{shard}.jsonl.gz", "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def write(name: str, chosen: Iterator[dict[str, str]], *, document: int | None = None, total: int = 10**9) -> None:
    """Write documents, each cut to `document` characters, until `total` characters are reached."""
    characters = 0
    with gzip.open(output / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
        for values in chosen:
            if characters >= total:
                break
            values["text"] = values["text"][:document]
            characters += len(values["text"])
            file.write(json.dumps(values) + "\n")


def of(kind: str, *shards: str) -> Iterator[dict[str, str]]:
    """The documents whose source begins so."""
    return (values for values in documents(*shards) if values["source"].startswith(kind))


output.mkdir(parents=True, exist_ok=True)
write("heldout1000", documents("heldout"), document=1000)
write("heldout_every_fourth", itertools.islice(documents("heldout"), 0, None, 4))
write("books", of(BOOKS, "corpus-00001"), total=8_000_000)
write("manuals", of(MANUALS, "corpus-00002", "corpus-00003"), total=2_600_000)
write("heldout_manuals", of(MANUALS, "heldout"), document=2500)
