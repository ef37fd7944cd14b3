"""`cocomix train`: one run from a recipe to a folder that `from_pretrained` loads."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from cocomix.concepts import ConceptLabelStore, LabelSettings, TeacherProbabilities
from cocomix.config import RunConfig, load_recipe, save_recipe
from cocomix.data import DocumentBlocks, PreparedData
from cocomix.errors import CoCoMixError
from cocomix.modeling import Accounting, CoCoMixConfig, account
from cocomix.modeling.accounting import build_model
from cocomix.output import explained_full_disk, partial_path, staged_directory, write_json
from cocomix.reporter import Reporter, SilentReporter
from cocomix.training.arguments import steps_of_epochs, tokens_after, tokens_per_step, training_arguments
from cocomix.training.auto_classes import write_auto_classes
from cocomix.training.distillation import Teaching, open_teaching
from cocomix.training.metrics import MetricsFile, ProgressBar, keep_metrics_until
from cocomix.training.objectives import OBJECTIVES
from cocomix.training.online import OnlineLabels, open_online_labels
from cocomix.training.profiling import StepProfiler
from cocomix.training.student import Vocabulary, model_config
from cocomix.training.trainer import CoCoMixTrainer, last_complete_checkpoint

__all__ = ["Plan", "describe_plan", "dry_run", "plan_run", "train"]

Labels = ConceptLabelStore | OnlineLabels
_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "no": "float32"}


class LabelledBlocks(Dataset[dict[str, torch.Tensor]]):
    """Token blocks joined with what is stored of them: row i has `input_ids` [seq] and, say, `concept_labels`."""

    def __init__(self, tokens: Any, labels: Any) -> None:
        self.tokens, self.labels = tokens, labels

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**self.tokens[index], **self.labels[index]}


@dataclass(frozen=True)
class Plan:
    """What a recipe amounts to, without training it.

    Attributes:
        config: configuration of the model.
        accounting: parameters and FLOPs per token, attention at the data's block size included.
        block_size: tokens per block.
        train_blocks: blocks of the training split; `None` without data.
    """

    config: PreTrainedConfig
    accounting: Accounting
    block_size: int
    train_blocks: int | None


def plan_run(
    recipe: RunConfig,
    data: PreparedData | None = None,
    labels: Labels | None = None,
    teacher_hidden_size: int | None = None,
) -> Plan:
    """Check a recipe and count its model's cost, on the meta device.

    Args:
        recipe: the recipe.
        data: its prepared data; without it (a dry run) the recipe must give every size itself.
        labels: its labels, if there are any.
        teacher_hidden_size: of a teacher that runs while training.
    """
    vocabulary = None
    if data is not None:
        vocabulary = Vocabulary(data.meta.vocab_size, data.meta.eos_token_id, data.meta.block_size)
    config = model_config(recipe, vocabulary, None if labels is None else labels.num_concepts, teacher_hidden_size)
    block_size = int(config.max_position_embeddings) if data is None else data.meta.block_size
    try:
        with torch.device("meta"):
            accounting = account(build_model(config, recipe.model.attn_implementation), block_size)
    except CoCoMixError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise CoCoMixError(f"model: {' '.join(str(error).split())}") from error
    return Plan(config, accounting, block_size, None if data is None else data.meta.splits["train"].blocks)


def dry_run(recipe: RunConfig) -> dict[str, Any]:
    """Check a recipe and say what it amounts to, with the sizes of its data and labels where these are there already.

    Raises:
        CoCoMixError: as `train`.
    """
    data = PreparedData.open(recipe.data) if recipe.data.exists() else None
    labels = None
    if data is not None and isinstance(recipe.labels, Path) and recipe.labels.exists():
        labels = _open_labels(recipe, data) or _labels_to_match(recipe)
    return describe_plan(recipe, plan_run(recipe, data, labels))


def describe_plan(recipe: RunConfig, plan: Plan) -> dict[str, Any]:
    """A dry run's answer: sizes and cost by name, in the order a person asks for them."""
    arguments = training_arguments(recipe, Path("checkpoints"), plan.block_size, plan.train_blocks)
    count = plan.accounting
    step_tokens = tokens_per_step(arguments, plan.block_size)
    steps = max(arguments.max_steps, 0)
    tokens = steps * step_tokens
    if plan.train_blocks is not None:
        steps = steps or steps_of_epochs(arguments, plan.train_blocks)
        tokens = tokens_after(steps, arguments, plan.train_blocks, plan.block_size)
    return {
        "objective": recipe.objective,
        "arm": recipe.arm,
        "model": f"{plan.config.model_type}, d_model {plan.config.hidden_size}, {plan.config.num_hidden_layers} blocks",
        "parameters": count.total_parameters,
        "active parameters": count.active_parameters,
        "training FLOPs per token": count.training_flops_per_token,
        "tokens per step": step_tokens,
        "steps": steps or f"{arguments.num_train_epochs} epochs",
        "tokens": tokens or "the data's",
        "training FLOPs": tokens * count.training_flops_per_token or "the data's",
    }


