"""`cocomix train`: one run from a recipe to a folder that `from_pretrained` loads."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import Subset
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from cocomix.artifacts import Staging, explained_full_disk, partial_path, shown, url_of
from cocomix.data import Tokens
from cocomix.runtime.console import progress
from cocomix.runtime.device import fast_bfloat16
from cocomix.runtime.stopping import termination_noted
from cocomix.training.arguments import training_arguments
from cocomix.training.auto_classes import write_auto_classes
from cocomix.training.callbacks import (
    TENSORBOARD,
    MetricsFile,
    Progress,
    SaveAndStop,
    StepProfiler,
    keep_metrics_until,
    trackers,
)
from cocomix.training.checkpoints import check_kind, checkpoint_step, last_complete_checkpoint
from cocomix.training.corpora import block_order, labels_to_match, open_data, open_labels
from cocomix.training.distillation import Teaching, open_teaching
from cocomix.training.input_checks import check_coverage, check_sources
from cocomix.training.launching import check_deepspeed, refuse_under_fsdp, sharding_asked
from cocomix.training.liveness import SIGN, signed_in
from cocomix.training.loading import JoinedBlocks, joined_blocks
from cocomix.training.manifest import extra_flops, run_manifest
from cocomix.training.objectives import ConceptPrediction, NextToken, Objective, auxiliary_objective, drop_heads
from cocomix.training.online import OnlineLabels, open_online_labels
from cocomix.training.opened_run import Run, RunManifest, training_flops
from cocomix.training.order import MixtureOrder, WindowedOrder
from cocomix.training.recipe import RunConfig, save_recipe
from cocomix.training.student import Plan, build_student, plan_run
from cocomix.training.trainer import CoCoMixTrainer
from cocomix.training.window_cache import WindowCache

logger = logging.getLogger(__name__)


def train(recipe: RunConfig, output: Path, *, profile_steps: int = 0, recipe_fingerprint: str | None = None) -> Path:
    """Train one model.

    While it runs, everything lies in `OUTPUT.partial`; a run that was stopped goes on from its last whole checkpoint
    when it is started again with the same recipe, and ends with the same weights (bit for bit on one CPU process).

    Args:
        output: the run folder; if it is there and was trained by this recipe on these data and labels, there is nothing
            to do.
        profile_steps: record so many steps in `output/profile`, see `StepProfiler`; 0 = none.
        recipe_fingerprint: of the recipe as it was written, for the run's manifest.

    Returns:
        `output`, a folder with the model, its tokenizer, `recipe.yaml`, `metrics.jsonl`, `manifest.json` and, unless
        `training.report_to` says otherwise, TensorBoard files.

    Raises:
        AlreadyExists: another run, or something else, is in `output`.
        MadeFromSomethingElse: an unfinished run of another recipe, or of other data, is in the way.
        BeingWritten: another process trains this run.
        CoCoMixError: recipe, data and labels do not fit; the loss is no longer finite.
        KeyboardInterrupt, Terminated: Ctrl-C or SIGTERM came; a checkpoint was written first.
    """
    has_accelerator = torch.accelerator.is_available()
    check_deepspeed(recipe.training, os.environ, has_accelerator)
    processes = int(os.environ.get("WORLD_SIZE", "1")) if has_accelerator else 0
    sharding = sharding_asked(recipe.training, os.environ, processes)
    data = open_data(recipe)
    asked = {"recipe": _whatever_launch(recipe), "data": data.manifest.fingerprint}
    if url_of(output) is None and Run.made(output, asked) is not None:  # at a URL, a finished run is refused below
        logger.info(f"{shown(output)} is this run, finished: nothing to do")
        return output
    folder, blocks = partial_path(output), len(data.split("train"))
    arguments = training_arguments(recipe, folder / "checkpoints", data.manifest.block_size, blocks, sharding)
    arguments.run_name = arguments.run_name or recipe.name or output.name
    first = arguments.process_index == 0
    labels, online = open_labels(recipe, data), None
    if recipe.has_concepts and recipe.online_labels is not None:
        online = open_online_labels(recipe.online_labels, data, arguments.device, folder, bf16=arguments.bf16)
    teaching = open_teaching(recipe, data, arguments.device, torch.bfloat16 if arguments.bf16 else None)
    if first:
        check_sources(recipe, labels, teaching)
    labelled = labels.first if labels else labels_to_match(recipe)
    plan = plan_run(recipe, data, online or labelled, teaching.hidden_size)
    objectives = _objectives(recipe, plan, teaching, online)
    if sharding:
        refuse_under_fsdp(objectives, None if online is None else online.config)
    order = block_order(recipe, data, arguments.seed if arguments.data_seed is None else arguments.data_seed)
    stored = {"concept_labels": labels, "teacher_log_probs": teaching.stored}
    check_coverage(recipe, data, stored, objectives, arguments)
    identity = {  # fingerprints of what is read: changed ones would make it another run half-way
        **asked,
        "labels": None if labels is None else labels.fingerprint,
        "online_labels": None if online is None else online.reference(data)["labeller"],
        "teaching": teaching.reference,
    }
    with _staged(output, identity, arguments) as staging, signed_in(folder) if first else nullcontext():
        if first:
            save_recipe(recipe, folder / "recipe.yaml")
            if online is not None:
                online.save_tables(folder)
        set_seed(arguments.seed)
        model = build_student(recipe, plan.config)
        for one in objectives:
            one.prepare(data, model)
        window = None
        if recipe.bounds is not None and isinstance(order, MixtureOrder | WindowedOrder):
            window = WindowCache(recipe.bounds, data, stored.values(), order)
        validation = joined_blocks(recipe, data, stored, "validation", recipe.evaluation_blocks)
        if online is not None and not online.of_student:  # labels that do not change are made once
            validation = JoinedBlocks(validation, {"concept_labels": online.blocks(validation)})
        trainer = CoCoMixTrainer(
            model=model,
            args=arguments,
            train_dataset=joined_blocks(recipe, data, stored, "train", None),
            eval_dataset=validation,
            objectives=objectives,
            online_labels=online,
            non_finite=recipe.non_finite,
            order=order,
            reached=None if window is None else window.reach,
        )
        trainer.block_size = data.manifest.block_size  # rather than read off a block, which may have to be fetched
        trainer.remove_callback(PrinterCallback)
        _announce(recipe.arm_with(teaching.word), plan, trainer)
        if labels is not None and (content := labels.first.manifest.content) is not None:
            logger.info(
                f"concept recall without context would be {content.token_recall_at_32:.1%} by a list for every current "
                f"token and {content.static_recall_at_32:.1%} by one for all positions (32 concepts each)"
            )
        if fast_bfloat16(arguments.device) and not (arguments.bf16 or arguments.fp16):
            logger.info("this machine is fast in bfloat16 and the run is in float32; training.bf16: true changes that")
        in_all, once = trainer.tokens_seen(trainer.total_steps), len(trainer.train_dataset) * trainer.block_size
        if online is not None and not online.of_student and in_all > once:
            logger.warning(
                "labels made while training are made again in every epoch; for several, `cocomix label` is cheaper."
            )
        extra = extra_flops(objectives, plan.config, lambda one: trainer.tokens_seen(one.steps(trainer.total_steps)))
        flops = partial(training_flops, plan.accounting.training_flops_per_token, extra)
        trainer.add_callback(MetricsFile(folder / "metrics.jsonl", flops))
        if profile_steps != 0:
            trainer.add_callback(StepProfiler(folder / "profile", profile_steps))
        checkpoint = _resume_point(trainer, folder)
        if first and TENSORBOARD in trackers(recipe.training):
            from torch.utils.tensorboard import SummaryWriter

            trainer.add_callback(TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"))))
        if checkpoint is None:
            trainer.add_callback(_FirstEvaluation(trainer))
        done = 0 if checkpoint is None else trainer.tokens_seen(checkpoint_step(checkpoint))
        bar = progress("training", in_all, "tokens", done=done)
        with bar as advance, termination_noted() as arrived:
            trainer.add_callback(Progress(trainer.tokens_seen, advance))
            trainer.add_callback(SaveAndStop(arrived, trainer.accelerator))
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.state.global_step < trainer.state.max_steps:
            stopped = arrived.error
            stopped.add_note(f"the checkpoint of step {trainer.state.global_step:,} is kept")
            raise stopped
        with progress("final evaluation", None, "batches"):
            final = _final_evaluation(trainer)
        drop_heads(model)
        with explained_full_disk(folder):
            _save(trainer, model, data, folder)
        arguments.distributed_state.wait_for_everyone()  # until all have written
        if staging is not None:
            manifest = run_manifest(
                recipe, output, plan, data, labels, teaching, trainer, extra, final, recipe_fingerprint
            )
            staging.finish(manifest, scratch=("checkpoints", SIGN))
            for corpus in manifest.data.mixture or ():
                got = corpus.blocks * data.manifest.block_size / manifest.tokens
                logger.info(f"{corpus.path}: {got:.2%} of the training tokens, {corpus.share:.2%} asked for")
    logger.info(f"validation loss {final['eval_loss']:.4f} nats/token; the run is in {shown(output)}")
    if recipe.objective == "cocomix":
        logger.info("to load it in Python: `import cocomix.model`, then `AutoModelForCausalLM.from_pretrained`")
    if arrived():  # in the last step, too late to stop this run, not those that a sweep would begin after it
        stopped = arrived.error
        stopped.add_note(f"{shown(output)} was finished before")
        raise stopped
    return output


class _FirstEvaluation(TrainerCallback):  # type: ignore[misc]
    """Evaluates two batches before step 1, so that an evaluation that fails does so in the first minute."""

    def __init__(self, trainer: CoCoMixTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        blocks = self.trainer.eval_dataset
        self.trainer.measure(Subset(blocks, range(min(len(blocks), 2 * args.eval_batch_size))))


def _objectives(recipe: RunConfig, plan: Plan, teaching: Teaching, online: OnlineLabels | None) -> list[Objective]:
    """The terms of a recipe's loss."""
    terms: list[Objective] = [NextToken(plan.config)]
    if recipe.has_concepts:
        flops = 0.0 if online is None else online.flops_per_token(plan.block_size, plan.config)
        terms.append(ConceptPrediction(recipe.model.concept_loss_weight, flops))
    terms += teaching.objectives
    return terms + [auxiliary_objective(name, settings) for name, settings in recipe.auxiliary.items()]


