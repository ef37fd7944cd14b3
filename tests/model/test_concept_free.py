"""Models without concepts (pause vectors, predicted hidden states): the invariants of every model hold for them too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from cocomix.model import CoCoMixForCausalLM, ConceptEdit, predicts_concepts
from cocomix.model.edits import edits_in_force
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import D_MODEL, backbone_config, concepts, plain, student, student_config, tokens
from tests.model.test_cache import STEPS, in_steps

KINDS: dict[str, dict[str, Any]] = {
    "pause": {"mixing": "pause"},
    "hidden": {"prediction": "hidden", "teacher_hidden_size": 12},
}
FAMILIES = ("gpt2", "llama")


@pytest.fixture(params=[(kind, family) for kind in KINDS for family in FAMILIES], ids="-".join)
def model(request: pytest.FixtureRequest) -> CoCoMixForCausalLM:
    kind, family = request.param
    return student(family, 1, **KINDS[kind])


def test_the_pause_vector_follows_every_token() -> None:
    model = student("llama", 1, "pause")
    assert {name: weight.shape for name, weight in model.mixing.named_parameters()} == {"pause": (D_MODEL,)}
    hidden = model.lower(tokens()).last_hidden_state
    mixed = model.mixing(hidden, None)
    assert torch.equal(mixed[:, 0::2], hidden)
    assert torch.equal(mixed[:, 1::2], model.mixing.pause.expand(2, 11, -1))
    read = model.upper(inputs_embeds=mixed).last_hidden_state[:, 1::2]
    torch.testing.assert_close(model(tokens()).logits, read @ model.lm_head.weight.T)


def test_losses_and_outputs(model: CoCoMixForCausalLM) -> None:
    output = model(tokens(), labels=tokens())
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    assert output.concept_ids is output.concept_values is output.concept_loss is output.hidden_loss is None
    output.loss.backward()
    expected = {name for name, _ in model.mixing.named_parameters()}
    assert {name for name, weight in model.mixing.named_parameters() if weight.grad.any()} == expected


def test_future_tokens_change_nothing(model: CoCoMixForCausalLM) -> None:
    other = tokens().clone()
    other[:, 6:] = tokens(seed=8)[:, 6:]
    torch.testing.assert_close(model(tokens()).logits[:, :6], model(other).logits[:, :6], rtol=1e-5, atol=1e-5)


def test_cached_equals_uncached(model: CoCoMixForCausalLM) -> None:
    whole = model(tokens(), use_cache=False).logits
    torch.testing.assert_close(in_steps(model, tokens(), STEPS), whole, rtol=1e-4, atol=2e-5)
    cached, uncached = (
        model.generate(tokens(), max_new_tokens=5, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)


def test_padding_changes_nothing(model: CoCoMixForCausalLM) -> None:
    alone = model(tokens(1, 8), labels=tokens(1, 8))
    mask = F.pad(torch.ones(1, 8, dtype=torch.int64), (3, 0))
    together = model(
        F.pad(tokens(1, 8), (3, 0), value=7), attention_mask=mask, labels=F.pad(tokens(1, 8), (3, 0), value=-100)
    )
    torch.testing.assert_close(together.logits[:, 3:], alone.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.loss, alone.loss)


def test_saving_is_identity(model: CoCoMixForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    twin, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(twin.eval()(tokens()).logits, model(tokens()).logits)


def test_what_asks_for_concepts_is_refused(model: CoCoMixForCausalLM) -> None:
    assert not predicts_concepts(model)
    for name, value in {
        "concept_labels": concepts(),
        "concept_edits": [ConceptEdit(0)],
        "concept_intervention": lambda ids, values: (ids, values),
        "output_concept_logits": True,
    }.items():
        with pytest.raises(CoCoMixError, match=rf"^{name} .*no concepts"):
            model(tokens(), **{name: value})
    with edits_in_force(model, [ConceptEdit(0)]), pytest.raises(CoCoMixError, match="has no concepts"):
        model(tokens())
    assert model(tokens(), concept_edits=[]).logits is not None


def test_models_with_concepts_are_told_apart() -> None:
    assert predicts_concepts(student("gpt2"))
    assert not predicts_concepts(plain("gpt2"))


def test_hidden_targets_need_labels_and_a_model_for_them() -> None:
    with pytest.raises(CoCoMixError, match="pass labels too"):
        student("gpt2", 1, **KINDS["hidden"])(tokens(), hidden_targets=torch.zeros(2, 11, 12))
    with pytest.raises(CoCoMixError, match="hidden_targets"):
        student("gpt2")(tokens(), labels=tokens(), hidden_targets=torch.zeros(2, 11, 12))


@pytest.mark.parametrize("kind", ["concepts", "hidden"])
def test_compression_starts_normal_small_or_zero_and_nothing_else_changes(kind: str) -> None:
    weights = {}
    for start in ("normal", "small", "zero"):
        torch.manual_seed(0)
        config = student_config(
            "", backbone=backbone_config("gpt2"), compression_init=start, **KINDS["hidden"] if kind == "hidden" else {}
        )
        weights[start] = dict(CoCoMixForCausalLM(config).named_parameters())
    for name, weight in weights["normal"].items():
        scale = {"small": 0.1, "zero": 0.0} if name == "mixing.compression.weight" else {"small": 1.0, "zero": 1.0}
        for start, factor in scale.items():
            torch.testing.assert_close(weights[start][name], factor * weight, rtol=1e-6, atol=1e-9)
    assert weights["normal"]["mixing.compression.weight"].std().item() == pytest.approx(0.1, rel=0.1)
