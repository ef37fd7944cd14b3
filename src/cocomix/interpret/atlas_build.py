"""Making the concept atlas of a run (`cocomix atlas`): one pass over held-out text, then a row per concept."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.data import VALIDATION
from cocomix.evaluation.run_inputs import open_run_data, open_run_labels, run_blocks
from cocomix.interpret.atlas_cards import AtlasManifest, AtlasSettings, Context
from cocomix.interpret.atlas_pass import Array, Reading, concept_quality, probe_properties, read_held_out
from cocomix.interpret.concept_atlas import (
    CARD_SCHEMA,
    CARDS,
    EFFECT_TEXT,
    SAMPLE_SCHEMA,
    SAMPLES,
    ConceptAtlas,
    default_atlas_folder,
)
from cocomix.interpret.effects import measure_effects, turning_amounts
from cocomix.interpret.inspection import Words, concept_model, lifted_words
from cocomix.interpret.naming import NameEndpoint, delphi_scorers, score_name
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training import Run

logger = logging.getLogger(__name__)

_ALGORITHM = "2"  # raised whenever the same run, text and settings would give another atlas than before
_CHUNK_ELEMENTS = 2**24  # cosines held at once: 64 MiB in float32
_CONCEPTS_AT_ONCE = 1024
_FAILURES = 3  # failures in a row after which a naming endpoint is left alone
_INACTIVE = 256  # positions from which the contexts without a concept are drawn that names are scored by


def build_atlas(
    run: Run,
    output: Path | None = None,
    settings: AtlasSettings | None = None,
    *,
    device: torch.device,
    data: Path | None = None,
    labels: Path | None = None,
    endpoint: NameEndpoint | None = None,
    scorers: Mapping[str, Any] | None = None,
) -> AtlasManifest:
    """Make the atlas of a run, all of it from the validation split.

    Refused where the run has no concepts; run, data and labels do not belong together; `output` exists, or the disk is
    full.

    Args:
        output: folder to write; by default `RUN_atlas` beside the run.
        data: prepared data with the run's tokenizer; by default the run's own.
        labels: labels of that data; by default the run's own. Without any, the atlas has predictions only.
        endpoint: a language model that names the most frequent concepts; by default none is asked.
        scorers: of its names; by default Delphi's, where it is installed (see `naming`).
    """
    settings = settings or AtlasSettings()
    output = output or default_atlas_folder(run.path)
    model = concept_model(run.model())
    prepared = open_run_data(run, data)
    store = open_run_labels(
        run, prepared, model.config.num_concepts, labels, without="label contexts, precision, recall and AUROC"
    )
    made_from = {
        "run": run.manifest.fingerprint,
        "tokens": prepared.manifest.fingerprint,
        "tokenizer": prepared.manifest.tokenizer_fingerprint,
        **({} if store is None else {"labels": store.fingerprint}),
    }
    identity = {"made_from": made_from, "settings": settings.model_dump(mode="json"), "algorithm": _ALGORITHM}
    if endpoint is None and (found := ConceptAtlas.made(output, identity)) is not None:
        logger.info(f"{output} is this atlas, finished: nothing to do")
        return found.manifest
    limit = max(1, settings.tokens // run.manifest.data.block_size)
    blocks, tokenizer = run_blocks(run, prepared, store, limit_blocks=limit), prepared.tokenizer()
    with ConceptAtlas.create(output, identity=identity) as staging:
        reading = read_held_out(model.to(device), blocks, settings)
        edges = np.linspace(reading.logits.min(), reading.logits.max() + 1e-6, settings.bins + 1)
        total = model.config.num_concepts
        columns = concept_quality(reading, total) | _logits(reading, edges, total)
        places = _Places(reading, tokenizer, settings)
        columns |= _names(reading, tokenizer, settings, columns)
        columns |= _vectors(model, reading, settings)
        wanted = max(1, settings.effect_tokens // blocks.block_size)
        first = [blocks.rows[row] for row in range(min(len(reading.tokens), wanted))]
        # Tokens and, where documents are kept apart, their positions. [blocks, seq] each
        text = {name: torch.stack([row[name] for row in first]) for name in first[0] if name != "labels"}
        effects = _effects(model, tokenizer, text, columns, settings)
        named, scored = (0, 0) if endpoint is None else _ask(endpoint, scorers, columns, places)
        columns["histogram"] = list(columns["histogram"])
        cards = pa.Table.from_pandas(pd.DataFrame(columns), CARD_SCHEMA, preserve_index=False)  # NaN becomes null
        pq.write_table(cards, staging.path / CARDS)
        with pq.ParquetWriter(staging.path / SAMPLES, SAMPLE_SCHEMA) as writer:
            for rows in places.rows():
                writer.write_table(pa.Table.from_pylist(rows, SAMPLE_SCHEMA))
        save_file(text, staging.path / EFFECT_TEXT)
        manifest = staging.finish(
            AtlasManifest(
                made_from=made_from,
                settings=settings,
                num_concepts=total,
                run=run.manifest.name,
                split=VALIDATION,
                blocks=len(reading.tokens),
                tokens=reading.tokens.size,
                labelled_positions=int(reading.labelled.sum()),
                predicted_concepts=int((columns["predicted_count"] > 0).sum()),
                label_concepts=int((columns["label_count"] > 0).sum()),
                effects=effects,
                endpoint_names=named,
                scored_names=scored,
                histogram_edges=tuple(edges.tolist()),
                probes=probe_properties(reading, tokenizer),
            )
        )
    logger.info(
        f"atlas of {manifest.run} in {output}: {manifest.predicted_concepts:,} of {manifest.num_concepts:,} concepts "
        f"predicted and {manifest.label_concepts:,} labels in {manifest.tokens:,} held-out tokens"
    )
    return manifest


def _logits(reading: Reading, edges: Array, n_concepts: int) -> dict[str, Any]:
    """The distribution of every concept's logit where it is predicted. [n_concepts] each"""
    ids, logits = reading.ids.ravel().astype(np.int64), reading.logits.ravel()
    bins = len(edges) - 1
    histogram = np.bincount(ids * bins + np.searchsorted(edges[1:-1], logits, "right"), minlength=n_concepts * bins)
    largest = np.full(n_concepts, np.nan)
    np.fmax.at(largest, ids, logits)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(ids, weights=logits, minlength=n_concepts) / np.bincount(ids, minlength=n_concepts)
    return {"mean_logit": mean, "max_logit": largest, "histogram": histogram.reshape(n_concepts, bins)}


