"""Losses that others put beside next-token prediction: what each paper says of its targets, costs, and two steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from cocomix.artifacts import partial_path, read_json
from cocomix.concepts.token_bytes import TokenBytes
from cocomix.data import Tokens
from cocomix.model.fused_head import fused_head
from cocomix.model.targets import BagOfWords, SetCrossEntropy
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE
from cocomix.training import Run, estimate, train
from cocomix.training.objectives import NextToken, Schedule, add_heads, in_force, loss_terms, objective_type
from cocomix.training.objectives.ahead import first_occurrences, states_after, tokens_ahead
from cocomix.training.objectives.mtp_headless import HeadlessMTP
from cocomix.training.objectives.prefix_token import PrefixToken
from cocomix.training.objectives.top import DISTANCES, order_targets
from cocomix.training.recipe import RunConfig
from tests.model.factories import CONCEPTS, D_MODEL, LAYERS, TOPK, VOCAB, plain, student, tokens
from tests.training.test_resume import Killed, assert_same_run, kill_at, rows
from tests.workshop import BLOCK, Workshop

D, V = D_MODEL, VOCAB
ARMS = ("ntp", "cocomix")
HEAD = 6 * D * V  # FLOPs of training a head, a token
PLAIN = 72 * D * D * LAYERS + HEAD  # of a decoder, attention scores left out
STUDENT = 72 * D * D * (2 * LAYERS - 1) + HEAD + 6 * (D * CONCEPTS + D * TOPK)  # two blocks read two places a token
SETTINGS: dict[str, dict[str, Any]] = {"superposition": {"bag": 3}}
# Parameters of its head, and training FLOPs a token beside a plain decoder's and a CoCoMix student's.
COSTS: dict[str, tuple[int, float, float]] = {
    "mtp_headless": (0, 0, 0),
    "prefix_token": (0, 0, 0),
    "nitp": (12 * D * D, 72 * D * D, 72 * D * D),
    "top": (D * V, HEAD, HEAD),
    "nextlat": (4 * D * D + 4 * D, 24 * D * D, 24 * D * D),
    "mtp_sequential": (14 * D * D + 17 * D, 84 * D * D + HEAD, 84 * D * D + HEAD),
    "mtp_parallel": (3 * (12 * D * D + 15 * D), 3 * (72 * D * D + HEAD), 3 * (72 * D * D + HEAD)),
    "fsp": (D * V, HEAD, HEAD),
    "superposition": (0, -2 / 3 * PLAIN, -2 / 3 * STUDENT),
}


BATCH = {"input_ids": tokens(), "labels": tokens()}


def build(arm: str) -> PreTrainedModel:
    return plain("gpt2") if arm == "ntp" else student("gpt2")


def made(name: str, model: PreTrainedModel, **settings: Any) -> tuple[Any, nn.Module | None]:
    """An objective with a weight of 1, and its head."""
    objective: Any = objective_type(name)(Schedule(value=1.0), **(settings or SETTINGS.get(name, {})))
    if isinstance(objective, PrefixToken):
        objective.prefixes = torch.arange(V) - 1  # −1 for token 0, as IGNORE is for others
        objective.prefixes[::3] = IGNORE
    else:
        objective.prepare(None, model)
    return objective, add_heads([objective], model, torch.device("cpu")).get(name)


def measured(
    objective: Any, head: nn.Module | None, model: PreTrainedModel, batch: dict[str, Tensor], step: int = 0
) -> tuple[Tensor, Tensor]:
    """A peer's sum and count, in a step of six."""
    heads = {} if head is None else {objective.name: head}
    objectives = in_force([NextToken(model.config), objective], step, 6)
    terms, _ = loss_terms(objectives, model, batch, heads, (step, 6))
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
    extra = manifest["extra_flops"].get(name, {"parameters": 0})
    assert (extra["parameters"] > 0) == (COSTS[name][0] > 0)
    beside = extra.get("per_token", 0.0) * min(extra.get("tokens", 0), manifest["tokens"])
    flops = manifest["flops_per_token"]["training"] * manifest["tokens"] + beside
    assert rows(run)[-1]["flops"] == pytest.approx(flops)
    planned = estimate(workshop.recipe(arm, **changes), seconds=0)
    assert planned["training FLOPs"] == pytest.approx(flops)
    assert planned["and of auxiliary losses, while they count"] == pytest.approx(extra.get("per_token", 0.0))
    assert manifest["teacher_flops_per_token"] == extra.get("of_teacher", 0.0) == 0
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
        assert objective.extra_flops_per_token(build(arm).config) == pytest.approx(flops)


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


