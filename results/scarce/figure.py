"""Loss against tokens, FLOPs and seconds, with n-gram lines: python results/scarce/figure.py [REPORT_FOLDER] [FILE.png]

From `table.json`, which `cocomix sweep` and `cocomix compare` write. Lines are means over seeds, bands their range.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
PANELS = (
    ("tokens", 1e6, "training tokens, million"),
    ("flops", 1e12, "TFLOP, a tenth of the teacher's counted"),
    ("seconds", 60.0, "minutes of training"),
)
NAMES = {
    "ntp": "NTP",
    "ntp_distilled": "NTP, distilled",
    "softmax": "concepts",
    "softmax_distilled": "concepts, distilled",
    "ntp_adamw": "NTP, AdamW",
    "ntp_muon": "NTP, Muon",
    "cocomix_adamw": "CoCoMix, AdamW",
    "cocomix_muon": "CoCoMix, Muon",
}
COLOURS = ("#333333", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b")


def draw(table: dict, path: Path) -> None:
    """Three panels with one scale of losses."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
    arms = sorted(table["arms"], key=lambda arm: -arm["loss"])
    lowest, highest = arms[-1]["loss"] - 0.08, max(table["references"]["bigram"], arms[0]["loss"]) + 0.4
    for axes, (field, unit, label) in zip(panels, PANELS, strict=True):
        for arm, colour in zip(arms, COLOURS, strict=False):
            # What can be shared was paid before the first step: of each of ten students, a tenth of it and its own.
            shared = arm["stored_flops"] / 10 if field == "flops" else 0.0
            by_step: dict[float, list[tuple[float, float]]] = defaultdict(list)
            for point in table["curves"]:
                if point["arm"] == arm["arm"]:
                    by_step[point["tokens"]].append(((point[field] + shared) / unit, point["loss"]))
            costs = [sum(cost for cost, _ in points) / len(points) for points in by_step.values()]
            losses = [[loss for _, loss in points] for points in by_step.values()]
            means = [sum(each) / len(each) for each in losses]
            name = NAMES.get(arm["arm"].removesuffix("_bigram"), arm["arm"])
            axes.plot(costs, means, label=f"{name}  {arm['loss']:.3f}", color=colour, lw=1.6)
            axes.fill_between(costs, list(map(min, losses)), list(map(max, losses)), color=colour, alpha=0.15, lw=0)
        for name in ("bigram", "trigram", "fourgram"):
            loss = table["references"][name]
            if lowest < loss < highest:
                axes.axhline(loss, color="#8a94a6", lw=0.9, ls=":")
                below = "top" if name == "fourgram" else "bottom"  # it is close to the trigram
                axes.text(0, loss, f" {name.replace('four', '4-')}", va=below, fontsize=8, color="#5b6472")
        axes.set_xlabel(label)
        axes.grid(axis="y", alpha=0.3)
        axes.set_xlim(left=0)
    panels[0].set_ylim(lowest, highest)
    panels[0].set_ylabel("validation loss, nats per token")
    panels[2].legend(loc="upper right", fontsize=8, title="arm, loss at the end", title_fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    report = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "report"
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "curves.png"
    draw(json.loads((report / "table.json").read_text(encoding="utf-8")), output)
