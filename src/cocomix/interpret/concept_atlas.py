"""Reading a concept atlas: cards, full-text search and rankings.

`build_atlas` (in `cocomix.interpret.atlas_build`) makes one; the layout is described in `atlas_store`.
"""

import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.artifacts import Artifact, Damaged, Findings, MadeFromSomethingElse
from cocomix.data import begin_of_text, positions_of_rows, tokenizer_fingerprint
from cocomix.interpret.atlas_cards import (
    AtlasManifest,
    AtlasSettings,
    ConceptCard,
    ConceptHit,
    Context,
    Histogram,
    TokenChanges,
)
from cocomix.interpret.atlas_effects import measure_effect
from cocomix.interpret.atlas_store import (
    DATABASE,
    LABEL,
    PREDICTED,
    TOKENIZER,
    cut,
    unpack_changes,
    unpack_tokens,
)
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_tokenizer
from cocomix.training import Run

__all__ = ["ConceptAtlas", "Ranking", "default_atlas_folder"]

Ranking = Literal["label_count", "predicted_count", "compression_norm", "recall"]

_SEARCH_WORDS = 16
"""Words of a search that count; a longer text is cut there."""
_RECALL = "CAST(hits AS REAL) / label_count"  # NULL where label_count is 0


def default_atlas_folder(run: Path) -> Path:
    """Where the atlas of a run is kept unless another folder is named: `RUN_atlas` beside the run."""
    run = run.resolve()
    return run.with_name(f"{run.name}_atlas")


