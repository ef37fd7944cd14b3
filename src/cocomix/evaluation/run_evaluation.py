"""Evaluating a finished run on its own validation split, or on another data set with the same tokenizer."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from cocomix.artifacts import is_there, read_json, write_json
from cocomix.data import VALIDATION, DocumentBlocks, MixedData, Tokens, begin_of_text, warn_of_overlap
from cocomix.evaluation.document_losses import DocumentTally, write_document_losses
from cocomix.evaluation.inference import MapDataset
from cocomix.evaluation.perplexity import Evaluation, evaluate
from cocomix.evaluation.reliance import Reliance, concept_reliance, no_reliance_reason
from cocomix.labelling import Labels
from cocomix.model import predicts_concepts
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import Run

__all__ = ["EVALUATION_FILE", "RunEvaluation", "evaluate_run", "open_run_data", "open_run_labels", "reliance_of_runs"]

logger = logging.getLogger(__name__)

EVALUATION_FILE = "evaluation.json"
"""Name of the result within the run's folder."""


@dataclass(frozen=True)
class RunEvaluation:
    """What `evaluate_run` measured.

    Attributes:
        run: name of the run.
        data_fingerprint: of the data it was evaluated on.
        split: of that data.
        evaluation: losses and recall.
        reliance: concept reliance, or `None`.
        reliance_note: why there can be no concept reliance, in one sentence, or `None`.
    """

    run: str
    data_fingerprint: str
    split: str
    evaluation: Evaluation
    reliance: Reliance | None
    reliance_note: str | None

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        values: dict[str, Any] = {
            "format_version": 1,
            "run": self.run,
            "data_fingerprint": self.data_fingerprint,
            "split": self.split,
            **self.evaluation.to_json(),
        }
        if self.reliance is not None:
            values["concept_reliance"] = self.reliance.to_json()
        if self.reliance_note is not None:
            values["concept_reliance_note"] = self.reliance_note
        return values


def evaluate_run(
    run: Run,
    *,
    device: torch.device,
    data: Path | None = None,
    labels: Path | None = None,
    split: str = VALIDATION,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    limit_blocks: int | None = None,
    reliance: bool = True,
    per_document: bool = False,
    seed: int = 0,
) -> RunEvaluation:
    """Load a run's model, measure it, and write the result to `evaluation.json` in its folder.

    Args:
        run: from `Run.open`.
        device: where to compute.
        data: prepared data with the run's tokenizer; by default the run's own.
        labels: labels of that data; by default the run's own, where they are still there and belong to the data.
        split: which split of the data.
        batch_size: blocks per forward pass (concept reliance takes at least 2).
        dtype: float32 (default), or a narrower type used through autocast.
        limit_blocks: use only the first blocks.
        reliance: also measure concept reliance, where the model mixes concepts in.
        per_document: also write the losses by document to `document_losses.json`, for the paired test of `compare`.
        seed: of the shuffle in concept reliance.

    Raises:
        CoCoMixError: data, labels and run do not belong together, or something cannot be read.
    """
    prepared = open_run_data(run, data)
    meta = prepared.split(split).counts
    blocks: MapDataset = prepared.split(split)
    if run.manifest.document_masks:
        blocks = DocumentBlocks(blocks, prepared.manifest.eos_token_id, prepared.manifest.bos_token_id)
    if data is not None and begin_of_text(run.tokenizer()) != prepared.manifest.bos_token_id:
        logger.warning(
            f"the blocks of {data} begin otherwise than those that {run.manifest.name} was trained on: only one of the "
            "two was prepared with --prepend-bos."
        )
    model = run.model()
    found = None
    if predicts_concepts(model):
        store = open_run_labels(
            run, prepared, model.config.num_concepts, labels, without="concept recall and the oracle"
        )
        found = None if store is None else store.split(split)
    elif labels is not None:
        raise CoCoMixError(f"the run {run.manifest.name} has no concepts to compare with labels; leave --labels out.")
    shared: dict[str, Any] = {"device": device, "dtype": dtype, "labels": found}
    shared |= {"limit_blocks": limit_blocks}
    bytes_per_token = meta.bytes / meta.tokens if meta.bytes > 0 else None
    tally = DocumentTally(prepared.manifest.eos_token_id, prepared.manifest.bos_token_id) if per_document else None
    result = evaluate(model, blocks, batch_size=batch_size, bytes_per_token=bytes_per_token, documents=tally, **shared)
    measured, note = None, None
    if reliance:
        note = no_reliance_reason(model)
        if note is None and result.blocks < 2:
            note = "a single block was evaluated, so there is no other text to shuffle concepts with."
        if note is None:
            measured = concept_reliance(model, blocks, batch_size=max(2, batch_size), seed=seed, **shared)
    whole = RunEvaluation(run.manifest.name, prepared.manifest.fingerprint, split, result, measured, note)
    write_json(run.path / EVALUATION_FILE, whole.to_json())
    if tally is not None:
        fingerprint = prepared.manifest.fingerprint
        write_document_losses(
            run.path, tally, data_fingerprint=fingerprint, split=split, blocks=result.blocks, dtype=result.dtype
        )
    return whole


