"""The model as a whole: losses, padding, kernels, precision, accumulation, checkpointing, compilation."""

import copy
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import (
    CONCEPTS,
    D_MODEL,
    LAYERS,
    MAIN_BACKBONES,
    MIXINGS,
    OTHER_BACKBONES,
    TOPK,
    VOCAB,
    backbone_config,
    concepts,
    mix,
    student,
    tokens,
)


def gradients_of(model: CoCoMixForCausalLM) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = theirs[name].abs().max().item() + 1e-6
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-4, atol=tolerance * scale, msg=lambda m, n=name: n + m
        )


def test_outputs_as_a_tuple() -> None:
    """Asked for by an argument or by the configuration: what is there, in the order of the named output."""
    model = student("gpt2")
    arguments = {"input_ids": tokens(), "labels": tokens(), "concept_labels": concepts()}
    named = model(**arguments)
    with torch.no_grad():
        found = [model(**arguments, return_dict=False)]
        model.config.return_dict = False
        found.append(model(**arguments))
        assert model(**arguments, return_dict=True).keys() == named.keys()
    for output in found:
        assert type(output) is tuple
        torch.testing.assert_close(output, named.to_tuple())


def test_the_head_reads_the_last_hidden_state() -> None:
    output = student("llama")(tokens())
    assert output.last_hidden_state.shape == (2, 11, D_MODEL)
    torch.testing.assert_close(student("llama").lm_head(output.last_hidden_state), output.logits)


# Losses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_losses_are_what_they_say(family: str) -> None:
    model = student(family, concept_loss_weight=0.3)
    ids, labels, wanted = tokens(), tokens(), concepts()
    labels[0, :4] = -100
    output = model(ids, labels=labels, concept_labels=wanted, output_concept_logits=True)
    targets = labels[:, 1:].flatten()
    expected_ntp = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), targets)  # the label of t + 1 at position t
    terms = []
    for z, row in zip(output.concept_logits.flatten(0, 1), wanted.flatten(0, 1), strict=True):
        used = row[row != -100]
        if len(used):
            terms.append(torch.stack([F.cross_entropy(z, i) for i in used]).mean())
    assert 0 < len(terms) < 22  # some positions are unlabelled and must not dilute the mean
    torch.testing.assert_close(output.ntp_loss, expected_ntp)
    torch.testing.assert_close(output.concept_loss, torch.stack(terms).mean())
    torch.testing.assert_close(output.loss, output.ntp_loss + 0.3 * output.concept_loss)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_the_next_token_is_read_at_its_concept(mixing: str) -> None:
    """The forward pass put together by hand: with concepts between the tokens, every second position is read."""
    model = student("llama", 1, mixing)
    mixed = mix(model, model.lower(tokens()).last_hidden_state)
    final = model.upper(inputs_embeds=mixed).last_hidden_state
    read = final[:, [2 * t + 1 for t in range(11)]] if mixing in ("interleave", "residual") else final
    torch.testing.assert_close(model(tokens()).logits, read @ model.lm_head.weight.T)


def test_each_loss_alone() -> None:
    model = student("gpt2", concept_loss_weight=0.5)
    assert model(tokens()).loss is None
    only_tokens = model(tokens(), labels=tokens())
    assert only_tokens.concept_loss is None
    assert only_tokens.loss is only_tokens.ntp_loss
    only_concepts = model(tokens(), concept_labels=concepts())
    assert only_concepts.ntp_loss is None
    torch.testing.assert_close(only_concepts.loss, 0.5 * only_concepts.concept_loss)


def test_no_labelled_position_means_no_concept_loss() -> None:
    model = student("gpt2")
    output = model(tokens(), labels=tokens(), concept_labels=torch.full((2, 11, 2), -100))
    assert output.concept_loss.item() == 0.0
    output.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients_of(model).values())


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 6), (3, 6, 3), (2, 18)])
def test_labels_of_another_shape_are_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    labels = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(CoCoMixError, match=rf"concept_labels.*{re.escape(str([*shape]))}.*\[2, 6\]"):
        student("gpt2")(input_ids=tokens(2, 6), concept_labels=labels)


def test_more_tokens_than_learned_positions_are_refused() -> None:
    """Also one by one, after a cache; rotary positions go on."""
    model = student("gpt2")
    assert model.config.max_position_embeddings == 64
    for asked in (lambda: model(input_ids=tokens(1, 65)), lambda: model.generate(tokens(1, 62), max_new_tokens=5)):
        with pytest.raises(CoCoMixError, match=r"65 tokens.* 64"):
            asked()
    assert student("llama")(input_ids=tokens(1, 65)).logits.shape[1] == 65


