"""`cocomix analyse`: what the concepts of runs are and do, as one page and one JSON file."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.artifacts import whole_folder, write_json, write_text
from cocomix.evaluation.evaluation_tables import (
    concept_advice,
    loss_table,
    recall_table,
    reliance_table,
    slice_table,
    worse_than_bigram,
)
from cocomix.evaluation.figures import DARK, LIGHT, Theme, dress
from cocomix.evaluation.formatting import NOTHING, percent, signed
from cocomix.evaluation.measure_run import evaluate_run
from cocomix.evaluation.pages import Figure, Section, Table, render_page
from cocomix.evaluation.reliance import no_reliance_reason
from cocomix.evaluation.run_evaluation import RunEvaluation
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.errors import CoCoMixError, require_extra
from cocomix.training import Run

__all__ = ["Analyses", "CompressionNorms", "RunAnalysis", "analyse_runs"]

logger = logging.getLogger(__name__)

UNUSED_NORM = 1e-2
"""Compression vectors shorter than this count as unused (paper, Fig. 6c: 5.8% of them)."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CompressionNorms(_Part):
    """Lengths of the compression vectors ‖W_comp[c]‖₂ over the concepts c.

    Attributes:
        unused: share below `UNUSED_NORM`.
        low: 5% of them are shorter.
        median: half of them are.
        high: 95% are.
    """

    unused: float
    low: float
    median: float
    high: float


class RunAnalysis(_Part):
    """One run.

    Attributes:
        evaluation: as `cocomix eval` measures it, reliance with its shares of the gain over the control.
        control: the run trained on next tokens alone whose loss the gain is counted from, or `None`.
        compression: lengths of its compression vectors.
    """

    evaluation: RunEvaluation
    control: str | None
    compression: CompressionNorms


class Analyses(_Part):
    """What `analyses.json` holds."""

    format_version: Literal[2] = 2
    runs: tuple[RunAnalysis, ...]


