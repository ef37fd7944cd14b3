"""What is recorded, read and written; and how close a number must be to the recorded one.

- Token blocks: equal, byte for byte, everywhere.
- Concept and token ids: equal on a CPU of the recorded kind. Another kind of CPU rounds differently, which may swap
  concepts whose scores nearly tie: there 99.5% of the positions must have the same ids in the same order.
- Scores, where the ids agree: 1e-5 relative, with a floor at 1e-6 of the largest score for those that cancel. Stored
  probabilities are float16, in which another kind of CPU may round to the neighbour: 2e-3 there.
- Loss curves: 2e-4 relative. Here they come out equal to the last bit, and PyTorch's AVX2 kernels in place of AVX-512
  differ by 6e-6 at most; the rest is room for other CPUs, whose kernels add in yet another order while 30 optimizer
  steps enlarge the difference, and for a rebuilt loop that rightly sums in another order. A wrong order of blocks, a
  wrong label or weight changes a loss by more.
- Greedy texts: equal. Recording refuses prompts on whose way two tokens nearly tie.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tests.frozen import cases
from tests.frozen.world import Array, Labels, World
from tests.golden import GOLDEN

RECORDED = Path(__file__).parent / "recorded"
EQUAL_POSITIONS, SCORE_RTOL, SCORE_FLOOR, CURVE_RTOL, MARGIN = 0.995, 1e-5, 1e-6, 2e-4, 0.02
FLOAT16_RTOL = 2e-3
GOLDEN_ATTRIBUTION, GOLDEN_LOGITS = 1e-6, 1e-5  # as in tests/concepts/test_parity.py and tests/interop


class Frozen(NamedTuple):
    """What one case gives: arrays by name, and plain values."""

    arrays: Mapping[str, Array] = {}
    values: Mapping[str, Any] = {}


class Verdict(NamedTuple):
    """Whether a case still gives what was recorded, and how near it is, in words."""

    ok: bool
    found: str


class Kind(NamedTuple):
    """Cases of one kind: their names, how one is computed, and how it is compared with what was recorded."""

    names: tuple[str, ...]
    compute: Callable[[World, str], Frozen]
    compare: Callable[[Frozen, Frozen, bool], Verdict]


# ---- token blocks --------------------------------------------------------------------------------------------------


def _blocks(world: World, corpus: str) -> Frozen:
    arrays, values = {}, {}
    for split, blocks in world.blocks(corpus).items():
        values[split] = {"shape": list(blocks.shape), "sha256": _sha256(blocks)}
        # Of a large corpus a few blocks are enough to see what changed; the hash tells that something did.
        arrays[split] = blocks if len(blocks) < 2000 else np.concatenate((blocks[:16], blocks[-16:]))
    return Frozen(arrays, values)


def _compare_blocks(found: Frozen, recorded: Frozen, same_cpu: bool) -> Verdict:
    for split, expected in recorded.values.items():
        if found.values[split] == expected:
            continue
        shapes = f"{found.values[split]['shape']}, recorded {expected['shape']}"
        ours, theirs = found.arrays[split], recorded.arrays[split]
        rows = (ours != theirs).any(axis=1).nonzero()[0] if ours.shape == theirs.shape else []
        where = f"first at block {rows[0]}" if len(rows) else "beyond the blocks that are recorded"
        return Verdict(False, f"{split} differs: {shapes}; {where}")
    return Verdict(True, "equal")


# ---- labels --------------------------------------------------------------------------------------------------------


def _labels(world: World, name: str) -> Frozen:
    kind, _, rest = name.partition(".")
    if kind == "stored":
        splits = world.stored_labels(rest)
        shown = {split: Labels(*(part[: cases.SHOWN_BLOCKS] for part in all_)) for split, all_ in splits.items()}
        arrays = {key: array for split, labels in shown.items() for key, array in _named(labels, f"{split}.").items()}
        return Frozen(arrays, {split: _sha256(labels.ids) for split, labels in splits.items()})
    if kind == "probabilities":
        return Frozen(_named(world.probabilities(), "float16_"))
    return Frozen(_named(world.ragged_labels(kind) if rest == "ragged" else world.labels(kind, rest)))


def _compare_labels(found: Frozen, recorded: Frozen, same_cpu: bool) -> Verdict:
    near, least, most = True, 1.0, 0.0
    for key, theirs in recorded.arrays.items():
        if not key.endswith("ids"):
            continue
        ours, scores = found.arrays[key], key.replace("ids", "scores")
        if ours.shape != theirs.shape:
            return Verdict(False, f"{key} has shape {ours.shape}, recorded {theirs.shape}")
        equal = (ours == theirs).all(axis=-1)
        least = min(least, float(equal.mean()))
        a, b = found.arrays[scores][equal].astype(np.float64), recorded.arrays[scores][equal].astype(np.float64)
        scale = np.abs(b) + SCORE_FLOOR / SCORE_RTOL * np.abs(b).max(initial=1e-30)
        difference = float((np.abs(a - b) / scale).max(initial=0.0))
        near = near and difference <= (FLOAT16_RTOL if "float16" in key and not same_cpu else SCORE_RTOL)
        most = max(most, difference)
    says = f"{least:.2%} of positions equal, scores within {most:.1e}"
    if same_cpu and found.values != recorded.values:
        return Verdict(False, f"{says}; other ids in blocks of which only a hash is recorded")
    return Verdict(near and least >= (1.0 if same_cpu else EQUAL_POSITIONS), says)


# ---- loss curves ---------------------------------------------------------------------------------------------------


def _curve(world: World, arm: str) -> Frozen:
    # Nine digits tell every float32 apart.
    return Frozen(values={name: [float(f"{v:.9g}") for v in curve] for name, curve in world.curve(arm).items()})


def _compare_curve(found: Frozen, recorded: Frozen, same_cpu: bool) -> Verdict:
    if found.values.keys() != recorded.values.keys():
        return Verdict(False, f"logs {sorted(found.values)}, recorded {sorted(recorded.values)}")
    most, where = 0.0, ""
    for name, theirs in recorded.values.items():
        ours = found.values[name]
        if len(ours) != len(theirs):
            return Verdict(False, f"{name} has {len(ours)} values, recorded {len(theirs)}")
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            difference = abs(a - b) / max(abs(b), 1e-12)
            if not difference <= most:  # true of NaN, which then stays
                most, where = difference, f" ({name}, {place})"
    return Verdict(most <= CURVE_RTOL, f"within {most:.1e}{where}")


# ---- texts ---------------------------------------------------------------------------------------------------------


def _texts(world: World, name: str) -> Frozen:
    texts = [text._asdict() for text in world.greedy(**cases.TEXTS[name])]
    for text in texts:
        text["margin"] = round(text["margin"], 4)
    return Frozen(values={"texts": texts})


def _compare_texts(found: Frozen, recorded: Frozen, same_cpu: bool) -> Verdict:
    ours, theirs = ([(t["text"], t["tokens"]) for t in one.values["texts"]] for one in (found, recorded))
    different = [b for a, b in zip(ours, theirs, strict=True) if a != b]
    return Verdict(not different, f"differs from {different[0][0]!r}" if different else "equal")


# ---- golden files --------------------------------------------------------------------------------------------------


def _golden(world: World, name: str) -> Frozen:
    if name in cases.GOLDEN_LABELS:
        labels, ours, theirs = world.golden_labels(name)
        return Frozen(_named(labels), {"deviation": float(np.abs(ours - theirs).max())})
    losses, ours, theirs = world.golden_model(name)
    return Frozen(values={"deviation": float(np.abs(ours - theirs).max()), **losses})


def _compare_golden(found: Frozen, recorded: Frozen, same_cpu: bool) -> Verdict:
    deviation = found.values["deviation"]
    says = f"{deviation:.1e} from the released code; "
    if recorded.arrays:
        ok, labels = _compare_labels(Frozen(found.arrays), Frozen(recorded.arrays), same_cpu)
        return Verdict(ok and deviation <= GOLDEN_ATTRIBUTION, says + labels)
    losses = [name for name in recorded.values if name != "deviation"]
    most = max(abs(found.values[name] - recorded.values[name]) for name in losses)
    return Verdict(max(most, deviation) <= GOLDEN_LOGITS, f"{says}losses within {most:.1e} of the recorded")


def golden_is_there() -> bool:
    """Whether the released code's files are on this machine; they are not part of the repository."""
    return GOLDEN.is_dir() and any(GOLDEN.glob("*.safetensors"))


