"""Filling an atlas' database from a tally: rows of concepts, names, effects. Every step goes on where it stopped.

While an atlas is made, the table `drafts` holds what the naming needs of each concept seen: its words with their
counts, and the text to be searched.
"""

import json
import logging
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cocomix.interpret.atlas_cards import AtlasSettings
from cocomix.interpret.atlas_effects import mean_concept_logits, measure_effects
from cocomix.interpret.atlas_naming import NameEndpoint, count_words, name_of, typical_words
from cocomix.interpret.atlas_pass import AtlasBlocks
from cocomix.interpret.atlas_store import LABEL, PREDICTED, Cut, create_tables, cut, pack_changes, pack_tokens
from cocomix.interpret.atlas_tally import StrongestPlaces, Tally
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError

__all__ = ["AtlasWriter"]

logger = logging.getLogger(__name__)

_DRAFTS = "CREATE TABLE IF NOT EXISTS drafts (concept INTEGER PRIMARY KEY, words TEXT NOT NULL, contexts TEXT NOT NULL)"
_SEARCHED = 4
"""Contexts of each kind in the full-text index; the index would be most of the file with all of them."""
_ASKED = 8
"""Contexts shown to a naming endpoint."""
_NAMES_AT_ONCE = 1024
_CHUNK_ELEMENTS = 2**24  # cosines held at once: 64 MiB in float32
_FAILURES = 3
"""Failures in a row after which a naming endpoint is left alone."""


