"""Comparing runs: one data frame of runs, grouped by arm, every difference paired by seed.

Runs of one name and several seeds are an arm. `alike` refuses runs that differ in more than their arms.
"""

import json
import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cocomix.data import VALIDATION
from cocomix.evaluation import statistics
from cocomix.evaluation.alike import refuse_unlike
from cocomix.evaluation.comparison import ALL_COSTS, COLUMN_TYPES, COSTS, RELIANCE, STUDENTS, Comparison, columns
from cocomix.evaluation.downstream import downstream_numbers
from cocomix.evaluation.loss_slices import SLICES, slice_values
from cocomix.evaluation.references import ORDERS
from cocomix.evaluation.run_evaluation import RunEvaluation, evaluations_of
from cocomix.evaluation.run_inputs import run_labels
from cocomix.evaluation.statistics import Estimate, Floats
from cocomix.evaluation.teacher_flops import dictionary_flops, flops_from_nothing, label_words, teacher_flops
from cocomix.runtime.errors import CoCoMixError, require_extra
from cocomix.training import Run, RunManifest

logger = logging.getLogger(__name__)

_ALIKE = 0.03  # FLOPs or parameters that differ by less are called equal

_ANNEALED = 0.2
"""A run whose last logged learning rate is below this share of its largest has ended its schedule (paper: 10%)."""

_RECORDED = ("seed", "objective", "learning_rate", "concept_loss_weight", "steps", "tokens", "seconds", "device")
"""Fields of a run's manifest that are columns of the same name."""

_MEASURED = {
    "concepts.recall_at_32": "recall",
    "concepts.label_content.static_recall_at_32": "static_recall",
    "concepts.label_content.token_recall_at_32": "token_recall",
    **{
        f"reliance.kinds.{kind}.{end}": column
        for kind in RELIANCE
        for end, column in (("nats", kind), ("low", f"{kind}_low"), ("high", f"{kind}_high"))
    },
}
"""Fields of an evaluation → columns; empty where not measured."""

_LIKENESS = {"iso-FLOP": "flops", "iso-parameter": "active_parameters"}


def compare(runs: Sequence[Run], baseline: str | None = None, vary: Sequence[str] = ()) -> Comparison:
    """Put runs side by side; refused where they must not be compared (see `alike.refuse_unlike`), are of one arm, have
    no such baseline or share no seed with it.

    Args:
        baseline: name of the arm to measure against; by default the `ntp` arm, of several the one whose active
            parameters are nearest the mean of the other arms'.
        vary: dotted names of recipe fields that the comparison is about, beside those that are an arm's own anyway.
    """
    require_extra("report", "scipy", "statsmodels", purpose="a comparison")
    refuse_unlike(runs, vary)
    names = list(dict.fromkeys(run.manifest.name for run in runs))
    if len(names) < 2:
        raise CoCoMixError(f"a comparison needs runs of at least two names, but all are named {names[0]!r}.")
    evaluations = _shared_evaluations(runs)
    frame = _runs_frame(runs, evaluations)
    chosen, reason = _choose_baseline(frame, baseline)
    arms = _arms_frame(frame, chosen)
    tokens = evaluations[0].token_losses() if evaluations else None
    documents, words = _differences_on_tokens(frame, evaluations, tokens, chosen)
    references, curve_references = _references(evaluations, tokens, runs[0].manifest)
    arms = arms.join(documents).reset_index()
    for p_values in ("p_documents", "p_seeds"):
        arms[f"{p_values}_holm"] = statistics.holm(arms[p_values])
    downstream, downstream_note = downstream_numbers(runs)
    for worse in arms.loc[arms["loss"] > references.get("bigram", np.inf), "arm"]:
        logger.warning(f"{worse} is worse than a bigram table of the training text ({references['bigram']:.3f} nats).")
    points = [{"arm": run.manifest.name, "seed": run.manifest.seed, **vars(one)} for run in runs for one in run.curve]
    manifest = runs[0].manifest
    return Comparison(
        baseline=chosen,
        runs=frame[list(columns()["runs"])],
        arms=arms[list(columns()["arms"])],
        words=words,
        baselines=_baselines_frame(frame),
        scaling=_scaling_frame(frame),
        curves=pd.DataFrame(points)[list(columns()["curves"])],
        references=references,
        curve_references=curve_references,
        shared={
            "data": manifest.data.fingerprint[:16],
            "tokenizer": manifest.data.tokenizer_fingerprint[:16],
            "block size": f"{manifest.data.block_size} tokens",
            "training precision": manifest.training_dtype,
            **({"training tokens": f"{manifest.tokens:,}"} if frame["tokens"].nunique() == 1 else {}),
            "loss": "`cocomix eval`" if evaluations else "last evaluation during training",
            "validation blocks": f"{evaluations[0].blocks if evaluations else manifest.evaluation_blocks:,}",
            "evaluation precision": evaluations[0].dtype if evaluations else manifest.evaluation_dtype,
            **({"what the comparison is about": ", ".join(vary)} if vary else {}),
        },
        notes=(reason, *_notes(frame, arms, evaluations, manifest.data.fingerprint), downstream_note),
        downstream=downstream,
    )