# ---- all kinds -----------------------------------------------------------------------------------------------------

_SETTINGS = (*cases.LABEL_SETTINGS, "ragged")
KINDS = {
    "blocks": Kind(cases.CORPORA, _blocks, _compare_blocks),
    "labels": Kind(
        (
            *(f"{kind}.{setting}" for kind in cases.TEACHERS for setting in _SETTINGS),
            *(f"stored.{name}" for name in cases.STORED_LABELS),
            "probabilities",
        ),
        _labels,
        _compare_labels,
    ),
    "curves": Kind(tuple(cases.ARMS), _curve, _compare_curve),
    "texts": Kind(tuple(cases.TEXTS), _texts, _compare_texts),
    "golden": Kind((*cases.GOLDEN_LABELS, *cases.GOLDEN_MODELS), _golden, _compare_golden),
}


def check(world: World, kind: str, name: str) -> Verdict:
    """Compute a case and compare it with what is recorded."""
    arrays, values = recorded(kind)
    ours = {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}
    expected = Frozen(ours, values.get(name, {}))
    if not expected.arrays and not expected.values:
        return Verdict(False, "not recorded")
    return KINDS[kind].compare(KINDS[kind].compute(world, name), expected, cpu_is_the_recorded())


def record(world: World, kind: str) -> None:
    """Compute and write all cases of a kind."""
    arrays, values = {}, {}
    for name in KINDS[kind].names:
        found = KINDS[kind].compute(world, name)
        arrays |= {f"{name}/{key}": np.ascontiguousarray(array) for key, array in found.arrays.items()}
        if found.values:
            values[name] = found.values
    if kind == "texts":
        near = [t for case in values.values() for t in case["texts"] if t["margin"] < MARGIN]
        if near:
            raise SystemExit(f"two tokens nearly tie, which another CPU may decide otherwise; not recorded: {near}")
    RECORDED.mkdir(exist_ok=True)
    if arrays:
        save_file(arrays, RECORDED / f"{kind}.safetensors")
    if values:
        (RECORDED / f"{kind}.json").write_text(_readable(values), encoding="utf-8")


