"""Labels of kind `online`: a copy of the student, its dictionary, and labels that are those of `activation`."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.concepts import ActivationLabeller, ConceptTeacher, OnlineConfig, OnlineLabeller, build_labeller
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

C, VOCAB, SEQ = 20, 30, 6


@pytest.fixture
def student() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=SEQ, n_embd=8, n_layer=4, n_head=2))


def following(student: GPT2LMHeadModel, bos: int | None = None, **settings: Any) -> OnlineLabeller:
    config = OnlineConfig(**{"num_concepts": C, "active": 5, "k": 3, "ema": 0.75, **settings})
    labeller = OnlineLabeller(config, bos)
    labeller.follow(student, labeller.layer_of(student))
    return labeller


def batch(seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (4, SEQ), generator=torch.Generator().manual_seed(seed))


def alone(value: torch.Tensor) -> torch.Tensor:
    return value


def train_a_little(student: GPT2LMHeadModel) -> None:
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(0.1)


def test_the_copy_follows_by_hand_once_a_step(student: GPT2LMHeadModel) -> None:
    labeller = following(student)
    before = {name: value.clone() for name, value in student.named_parameters()}
    labeller.learn(batch(), None, None, k=3)
    labeller.learn(batch(1), None, None, k=3)
    labeller.learning.steps.fill_(100)  # the first move further
    train_a_little(student)
    labeller.step(alone)
    copy = labeller.teacher.decoder.model
    for name, value in copy.named_parameters():
        assert torch.allclose(value, 0.75 * before[name] + 0.25 * (before[name] + 0.1), atol=1e-6), name
        assert not value.requires_grad
    labeller.step(alone)  # no labels were made, as after λ has ended
    assert torch.allclose(copy.transformer.wte.weight, before["transformer.wte.weight"] + 0.025, atol=1e-6)


def test_labels_are_a_function_of_state_and_batch(student: GPT2LMHeadModel) -> None:
    labeller = following(student)
    labeller.learn(batch(1), None, None, k=3)
    labeller.step(alone)
    labels = labeller.label(batch(), k=3)
    assert torch.equal(labeller.learn(batch(), None, None, k=3), labels.ids)
    train_a_little(student)  # the copy has not moved
    torch.manual_seed(5)
    assert torch.equal(labeller.label(batch(), k=3).ids, labels.ids)
    teacher = ConceptTeacher(labeller.teacher.decoder.model, labeller.dictionary, 2)
    assert torch.equal(ActivationLabeller(teacher).label(batch(), k=3).ids, labels.ids)
    labeller.step(alone)
    assert not torch.equal(labeller.label(batch(), k=3).ids, labels.ids)


def test_where_there_are_no_labels_nothing_is_learned(student: GPT2LMHeadModel) -> None:
    ids = batch()
    ids[:, 0] = 7
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    targets = ids.clone()
    targets[2] = IGNORE
    labeller = following(student, bos=7)
    found = labeller.learn(ids, mask, targets, k=3)
    present = (found != IGNORE).any(-1)
    assert present[0].tolist() == [False, *[True] * 4, False]  # after the begin of text, before the end
    assert present[1].tolist() == [False, True, *[False] * 4]
    assert not present[2].any()
    labeller.step(alone)
    assert int(labeller.state()["logged.positions"]) == int(present.sum())


def test_a_restored_labeller_goes_on_bit_for_bit(student: GPT2LMHeadModel) -> None:
    labeller = following(student)
    labeller.learn(batch(), None, None, k=3)
    train_a_little(student)
    labeller.step(alone)
    state = {name: value.detach().clone() for name, value in labeller.state().items()}
    other = following(student, seed=3)
    other.restore(state)
    assert torch.equal(other.learn(batch(2), None, None, k=3), labeller.learn(batch(2), None, None, k=3))
    for each in (labeller, other):
        each.step(alone)
    after = other.state()
    assert all(torch.equal(value, after[name]) for name, value in labeller.state().items())


def test_flops_by_hand(student: GPT2LMHeadModel) -> None:
    blocks = 3 * (2 * 12 * 8 * 8 + 4 * 8 * (SEQ + 1) / 2)
    learning = 6 * 8 * C + 6 * 8 * (5 + 4)  # three products with all concepts; 5 active and 4 revived ones
    assert following(student).flops_per_token(SEQ) == blocks + learning


def test_the_block_is_three_quarters_up_or_below_the_concepts(student: GPT2LMHeadModel) -> None:
    assert OnlineLabeller(OnlineConfig()).layer_of(student) == 2
    assert OnlineLabeller(OnlineConfig()).layer_of(student, below=1) == 0
    assert OnlineLabeller(OnlineConfig(layer=3)).layer_of(student, below=1) == 3
    with pytest.raises(CoCoMixError, match="layer 9"):
        OnlineLabeller(OnlineConfig(layer=9)).follow(student, 9)


def test_what_cannot_be_is_refused(student: GPT2LMHeadModel) -> None:
    with pytest.raises(CoCoMixError, match="while it trains"):
        build_labeller(OnlineConfig())
    with pytest.raises(CoCoMixError, match="student"):
        OnlineLabeller(OnlineConfig()).label(batch(), k=3)
    for settings in ({"active": 2}, {"active": 5, "num_concepts": 4}):
        with pytest.raises(ValidationError, match="active"):
            OnlineConfig(k=3, **settings)


def test_the_fingerprint_tells_settings_apart() -> None:
    configs = [OnlineConfig(**{name: value}) for name, value in (("ema", 0.9), ("seed", 1), ("active", 8), ("k", 2))]
    found = {str(OnlineLabeller(config).fingerprint()) for config in [OnlineConfig(), *configs]}
    assert len(found) == 4  # the number of labels per position is kept beside it