@contextmanager
def _staged(
    output: Path, identity: dict[str, Any], arguments: TrainingArguments
) -> Iterator[Staging[RunManifest] | None]:
    """The run while it is made; of several processes the first begins it and finishes it, the others get `None`."""
    wait = arguments.distributed_state.wait_for_everyone
    if arguments.process_index == 0:
        with Run.create(output, identity=identity, resume=True) as staging:
            wait()
            yield staging
    else:
        wait()
        yield None
    wait()


def _whatever_launch(recipe: RunConfig) -> dict[str, Any]:
    """The recipe without what another machine may change; `CoCoMixTrainer.train` checks the tokens of a step."""
    shape = ("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size")
    training = {name: value for name, value in recipe.training.items() if name not in shape}
    values = recipe.model_copy(update={"training": training}).model_dump(mode="json")
    if recipe.bounds is not None:
        values["data"]["cache_gb"] = "any"  # how much fits changes nothing; that there is a limit, the order
    return values


def _announce(arm: str, plan: Plan, trainer: CoCoMixTrainer) -> None:
    count = plan.accounting
    logger.info(
        f"{arm}: {count.total_parameters:,} parameters ({count.active_parameters:,} active), "
        f"{count.training_flops_per_token / 1e6:,.1f} training MFLOP per token, "
        f"{trainer.tokens_per_step:,} tokens per step, on {trainer.args.device}"
    )