class ConceptAtlas(Artifact[AtlasManifest]):
    """A finished atlas, open for reading. Any number of threads may use one object; each has its own connection."""

    kind = "atlas"
    manifest_type = AtlasManifest
    made_by = "cocomix atlas"

    def __init__(self, path: Path, manifest: AtlasManifest, url: str | None = None) -> None:
        super().__init__(path, manifest, url)
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, path: Path | str, run: Run | None = None) -> Self:
        """Open an atlas, and refuse one of another run than `run`.

        Raises:
            MadeFromSomethingElse: it is of another run.
            CoCoMixError: as `Artifact.open`.
        """
        atlas = super().open(path)
        if run is not None and run.manifest.fingerprint != atlas.manifest.made_from["run"]:
            raise MadeFromSomethingElse(
                f"the atlas in {path} is of another run ({atlas.run_name}), not of the one in {run.path}; make an "
                "atlas of this run with `cocomix atlas`.",
                ("run",),
            )
        return atlas

    def check(self, findings: Findings) -> None:
        """Check the tables, the tokenizer, and the run where it lies beside its atlas."""
        with findings.check("tables", "SQLite's own check, and a row per concept", self._repair):
            (state,) = self._rows("PRAGMA integrity_check", ())[0].values()
            counts = [self._rows(f"SELECT count(*) AS n FROM {name}", ())[0]["n"] for name in ("concepts", "texts")]
            if state != "ok" or counts != [self.num_concepts] * 2:
                raise Damaged(f"{self.path / DATABASE} is damaged ({state}, {counts} rows); {self._repair}.", DATABASE)
        with findings.check("tokenizer", "its fingerprint", self._repair):
            if tokenizer_fingerprint(self.tokenizer) != self.manifest.made_from["tokenizer"]:
                raise Damaged(f"{self.path / TOKENIZER} is not the tokenizer of the run's data.", TOKENIZER)
        path, recorded = self.path.resolve(), self.manifest.made_from["run"]
        if path.name.endswith("_atlas"):
            run = path.with_name(path.name.removesuffix("_atlas"))
            findings.source("run", str(run), recorded, lambda: Run.open(run).manifest.fingerprint)

    @property
    def num_concepts(self) -> int:
        """C: concepts are 0 … C − 1."""
        return self.manifest.num_concepts

    @property
    def run_name(self) -> str:
        """Name of the run the atlas is of."""
        return self.manifest.run

    @property
    def settings(self) -> AtlasSettings:
        """How the atlas was made."""
        return self.manifest.settings

    def card(self, concept: int) -> ConceptCard:
        """Everything known of one concept.

        Raises:
            CoCoMixError: there is no such concept, or the file is damaged.
        """
        row = self._concept(concept)
        predicted, labels = row["predicted_count"], row["label_count"]
        return ConceptCard(
            id=concept,
            name=row["name"],
            terms=tuple(json.loads(row["terms"])),
            predicted_count=predicted,
            positive_count=row["positive_count"],
            label_count=labels,
            frequency=predicted / self.manifest.tokens,
            recall=row["hits"] / labels if labels else None,
            compression_norm=row["compression_norm"],
            mean_logit=row["mean_logit"],
            max_logit=row["max_logit"],
            histogram=Histogram(
                self.manifest.histogram_edges, tuple(np.frombuffer(row["histogram"], dtype="<i8").tolist())
            ),
            predicted_contexts=tuple(self._contexts(concept, PREDICTED)),
            label_contexts=tuple(self._contexts(concept, LABEL)),
            raised=unpack_changes(row["raised"]),
            lowered=unpack_changes(row["lowered"]),
            nearest=tuple((neighbour, cosine) for neighbour, cosine in json.loads(row["nearest"])),
        )

    def name(self, concept: int) -> str:
        """A few words for a concept.

        Raises:
            CoCoMixError: there is no such concept.
        """
        name: str = self._concept(concept)["name"]
        return name

    def search(self, text: str, limit: int = 20) -> list[ConceptHit]:
        """Find concepts by the words of their names, terms and strongest contexts; the last word may be a beginning.

        Args:
            text: any text. A number finds the concept of that index, first of all; a text without words (such as `(`)
                is looked for in names and terms as it stands.
            limit: hits to return.

        Returns:
            Best first; none for an empty text.

        Raises:
            CoCoMixError: `limit` is below 1, or the file is damaged.
        """
        _check_limit(limit)
        text = text.encode(errors="ignore").decode().strip()  # a lone surrogate cannot be looked for
        words = re.findall(r"[^\W_]+", text)[:_SEARCH_WORDS]
        if words:
            query = " ".join(f'"{word}"' for word in words) + "*"
            rows = self._rows(
                "SELECT rowid AS id, texts.name AS name, snippet(texts, -1, '', '', '…', 12) AS snippet, "
                "-bm25(texts, 10.0, 5.0, 1.0) AS score FROM texts WHERE texts MATCH ? ORDER BY score DESC, id LIMIT ?",
                (query, limit),
            )
        elif text:
            rows = self._rows(
                "SELECT rowid AS id, name, terms AS snippet, 0.0 AS score FROM texts "
                "WHERE instr(name, ?1) OR instr(terms, ?1) ORDER BY id LIMIT ?2",
                (text, limit),
            )
        else:
            rows = []
        hits = [ConceptHit(**row) for row in rows]
        if re.fullmatch(r"[0-9]{1,12}", text) and int(text) < self.num_concepts:
            row = self._concept(int(text))
            best = hits[0].score if hits else 0.0
            asked = ConceptHit(row["id"], row["name"], ", ".join(json.loads(row["terms"])), best + 1.0)
            hits = [asked, *(hit for hit in hits if hit.id != asked.id)]
        return hits[:limit]

    def top(self, limit: int, by: Ranking = "predicted_count") -> list[ConceptHit]:
        """The concepts with the largest counts, norm or recall; of equal ones the commonest labels come first.

        Concepts without the value (no norm, never a label) are left out.

        Raises:
            CoCoMixError: `limit` is below 1, or `by` is none of the four.
        """
        _check_limit(limit)
        if by not in get_args(Ranking):
            raise CoCoMixError(f"by={by!r} is not one of {', '.join(get_args(Ranking))}.")
        value = _RECALL if by == "recall" else by
        rows = self._rows(
            f"SELECT id, name, terms, CAST({value} AS REAL) AS score FROM concepts WHERE {value} IS NOT NULL "
            "ORDER BY score DESC, label_count DESC, id LIMIT ?",
            (limit,),
        )
        return [ConceptHit(row["id"], row["name"], ", ".join(json.loads(row["terms"])), row["score"]) for row in rows]

    def measure_effect(self, model: PreTrainedModel, concept: int) -> tuple[TokenChanges, TokenChanges]:
        """Measure the effect of a concept as the atlas does for its most frequent ones: one forward pass or two.

        Args:
            model: of the atlas' run.
            concept: its index.

        Returns:
            (raised, lowered), as on a card.

        Raises:
            CoCoMixError: there is no such concept, or the model mixes no concepts in.
        """
        amount = self._concept(concept)["effect_amount"]
        # A model that mixes nothing in has no amounts, and `measure_effect` refuses it in words.
        blocks, positions = self._effect_blocks(), None
        if self.manifest.document_masks:
            positions = positions_of_rows(blocks, self.tokenizer.eos_token_id, begin_of_text(self.tokenizer))
        return measure_effect(
            model, self.tokenizer, blocks, concept, amount or 0.0, self.settings.effect_top, positions
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the run's data."""
        return load_tokenizer(str(self.path / TOKENIZER))

    def close(self) -> None:
        """Close every thread's connection; the atlas cannot be used afterwards."""
        with self._lock:
            self._closed = True
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def __enter__(self) -> "ConceptAtlas":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _concept(self, concept: int) -> dict[str, Any]:
        if not 0 <= concept < self.num_concepts:
            raise CoCoMixError(
                f"concept {concept} does not exist: the atlas of {self.run_name} has concepts 0 to "
                f"{self.num_concepts - 1}."
            )
        rows = self._rows("SELECT * FROM concepts WHERE id = ?", (concept,))
        if not rows:
            raise CoCoMixError(f"{self.path / DATABASE} lacks concept {concept}; make the atlas again.")
        return rows[0]

    def _contexts(self, concept: int, kind: int) -> Iterator[Context]:
        rows = self._rows(
            "SELECT strength, split, blocks.block AS block, position, tokens FROM contexts "
            "JOIN blocks ON blocks.id = contexts.block WHERE concept = ? AND kind = ? ORDER BY rank",
            (concept, kind),
        )
        for row in rows:
            texts = cut(self.tokenizer, unpack_tokens(row["tokens"]), row["position"], self.settings.window)
            yield Context(*texts, row["strength"], row["split"], row["block"], row["position"])

    def _effect_blocks(self) -> Tensor:
        """The blocks that effects are measured on. [blocks, block_size], int64"""
        count = self.settings.effect_blocks(self.manifest.tokens // self.manifest.blocks)
        rows = self._rows("SELECT tokens FROM blocks WHERE id < ? ORDER BY id", (count,))
        return torch.tensor([unpack_tokens(row["tokens"]) for row in rows])

    def _rows(self, query: str, parameters: tuple[Any, ...]) -> list[dict[str, Any]]:
        """Ask the database, over this thread's own connection."""
        try:
            return [dict(row) for row in self._connection().execute(query, parameters)]
        except sqlite3.DatabaseError as error:
            raise CoCoMixError(f"{self.path / DATABASE} cannot be read ({error}); make the atlas again.") from error

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise CoCoMixError(f"the atlas in {self.path} has been closed; open it again.")
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            address = f"{self.file(DATABASE).resolve().as_uri()}?mode=ro"
            connection = sqlite3.connect(address, uri=True, check_same_thread=False)  # `close` may be another thread's
            connection.row_factory = sqlite3.Row
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise CoCoMixError(f"limit={limit} must be at least 1.")
