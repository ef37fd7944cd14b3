"""`ConceptAtlas`: what a run's concepts are, measured on held-out text; written by `build_atlas`.

ATLAS/
  manifest.json              `AtlasManifest`
  cards.parquet              a row per concept: the fields of `ConceptCard` but its contexts
  samples.parquet            a row per context: concept, kind (predicted or label), the fields of `Context`
  effect_text.safetensors    the blocks that effects are measured on
"""

import re
import sqlite3
import threading
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix.artifacts import Artifact, Damaged, Findings, MadeFromSomethingElse
from cocomix.interpret.atlas_cards import (
    AtlasManifest,
    ConceptCard,
    ConceptHit,
    Context,
    Histogram,
    NamedFrom,
    TokenChanges,
    WordLifts,
)
from cocomix.interpret.effects import Effect, measure_effects
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run

CARDS, SAMPLES, EFFECT_TEXT = "cards.parquet", "samples.parquet", "effect_text.safetensors"
Ranking = Literal[
    "predicted_count", "label_count", "auroc", "precision", "recall", "lift", "compression_norm", "detection", "fuzzing"
]

_COLUMNS: dict[Any, pa.DataType] = {
    **{int: pa.int64(), float: pa.float64(), float | None: pa.float64(), str: pa.string(), NamedFrom: pa.string()},
    **{WordLifts: pa.map_(pa.string(), pa.float32()), TokenChanges | None: pa.map_(pa.string(), pa.float32())},
    **{Histogram: pa.list_(pa.int64()), tuple[tuple[int, float], ...]: pa.map_(pa.int64(), pa.float32())},
}
CARD_SCHEMA = pa.schema(
    [(field.name, _COLUMNS[field.type]) for field in fields(ConceptCard) if "contexts" not in field.name]
)
SAMPLE_SCHEMA = pa.schema(
    [("concept", pa.int64()), ("kind", pa.string())]
    + [(name, pa.float32() if kind is float else _COLUMNS[kind]) for name, kind in get_type_hints(Context).items()]
)
_SEARCH_WORDS = 16  # words of a search that count; a longer text is cut there
_SEARCHED = 4  # contexts of a concept that are searched, its strongest


def default_atlas_folder(run: Path) -> Path:
    """Where the atlas of a run is kept unless another folder is named: `RUN_atlas` beside the run."""
    run = run.resolve()
    return run.with_name(f"{run.name}_atlas")


