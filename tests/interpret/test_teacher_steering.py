"""Steering a teacher's latents: against a dense naive twin, with rows, positions, cache and beams, and what remains."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from cocomix.concepts import ConceptTeacher
from cocomix.interpret import teacher_steering
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError
from tests.concepts.conftest import BACKBONES, CONCEPTS, VOCAB, make_dictionary, make_model

LAYER = 1
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
EDITS = [
    ConceptEdit(4, "set", 9.0, start=3),
    ConceptEdit(9, "add", -4.0, rows=(1,)),
    ConceptEdit(4, "scale", 0.5, start=5, rows=(0, 2)),
    ConceptEdit(7, "ban"),
]


def make_teacher(kind: str = "gpt2", **settings: object) -> ConceptTeacher:
    return ConceptTeacher(make_model(kind), make_dictionary(**settings), LAYER)


def tokens(batch: int = 3, seq: int = 9) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, seq), generator=torch.Generator().manual_seed(2))


def own(row: int) -> list[ConceptEdit]:
    return [replace(edit, rows=None) for edit in EDITS if edit.rows is None or row in edit.rows]


def naive_logits(teacher: ConceptTeacher, ids: torch.Tensor) -> torch.Tensor:
    """All latents held densely, edited entry by entry, and decoded twice."""
    dictionary = teacher.dictionary

    def replaced(hidden: torch.Tensor) -> torch.Tensor:
        _, statistics = dictionary.standardize(hidden)
        before = dictionary.latents(hidden)
        after = before.clone()
        for edit in EDITS:
            for row in range(len(ids)) if edit.rows is None else edit.rows:
                latent = after[row, edit.start :, edit.concept]
                new = {"set": torch.full_like(latent, edit.value), "add": latent + edit.value}
                new |= {"scale": latent * edit.value, "ban": torch.zeros_like(latent)}
                after[row, edit.start :, edit.concept] = new[edit.operation]
        difference = after @ dictionary.W_dec - before @ dictionary.W_dec
        return hidden + (difference if statistics is None else difference * statistics.std)

    with teacher.decoder.replaced(replaced):
        return teacher.decoder.model(ids).logits


@pytest.mark.parametrize("kind", BACKBONES)
def test_neutral_edits_and_inactive_concepts_change_nothing_bit_for_bit(kind: str) -> None:
    teacher, ids = make_teacher(kind), tokens()
    model = teacher.decoder.model
    plain = model(ids).logits
    with teacher_steering(teacher, [ConceptEdit(3), ConceptEdit(5, "add", 0.0), ConceptEdit(1, "set", 3.0, start=9)]):
        assert torch.equal(model(ids).logits, plain)
    latents = teacher.dictionary.latents(teacher.decoder.hidden_states(ids))
    inactive = int((latents == 0).all(0).all(0).nonzero()[0])
    with teacher_steering(teacher, [ConceptEdit(inactive, "scale", 9.0)]):
        assert torch.equal(model(ids).logits, plain)


@pytest.mark.parametrize("normalize", ["layer_norm", "none"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_edited_logits_equal_the_dense_twin(kind: str, normalize: str) -> None:
    teacher, ids = make_teacher(kind, normalize=normalize), tokens()
    with teacher_steering(teacher, EDITS) as model:
        found = model(ids).logits
    torch.testing.assert_close(found, naive_logits(teacher, ids), **CLOSE)
    assert (found - model(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize("kind", BACKBONES)
def test_padding_and_cached_tokens_are_counted_like_a_students(kind: str) -> None:
    teacher, ids = make_teacher(kind), tokens()
    padded = torch.cat((torch.zeros(3, 4, dtype=torch.long), ids), dim=1)
    mask = (padded != 0).long()
    with teacher_steering(teacher, EDITS) as model:
        expected = model(ids).logits
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        found = model(padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
        first = model(ids[:, :4], use_cache=True)
        second = model(ids[:, 4:], past_key_values=first.past_key_values)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(torch.cat((first.logits, second.logits), dim=1), expected, **CLOSE)


def test_a_model_that_goes_past_its_base_model_is_steered_too() -> None:
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": VOCAB}
    torch.manual_seed(0)
    opt = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=32, max_position_embeddings=64)).eval()
    teacher, ids = ConceptTeacher(opt, make_dictionary(), LAYER), tokens()
    with teacher_steering(teacher, EDITS):
        found, hidden = opt(ids).logits, teacher.decoder.hidden_states(ids)
    torch.testing.assert_close(found, naive_logits(teacher, ids), **CLOSE)
    assert (found - opt(ids).logits).abs().max() > 1e-2
    assert not torch.equal(hidden, teacher.decoder.hidden_states(ids))


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_equals_row_by_row_with_cache_and_beams(use_cache: bool) -> None:
    teacher, ids = make_teacher("llama"), tokens()
    settings = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2, "use_cache": use_cache, "eos_token_id": None}
    settings["attention_mask"] = torch.ones_like(ids)
    with teacher_steering(teacher, EDITS, rows_per_prompt=2) as model:
        together = model.generate(ids, **settings)
    settings["attention_mask"] = torch.ones_like(ids[:1])
    alone = []
    for row in range(3):
        with teacher_steering(teacher, own(row)) as model:
            alone.append(model.generate(ids[row : row + 1], **settings))
    assert torch.equal(together, torch.cat(alone))


def test_hooks_are_removed_after_an_error_too() -> None:
    teacher = make_teacher()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in teacher.decoder.model.modules()]
    with (
        pytest.raises(CoCoMixError, match=r"row 2.* 0 to 1"),
        teacher_steering(teacher, EDITS) as model,
    ):
        model(tokens(2))
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with (
        pytest.raises(CoCoMixError, match=f"concept {CONCEPTS} does not exist"),
        teacher_steering(teacher, [ConceptEdit(CONCEPTS)]),
    ):
        pass
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_another_thread_is_not_steered() -> None:
    teacher, ids = make_teacher(), tokens()
    plain = teacher.decoder.model(ids).logits
    with teacher_steering(teacher, EDITS) as model, ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(lambda: model(ids).logits).result(), plain)
        assert not torch.equal(model(ids).logits, plain)
