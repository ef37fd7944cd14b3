"""`cocomix analyse`: what the concepts of runs are and do, as one page and one JSON file.

Beside what evaluations hold: do the concept loss and the next-token loss pull the same way? The cosines of their
gradients on held-out text, over the weights that both reach: embeddings, the blocks below `insert_layer` and the
predictor. Near 0 the losses do not touch each other, below 0 they compete for the weights. The gradient of a few blocks
is noisy, which draws the mean of the batches' cosines to 0; `of_all` is of the gradients of all blocks together.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cocomix.artifacts import whole_folder, write_json, write_text
from cocomix.evaluation import run_evaluation as tables
from cocomix.evaluation.inference import batches, require_measurable
from cocomix.evaluation.loss_slices import SLICES
from cocomix.evaluation.measure_run import evaluate_run
from cocomix.evaluation.pages import NOTHING, Section, Table, percent, render_page, signed
from cocomix.evaluation.run_evaluation import RunEvaluation
from cocomix.evaluation.run_inputs import RunBlocks, open_run_data, open_run_labels, run_blocks
from cocomix.evaluation.statistics import document_interval
from cocomix.model import CoCoMixForCausalLM, predicts_concepts
from cocomix.model.backbone import backbone_of
from cocomix.runtime.console import progress
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.runtime.section import Record
from cocomix.training import Run

logger = logging.getLogger(__name__)

_GRADIENT_BATCHES = 32


class GradientCosine(Record):
    """Of one group of weights."""

    group: str  # `embeddings`, `block N` (from 0), `predictor`, or `all` of them
    parameters: int
    cosine: float  # of the two gradients of a batch, averaged over batches
    low: float  # lower end of its 95% interval over batches
    high: float  # upper end
    of_all: float  # cosine of the two gradients of all batches together
    size: float  # length of the concept loss's gradient, times λ, over that of the next-token loss's; of all batches


class Analyses(Record):
    """What `analyses.json` holds."""

    format_version: Literal[3] = 3
    runs: tuple[RunEvaluation, ...]  # evaluations, with the shares of the gain over the control in their reliance
    # run trained on next tokens alone that the gain of each is counted from, or `None`
    controls: tuple[str | None, ...]
    # of each run, cosines between the gradients of its two losses; empty without stored labels
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
    """Evaluate runs of different names or seeds and write `analyses.html` and `analyses.json`.

    Those trained on next tokens alone are the controls of the others of their seed; others that mix no concepts in are
    left out with a warning. Refused where no run mixes any in, or data and labels do not belong to a run.
    """
    names = [(run.manifest.name, run.manifest.seed) for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise CoCoMixError(f"two runs have the name and seed {twice.pop()}; name each run once.")
    if all(run.manifest.mixing in (None, "none") for run in runs):
        raise CoCoMixError("none of the runs mixes concepts in, so there is nothing to analyse; name one that does.")
    with whole_folder(output) as folder:
        shared: dict[str, Any] = {"device": device, "batch_size": batch_size, "limit_blocks": limit_blocks}
        plain = sorted(
            (run for run in runs if run.manifest.objective == "ntp"), key=lambda run: not run.manifest.next_tokens_alone
        )
        controls = [evaluate_run(run, **shared) for run in plain]
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
    data, model, labels = open_run_data(run), run.model(), None
    if predicts_concepts(model):
        labels = open_run_labels(run, data, model.config.num_concepts, without="cosines of gradients")
    if labels is None:
        return ()
    blocks = run_blocks(run, data, labels, limit_blocks=limit_blocks)
    batch_size = min(batch_size, max(len(blocks.rows) // 2, 1))  # an interval needs two batches
    return gradient_cosines(model, blocks, batch_size=batch_size, device=device, seed=seed)


def _beside_control(each: RunEvaluation, controls: Sequence[RunEvaluation]) -> tuple[RunEvaluation, str | None]:
    """A run with its shares of the gain, and the control: of the same seed, evaluated on the same tokens."""
    same = [one for one in controls if (one.conditions, one.seed) == (each.conditions, each.seed)]
    if not same or each.reliance is None:
        return each, None
    return each.model_copy(update={"reliance": each.reliance.of_gain(same[0].loss - each.loss)}), same[0].run


def _page(result: Analyses, everything: Sequence[RunEvaluation]) -> str:
    found = result.runs
    sections: list[Section] = [
        {"heading": "Is the model any good?", "tables": [tables.loss_table(everything)]},
        {
            "heading": "Does it use its concepts?",
            "text": [
                "The loss with other concepts mixed in than those predicted, minus the untouched loss, on the same "
                "tokens. Concepts of the same token elsewhere differ in context alone."
            ],
            "tables": [*filter(None, [*map(tables.reliance_table, found), _norm_table(found)])],
            "notes": [note for each, name in zip(found, result.controls, strict=True) for note in _notes(each, name)],
        },
        {
            "heading": "Does it predict its labels, rare ones too?",
            "tables": [*filter(None, [tables.recall_table(found), _frequency_table(found)])],
        },
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
            "tables": [tables.slice_table(everything, column) for column in SLICES],
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
    interval = tables.reliance_interval(each.reliance, "shuffle_same_token")
    said = (
        f"{each.run}, seed {each.seed}: with the concepts of another text the loss changes by {signed(content.nats)} "
        f"nats per token, with those of the same token elsewhere by {signed(context.nats)}"
        f"{'' if interval == NOTHING else f' ({interval})'}, which is what their context is worth."
    )
    warned = tables.worse_than_bigram(each.run, each.loss, each.references)
    return [said, *filter(None, [warned]), *tables.concept_advice(each)]


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


def gradient_cosines(
    model: CoCoMixForCausalLM,  # predicts concepts; moved to `device`, its weights are left as they are
    blocks: RunBlocks,
    *,
    batch_size: int,  # blocks of a batch; the more, the less noise in its cosine
    device: torch.device,
    seed: int = 0,
) -> tuple[GradientCosine, ...]:
    """Compare the gradients of both losses on up to 32 batches, two forward and two backward passes each, in float32.

    Refused where blocks, labels and model do not belong together, or fewer than two batches have labels.
    """
    require_measurable(model, blocks.rows, blocks.labels, batch_size)
    count = min(len(blocks.rows), _GRADIENT_BATCHES * batch_size)
    model.to(device).eval()

    def losses() -> Iterable[tuple[Tensor, Tensor]]:
        with progress("comparing gradients", count, "blocks") as advance:
            for batch in batches(model, blocks.rows, blocks.labels, count=count, batch_size=batch_size, device=device):
                if batch.concept_labels is not None and bool((batch.concept_labels != IGNORE).any()):
                    asked = batch.inputs | {"output_logits": False}
                    both = (model(**asked, labels=batch.targets), model(**asked, concept_labels=batch.concept_labels))
                    yield both[0].ntp_loss, both[1].concept_loss
                advance(len(batch.input_ids))

    return compare_gradients(losses(), _reached_by_both(model), weight=model.config.concept_loss_weight, seed=seed)


def compare_gradients(
    losses: Iterable[tuple[Tensor, Tensor]],
    groups: Mapping[str, Sequence[nn.Parameter]],
    *,
    weight: float = 1.0,
    seed: int = 0,
) -> tuple[GradientCosine, ...]:
    """The cosines of at least two batches' gradients of two losses; without groups that one of them does not reach.

    Args:
        groups: weights by name; no weight is in two.
        weight: of the second loss, for `size`.
    """
    weights = [each for group in groups.values() for each in group]
    whole = [[torch.zeros_like(each, dtype=torch.float64) for each in weights] for _ in range(2)]
    products = []  # of each batch: of each weight a·b, a·a, b·b
    for both in losses:
        found = [torch.autograd.grad(loss, weights, materialize_grads=True, allow_unused=True) for loss in both]
        for total, gradients in zip(whole, found, strict=True):
            for each, gradient in zip(total, gradients, strict=True):
                each += gradient
        products.append(_products(*found))
    if len(products) < 2:
        raise CoCoMixError(
            f"gradients were compared on {len(products)} batches with labels; use at least two, by more blocks or a "
            "smaller batch size."
        )
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups.values()])
    measured = []
    for name, chosen in [*((name, owner == index) for index, name in enumerate(groups)), ("all", owner >= 0)]:
        each, together = np.stack(products)[:, chosen].sum(1), _products(*whole)[chosen].sum(0)
        if not together[1:].all() or not each[:, 1:].all():
            continue
        cosines = each[:, 0] / np.sqrt(each[:, 1] * each[:, 2])
        low, high = document_interval(cosines, np.arange(len(cosines)), seed=seed)
        measured.append(
            GradientCosine(
                group=name,
                parameters=sum(one.numel() for one, inside in zip(weights, chosen, strict=True) if inside),
                cosine=float(cosines.mean()),
                low=low,
                high=high,
                of_all=float(together[0] / np.sqrt(together[1] * together[2])),
                size=float(weight * np.sqrt(together[2] / together[1])),
            )
        )
    return tuple(measured)


def _products(first: Sequence[Tensor], second: Sequence[Tensor]) -> NDArray[np.float64]:
    """a·b, a·a and b·b of each weight's two gradients. [weights, 3], float64"""
    pairs = [(a.double().flatten(), b.double().flatten()) for a, b in zip(first, second, strict=True)]
    products: NDArray[np.float64] = torch.stack([torch.stack((a @ b, a @ a, b @ b)) for a, b in pairs]).cpu().numpy()
    return products


def _reached_by_both(model: CoCoMixForCausalLM) -> dict[str, list[nn.Parameter]]:
    groups: dict[str, list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        part, *rest = name.split(".")
        if part == "lower":
            in_block = rest[0] == backbone_of(model.config.backbone).blocks
            groups.setdefault(f"block {rest[1]}" if in_block else "embeddings", []).append(weight)
        elif part == "predictor":
            groups.setdefault(part, []).append(weight)
    return groups