class ConceptAtlas(Artifact[AtlasManifest]):
    """A finished atlas, open for reading, by any number of threads."""

    kind = "atlas"
    version = 3
    manifest_type = AtlasManifest
    made_by = "cocomix atlas"

    def __init__(self, path: Path, manifest: AtlasManifest, url: str | None = None) -> None:
        super().__init__(path, manifest, url)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path | str, run: Run | None = None) -> Self:
        """Open an atlas, and refuse one of another run than `run` (`MadeFromSomethingElse`)."""
        atlas = super().open(path)
        if run is not None and run.manifest.fingerprint != atlas.manifest.made_from["run"]:
            raise MadeFromSomethingElse(
                f"the atlas in {path} is of another run ({atlas.manifest.run}), not of the one in {run.path}; make an "
                "atlas of this run with `cocomix atlas`.",
                ("run",),
            )
        return atlas

    def check(self, findings: Findings) -> None:
        """Check that there is a card per concept, and the run where it lies beside its atlas."""
        with findings.check("cards", "a row per concept, contexts of these concepts", self._repair):
            ids, concepts = self.cards.column("id").to_pylist(), self.samples.column("concept").to_numpy()
            if ids != list(range(self.num_concepts)) or (len(concepts) and concepts.max() >= self.num_concepts):
                raise Damaged(f"{self.path / CARDS} does not hold one row per concept; {self._repair}.", CARDS)
        path, recorded = self.path.resolve(), self.manifest.made_from["run"]
        if path.name.endswith("_atlas"):
            run = path.with_name(path.name.removesuffix("_atlas"))
            findings.source("run", str(run), recorded, lambda: Run.open(run).manifest.fingerprint)

    @property
    def num_concepts(self) -> int:
        """C: concepts are 0 … C − 1."""
        return self.manifest.num_concepts

    @cached_property
    def cards(self) -> pa.Table:
        """All cards without their contexts, in the order of concepts (`CARD_SCHEMA`)."""
        return self._read(CARDS, CARD_SCHEMA)

    @cached_property
    def samples(self) -> pa.Table:
        """All contexts, by concept, kind and falling strength (`SAMPLE_SCHEMA`)."""
        return self._read(SAMPLES, SAMPLE_SCHEMA)

    def card(self, concept: int) -> ConceptCard:
        """Everything known of one concept; refused where there is no such concept, or a file is damaged."""
        row = self.cards.slice(self._known(concept), 1).to_pylist()[0]
        for name, value in row.items():
            row[name] = tuple(value) if isinstance(value, list) else value
        row["histogram"] = Histogram(self.manifest.histogram_edges, row["histogram"])
        contexts: dict[str, list[Context]] = {"predicted": [], "label": []}
        start, end = np.searchsorted(self.samples.column("concept").to_numpy(), (concept, concept + 1)).tolist()
        for found in self.samples.slice(start, end - start).to_pylist():
            contexts[found["kind"]].append(Context(*(found[name] for name in Context._fields)))
        row |= {f"{kind}_contexts": tuple(places) for kind, places in contexts.items()}
        return ConceptCard(**row)

    def name(self, concept: int) -> str:
        """A few words for a concept; refused where there is no such concept."""
        name: str = self.cards.column("name")[self._known(concept)].as_py()
        return name

    def search(self, text: str, limit: int = 20) -> list[ConceptHit]:
        """Find concepts by the words of their names, terms and strongest contexts; the last word may be a beginning.

        A number finds the concept of that index, first of all; a text without words (such as `(`) is looked for in
        names and terms as it stands, an empty one finds nothing. The full-text index (SQLite's FTS5) is built in memory
        at the first search. Refused where `limit` is below 1, a file is damaged, or this Python's SQLite has no FTS5.
        """
        _check_limit(limit)
        text = text.encode(errors="ignore").decode().replace("\0", "").strip()  # a lone surrogate cannot be looked for
        words = re.findall(r"[^\W_]+", text)[:_SEARCH_WORDS]
        with self._lock:
            if words:
                rows = self._texts.execute(
                    "SELECT rowid, name, snippet(texts, -1, '', '', '…', 12), -bm25(texts, 10.0, 5.0, 1.0) AS score "
                    "FROM texts WHERE texts MATCH ? ORDER BY score DESC, rowid LIMIT ?",
                    (" ".join(f'"{word}"' for word in words) + "*", limit),
                ).fetchall()
            else:
                rows = self._texts.execute(
                    "SELECT rowid, name, terms, 0.0 FROM texts "
                    "WHERE ?1 != '' AND (instr(name, ?1) OR instr(terms, ?1)) ORDER BY rowid LIMIT ?2",
                    (text, limit),
                ).fetchall()
        hits = [ConceptHit(*row) for row in rows]
        if re.fullmatch(r"[0-9]{1,12}", text) and int(text) < self.num_concepts:
            asked = self._hit(int(text), hits[0].score + 1 if hits else 1.0)
            hits = [asked, *(hit for hit in hits if hit.id != asked.id)]
        return hits[:limit]

    def top(self, limit: int, by: Ranking = "predicted_count") -> list[ConceptHit]:
        """The concepts with the largest value of a card's field; of equal ones the commonest labels come first.

        Concepts without the value (no norm, never a label) are left out. Refused: a `limit` below 1, another `by`.
        """
        _check_limit(limit)
        if by not in get_args(Ranking):
            raise CoCoMixError(f"by={by!r} is not one of {', '.join(get_args(Ranking))}.")
        values = self.cards.column(by).cast(pa.float64()).to_numpy()  # null is NaN
        order = np.lexsort((-self.cards.column("label_count").to_numpy(), -values))
        found = order[~np.isnan(values[order])][:limit].tolist()
        return [self._hit(concept, float(values[concept])) for concept in found]

    def measure_effect(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, concept: int) -> Effect:
        """Measure the effect of a concept as the atlas does for its most frequent ones: a few forward passes. Refused
        where there is no such concept, or the model mixes none in.
        """
        amount = self.cards.column("effect_amount")[self._known(concept)].as_py()
        # A model that mixes nothing in has no amounts, and `measure_effects` refuses it in words.
        text, top = load_file(self.file(EFFECT_TEXT)), self.manifest.settings.effect_top
        return next(measure_effects(model, tokenizer, **text, amounts={concept: amount or 0.0}, top=top))

    def _known(self, concept: int) -> int:
        if not 0 <= concept < self.num_concepts:
            raise CoCoMixError(
                f"concept {concept} does not exist: the atlas of {self.manifest.run} has concepts 0 to "
                f"{self.num_concepts - 1}."
            )
        return concept

    def _hit(self, concept: int, score: float) -> ConceptHit:
        terms = self.cards.column("terms")[concept].as_py()
        return ConceptHit(concept, self.name(concept), ", ".join(word for word, _ in terms), score)

    def _read(self, name: str, schema: pa.Schema) -> pa.Table:
        try:
            return pq.read_table(self.file(name), schema=schema).combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise Damaged(f"{self.path / name} cannot be read ({error}); {self._repair}.", name) from error

    @cached_property
    def _texts(self) -> sqlite3.Connection:
        """The full-text index over name, terms and strongest contexts; rowid = concept. Used under the lock."""
        index = sqlite3.connect(":memory:", check_same_thread=False)
        columns = "(name, terms, contexts, tokenize = 'unicode61 remove_diacritics 2')"
        try:
            index.execute(f"CREATE VIRTUAL TABLE texts USING fts5 {columns}")
        except sqlite3.OperationalError as error:
            raise CoCoMixError(
                f"this Python's SQLite cannot search ({error}); use a Python whose SQLite has FTS5."
            ) from error
        samples = self.samples.select(["concept", "kind", "before", "token", "after"]).to_pandas()
        some = samples[samples["kind"] == "predicted"].groupby("concept").head(_SEARCHED)
        lines = some["before"] + some["token"] + some["after"] + "\n"
        texts = lines.groupby(some["concept"]).agg("".join).to_dict()
        for row in self.cards.select(["id", "name", "terms", "next_terms"]).to_pylist():
            terms = ", ".join(word for word, _ in (*row["terms"], *row["next_terms"]))
            if terms or row["id"] in texts:
                found = row["id"], row["name"], terms, texts.get(row["id"], "")
                index.execute("INSERT INTO texts (rowid, name, terms, contexts) VALUES (?, ?, ?, ?)", found)
        return index


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise CoCoMixError(f"limit={limit} must be at least 1.")
