import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from cocomix.runtime.errors import CoCoMixError
from cocomix.training.arguments import accumulation_steps, tokens_after, tokens_per_step, training_arguments
from cocomix.training.recipe import RunConfig

BLOCK = 16


def recipe(tokens: int | None = None, **training: Any) -> RunConfig:
    values = {"objective": "ntp", "data": "data", "model": {"backbone": {"model_type": "gpt2"}}, "tokens": tokens}
    return RunConfig.model_validate({**values, "training": training})


def arguments(tokens: int | None = None, blocks: int | None = None, **training: Any) -> Any:
    return training_arguments(recipe(tokens, **training), Path("unused"), BLOCK, blocks)


def test_the_papers_settings_are_the_defaults() -> None:
    found = arguments(BLOCK)
    assert (found.adam_beta1, found.adam_beta2) == (0.9, 0.95)
    assert (found.weight_decay, found.max_grad_norm, found.learning_rate) == (0.1, 1.0, 6e-4)
    assert found.lr_scheduler_type == "cosine_with_min_lr"
    assert found.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert found.num_train_epochs == 1
    assert not Path("unused").exists()


def test_tokens_become_whole_steps() -> None:
    found = arguments(1000, per_device_train_batch_size=4, gradient_accumulation_steps=3)
    assert tokens_per_step(found, BLOCK) == 12 * BLOCK
    assert found.max_steps == math.ceil(1000 / (12 * BLOCK))


def test_a_step_has_its_tokens_on_any_number_of_processes() -> None:
    config = recipe(per_device_train_batch_size=8).model_copy(update={"batch_tokens": 256 * BLOCK})
    assert tokens_per_step(training_arguments(config, Path("unused"), BLOCK), BLOCK) == 256 * BLOCK
    for processes, accumulation in ((1, 32), (2, 16), (8, 4), (32, 1)):
        assert accumulation_steps(256 * BLOCK, BLOCK, 8, processes) == accumulation
    for tokens, processes, remedy in (
        (256 * BLOCK, 64, "per_device_train_batch_size to 4"),
        (30 * BLOCK, 1, "per_device_train_batch_size to 6"),
        (256 * BLOCK, 3, "a multiple of 48"),
        (BLOCK - 1, 1, "a multiple of 16"),
    ):
        with pytest.raises(CoCoMixError, match=f"{tokens:,}.*{processes} process.*8 blocks.*{remedy}"):
            accumulation_steps(tokens, BLOCK, 8, processes)


def test_tf32_is_on_where_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    enabled: list[bool] = []
    for module in ("cocomix.training.arguments", "transformers.training_args"):
        monkeypatch.setattr(f"{module}.is_torch_tf32_available", lambda: True)
    monkeypatch.setattr("transformers.training_args.enable_tf32", enabled.append)
    assert arguments(BLOCK).tf32
    assert not arguments(BLOCK, tf32=False).tf32
    assert enabled == [True, False]


def test_intervals_follow_the_length_of_the_run_unless_given() -> None:
    found = arguments(600 * 8 * BLOCK)
    assert (found.max_steps, found.eval_steps, found.save_steps, found.warmup_steps) == (600, 30, 60, 2)
    given_by_hand = arguments(600 * 8 * BLOCK, eval_steps=7, save_steps=9, warmup_steps=0)
    assert (given_by_hand.eval_steps, given_by_hand.save_steps, given_by_hand.warmup_steps) == (7, 9, 0)
    assert arguments(BLOCK).warmup_steps == 1


def test_intervals_of_a_run_measured_in_epochs() -> None:
    found = arguments(blocks=4000, num_train_epochs=2)
    assert found.max_steps == -1
    assert (found.eval_steps, found.save_steps) == (50, 100)


@settings(max_examples=30, deadline=None)
@given(
    blocks=st.integers(1, 40),
    batch=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    tokens=st.integers(1, 100 * BLOCK),
    drop_last=st.booleans(),
)
def test_steps_and_tokens_agree(blocks: int, batch: int, accumulation: int, tokens: int, drop_last: bool) -> None:
    shape = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    if drop_last and blocks < batch:
        with pytest.raises(CoCoMixError, match="less than one batch"):
            arguments(tokens, blocks, dataloader_drop_last=True, **shape)
        return
    found = arguments(tokens, blocks, dataloader_drop_last=drop_last, **shape)
    # A naive count: walk through the epochs batch by batch, as the Trainer does.
    used = blocks - blocks % batch if drop_last else blocks
    batches = [min(batch, used - start) for start in range(0, used, batch)]
    steps = [sum(batches[start : start + accumulation]) for start in range(0, len(batches), accumulation)]
    seen, taken = 0, 0
    while seen * BLOCK < tokens:
        seen += steps[taken % len(steps)]
        taken += 1
    assert found.max_steps == taken
    assert tokens_after(taken, found, blocks, BLOCK) == seen * BLOCK


def test_unknown_and_reserved_fields_are_named() -> None:
    with pytest.raises(CoCoMixError, match=r"training\.learning_rat "):
        arguments(BLOCK, learning_rat=1.0)
    with pytest.raises(CoCoMixError, match=r"training\.output_dir"):
        arguments(BLOCK, output_dir="elsewhere")


def test_numbers_are_read_as_numbers() -> None:
    # YAML 1.1 takes 2e-3, without a dot, for a string.
    found = arguments(BLOCK, learning_rate="2e-3", per_device_train_batch_size="4")
    assert (found.learning_rate, found.per_device_train_batch_size) == (2e-3, 4)


def test_a_strategy_of_no_is_not_false() -> None:
    found = arguments(BLOCK, eval_strategy=False, save_strategy=False)  # as YAML 1.1 reads a bare `no`
    assert (found.eval_strategy, found.save_strategy) == ("no", "no")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bf16", "perhaps"),
        ("learning_rate", "fast"),
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", -3),
        ("gradient_accumulation_steps", 2.5),
        ("max_grad_norm", [1.0]),
        ("seed", None),
    ],
)
def test_values_of_the_wrong_kind_are_named(name: str, value: Any) -> None:
    with pytest.raises(CoCoMixError, match=rf"training\.{name}\b.*") as caught:
        arguments(BLOCK, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("training", [{"eval_strategy": "sometimes"}, {"lr_scheduler_type": "zigzag"}])
def test_values_that_transformers_refuses(training: dict[str, Any]) -> None:
    with pytest.raises(CoCoMixError, match="training: ") as caught:
        arguments(BLOCK, **training)
    assert "\n" not in str(caught.value)


def test_one_of_several_gpus_is_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """`DataParallel`, which the Trainer would use, cannot gather our outputs."""
    setup = TrainingArguments.__post_init__

    def with_four(self: TrainingArguments) -> None:
        setup(self)
        self._n_gpu = 4

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_four)
    found = arguments(BLOCK, per_device_train_batch_size=2)
    assert found.n_gpu == 1
    assert found.train_batch_size == 2
    assert "nproc-per-node 4" in caplog.text
