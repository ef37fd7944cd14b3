"""`cocomix analyse`: what the concepts of runs are and do, as one page and one JSON file."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from cocomix.artifacts import whole_folder, write_json, write_text
from cocomix.evaluation.evaluation_tables import (
    concept_advice,
    loss_table,
    recall_table,
    reliance_interval,
    reliance_table,
    slice_table,
    worse_than_bigram,
)
from cocomix.evaluation.formatting import NOTHING, percent, signed
from cocomix.evaluation.gradient_cosine import GradientCosine, gradient_cosines
from cocomix.evaluation.loss_slices import SLICES
from cocomix.evaluation.measure_run import evaluate_run
from cocomix.evaluation.pages import Section, Table, render_page
from cocomix.evaluation.run_evaluation import RunEvaluation
from cocomix.evaluation.run_inputs import open_run_data, open_run_labels, run_blocks
from cocomix.model import predicts_concepts
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Record
from cocomix.training import Run

logger = logging.getLogger(__name__)

_GRADIENT_BATCHES = 32


class Analyses(Record):
    """What `analyses.json` holds.

    Attributes:
        runs: evaluations, with the shares of the gain over the control in their reliance.
        controls: run trained on next tokens alone that the gain of each is counted from, or `None`.
        gradients: of each run, cosines between the gradients of its two losses; empty without stored labels.
    """

    format_version: Literal[3] = 3
    runs: tuple[RunEvaluation, ...]
    controls: tuple[str | None, ...]
    gradients: tuple[tuple[GradientCosine, ...], ...]


def analyse_runs(
    runs: Sequence[Run],
    output: Path,
    *,
    device: torch.device,
    batch_size: int = 8,
    limit_blocks: int | None = None,
    seed: int = 0,
) -> Analyses:
    """Evaluate runs and write `analyses.html` and `analyses.json`.

    Args:
        runs: of different names or seeds. Those trained on next tokens alone are the controls of the others of their
            seed; others that mix no concepts in are left out with a warning.

    Raises:
        CoCoMixError: no run mixes concepts in, two have one name and seed, or data and labels do not belong to a run.
    """
    names = [(run.manifest.name, run.manifest.seed) for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise CoCoMixError(f"two runs have the name and seed {twice.pop()}; name each run once.")
    if all(run.manifest.mixing in (None, "none") for run in runs):
        raise CoCoMixError("none of the runs mixes concepts in, so there is nothing to analyse; name one that does.")
    with whole_folder(output) as folder:
        shared: dict[str, Any] = {"device": device, "batch_size": batch_size, "limit_blocks": limit_blocks}
        controls = [evaluate_run(run, **shared) for run in runs if run.manifest.objective == "ntp"]
        found = [(run, evaluate_run(run, **shared, seed=seed)) for run in runs if run.manifest.objective != "ntp"]
        for _, each in found:
            if each.reliance is None:
                logger.warning(f"{each.run} is left out: {each.reliance_note}")
        told = [(run, *_beside_control(each, controls)) for run, each in found if each.reliance is not None]
        result = Analyses(
            runs=tuple(each for _, each, _ in told),
            controls=tuple(name for _, _, name in told),
            gradients=tuple(_gradients(run, **shared, seed=seed) for run, _, _ in told),
        )
        write_json(folder / "analyses.json", result.model_dump(mode="json"))
        write_text(folder / "analyses.html", _page(result, [*result.runs, *controls]))
    logger.info(f"analyses: {output / 'analyses.html'}")
    return result


def _gradients(
    run: Run, *, device: torch.device, batch_size: int, limit_blocks: int | None, seed: int
) -> tuple[GradientCosine, ...]:
    data, model = open_run_data(run), run.model()
    if not predicts_concepts(model):
        return ()
    labels = open_run_labels(run, data, model.config.num_concepts, without="cosines of gradients")
    if labels is None:
        return ()
    blocks = run_blocks(run, data, labels, limit_blocks=limit_blocks)
    batch_size = min(batch_size, max(len(blocks.rows) // 2, 1))  # an interval needs two batches
    limit = _GRADIENT_BATCHES * batch_size
    return gradient_cosines(model, blocks, batch_size=batch_size, device=device, limit_blocks=limit, seed=seed)


def _beside_control(each: RunEvaluation, controls: Sequence[RunEvaluation]) -> tuple[RunEvaluation, str | None]:
    """A run with its shares of the gain, and the control: of the same seed, evaluated on the same tokens."""
    same = [one for one in controls if (one.conditions, one.seed) == (each.conditions, each.seed)]
    if not same or each.reliance is None:
        return each, None
    return each.model_copy(update={"reliance": each.reliance.of_gain(same[0].loss - each.loss)}), same[0].run


def _page(result: Analyses, everything: Sequence[RunEvaluation]) -> str:
    found = result.runs
    told = [recall_table(found), _frequency_table(found)]
    sections: list[Section] = [
        {"heading": "Is the model any good?", "tables": [loss_table(everything)]},
        {
            "heading": "Does it use its concepts?",
            "text": [
                "The loss with other concepts mixed in than those predicted, minus the untouched loss, on the same "
                "tokens. Concepts of the same token elsewhere differ in context alone."
            ],
            "tables": [*filter(None, [*map(reliance_table, found), _norm_table(found)])],
            "notes": [note for each, name in zip(found, result.controls, strict=True) for note in _notes(each, name)],
        },
        {"heading": "Does it predict its labels, rare ones too?", "tables": [*filter(None, told)]},
        {
            "heading": "Do its two losses agree?",
            "text": [
                "The cosine between the gradients of the next-token loss and of the concept loss, over the weights "
                "that both reach: near 0 they do not touch each other, below 0 they compete."
            ],
            "tables": [*filter(None, [_gradient_table(result)])],
        },
        {
            "heading": "On which tokens does the loss fall?",
            "tables": [slice_table(everything, column) for column in SLICES],
        },
    ]
    return render_page("What the concepts do", [line for each in found for line in _found(each)], sections)


def _notes(each: RunEvaluation, control: str | None) -> list[str]:
    assert each.reliance is not None
    told = [each.reliance.note] if each.reliance.note else []
    if control is not None and all(kind.share_of_gain is None for kind in each.reliance.kinds.values()):
        told.append(f"{each.run} gains nothing over its control, {control}, so there are no shares of a gain.")
    return told


def _found(each: RunEvaluation) -> list[str]:
    assert each.reliance is not None
    content, context = each.reliance.kinds["shuffle"], each.reliance.kinds["shuffle_same_token"]
    interval = reliance_interval(each.reliance, "shuffle_same_token")
    said = (
        f"{each.run}, seed {each.seed}: with the concepts of another text the loss changes by {signed(content.nats)} "
        f"nats per token, with those of the same token elsewhere by {signed(context.nats)}"
        f"{'' if interval == NOTHING else f' ({interval})'}, which is what their context is worth."
    )
    warned = worse_than_bigram(each.run, each.loss, each.references)
    return [said, *([warned] if warned else []), *concept_advice(each)]


def _frequency_table(found: Sequence[RunEvaluation]) -> Table | None:
    rows = []
    for each in found:
        for group in () if each.concepts is None else each.concepts.recall_by_frequency:
            span = f"{group.lowest:,}" if group.lowest == group.highest else f"{group.lowest:,} to {group.highest:,}"
            recall = NOTHING if group.recall is None else percent(group.recall)
            rows.append((f"{each.run}, seed {each.seed}", span, f"{group.concepts:,}", f"{group.labels:,}", recall))
    headings = ("run", "labels of the concept, in a sample of training", "concepts", "labels, evaluated", "recall@32")
    caption = "Recall by how often a concept is a label"
    return Table(headings, rows, caption=caption, text_columns=2) if rows else None


def _gradient_table(result: Analyses) -> Table | None:
    rows = []
    for run, gradients in zip(result.runs, result.gradients, strict=True):
        for one in gradients:
            told = f"{run.run}, seed {run.seed}", one.group, f"{one.parameters:,}", signed(one.cosine)
            rows.append((*told, f"{signed(one.low)} … {signed(one.high)}", signed(one.of_all), f"{one.size:.3f}"))
    headings = (
        *("run", "weights", "parameters", "cosine, mean over batches", "95% interval, over batches"),
        *("cosine, of all batches together", "λ · concept loss's gradient, ÷ next-token loss's, in length"),
    )
    return Table(headings, rows, caption="Gradients of the two losses", text_columns=2) if rows else None


def _norm_table(found: Sequence[RunEvaluation]) -> Table | None:
    norms = [(each, each.concepts.compression) for each in found if each.concepts and each.concepts.compression]
    rows = [
        (f"{each.run}, seed {each.seed}", percent(one.unused), *(f"{n:.3f}" for n in (one.low, one.median, one.high)))
        for each, one in norms
    ]
    headings = ("run", "unused, below 0.01; paper: 5.8%", "5%, are shorter", "median", "95%, are shorter")
    caption = "Lengths of the concepts' compression vectors; one near 0 is a concept that the model ignores"
    return Table(headings, rows, caption=caption) if rows else None
