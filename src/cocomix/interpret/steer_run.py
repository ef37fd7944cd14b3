"""`cocomix steer-eval`: a run's steering, measured with the teacher of its own labels."""

from dataclasses import replace
from pathlib import Path

import torch

from cocomix.concepts import ConceptLabelStore
from cocomix.data import VALIDATION, PreparedData, TokenBlocks, positions_of_rows
from cocomix.device import default_device
from cocomix.errors import CoCoMixError
from cocomix.evaluation import Run
from cocomix.evaluation.run_evaluation import open_run_data
from cocomix.interpret.followers import follower_scores
from cocomix.interpret.prompts import concept_model
from cocomix.interpret.run_concepts import describe_run_concepts
from cocomix.interpret.run_teacher import open_run_teacher, run_labels
from cocomix.interpret.steer_eval import SteerEvalSettings, choose_concepts, measure_steering
from cocomix.interpret.steer_report import SteerReport, write_steer_report
from cocomix.modeling import CoCoMixForCausalLM
from cocomix.output import staged_directory
from cocomix.reporter import Reporter, SilentReporter

__all__ = ["evaluate_run_steering"]

_CHOICE_BLOCKS = 32  # of text, in which concepts are counted


def evaluate_run_steering(
    run: Run,
    output: Path,
    settings: SteerEvalSettings | None = None,
    *,
    teacher: str | None = None,
    dictionary: str | None = None,
    reporter: Reporter | None = None,
) -> SteerReport:
    """Measure how a run's concepts steer and write steering.json, .csv, .md and .png.

    Args:
        run: a CoCoMix run that mixes its concepts in, with its data still there.
        output: the folder to create; it appears when it is whole.
        settings: concepts, factors and texts.
        teacher: of the concepts; by default as the run's recipe or labels say.
        dictionary: likewise.
        reporter: told about progress.

    Raises:
        CoCoMixError: the run has no concepts to steer; its data, teacher or dictionary is not to be found or does not
            belong to it; a concept does not exist; `output` exists.
    """
    reporter, settings = reporter or SilentReporter(), settings or SteerEvalSettings()
    with staged_directory(output) as folder:
        student = concept_model(run.model(), mixing=True).to(default_device())
        data = open_run_data(run)
        opened = open_run_teacher(run, data, teacher=teacher, dictionary=dictionary)
        blocks = data.split(VALIDATION)
        if not settings.concepts:
            chosen = _choose(student, run, data, settings.num_concepts)
            settings = replace(settings, concepts=chosen)
            reporter.say(f"concepts chosen by frequency: {', '.join(map(str, chosen))}")
        store = _labels(run, data)
        measured = measure_steering(
            student,
            opened.teacher,
            opened.labels,
            _prompts(blocks, settings),
            settings,
            end=run.tokenizer().eos_token_id,
            vocab_size=data.meta.vocab_size,
            followers=None if store is None else follower_scores(data, store, settings.concepts),
            reporter=reporter,
        )
        report = SteerReport(
            run=run.manifest.name,
            teacher=opened.teacher.name,
            dictionary=opened.teacher.dictionary.name,
            measured=measured,
            descriptions=describe_run_concepts(run, settings.concepts),
        )
        write_steer_report(report, folder)
    reporter.say(f"report: {output / 'steering.md'}")
    return report


def _choose(student: CoCoMixForCausalLM, run: Run, data: PreparedData, count: int) -> tuple[int, ...]:
    """Concepts by their frequency in the first validation blocks."""
    blocks, store = data.split(VALIDATION), _labels(run, data)
    used = range(min(_CHOICE_BLOCKS, len(blocks)))
    input_ids = torch.stack([blocks[index]["input_ids"] for index in used])
    labels = None
    if store is not None:
        split = store.split(VALIDATION)
        labels = torch.stack([split[index]["concept_labels"] for index in used])
    positions = None
    if run.manifest.document_masks:
        positions = positions_of_rows(input_ids, data.meta.eos_token_id, data.meta.bos_token_id)
    return choose_concepts(student, input_ids, labels, count, positions)


def _labels(run: Run, data: PreparedData) -> ConceptLabelStore | None:
    """The run's labels, if they are still there and belong to the data."""
    store = run_labels(run)
    return store if store is not None and store.manifest.data_fingerprint == data.meta.fingerprint else None


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