def _shared_evaluations(runs: Sequence[Run]) -> list[RunEvaluation]:
    """One evaluation of each run, all of the same tokens in the same precision; empty if there are none."""
    found = [evaluations_of(run) for run in runs]
    for wanted in found[0]:
        same = [next((one for one in each if one.conditions == wanted.conditions), None) for each in found]
        if all(one is not None for one in same):
            return [one for one in same if one is not None]
    return []


def _runs_frame(runs: Sequence[Run], evaluations: Sequence[RunEvaluation]) -> pd.DataFrame:
    rows = []
    for run in runs:
        manifest = run.manifest
        rows.append(
            {name: getattr(manifest, name) for name in _RECORDED}
            | {
                "arm": manifest.name,
                "kind": _kind(run),
                "parameters": manifest.parameters.total,
                "active_parameters": manifest.parameters.active,
                "flops": manifest.training_flops,
                "alone": manifest.next_tokens_alone,
                "plain": manifest.plain,
                "teacher_flops": teacher_flops(run),
                "stored_flops": teacher_flops(run, shared=True),
                "dictionary_flops": dictionary_flops(run),
                "flops_from_nothing": flops_from_nothing(run),
                "annealed": _annealed(run),
                "loss": manifest.final.eval_loss,
            }
        )
    frame = pd.DataFrame(rows)
    measured = pd.json_normalize([one.model_dump() for one in evaluations]).reindex(columns=list(_MEASURED))
    alone = [one.reliance is not None and one.reliance.documents < 2 for one in evaluations]
    measured.loc[alone, [name for name in _MEASURED if name.endswith((".low", ".high"))]] = np.nan  # see `_interval`
    frame = frame.join(measured.rename(columns=_MEASURED))
    if evaluations:
        frame["loss"] = [one.loss for one in evaluations]
    numbers = [name for name in columns()["runs"] if name in frame and name not in COLUMN_TYPES]
    frame[numbers] = frame[numbers].apply(pd.to_numeric)  # a column of nothing is one of numbers, too
    frame["total_flops"] = frame["flops"] + frame["teacher_flops"] + frame["dictionary_flops"]
    shared = frame["stored_flops"] + frame["dictionary_flops"]
    for students in STUDENTS:
        frame[f"flops_of_{students}"] = frame["total_flops"] - shared * (1.0 - 1.0 / students)
    return frame


def _kind(run: Run) -> str:
    """What sets an arm apart, e.g. `cocomix, residual`, and how labels were chosen where that is not the default."""
    labels = run_labels(run)
    chosen = "" if labels is None else label_words(labels.manifest)
    words = run.manifest.arm or run.manifest.objective
    return f"{words}, labels: {chosen}" if chosen else words


def _annealed(run: Run) -> bool:
    """Whether the learning rate had come down when the run ended."""
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [rate for line in lines if line.strip() and (rate := json.loads(line).get("learning_rate")) is not None]
    return bool(rates) and rates[-1] <= _ANNEALED * max(*rates, run.manifest.learning_rate or 0.0)


def _choose_baseline(frame: pd.DataFrame, name: str | None) -> tuple[str, str]:
    """The arm to measure against, and why in one sentence."""
    names = ", ".join(frame["arm"].unique())
    arms = frame.groupby("arm", sort=False).first()
    plain = arms[arms["alone"] if arms["alone"].any() else arms["objective"] == "ntp"]
    if name is not None:
        if name not in arms.index:
            raise CoCoMixError(f"there is no run named {name!r} to be the baseline; the runs are {names}.")
        return name, f"Baseline: {name}, as asked for."
    if plain.empty:
        raise CoCoMixError(f"none of the runs has the objective ntp; choose the baseline with --baseline: {names}.")
    others = arms[arms["objective"] != "ntp"]
    if len(plain) == 1 or others.empty:
        what = "trained on next tokens alone" if arms["alone"].any() else "of the objective ntp"
        return str(plain.index[0]), f"Baseline: {plain.index[0]}, the first run {what}."
    away = (plain["active_parameters"] - others["active_parameters"].mean()).abs()
    return str(away.idxmin()), (
        f"Baseline: {away.idxmin()}, of the ntp runs the one whose active parameters are nearest the others' mean."
    )


