"""`cocomix steer-eval`: a run's steering measured with the teacher of its own labels, and the report of it."""

import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cocomix.artifacts import whole_folder, write_json, write_text
from cocomix.data import TRAIN, VALIDATION, TokenBlocks, positions_of_rows
from cocomix.evaluation import Figure, Run, open_run_data, render_page
from cocomix.evaluation.pages import NOTHING, Table, signed
from cocomix.evaluation.report import DARK, LIGHT, Theme, dress, png
from cocomix.evaluation.statistics import document_interval
from cocomix.interpret.atlas_pass import Array
from cocomix.interpret.effects import Strengths, concept_strengths
from cocomix.interpret.inspection import concept_model, describe_run_concepts, following_lifts
from cocomix.interpret.run_teacher import TextReader, open_run_teacher
from cocomix.interpret.steer_arms import (
    ARMS,
    Arm,
    PairedDifference,
    SteerEvalSettings,
    SteerMeasurements,
    check_measurable,
    measure_steering,
    paired_difference,
)
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError, require_extra

logger = logging.getLogger(__name__)

Measure = Literal["activation", "following"]

_FOLLOWING = ("own_follow", "others_follow")
_SURVEY_TOKENS = 65_536  # of training text, in which strengths are measured


@dataclass(frozen=True)
class SteerReport:
    """A steering evaluation of one run.

    Attributes:
        teacher: where the teacher was loaded from.
        dictionary: likewise.
        words: what was put before the prompts, for each concept.
    """

    run: str
    teacher: str
    dictionary: str
    measured: SteerMeasurements
    strengths: Strengths
    words: tuple[str, ...]

    def followed(self, arm: Arm = "student") -> bool:
        """Whether it was counted which tokens an arm brings: not without the run's labels or in another tokenizer."""
        return any("following" in row for row in self.measured.rows if row["arm"] == arm)

    def own_and_others(self, arm: Arm, measure: Measure = "activation") -> tuple[Array, Array]:
        """A measure of each concept in the texts in which it is turned, and where the others are, averaged over them.
        [concepts, factors, prompts] each
        """
        every = self.measured.of(arm, measure)  # [turned, factors, prompts, measured]
        own = np.einsum("cfpc->cfp", every)
        return own, (np.moveaxis(every.sum(0), -1, 0) - own) / (len(own) - 1)

    @cached_property
    def trends(self) -> dict[Arm, tuple[Array, Array]]:
        """(own, others): Spearman's rank correlation of factor and activation, averaged over the others. [concepts]"""
        found: dict[Arm, tuple[Array, Array]] = {}
        for arm in ("student", "teacher"):
            every = self.measured.of(arm, "activation").mean(2)  # [turned, factors, measured]
            factors = pd.Series(self.measured.settings.factors).rank()
            # 0 where the activation is the same at every factor.
            pairs = np.array([pd.DataFrame(turned).rank().corrwith(factors).fillna(0) for turned in every])
            own = pairs.diagonal()  # of [turned, measured]
            found[arm] = (own, (pairs.sum(0) - own) / (len(own) - 1))
        return found

    @cached_property
    def perplexity(self) -> dict[Arm, Array]:
        """The teacher's perplexity of each arm's texts. [factors]"""
        return {arm: np.exp(np.nanmean(self.measured.of(arm, "loss"), (0, 2))) for arm in ARMS}

    @cached_property
    def neutral(self) -> int:
        """Place of the factor that changes nothing."""
        return self.measured.settings.factors.index(self.measured.settings.neutral)

    def best(self, measure: Measure = "activation") -> int:
        """Place of the factor that raises the student's concepts most, of those whose texts are fluent enough.

        Chosen on every second prompt; what is said of it is measured on the others.
        """
        ratio = self.perplexity["student"] / self.perplexity["student"][self.neutral]
        raised = self.own_and_others("student", measure)[0][:, :, ::2].mean((0, 2))
        return int(np.where(ratio <= self.measured.settings.fluency, raised, -np.inf).argmax())

    def gains(self, measure: Measure = "activation") -> dict[str, Array]:
        """Change of each concept at the best factor, beside where others are turned, and with its words in the prompt.
        [concepts]
        """
        (own, others), (prompt, _) = (self.own_and_others(arm, measure) for arm in ("student", "prompt"))
        own, others, prompt = (values[:, :, 1::2].mean(-1) for values in (own, others, prompt))
        best, plain = self.best(measure), own[:, self.neutral]
        return {
            "steering": own[:, best] - plain,
            "control": own[:, best] - others[:, best],
            "prompt": prompt[:, 0] - plain,
        }

    @cached_property
    def tests(self) -> dict[str, PairedDifference]:
        """The comparisons, concept by concept."""
        differences = {f"{arm}_own_minus_others": own - others for arm, (own, others) in self.trends.items()}
        gains = self.gains()
        differences |= {f"{name}_gain": gains[name] for name in ("steering", "prompt")}
        differences["steering_minus_prompt_gain"] = gains["steering"] - gains["prompt"]
        if self.followed():
            gains = self.gains("following")
            differences["following_own_minus_others"] = gains["control"]
            differences |= {f"following_{name}_gain": gains[name] for name in ("steering", "prompt")}
            differences["following_steering_minus_prompt_gain"] = gains["steering"] - gains["prompt"]
        seed = self.measured.settings.seed
        return {name: paired_difference(values, seed=seed) for name, values in differences.items()}

    def found(self) -> list[str]:
        """What was found, one sentence each."""
        tests, student, best = self.tests, self.perplexity["student"], self.best()
        steers, latents = tests["student_own_minus_others"], tests["teacher_own_minus_others"]
        beats = tests["steering_minus_prompt_gain"]
        shown = "raises" if steers.shown else "is not shown to raise"
        untested = "; a test needs six concepts or more (--num-concepts)" if steers.p_value is None else ""
        found = [
            f"Turning a concept in the student {shown} it in the text more than turning another does: difference of "
            f"the rank correlations of factor and activation {steers}{untested}.",
            f"In the teacher, whose latents are turned: {latents}.",
            f"Steering at {self._named(best)} changes the concept's activation by {tests['steering_gain']}; its words "
            f"in the prompt by {tests['prompt_gain']}.",
            f"Steering is {'' if beats.shown else 'not shown to be '}better than the prompt: difference {beats}.",
            f"The teacher's perplexity of the texts is {student[self.neutral]:.1f} unsteered, {student[best]:.1f} "
            f"at that factor, {self.perplexity['prompt'][0]:.1f} with the words in the prompt (lower is better).",
        ]
        if not self.followed():
            return found
        brings, place = tests["following_own_minus_others"], self.best("following")
        return [
            *found,
            f"Turning a concept {'brings' if brings.shown else 'is not shown to bring'} the tokens that follow its "
            f"labels in the training text. At {self._named(place)}, with a perplexity of {student[place]:.1f}, they "
            f"gain, in nats per token, on turning another {brings}; on its words in the prompt "
            f"{tests['following_steering_minus_prompt_gain']}.",
        ]

    def _named(self, place: int) -> str:
        """A factor in a sentence."""
        said = f"factor {self.measured.settings.factors[place]:g}"
        if place == self.neutral:
            said += " (which changes nothing: no other whose texts stay fluent does more)"
        return said

    def tables(self) -> tuple[Table, Table]:
        """By factor, and by concept."""
        rows = []
        for arm, of in self.to_json()["curves"].items():
            for place, (own, low, high) in enumerate(zip(of["own"], of["low"], of["high"], strict=True)):
                factor = NOTHING if arm == "prompt" else f"{self.measured.settings.factors[place]:g}"
                follow = [signed(of[name][place]) if name in of else NOTHING for name in _FOLLOWING]
                numbers = f"{own:.3f} [{low:.3f}, {high:.3f}]", f"{of['others'][place]:.3f}", *follow
                rows.append((arm, factor, *numbers, f"{of['perplexity'][place]:.1f}", f"{of['distinct_2'][place]:.2f}"))
        measures = ("own, activation", "others, activation", "own follow, nats", "others follow, nats")
        said = "How much likelier the text's tokens are after the concept's labels in the training text than elsewhere"
        by_factor = Table(
            ("arm", "factor", *measures, "perplexity, lower is better", "distinct, share"),
            rows,
            caption="Dose and response, means over concepts and prompts",
            meanings={
                "own": "Activation of the concept that was turned [95% interval over concepts].",
                "others": "Activation of the concept where the others were turned: the control.",
                "own follow": f"{said}; not counted in a teacher's own tokens.",
                "others follow": "The same where the others were turned.",
                "perplexity": "Of the new text under the unsteered teacher, per token of its own.",
                "distinct": "Distinct pairs of neighbouring tokens, of all pairs of a text.",
            },
        )
        shown = ("student", "teacher", "steering_gain", "prompt_gain", "following")
        by_concept = Table(
            ("concept", "words", *(name.replace("_", " ") for name in shown)),
            [
                (str(row["concept"]), row["words"], *(signed(row[name]) if name in row else NOTHING for name in shown))
                for row in self.concepts()
            ],
            caption="Concepts",
            text_columns=2,
            meanings={
                "student": "Rank correlation of factor and activation where the concept is turned in the student, "
                "minus the mean where others are; teacher likewise.",
                "steering gain": "Change of the activation at the factor compared with the prompt.",
                "prompt gain": "Change of the activation with the concept's words before the prompt.",
                "following": f"{said}, in nats, minus the same where others are turned.",
            },
        )
        return by_factor, by_concept

    def concepts(self) -> list[dict[str, Any]]:
        """One object per concept, the one that steers most in the student first."""
        concepts = list(self.measured.settings.concepts)
        columns = {"concept": concepts, "words": self.words, "predicted": self.strengths.share[concepts]}
        columns |= {"amount": self.strengths.logit[concepts]}
        gains = self.gains()
        columns |= {f"{name}_gain": gains[name] for name in ("steering", "prompt")}
        if self.followed():
            columns["following"] = self.gains("following")["control"]
        columns |= {arm: own - others for arm, (own, others) in self.trends.items()}
        found = pd.DataFrame(columns).sort_values(["student", "concept"], ascending=[False, True])
        return list(found.to_dict("records"))

    def to_json(self) -> dict[str, Any]:
        """Tests, concepts, curves and settings as JSON; the texts are in texts.parquet."""
        curves = {}
        for arm in ARMS:
            own, others = self.own_and_others(arm)
            means, seed = own.mean(-1), self.measured.settings.seed  # [concepts, factors]
            ends = np.array([document_interval(factor, np.arange(len(own)), seed=seed) for factor in means.T])
            columns = {"own": means.mean(0), "low": ends[:, 0], "high": ends[:, 1], "others": others.mean((0, 2))}
            if self.followed(arm):
                follow = (part.mean((0, 2)) for part in self.own_and_others(arm, "following"))
                columns |= dict(zip(_FOLLOWING, follow, strict=True))
            columns["perplexity"] = self.perplexity[arm]
            columns["distinct_2"] = self.measured.of(arm, "distinct_2").mean((0, 2))
            curves[arm] = {name: values.tolist() for name, values in columns.items()}
        return {
            "format_version": 3,
            "run": self.run,
            "teacher": self.teacher,
            "dictionary": self.dictionary,
            "settings": asdict(self.measured.settings),
            "best_factor": self.measured.settings.factors[self.best()],
            "tests": {name: test._asdict() for name, test in self.tests.items()},
            "concepts": self.concepts(),
            "curves": curves,
        }

    def page(self) -> str:
        """The report as one HTML page."""
        settings = self.measured.settings
        added = "added to the logit, in units that reach from its mean to where the concept truly is"
        protocol = [
            f"{len(self.words)} concepts, {settings.prompts} validation prompts of {settings.prompt_tokens} "
            f"tokens, each continued by {settings.new_tokens} (temperature {settings.temperature:g}, seed "
            f"{settings.seed}). Factors are {added if settings.turn == 'add' else 'multiplied with the logit'}; in the "
            "teacher likewise with the latent.",
            f"The teacher {self.teacher} with the dictionary {self.dictionary} reads every text for every concept. One "
            "of another tokenizer than the student's reads and writes in its own tokens. The prompt arm puts the "
            "concept's words of highest lift before the prompt; the text is read without them.",
            "The factor compared with the prompt is chosen on every second prompt, among those whose perplexity is at "
            f"most {settings.fluency:g} times the unsteered one, and measured on the others.",
        ]
        by_factor, by_concept = self.tables()
        alt = "Activation of turned and other concepts, and perplexity, against the factor"
        return render_page(
            f"Steering of {self.run}",
            self.found(),
            [
                {"heading": "Dose and response", "tables": [by_factor]},
                {"heading": "Figure", "figures": [Figure(self._draw(LIGHT), self._draw(DARK), alt)]},
                {"heading": "Concepts", "tables": [by_concept]},
                {"heading": "Protocol", "text": protocol},
            ],
        )

    def _draw(self, theme: Theme) -> bytes:
        """Activation and perplexity against the factor, as PNG."""
        from matplotlib.figure import Figure as Canvas

        factors = np.array(self.measured.settings.factors)
        order = factors.argsort()
        figure = Canvas(figsize=(11.0, 4.4), dpi=140, facecolor=theme.background, layout="constrained")
        left, right = figure.subplots(1, 2)
        arms: tuple[tuple[Arm, str, str], ...] = (("student", theme.series[0], "o"), ("teacher", theme.series[1], "^"))
        for arm, colour, marker in arms:
            own, others = (part.mean((0, 2))[order] for part in self.own_and_others(arm))
            left.plot(factors[order], own, color=colour, marker=marker, label=f"{arm}, own concept")
            left.plot(factors[order], others, color=colour, linestyle=":", label=f"{arm}, others")
            right.plot(factors[order], self.perplexity[arm][order], color=colour, marker=marker)
        for axes, value, title in (
            (left, self.own_and_others("prompt")[0].mean(), "activation in the teacher's dictionary"),
            (right, self.perplexity["prompt"][0], "perplexity under the teacher (lower is better)"),
        ):
            axes.axhline(value, color=theme.ink, linestyle="--", label="words in the prompt")
            dress(axes, theme)
            axes.set_title(title, loc="left", color=theme.ink)
            axes.set_xlabel("factor", color=theme.ink)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, labelcolor=theme.ink)
        return png(figure)


