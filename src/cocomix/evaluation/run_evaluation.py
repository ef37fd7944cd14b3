"""An evaluation of a run, as it is kept in the run's folder: `evaluations/KEY/evaluation.json` and `losses.parquet`.

KEY names the data, the split, the precision and, where these are not the usual ones, the number and length of blocks.
Evaluations under different keys stand side by side; one that is made again replaces its folder as a whole.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import PrivateAttr

from cocomix.artifacts import explained_full_disk, write_json
from cocomix.evaluation.loss_slices import SLICES, LossSlice, SliceName
from cocomix.evaluation.pages import NOTHING, Table, percent, signed
from cocomix.evaluation.references import ORDERS, References
from cocomix.evaluation.reliance import RunReliance
from cocomix.labelling import LabelContent
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Record
from cocomix.training import Run

EVALUATIONS = "evaluations"
"""Folder within a run's folder."""

_RESULT, _LOSSES = "evaluation.json", "losses.parquet"


class FrequencyRecall(Record):
    """Recall of the concepts that are about equally frequent among training labels."""

    lowest: int  # fewest labels of a concept of the group, in about two million training positions
    highest: int  # most
    concepts: int
    labels: int  # their labels in the evaluated blocks
    recall: float | None  # share of these labels among the first 32 predicted concepts; `None` without labels


class CompressionNorms(Record):
    """Lengths of the compression vectors ‖W_comp[c]‖₂ over the concepts c."""

    unused: float  # share below 0.01, which the paper calls unused (Fig. 6c: 5.8%)
    low: float  # 5% of them are shorter
    median: float  # half of them are
    high: float  # 95% are


class ConceptResults(Record):
    """What a model's concepts are on the evaluated blocks; without labels, only the last three are known."""

    loss: float | None  # Eq. 2 averaged over labelled positions, nats
    # share of the labels that are among the first 32 predicted concepts (as many as the model mixes in, if fewer)
    recall_at_32: float | None
    recall_at_labels: float | None  # the same among the first k_attr, as many as a position can have labels
    labelled_positions: int | None  # positions with at least one label
    # what is in the labels themselves, to read recall by; `None` where it was not measured
    label_content: LabelContent | None
    # recall_at_32 in groups of concepts by their number of training labels: 0, 1-9, 10-99, …
    recall_by_frequency: tuple[FrequencyRecall, ...]
    concepts_predicted: int  # concepts that were among those mixed in at some position
    num_concepts: int
    compression: CompressionNorms | None  # lengths of the vectors that concepts are mixed in as; `None` where none are


class RunEvaluation(Record):
    """What `evaluate_run` measured.

    Attributes:
        dtype: precision of the matrix products, e.g. `"float32"`.
        limited: whether the split has more.
        targets: tokens predicted: (block_size − 1) per block, fewer where documents are kept apart.
        seconds: wall clock of the whole evaluation.
        loss: mean cross-entropy of every next token within a block, nats per token.
        perplexity: exp(loss).
        bits_per_byte: loss / (UTF-8 bytes per token of the split · ln 2), which can be compared across tokenizers;
            `None` where the bytes are not known.
        references: what n-gram models of the training tokens make of the same tokens; `None` where these are gone.
        concepts: `None` of a model that predicts none.
        reliance: what concepts do for the loss, or `None`.
        reliance_note: why there is no reliance, in one sentence, or `None`.
    """

    format_version: Literal[2] = 2
    run: str
    seed: int
    data_fingerprint: str
    split: str
    dtype: str
    blocks: int
    limited: bool
    block_size: int
    targets: int
    seconds: float
    loss: float
    perplexity: float
    bits_per_byte: float | None
    references: References | None
    slices: tuple[LossSlice, ...]
    concepts: ConceptResults | None
    reliance: RunReliance | None
    reliance_note: str | None

    _folder: Path | None = PrivateAttr(default=None)

    @property
    def conditions(self) -> tuple[str, str, str, int, int]:
        """What two runs must share for their losses to be of the same tokens under the same precision."""
        return self.data_fingerprint, self.split, self.dtype, self.blocks, self.block_size

    def token_losses(self) -> pd.DataFrame:
        """One row per predicted token; columns as in `loss_slices.token_table`. Refused where the file is missing or
        damaged.
        """
        assert self._folder is not None
        file = self._folder / _LOSSES
        try:
            table = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise CoCoMixError(f"{file} cannot be read ({error}); evaluate the run {self.run} again.") from error
        if len(table) != self.targets:
            raise CoCoMixError(f"{file} has {len(table):,} rows, not {self.targets:,}; evaluate {self.run} again.")
        return table

    def save(self, run: Run, table: pd.DataFrame) -> None:
        """Write it and its table into the run's folder; both are there or neither is."""
        key = [self.data_fingerprint[:12], self.split, self.dtype]
        key += [f"{self.blocks}blocks"] if self.limited else []
        key += [f"{self.block_size}tokens"] if self.block_size != run.manifest.data.block_size else []
        place = run.path / EVALUATIONS / "-".join(key)
        made = place.with_name(f".{place.name}.partial")
        shutil.rmtree(made, ignore_errors=True)
        with explained_full_disk(made):
            made.mkdir(parents=True)
            write_json(made / _RESULT, self.model_dump(mode="json"))
            table.to_parquet(made / _LOSSES, index=False)
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
        self._folder = place