@pytest.mark.parametrize("wrong", [CONCEPTS, -7])
def test_labels_of_concepts_that_do_not_exist_are_refused(wrong: int) -> None:
    labels = concepts()
    labels[1, 2, 0] = wrong
    with pytest.raises(CoCoMixError, match=f"concept label {wrong}.* 48"):
        student("gpt2")(tokens(), concept_labels=labels)


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_eight_micro_batches_equal_one_batch(family: str) -> None:
    model, ids, wanted = student(family), tokens(8, 9), concepts(8, 9)
    labels = ids.clone()
    labels[3, 2:] = -100
    wanted[5] = -100
    whole = model(ids, labels=labels, concept_labels=wanted)
    whole.loss.backward()
    expected = gradients_of(model)
    model.zero_grad()
    items, concept_items = (labels[:, 1:] != -100).sum(), (wanted != -100).any(-1).sum()
    total = 0.0
    for row in range(8):
        part = slice(row, row + 1)
        loss = model(
            ids[part],
            labels=labels[part],
            concept_labels=wanted[part],
            num_items_in_batch=items,
            num_concept_items_in_batch=concept_items,
        ).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.loss.item(), rel=1e-5)
    assert_same_gradients(gradients_of(model), expected)


# Padding, packing, kernels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_padding_changes_nothing(family: str, side: str, attn: str) -> None:
    ids, wanted = tokens(1, 8), concepts(1, 8)
    pad = (3, 0) if side == "left" else (0, 3)
    real = slice(3, None) if side == "left" else slice(0, 8)
    padded = {
        "input_ids": F.pad(ids, pad, value=7),
        "attention_mask": F.pad(torch.ones_like(ids), pad),
        "labels": F.pad(ids, pad, value=-100),
        "concept_labels": F.pad(wanted, (0, 0, *pad), value=-100),
    }
    for insert_layer, mixing in [(0, "interleave"), (1, "interleave"), (LAYERS - 1, "interleave"), (1, "add")]:
        model = student(family, insert_layer, mixing, attn=attn)
        alone = model(ids, labels=ids, concept_labels=wanted)
        together = model(**padded)
        torch.testing.assert_close(together.logits[:, real], alone.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.ntp_loss, alone.ntp_loss)
        torch.testing.assert_close(together.concept_loss, alone.concept_loss)
    alone.loss.backward()
    expected = gradients_of(model)
    model.zero_grad()
    together.loss.backward()
    assert_same_gradients(gradients_of(model), expected, 1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
def test_packed_documents_do_not_see_each_other(family: str) -> None:
    """Positions that start again mark a new document, as in the stock decoders."""
    model = student(family)
    first, second = tokens(1, 5, seed=1), tokens(1, 6, seed=2)
    positions = torch.cat([torch.arange(5), torch.arange(6)]).unsqueeze(0)
    packed = model(torch.cat([first, second], dim=1), position_ids=positions, use_cache=False).logits
    for part, alone in ((packed[:, :5], first), (packed[:, 5:], second)):
        torch.testing.assert_close(part, model(alone, use_cache=False).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [*MAIN_BACKBONES, *OTHER_BACKBONES])
def test_eager_equals_sdpa_and_can_be_switched_at_runtime(family: str) -> None:
    model, reference = student(family, attn="sdpa"), student(family, attn="eager")
    ids, mask = tokens(), torch.ones(2, 11, dtype=torch.long)
    mask[0, :3] = 0
    kept = mask.bool()
    expected = reference(ids, attention_mask=mask).logits[kept]
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[kept], expected, rtol=1e-5, atol=1e-5)
    model.set_attn_implementation("eager")
    assert {part.config._attn_implementation for part in (model, model.lower, model.upper)} == {"eager"}
    assert torch.equal(model(ids, attention_mask=mask).logits[kept], expected)
    assert len(model(ids, output_attentions=True).attentions) == LAYERS


def test_input_embeddings_in_place_of_tokens() -> None:
    model = student("gemma3_text")
    embedded = model.get_input_embeddings()(tokens())
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, model(tokens()).logits)


