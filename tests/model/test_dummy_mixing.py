"""A form of mixing that is none of ours, in one file: named, built, trained two steps."""

import pytest
import torch
from torch import Tensor

from cocomix.model import MIXINGS, Concepts, Mixing
from cocomix.model.accounting import account
from tests.model.factories import concepts, student, tokens


class Prepend(Mixing):
    """The concept vector before the hidden state that made it."""

    name = "prepend"
    described = "before each hidden state stands its concept vector"
    arm = "prepend"
    positions_per_token = 2

    def mix(self, hidden: Tensor, compressed: Tensor, concepts: Concepts) -> Tensor:
        vector = compressed * concepts.std + concepts.mean
        return torch.stack((vector, hidden), dim=2).flatten(1, 2)


def test_it_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIXINGS, Prepend.name, Prepend)
    model = student("llama", 1, Prepend.name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = model(tokens(), labels=tokens(), concept_labels=concepts()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    generated = model.eval().generate(tokens(), max_new_tokens=3, do_sample=False)
    assert torch.equal(generated, model.generate(tokens(), max_new_tokens=3, do_sample=False, use_cache=False))
    assert account(model).forward_flops_per_token == account(student("llama", 1)).forward_flops_per_token
