"""Losses that others put beside next-token prediction: what each paper says of its targets, costs, and two steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from cocomix.artifacts import read_json
from cocomix.concepts.token_bytes import TokenBytes
from cocomix.data import Tokens
from cocomix.model.fused_head import SetCrossEntropy, fused_head
from cocomix.runtime.ignore import IGNORE
from cocomix.training import train
from cocomix.training.objectives import NextToken, Schedule, add_heads, loss_terms, objective_type
from cocomix.training.objectives.ahead import first_occurrences, tokens_ahead
from cocomix.training.objectives.mtp_headless import HeadlessMTP
from cocomix.training.objectives.prefix_token import PrefixToken
from cocomix.training.recipe import RunConfig
from tests.model.factories import D_MODEL, VOCAB, plain, student, tokens
from tests.training.test_resume import rows
from tests.workshop import BLOCK, Workshop

D, V = D_MODEL, VOCAB
ARMS = ("ntp", "cocomix")
HEAD = 6 * D * V  # FLOPs of training a head, a token
# Parameters of its head, and training FLOPs a token beside a plain decoder's and a CoCoMix student's.
COSTS: dict[str, tuple[int, float, float]] = {
    "mtp_headless": (0, 0, HEAD),
    "prefix_token": (0, 0, HEAD),
}


BATCH = {"input_ids": tokens(), "labels": tokens()}


def build(arm: str) -> PreTrainedModel:
    return plain("gpt2") if arm == "ntp" else student("gpt2")


def made(name: str, model: PreTrainedModel, **settings: Any) -> tuple[Any, nn.Module | None]:
    """An objective with a weight of 1, and its head."""
    objective: Any = objective_type(name)(Schedule(value=1.0), **settings)
    if isinstance(objective, PrefixToken):
        objective.prefixes = torch.arange(V) - 1  # −1 for token 0, as IGNORE is for others
        objective.prefixes[::3] = IGNORE
    return objective, add_heads([objective], model, torch.device("cpu")).get(name)


def measured(
    objective: Any, head: nn.Module | None, model: PreTrainedModel, batch: dict[str, Tensor], step: int = 0
) -> tuple[Tensor, Tensor]:
    """A peer's sum and count, in a step of six."""
    heads = {} if head is None else {objective.name: head}
    terms, _ = loss_terms([NextToken(model.config), objective], model, batch, heads, (step, 6))
    return terms[f"{objective.name}_loss"].sum, terms[f"{objective.name}_loss"].count


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", COSTS)
def test_it_trains_two_steps_by_name(name: str, arm: str, workshop: Workshop, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"auxiliary": {name: None}, "tokens": 2 * 8 * BLOCK, "training": {"logging_steps": 1}}
    run = train(workshop.recipe(arm, **changes), tmp_path / "run")
    manifest, first = read_json(run / "manifest.json"), next(row for row in rows(run) if "loss" in row)
    assert name in manifest["arm"]
    assert first[f"{name}_loss"] > 0
    assert manifest["final"]["eval_loss"] > 0
    assert (
        manifest["parameters"]["total"]
        == read_json(getattr(workshop, f"{arm}_run") / "manifest.json")["parameters"]["total"]
    )


@pytest.mark.parametrize("name", COSTS)
def test_its_costs_are_those_counted_by_hand(name: str) -> None:
    parameters, beside_plain, beside_student = COSTS[name]
    for arm, flops in zip(ARMS, (beside_plain, beside_student), strict=True):
        objective, head = made(name, build(arm))
        assert parameters == (0 if head is None else sum(weight.numel() for weight in head.parameters()))
        assert objective.extra_flops_per_token(build(arm).config) == flops


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", COSTS)
def test_a_block_of_two_documents_is_as_each_alone(name: str, arm: str) -> None:
    """Nothing of one document is a target in the other, and padding is none."""
    model, (row,), parts = build(arm), tokens(1, 12), ((0, 6), (6, 12))
    objective, head = made(name, model)
    labels = row.clone()
    labels[6] = IGNORE
    positions = torch.arange(6).repeat(2)
    together = {"input_ids": row[None], "labels": labels[None], "position_ids": positions[None]}
    found, count = measured(objective, head, model, together)
    alone = [
        measured(objective, head, model, {"input_ids": row[None, a:b], "labels": row[None, a:b]}) for a, b in parts
    ]
    torch.testing.assert_close(found, sum(total for total, _ in alone), rtol=1e-4, atol=1e-5)
    assert count == sum(counted for _, counted in alone)
    padded = {"input_ids": F.pad(row[None, :6], (0, 3)), "labels": F.pad(row[None, :6], (0, 3), value=IGNORE)}
    padded["attention_mask"] = (padded["labels"] != IGNORE).long()
    found, count = measured(objective, head, model, padded)
    torch.testing.assert_close(found, alone[0][0], rtol=1e-4, atol=1e-5)
    assert count == alone[0][1]


