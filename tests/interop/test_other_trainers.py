"""The training steps of docs/howto/other_tools.md for torchtitan and Lightning, in stand-ins for their classes."""

import sys
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.documents import DOCS, blocks
from tests.model.factories import concepts, student, tokens


def defined(monkeypatch: pytest.MonkeyPatch, section: str, module: str, base: str, stand_in: type) -> dict[str, Any]:
    """What the page's block defines, where `module` has `base`."""
    for name in (module.split(".")[0], module):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[module], base, stand_in, raising=False)
    (block,) = (each for each in blocks(DOCS / "howto" / "other_tools.md") if each.section == section)
    names: dict[str, Any] = {}
    exec(compile(block.code, section, "exec"), names)
    return names


def test_torchtitan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two micro-batches of different numbers of labels have the gradients of one batch by the Trainer's rule."""

    class StandIn:
        def __init__(self) -> None:
            self.model_parts = [student("llama").train()]

        def train_context(self) -> Any:
            return nullcontext()

    trainer = defined(monkeypatch, "torchtitan", "torchtitan.trainer", "Trainer", StandIn)["ConceptTrainer"]()
    ids, labels = tokens(4, 12), concepts(4, 11)
    labels[:2, 3:] = -100
    count = torch.tensor(4 * 11)
    losses = [
        trainer.forward_backward_step(
            input_dict={"input": ids[part, :-1], "concept_labels": labels[part]},
            labels=ids[part, 1:],
            global_valid_tokens=count,
        )
        for part in (slice(0, 2), slice(2, 4))
    ]
    model = student("llama").train()
    whole = torch.cat((labels, torch.full_like(labels[:, :1], -100)), dim=1)  # the last token has no target
    expected = model(ids, labels=ids, concept_labels=whole, num_items_in_batch=count).loss
    expected.backward()
    assert_close(sum(losses), expected)
    for found, one in zip(trainer.model_parts[0].parameters(), model.parameters(), strict=True):
        assert_close(found.grad, one.grad, rtol=1e-4, atol=1e-5)


def test_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    class StandIn(nn.Module):
        def log_dict(self, values: dict[str, torch.Tensor]) -> None:
            self.logged = values

    module = defined(monkeypatch, "Lightning", "lightning", "LightningModule", StandIn)["Student"](student("gpt2"))
    optimizer = module.configure_optimizers()
    batch = {"input_ids": tokens(), "concept_labels": concepts()}
    first = module.training_step(batch, 0)
    assert set(module.logged) == {"next_token", "concepts"}
    assert_close(
        first, module.logged["next_token"] + module.model.config.concept_loss_weight * module.logged["concepts"]
    )
    first.backward()
    optimizer.step()
    assert module.training_step(batch, 1) < first
