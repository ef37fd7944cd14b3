"""`cocomix analyse`: reliance, compression weights, recall by frequency and label statistics of runs, as one page."""

import io
import logging
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cocomix.artifacts import whole_folder, write_json, write_text
from cocomix.data import TRAIN, VALIDATION
from cocomix.evaluation.analyses import (
    UNUSED_NORM,
    CompressionNorms,
    FrequencyRecall,
    LabelUse,
    comparable,
    compression_norms,
    distinct_stores,
    label_counts,
    label_overlap,
    label_use,
    recall_by_frequency,
)
from cocomix.evaluation.figures import DARK, LIGHT, Theme, dress
from cocomix.evaluation.formatting import NOTHING, percent, signed
from cocomix.evaluation.page import Block, Image, Page, Paragraph, Section, Table
from cocomix.evaluation.reliance import RunReliance, concept_reliance, no_reliance_reason
from cocomix.evaluation.report import reliance_section
from cocomix.evaluation.run_inputs import open_run_data, open_run_labels
from cocomix.evaluation.teacher_flops import label_words
from cocomix.labelling import Labels
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.errors import CoCoMixError, require_extra
from cocomix.training import Run

__all__ = ["analyse_runs"]

logger = logging.getLogger(__name__)

_LABEL_BLOCKS = 20_000
"""Blocks of the training split that label statistics read at most."""