# --- with heads of their own ------------------------------------------------------------------------------------------


def test_the_order_of_tokens_equals_the_dense_target_over_all_distances() -> None:
    """With the paper's window of all that follows, y over the whole vocabulary."""
    (row,) = tokens(1, 30)
    ahead = tokens_ahead({"labels": row[None]}, DISTANCES)
    y = torch.full((len(row), V), float("-inf"), dtype=torch.float64)
    for t in range(len(row)):
        for j in range(len(row) - 1 - t, 0, -1):
            y[t, row[t + j]] = 4096 - j + 1
    dense = y.softmax(-1).nan_to_num(0.0)
    labels, shares = order_targets(ahead, "exact")
    found = torch.zeros(len(row), V, dtype=torch.float64)
    found.scatter_add_(1, labels[0].clamp_min(0), shares[0].double())
    torch.testing.assert_close(found, dense, atol=1e-6, rtol=1e-4)
    shares = order_targets(torch.arange(DISTANCES)[None, None], "exact")[1][0, 0]
    assert shares[:3].tolist() == pytest.approx([0.632, 0.233, 0.086], abs=1e-3)
    shares = order_targets(torch.arange(DISTANCES)[None, None], "released")[1][0, 0]
    assert shares[:3].tolist() == pytest.approx([0.456, 0.456, 0.062], abs=1e-3)


@pytest.mark.parametrize("arm", ARMS)
def test_nitp_compares_with_the_next_tokens_early_state_and_stops_its_gradient(arm: str) -> None:
    model = build(arm)
    objective, head = made("nitp", model)
    found, _ = measured(objective, head, model, BATCH)
    output = model(tokens(), output_hidden_states=True)
    early = output.hidden_states[1]  # of three blocks, one is about a fifth
    last = output.last_hidden_state if arm == "cocomix" else output.hidden_states[-1]
    expected = (1 - F.cosine_similarity(head(last[:, :-1]), early[:, 1:].detach(), dim=-1)).sum()
    torch.testing.assert_close(found, expected)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = (torch.autograd.grad(loss, weights, allow_unused=True) for loss in (found, expected))
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_nitp_needs_a_block_of_the_model() -> None:
    with pytest.raises(CoCoMixError, match=f"{LAYERS + 1}"):
        made("nitp", build("ntp"), block=LAYERS + 1)


@pytest.mark.parametrize("block", range(LAYERS + 1))
def test_states_are_read_where_the_next_token_is(block: int) -> None:
    model = student("gpt2", 1, "interleave")
    seen: list[Tensor] = []
    for module in (*model.lower.h, *model.upper.h):
        module.register_forward_hook(lambda _module, _inputs, states: seen.append(states))
    output = model(tokens(), output_hidden_states=True)
    states = states_after(output, model.config, block)
    if 0 < block < LAYERS:  # the last one's is normalised
        expected = seen[block - 1]
        torch.testing.assert_close(states, expected[:, 1::2] if block > 1 else expected)
    else:
        torch.testing.assert_close(states, output.last_hidden_state if block else output.hidden_states[0])


