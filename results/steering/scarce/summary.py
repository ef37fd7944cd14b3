"""What several seeds say together, from what `steer-eval` and `atlas` wrote: summary.json beside this file.

    python results/steering/scarce/summary.py DATA LABELS ATLAS STEERED...

DATA and LABELS are the runs', ATLAS is of one of them, STEERED are folders of `cocomix steer-eval`.
"""

import json
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cocomix.data import TRAIN, Tokens
from cocomix.interpret.steer_arms import paired_difference
from cocomix.labelling import Labels

LEAST = 10  # held-out labels that a concept needs to be counted
data, labels, atlas, *folders = (Path(argument) for argument in sys.argv[1:])
reports = [json.loads((folder / "steering.json").read_text()) for folder in folders]
settings = reports[0]["settings"]
concepts, factors, neutral = settings["concepts"], settings["factors"], settings["factors"].index(0.0)


def lifts() -> NDArray[np.float64]:
    """log(how often a token follows a concept's labels ÷ how often any), with 100 tokens added. [concepts, vocab]"""
    tokens, store = Tokens.open(data), Labels.open(labels)
    blocks, named = tokens.split(TRAIN), store.split(TRAIN)
    size = tokens.manifest.vocab_size
    places = np.full(store.num_concepts + 1, -1)  # the last one stands for "no label"
    places[concepts] = np.arange(len(concepts))
    counts, every = np.zeros((len(concepts), size)), np.ones(size)
    for row in range(len(blocks)):
        ids, found = blocks[row]["input_ids"].numpy(), named[row]["concept_labels"].numpy()
        every += np.bincount(ids, minlength=size)
        place = places[found[:-1]]
        rows, slots = (place >= 0).nonzero()
        np.add.at(counts, (place[rows, slots], ids[1:][rows]), 1)
    share = every / every.sum()
    smoothed = (counts + 100 * share) / (counts.sum(1, keepdims=True) + 100)
    return np.log(smoothed / share)


def tested(values: NDArray[np.float64]) -> dict[str, Any]:
    """Mean over concepts, with its interval and test. [seeds, concepts]"""
    return paired_difference(values.mean(0))._asdict()


def own_minus_others(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[seeds, turned, factors, measured] to [seeds, concepts, factors]"""
    own = np.einsum("scfc->scf", values)
    return own - (values.sum(1).swapaxes(1, 2) - own) / (len(concepts) - 1)


def steering() -> dict[str, Any]:
    """Differences of the rank correlations, and of both measures at every factor."""
    after = lifts()
    given = settings["prompt_tokens"]
    measured: dict[str, list[NDArray[np.float64]]] = {"activation": [], "following": []}
    prompts: dict[str, list[NDArray[np.float64]]] = {"activation": [], "following": []}
    for folder, report in zip(folders, reports, strict=True):
        texts = pd.read_parquet(folder / "texts.parquet")
        for arm, kept in (("student", measured), ("prompt", prompts)):
            rows = texts[texts.arm == arm]  # turned, factor, prompt, in this order
            shape = (len(concepts), -1, report["settings"]["prompts"], len(concepts))
            following = [after[:, tokens[given:]].mean(1) for tokens in rows.tokens]
            kept["activation"].append(np.stack(list(rows.activation)).reshape(shape).mean(2))
            kept["following"].append(np.stack(following).reshape(shape).mean(2))
    by_number = itemgetter("concept")
    found: dict[str, Any] = {
        name: tested(np.array([[row[name] for row in sorted(one["concepts"], key=by_number)] for one in reports]))
        for name in ("student", "teacher", "steering_gain", "prompt_gain")
    }
    for name, values in measured.items():
        steered = np.stack(values)  # [seeds, turned, factors, measured]
        plain = np.einsum("scc->sc", steered[:, :, neutral])
        difference = own_minus_others(steered)
        prompted = np.einsum("scc->sc", np.stack(prompts[name])[:, :, 0]) - plain
        found[name] = {
            "own": np.einsum("scfc->f", steered / (len(folders) * len(concepts))).tolist(),
            "own_minus_others": [tested(difference[..., place]) for place in range(len(factors))],
            "prompt_minus_plain": tested(prompted),
            "steering_minus_prompt": [
                tested(np.einsum("scc->sc", steered[:, :, place]) - plain - prompted) for place in range(len(factors))
            ],
        }
    curves = [one["curves"] for one in reports]
    found["perplexity"] = {arm: np.mean([one[arm]["perplexity"] for one in curves], 0).tolist() for arm in curves[0]}
    found["best_factors"] = [one["best_factor"] for one in reports]
    return found


def quality() -> dict[str, Any]:
    """Quartiles of precision, recall, AUROC and lift over the concepts with enough held-out labels."""
    cards = pd.read_parquet(atlas / "cards.parquet")
    usable = cards[cards.label_count >= LEAST]
    columns = usable[["precision", "recall", "auroc", "lift"]].assign(lift=usable.lift.fillna(0))
    quartiles = {name: columns[name].quantile([0.25, 0.5, 0.75]).tolist() for name in columns}
    return {
        "concepts": len(cards),
        "with_labels": len(usable),
        "predicted": int((usable.predicted_count > 0).sum()),
        "quartiles": quartiles,
        "lift_over_2": float((columns.lift > 2).mean()),
        "auroc_over_90": float((columns.auroc > 0.9).mean()),
        "probes": json.loads((atlas / "manifest.json").read_text())["probes"],
    }


result = {"runs": len(folders), "concepts": concepts, "factors": factors, "steering": steering(), "atlas": quality()}
(Path(__file__).parent / "summary.json").write_text(json.dumps(result, indent=1) + "\n")
