"""The result of a comparison: data frames, whose columns are described here, and the same as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

FORMAT_VERSION = 3

RELIANCE = ("mean", "shuffle", "shuffle_same_token", "token_table", "oracle")
"""Replacements of the concepts that a comparison shows; `zero` is out of distribution and stays in the evaluations."""

STUDENTS = (3, 10)
"""How many students may share labels, probabilities and a dictionary in the tables of cost."""

_KINDS = {
    **dict.fromkeys(("arm", "kind", "objective", "device", "like_baseline", "slice", "value", "likeness"), "string"),
    **{"baseline": "string", "axis": "string", "annealed": "boolean", "seeds": "array"},
}
"""JSON types of the columns that are no numbers."""

_Columns = dict[str, str]
_ARM = "Name of the runs."
_RUN: _Columns = {
    "arm": _ARM,
    "kind": "Objective and form, and how labels were chosen where that is not the default.",
    "objective": "ntp or cocomix.",
    "parameters": "All parameters.",
    "active_parameters": "Parameters that take part in a token's forward pass (paper section 3).",
    "learning_rate": "Largest of the schedule.",
    "concept_loss_weight": "λ of Eq. 4; empty without concepts.",
    "steps": "Optimizer steps.",
    "tokens": "Training tokens.",
    "flops": "FLOPs of training the model, by formula, forward and backward.",
    "teacher_flops": "FLOPs of the teacher's labels, probabilities, hidden states; empty if not known.",
    "dictionary_flops": "FLOPs of fitting the dictionary, which runs can share; empty if not known.",
    "stored_flops": "Those of the teacher's FLOPs that were spent before training, which runs can share.",
    "total_flops": "Training, teacher and dictionary together; empty if one is not known.",
    **{
        f"flops_of_{students}": f"total_flops of each of {students} students that share what can be shared."
        for students in STUDENTS
    },
    "flops_from_nothing": "total_flops, and those of every run that weights or teacher came from; "
    "empty if one came from elsewhere.",
    "seconds": "Wall clock of training, evaluation left out.",
    "annealed": "Whether the learning rate had come down to a fifth or less when the run ended.",
    "loss": "Validation loss, nats per token.",
    "recall": "Share of a token's labels that are among the model's first 32 predicted concepts.",
    "static_recall": "Share that is among the 32 most frequent concepts, whatever the token.",
    "token_recall": "Share that is among the 32 most frequent concepts of the current token: no context.",
}
_REPLACED = {
    "mean": "their average",
    "shuffle": "those of any other position",
    "shuffle_same_token": "those of another position of the same token: what the context adds",
    "token_table": "those that a table gives for the current token",
    "oracle": "the labels (only labels that do not look at the next token)",
}
_RUN |= {
    f"{kind}{end}": f"{words} when concepts are replaced by {_REPLACED[kind]}."
    for kind in RELIANCE
    for end, words in (
        ("", "Rise of the loss, nats,"),
        ("_low", "Lower end of the rise's 95% interval over documents"),
        ("_high", "Upper end of the rise's 95% interval over documents"),
    )
}
_DIFFERENCE: _Columns = {
    "difference": "Loss minus the baseline's, nats per token, mean over the seeds that both have.",
    "low": "Lower end of its 95% interval.",
    "high": "Upper end of its 95% interval.",
}
COSTS = ("tokens", "flops", "seconds")
"""What a run's own training costs."""
ALL_COSTS = (*COSTS, "total_flops", "flops_from_nothing", *(f"flops_of_{students}" for students in STUDENTS))
"""With what came before it."""