def analyse_runs(
    runs: Sequence[Run],
    output: Path,
    *,
    device: torch.device,
    batch_size: int = 8,
    limit_blocks: int | None = None,
    seed: int = 0,
) -> Analyses:
    """Evaluate runs and write `analyses.html`, `analyses.json` and a histogram per run that mixes concepts in.

    Args:
        runs: of different names or seeds. Those trained on next tokens alone are the controls of the others of their
            seed; others that mix no concepts in are left out with a warning.
        output: the folder to create.
        device: where to compute.
        batch_size: blocks per forward pass.
        limit_blocks: validation blocks to use.
        seed: of the shuffles in concept reliance.

    Raises:
        CoCoMixError: no run mixes concepts in, two have one name and seed, or data and labels do not belong to a run.
    """
    require_extra("report", "matplotlib", "jinja2", purpose="a page of analyses")
    names = [(run.manifest.name, run.manifest.seed) for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise CoCoMixError(f"two runs have the name and seed {twice.pop()}; name each run once.")
    with whole_folder(output) as folder:
        models = {run: run.model() for run in runs}
        mixing = {run: model for run, model in models.items() if no_reliance_reason(model) is None}
        if not mixing:
            raise CoCoMixError(
                "none of the runs mixes concepts in, so there is nothing to analyse; name a CoCoMix run."
            )
        controls = [run for run in runs if run.manifest.objective == "ntp"]
        for run in runs:
            if run not in mixing and run not in controls:
                logger.warning(f"{run.manifest.name} is left out: {no_reliance_reason(models[run])}")
        found = {
            run: evaluate_run(run, device=device, batch_size=batch_size, limit_blocks=limit_blocks, seed=seed)
            for run in (*mixing, *controls)
        }
        norms = [_norms(model) for model in mixing.values()]
        analysed = [
            _analysis(found[run], [found[one] for one in controls], lengths)
            for run, lengths in zip(mixing, norms, strict=True)
        ]
        result = Analyses(runs=tuple(analysed))
        write_json(folder / "analyses.json", result.model_dump(mode="json"))
        figures = [_figure(each.evaluation.run, lengths) for each, lengths in zip(analysed, norms, strict=True)]
        for number, figure in enumerate(figures):
            (folder / f"compression_{number}.png").write_bytes(figure.light)
        write_text(folder / "analyses.html", _page(analysed, list(found.values()), figures))
    logger.info(f"analyses: {output / 'analyses.html'}")
    return result


def _analysis(evaluation: RunEvaluation, controls: Sequence[RunEvaluation], norms: Tensor) -> RunAnalysis:
    """A run beside the control of the same seed that was evaluated on the same tokens, if there is one."""
    same = [each for each in controls if (each.conditions, each.seed) == (evaluation.conditions, evaluation.seed)]
    if same and evaluation.reliance is not None:
        reliance = evaluation.reliance.of_gain(same[0].loss - evaluation.loss)
        evaluation = evaluation.model_copy(update={"reliance": reliance})
    low, median, high = norms.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    unused = float((norms < UNUSED_NORM).float().mean())
    compression = CompressionNorms(unused=unused, low=low, median=median, high=high)
    return RunAnalysis(evaluation=evaluation, control=same[0].run if same else None, compression=compression)


def _norms(model: PreTrainedModel) -> Tensor:
    """Length of every concept's compression vector. [n_concepts]"""
    assert isinstance(model, CoCoMixForCausalLM)
    norms: Tensor = model.compression_weight.detach().float().cpu().norm(dim=-1)
    return norms


def _page(analysed: Sequence[RunAnalysis], everything: Sequence[RunEvaluation], figures: Sequence[Figure]) -> str:
    evaluations = [each.evaluation for each in analysed]
    recall = recall_table(evaluations)
    sections: list[Section] = [
        {"heading": "Is the model any good?", "tables": [loss_table(everything)]},
        {
            "heading": "Does it use its concepts?",
            "text": [
                "The loss with other concepts mixed in than those predicted, minus the untouched loss, on the same "
                "tokens. Concepts of the same token elsewhere differ in context alone."
            ],
            "tables": [table for each in evaluations if (table := reliance_table(each)) is not None],
            "notes": [each.reliance.note for each in evaluations if each.reliance and each.reliance.note],
        },
    ]
    if recall is not None:
        tables = [recall, _frequency_table(evaluations)]
        sections.append({"heading": "Does it predict its labels, rare ones too?", "tables": tables})
    sections += [
        {"heading": "Which concepts are mixed in at all?", "tables": [_norm_table(analysed)], "figures": figures},
        {
            "heading": "On which tokens does the loss fall?",
            "tables": [slice_table(everything, column) for column in ("token_class", "seen", "frequency", "position")],
        },
    ]
    return render_page("What the concepts do", [line for each in evaluations for line in _found(each)], sections)


def _found(each: RunEvaluation) -> list[str]:
    """A run in a sentence or two, and what is wrong with it."""
    assert each.reliance is not None or each.reliance_note is not None
    if each.reliance is None:
        return [f"{each.run}: {each.reliance_note}"]
    content, context = each.reliance.kinds["shuffle"], each.reliance.kinds["shuffle_same_token"]
    said = (
        f"{each.run}, seed {each.seed}: {signed(content.nats)} nats per token with the concepts of another text, "
        f"{signed(context.nats)} ({signed(context.low)} … {signed(context.high)}) with those of the same token "
        "elsewhere, which is what their context is worth."
    )
    return [said, *filter(None, (worse_than_bigram(each.run, each.loss, each.references), concept_advice(each)))]


def _frequency_table(evaluations: Sequence[RunEvaluation]) -> Table:
    rows = []
    for each in evaluations:
        for group in () if each.concepts is None else each.concepts.recall_by_frequency:
            span = f"{group.lowest:,}" if group.lowest == group.highest else f"{group.lowest:,} to {group.highest:,}"
            recall = NOTHING if group.recall is None else percent(group.recall)
            rows.append((f"{each.run}, seed {each.seed}", span, f"{group.concepts:,}", f"{group.labels:,}", recall))
    headings = ("run", "labels of the concept, in a sample of training", "concepts", "labels, evaluated", "recall@32")
    return Table(headings, rows, caption="Recall by how often a concept is a label", text_columns=2)


def _norm_table(analysed: Sequence[RunAnalysis]) -> Table:
    rows = [
        (
            f"{each.evaluation.run}, seed {each.evaluation.seed}",
            percent(each.compression.unused),
            *(f"{length:.3f}" for length in (each.compression.low, each.compression.median, each.compression.high)),
        )
        for each in analysed
    ]
    caption = "Lengths of the vectors that are mixed in; one near 0 is a concept that the model has learnt to ignore"
    headings = ("run", f"unused, below {UNUSED_NORM:g}; paper: 5.8%", "5%, are shorter", "median", "95%, are shorter")
    return Table(headings, rows, caption=caption)


def _figure(name: str, norms: Tensor) -> Figure:
    alt = f"Histogram of the lengths of {name}'s compression vectors"
    return Figure(_histogram(name, norms, LIGHT), _histogram(name, norms, DARK), alt)


def _histogram(name: str, norms: Tensor, theme: Theme) -> bytes:
    """Lengths on a logarithmic axis; the line marks `UNUSED_NORM`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.0, 3.4), dpi=160, facecolor=theme.background)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.19, 0.88, 0.66))
    shown = norms.clamp(min=UNUSED_NORM / 10)
    edges = torch.logspace(
        float(shown.min().log10()) - 0.05, max(float(shown.max().log10()), -1.9) + 0.05, 61, dtype=torch.float64
    )
    axes.hist(shown.double().numpy(), bins=edges.tolist(), color=theme.series[0])
    axes.axvline(UNUSED_NORM, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 2)))
    dress(axes, theme)
    axes.set_xscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_title(name, loc="left", fontsize=13, fontweight="bold", color=theme.ink, pad=10, parse_math=False)
    axes.set_xlabel("length of the compression vector (dashed: 0.01)", fontsize=11, color=theme.ink)
    axes.set_ylabel("concepts", fontsize=11, color=theme.ink)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=theme.background, metadata={"Software": None})
    return stream.getvalue()