def _resume_point(trainer: CoCoMixTrainer, folder: Path) -> Path | None:
    """The checkpoint to go on from, with metrics set back to it; `None` to start afresh."""
    first = trainer.args.process_index == 0
    found = [last_complete_checkpoint(folder / "checkpoints") if first else None]  # which reads all of it
    checkpoint: Path | None = broadcast_object_list(found)[0]
    step = -1 if checkpoint is None else checkpoint_step(checkpoint)
    if first:
        keep_metrics_until(folder / "metrics.jsonl", step)
        if checkpoint is None:
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    if checkpoint is not None:
        check_kind(checkpoint, trainer.is_fsdp_enabled)
        logger.info(f"going on from step {step:,}")
    return checkpoint


def _final_evaluation(trainer: CoCoMixTrainer) -> dict[str, float]:
    """The evaluation at the last step, which the schedule may have made already."""
    last = next((row for row in reversed(trainer.state.log_history) if "eval_loss" in row), {"step": -1})
    return dict(last) if last["step"] == trainer.state.global_step else trainer.evaluate()


def _save(trainer: CoCoMixTrainer, model: PreTrainedModel, data: Tokens, folder: Path) -> None:
    """Write the model and its tokenizer so that the run folder loads with `from_pretrained`."""
    model.generation_config.pad_token_id = data.manifest.eos_token_id
    trainer.save_model(str(folder))
    if trainer.args.process_index == 0:
        tokenizer = data.tokenizer()
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(str(folder))
        write_auto_classes(folder)
        if trainer.online_labels is not None:
            trainer.online_labels.finish(folder, tokenizer)
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says the same