def analyse_runs(
    runs: Sequence[Run],
    output: Path,
    *,
    device: torch.device,
    batch_size: int = 8,
    limit_blocks: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Analyse the concepts of runs and write `analyses.html`, `analyses.json` and a histogram per run.

    Args:
        runs: of different names or seeds; those that mix no concepts in are left out with a warning.
        output: the folder to create.
        device: where to compute.
        batch_size: blocks per forward pass, at least 2.
        limit_blocks: validation blocks to use.
        seed: of the shuffle in concept reliance.

    Returns:
        What `analyses.json` holds.

    Raises:
        CoCoMixError: no run mixes concepts in, or data and labels do not belong to a run.
    """
    require_extra("report", "matplotlib", "scipy", purpose="a report")
    reliances: dict[str, RunReliance] = {}
    norms: dict[str, CompressionNorms] = {}
    recalls: dict[str, tuple[FrequencyRecall, ...]] = {}
    stores: list[Labels] = []
    for run in runs:
        name = f"{run.manifest.name}, seed {run.manifest.seed}"
        if name in norms:
            raise CoCoMixError(f"{run.path} is a second run of the name {name}; name each run once.")
        model = run.model()
        reason = no_reliance_reason(model)
        if reason is not None or not isinstance(model, CoCoMixForCausalLM):
            logger.warning(f"{name} is left out: {reason}")
            continue
        norms[name] = compression_norms(model)
        data = open_run_data(run)
        blocks = data.split(VALIDATION)
        found = open_run_labels(run, data, model.config.num_concepts, without="recall by frequency and the oracle")
        store = None if found is None or len(found.parts) > 1 else found.first
        shared: dict[str, Any] = {"device": device, "limit_blocks": limit_blocks}
        labels = None if store is None else store.split(VALIDATION)
        reliances[name] = concept_reliance(model, blocks, labels=labels, batch_size=batch_size, seed=seed, **shared)
        if store is not None and labels is not None:
            stores.append(store)
            counts = label_counts(store.split(TRAIN), store.num_concepts)
            recalls[name] = recall_by_frequency(model, blocks, labels, counts, batch_size=batch_size, **shared)
    if not norms:
        raise CoCoMixError("none of the runs mixes concepts in, so there is nothing to analyse; name a CoCoMix run.")
    labels_of = {_store_name(store): store for store in distinct_stores(stores)}
    uses = {
        name: label_use(label_counts(store.split(TRAIN), store.num_concepts, _LABEL_BLOCKS))
        for name, store in labels_of.items()
    }
    overlaps = _overlaps(labels_of)
    values = {
        "format_version": 1,
        "reliance": {name: each.model_dump() for name, each in reliances.items()},
        "unused_compression_vectors": {name: each.unused for name, each in norms.items()},
        "recall_by_frequency": {name: [asdict(group) for group in groups] for name, groups in recalls.items()},
        "labels": {name: asdict(each) for name, each in uses.items()},
        "label_overlap": [{"of": one, "in": other, "share": share} for one, other, share in overlaps],
    }
    with whole_folder(output) as folder:
        write_json(folder / "analyses.json", values)
        images: list[Block] = []
        for name, each in norms.items():
            light = _histogram(name, each.norms, LIGHT)
            (folder / f"compression_{len(images)}.png").write_bytes(light)
            alt = f"Histogram of the lengths of {name}'s compression vectors"
            images.append(Image(light, alt=alt, dark_png=_histogram(name, each.norms, DARK)))
        sections = [reliance_section(reliances), _norm_section(norms, images)]
        if recalls:
            sections += [_recall_section(recalls), _label_section(uses, overlaps)]
        page = Page(
            title="What the concepts do",
            summary=[
                f"{name}: {signed(each.kinds['zero'].nats)} nats per token without its concepts, "
                f"{signed(each.kinds['shuffle'].nats)} with those of another text."
                for name, each in reliances.items()
            ],
            sections=sections,
            footer=f"Made by cocomix {version('cocomix')}.",
        )
        write_text(folder / "analyses.html", page.html())
    logger.info(f"analyses: {output / 'analyses.html'}")
    return values


def _store_name(store: Labels) -> str:
    """How its labels were chosen, and which they are where two were chosen alike."""
    chosen = label_words(store.manifest) or "attribution"
    return f"{chosen}, k {store.manifest.k} ({store.manifest.fingerprint[:8]})"


def _overlaps(stores: dict[str, Labels]) -> list[tuple[str, str, float]]:
    """Of every two sets of labels of the same data and dictionary: the share of the one's labels in the other."""
    found = []
    for one, first in stores.items():
        for other, second in stores.items():
            if one != other and comparable(first, second):
                found.append((one, other, label_overlap(first, second, _LABEL_BLOCKS)))
    return found


def _norm_section(norms: dict[str, CompressionNorms], images: Sequence[Block]) -> Section:
    rows = []
    for name, each in norms.items():
        low, middle, high = each.norms.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
        rows.append((name, percent(each.unused), f"{low:.3f}", f"{middle:.3f}", f"{high:.3f}"))
    heading = ("run", f"below {UNUSED_NORM:g}", "5%", "median", "95%")
    text = (
        "Every concept has a vector that is mixed in when it is predicted. A vector near zero is a concept that the "
        "model has learnt to ignore. The paper reports 5.8% below 0.01."
    )
    return Section("Which concepts are mixed in at all?", (Paragraph(text), Table(heading, rows), *images))


def _recall_section(recalls: dict[str, tuple[FrequencyRecall, ...]]) -> Section:
    rows = []
    for name, groups in recalls.items():
        for group in groups:
            span = f"{group.lowest:,}" if group.lowest == group.highest else f"{group.lowest:,} to {group.highest:,}"
            recall = NOTHING if group.recall is None else percent(group.recall)
            rows.append((name, span, f"{group.concepts:,}", f"{group.labels:,}", recall))
    text = (
        "Share of the validation labels that are among the model's predictions, for concepts with so many labels in "
        "the training split."
    )
    heading = ("run", "training labels", "concepts", "validation labels", "recall")
    return Section("Are rare concepts predicted too?", (Paragraph(text), Table(heading, rows)))


def _label_section(uses: dict[str, LabelUse], overlaps: Sequence[tuple[str, str, float]]) -> Section:
    rows = [
        (
            name,
            f"{use.labels:,}",
            f"{use.entropy:.2f}",
            f"{use.effective_concepts:,.0f} of {use.num_concepts:,}",
            percent(use.never_used),
        )
        for name, use in uses.items()
    ]
    heading = ("labels", "counted", "entropy (nats)", "equally frequent concepts", "never used")
    blocks: list[Block] = [
        Paragraph(f"Over the first {_LABEL_BLOCKS:,} training blocks at most."),
        Table(heading, rows),
    ]
    if overlaps:
        shares = [(one, other, percent(share)) for one, other, share in overlaps]
        caption = "Share of one selection's labels that another chose at the same position"
        blocks.append(Table(("labels", "found in", "share"), shares, text_columns=2, caption=caption))
    return Section("What do the labels look like?", blocks)


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
