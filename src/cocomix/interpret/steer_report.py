"""The report of a steering evaluation: steering.json, steering.csv, steering.md and steering.png."""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cocomix.artifacts import write_json, write_text
from cocomix.evaluation.figures import LIGHT, dress
from cocomix.evaluation.formatting import signed
from cocomix.interpret.inspection import ConceptDescription
from cocomix.interpret.rank_statistics import RankTrend
from cocomix.interpret.steer_effects import ARMS, Arm, SteerMeasurements, Turn
from cocomix.interpret.steer_scores import (
    LEVEL,
    ConceptScore,
    Curve,
    control_p_value,
    curve,
    score_concepts,
    steering_shares,
)
from cocomix.interpret.survey import ConceptSurvey
from cocomix.interpret.text_measures import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SteerReport", "write_steer_report"]

_ARM_NAMES: dict[Arm, str] = {
    "student": "the student, concept turned",
    "control": "the student, another concept turned",
    "teacher": "the teacher, latent turned",
}
_TURNS: dict[Turn, str] = {
    "scale": "the logit (in the teacher, the latent) was multiplied by {} factors",
    "add": "the logit (in the teacher, the latent) had its usual value added to it {} different numbers of times",
}
_PANELS = {
    "activation": "activation of the concept",
    "following": "tokens that follow its labels (nats)",
    "label_rate": "share of tokens labelled with it",
    "teacher_loss": "perplexity under the teacher",
    "distinct_2": "distinct token pairs",
}