def reliance_of_runs(runs: Sequence[Run]) -> dict[str, Reliance]:
    """Concept reliance as `evaluate_run` left it beside the runs, by run name (and seed where a name has several).

    Raises:
        CoCoMixError: a result is damaged.
    """
    names = [run.manifest.name for run in runs]
    found = {}
    for run in runs:
        file = run.path / EVALUATION_FILE
        values = read_json(file).get("concept_reliance") if file.is_file() else None
        if values is None:
            continue
        name = run.manifest.name
        name = f"{name}, seed {run.manifest.seed}" if names.count(name) > 1 else name
        try:
            found[name] = TypeAdapter(Reliance).validate_python({"oracle": None, **values})
        except ValidationError as error:
            raise CoCoMixError(f"{file} is damaged at concept_reliance; evaluate the run again.") from error
    return found


def open_run_data(run: Run, path: Path | None = None) -> Tokens:
    """The data to measure a run on.

    Args:
        run: the run.
        path: other prepared data, of the run's tokenizer; by default the run's own, which must be unchanged.

    Raises:
        CoCoMixError: it is not there, has changed, or has another tokenizer.
    """
    trained_on = run.manifest.data
    own = [Path(trained_on.path)] if trained_on.mixture is None else [Path(part.path) for part in trained_on.mixture]
    if path is None and not all(map(is_there, own)):
        raise CoCoMixError(
            f"the data of the run {run.manifest.name} is no longer at {trained_on.path}; say where it is with --data."
        )
    if path is None and trained_on.mixture is not None:
        shares = [part.share for part in trained_on.mixture]
        data: Tokens = MixedData([Tokens.open(folder) for folder in own], shares)
    else:
        data = Tokens.open(path or own[0])
    if data.manifest.tokenizer_fingerprint != trained_on.tokenizer_fingerprint:
        raise CoCoMixError(
            f"{data.path} was prepared with another tokenizer than the run {run.manifest.name}; prepare it with the "
            f"tokenizer in {run.path}."
        )
    if path is None and data.manifest.fingerprint != trained_on.fingerprint:
        raise CoCoMixError(
            f"{data.path} has changed since the run {run.manifest.name} was trained on it; name it with --data to "
            "evaluate on it all the same."
        )
    if path is not None:
        with suppress(CoCoMixError):  # the data of the run need not be there
            warn_of_overlap([Tokens.open(folder) for folder in own], [data])
    return data


def open_run_labels(
    run: Run,
    data: Tokens,
    num_concepts: int,
    path: Path | None = None,
    *,
    without: str,
) -> Labels | None:
    """The labels asked for, or the run's own where they fit; otherwise none, with a warning.

    Args:
        run: the run.
        data: the data in use, from `open_run_data`.
        num_concepts: of the run's model.
        path: labels asked for.
        without: what is left out where there are none, for the warning.

    Raises:
        CoCoMixError: the labels do not belong to this data or this model.
    """
    if path is None:
        own = run.manifest.labels
        if own is None or data.manifest.fingerprint != run.manifest.data.fingerprint:
            logger.warning(f"there are no labels of this data, so {without} are left out.")
            return None
        if run.manifest.data.mixture is not None:
            logger.warning(f"labels of a mixture are not read here, so {without} are left out; name one corpus.")
            return None
        path = Path(own.path)
        if not is_there(path):
            logger.warning(f"the run's labels are no longer at {path}, so {without} are left out.")
            return None
    store = Labels.open(path)
    store.require_tokens(data)
    store.require_concepts(num_concepts)
    return store