def test_logits_to_keep() -> None:
    model = student("gemma3_text")
    logits = model(tokens()).logits
    torch.testing.assert_close(model(tokens(), logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(model(tokens(), logits_to_keep=torch.tensor([1, 4])).logits, logits[:, [1, 4]])
    whole = model(tokens(), labels=tokens()).loss  # of all positions, whichever logits are returned
    for kept in (1, torch.tensor([1, 4])):
        torch.testing.assert_close(model(tokens(), labels=tokens(), logits_to_keep=kept).loss, whole)


def test_hidden_states_of_both_halves() -> None:
    states = student("llama", 1)(tokens(), output_hidden_states=True).hidden_states
    assert [state.shape[1] for state in states] == [11, 11, 22, 22, 22]


def test_a_four_dimensional_mask_is_refused() -> None:
    with pytest.raises(CoCoMixError, match=r"attention_mask.* 4"):
        student("llama")(tokens(), attention_mask=torch.ones(2, 1, 11, 11), position_ids=torch.arange(11)[None])


# Precision, checkpointing, compilation -------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_bfloat16_autocast_trains_in_float32(family: str, mixing: str) -> None:
    model = student(family, 1, mixing)
    exact = model(tokens(), labels=tokens(), concept_labels=concepts())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(tokens(), labels=tokens(), concept_labels=concepts())
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.ntp_loss.item() == pytest.approx(exact.ntp_loss.item(), rel=0.03)
    assert output.concept_loss.item() == pytest.approx(exact.concept_loss.item(), rel=0.03)
    gradients = gradients_of(model)
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32, name
        assert gradient.isfinite().all(), name
        if name.startswith(("predictor.", "mixing.")):
            assert gradient.any(), name


def test_a_bfloat16_model_trains_and_decodes() -> None:
    model = student("llama").to(torch.bfloat16)
    output = model(tokens(), labels=tokens(), concept_labels=concepts())
    output.loss.backward()
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients_of(model).values())
    assert model.generate(tokens(), max_new_tokens=3, do_sample=False).shape == (2, 14)


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_gradient_checkpointing_changes_nothing(family: str) -> None:
    model = student(family).train()
    plain = model(tokens(), labels=tokens(), concept_labels=concepts()).loss
    plain.backward()
    expected = gradients_of(model)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.lower.gradient_checkpointing
    assert model.upper.gradient_checkpointing
    loss = model(tokens(), labels=tokens(), concept_labels=concepts()).loss
    loss.backward()
    assert torch.equal(loss, plain)
    assert_same_gradients(gradients_of(model), expected, 1e-6)


@pytest.mark.slow
def test_torch_compile_gives_the_same_loss_and_gradients() -> None:
    model = student("llama").train()
    plain = model(tokens(), labels=tokens(), concept_labels=concepts()).loss
    plain.backward()
    expected = gradients_of(model)
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss = compiled(tokens(), labels=tokens(), concept_labels=concepts()).loss
    loss.backward()
    torch.testing.assert_close(loss, plain)
    assert_same_gradients(gradients_of(model), expected)


def test_blocks_and_mixer_are_not_split_across_devices() -> None:
    blocks = {"gpt2": "GPT2Block", "llama": "LlamaDecoderLayer", "qwen3": "Qwen3DecoderLayer"}
    for family, block in (blocks | {"gemma3_text": "Gemma3DecoderLayer"}).items():
        assert {block, "ConceptPredictor"} <= set(student(family)._no_split_modules)


@pytest.mark.parametrize("family", MAIN_BACKBONES)
def test_copies_and_pickles_compute_the_same(family: str) -> None:
    model = student(family)
    logits = model(tokens()).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own bytes
        assert torch.equal(twin(tokens()).logits, logits)
        tied = twin.lm_head.weight is twin.get_input_embeddings().weight
        assert tied == model.config.tie_word_embeddings


def test_dropout_acts_once_on_the_embeddings() -> None:
    backbone = backbone_config("gpt2", embd_pdrop=0.5)
    model = student("gpt2", backbone=backbone).train()
    seen: list[Tensor] = []
    model.upper.h[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
    model(tokens())
    assert (seen[0] == 0).float().mean() < 0.01


# Anything goes -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(MAIN_BACKBONES),
    mixing=st.sampled_from(MIXINGS),
    insert_layer=st.integers(0, LAYERS - 1),
    batch=st.integers(1, 3),
    seq=st.integers(2, 12),
    k_attr=st.integers(1, 4),
    topk=st.integers(1, TOPK),
    seed=st.integers(0, 1000),
    masked=st.booleans(),
)
def test_any_batch_gives_finite_losses_of_the_right_shapes(
    family: str, mixing: str, insert_layer: int, batch: int, seq: int, k_attr: int, topk: int, seed: int, masked: bool
) -> None:
    model = student(family, insert_layer, mixing, concept_topk=topk)
    ids, wanted = tokens(batch, seq, seed), concepts(batch, seq, k_attr, seed)
    mask, labels = None, ids
    if masked:
        padding = torch.randint(0, seq - 1, (batch, 1), generator=torch.Generator().manual_seed(seed))
        mask = (torch.arange(seq) >= padding).long()
        labels = ids.masked_fill(mask == 0, -100)
    output = model(ids, attention_mask=mask, labels=labels, concept_labels=wanted, output_concept_logits=True)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients_of(model).values())
    assert output.logits.shape == (batch, seq, VOCAB)
    assert output.concept_logits.shape == (batch, seq, CONCEPTS)
    assert output.concept_ids.shape == output.concept_values.shape == (batch, seq, topk)
    assert output.concept_ids.dtype == torch.int64
    assert model.predictor.pre_bias.shape == (D_MODEL,)