COLUMNS: dict[str, _Columns] = {
    "runs": {**_RUN, "seed": "Seed of the run.", "device": "What it was trained on."},
    "arms": {
        **_RUN,
        "seeds": "Seeds of its runs.",
        "loss_low": "Lower end of the loss's 95% t-interval over seeds; empty for one seed.",
        "loss_high": "Upper end of the loss's 95% t-interval over seeds; empty for one seed.",
        "difference": _DIFFERENCE["difference"],
        "difference_low": "Lower end of the difference's 95% t-interval over seeds; empty for one seed.",
        "difference_high": "Upper end of the difference's 95% t-interval over seeds; empty for one seed.",
        "p_seeds": "Paired t-test over seeds.",
        "p_seeds_holm": "Paired t-test over seeds, after Holm's correction over the arms shown.",
        "documents": "Validation documents.",
        "documents_low": "The difference's 95% interval from drawing documents × seeds anew: its lower end.",
        "documents_high": "The difference's 95% interval from drawing documents × seeds anew: its upper end.",
        "better": "Share of documents on which the arm's loss is lower.",
        "p_documents": "Wilcoxon signed-rank test over documents, differences averaged over seeds.",
        "p_documents_holm": "The Wilcoxon test over documents, corrected by Holm over the arms shown.",
        "like_baseline": "iso-FLOP, iso-parameter: FLOPs, active parameters within 3% of the baseline's.",
        **{f"{axis}_ratio": f"{axis} over the baseline's." for axis in (*ALL_COSTS, "active_parameters")},
        **{
            f"{axis}_saved": f"Share of the baseline's {axis} saved at a loss no worse; empty if not stated."
            for axis in ALL_COSTS
        },
    },
    "words": {
        "arm": _ARM,
        "slice": "token_class, position, frequency or seen (cocomix.evaluation.loss_slices).",
        "value": "Which tokens.",
        "tokens": "How many.",
        **_DIFFERENCE,
    },
    "baselines": {
        "arm": _ARM,
        "likeness": "iso-FLOP or iso-parameter: within 3%.",
        "baseline": "The NTP arm that is like it.",
        "ratio": "The arm's FLOPs or active parameters over that arm's.",
        **_DIFFERENCE,
        "p": "Paired t-test over seeds, not corrected.",
    },
    "scaling": {
        "kind": _RUN["kind"],
        "axis": "tokens, flops or seconds.",
        "runs": "Runs fitted, all at the end of their schedules.",
        "factor": "a of loss = a · cost^(−b).",
        "exponent": "b: the higher, the faster the loss falls with cost.",
        "low": "Lower end of b's 95% interval.",
        "high": "Upper end of b's 95% interval.",
    },
    "curves": {
        "arm": _ARM,
        "seed": "Seed of the run.",
        "tokens": "Training tokens seen.",
        "seconds": "Training wall clock so far.",
        "flops": "Training FLOPs so far.",
        "loss": "Validation loss, nats per token; before the run's end in the middle of its schedule.",
    },
}
"""Frame → column → meaning; what is empty is null in JSON."""


def column_type(name: str) -> str:
    """The JSON type of a column, whichever frame it is in."""
    return _KINDS.get(name, "number")


@dataclass(frozen=True)
class Comparison:
    """Arms side by side.

    Attributes:
        baseline: name of the arm that the others are measured against.
        runs: one row per run; this and the other frames have the columns of `COLUMNS`.
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
        frames = {name: getattr(self, name).to_json(orient="records", double_precision=15) for name in COLUMNS}
        tasks = None if self.downstream is None else self.downstream.groupby(level=0, sort=False).mean()
        return {
            "format_version": FORMAT_VERSION,
            "baseline": self.baseline,
            "shared": dict(self.shared),
            "references": dict(self.references),
            "curve_references": dict(self.curve_references),
            "notes": list(self.notes),
            **{name: json.loads(text) for name, text in frames.items()},
            "downstream": None if tasks is None else tasks.to_dict("index"),
        }


def json_schema() -> dict[str, Any]:
    """JSON Schema of `Comparison.to_json`, which `cocomix compare --json` prints; it changes only with its version."""

    def rows(columns: _Columns) -> dict[str, Any]:
        types = {name: column_type(name) for name in columns}
        fields = {
            name: {"type": kind if kind in ("array", "boolean") else [kind, "null"], "description": columns[name]}
            for name, kind in types.items()
        }
        return {"type": "array", "items": _object(fields)}

    texts, numbers = ({"type": "object", "additionalProperties": {"type": kind}} for kind in ("string", "number"))
    return _object(
        {
            "format_version": {"const": FORMAT_VERSION},
            "baseline": {"type": "string", "description": "Arm that the others are measured against."},
            "shared": {**texts, "description": "What all runs share."},
            "references": {**numbers, "description": "Losses of n-gram models on the tokens of loss, nats per token."},
            "curve_references": {**numbers, "description": "The same on the tokens of curves."},
            "notes": {"type": "array", "items": {"type": "string"}, "description": "How to read the numbers."},
            **{name: rows(columns) for name, columns in COLUMNS.items()},
            "downstream": {"type": ["object", "null"], "description": "Arm → column → number; null if not measured."},
        }
    )


def _object(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
