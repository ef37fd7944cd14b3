"""Eight blocks a step are the same step as 1 × 8, 8 × 1 and 2 processes × 4, in our Trainer and the stock one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from cocomix.training import CoCoMixTrainer
from cocomix.training.loading import collate_blocks
from cocomix.training.objectives import count_terms, default_objectives
from tests.many.launches import spawned
from tests.model.factories import student
from tests.training.test_trainer import SEQ, Blocks, Logs

TRAINERS = {"stock": Trainer, "ours": CoCoMixTrainer}


def blocks(*, padded: bool) -> Any:
    """Sixteen blocks that differ in how many labels they have, and in how much of them is padding."""
    found = Blocks(16, labelled=True)
    if padded:
        mask = torch.ones_like(found.columns["input_ids"])
        for row in range(16):
            mask[row, : row % 5] = 0
        labels = found.columns["input_ids"].masked_fill(mask == 0, -100)
        labels[torch.arange(16), torch.arange(16) % 5] = -100  # nothing stands before the first token to predict it
        found.columns |= {"attention_mask": mask, "labels": labels}
    return found


def train(kind: str, folder: Path, batch: int, accumulation: int, padded: bool) -> None:
    """Two steps of SGD; the first process keeps the weights and the losses."""
    arguments = TrainingArguments(
        str(folder),
        max_steps=2,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )
    model, logs = student("gpt2", concept_loss_weight=0.5), Logs()
    made = TRAINERS[kind](
        model=model,
        args=arguments,
        train_dataset=blocks(padded=padded),
        data_collator=collate_blocks,
        callbacks=[logs],
    )
    made.train()
    if arguments.process_index == 0:
        losses = [row["loss"] for row in logs.rows if "loss" in row]
        folder.mkdir(exist_ok=True)
        torch.save((dict(model.named_parameters()), losses), folder / "found.pt")


def found(kind: str, folder: Path, batch: int, accumulation: int, padded: bool = False) -> tuple[Any, list[float]]:
    train(kind, folder, batch, accumulation, padded)
    weights, losses = torch.load(folder / "found.pt", weights_only=True)
    return {name: value.detach() for name, value in weights.items()}, losses


def assert_same(one: tuple[Any, list[float]], other: tuple[Any, list[float]]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-6)
    assert one[1] == pytest.approx(other[1], rel=1e-4)  # the stock Trainer rounds to four digits


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", TRAINERS)
def test_micro_batches_change_nothing(tmp_path: Path, kind: str, padded: bool) -> None:
    whole = found(kind, tmp_path / "8", 8, 1, padded)
    for batch, accumulation in ((1, 8), (4, 2)):
        assert_same(found(kind, tmp_path / str(batch), batch, accumulation, padded), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINERS)
def test_processes_change_nothing(tmp_path: Path, kind: str) -> None:
    whole = found(kind, tmp_path / "one", 8, 1, True)
    spawned(train, 2, kind, tmp_path / "two", 4, 1, True)
    weights, losses = torch.load(tmp_path / "two" / "found.pt", weights_only=True)
    assert_same(({name: value.detach() for name, value in weights.items()}, losses), whole)


@pytest.mark.parametrize("labelled", [1.0, 0.5])
def test_what_the_stock_trainer_divides_by(tmp_path: Path, labelled: float) -> None:
    """The next-token loss by its targets, and so the concept loss: an average over all of them, labelled or not."""
    model = student("gpt2", concept_loss_weight=0.5)
    rows = Blocks(8, labelled=True)
    labels = rows.columns["concept_labels"]
    labels[:] = labels.clamp_min(0)
    labels[:, -1] = -100
    labels[: round(8 * (1 - labelled))] = -100
    batch = collate_blocks([rows[index] for index in range(8)])
    alone = model(**batch)
    given = model(**batch, num_items_in_batch=8 * (SEQ - 1))
    assert torch.equal(given.ntp_loss, alone.ntp_loss)
    torch.testing.assert_close(given.concept_loss, labelled * alone.concept_loss)


def test_padding_is_no_target_and_has_no_label() -> None:
    """Of a row after its padding, loss and counts are those of the row alone."""
    rows = Blocks(1, labelled=True)[0]
    padded = {"input_ids": torch.cat((torch.zeros(3, dtype=torch.long), rows["input_ids"]))}
    padded["labels"] = padded["input_ids"].clone()  # of a collator that leaves them there
    filler = torch.zeros(3, rows["concept_labels"].shape[1], dtype=torch.long)
    padded["concept_labels"] = torch.cat((filler, rows["concept_labels"]))
    padded["attention_mask"] = torch.tensor([0] * 3 + [1] * SEQ)
    model = student("llama").eval()
    losses = {}
    for name, row in (("alone", rows), ("padded", padded)):
        batch = collate_blocks([row])
        counts = count_terms(default_objectives(model.config), [batch], torch.device("cpu"))
        losses[name] = ({term: int(count) for term, count in counts.items()}, model(**batch))
    assert losses["alone"][0] == losses["padded"][0] == {"ntp_loss": SEQ - 1, "concept_loss": SEQ - 1}
    for term in ("ntp_loss", "concept_loss"):
        torch.testing.assert_close(losses["padded"][1][term], losses["alone"][1][term], rtol=1e-5, atol=1e-6)
