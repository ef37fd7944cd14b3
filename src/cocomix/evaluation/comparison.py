"""The result of a comparison: data frames, whose columns comparison.schema.json describes, and the same as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

RELIANCE = ("mean", "shuffle", "shuffle_same_token", "token_table", "oracle")
"""Replacements of the concepts that a comparison shows; `zero` is out of distribution and stays in the evaluations."""

STUDENTS = (3, 10)
"""How many students may share labels, probabilities and a dictionary in the tables of cost."""

COSTS = ("tokens", "flops", "seconds")
"""What a run's own training costs."""

ALL_COSTS = (*COSTS, "total_flops", "flops_from_nothing", *(f"flops_of_{students}" for students in STUDENTS))
"""With what came before it."""

FRAMES = ("runs", "arms", "words", "baselines", "scaling", "curves")
"""The data frames of a comparison."""


@cache
def json_schema() -> dict[str, Any]:
    """JSON Schema of `Comparison.to_json`, which `cocomix compare --json` prints; it changes only with its version.

    It names, types and describes the columns of every frame; what is empty is null in JSON.
    """
    text = files("cocomix.evaluation").joinpath("comparison.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def columns(frame: str) -> dict[str, dict[str, Any]]:
    """The columns of one of `FRAMES`, each with its `type` and `description`."""
    found: dict[str, dict[str, Any]] = json_schema()["properties"][frame]["items"]["properties"]
    return found


@dataclass(frozen=True)
class Comparison:
    """Arms side by side.

    Attributes:
        baseline: name of the arm that the others are measured against.
        runs: one row per run; this and the other frames have the columns of `columns`.
        arms: one row per arm, in the order given.
        words: differences from the baseline by kind of token.
        baselines: differences from NTP arms of equal FLOPs or parameters.
        references: losses of n-gram models on the tokens of `loss`, nats; empty where not measured.
        curve_references: the same on the tokens of `curves`.
        shared: what all runs share, label → value.
        downstream: of downstream tasks, from `downstream_numbers`; `None` where not all runs were measured alike.
    """

    baseline: str
    runs: pd.DataFrame
    arms: pd.DataFrame
    words: pd.DataFrame
    baselines: pd.DataFrame
    scaling: pd.DataFrame
    curves: pd.DataFrame
    references: Mapping[str, float]
    curve_references: Mapping[str, float]
    shared: Mapping[str, str]
    notes: tuple[str, ...]
    downstream: pd.DataFrame | None = None

    def mean_curves(self) -> dict[str, pd.DataFrame]:
        """Each arm's curve, averaged over its seeds at the token counts where all were evaluated; `low` and `high`."""
        made = {}
        for name, runs in self.curves.groupby("arm", sort=False):
            seeds = runs.groupby("tokens")["seed"].transform("count")
            points = runs[seeds == runs["seed"].nunique()].groupby("tokens")
            mean = points[["seconds", "flops", "loss"]].mean()
            made[str(name)] = mean.assign(low=points["loss"].min(), high=points["loss"].max()).reset_index()
        return made

    def to_json(self) -> dict[str, Any]:
        """Everything, unrounded; see `json_schema`."""
        frames = {name: getattr(self, name).to_json(orient="records", double_precision=15) for name in FRAMES}
        tasks = None if self.downstream is None else self.downstream.groupby(level=0, sort=False).mean()
        return {
            "format_version": json_schema()["properties"]["format_version"]["const"],
            "baseline": self.baseline,
            "shared": dict(self.shared),
            "references": dict(self.references),
            "curve_references": dict(self.curve_references),
            "notes": list(self.notes),
            **{name: json.loads(text) for name, text in frames.items()},
            "downstream": None if tasks is None else tasks.to_dict("index"),
        }