def _arms_frame(frame: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Means by arm, and differences and costs against the baseline, seed by seed."""
    numbers = frame.select_dtypes("number").columns.difference(["seed"])
    grouped = frame.groupby("arm", sort=False)
    arms = grouped[["kind", "objective"]].first().join(grouped[list(numbers)].mean())
    arms["seeds"] = grouped["seed"].agg(lambda seeds: sorted(map(int, seeds)))
    arms["annealed"] = grouped["annealed"].all()
    intervals = grouped["loss"].agg(lambda losses: statistics.t_test(losses.to_numpy()))
    arms["loss_low"], arms["loss_high"] = ([getattr(one, end) for one in intervals] for end in ("low", "high"))
    found = {name: _paired(frame, name, baseline) for name in arms.index}
    for place, column in enumerate(("difference", "difference_low", "difference_high", "p_seeds")):
        arms[column] = [found[name][place] for name in arms.index]
    for axis in (*ALL_COSTS, "active_parameters"):
        arms[f"{axis}_ratio"] = arms[axis] / arms.loc[baseline, axis]
    # A saving is a loss no worse for less, where both have ended their schedules: a run in the middle of one would get
    # better by annealing, so what it spent until then cannot be set against another's whole cost.
    stated = arms["annealed"] & arms.loc[baseline, "annealed"] & (arms["difference"] <= 0)
    for axis in ALL_COSTS:
        saved = 1.0 - arms[f"{axis}_ratio"]
        arms[f"{axis}_saved"] = saved.where(stated & (saved > _ALIKE) & (arms.index != baseline))
    close = {kind: (arms[f"{axis}_ratio"] - 1).abs() <= _ALIKE for kind, axis in _LIKENESS.items()}
    arms["like_baseline"] = [
        ", ".join(kind for kind, holds in close.items() if holds[name] and name != baseline) for name in arms.index
    ]
    return arms


def _paired(frame: pd.DataFrame, arm: str, other: str) -> Estimate:
    """An arm's final loss minus another's, over the seeds that both have; of an arm and itself nothing."""
    if arm == other:
        return Estimate(0.0)
    losses = frame[frame["arm"].isin([arm, other])].pivot(index="seed", columns="arm", values="loss").dropna()
    if losses.empty:
        raise CoCoMixError(
            f"{arm} and {other} have no seed in common, so their runs saw other blocks in another order; train one of "
            "them with the other's training.seed."
        )
    return statistics.t_test((losses[arm] - losses[other]).to_numpy())


def _differences_on_tokens(
    frame: pd.DataFrame, evaluations: Sequence[RunEvaluation], tokens: pd.DataFrame | None, baseline: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Differences from the baseline over documents and over kinds of tokens, with intervals over documents × seeds."""
    measured = ["documents", "documents_low", "documents_high", "better", "p_documents"]
    arms = frame.groupby("arm", sort=False)["seed"].agg(set)
    whole, words = pd.DataFrame(index=arms.index, columns=measured, dtype=float), []
    if tokens is not None:
        keys = zip(frame["arm"], frame["seed"], strict=True)
        tables = (one.token_losses() for one in evaluations)
        losses = {key: table["loss"].to_numpy(np.float64) for key, table in zip(keys, tables, strict=True)}
        documents, slices = tokens["document"].to_numpy(), {name: slice_values(tokens, name) for name in SLICES}
        for name in arms.index.drop(baseline):
            shared = sorted(arms[name] & arms[baseline])
            gaps = np.stack([losses[name, seed] - losses[baseline, seed] for seed in shared])
            sums, targets = statistics.by_document(gaps, documents)
            means = (sums / targets).mean(axis=0)
            p_value = statistics.wilcoxon_p(means)
            whole.loc[name] = [sums.shape[1], *_interval(sums, targets), (means < 0).mean(), p_value]
            for which, values in slices.items():
                for value in pd.Categorical(values).categories:
                    if (inside := (values == value).to_numpy()).any():
                        sums, targets = statistics.by_document(gaps[:, inside], documents[inside])
                        difference = float(sums.sum() / targets.sum())
                        row = (name, which, str(value), int(inside.sum()), difference, *_interval(sums, targets))
                        words.append(row)
    return whole, pd.DataFrame(words, columns=list(columns()["words"]))


def _interval(sums: Floats, targets: Floats) -> tuple[float, float]:
    """`crossed_interval`; of one document, whose resamples are all that document, none: nothing is decided by it."""
    return statistics.crossed_interval(sums, targets) if sums.shape[1] > 1 else (np.nan, np.nan)


def _baselines_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Every arm beside the plain decoders, distilled or not, that cost or weigh the same."""
    arms = frame.groupby("arm", sort=False).agg({"plain": "first", "flops": "mean", "active_parameters": "mean"})
    plain = arms[arms["plain"]]
    rows = []
    for name, arm in arms.iterrows():
        for kind, axis in _LIKENESS.items():
            for other in plain.index[(plain[axis] / arm[axis] - 1).abs() <= _ALIKE]:
                if other != name:
                    found = _paired(frame, str(name), str(other))
                    rows.append((name, kind, other, arm[axis] / plain.loc[other, axis], *found))
    return pd.DataFrame(rows, columns=list(columns()["baselines"]))


def _scaling_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Power laws through annealed final losses of one kind of arm, where it has three sizes (or lengths) or more."""
    rows = []
    for kind, runs in frame[frame["annealed"]].groupby("kind", sort=False):
        for axis in COSTS if max(runs["active_parameters"].nunique(), runs["tokens"].nunique()) >= 3 else ():
            costs = runs[axis].to_numpy(np.float64)
            if len(runs.groupby("arm")) >= 3 and np.ptp(np.log(costs)) > _ALIKE:
                law = statistics.power_law(costs, runs["loss"].to_numpy(np.float64))
                rows.append({"kind": kind, "axis": axis, "runs": len(runs), **law._asdict()})
    return pd.DataFrame(rows, columns=list(columns()["scaling"]))


def _references(
    evaluations: Sequence[RunEvaluation], tokens: pd.DataFrame | None, run: RunManifest
) -> tuple[dict[str, float], dict[str, float]]:
    """N-gram losses on the tokens of the evaluations and on those of the curves; see `Comparison.references`."""
    if tokens is None or evaluations[0].references is None:
        return {}, {}
    one, first = evaluations[0], run.evaluation_blocks
    own = (one.data_fingerprint, one.split, one.block_size) == (run.data.fingerprint, VALIDATION, run.data.block_size)
    # Of a mixture the first blocks are some of every corpus.
    held = one.blocks == first or (run.data.mixture is None and one.blocks > first)

    def means(table: pd.DataFrame) -> dict[str, float]:
        return {name: float(table[name].to_numpy(np.float64).mean()) for name in ORDERS}

    return means(tokens), means(tokens[tokens["block"] < first]) if own and held else {}


def _notes(frame: pd.DataFrame, arms: pd.DataFrame, evaluations: Sequence[RunEvaluation], own: str) -> list[str]:
    notes = []
    counts = frame.groupby("arm", sort=False)["seed"].count()
    if (counts == 1).all():
        notes.append("Each arm is one run with one seed (n = 1): another seed may make as large a difference.")
    else:
        seeds = f"{counts.min()}" if counts.nunique() == 1 else f"{counts.min()} to {counts.max()}"
        notes.append(
            f"± is half a 95% t-interval over seeds (n = {seeds}); each seed is measured against the baseline's run of "
            "the same seed, and seeds without one count in no difference."
        )
    if not evaluations:
        notes.append(
            "Not all runs have an evaluation of the same tokens, so there are no references, no tests on documents and "
            "no words; give `cocomix eval` every run."
        )
    elif (other := evaluations[0].data_fingerprint) != own:
        notes.append(
            f"Losses are of other data ({other[:16]}) than the runs' own, on which all were evaluated last; curves are "
            "of their own."
        )
    unfinished = arms.loc[~arms["annealed"], "arm"]
    if len(unfinished):
        notes.append(
            f"No saving is stated for or against {', '.join(unfinished)}: the learning rate had not come down when it "
            "ended, and a run in the middle of its schedule cannot be set against the end of another's."
        )
    for what, column in (("devices, so seconds do not compare", "device"), ("tokens", "tokens")):
        if frame[column].nunique() > 1:
            notes.append(f"The runs differ in {what}: {', '.join(map(str, frame[column].unique()))}.")
    for whose, column in (("teacher's work", "teacher_flops"), ("dictionary's fit", "dictionary_flops")):
        unknown = frame.loc[frame[column].isna(), "arm"].unique()
        if len(unknown):
            notes.append(f"The FLOPs of the {whose} are not known for {', '.join(unknown)}.")
    return notes