def test_settings_are_checked_and_named() -> None:
    def read(value: Any) -> Any:
        model = {"backbone": {"model_type": "gpt2"}}
        return RunConfig(data=Path("data"), objective="ntp", model=model, auxiliary=value)

    assert read({"mtp_headless": None}).arm == read({"mtp_headless": {}}).arm == "ntp, mtp_headless"
    assert read({"mtp_headless": 0.2}).arm == "ntp, mtp_headless 0.2"
    with_setting = read({"mtp_headless": {"third": 0.25}})
    assert with_setting.arm == "ntp, mtp_headless third 0.25"
    assert RunConfig.model_validate(with_setting.model_dump(mode="json")) == with_setting
    with pytest.raises(ValidationError, match=r"thrid .*did you mean third"):
        read({"mtp_headless": {"thrid": 0.25}})
    with pytest.raises(ValidationError, match="until"):
        read({"prefix_token": {"until": 2}})


# --- tokens ahead -----------------------------------------------------------------------------------------------------


def test_tokens_ahead_stop_where_a_document_ends() -> None:
    labels = torch.tensor([[5, 6, 7, IGNORE, 8, 9]])
    ahead = tokens_ahead({"labels": labels}, 3)
    no = IGNORE
    assert ahead[0].tolist() == [[6, 7, no], [7, no, no], [no, no, no], [8, 9, no], [9, no, no], [no, no, no]]
    assert first_occurrences(torch.tensor([[[3, 4, 3, 3, no, no]]])).tolist() == [[[3, 4, no, no, no, no]]]


def test_weighted_targets_are_a_weighted_sum_of_cross_entropies() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, requires_grad=True)
    weight = torch.randn(11, 5, requires_grad=True)
    labels, weights = torch.randint(11, (7, 3)), torch.rand(7, 3)
    labels[2], labels[3, 1] = IGNORE, IGNORE
    logits = hidden @ weight.T
    each = F.cross_entropy(logits.repeat_interleave(3, 0), labels.flatten(), ignore_index=IGNORE, reduction="none")
    expected = (each * weights.flatten()).sum()
    found = fused_head(hidden, weight, None, SetCrossEntropy(labels, weights), chunk_size=3).loss_sum
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, [hidden, weight]), torch.autograd.grad(expected, [hidden, weight]), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("arm", ARMS)
def test_headless_mtp_asks_the_same_logits_for_the_tokens_two_and_three_ahead(arm: str) -> None:
    model = build(arm)
    logits = model(tokens()).logits

    def ahead(k: int) -> Tensor:
        return F.cross_entropy(logits[:, :-k].flatten(0, 1), tokens()[:, k:].flatten(), reduction="sum")

    for step, share in ((0, 0.5), (1, 0.25), (2, 0.0)):
        found, count = measured(*made("mtp_headless", model), model, BATCH, step)
        torch.testing.assert_close(found, ahead(2) + share * ahead(3))
        assert count == tokens()[:, 1:].numel()


def test_headless_mtp_anneals_the_furthest_first() -> None:
    peer = HeadlessMTP()
    second = [peer.weight.weight(step, 6) for step in range(6)]
    third = [peer.weight.weight(step, 6) * peer.third.weight(step, 6) for step in range(6)]
    assert second == pytest.approx([0.5, 0.5, 0.5, 0.25, 0, 0])
    assert third == pytest.approx([0.25, 0.125, 0, 0, 0, 0])


def test_a_prefix_token_is_the_longest_that_the_next_one_begins_with(workshop: Workshop) -> None:
    data, peer = Tokens.open(workshop.data), PrefixToken()
    peer.prepare(data, nn.Identity())
    spelled = TokenBytes(data.tokenizer(), "toy")
    pieces = [spelled.of([token]) for token in range(data.manifest.vocab_size)]
    found = 0
    for token, prefix in enumerate(peer.prefixes.tolist()):
        shorter = {piece for piece in pieces if piece and piece != pieces[token] and pieces[token].startswith(piece)}
        found += bool(shorter)
        assert (pieces[prefix] if prefix != IGNORE else b"") == max(shorter, key=len, default=b"")
    assert found > 20