def evaluate_run_steering(
    run: Run,
    output: Path,
    settings: SteerEvalSettings | None = None,
    *,
    teacher: str | None = None,
    dictionary: str | None = None,
) -> SteerReport:
    """Measure how a run's concepts steer, and write steering.json, texts.parquet and steering.html.

    Refused where the run has no concepts to steer; its data, teacher or dictionary is not to be found or does not
    belong to it; a concept does not exist; `output` exists.

    Args:
        run: a CoCoMix run that mixes its concepts in, with its data still there.
        output: the folder to create; it appears when it is whole.
        teacher: of the concepts; by default, as its `dictionary`, as the run's recipe or labels say.
    """
    require_extra("report", "matplotlib", "scipy", purpose="a report")
    settings = settings or SteerEvalSettings()
    with whole_folder(output) as folder:
        student = concept_model(run.model(), mixing=True).to(default_device())
        data = open_run_data(run)
        reader = TextReader(open_run_teacher(run, data, teacher=teacher, dictionary=dictionary))
        check_measurable(student, reader, settings)
        prompts = _prompts(data.split(VALIDATION), settings)
        train = data.split(TRAIN)
        step = max(1, len(train) * train.block_size // _SURVEY_TOKENS)
        text = torch.stack([train[row]["input_ids"] for row in range(0, len(train), step)])
        meta, positions = data.manifest, None
        if run.manifest.document_masks:
            positions = positions_of_rows(text, meta.eos_token_id, meta.bos_token_id)
        strengths = concept_strengths(student, text, positions, reader)
        if not settings.concepts:
            chosen = strengths.usable(settings.num_concepts, active=True)
            if len(chosen) < 2:
                raise CoCoMixError(
                    f"{len(chosen)} concepts are predicted at half of the positions or fewer and active in the "
                    "teacher; two are needed, so train longer, or name some with --concepts."
                )
            settings = replace(settings, concepts=tuple(chosen))
        described = describe_run_concepts(run, settings.concepts)
        terms = [described[one].terms[:3] if one in described else () for one in settings.concepts]
        words = tuple(", ".join(word for word, _ in few) for few in terms)
        tokenizer = data.tokenizer()
        measured = measure_steering(
            student,
            reader,
            prompts,
            settings,
            strengths,
            [tokenizer.encode(f"{found}. ", add_special_tokens=False) if found else [] for found in words],
            end=tokenizer.eos_token_id,
            vocab_size=data.manifest.vocab_size,
            head=0 if data.manifest.bos_token_id is None else 1,
        )
        lifts = following_lifts(run, settings.concepts)
        for row in measured.rows:
            if lifts is not None and (row["arm"] != "teacher" or reader.aligned is None):  # in the student's tokens
                row["following"] = lifts[:, row["tokens"][settings.prompt_tokens :]].mean(1).tolist()
        names = run.manifest.name, reader.teacher.name, reader.teacher.dictionary.name
        report = SteerReport(*names, measured, strengths, words)
        write_json(folder / "steering.json", report.to_json())
        write_text(folder / "steering.html", report.page())
        writers = dict.fromkeys(ARMS, tokenizer)
        if reader.aligned is not None:
            writers["teacher"] = reader.aligned.teacher
        rows = [{**row, "text": writers[row["arm"]].decode(row["tokens"])} for row in measured.rows]
        pq.write_table(pa.Table.from_pylist(rows), folder / "texts.parquet")
    logger.info(f"report: {output / 'steering.html'}")
    return report


def _prompts(blocks: TokenBlocks, settings: SteerEvalSettings) -> torch.Tensor:
    """Beginnings of validation blocks, evenly spread over the split. [prompts, prompt_tokens]"""
    if len(blocks) < settings.prompts:
        raise CoCoMixError(
            f"the validation split has {len(blocks)} blocks, fewer than the {settings.prompts} prompts asked for; "
            "lower --prompts."
        )
    if settings.prompt_tokens > blocks.block_size:
        raise CoCoMixError(
            f"prompts of {settings.prompt_tokens} tokens are longer than the data's blocks of {blocks.block_size}; "
            "lower --prompt-tokens."
        )
    step = len(blocks) // settings.prompts
    rows = [blocks[number * step]["input_ids"][: settings.prompt_tokens] for number in range(settings.prompts)]
    return torch.stack(rows)