class AtlasWriter:
    """Writes the database of an atlas.

    Args:
        database: its connection.
        model: the student.
        tokenizer: of the data.
        blocks: what was read.
        tally: what was counted.
        settings: of the atlas.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        model: CoCoMixForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        blocks: AtlasBlocks,
        tally: Tally,
        settings: AtlasSettings,
    ) -> None:
        self._database = database
        self._model = model
        self._tokenizer = tokenizer
        self._blocks = blocks
        self._tally = tally
        self._settings = settings
        self._special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))
        mixes = model.config.form.mixes_in
        self._compression = model.compression_weight.detach() if mixes else None  # [n_concepts, d_model]
        create_tables(database)
        database.execute(_DRAFTS)

    def write_concepts(self) -> None:
        """One row per concept with its counts, contexts and nearest concepts; names and effects come later."""
        (done,) = self._database.execute("SELECT coalesce(max(id) + 1, 0) FROM concepts").fetchone()
        total = len(self._tally.predicted)
        if done == total:
            return
        norms, amounts = self._norms(), self._effect_amounts()
        stored = {block for (block,) in self._database.execute("SELECT id FROM blocks")}
        for block in range(len(self._effect_blocks()[0])):
            self._store_block(block, stored)
        with progress("describing", total, "concepts") as advance:
            advance(done)
            for start, nearest in self._nearest(norms, done):
                for offset, neighbours in enumerate(nearest):
                    concept = start + offset
                    self._write_concept(concept, norms, amounts, neighbours)
                    self._write_contexts(concept, stored)
                self._database.commit()
                advance(len(nearest))

    def write_names(self) -> None:
        """Terms and a name for every concept, and the full-text index."""
        concepts_with: Counter[str] = Counter()
        seen = 0
        for (words,) in self._database.execute("SELECT words FROM drafts"):
            concepts_with.update(json.loads(words).keys())
            seen += 1
        unnamed = (
            "SELECT id, words, contexts FROM concepts LEFT JOIN drafts ON drafts.concept = concepts.id "
            f"WHERE name IS NULL ORDER BY id LIMIT {_NAMES_AT_ONCE}"
        )
        while rows := self._database.execute(unnamed).fetchall():
            for concept, words, contexts in rows:
                terms = (
                    [] if words is None else typical_words(json.loads(words), concepts_with, seen, self._settings.terms)
                )
                name = name_of(concept, terms)
                stored_terms = json.dumps(terms, ensure_ascii=False)
                self._database.execute(
                    "UPDATE concepts SET name = ?, terms = ? WHERE id = ?", (name, stored_terms, concept)
                )
                if words is not None:
                    self._database.execute(
                        "INSERT INTO texts (rowid, name, terms, contexts) VALUES (?, ?, ?, ?)",
                        (concept, name, ", ".join(terms), contexts),
                    )
            self._database.commit()

    def write_effects(self) -> int:
        """Measure the effect of the most frequent concepts; returns how many are measured in all."""
        if self._compression is None or self._settings.effects == 0:
            return 0
        wanted = self._tally.frequent(self._settings.effects)
        measured = {concept for (concept,) in self._database.execute("SELECT id FROM concepts WHERE raised NOT NULL")}
        rows = self._database.execute("SELECT id, effect_amount FROM concepts")
        amounts = dict(rows.fetchall())
        missing = {concept: amounts[concept] for concept in wanted if concept not in measured}
        with progress("measuring effects", len(wanted), "concepts") as advance:
            advance(len(measured))
            if missing:
                input_ids, position_ids = self._effect_blocks()
                for concept, raised, lowered in measure_effects(
                    self._model, self._tokenizer, input_ids, missing, self._settings.effect_top, position_ids
                ):
                    self._database.execute(
                        "UPDATE concepts SET raised = ?, lowered = ? WHERE id = ?",
                        (pack_changes(raised), pack_changes(lowered), concept),
                    )
                    self._database.commit()
                    advance(1)
        return len(wanted)

    def ask_for_names(self, endpoint: NameEndpoint) -> None:
        """Replace the names of the most frequent concepts by a language model's; a failure keeps the terms."""
        failures = 0
        wanted = self._tally.frequent(endpoint.limit)
        with progress("naming", len(wanted), "concepts") as advance:
            for concept in wanted:
                terms, done = self._database.execute(
                    "SELECT terms, named_by_endpoint FROM concepts WHERE id = ?", (concept,)
                ).fetchone()
                advance(1)
                if done:
                    continue
                try:
                    name = endpoint.name(
                        json.loads(terms), list(self._cuts(concept, self._tally.best_predicted, _ASKED))
                    )
                    failures = 0
                except CoCoMixError as error:
                    failures += 1
                    logger.warning(f"concept {concept}: {error}")
                    if failures == _FAILURES:
                        logger.warning(
                            f"{_FAILURES} failures in a row; the other concepts keep the names of their terms."
                        )
                        return
                    continue
                self._database.execute(
                    "UPDATE concepts SET name = ?, named_by_endpoint = 1 WHERE id = ?", (name, concept)
                )
                self._database.execute("UPDATE texts SET name = ? WHERE rowid = ?", (name, concept))
                self._database.commit()

    def finish(self) -> int:
        """Drop what only the making needed and pack the file; returns how many names are an endpoint's."""
        self._database.execute("DROP TABLE drafts")
        self._database.execute("INSERT INTO texts (texts) VALUES ('optimize')")
        self._database.commit()
        self._database.execute("VACUUM")
        (named,) = self._database.execute("SELECT sum(named_by_endpoint) FROM concepts").fetchone()
        return int(named)

    def _effect_blocks(self) -> tuple[Tensor, Tensor | None]:
        """The first blocks, which effects are measured on: tokens and, with `document_masks`, positions.

        [blocks, block_size] each, int64
        """
        count = min(len(self._blocks), self._settings.effect_blocks(self._blocks.block_size))
        rows = [self._blocks[index] for index in range(count)]
        positions = [row["position_ids"] for row in rows if "position_ids" in row]
        return torch.stack([row["input_ids"] for row in rows]), torch.stack(positions) if positions else None

    def _effect_amounts(self) -> list[float] | None:
        """What is added to each concept's logit to measure its effect; `None` where nothing is mixed in.

        Our choice: from the concept's mean logit over the blocks measured on to the logit that 95% of its predictions
        stay below, so that on average it is as strong as where it is truly there; at least one bin of the histogram.
        """
        if self._compression is None:
            return None
        mean = mean_concept_logits(self._model, *self._effect_blocks()).numpy()
        step = float(self._tally.edges[1] - self._tally.edges[0])
        amounts: list[float] = (self._tally.high_logits() - mean).clip(min=step).tolist()
        return amounts

    def _norms(self) -> Tensor | None:
        """‖W_comp[concept]‖₂. [n_concepts]; `None` where nothing is mixed in."""
        return None if self._compression is None else self._compression.norm(dim=1)

    def _nearest(self, norms: Tensor | None, done: int) -> Iterator[tuple[int, list[list[tuple[int, float]]]]]:
        """Chunks of concepts from the `done`th: (first concept, nearest concepts and cosines of each).

        A concept has C cosines, so a chunk holds as many concepts as keep these within 64 MiB.
        """
        total = len(self._tally.predicted)
        rows = max(1, _CHUNK_ELEMENTS // total)
        count = min(self._settings.nearest, total - 1)
        for start in range(done, total, rows):
            chunk = range(start, min(start + rows, total))
            if self._compression is None or norms is None or count == 0:
                yield start, [[] for _ in chunk]
                continue
            with torch.inference_mode():
                weight = self._compression
                scale = norms.clamp_min(torch.finfo(norms.dtype).tiny)
                cosines = (weight[chunk.start : chunk.stop] / scale[chunk.start : chunk.stop, None]) @ weight.T / scale
                cosines[torch.arange(len(chunk)), torch.arange(chunk.start, chunk.stop)] = float("-inf")
                best = cosines.topk(count, dim=-1)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield start, [list(zip(ids, values, strict=True)) for ids, values in pairs]

    def _write_concept(
        self, concept: int, norms: Tensor | None, amounts: list[float] | None, nearest: list[tuple[int, float]]
    ) -> None:
        tally = self._tally
        predicted = int(tally.predicted[concept])
        self._database.execute(
            "INSERT INTO concepts (id, predicted_count, positive_count, label_count, hits, mean_logit, max_logit, "
            "histogram, compression_norm, nearest, effect_amount) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                concept,
                predicted,
                int(tally.positive[concept]),
                int(tally.labels[concept]),
                int(tally.hits[concept]),
                float(tally.logit_sum[concept]) / predicted if predicted else None,
                float(tally.logit_max[concept]) if predicted else None,
                tally.histogram[concept].astype("<i8").tobytes(),
                None if norms is None else float(norms[concept]),
                json.dumps(nearest),
                None if amounts is None else amounts[concept],
            ),
        )

    def _write_contexts(self, concept: int, stored: set[int]) -> None:
        """A concept's places, the blocks they lie in, and the draft of its name."""
        every: list[Cut] = []
        searched: list[str] = []
        for kind, best in ((PREDICTED, self._tally.best_predicted), (LABEL, self._tally.best_labels)):
            for rank, (strength, place) in enumerate(best.of(concept)):
                block, position = divmod(place, self._blocks.block_size)
                self._store_block(block, stored)
                self._database.execute(
                    "INSERT INTO contexts VALUES (?, ?, ?, ?, ?, ?)", (concept, kind, rank, strength, block, position)
                )
            cuts = list(self._cuts(concept, best, self._settings.contexts))
            every += cuts
            searched += ["".join(part) for part in cuts[:_SEARCHED]]
        if every:
            words = json.dumps(count_words(every), ensure_ascii=False)
            self._database.execute("INSERT INTO drafts VALUES (?, ?, ?)", (concept, words, "\n".join(searched)))

    def _cuts(self, concept: int, best: StrongestPlaces, limit: int) -> Iterator[Cut]:
        """The strongest contexts of a concept as text; special tokens, which are no words, as line breaks."""
        for _, place in best.of(concept)[:limit]:
            block, position = divmod(place, self._blocks.block_size)
            parts = cut(self._tokenizer, self._blocks.tokens(block).tolist(), position, self._settings.window)
            yield Cut(*(self._special.sub("\n", part) for part in parts))

    def _store_block(self, block: int, stored: set[int]) -> None:
        if block not in stored:
            stored.add(block)
            split, index = self._blocks.locate(block)
            tokens = pack_tokens(self._blocks.tokens(block))
            self._database.execute("INSERT INTO blocks VALUES (?, ?, ?, ?)", (block, split, index, tokens))