@pytest.mark.parametrize(("kl", "cap"), [(False, None), (True, None), (True, 0.5)])
def test_nextlat_begins_with_the_state_as_it_is_and_learns_through_what_predicts(kl: bool, cap: float | None) -> None:
    model = build("ntp") if cap is None else plain("gemma3_text", final_logit_softcapping=cap)
    objective, head = made("nextlat", model, steps=2, kl=kl)

    def slow() -> Tensor:
        last = model(tokens(), output_hidden_states=True).hidden_states[-1]
        held, read = last.detach(), model.lm_head.weight.detach()
        total = torch.zeros(())
        for step in (1, 2):  # nothing is added to a state yet
            total = total + F.smooth_l1_loss(last[:, :-step], held[:, step:], reduction="none").mean(-1).sum() / 2
            if kl:
                logits = [each @ read.T for each in (last[:, :-step], held[:, step:])]
                logits = logits if cap is None else [cap * torch.tanh(each / cap) for each in logits]
                log_q, log_p = (each.log_softmax(-1) for each in logits)
                total = total + F.kl_div(log_q, log_p, log_target=True, reduction="sum") / 2
        return total

    found, _ = measured(objective, head, model, BATCH)
    torch.testing.assert_close(found, slow(), rtol=1e-4, atol=1e-4)
    weights = [weight for name, weight in model.named_parameters() if "objective" not in name]
    for one, other in zip(*(torch.autograd.grad(loss, weights) for loss in (found, slow())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    (last_layer,) = torch.autograd.grad(measured(objective, head, model, BATCH)[0], [head[-1].weight])
    assert last_layer.any()


@pytest.mark.parametrize("arm", ARMS)
def test_sequential_mtp_reads_the_next_token_and_predicts_the_one_after_by_the_models_head(arm: str) -> None:
    model = build(arm)
    objective, head = made("mtp_sequential", model)
    found, _ = measured(objective, head, model, BATCH)
    output = model(tokens(), output_hidden_states=True)
    last = output.last_hidden_state if arm == "cocomix" else output.hidden_states[-1]
    logits = model.get_output_embeddings()(head(output.hidden_states[0][:, 1:], last[:, :-1], {}))
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens()[:, 2:].flatten(), reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    changed = tokens().clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % V
    seen = model(changed, output_hidden_states=True)
    states = seen.last_hidden_state if arm == "cocomix" else seen.hidden_states[-1]
    again = model.get_output_embeddings()(head(seen.hidden_states[0][:, 1:], states[:, :-1], {}))
    torch.testing.assert_close(again[:, :4], logits[:, :4])  # what place t predicts, it has read up to t + 1


@pytest.mark.parametrize("arm", ARMS)
def test_parallel_mtp_predicts_each_later_token_by_a_block_on_the_state_before_the_last(arm: str) -> None:
    model = build(arm)
    objective, head = made("mtp_parallel", model, ahead=3)
    found, count = measured(objective, head, model, BATCH)
    seen: list[Tensor] = []
    last = model.upper.h[-1] if arm == "cocomix" else model.transformer.h[-1]
    last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))

    def logits(ids: Tensor) -> list[Tensor]:
        model(ids)
        trunk = seen.pop()[:, 1::2] if arm == "cocomix" else seen.pop()
        return [model.get_output_embeddings()(states) for states in head(trunk, {})]

    expected = sum(
        F.cross_entropy(each[:, :-k].flatten(0, 1), tokens()[:, k:].flatten(), reduction="sum")
        for k, each in enumerate(logits(tokens()), start=2)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert count == tokens()[:, 1:].numel()
    changed = tokens().clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % V
    for before, after in zip(logits(tokens()), logits(changed), strict=True):
        torch.testing.assert_close(after[:, :5], before[:, :5])  # nothing that is still to come is read


def test_a_bag_of_words_is_a_binary_cross_entropy_of_every_token() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    bags = first_occurrences(torch.randint(11, (1, 7, 4)))[0]
    bags[2] = IGNORE
    dense = torch.zeros(7, 12).scatter(1, bags.masked_fill(bags == IGNORE, 11), 1.0)[:, :11]
    each = F.binary_cross_entropy_with_logits(hidden @ weight.T, dense, reduction="none").sum(-1)
    expected = each.sum() - each[2]
    found = fused_head(hidden, weight, None, BagOfWords(bags), chunk_size=3).loss_sum
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(loss, [hidden, weight]) for loss in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_future_summary_holds_the_tokens_after_the_next() -> None:
    model = build("ntp")
    objective, head = made("fsp", model, window=3)
    found, _ = measured(objective, head, model, {name: rows[:1, :5] for name, rows in BATCH.items()})
    logits = head(model(tokens()[:1, :5], output_hidden_states=True).hidden_states[-1])[0]
    row = tokens()[0, :5].tolist()
    expected = torch.zeros(())
    for t, bag in enumerate([{row[2], row[3]}, {row[3], row[4]}, {row[4]}]):
        expected = expected + (F.softplus(logits[t]).sum() - sum(logits[t, v] for v in bag)) / V
    torch.testing.assert_close(found, expected)


# --- token superposition ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_a_bag_is_the_mean_of_its_embeddings_and_predicts_the_next_bag(arm: str) -> None:
    model = build(arm)
    (row,) = tokens(1, 7)  # the last token fills no bag
    found, count = measured(*made("superposition", model), model, {"input_ids": row[None], "labels": row[None]})
    embedded = model.get_input_embeddings()(row[:6]).view(1, 2, 3, D).mean(2)
    logits = model(inputs_embeds=embedded).logits[0, 0]
    torch.testing.assert_close(found, F.cross_entropy(logits.expand(3, V), row[3:6]))
    assert count == 1


def test_a_bag_in_which_a_document_ends_is_of_that_document_alone() -> None:
    peer, _ = made("superposition", build("ntp"))
    batch = {"input_ids": torch.arange(9)[None], "labels": torch.arange(9)[None]}
    batch["position_ids"] = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])  # the second document begins within a bag
    assert peer._targets(batch)[0].tolist() == [[3, IGNORE, IGNORE], [IGNORE] * 3, [IGNORE] * 3]
    assert peer._bags(batch).read[0].tolist() == [[True] * 3, [True, False, False], [True] * 3]
    assert peer.inputs(batch)["position_ids"].tolist() == [[0, 1, 0]]