def evaluations_of(run: Run) -> list[RunEvaluation]:
    """A run's evaluations, the newest first; refused where one is damaged or was written by another version."""
    files = [file for file in (run.path / EVALUATIONS).glob(f"*/{_RESULT}") if not file.parent.name.startswith(".")]
    found = []
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        found.append(RunEvaluation.read(file, f"remove {file.parent} and evaluate the run again"))
        found[-1]._folder = file.parent
    return found


_REPLACED_BY = {
    "mean": "their average",
    "shuffle": "those of another text",
    "shuffle_same_token": "those of the same token elsewhere",
    "token_table": "a table of the current token",
    "oracle": "the labels",
    "oracle_ahead": "the true ones, which look ahead",
    "zero": "nothing (appendix)",
}


def loss_table(found: Sequence[RunEvaluation]) -> Table:
    """Losses of evaluations of the same tokens, and of the n-gram references of the first, falling."""
    one = found[0]
    bits = None if one.bits_per_byte is None else one.bits_per_byte / one.loss
    caption = f"{one.split} split, {one.targets:,} predicted tokens in blocks of {one.block_size}, {one.dtype}"
    return models_table({_name(each): each.loss for each in found}, one.references, caption, bits)


def models_table(losses: Mapping[str, float], references: References | None, caption: str, bits: float | None) -> Table:
    """Losses by name, nats per token, among the n-gram references'; `bits` per byte of one nat per token, if known."""
    models = dict(losses)
    if references is not None:
        models |= {f"{order} table": getattr(references, order) for order in ORDERS}
        caption += f"; n-grams of {references.training_tokens:,} training tokens"
    rows = [
        (name, f"{loss:.4f}", f"{math.exp(loss):.2f}", NOTHING if bits is None else f"{bits * loss:.4f}")
        for name, loss in sorted(models.items(), key=lambda model: -model[1])
    ]
    units = ("loss, nats per token", "perplexity, per token", "bits per byte, of text")
    return Table(("model", *(f"{unit}, lower is better" for unit in units)), rows, caption=caption)


