"""Every field of the installed `TrainingArguments` is obeyed, or refused by its name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from cocomix.runtime.errors import CoCoMixError
from cocomix.training import CoCoMixTrainer
from cocomix.training.arguments import REFUSED, training_arguments
from tests.model.factories import student
from tests.training.test_arguments import recipe
from tests.training.test_trainer import SEQ, Blocks, Logs

FIELDS = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
IGNORED_VALUES: dict[str, Any] = {  # of refused fields, and of arguments of the Trainer: not the usual ones
    "label_smoothing_factor": 0.1,
    "average_tokens_across_devices": False,
    "liger_kernel_config": {"rope": True},
    "accelerator_config": {"split_batches": True},
    "parallelism_config": object(),
    "prediction_loss_only": True,
    "eval_do_concat_batches": False,
    "eval_accumulation_steps": 2,
    "include_for_metrics": ["loss"],
    "label_names": ["labels"],
    "skip_memory_metrics": False,
    "hub_model_id": "me/it",
    "hub_strategy": "end",
    "hub_revision": "main",
    "debug": "underflow_overflow",
}
OURS = {
    *(
        "output_dir",
        "do_train",
        "do_eval",
        "do_predict",
        "resume_from_checkpoint",
        "remove_unused_columns",
        "hub_token",
    ),
    *("logging_nan_inf_filter", "train_sampling_strategy", "length_column_name", "local_rank"),
}
"""Not of a recipe."""

Seen = Callable[[CoCoMixTrainer, list[dict[str, float]]], bool]


def group(name: str, value: Any) -> Seen:
    return lambda made, rows: made.optimizer.param_groups[0][name] == value


def loader(name: str, value: Any) -> Seen:
    return lambda made, rows: getattr(made.get_train_dataloader(), name) == value


def checkpoints(*steps: int) -> Seen:
    return lambda made, rows: (
        {path.name for path in Path(made.args.output_dir).glob("checkpoint-*")}
        == {f"checkpoint-{step}" for step in steps}
    )


def logged(*steps: int) -> Seen:
    def seen(made: CoCoMixTrainer, rows: list[dict[str, float]]) -> bool:
        return [row["step"] for row in made.state.log_history if "ntp_loss" in row] == list(steps)

    return seen


def evaluated(*steps: int) -> Seen:
    def seen(made: CoCoMixTrainer, rows: list[dict[str, float]]) -> bool:
        return [row["step"] for row in made.state.log_history if "eval_loss" in row] == list(steps)

    return seen


SAVES = {"save_strategy": "steps", "save_steps": 1}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 1}
BEST = {**SAVES, **EVALUATES, "load_best_model_at_end": True}
OBEYED: dict[str, tuple[dict[str, Any], Seen]] = {
    "per_device_train_batch_size": (
        {"per_device_train_batch_size": 4},
        lambda made, rows: rows[0]["tokens"] == 4 * SEQ,
    ),
    "num_train_epochs": (
        {"num_train_epochs": 2, "max_steps": -1, "per_device_train_batch_size": 24},
        lambda made, rows: made.state.global_step == 4,
    ),
    "max_steps": ({"max_steps": 1}, lambda made, rows: made.state.global_step == 1),
    "learning_rate": (
        {"learning_rate": 0.25},
        lambda made, rows: max(row.get("learning_rate", 0) for row in rows) == 0.25,
    ),
    "lr_scheduler_type": ({"lr_scheduler_type": "constant"}, lambda made, rows: rows[1]["learning_rate"] == 6e-4),
    "lr_scheduler_kwargs": (
        {"lr_scheduler_kwargs": {"min_lr_rate": 0.9}},
        lambda made, rows: made.lr_scheduler.get_last_lr()[0] == pytest.approx(0.9 * 6e-4),
    ),
    "warmup_steps": ({"warmup_steps": 2}, lambda made, rows: rows[1]["learning_rate"] == pytest.approx(3e-4)),
    "optim": ({"optim": "sgd"}, lambda made, rows: isinstance(made.optimizer.optimizer, torch.optim.SGD)),
    "optim_args": ({"optim": "rmsprop", "optim_args": "momentum=0.5"}, group("momentum", 0.5)),
    "weight_decay": ({"weight_decay": 0.3}, group("weight_decay", 0.3)),
    "adam_beta1": ({"adam_beta1": 0.5}, group("betas", (0.5, 0.95))),
    "adam_beta2": ({"adam_beta2": 0.5}, group("betas", (0.9, 0.5))),
    "adam_epsilon": ({"adam_epsilon": 0.5}, group("eps", 0.5)),
    "gradient_accumulation_steps": (
        {"gradient_accumulation_steps": 2},
        lambda made, rows: rows[0]["tokens"] == 16 * SEQ,
    ),
    "max_grad_norm": (
        {"max_grad_norm": 1e-9, "optim": "sgd", "learning_rate": 1.0, "weight_decay": 0.0},
        lambda made, rows: moved(made) < 1e-6,
    ),
    "bf16": ({"bf16": True}, lambda made, rows: made.accelerator.mixed_precision == "bf16"),
    "gradient_checkpointing": (
        {"gradient_checkpointing": True},
        lambda made, rows: made.model.lower.gradient_checkpointing,
    ),
    "gradient_checkpointing_kwargs": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        lambda made, rows: made.model.lower.gradient_checkpointing,
    ),
    "activation_checkpointing": (
        {"activation_checkpointing": True},
        lambda made, rows: made.model.lower.gradient_checkpointing,
    ),
    "activation_checkpointing_kwargs": (
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 1}},
        lambda made, rows: made.model.lower.gradient_checkpointing,
    ),
    "neftune_noise_alpha": ({"neftune_noise_alpha": 500.0}, lambda made, rows: abs(rows[0]["ntp_loss"] - 4.316) > 0.1),
    "logging_strategy": ({"logging_strategy": "epoch", "max_steps": 7}, logged(6, 7)),
    "logging_steps": ({"logging_steps": 2}, logged(2)),
    "logging_first_step": ({"logging_first_step": True, "logging_steps": 2}, logged(1, 2)),
    "include_num_input_tokens_seen": (
        {"include_num_input_tokens_seen": "all"},
        lambda made, rows: rows[0]["num_input_tokens_seen"] == 8 * SEQ,
    ),
    "disable_tqdm": (
        {"disable_tqdm": False},
        lambda made, rows: "ProgressCallback" in made.callback_handler.callback_list,
    ),
    "eval_strategy": ({"eval_strategy": "epoch", "max_steps": 6}, evaluated(6)),
    "eval_steps": ({"eval_strategy": "steps", "eval_steps": 2}, evaluated(2)),
    "eval_delay": ({**EVALUATES, "eval_delay": 2}, evaluated(2)),
    "eval_on_start": ({"eval_strategy": "steps", "eval_steps": 9, "eval_on_start": True}, evaluated(0, 2)),
    "per_device_eval_batch_size": (
        {"per_device_eval_batch_size": 3},
        lambda made, rows: [len(batch["input_ids"]) for batch in made.get_eval_dataloader()] == [3, 3, 1],
    ),
    "save_strategy": ({"save_strategy": "epoch", "max_steps": 6}, checkpoints(6)),
    "save_steps": ({"save_strategy": "steps", "save_steps": 2}, checkpoints(2)),
    "save_total_limit": ({**SAVES, "save_total_limit": 1}, checkpoints(2)),
    "load_best_model_at_end": (BEST, lambda made, rows: made.state.best_metric is not None),
    "metric_for_best_model": (
        {**BEST, "metric_for_best_model": "eval_concept_loss"},
        lambda made, rows: made.state.best_metric == min(r["eval_concept_loss"] for r in rows if "eval_loss" in r),
    ),
    "greater_is_better": (
        {**BEST, "metric_for_best_model": "eval_loss", "greater_is_better": True},
        lambda made, rows: made.state.best_metric == max(r["eval_loss"] for r in rows if "eval_loss" in r),
    ),
    "seed": ({"seed": 5}, lambda made, rows: made.get_train_dataloader().batch_sampler.order.seed == 5),
    "data_seed": ({"data_seed": 6}, lambda made, rows: made.get_train_dataloader().batch_sampler.order.seed == 6),
    "use_cpu": ({"use_cpu": True}, lambda made, rows: made.args.device.type == "cpu"),
    "dataloader_drop_last": (
        {"dataloader_drop_last": True, "per_device_train_batch_size": 10, "max_steps": -1, "num_train_epochs": 1},
        lambda made, rows: made.state.global_step == 4,
    ),
    "dataloader_num_workers": ({"dataloader_num_workers": 1}, loader("num_workers", 1)),
    "dataloader_pin_memory": ({"dataloader_pin_memory": False}, loader("pin_memory", False)),
    "dataloader_persistent_workers": (
        {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
        loader("persistent_workers", True),
    ),
    "dataloader_prefetch_factor": (
        {"dataloader_prefetch_factor": 3, "dataloader_num_workers": 1},
        loader("prefetch_factor", 3),
    ),
    "dataloader_in_order": ({"dataloader_in_order": False}, loader("in_order", False)),
    "run_name": ({"run_name": "it"}, lambda made, rows: made.args.run_name == "it"),
    "full_determinism": ({"full_determinism": True}, lambda made, rows: torch.are_deterministic_algorithms_enabled()),
}
"""Of a field: settings in which it has not its usual value, and what shows that it was obeyed."""

BY_THE_BASE_CLASS = {
    # What needs another machine, a network or a package, or is how transformers speaks: the base class reads it in
    # methods that are not overridden here.
    *("fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode", "optim_target_modules"),
    *("dataloader_multiprocessing_context", "torch_empty_cache_steps", "restore_callback_states_from_checkpoint"),
    *("log_on_each_node", "log_level", "log_level_replica", "save_on_each_node", "ignore_data_skip"),
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
    *("ddp_backend", "ddp_timeout"),
    # Tested elsewhere: test_sharding.py, test_launching.py, test_tracking.py
    *("fsdp", "fsdp_config", "deepspeed", "report_to", "project"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
}


def moved(made: CoCoMixTrainer) -> float:
    """The largest change of a weight since the beginning."""
    before = dict(student("gpt2").named_parameters())
    return max(float((weight - before[name]).abs().max()) for name, weight in made.model.named_parameters())


def test_every_field_is_accounted_for() -> None:
    """One that a new version of transformers brings has to be decided upon."""
    sets = [set(REFUSED) & FIELDS, OURS, set(OBEYED), BY_THE_BASE_CLASS]
    assert set().union(*sets) == FIELDS
    assert sum(map(len, sets)) == len(FIELDS)


@pytest.mark.parametrize("name", OBEYED)
def test_obeyed(tmp_path: Path, name: str) -> None:
    settings, seen = OBEYED[name]
    usual = {"max_steps": 2, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    settings = {**usual, **settings}
    if settings["max_steps"] < 0:
        del settings["max_steps"]
    logs = Logs()
    try:
        made = CoCoMixTrainer(
            model=student("gpt2"),
            args=training_arguments(recipe(**settings), tmp_path, SEQ, 48),
            train_dataset=Blocks(48, labelled=True),
            eval_dataset=Blocks(7, labelled=True, seed=11),
            callbacks=[logs],
        )
        made.train()
        assert seen(made, logs.rows)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", sorted(set(REFUSED) & FIELDS | OURS))
def test_refused_in_a_recipe(tmp_path: Path, name: str) -> None:
    with pytest.raises(CoCoMixError, match=rf"training\.{name}\b"):
        training_arguments(recipe(**{name: IGNORED_VALUES.get(name, True)}), tmp_path, SEQ, 48)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_by_the_trainer(tmp_path: Path, name: str) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    given: dict[str, Any] = {}
    if name in FIELDS:
        setattr(arguments, name, IGNORED_VALUES.get(name, True))
    else:
        given[name] = nn.Identity()
    with pytest.raises(CoCoMixError, match=name):
        CoCoMixTrainer(student("gpt2"), arguments, train_dataset=Blocks(8, labelled=True), **given)
    assert not list(tmp_path.iterdir())


def test_several_evaluation_sets(tmp_path: Path) -> None:
    class Evaluations(TrainerCallback):
        names: list[set[str]] = []  # noqa: RUF012 - of this test

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            self.names.append(set(metrics))

    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_second_loss"}
    first, second = Blocks(7, labelled=True, seed=11), Blocks(5, labelled=True, seed=12)
    made = CoCoMixTrainer(
        model=student("gpt2"),
        args=training_arguments(recipe(**settings), tmp_path, SEQ, 48),
        train_dataset=Blocks(48, labelled=True),
        eval_dataset={"first": first, "second": second},
        callbacks=[Evaluations],
    )
    made.train()
    found = made.evaluate()
    assert found["eval_first_loss"] == made.measure(first)["eval_loss"]
    assert found["eval_second_loss"] == made.measure(second)["eval_loss"] == made.state.best_metric
    assert len(Evaluations.names) == 4


def test_predictions_are_not_offered(tmp_path: Path) -> None:
    made = CoCoMixTrainer(
        student("gpt2"), TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=Blocks(8, labelled=True)
    )
    with pytest.raises(CoCoMixError, match="predict"):
        made.predict(Blocks(8, labelled=True))