class _Places:
    """Where each concept is predicted and where it is a label, by falling logit, and the text around some of them."""

    def __init__(self, reading: Reading, tokenizer: PreTrainedTokenizerFast, settings: AtlasSettings) -> None:
        self.reading, self._tokenizer, self._settings = reading, tokenizer, settings
        self._special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))
        used = reading.labels != IGNORE
        self._sorted = {
            "predicted": _by_concept(reading.ids, reading.logits, np.ones_like(reading.ids, dtype=bool)),
            "label": _by_concept(reading.labels, reading.label_logits, used),
        }

    def of(self, concept: int, kind: str) -> list[Context]:
        """The contexts kept of a concept: a third of them the strongest, the rest evenly spread by rank."""
        concepts, positions, logits = self._sorted[kind]
        start, end = np.searchsorted(concepts, (concept, concept + 1))
        count, kept = end - start, self._settings.contexts
        if count == 0:
            return []
        spread = np.linspace(0, count - 1, kept - kept // 3).round().astype(int)
        ranks = np.unique(np.concatenate((np.arange(min(kept // 3, count)), spread)))
        shares = (count - 1 - ranks) / max(1, count - 1)
        return list(map(self.context, positions[start + ranks], logits[start + ranks], shares))

    def context(self, place: int, strength: float = 0.0, quantile: float = 0.0) -> Context:
        """The text around a position; special tokens, which are no words, are line breaks."""
        block, position = divmod(int(place), self.reading.tokens.shape[1])
        tokens, window = self.reading.tokens[block].tolist(), self._settings.window
        start, parts = max(0, position - window), []
        borders = (start, position, position + 1, position + 1 + window)
        read = ""
        for first, last in pairwise(borders):
            whole = self._tokenizer.decode(tokens[start:last])
            cut = whole.startswith(read)  # not where a character is cut at the border
            parts.append(whole[len(read) :] if cut else self._tokenizer.decode(tokens[first:last]))
            read = whole if cut else read + parts[-1]
        before, token, after = (self._special.sub("\n", part) for part in parts)
        return Context(before, token, after, float(strength), float(quantile), VALIDATION, block, position)

    def rows(self) -> Iterator[list[dict[str, Any]]]:
        """All contexts, as rows of `samples.parquet`, some concepts at a time."""
        count = self.reading.sample_logits.shape[1]
        with progress("describing", count, "concepts") as advance:
            for start in range(0, count, _CONCEPTS_AT_ONCE):
                concepts = range(start, min(start + _CONCEPTS_AT_ONCE, count))
                yield [
                    {"concept": concept, "kind": kind, **context._asdict()}
                    for concept in concepts
                    for kind in self._sorted
                    for context in self.of(concept, kind)
                ]
                advance(len(concepts))

    def without(self, concept: int, count: int) -> list[Context]:
        """Contexts whose token neither predicts the concept nor has it as a label, evenly spread."""
        reading = self.reading
        places = np.linspace(0, len(reading.ids) - 1, min(_INACTIVE, len(reading.ids))).astype(int)
        free = [p for p in places if concept not in reading.ids[p] and concept not in reading.labels[p]]
        return [self.context(place) for place in free[:: max(1, len(free) // count)][:count]]


def _by_concept(ids: Array, logits: Array, used: Array) -> tuple[Array, Array, Array]:
    """Concepts, positions and logits of all entries in use, sorted by concept and falling logit."""
    positions = np.nonzero(used)[0]
    concepts, values = ids[used], logits[used]
    order = np.lexsort((positions, -values, concepts))
    return concepts[order], positions[order], values[order]


def _names(
    reading: Reading, tokenizer: PreTrainedTokenizerFast, settings: AtlasSettings, columns: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Terms by lift and names, from labels where there are enough, else from predictions."""
    words, kept = Words.of(tokenizer, reading.tokens), {"limit": settings.terms, "least": settings.least_count}
    used = reading.labels != IGNORE
    labelled = lifted_words(words, reading.labels[used], np.nonzero(used)[0], **kept)
    everywhere = np.repeat(np.arange(len(reading.ids)), reading.ids.shape[1])
    predicted = lifted_words(words, reading.ids.ravel(), everywhere, **kept)
    rows = []
    for concept, labels in enumerate(columns["label_count"].tolist()):
        source = "labels" if labels >= settings.least_count else "predictions"
        terms, following = (labelled if source == "labels" else predicted).get(concept, ((), ()))
        name = ", ".join(word for word, _ in terms[:3])
        rows.append((terms, following, name or f"concept {concept}", source if name else "nothing"))
    found = map(list, zip(*rows, strict=True))
    return dict(zip(("terms", "next_terms", "name", "named_from"), found, strict=True))


def _vectors(model: CoCoMixForCausalLM, reading: Reading, settings: AtlasSettings) -> dict[str, list[Any]]:
    """What the compression vectors tell: norms, nearest concepts, and what to add to turn a concept up."""
    total, nearest = model.config.num_concepts, list[Any]()
    if not model.config.form.mixes_in:
        return {"compression_norm": [None] * total, "nearest": [[]] * total, "effect_amount": [None] * total}
    weight = model.compression_weight
    with torch.inference_mode():
        norms = weight.norm(dim=1)
        unit = weight / norms.clamp_min(torch.finfo(norms.dtype).tiny).unsqueeze(1)
        rows = max(1, _CHUNK_ELEMENTS // total)
        for start in range(0, total, rows):
            cosines = unit[start : start + rows] @ unit.T
            cosines.diagonal(start).fill_(-torch.inf)
            best = cosines.topk(min(settings.nearest, total - 1), dim=-1)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            nearest += [list(zip(*row, strict=True)) for row in pairs]
    amounts = turning_amounts(reading.ids, reading.logits, reading.sample_logits.mean(0))
    return {"compression_norm": norms.tolist(), "nearest": nearest, "effect_amount": amounts.tolist()}


def _effects(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    text: dict[str, Tensor],
    columns: dict[str, Any],
    settings: AtlasSettings,
) -> int:
    """Measure the most frequent concepts' effects into the columns `raised` and `lowered`; returns how many."""
    columns |= {name: [None] * len(columns["name"]) for name in ("raised", "lowered", "detection", "fuzzing")}
    if not model.config.form.mixes_in:
        return 0
    amounts = {concept: columns["effect_amount"][concept] for concept in _frequent(columns, settings.effects)}
    with progress("measuring effects", len(amounts), "concepts") as advance:
        for effect in measure_effects(model, tokenizer, **text, amounts=amounts, top=settings.effect_top):
            columns["raised"][effect.concept], columns["lowered"][effect.concept] = effect.raised, effect.lowered
            advance(1)
    return len(amounts)


def _frequent(columns: Mapping[str, Any], limit: int) -> list[int]:
    """The concepts predicted most often, most often first; none that is never predicted."""
    order = np.argsort(-columns["predicted_count"], kind="stable")[:limit]
    concepts: list[int] = order[columns["predicted_count"][order] > 0].tolist()
    return concepts


def _ask(
    endpoint: NameEndpoint, scorers: Mapping[str, Any] | None, columns: dict[str, Any], places: _Places
) -> tuple[int, int]:
    """Have the most frequent concepts named by a language model, and the names scored; a failure keeps the terms.

    A name is made from every second context, and scored by the others. Returns how many were named, how many scored.
    """
    scorers = delphi_scorers(endpoint) if scorers is None else scorers
    if scorers is None:
        logger.warning("Delphi is not installed, so names are not scored; run: pip install eai-delphi.")
    failures = named = scored = 0
    wanted: Sequence[int] = _frequent(columns, endpoint.limit)
    with progress("naming", len(wanted), "concepts") as advance:
        for concept in wanted:
            contexts = places.of(concept, "predicted")
            try:
                name = endpoint.name([word for word, _ in columns["terms"][concept]], contexts[::2])
            except CoCoMixError as error:
                failures += 1
                logger.warning(f"concept {concept}: {error}")
                if failures == _FAILURES:
                    logger.warning(f"{_FAILURES} failures in a row; the other concepts keep the names of their terms.")
                    break
                continue
            failures, named = 0, named + 1
            columns["name"][concept], columns["named_from"][concept] = name, "endpoint"
            unseen = contexts[1::2]
            absent = places.without(concept, len(unseen)) if unseen else []
            if scorers is not None and absent:
                scores = score_name(name, concept, unseen, absent, scorers)
                columns["detection"][concept], columns["fuzzing"][concept] = scores
                scored += 1
            advance(1)
    return named, scored
