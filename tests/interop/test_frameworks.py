"""What other tools do with a model of transformers they do with ours: each row of docs/interop.md.

Every test compares with the plain model in float32. FSDP2 is in tests/training/test_sharding.py and
tests/model/test_sharded.py, Muon in tests/training/test_optimizers.py.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from cocomix.model import CoCoMixForCausalLM
from tests.interop.quantised import TORCHAO
from tests.model.factories import VOCAB, concepts, student, tokens

FAMILIES = ("gpt2", "llama")  # a head tied to the embedding and one that is not
STEPS, BATCH, RATE = 3, 4, 0.05
Batch = dict[str, Tensor]


class Blocks:
    """Blocks for so many steps, as every Trainer takes them."""

    def __init__(self) -> None:
        ids = tokens(STEPS * BATCH)
        self.columns = {"input_ids": ids, "labels": ids, "concept_labels": concepts(STEPS * BATCH)}

    def __len__(self) -> int:
        return STEPS * BATCH

    def __getitem__(self, index: int) -> Batch:
        return {name: column[index] for name, column in self.columns.items()}


def batches() -> Iterator[Batch]:
    for start in range(0, STEPS * BATCH, BATCH):
        yield {name: column[start : start + BATCH] for name, column in Blocks().columns.items()}


def loop(model: Any, without: str = "", **arguments: Any) -> list[float]:
    """The losses of a plain PyTorch loop."""
    model.train()
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=RATE), []
    for batch in batches():
        optimizer.zero_grad()
        loss = model(**{name: column for name, column in batch.items() if name != without}, **arguments).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@cache
def by_hand(family: str, without: str = "") -> list[float]:
    """The losses that every tool must come to."""
    return loop(student(family), without)


def settings(folder: Path) -> dict[str, Any]:
    """A Trainer's, for what `loop` does."""
    schedule = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "weight_decay": 0.0, "optim": "sgd"}
    shape = {"per_device_train_batch_size": BATCH, "max_steps": STEPS, "learning_rate": RATE}
    quiet = {"logging_steps": 1, "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    return {"output_dir": str(folder), "train_sampling_strategy": "sequential", **schedule, **shape, **quiet}


def logged(trainer: Trainer) -> list[float]:
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def numbers(model: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, the loss with and without all logits, and greedy tokens."""
    ids, labels = tokens(), concepts()
    with torch.no_grad():
        held = model(input_ids=ids, labels=ids, concept_labels=labels)
        chunked = model(input_ids=ids, labels=ids, concept_labels=labels, output_logits=False)
        generated = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    return held.logits, held.loss, chunked.loss, generated


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_loop(family: str) -> None:
    """With and without all logits."""
    assert loop(student(family), output_logits=False) == pytest.approx(by_hand(family), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_trainer(family: str, tmp_path: Path) -> None:
    trainer = Trainer(student(family), TrainingArguments(**settings(tmp_path)), train_dataset=Blocks())
    assert logged(trainer) == pytest.approx(by_hand(family), abs=1e-3)  # it rounds what it logs


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_trainer(family: str, tmp_path: Path) -> None:
    """TRL computes the next token's loss itself, from what the head reads; concept labels are not its business."""
    trainer = SFTTrainer(
        student(family),
        SFTConfig(**settings(tmp_path), max_length=None, bf16=False, activation_checkpointing=False),
        train_dataset=Dataset.from_list([{"input_ids": ids.tolist()} for ids in tokens(STEPS * BATCH)]),
        processing_class=words_are_tokens(),
    )
    assert logged(trainer) == pytest.approx(by_hand(family, "concept_labels"), abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_dpo_trainer(family: str, tmp_path: Path) -> None:
    """Answers of two lengths, so that rows are padded: their log-probabilities are the model's, concepts mixed in."""
    rows = [{"prompt": ids[:4], "chosen": ids[4:7], "rejected": ids[3:9]} for ids in tokens(2 * BATCH).clamp_min(2)]
    spoken = [{name: " ".join(map(str, ids.tolist())) + " " for name, ids in row.items()} for row in rows]
    model, reference = student(family), student(family)
    values = {**settings(tmp_path), "max_steps": 2, "bf16": False}
    trainer = DPOTrainer(
        model,
        reference,
        DPOConfig(**values),
        train_dataset=Dataset.from_list(spoken),
        processing_class=words_are_tokens(),
    )
    trainer.train()
    first, second = [row for row in trainer.state.log_history if "rewards/margins" in row]
    for answer in ("chosen", "rejected"):
        expected = [log_probability(reference, row["prompt"], row[answer]) for row in rows[:BATCH]]
        assert first[f"logps/{answer}"] == pytest.approx(sum(expected) / BATCH, abs=1e-2)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)  # the model is still its reference
    assert second["rewards/margins"] != 0.0
    changed = [not torch.equal(new, old) for new, old in zip(model.parameters(), reference.parameters(), strict=True)]
    assert all(changed)  # predictor and compression too


def words_are_tokens() -> PreTrainedTokenizerFast:
    """Numbers from 2 with spaces between them, each its own token."""
    names = {"<pad>": 0, "</s>": 1, **{str(token): token for token in range(2, VOCAB)}}
    vocabulary = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="</s>")


def log_probability(model: CoCoMixForCausalLM, prompt: Tensor, answer: Tensor) -> float:
    """Of an answer and the end of text after it, in nats."""
    ids = torch.cat((prompt, answer, torch.tensor([1]))).unsqueeze(0)
    with torch.no_grad():
        log_probabilities = model(ids).logits.log_softmax(-1)[:, :-1]
    return float(log_probabilities.gather(-1, ids[:, 1:, None])[0, len(prompt) - 1 :].sum())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled(family: str) -> None:
    assert loop(torch.compile(student(family)), output_logits=False) == pytest.approx(by_hand(family), abs=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(family: str, reentrant: bool) -> None:
    model = student(family)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert loop(model, output_logits=False) == pytest.approx(by_hand(family), abs=1e-5)
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_of_adapters(family: str, reentrant: bool) -> None:
    """Embeddings are not trained, so their output must be told to ask for a gradient, or reentrant ones get none."""
    gradients = []
    for checkpointing in (False, True):
        model = adapted(student(family), "all-linear")
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()
        model(**next(batches()), output_logits=False).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


# PEFT -----------------------------------------------------------------------------------------------------------------

TARGETS = {
    "all-linear": "all-linear",
    "o_proj": ["o_proj", "attn.c_proj"],
    "predictor": ["predictor.head"],
    "lm_head": ["lm_head"],
}


def adapted(model: CoCoMixForCausalLM, target: Any, **more: Any) -> PeftModel:
    torch.manual_seed(5)
    return get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=target, **more))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lora(family: str, target: str, tmp_path: Path) -> None:
    """Starts as the plain model, trains, says the same merged, unmerged, saved and loaded."""
    model = adapted(student(family), TARGETS[target])
    assert_close(numbers(model.eval()), numbers(student(family)), rtol=1e-5, atol=1e-5)
    base = {name: weight.detach().clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    optimizer, losses, batch = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0), [], next(batches())
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(model(**batch, output_logits=False).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.01
    for name, weight in model.named_parameters():
        assert (name in base) == (not weight.requires_grad)
        assert name not in base or torch.equal(weight, base[name]), name
        assert name in base or weight.grad is not None, name
    trained = numbers(model.eval())
    assert (trained[0] - numbers(student(family))[0]).abs().max() > 1e-3
    assert_close(trained[2], trained[1], rtol=1e-5, atol=1e-5)

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(student(family), tmp_path / "adapter").eval()
    assert_close(numbers(again), trained, rtol=1e-5, atol=1e-5)
    model.merge_adapter()
    tied = (family, target) == ("gpt2", "lm_head")  # merging changes the embedding as well: PEFT warns of it
    assert tied or all(map(close, numbers(model), trained))
    model.unmerge_adapter()
    assert_close(numbers(model), trained, rtol=1e-4, atol=1e-5)
    merged = model.merge_and_unload()
    assert type(merged) is CoCoMixForCausalLM
    assert tied or all(map(close, numbers(merged), trained))


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_predictor_beside_adapters(family: str) -> None:
    """`modules_to_save` puts a wrapper in the predictor's place."""
    model = adapted(student(family), ["down_proj", "mlp.c_proj"], modules_to_save=["predictor"])
    assert_close(numbers(model.eval()), numbers(student(family)), rtol=1e-5, atol=1e-5)
    loop(model)
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    trained = numbers(model.eval())
    assert_close(numbers(model.merge_and_unload()), trained, rtol=1e-4, atol=1e-5)


# Weights elsewhere, and weights of another kind -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("saved") / request.param
    student(request.param).save_pretrained(folder)
    return request.param, folder


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_device_map(saved: tuple[str, Path], tmp_path: Path, share: float) -> None:
    """So much of the model fits into memory; the rest is read from the disk when it is its turn."""
    family, folder = saved
    size = sum(4 * weight.numel() for weight in student(family).parameters())
    limits = {"cpu": int(share * size)}
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map="auto", max_memory=limits, offload_folder=str(tmp_path)
    )
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert_close(numbers(model.eval()), numbers(student(family)), rtol=0, atol=0)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("family", FAMILIES)
def test_offload(family: str, where: str, tmp_path: Path) -> None:
    """Every module's weights come when it runs and go again."""
    model = student(family)
    if where == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert all(weight.device.type == "meta" for weight in model.parameters())
    assert_close(numbers(model), numbers(student(family)), rtol=0, atol=0)


def test_int8(saved: tuple[str, Path]) -> None:
    """Weights of torchao's int8, in both heads too, say what the same weights say in float32.

    Transformers imports torchao wherever it is installed, which takes a second: so it lies in a folder of its own.
    """
    family, folder = saved
    assert TORCHAO.is_dir(), f"{TORCHAO} is missing; run `make install`"
    path = os.pathsep.join([str(TORCHAO), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "TORCHAO_SKIP_LOADING_SO_FILES": "1"}
    command = [sys.executable, "-m", "tests.interop.quantised", str(folder), family]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert {"predictor.head.weight"} <= set(said["from_pretrained"]["int8"])
    assert {"predictor.head.weight", "lm_head.weight"} <= set(said["quantize_"]["int8"])
    for found in said.values():
        assert found["difference"] < 1e-4, found
        assert found["loss_difference"] < 1e-4, found
        assert abs(found["loss"] - found["plain_loss"]) < 0.05, found
        assert found["adapters_without_gradient"] == []