def test_the_switch_from_bags_to_tokens_is_resumed_exactly(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "name": "run",
        "tokens": 4 * 8 * BLOCK,
        "training": {"logging_steps": 1, "save_steps": 1},
    }
    changes["auxiliary"] = {"superposition": {"bag": 4, "weight": {"shape": "stop", "value": 1, "until": 0.5}}}
    run = train(workshop.recipe("cocomix", **changes), tmp_path / "whole")
    training = [row for row in rows(run) if "loss" in row]
    assert ["superposition_loss" in row for row in training] == [True, True, False, False]
    assert ["ntp_loss" in row for row in training] == [False, False, True, True]
    for killed in (2, 3):
        with monkeypatch.context() as patched:
            kill_at(patched, killed)
            with pytest.raises(Killed):
                train(workshop.recipe("cocomix", **changes), tmp_path / "run")
    assert partial_path(tmp_path / "run").is_dir()
    train(workshop.recipe("cocomix", **changes), tmp_path / "run")
    assert_same_run(tmp_path / "run", run)


# --- hint -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_a_hint_runs_its_teacher_in_the_first_steps_only(arm: str, workshop: Workshop, tmp_path: Path) -> None:
    peer = {"teacher": {"model": str(workshop.teacher), "layer": 1}}
    changes: dict[str, Any] = {"tokens": 2 * 8 * BLOCK, "training": {"logging_steps": 1}, "auxiliary": {"hint": peer}}
    run = train(workshop.recipe(arm, **changes), tmp_path / "run")
    assert ["hint_loss" in row for row in rows(run) if "loss" in row] == [True, False]
    assert read_json(run / "manifest.json")["extra_flops"]["hint"]["tokens"] == 8 * BLOCK
    planned = estimate(workshop.recipe(arm, **changes), seconds=0)["training FLOPs"]
    assert planned == pytest.approx(Run.open(run).manifest.training_flops)
    with pytest.raises(ValidationError, match="teacher is missing"):
        workshop.recipe(arm, auxiliary={"hint": 0.1})
