"""`bigram_rows`: a hashed table of pairs of tokens that adds to the residual stream of every block, in any form."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cocomix.model import CoCoMixForCausalLM, account
from cocomix.model.accounting import matched_config
from cocomix.model.backbone import backbone_of
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import D_MODEL, LAYERS, VOCAB, plain, split_student, student, student_config, tokens
from tests.model.test_cache import GENERATION, STEPS, close, filled, generate, in_steps

FORMS = [("llama", "add"), ("gpt2", "interleave"), ("gpt2", "next_concept")]
FAMILIES = ("gpt2", "llama", "gemma3_text", "gpt_neox")
ROWS = 5 * VOCAB


def made(
    family: str, insert_layer: int = 0, mixing: str = "plain", bigram_rows: int = ROWS, **settings: Any
) -> CoCoMixForCausalLM:
    return student(family, insert_layer, mixing, bigram_rows=bigram_rows, **settings)


def half_blocks(model: CoCoMixForCausalLM, half: torch.nn.Module) -> Any:
    return getattr(half, backbone_of(model.config.backbone).blocks)


def row(token: int, before: int | None, rows: int = ROWS) -> int:
    return rows - 1 if before is None else ((36313 * token) ^ (27191 * before)) % (rows - 1)


@pytest.mark.parametrize(("insert_layer", "mixing"), [(0, "plain"), (1, "add"), (1, "interleave"), (1, "pause")])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_reads_what_stands_in_the_rows_of_the_pairs(family: str, insert_layer: int, mixing: str) -> None:
    model, ids = made(family, insert_layer, mixing), tokens()
    torch.nn.init.normal_(model.bigram.table.weight)
    blocks = [block for half in (model.lower, model.upper) for block in half_blocks(model, half)]
    seen: list[list[Tensor]] = [[], []]  # what a block is given before the table's hook, and after it
    for block in blocks:
        block.register_forward_pre_hook(lambda module, inputs: seen[0].append(inputs[0]), prepend=True)
        block.register_forward_pre_hook(lambda module, inputs: seen[1].append(inputs[0]))
    model(ids)
    pairs = [[row(b, a) for a, b in zip([None, *line[:-1]], line, strict=True)] for line in ids.tolist()]
    assert len(blocks) == len(seen[0]) == LAYERS
    for place, (entering, found) in enumerate(zip(*seen, strict=True)):
        width = 1 if place < insert_layer else model.config.positions_per_token
        expected = torch.zeros_like(entering)
        expected[:, ::width] = model.bigram.gains[place] * model.bigram.table.weight[torch.tensor(pairs)]
        torch.testing.assert_close(found, entering + expected, rtol=1e-4, atol=1e-5)


def test_documents_padding_and_chunks_say_which_token_came_before() -> None:
    model, rows = made("llama", bigram_rows=40), []
    model.bigram.table.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].tolist()))
    ids = torch.tensor([[7, 3, 9, 3, 9, 5]])
    pair = [row(9, 3, 40), row(5, 9, 40)]
    model(ids, position_ids=torch.tensor([[0, 1, 0, 1, 2, 0]]))
    assert rows.pop() == [[39, row(3, 7, 40), 39, row(3, 9, 40), pair[0], 39]]
    model(ids, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1]]))
    assert rows.pop()[0][2:] == [39, row(3, 9, 40), *pair]
    cache = model(ids[:, :4]).past_key_values
    model(ids[:, 4:], past_key_values=cache)
    assert rows.pop() == [pair]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_starts_as_the_plain_decoder(family: str) -> None:
    whole = plain(family)
    twin = CoCoMixForCausalLM(student_config(family, 0, "plain", backbone=whole.config, bigram_rows=ROWS)).eval()
    twin.load_state_dict(split_student(whole, 0).state_dict(), strict=False)
    torch.testing.assert_close(twin(tokens()).logits, whole(tokens()).logits)
    assert not twin.bigram.table.weight.any()
    assert twin.bigram.gains.tolist() == pytest.approx([0.1] * LAYERS)


@pytest.mark.parametrize(("insert_layer", "mixing"), [(0, "plain"), (1, "add"), (1, "interleave")])
@pytest.mark.parametrize("family", FAMILIES)
def test_causality_documents_padding_and_checkpointing(family: str, insert_layer: int, mixing: str) -> None:
    model, ids = made(family, insert_layer, mixing), tokens()
    torch.nn.init.normal_(model.bigram.table.weight, std=0.5)
    whole = model(ids).logits
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 50
    close(model(changed).logits[:, :6], whole[:, :6])
    packed = model(ids, position_ids=torch.cat((torch.arange(5), torch.arange(6))).expand_as(ids), use_cache=False)
    close(packed.logits[:, :5], whole[:, :5])
    close(packed.logits[:, 5:], model(ids[:, 5:]).logits)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    close(in_steps(model, ids, STEPS, mask)[0, 2:], model(ids[:1, 2:], use_cache=False).logits[0])

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    expected = model.train() and gradients()
    assert expected.keys() == dict(model.named_parameters()).keys()
    assert all(expected[name].any() for name in expected if name.startswith("bigram."))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
@pytest.mark.parametrize(("family", "mixing"), [*((family, "plain") for family in FAMILIES), *FORMS])
def test_cached_equals_uncached_and_the_cache_can_be_changed(family: str, mixing: str) -> None:
    model, ids = made(family, 0 if mixing == "plain" else 1, mixing), tokens(2, 9)
    torch.nn.init.normal_(model.bigram.table.weight, std=0.5)
    close(in_steps(model, tokens(), STEPS), model(tokens(), use_cache=False).logits)
    for settings in GENERATION.values():
        assert torch.equal(generate(model, ids, **settings), generate(model, ids, use_cache=False, **settings))
    prompt = ids[:1, :4].repeat(1, 3)
    assert torch.equal(generate(model, prompt, prompt_lookup_num_tokens=3), generate(model, prompt))
    last = tokens(2, 1, seed=8)
    expected = model(torch.cat((ids, last), 1), use_cache=False).logits[:, -1]
    cache = model._own_cache(None)
    cache.activate_past_recording()
    model(torch.cat((ids, tokens(2, 2, seed=6)), 1), past_key_values=cache)
    cache.crop(-2)
    close(model(last, past_key_values=copy.deepcopy(cache)).logits[:, -1], expected)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    found = model(last.flip(0).repeat_interleave(2, 0), past_key_values=cache).logits[:, -1]
    close(found, expected.flip(0).repeat_interleave(2, 0))
    cache.reset()
    close(model(ids, past_key_values=cache).logits, model(ids, use_cache=False).logits)
    with pytest.raises(CoCoMixError, match="another split"):
        model(last, past_key_values=filled(student(family, 0, "none"), ids))


@pytest.mark.parametrize("mixing", ["plain", "add", "interleave"])
def test_costs_by_hand(mixing: str) -> None:
    ours, without = account(made("gpt2", 1, mixing, 40)), account(student("gpt2", 1, mixing))
    assert ours.total_parameters - without.total_parameters == 40 * D_MODEL + LAYERS
    assert ours.active_parameters - without.active_parameters == D_MODEL + LAYERS
    assert ours.forward_flops_per_token == without.forward_flops_per_token


@pytest.mark.parametrize("mixing", ["plain", "add"])
def test_a_baseline_has_the_same_table_and_is_as_wide_as_concepts_ask_for(mixing: str) -> None:
    found = matched_config(student_config("gpt2", 1, mixing, bigram_rows=40), "flops", 32)
    assert (found.mixing, found.bigram_rows) == ("plain", 40)
    target = student_config("gpt2", 1, "interleave" if mixing == "plain" else mixing)
    assert found.hidden_size == matched_config(target, "flops", 32).hidden_size


def test_it_saves_and_refuses(tmp_path: Path) -> None:
    model = made("llama", bigram_rows=50)
    model.save_pretrained(tmp_path)
    again = CoCoMixForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    with pytest.raises(CoCoMixError, match="input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(tokens()))
    with pytest.raises(CoCoMixError, match="bigram_rows=1"):
        made("llama", bigram_rows=1)
