"""Draws docs/figures/architecture.svg: the rooms in the layers of pyproject.toml, and a label's way through the files.

python docs/figures/rooms.py
"""

import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOLDS = {
    "cli": "the command cocomix, a file per verb",
    "explorer": "the web page of cocomix explore",
    "experiments": "sweeps, demo, shipped recipes",
    "interpret": "inspect, steer, atlas",
    "interop": "import, export, hub",
    "evaluation": "loss, n-grams, reliance, comparison",
    "training": "recipe, batches, Trainer, checkpoints",
    "labelling": "labels of every shard, stored; what they say",
    "model": "student, mixing, heads",
    "concepts": "labellers, dictionary",
    "data": "documents, token files",
    "artifacts": "folders that are whole or absent, here or at a URL",
    "runtime": "device, processes, errors, logging; nothing of models",
}
WAY = (
    ("cli/label.py", "reads the options"),
    ("labelling/make_labels.py", "the function that labels a shard"),
    ("labelling/map_shards.py", "calls it for every shard of the tokens"),
    ("concepts/labellers/attribution.py", "tokens → concept ids"),
    ("concepts/teacher.py", "runs the teacher and its backward pass"),
    ("concepts/scoring.py", "the k largest scores"),
    ("labelling/stored_labels.py", "the folder of labels, with its manifest"),
    ("labelling/stored_arrays.py", "its files: arrays, read by rows"),
    ("training/loading.py", "a block's tokens beside its labels"),
    ("training/objectives/cocomix.py", "labels into the model, its loss out"),
    ("model/modeling.py", "the student's forward pass"),
    ("model/fused_head.py", "the concept loss"),
)
"""Files that make, store, read or use a label, in order. Those that only hand it on are left out: labelling/storing.py
and executors.py, artifacts/arrays.py, training/corpora.py and trainer.py."""
COLOURS = {
    "cli": "#f3f5f8",
    "labelling": "#fdf0d9",
    "concepts": "#e6eefb",
    "training": "#e4f3ea",
    "model": "#f6e4ee",
}
LEFT, WIDTH, TOP, HEIGHT, GAP = 24, 560, 84, 46, 12


def layers() -> list[list[str]]:
    """Rooms from the top to the bottom, as import-linter checks them."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (contract,) = [each for each in tool["importlinter"]["contracts"] if each["type"] == "layers"]
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]


def picture() -> str:
    """The figure as SVG."""
    rows = layers()
    bottom = TOP + len(rows) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 {bottom + 12}" font-size="15" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">",
        "<title>The rooms of cocomix, each importing only rooms below it, and a label's way through the files</title>",
        f'<rect width="1000" height="{bottom + 12}" fill="#ffffff"/>',
        '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="#44546a"/></marker></defs>',
        _text(LEFT, 34, "The rooms: folders of src/cocomix", weight=600),
        _text(LEFT, 58, "each imports only what is below it, and nothing beside it", faint=True),
        _text(640, 34, "An example: the way of a concept label", weight=600),
        _text(640, 58, "from cocomix label to the loss; colours: rooms", faint=True),
    ]
    for number, row in enumerate(rows):
        width = (WIDTH - GAP * (len(row) - 1)) / len(row)
        y = TOP + number * (HEIGHT + GAP)
        for column, room in enumerate(row):
            x = LEFT + column * (width + GAP)
            parts.append(_box(x, y, width, HEIGHT, COLOURS.get(room, "#ffffff")))
            parts.append(_text(x + 12, y + 20, room, weight=600))
            parts.append(_text(x + 12, y + 37, HOLDS[room], faint=True))
    line = LEFT + WIDTH + 18
    parts.append(f'<path d="M{line} {TOP}V{bottom - GAP}" stroke="#44546a" stroke-width="1.6" marker-end="url(#a)"/>')
    parts.append(
        f'<text transform="translate({line + 16} {(TOP + bottom) // 2}) rotate(-90)" text-anchor="middle" '
        'font-size="13" fill="#5b6878">imports</text>'
    )
    step = (bottom - GAP - TOP) / len(WAY)
    for number, (file, does) in enumerate(WAY):
        y = TOP + number * step
        parts.append(_box(640, y, 336, step - 8, COLOURS.get(file.split("/")[0], "#ffffff")))
        parts.append(_text(652, y + step / 2 - 8, f"{number + 1}  {file}", size=13))
        parts.append(_text(674, y + step / 2 + 8, does, faint=True, size=12))
        if number:
            parts.append(f'<path d="M808 {y - 8}V{y}" stroke="#44546a" stroke-width="1.6"/>')
    return "\n".join([*parts, "</svg>", ""])


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="8" fill="{colour}" '
        'stroke="#44546a" stroke-width="1.4"/>'
    )


def _text(x: float, y: float, text: str, *, faint: bool = False, weight: int = 400, size: int = 0) -> str:
    size = size or (13 if faint else 15)
    colour = "#5b6878" if faint else "#1f2a3a"
    style = f'font-size="{size}" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


if __name__ == "__main__":
    (Path(__file__).parent / "architecture.svg").write_text(picture(), encoding="utf-8")