@dataclass(frozen=True)
class SteerReport:
    """A steering evaluation of one run.

    Attributes:
        run: its name.
        teacher: where the teacher was loaded from.
        dictionary: likewise.
        measured: everything measured.
        survey: how the concepts behave in ordinary text.
        descriptions: what the concepts stand for, where known.
    """

    run: str
    teacher: str
    dictionary: str
    measured: SteerMeasurements
    survey: ConceptSurvey
    descriptions: Mapping[int, ConceptDescription]

    @cached_property
    def scores(self) -> tuple[ConceptScore, ...]:
        """The concepts by their activation, highest steering score first."""
        return score_concepts(self.measured)

    @cached_property
    def following(self) -> tuple[ConceptScore, ...]:
        """The concepts by the tokens that follow their labels; empty where that was not measured."""
        return score_concepts(self.measured, "following") if "following" in self.measured.measures else ()

    def to_json(self) -> dict[str, Any]:
        """Scores, curves and settings as JSON."""
        return {
            "format_version": 1,
            "run": self.run,
            "teacher": self.teacher,
            "dictionary": self.dictionary,
            "settings": asdict(self.measured.settings),
            "criterion": f"positive rank correlation of factor and activation, one-sided p < {LEVEL}",
            "share_that_steers": steering_shares(self.scores),
            "control_p_value": control_p_value(self.scores),
            "concepts": [self._score_json(score) for score in self.scores],
            "following": {
                "share_that_steers": steering_shares(self.following),
                "control_p_value": control_p_value(self.following),
                "concepts": [self._score_json(score) for score in self.following],
            }
            if self.following
            else None,
            "measures": {name: MEASURES[name] for name in self.measured.measures},
            "curves": {
                arm: {
                    _measure_name(name): _curve_json(curve(self.measured, arm, name)) for name in self.measured.measures
                }
                for arm in ARMS
            },
        }

    def summary(self) -> dict[str, Any]:
        """The shares of concepts that steer and their mean scores, for the terminal."""
        lines = {}
        for arm in ARMS:
            lines[_ARM_NAMES[arm]] = f"{_count(self.scores, arm)}, mean score {_mean(self.scores, arm)}"
            if self.following:
                lines[f"{_ARM_NAMES[arm]}, by what follows"] = (
                    f"{_count(self.following, arm)}, mean score {_mean(self.following, arm)}"
                )
        return lines | {f"student against control, {name}": text for name, text in self._against_control().items()}

    def _against_control(self) -> dict[str, str]:
        """How the student's scores compare with the control's, by measure."""
        lines = {}
        for name, scores in (("activation", self.scores), ("what follows", self.following)):
            p_value = control_p_value(scores)
            if p_value is not None:
                higher = sum(
                    score.trends["student"].correlation > score.trends["control"].correlation for score in scores
                )
                lines[name] = f"higher for {higher} of {len(scores)} concepts, p = {p_value:.2g} (Wilcoxon)"
        return lines

    def _score_json(self, score: ConceptScore) -> dict[str, Any]:
        return {
            "concept": score.concept,
            "typical_tokens": self._typical(score.concept),
            "persistence": self._persistence(score.concept),
            "mixed_share": int(self.survey.mixed[score.concept]) / self.survey.positions,
            "typical_logit": float(self.survey.logit[score.concept]),
            "typical_latent": float(self.survey.latent[score.concept]),
            "control": score.control,
            "gain": score.gain,
            **{arm: {**score.trends[arm]._asdict(), "steers": score.steers(arm)} for arm in ARMS},
        }

    def to_csv(self) -> str:
        """One row per arm, concept and factor: the measurements' means over prompts."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        names = self.measured.measures
        writer.writerow(["arm", "concept", "turned", "factor", *names])
        for arm in ARMS:
            turned = self.measured.controls if arm == "control" else self.measured.concepts
            for row, concept in enumerate(self.measured.concepts):
                for column, factor in enumerate(self.measured.settings.factors):
                    means = [f"{self.measured.values[arm][name][row, column].mean():.6g}" for name in names]
                    writer.writerow([arm, concept, turned[row], f"{factor:g}", *means])
        return stream.getvalue()

    def to_markdown(self) -> str:
        """What steers, in words and tables."""
        lines = [f"# Steering of {self.run}", "", *self._summary(), ""]
        lines += ["## Concepts", ""]
        lines += [
            "Steering score: Spearman's rank correlation of factor and activation [95% interval]. Persistence: "
            "correlation, in training text, of the concept's activation at a token with its mean over the next "
            f"{self.survey.window}; a concept of single tokens (about 0) cannot be expected to stay in a text.",
            "",
        ]
        lines += self._concepts(self.scores)
        if self.following:
            lines += ["", "## What follows", ""]
            lines += [
                "The same with the tokens that follow the concept's labels in the training text, in place of its "
                "activation: a label speaks of the next token, so a concept that works brings these.",
                "",
            ]
            lines += self._concepts(self.following)
        lines += ["", "## By factor", "", "Means over concepts and prompts [95% interval over prompts]."]
        for name in self.measured.measures:
            curves = [curve(self.measured, arm, name) for arm in ARMS]
            rows = [
                [f"{factor:g}", *(_point(found, index) for found in curves)]
                for index, factor in enumerate(self.measured.settings.factors)
            ]
            unit = " (exponentiated: perplexity)" if name.endswith("_loss") else ""
            lines += ["", f"**{_measure_name(name)}**: {MEASURES[name]}{unit}.", ""]
            lines += _table(["factor", *ARMS], rows)
        lines += ["", "![Curves](steering.png)", ""]
        return "\n".join(lines)

    def _concepts(self, scores: tuple[ConceptScore, ...]) -> list[str]:
        header = ["concept", "typical tokens", "persistence", "score", "p", "steers", "gain", "control", "teacher"]
        rows = [
            [
                str(score.concept),
                self._typical(score.concept).replace("|", "\\|"),
                f"{self._persistence(score.concept):.2f}",
                _trend(score.trends["student"]),
                f"{score.trends['student'].p_value:.3f}",
                "yes" if score.steers() else "no",
                signed(score.gain),
                _trend(score.trends["control"]),
                _trend(score.trends["teacher"]),
            ]
            for score in scores
        ]
        return _table(header, rows)

    def _summary(self) -> list[str]:
        settings, scores = self.measured.settings, self.scores
        lines = []
        for arm in ARMS:
            line = f"- {_ARM_NAMES[arm]}: {_count(scores, arm)}, mean score {_mean(scores, arm)}"
            if self.following:
                line += f"; by what follows its labels {_count(self.following, arm)}, mean {_mean(self.following, arm)}"
            lines.append(f"{line}.")
        lines += [f"- Student against control, by {name}: {text}." for name, text in self._against_control().items()]
        return [
            f"Of each of {len(scores)} concepts, {_TURNS[settings.turn].format(len(settings.factors))}, from "
            f"{min(settings.factors):g} to {max(settings.factors):g}, and {settings.prompts} prompts of "
            f"{settings.prompt_tokens} tokens were continued by {settings.new_tokens} at each (temperature "
            f"{settings.temperature:g}, seed {settings.seed}). The texts were read by the teacher, {self.teacher}, "
            f"with the dictionary {self.dictionary}. A concept steers if its activation rises with the factor: "
            f"positive rank correlation, one-sided permutation p < {LEVEL}. By chance alone, about {LEVEL:.0%} of "
            "concepts would.",
            "",
            *lines,
        ]

    def _persistence(self, concept: int) -> float:
        return float(self.survey.persistence[concept])

    def _typical(self, concept: int) -> str:
        return self.descriptions[concept].name if concept in self.descriptions else ""

    def draw(self) -> bytes:
        """Activation, what follows (or else the label rate), perplexity and variety against the factor, as PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.0, 7.2), dpi=140, facecolor=LIGHT.background, layout="constrained")
        FigureCanvasAgg(figure)
        left_out = "label_rate" if self.following else "following"
        panels = [(name, title) for name, title in _PANELS.items() if name != left_out]
        for axes, (name, title) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            self._panel(axes, name, title)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, labelcolor=LIGHT.ink)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", facecolor=LIGHT.background, metadata={"Software": None})
        return stream.getvalue()

    def _panel(self, axes: "Axes", name: str, title: str) -> None:
        factors = np.array(self.measured.settings.factors)
        order = factors.argsort()
        for arm, colour, marker in zip(ARMS, (LIGHT.series[0], LIGHT.ink, LIGHT.series[1]), "os^", strict=True):
            mean, low, high = (values[order] for values in curve(self.measured, arm, name))
            axes.plot(factors[order], mean, color=colour, marker=marker, markersize=4.5, label=_ARM_NAMES[arm])
            axes.fill_between(factors[order], low, high, color=colour, alpha=0.15, linewidth=0)
        dress(axes, LIGHT)
        if name.endswith("_loss"):
            from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

            axes.set_yscale("log")
            bottom, top = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if top > 6 * bottom else MaxNLocator(5))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=LIGHT.ink)
        axes.set_xlabel("factor", color=LIGHT.ink)


def write_steer_report(report: SteerReport, folder: Path) -> None:
    """Write steering.json, steering.csv, steering.md and steering.png into a folder."""
    write_json(folder / "steering.json", report.to_json())
    write_text(folder / "steering.csv", report.to_csv())
    write_text(folder / "steering.md", report.to_markdown())
    (folder / "steering.png").write_bytes(report.draw())


def _count(scores: tuple[ConceptScore, ...], arm: Arm) -> str:
    return f"{sum(score.steers(arm) for score in scores)} of {len(scores)} concepts steer"


def _mean(scores: tuple[ConceptScore, ...], arm: Arm) -> str:
    return signed(float(np.mean([score.trends[arm].correlation for score in scores])))


def _measure_name(measure: str) -> str:
    return measure.replace("_loss", "_perplexity")


def _curve_json(found: Curve) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in found._asdict().items()}


def _trend(trend: RankTrend) -> str:
    return f"{trend.correlation:+.2f} [{trend.low:+.2f}, {trend.high:+.2f}]".replace("-", "\u2212")


def _point(found: Curve, index: int) -> str:
    return f"{found.mean[index]:.3g} [{found.low[index]:.3g}, {found.high[index]:.3g}]"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