@cache
def recorded(kind: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays by `case/name` and values by case."""
    arrays, values = RECORDED / f"{kind}.safetensors", RECORDED / f"{kind}.json"
    return (
        load_file(arrays) if arrays.is_file() else {},
        json.loads(values.read_text(encoding="utf-8")) if values.is_file() else {},
    )


def this_machine() -> dict[str, str]:
    """What the last bits of a number depend on."""
    import tokenizers
    import transformers

    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": np.__version__,
    }


def recorded_machine() -> dict[str, str]:
    """`this_machine` of the recording."""
    return json.loads((RECORDED / "machine.json").read_text(encoding="utf-8"))


def cpu_is_the_recorded() -> bool:
    """Whether PyTorch takes the kernels here that it took when the numbers were recorded."""
    return this_machine()["cpu_capability"] == recorded_machine()["cpu_capability"]


def record_machine() -> None:
    """Note `this_machine`."""
    (RECORDED / "machine.json").write_text(_readable(this_machine()), encoding="utf-8")


def _named(labels: Labels, prefix: str = "") -> dict[str, Array]:
    """Arrays to keep; −100 becomes −1, and ids two bytes."""
    ids = np.where(labels.ids < 0, -1, labels.ids).astype("<i2")
    return {f"{prefix}ids": ids, f"{prefix}scores": labels.scores.astype("<f4")}


def _sha256(array: Array) -> str:
    little_endian = array.astype(array.dtype.newbyteorder("<"))
    return hashlib.sha256(np.ascontiguousarray(little_endian).tobytes()).hexdigest()


def _readable(values: Mapping[str, Any], depth: int = 0) -> str:
    """JSON with a line for every entry of the two outer levels, so that a changed curve is a changed line."""
    pad = " " * (depth + 1)
    lines = [
        f"{pad}{json.dumps(key)}: "
        + (
            _readable(value, depth + 1).strip()
            if isinstance(value, Mapping) and depth < 1
            else json.dumps(value, ensure_ascii=False)
        )
        for key, value in values.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{' ' * depth}}}\n"
