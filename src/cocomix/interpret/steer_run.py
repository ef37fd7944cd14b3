"""`cocomix steer-eval`: a run's steering, measured with the teacher of its own labels."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cocomix.artifacts import whole_folder
from cocomix.concepts import ConceptTeacher
from cocomix.data import TRAIN, VALIDATION, TokenBlocks, Tokens, positions_of_rows
from cocomix.evaluation import Run, open_run_data, run_labels
from cocomix.interpret.followers import follower_scores
from cocomix.interpret.inspection import concept_model, describe_run_concepts
from cocomix.interpret.run_teacher import open_run_teacher
from cocomix.interpret.steer_effects import SteerEvalSettings, check_measurable, measure_steering
from cocomix.interpret.steer_report import SteerReport, write_steer_report
from cocomix.interpret.survey import ConceptSurvey, choose_concepts, survey_concepts
from cocomix.labelling import Labels
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError, require_extra

__all__ = ["evaluate_run_steering"]

logger = logging.getLogger(__name__)

_SURVEY_TOKENS = 65_536  # of training text, in which concepts are counted


def evaluate_run_steering(
    run: Run,
    output: Path,
    settings: SteerEvalSettings | None = None,
    *,
    teacher: str | None = None,
    dictionary: str | None = None,
) -> SteerReport:
    """Measure how a run's concepts steer and write steering.json, .csv, .md and .png.

    Args:
        run: a CoCoMix run that mixes its concepts in, with its data still there.
        output: the folder to create; it appears when it is whole.
        settings: concepts, factors and texts.
        teacher: of the concepts; by default as the run's recipe or labels say.
        dictionary: likewise.

    Raises:
        CoCoMixError: the run has no concepts to steer; its data, teacher or dictionary is not to be found or does not
            belong to it; a concept does not exist; `output` exists.
    """
    require_extra("report", "matplotlib", "scipy", purpose="a report")
    settings = settings or SteerEvalSettings()
    with whole_folder(output) as folder:
        student = concept_model(run.model(), mixing=True).to(default_device())
        data = open_run_data(run)
        opened = open_run_teacher(run, data, teacher=teacher, dictionary=dictionary)
        check_measurable(student, opened.teacher, settings)
        prompts = _prompts(data.split(VALIDATION), settings)
        store = _labels(run, data)
        rows = _survey_rows(data)
        survey = _survey(run, data, student, opened.teacher, rows, settings)
        if not settings.concepts:
            scores = survey.persistence if settings.choice == "persistent" else _frequency(survey, store, rows)
            settings = replace(settings, concepts=choose_concepts(survey, scores, settings.num_concepts))
            logger.info(f"the most {settings.choice} concepts: {', '.join(map(str, settings.concepts))}")
        measured = measure_steering(
            student,
            opened.teacher,
            opened.labeller,
            opened.k,
            prompts,
            settings,
            end=run.tokenizer().eos_token_id,
            vocab_size=data.manifest.vocab_size,
            survey=survey,
            followers=None if store is None else follower_scores(data, store, settings.concepts),
        )
        report = SteerReport(
            run=run.manifest.name,
            teacher=opened.teacher.name,
            dictionary=opened.teacher.dictionary.name,
            measured=measured,
            survey=survey,
            descriptions=describe_run_concepts(run, settings.concepts),
        )
        write_steer_report(report, folder)
    logger.info(f"report: {output / 'steering.md'}")
    return report


def _survey_rows(data: Tokens) -> list[int]:
    """Training blocks of some text, evenly spread over the split."""
    blocks = data.split(TRAIN)
    return list(range(0, len(blocks), max(1, len(blocks) * blocks.block_size // _SURVEY_TOKENS)))


def _survey(
    run: Run,
    data: Tokens,
    student: CoCoMixForCausalLM,
    teacher: ConceptTeacher,
    rows: Sequence[int],
    settings: SteerEvalSettings,
) -> ConceptSurvey:
    blocks = data.split(TRAIN)
    input_ids = torch.stack([blocks[row]["input_ids"] for row in rows])
    positions = None
    if run.manifest.document_masks:
        positions = positions_of_rows(input_ids, data.manifest.eos_token_id, data.manifest.bos_token_id)
    window = min(settings.new_tokens, blocks.block_size // 2)
    return survey_concepts(student, teacher, input_ids, window=window, position_ids=positions)


def _frequency(survey: ConceptSurvey, store: Labels | None, rows: Sequence[int]) -> torch.Tensor:
    """How many of the blocks' tokens each concept labels; without labels, at how many it is mixed in. [n_concepts]"""
    if store is None:
        return survey.mixed
    split = store.split(TRAIN)
    labels = torch.stack([split[row]["concept_labels"] for row in rows])
    return torch.bincount(labels[labels >= 0], minlength=len(survey.mixed))


def _labels(run: Run, data: Tokens) -> Labels | None:
    """The run's labels, if they are still there and belong to the data."""
    store = run_labels(run)
    return store if store is not None and store.manifest.made_from["tokens"] == data.manifest.fingerprint else None


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