def recall_table(found: Sequence[RunEvaluation]) -> Table | None:
    """Concept recall of runs, each between a static list and a table of the current token; `None` without labels."""
    rows: dict[tuple[str, ...], None] = {}  # runs of the same labels have the same references
    for each in found:
        concepts = each.concepts
        if concepts is None or concepts.recall_at_32 is None or concepts.recall_at_labels is None:
            continue
        predicted = f"{concepts.concepts_predicted:,} of {concepts.num_concepts:,}"
        shown = {_name(each): (concepts.recall_at_labels, concepts.recall_at_32, predicted)}
        if (content := concepts.label_content) is not None:
            static = (content.static_recall_at_labels, content.static_recall_at_32, NOTHING)
            token = (content.token_recall_at_labels, content.token_recall_at_32, NOTHING)
            shown = {"static list": static, **shown, "current-token table": token}
        rows |= {(name, percent(first), percent(all32), used): None for name, (first, all32, used) in shown.items()}
    meanings = {
        "recall@labels": "Share of a token's labels among as many predictions as it can have labels.",
        "recall@32": "Share of a token's labels among 32 predictions. A model that only matches the current-token "
        "table has learnt no context.",
    }
    headings = ("predicted by", "recall@labels, higher is better", "recall@32, higher is better", "concepts predicted")
    return Table(headings, list(rows), caption="Recall of the concept labels", meanings=meanings) if rows else None


def reliance_table(each: RunEvaluation) -> Table | None:
    """What replacing the concepts does to a run's loss."""
    if each.reliance is None:
        return None
    kinds, rows = each.reliance.kinds, []
    for kind, one in kinds.items():
        share = NOTHING if one.share_of_gain is None else percent(one.share_of_gain)
        rows.append((_REPLACED_BY[kind], signed(one.nats), reliance_interval(each.reliance, kind), share))
    headings = (
        *("concepts replaced by", "loss, nats per token, above 0 = it hurts"),
        *(f"95% interval, over documents: {each.reliance.documents:,}", "share, of the gain over the control"),
    )
    shown = 3 if all(one.share_of_gain is None for one in kinds.values()) else 4
    caption = f"Reliance of {_name(each)}, on its concepts"
    return Table(headings[:shown], [row[:shown] for row in rows], caption=caption)


def reliance_interval(reliance: RunReliance, kind: str) -> str:
    """The 95% interval of one replacement's nats per token; a dash of a single document, which has none."""
    one = reliance.kinds[kind]
    return f"{signed(one.low)} … {signed(one.high)}" if reliance.documents > 1 else NOTHING


def slice_table(found: Sequence[RunEvaluation], column: SliceName) -> Table:
    """Mean loss by the values of one column of the slices."""
    losses = [{part.value: part for part in each.slices if part.slice == column} for each in found]
    rows = [
        (value, f"{part.tokens:,}", *(f"{one[value].loss:.3f}" if value in one else NOTHING for one in losses))
        for value, part in losses[0].items()
    ]
    headings = [f"{each.run} (seed {each.seed}), nats per token, lower is better" for each in found]
    return Table((SLICES[column], "tokens", *headings), rows, caption=f"Loss by {SLICES[column]}")


def worse_than_bigram(name: str, loss: float, references: References | None) -> str | None:
    """A warning where a table of token pairs predicts better than a model; `None` otherwise."""
    if references is None or loss <= references.bigram:
        return None
    return (
        f"{name} is worse than a bigram table of its training tokens ({loss:.3f} against {references.bigram:.3f} nats "
        "per token): what it shows says little about models that have learnt the language; train it on more tokens."
    )


def concept_advice(each: RunEvaluation) -> list[str]:
    """What to do where a model hardly uses its dictionary, or its concepts drown what they are mixed with."""
    concepts, said = each.concepts, []
    size = None if each.reliance is None else each.reliance.size
    if concepts is not None and 2 * concepts.concepts_predicted < concepts.num_concepts:
        said.append(
            f"{each.run} predicts only {concepts.concepts_predicted:,} of its {concepts.num_concepts:,} concepts "
            f"anywhere in {each.targets:,} tokens; use a smaller dictionary (`cocomix sae --num-concepts`), fit it on "
            "more tokens so that its auxiliary loss (AuxK) revives dead concepts, or train on more text."
        )
    if size is not None and size > 1.0:
        said.append(
            f"{each.run}'s concept vector is {size:.1f} times as large as the hidden state and may drown it; try "
            "concept_weights: softmax."
        )
    return said


def _name(each: RunEvaluation) -> str:
    return f"{each.run}, seed {each.seed}"
