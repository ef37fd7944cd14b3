"""Folders of concept labels and of what a teacher predicts, each made by itself or both in one pass of the teacher."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file

from cocomix.artifacts import fingerprint_json, partial_path
from cocomix.concepts import (
    AlignedTeacher,
    DictionaryConfig,
    FittedLabeller,
    LabellerConfig,
    LoadedTeachers,
    TeacherConfig,
    TeacherLabellerConfig,
    files_fingerprint,
    has_other_weights,
    reads_hidden,
)
from cocomix.data import Tokens
from cocomix.labelling.block_functions import (
    DistillFunction,
    LabelFunction,
    OnePass,
    SentTokens,
    code_version,
    fit_flops,
    open_labeller,
    targets_for,
)
from cocomix.labelling.stored_arrays import StoredArrays
from cocomix.labelling.stored_labels import TABLES, Labels, Scores, label_layouts
from cocomix.labelling.stored_probabilities import (
    ProbabilityDtype,
    TargetKind,
    TeacherProbabilities,
    probability_layouts,
)
from cocomix.labelling.storing import A, Job, Order, made, store
from cocomix.runtime.device import auto_dtype, default_device
from cocomix.runtime.errors import CoCoMixError

_DEFAULT_TOP_K: dict[TargetKind, int] = {"top_k": 64, "first_token": 32, "uld": 32, "alm": 0}


def label_data(
    data: Path | str,
    config: LabellerConfig,
    output: Path,
    *,
    scores: Scores = "float16",
    force: bool = False,
    blocks: int | None = None,
    job: Job | None = None,
    teachers: LoadedTeachers | None = None,
) -> Labels | None:
    """Label every token of a data set with concepts (`cocomix label`), or those of one job's part of its shards.

    Args:
        data: folder written by `cocomix prepare`.
        scores: type in which scores are kept; `none` halves the room on the disk.
        force: go on with a dictionary or a dtype that `open_labeller` would refuse.
        blocks: label only so many training blocks, from the beginning; all by default. Other splits are labelled whole.
        teachers: where the teacher is found, so that several calls share it; loaded for this call alone by default.

    Returns:
        The labels; None while shards are left to other jobs.

    Raises:
        CoCoMixError: as `open_labeller` and `store`.
    """
    call = _Call(Tokens.open(data), job or Job(), blocks, teachers or LoadedTeachers())
    return _alone(_labels(call, config, output, scores, force), call)


def distill_data(
    data: Path | str,
    teacher: TeacherConfig,
    output: Path,
    *,
    kind: TargetKind | Literal["auto"] = "auto",
    top_k: int | None = None,
    dtype: ProbabilityDtype | Literal["auto"] = "float32",
    blocks: int | None = None,
    job: Job | None = None,
    teachers: LoadedTeachers | None = None,
) -> TeacherProbabilities | None:
    """Store what a teacher predicts on a data set (`cocomix distill`), or on one job's part of its shards.

    Args:
        teacher: the language model; its layer plays no part.
        kind: of the targets. `auto` is `top_k` where the teacher has the data's tokenizer, and `first_token` where it
            has another one. The first-token marginal of a teacher of the data's tokenizer is its `top_k`.
        top_k: probabilities kept per position, by default 64 of `top_k` and 32 of the others; with the size of the
            vocabulary, the whole distribution. Not for `alm`.
        dtype: what the teacher runs in; `auto` is bfloat16 on a GPU and on a CPU with AMX, else float32.

    Returns:
        The targets; None while shards are left to other jobs.

    Raises:
        CoCoMixError: `top_k` is out of range; the kind does not suit the tokenizers; nothing can be loaded; as `store`.
    """
    call = _Call(Tokens.open(data), job or Job(), blocks, teachers or LoadedTeachers())
    return _alone(_probabilities(call, teacher, output, kind, top_k, dtype), call)


def label_and_distill(
    data: Path | str,
    config: LabellerConfig,
    output: Path,
    probabilities: Path,
    *,
    scores: Scores = "float16",
    force: bool = False,
    top_k: int | None = None,
    blocks: int | None = None,
    job: Job | None = None,
    distilled_as: Mapping[str, Any] | None = None,
    teachers: LoadedTeachers | None = None,
) -> tuple[Labels | None, TeacherProbabilities | None]:
    """Label every token and store what the same teacher predicts there (`cocomix label --probabilities`).

    The folders hold what `label_data` and `distill_data` (of kind `auto`, in the labels' dtype) write. Where labels are
    made of hidden states alone (`reads_hidden`), the teacher reads each batch once, and both manifests name that pass.
    Otherwise, and where one of the folders is finished or was begun by itself, each is made in a pass of its own.

    Args:
        config: settings of a labeller with a teacher.
        top_k: of the probabilities, as in `distill_data`.
        distilled_as: options of the command line, for the manifest of the probabilities; those of `job` are the
            labels'.

    Returns:
        Both folders; None for one of which shards are left to other jobs.

    Raises:
        CoCoMixError: the labels have no teacher, or are made in float16, in which no probabilities are; both folders
            are the same; as `label_data` and `distill_data`.
    """
    call = _Call(Tokens.open(data), job or Job(), blocks, teachers or LoadedTeachers())
    config = config.resolved(default_device())
    if not isinstance(config, TeacherLabellerConfig) or config.teacher is None:
        raise CoCoMixError(
            f"labels of kind {config.kind!r} have no teacher whose probabilities could be stored, too; make those with "
            "`cocomix distill`."
        )
    if config.dtype != "float32" and config.dtype != "bfloat16":
        raise CoCoMixError(
            f"a teacher that labels in {config.dtype} cannot give probabilities in it; use dtype bfloat16 or float32, "
            "or make them with `cocomix distill`."
        )
    if output == probabilities:
        raise CoCoMixError(f"labels and probabilities cannot both go to {output}; name another folder for one of them.")
    second = replace(call, job=replace(call.job, asked=distilled_as or {}))
    labels = _labels(call, config, output, scores, force)
    targets = _probabilities(second, config.teacher, probabilities, "auto", top_k, config.dtype)
    if isinstance(labels, Order) and isinstance(targets, Order) and reads_hidden(config):
        orders = _together(labels, targets)
        if all(order.may_share() for order in orders):
            found, distilled = store(orders, call.tokens, call.job, blocks)
            return found, distilled
    return _alone(labels, call), _alone(targets, call)


@dataclass(frozen=True)
class _Call:
    """What is labelled or distilled, and how the work is done."""

    tokens: Tokens
    job: Job
    blocks: int | None
    teachers: LoadedTeachers


def _alone(order: Order[A] | A, call: _Call) -> A | None:
    """A folder made in a pass of its own, or one that is there."""
    return store([order], call.tokens, call.job, call.blocks)[0] if isinstance(order, Order) else order


def _together(labels: Order[Labels], targets: Order[TeacherProbabilities]) -> list[Order[Any]]:
    """The two folders as one pass fills them, which is named by what both are made of."""
    both = OnePass(labels.function, targets.function)
    shared = {
        "id": fingerprint_json([dict(order.identity) for order in (labels, targets)]),
        "flops_per_token": both.decoder.flops_per_token(both.block_size, up_to="layer"),
    }
    return [
        replace(order, function=both, columns=columns, about={**order.about, "shared_pass": shared})
        for order, columns in ((labels, both.columns_of("labels")), (targets, both.columns_of("probabilities")))
    ]


def _labels(call: _Call, config: LabellerConfig, output: Path, scores: Scores, force: bool) -> Labels | Order[Labels]:
    """The folder if it is finished; else a labeller that is loaded and tried, ready to make it."""
    tokens, blocks, block_size = call.tokens, call.blocks, call.tokens.manifest.block_size
    config, batch = config.resolved(default_device()), call.job.batch(block_size)
    labels = config.model_dump(mode="json")
    identity = {"tokens": tokens.manifest.fingerprint, "labels": labels, "scores": scores, "blocks_per_batch": batch}
    identity |= {} if blocks is None else {"blocks": blocks}
    teacher = config.teacher if isinstance(config, TeacherLabellerConfig) else None
    dictionary = config.dictionary if isinstance(config, TeacherLabellerConfig) else None
    if (whole := made(Labels, output, identity, partial(_changed, call, teacher, dictionary))) is not None:
        return whole
    begun = partial_path(output) / TABLES
    labeller, agreement = open_labeller(
        tokens, config, tables=load_file(begun) if begun.is_file() else None, force=force, teachers=call.teachers
    )
    fingerprint, count = labeller.fingerprint(), labeller.num_concepts
    tables = labeller.tables() if isinstance(labeller, FittedLabeller) else {}
    made_with = {name: value for name, value in fingerprint.items() if name not in (*labels, "configuration")}
    made_with["code"] = code_version()
    function = LabelFunction(
        label_layouts(block_size, config.k, count, scores),
        block_size,
        batch,
        made_with,
        labeller,
        config,
        SentTokens(tokens.manifest, tokens.tokenizer() if isinstance(labeller, AlignedTeacher) else None),
        tables,
        force,
    )
    about = {
        **_about(call, teacher, fingerprint, labeller.flops_per_token(block_size)),
        "labels": labels,
        "labeller": fingerprint,
        "num_concepts": count,
        "scores": scores,
        "agreement_with_float32": None if agreement is None else agreement.equal_sets,
        "score_kept_of_float32": None if agreement is None else agreement.score_kept,
        "fit_flops": fit_flops(tokens, labeller),
    }
    files = {TABLES: lambda path: save_file(tables, path)} if tables else {}
    identity |= {"made_with": made_with}
    return Order(Labels, output, function, function.columns, identity, about, files)


def _probabilities(
    call: _Call,
    teacher: TeacherConfig,
    output: Path,
    kind: TargetKind | Literal["auto"],
    top_k: int | None,
    dtype: ProbabilityDtype | Literal["auto"],
) -> TeacherProbabilities | Order[TeacherProbabilities]:
    """The folder if it is finished; else a teacher that is loaded, ready to make it."""
    tokens, blocks, device = call.tokens, call.blocks, default_device()
    vocab_size, block_size = tokens.manifest.vocab_size, tokens.manifest.block_size
    targets = targets_for(tokens, teacher, kind, call.teachers)
    if targets == "alm" and top_k is not None:
        raise CoCoMixError("the kind alm stores one number a chunk of text; leave top_k out.")
    kept = top_k if top_k is not None else _DEFAULT_TOP_K[targets]
    if targets != "alm" and not 1 <= kept <= vocab_size:
        raise CoCoMixError(f"top_k={kept} must be between 1 and the {vocab_size} tokens of the vocabulary.")
    if dtype == "auto":
        dtype = auto_dtype(device)
    batch, source = call.job.batch(block_size), teacher.model_dump(mode="json", exclude={"layer"})
    identity = {
        "tokens": tokens.manifest.fingerprint,
        "teacher": source,
        "top_k": kept,
        "dtype": dtype,
        "blocks_per_batch": batch,
        **({} if targets == "top_k" else {"targets": targets}),
        **({} if blocks is None else {"blocks": blocks}),
    }
    if (whole := made(TeacherProbabilities, output, identity, partial(_changed, call, teacher, None))) is not None:
        return whole
    sent = SentTokens(tokens.manifest, None if targets == "top_k" else tokens.tokenizer())
    layouts = probability_layouts(block_size, kept, vocab_size, targets)
    function = DistillFunction(layouts, block_size, batch, {}, None, teacher, targets, kept, dtype, sent)
    distiller = function.model = function.load(call.teachers, device)
    fingerprint = distiller.fingerprint()
    function.made_with = {**fingerprint, "code": code_version()}
    about = {
        **_about(call, teacher, fingerprint, distiller.flops_per_token(block_size)),
        "teacher": teacher.model,
        "vocab_size": vocab_size,
        "top_k": kept,
        "dtype": dtype,
        "targets": targets,
    }
    identity |= {"made_with": function.made_with}
    return Order(TeacherProbabilities, output, function, function.columns, identity, about)


def _changed(
    call: _Call, teacher: TeacherConfig | None, dictionary: DictionaryConfig | None, found: StoredArrays[Any]
) -> list[str]:
    """What a finished folder was made with that is another now, as far as it is on this machine."""
    of, files = found.manifest.made_from, found.manifest.teacher_files
    keys = []
    if teacher is not None and has_other_weights(
        teacher.model, files, of["weights"], lambda: call.teachers.model(teacher, default_device())
    ):
        keys.append("teacher")
    if dictionary is not None and dictionary.fingerprint_here() not in (None, of["dictionary"]):
        keys.append("dictionary")
    return keys


def _about(
    call: _Call, teacher: TeacherConfig | None, fingerprint: Mapping[str, str], flops_per_token: float
) -> dict[str, Any]:
    """What the manifests of labels and of probabilities both say."""
    tokens = call.tokens.manifest
    models = {role: fingerprint[role] for role in ("weights", "dictionary", "table") if role in fingerprint}
    return {
        "asked": dict(call.job.asked),
        "made_from": {"tokens": tokens.fingerprint, "tokenizer": tokens.tokenizer_fingerprint, **models},
        "teacher_files": None if teacher is None else files_fingerprint(teacher.model),
        "flops_per_token": flops_per_token,
    }
