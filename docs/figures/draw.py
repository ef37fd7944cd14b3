"""Draws the figures of `docs/concepts.md` from what was measured; run it after either source has changed.

    python docs/figures/draw.py

Sources: `example.json` (written by `measure.py`) and the curves and evaluations in `results/corpus/raw`.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from cocomix.evaluation.report import LIGHT

HERE = Path(__file__).parent
RAW = HERE.parents[1] / "results" / "corpus" / "raw"
RUNS = {"ntp": "NTP, matched", "cocomix": "CoCoMix, the paper's form", "residual": "CoCoMix, residual form"}
LABEL, OTHER = LIGHT.series[1], LIGHT.series[0]
COLOURS = dict(zip(RUNS, (LIGHT.ink, LIGHT.series[0], LIGHT.series[1]), strict=True))
STYLE = {"svg.hashsalt": "cocomix", "font.size": 9, "text.color": LIGHT.ink, "axes.edgecolor": LIGHT.ink}


def main(output: Path = HERE) -> None:
    """Draw all figures into a folder."""
    example = json.loads((HERE / "example.json").read_text(encoding="utf-8"))
    with mpl.rc_context({**STYLE, "axes.labelcolor": LIGHT.ink, "xtick.color": LIGHT.ink, "ytick.color": LIGHT.ink}):
        for name, figure in (
            ("attribution", attribution(example)),
            ("prediction", prediction(example)),
            ("learning", learning()),
            ("reliance", reliance()),
        ):
            FigureCanvasSVG(figure)
            figure.savefig(output / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.15)


def attribution(example: dict[str, Any]) -> Figure:
    """Activation, slope and their product for every latent that is active at one token."""
    token = example["tokens"][example["position"]]
    rows = sorted(example["active"], key=lambda each: each["activation"])
    names = [f"{each['concept']}   {example['descriptions'][str(each['concept'])]}" for each in rows]
    colours = [LABEL if each["concept"] in token["labels"] else OTHER for each in rows]
    figure = Figure(figsize=(8.4, 4.3), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    titles = ("activation $c_i$", "slope of the loss along it", "attribution = product (nats)")
    for axes, field, title in zip(panels, ("activation", "slope", "attribution"), titles, strict=True):
        axes.barh(range(len(rows)), [each[field] for each in rows], color=colours, height=0.7)
        axes.axvline(0, color=LIGHT.ink, linewidth=0.8)
        axes.set_title(title, fontsize=10)
        _bare(axes)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    panels[0].set_yticks(range(len(rows)), names)
    return figure


def prediction(example: dict[str, Any]) -> Figure:
    """Which concepts are labels of each token of a passage, and which of these the student predicts."""
    tokens = example["tokens"]
    count: dict[int, int] = {}
    for token in tokens:
        for concept in token["labels"]:
            count[concept] = count.get(concept, 0) + 1
    concepts = sorted((each for each in count if count[each] > 1), key=lambda each: (count[each], -each))
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for column, token in enumerate(tokens):
        for row, concept in enumerate(concepts):
            if concept in token["labels"]:
                axes.scatter(column, row, s=150, marker="s", color=LABEL)
            if concept in token["predicted"]:
                axes.scatter(column, row, s=22, color="white" if concept in token["labels"] else OTHER, zorder=3)
    axes.set_yticks(
        range(len(concepts)), [f"{each}   {example['descriptions'][str(each)]}" for each in concepts], fontsize=8
    )
    axes.set_xticks(range(len(tokens)), [token["text"] for token in tokens], rotation=45, ha="left")
    axes.xaxis.tick_top()
    axes.set_xlim(-0.6, len(tokens) - 0.4)
    axes.set_ylim(-0.7, len(concepts) - 0.3)
    axes.grid(color=LIGHT.faint, linewidth=0.5)
    _bare(axes)
    axes.tick_params(length=0)
    return figure


def learning() -> Figure:
    """Validation loss and concept recall over training tokens."""
    figure = Figure(figsize=(8.4, 3.1), layout="constrained")
    loss, recall = figure.subplots(1, 2)
    for run, name in RUNS.items():
        rows = [json.loads(line) for line in (RAW / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        points = [row for row in rows if "eval_loss" in row]
        tokens = [row["tokens"] / 1e6 for row in points]
        loss.plot(tokens, [row["eval_loss"] for row in points], color=COLOURS[run], label=name)
        if "eval_concept_recall" in points[0]:
            shares = [100 * row["eval_concept_recall"] for row in points]
            recall.plot(tokens, shares, color=COLOURS[run], label=name)
    loss.set_title("validation loss (nats per token)", fontsize=10)
    recall.set_title("labels among the 32 predicted concepts (%)", fontsize=10)
    loss.legend(frameon=False, labelcolor=LIGHT.ink)
    for axes in (loss, recall):
        axes.set_xlabel("training tokens (millions)")
        axes.grid(color=LIGHT.faint, linewidth=0.5)
        _bare(axes)
    return figure


def reliance() -> Figure:
    """How much the loss changes when a finished model's concepts are replaced."""
    kinds = {"zero": "set to zero", "shuffle": "another text's", "oracle": "the true labels"}
    figure = Figure(figsize=(8.4, 2.5), layout="constrained")
    axes = figure.subplots()
    for offset, run in enumerate(("residual", "cocomix")):
        values = json.loads((RAW / f"{run}.evaluation.json").read_text(encoding="utf-8"))["concept_reliance"]["deltas"]
        places = [place + 0.36 * offset for place in range(len(kinds))]
        bars = axes.barh(
            places, [values[kind] for kind in reversed(kinds)], height=0.32, color=COLOURS[run], label=RUNS[run]
        )
        axes.bar_label(bars, [f"{values[kind]:+.3f}" for kind in reversed(kinds)], padding=3, color=LIGHT.ink)
    axes.set_yticks([place + 0.18 for place in range(len(kinds))], list(reversed(kinds.values())))
    axes.set_xlabel("change of the validation loss (nats per token)")
    axes.set_xlim(0, 3.9)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], frameon=False, loc="lower right", labelcolor=LIGHT.ink)
    _bare(axes)
    return figure


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    main()
