"""Two figures of the finished sweep: python results/reproduction/figures.py SWEEP_FOLDER OUTPUT_FOLDER.

`arms.png`: every arm's final loss minus the baseline's of the same seed, a dot for each, the 95% interval where there
are three.
`curves.png`: validation loss of the main arms against tokens and FLOPs (teacher counted).
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

EDGE = 0.3  # nats; arms beyond are named with their number
MAIN = ("ntp", "ntp_same_width", "kd", "pause", "cocomix", "residual", "residual_mixing_only")


def arms(table: dict, path: Path) -> None:
    """Horizontal dots: difference from the baseline's mean loss."""
    rows = sorted(table["rows"], key=lambda row: row["difference"], reverse=True)
    baseline = next(row for row in rows if row["name"] == table["baseline"])
    base = dict(zip(baseline["seeds"], baseline["losses"], strict=True))
    figure, axes = plt.subplots(figsize=(8, 0.27 * len(rows) + 1.2), layout="constrained")
    for y, row in enumerate(rows):
        colour = "black" if row["name"] == table["baseline"] else "C0" if row["difference"] < 0 else "C3"
        if row["difference"] > EDGE:
            axes.annotate(
                f"{row['difference']:+.2f} \u2192", (EDGE, y), ha="right", va="center", color=colour, fontsize=8
            )
            continue
        differences = [loss - base[seed] for seed, loss in zip(row["seeds"], row["losses"], strict=True)]
        axes.plot(differences, [y] * len(differences), "o", color=colour, alpha=0.5, ms=5)
        axes.plot(row["difference"], y, "|", color=colour, ms=13, mew=2)
        if (bounds := row["difference_interval"]) is not None:
            axes.plot([bounds["low"], bounds["high"]], [y, y], "-", color=colour, lw=1.5)
    axes.set_xlim(right=EDGE)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_yticks(range(len(rows)), [f"{row['name']} ({len(row['losses'])})" for row in rows], fontsize=8)
    axes.axvline(0, color="grey", lw=0.8)
    axes.set_xlabel(
        f"validation loss minus that of {table['baseline']} with the same seed, nats per token (left is better)"
    )
    axes.set_title("Every arm; a dot per seed, bar: mean, line: 95% interval over seeds", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)


def curves(table: dict, path: Path) -> None:
    """Loss of the main arms (mean over seeds) against what it cost."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    rows = {row["name"]: row for row in table["rows"]}
    for name in MAIN:
        if name not in rows:
            continue
        points = table["curves"][name]
        with_teacher = rows[name]["flops_with_teacher"] / rows[name]["training_flops"]
        losses = [point["loss"] for point in points]
        for axes, values in zip(
            panels,
            ([p["tokens"] / 1e6 for p in points], [p["flops"] * with_teacher / 1e12 for p in points]),
            strict=True,
        ):
            axes.plot(values, losses, label=name, lw=1.5)
    for axes, label in zip(panels, ("million training tokens", "training TFLOP, the teacher's counted"), strict=True):
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation loss, nats per token")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sweep, output = Path(sys.argv[1]), Path(sys.argv[2])
    result = json.loads((sweep / "report" / "table.json").read_text(encoding="utf-8"))
    arms(result, output / "arms.png")
    curves(result, output / "curves.png")
