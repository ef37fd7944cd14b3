"""A dictionary that is learned batch by batch: its steps by hand, its copy, its dead concepts, its state."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from cocomix.concepts import OnlineConfig
from cocomix.concepts.dictionary import layer_normalize
from cocomix.concepts.learning_dictionary import LearningDictionary, learning_flops
from cocomix.runtime.errors import CoCoMixError

D, C = 8, 24
NONE = torch.zeros(0, dtype=torch.int64)


def fresh(**changes: Any) -> LearningDictionary:
    sizes: dict[str, Any] = {"k": 1, "num_concepts": C, "active": 3}
    settings = {"ema": 0.75, "learning_rate": 0.01, "dead_after_tokens": 10**6}
    config = OnlineConfig(**{**sizes, **settings, **changes})
    return LearningDictionary(D, config, layer=1, device=torch.device("cpu"))


def states(positions: int = 40, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(12, D, generator=generator)
    chosen = torch.randint(12, (positions, 2), generator=generator)
    return layer_normalize(directions[chosen].sum(1))[0]


def alone(value: torch.Tensor) -> torch.Tensor:
    return value


def tensors(learning: LearningDictionary) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in learning.state().items()}


def test_a_step_by_hand() -> None:
    learning, x = fresh(), states()
    with torch.no_grad():
        learning.weights["b_dec"].fill_(0.1)
    learning.steps.fill_(100)
    weights = {name: value.detach().clone().requires_grad_(name != "b_dec") for name, value in learning.weights.items()}
    slow = {name: value.clone() for name, value in learning.copy.tensors().items()}
    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    kept = pre >= pre.topk(3, dim=-1).values[:, -1:]
    decoded = (pre * kept).relu() @ weights["W_dec"] + weights["b_dec"]
    (x - decoded).square().sum(-1).mean().backward()
    torch.optim.Adam([weights[name] for name in ("W_enc", "b_enc", "W_dec")], lr=0.01).step()
    wanted = {name: value.detach() for name, value in weights.items()} | {"b_dec": x.mean(0)}
    wanted["W_dec"] = F.normalize(wanted["W_dec"], dim=-1)
    learning.add(x[:15], NONE)  # micro-batches of any sizes
    learning.add(x[15:], NONE)
    learning.add(x[:0], NONE)
    assert learning.step(alone)
    for name, value in wanted.items():
        assert torch.allclose(learning.weights[name], value, atol=1e-5), name
        moved = 0.75 * slow[name] + 0.25 * learning.weights[name].detach()
        assert torch.allclose(learning.copy.tensors()[name], moved, atol=1e-6), name


def test_copies_move_further_in_the_first_steps() -> None:
    learning = fresh(ema=0.99)
    found = []
    for _ in range(3):
        found.append(learning.moves)
        learning.add(states(), NONE)
        learning.step(alone)
    assert found == [1 - 1 / 10, 1 - 2 / 11, 1 - 3 / 12]
    learning.steps.fill_(10_000)
    assert learning.moves == pytest.approx(0.01)


def test_what_all_states_share_is_no_concept() -> None:
    """Else the same concepts would be the most active ones everywhere."""
    learning, shared = fresh(ema=0.5, learning_rate=0.003), torch.linspace(-9, 9, D)
    for step in range(60):
        x, _ = layer_normalize(states(200, seed=step) + shared)
        learning.add(x, NONE)
        learning.step(alone)
    x, _ = layer_normalize(states(200, seed=99) + shared)
    first = learning.copy.encode(x).ids[:, 0]
    assert torch.bincount(first).max() < 0.5 * len(x)


def test_without_a_batch_nothing_moves() -> None:
    learning = fresh()
    before = tensors(learning)
    assert not learning.step(alone)
    assert learning.numbers() == {}
    assert all(torch.equal(value, before[name]) for name, value in tensors(learning).items())


def test_it_learns_to_describe_the_states() -> None:
    learning = fresh(ema=0.5)
    found = []
    for step in range(60):
        learning.add(states(200, seed=1), NONE)
        learning.step(alone)
        if step in (0, 59):
            found.append(learning.numbers()["dictionary_fvu"])
    x = states(200, seed=1)
    assert found[1] < 0.5 * found[0]
    left = (learning.copy.decode(learning.copy.encode(x), None) - layer_normalize(x)[0]).square().sum()
    assert left / x.square().sum() < 0.5 * found[0]


def test_dead_concepts_are_counted_and_revived() -> None:
    def dead_after(revives: bool) -> float:
        learning = fresh(dead_after_tokens=300 if revives else 10**6)
        with torch.no_grad():
            learning.weights["b_enc"][:12] = -2.0  # half of them are hardly ever among the three
        for step in range(120):
            learning.add(states(100, seed=step), NONE)
            learning.step(alone)
            if step == 9 and revives:
                assert learning.numbers()["dead_concepts"] >= 6
        with torch.no_grad():
            return float(learning.weights["b_enc"][:12].mean())

    assert dead_after(revives=True) > dead_after(revives=False)


def test_the_auxiliary_loss_reaches_dead_concepts_alone() -> None:
    learning = fresh(dead_after_tokens=1)
    dead = torch.arange(C) >= 20
    learning.idle[dead] = 5
    x = states()
    learning.add(x, NONE)
    weights = {name: value.detach().clone().requires_grad_(name != "b_dec") for name, value in learning.weights.items()}
    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    kept = pre >= pre.topk(3, dim=-1).values[:, -1:]
    error = x - (pre * kept).relu() @ weights["W_dec"] - weights["b_dec"]
    revived = (pre * dead).relu() @ weights["W_dec"]  # all four dead ones, of k_aux = 4
    (error.square().sum() + (error.detach() - revived).square().sum()).backward()
    for name, value in weights.items():
        given = learning.weights[name].grad
        assert (given is None) == (value.grad is None) == (name == "b_dec")
        assert given is None or torch.allclose(given, value.grad, rtol=1e-4, atol=1e-3), name


def test_what_is_logged() -> None:
    learning = fresh()
    learning.add(states(), torch.tensor([3, 3, 5, 5]))
    learning.step(alone)
    found = learning.numbers()
    assert found["label_concepts"] == 2
    assert found["label_entropy"] == pytest.approx(torch.log(torch.tensor(2.0)).item())
    assert found["dead_concepts"] == 0
    assert found["dictionary_fvu"] > 0
    assert learning.numbers() == {}


def test_a_restored_one_goes_on_bit_for_bit(tmp_path: Any) -> None:
    learning = fresh()
    for step in range(3):
        learning.add(states(seed=step), torch.tensor([step]))
        learning.step(alone)
    save_file(learning.state(), tmp_path / "state.safetensors")
    other = fresh(seed=7)
    saved = load_file(tmp_path / "state.safetensors")
    for name, tensor in other.state().items():
        tensor.copy_(saved[name])
    for each in (learning, other):
        each.add(states(seed=9), torch.tensor([9]))
        each.step(alone)
    after = tensors(other)
    assert all(torch.equal(value, after[name]) for name, value in tensors(learning).items())
    assert learning.numbers() == other.numbers()


def test_numbers_that_are_not_finite_are_refused() -> None:
    learning = fresh()
    learning.add(states() * torch.nan, NONE)
    with pytest.raises(CoCoMixError, match=r"learning_rate.*0\.01"):
        learning.step(alone)


def test_flops_by_hand() -> None:
    encode, k_aux = 2 * D * C, D // 2
    assert learning_flops(D, C, 3) == 2 * encode + encode + (2 + 4) * D * (3 + k_aux)