def train(recipe: RunConfig, output: Path, reporter: Reporter | None = None, *, profile_steps: int = 0) -> Path:
    """Train one model.

    While it runs, everything lies in `OUTPUT.partial`; a run that was stopped goes on from its last whole checkpoint
    when it is started again with the same recipe, and ends with the same weights (bit for bit on one CPU process).

    Args:
        recipe: what to train, on what.
        output: the run folder; must not exist.
        reporter: told about progress.
        profile_steps: record so many steps in `output/profile`, see `StepProfiler`; 0 = none.

    Returns:
        `output`, a folder with the model, its tokenizer, `recipe.yaml`, `metrics.jsonl`, `manifest.json` and
        TensorBoard files.

    Raises:
        CoCoMixError: recipe, data and labels do not fit; an unfinished run of another recipe is in the way; the loss
            is no longer finite.
    """
    reporter = reporter or SilentReporter()
    data = PreparedData.open(recipe.data)
    train_blocks = len(data.split("train"))
    checkpoints = partial_path(output) / "checkpoints"
    arguments = training_arguments(recipe, checkpoints, data.meta.block_size, train_blocks)
    first = arguments.process_index == 0
    if not first:
        reporter = SilentReporter()
    _check_unfinished(recipe, output)
    labels, online = _open_labels(recipe, data), None
    if recipe.has_concepts and recipe.labels == "online":
        online = open_online_labels(recipe, data, arguments.device, reporter)
    teaching = open_teaching(recipe, data, arguments.device, torch.bfloat16 if arguments.bf16 else None)
    plan = plan_run(recipe, data, online or labels or _labels_to_match(recipe), teaching.hidden_size)
    with _staged(output, arguments) as folder:
        if first:
            save_recipe(recipe, folder / "recipe.yaml")
        set_seed(arguments.seed)
        model = build_model(plan.config, recipe.model.attn_implementation)
        stored = (labels, teaching.stored)
        validation = _split(recipe, data, stored, "validation", recipe.evaluation_blocks)
        trainer = CoCoMixTrainer(
            model=model,
            args=arguments,
            train_dataset=_split(recipe, data, stored, "train", None),
            eval_dataset=validation if online is None else _labelled(validation, online, reporter),
            objective=teaching.told(OBJECTIVES[recipe.objective]),
            online_labels=online,
        )
        trainer.remove_callback(PrinterCallback)
        _announce(recipe, plan, trainer, reporter)
        if online is not None:
            _warn_of_repeated_labelling(trainer, reporter)
        bar = ProgressBar(reporter, trainer.tokens_per_step)
        trainer.add_callback(bar)
        trainer.add_callback(MetricsFile(folder / "metrics.jsonl", plan.accounting.training_flops_per_token))
        if profile_steps != 0:
            trainer.add_callback(StepProfiler(folder / "profile", profile_steps))
        checkpoint = _resume_point(trainer, folder, reporter)
        if first:
            trainer.add_callback(TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"))))
        if checkpoint is None:
            _two_evaluation_batches(trainer)
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            bar.close()
        final = _final_evaluation(trainer)
        with explained_full_disk(folder):
            _save(trainer, model, data, folder)
        if first:
            write_json(
                folder / "manifest.json", _manifest(recipe, output, plan, data, labels, teaching, trainer, final)
            )
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    reporter.say(f"validation loss {final['eval_loss']:.4f} nats/token; the run is in {output}")
    return output


@contextmanager
def _staged(output: Path, arguments: TrainingArguments) -> Iterator[Path]:
    """The folder the run is built in; of several processes the first makes it, and renames it when all are done."""
    wait = arguments.distributed_state.wait_for_everyone
    if arguments.process_index == 0:
        with staged_directory(output, resume=True) as folder:
            wait()
            yield folder
            wait()
    else:
        wait()
        yield partial_path(output)
        wait()
    wait()


def _open_labels(recipe: RunConfig, data: PreparedData) -> ConceptLabelStore | None:
    if not recipe.has_concepts or not isinstance(recipe.labels, Path):
        return None
    labels = ConceptLabelStore.open(recipe.labels)
    labels.check(data.meta.fingerprint, data.meta.tokenizer_fingerprint, labels.manifest.num_concepts)
    made_with = labels.manifest
    for section, wanted, found in (
        ("teacher.model", recipe.teacher and recipe.teacher.model, made_with.teacher.name),
        ("teacher.layer", recipe.teacher and recipe.teacher.layer, made_with.layer),
        ("dictionary.path", recipe.dictionary and recipe.dictionary.path, made_with.dictionary.name),
        *_attribution_fields(recipe, made_with.settings),
    ):
        if wanted is not None and wanted != found:
            raise CoCoMixError(
                f"the recipe's {section} is {wanted!r} but the labels in {recipe.labels} were made with {found!r}; "
                "make new labels or correct the recipe."
            )
    return labels


def _labels_to_match(recipe: RunConfig) -> ConceptLabelStore | None:
    """The labels that tell a matched baseline the number of concepts, where the recipe does not."""
    if recipe.baseline is None or not isinstance(recipe.labels, Path) or recipe.model.num_concepts is not None:
        return None
    return ConceptLabelStore.open(recipe.labels)


def _attribution_fields(recipe: RunConfig, found: LabelSettings) -> list[tuple[str, Any, Any]]:
    """Name, wanted and found value of every label setting the recipe has."""
    wanted = {} if recipe.attribution is None else recipe.attribution.model_dump()
    return [(f"attribution.{name}", value, getattr(found, name)) for name, value in wanted.items()]


def _check_unfinished(recipe: RunConfig, output: Path) -> None:
    """Refuse to go on with an unfinished run of another recipe."""
    unfinished = partial_path(output) / "recipe.yaml"
    if unfinished.is_file() and load_recipe(unfinished) != recipe:
        raise CoCoMixError(
            f"{unfinished.parent} holds an unfinished run of another recipe; remove it or choose another --output."
        )


def _split(
    recipe: RunConfig,
    data: PreparedData,
    beside: Iterable[ConceptLabelStore | TeacherProbabilities | None],
    name: str,
    limit: int | None,
) -> Dataset[Any]:
    """A split's blocks, joined with what is stored beside them."""
    blocks: Dataset[Any] = data.split(name)
    if recipe.document_masks:
        blocks = DocumentBlocks(blocks, data.meta.eos_token_id)
    for stored in beside:
        if stored is not None:
            blocks = LabelledBlocks(blocks, stored.split(name))
    if limit is not None and limit < len(blocks):  # type: ignore[arg-type]
        blocks = Subset(blocks, range(limit))
    return blocks


def _labelled(blocks: Any, online: OnlineLabels, reporter: Reporter) -> Dataset[Any]:
    return LabelledBlocks(blocks, online.blocks(blocks, reporter))


def _warn_of_repeated_labelling(trainer: CoCoMixTrainer, reporter: Reporter) -> None:
    arguments, blocks = trainer.args, len(trainer.train_dataset)
    steps = arguments.max_steps if arguments.max_steps > 0 else steps_of_epochs(arguments, blocks)
    if trainer.tokens_seen(steps) > blocks * len(trainer.train_dataset[0]["input_ids"]):
        reporter.warn(
            "labels: online labels the data again in every epoch; for several, `cocomix label` once is cheaper."
        )


def _announce(recipe: RunConfig, plan: Plan, trainer: CoCoMixTrainer, reporter: Reporter) -> None:
    count = plan.accounting
    reporter.say(
        f"{recipe.arm}: {count.total_parameters:,} parameters ({count.active_parameters:,} active), "
        f"{count.training_flops_per_token / 1e6:,.1f} training MFLOP per token, "
        f"{trainer.tokens_per_step:,} tokens per step, on {trainer.args.device}"
    )


def _resume_point(trainer: CoCoMixTrainer, folder: Path, reporter: Reporter) -> Path | None:
    """The checkpoint to go on from, with metrics and clock set back to it; `None` to start afresh."""
    checkpoint = last_complete_checkpoint(folder / "checkpoints")
    step = -1 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    if trainer.args.process_index == 0:
        keep_metrics_until(folder / "metrics.jsonl", step)
        if checkpoint is None:
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    if checkpoint is not None:
        trainer.resume_meters(checkpoint)
        reporter.say(f"going on from step {step:,}")
    return checkpoint


def _two_evaluation_batches(trainer: CoCoMixTrainer) -> None:
    """Run evaluation before step 1, so that a broken one fails in the first minute."""
    few = min(len(trainer.eval_dataset), 2 * trainer.args.eval_batch_size)
    trainer.measure(Subset(trainer.eval_dataset, range(few)))


def _final_evaluation(trainer: CoCoMixTrainer) -> dict[str, float]:
    """The evaluation at the last step, which the schedule may have made already."""
    last = next((row for row in reversed(trainer.state.log_history) if "eval_loss" in row), {"step": -1})
    return dict(last) if last["step"] == trainer.state.global_step else trainer.evaluate()


def _save(trainer: CoCoMixTrainer, model: PreTrainedModel, data: PreparedData, folder: Path) -> None:
    """Write the model and its tokenizer so that the run folder loads with `from_pretrained`."""
    model.generation_config.pad_token_id = data.meta.eos_token_id
    trainer.save_model(str(folder))
    if trainer.args.process_index == 0:
        data.tokenizer().save_pretrained(str(folder))
        write_auto_classes(folder)
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says the same


def _manifest(
    recipe: RunConfig,
    output: Path,
    plan: Plan,
    data: PreparedData,
    labels: ConceptLabelStore | None,
    teaching: Teaching,
    trainer: CoCoMixTrainer,
    final: dict[str, float],
) -> dict[str, Any]:
    """What a comparison needs to know of a finished run."""
    arguments, online = trainer.args, trainer.online_labels
    dtype = _DTYPES[trainer.accelerator.mixed_precision]
    return {
        "format_version": 1,
        "kind": "run",
        "cocomix_version": version("cocomix"),
        "name": recipe.name or output.name,
        "objective": recipe.objective,
        "arm": recipe.arm,
        "mixing": plan.config.mixing if isinstance(plan.config, CoCoMixConfig) else None,
        "data": {
            "path": str(recipe.data),
            "fingerprint": data.meta.fingerprint,
            "tokenizer_fingerprint": data.meta.tokenizer_fingerprint,
            "block_size": data.meta.block_size,
        },
        "document_masks": recipe.document_masks,
        "labels": None if labels is None else {"path": str(recipe.labels), "fingerprint": labels.manifest.fingerprint},
        "online_labels": None if online is None else online.reference(data),
        "teaching": teaching.reference,
        "parameters": {
            "total": plan.accounting.total_parameters,
            "active": plan.accounting.active_parameters,
        },
        "flops_per_token": {
            "forward": plan.accounting.forward_flops_per_token,
            "training": plan.accounting.training_flops_per_token,
        },
        "teacher_flops_per_token": teaching.flops_per_token
        + (0.0 if online is None else online.flops_per_token(plan.block_size)),
        "learning_rate": arguments.learning_rate,
        "concept_loss_weight": _concept_loss_weight(plan.config),
        "tokens": trainer.tokens_seen(trainer.state.global_step),
        "steps": trainer.state.global_step,
        "seconds": round(trainer.clock.seconds, 3),
        "training_dtype": dtype,
        "evaluation_dtype": dtype,
        "evaluation_blocks": len(trainer.eval_dataset),
        "seed": arguments.seed,
        "device": str(arguments.device.type),
        "final": {name: value for name, value in final.items() if name.startswith("eval_")},
        "versions": {"torch": torch.__version__, "transformers": version("transformers")},
    }


def _concept_loss_weight(config: PreTrainedConfig) -> float | None:
    """λ of a model that predicts something beside tokens."""
    predicts = isinstance(config, CoCoMixConfig) and config.mixing != "pause"
    return float(config.concept_loss_weight) if predicts else None
