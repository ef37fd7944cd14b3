"""An evaluation of a run, as it is kept in the run's folder: `evaluations/KEY/evaluation.json` and `losses.parquet`.

KEY names the data, the split, the precision and, where these are not the usual ones, the number and length of blocks.
Evaluations under different keys stand side by side; one that is made again replaces its folder as a whole.
"""

import shutil
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import PrivateAttr

from cocomix.artifacts import explained_full_disk, write_json
from cocomix.evaluation.references import References
from cocomix.evaluation.reliance import RunReliance
from cocomix.labelling import LabelContent
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Record
from cocomix.training import Run

EVALUATIONS = "evaluations"
"""Folder within a run's folder."""

_RESULT, _LOSSES = "evaluation.json", "losses.parquet"


class LossSlice(Record):
    """Mean loss over some of the tokens; see `cocomix.evaluation.loss_slices`."""

    slice: Literal["token_class", "position", "frequency", "seen"]  # column of `losses.parquet`
    value: str
    tokens: int
    loss: float  # nats per token


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

    def key(self, trained_block_size: int) -> str:
        """Name of its folder."""
        parts = [self.data_fingerprint[:12], self.split, self.dtype]
        parts += [f"{self.blocks}blocks"] if self.limited else []
        parts += [f"{self.block_size}tokens"] if self.block_size != trained_block_size else []
        return "-".join(parts)

    def token_losses(self) -> pd.DataFrame:
        """One row per predicted token; columns as in `loss_slices.token_table`.

        Raises:
            CoCoMixError: the file is missing or damaged.
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
        place = run.path / EVALUATIONS / self.key(run.manifest.data.block_size)
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
    """A run's evaluations, the newest first.

    Raises:
        CoCoMixError: one of them is damaged or was written by another version.
    """
    files = [file for file in (run.path / EVALUATIONS).glob(f"*/{_RESULT}") if not file.parent.name.startswith(".")]
    found = []
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        found.append(RunEvaluation.read(file, f"remove {file.parent} and evaluate the run again"))
        found[-1]._folder = file.parent
    return found
