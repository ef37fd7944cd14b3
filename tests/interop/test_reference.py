"""The released code's numbers, reproduced: logits, losses and gradients to 1e-5."""

from pathlib import Path

import pytest
import torch

from cocomix.errors import CoCoMixError
from cocomix.interop import from_reference_state_dict
from cocomix.modeling import ConceptEdit
from tests.golden import golden_files, read_golden

TOLERANCE = 1e-5


@pytest.mark.parametrize("path", golden_files("model"))
def test_forward_and_gradients_equal_the_released_code(path: Path) -> None:
    meta, golden = read_golden(path)
    weights = {name.removeprefix("weights."): t for name, t in golden.items() if name.startswith("weights.")}
    insert_layer = meta["insert_layer_index"]
    model = from_reference_state_dict(
        weights,
        num_heads=meta["n_head"],
        insert_layer=insert_layer,
        concept_topk=meta["concept_num"],
        concept_loss_weight=meta["lam_concept"],
    )
    output = model(
        input_ids=golden["input_ids"],
        labels=golden["input_ids"],
        concept_labels=golden["concept_labels"],
        output_concept_logits=True,
    )
    for ours, theirs in (
        (output.logits, "logits"),
        (output.concept_logits, "concept_logits"),
        (output.ntp_loss, "ntp_loss"),
        (output.concept_loss, "concept_loss"),
        (output.loss, "total_loss"),
    ):
        torch.testing.assert_close(ours, golden[theirs].view_as(ours), atol=TOLERANCE, rtol=TOLERANCE, msg=theirs)

    output.loss.backward()
    ours_by_name = dict(model.named_parameters())
    compared = 0
    for name, theirs in golden.items():
        if not name.startswith("grad."):
            continue
        key, gradient = _locate(name.removeprefix("grad.transformer."), insert_layer)
        found = ours_by_name[key].grad
        assert found is not None, key
        found = found.T if gradient == "transposed" else found
        torch.testing.assert_close(found, theirs, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda t, n=name: f"{n}: {t}")
        compared += 1
    assert compared == 9


@pytest.mark.parametrize("path", golden_files("model"))
def test_the_imported_model_can_be_steered(path: Path) -> None:
    meta, golden = read_golden(path)
    weights = {name.removeprefix("weights."): t for name, t in golden.items() if name.startswith("weights.")}
    model = from_reference_state_dict(
        weights,
        num_heads=meta["n_head"],
        insert_layer=meta["insert_layer_index"],
        concept_topk=meta["concept_num"],
    )
    ids = golden["input_ids"]
    untouched = model(ids)
    neutral = model(ids, concept_edits=[ConceptEdit(1), ConceptEdit(2, "add", 0.0)])
    assert torch.equal(neutral.logits, untouched.logits)
    concept = int(untouched.concept_ids[0, -1, 0])
    edits = [ConceptEdit(concept, "scale", 10.0, rows=(0,))]
    steered = model(ids, concept_edits=edits).logits
    assert torch.equal(steered[1:], untouched.logits[1:])
    assert not torch.equal(steered[:1], untouched.logits[:1])
    half = ids.shape[1] // 2
    first = model(ids[:, :half], concept_edits=edits, use_cache=True)
    second = model(ids[:, half:], concept_edits=edits, past_key_values=first.past_key_values)
    cached = torch.cat((first.logits, second.logits), dim=1)
    torch.testing.assert_close(cached, steered, atol=TOLERANCE, rtol=TOLERANCE)


def _locate(name: str, insert_layer: int) -> tuple[str, str]:
    mixer = {
        "pre_bias": "mixer.pre_bias",
        "concept_predictor.weight": "mixer.predictor.weight",
        "concept_predictor.bias": "mixer.predictor.bias",
        "compress_layer.bias": "mixer.compression.bias",
    }
    if name == "compress_layer.weight":
        return "mixer.compression.weight", "transposed"
    if name in mixer:
        return mixer[name], "same"
    if name.startswith("h."):
        _, index, rest = name.split(".", 2)
        half, local = ("lower", int(index)) if int(index) < insert_layer else ("upper", int(index) - insert_layer)
        return f"{half}.h.{local}.{rest}", "same"
    return ("upper." if name.startswith("ln_f") else "lower.") + name, "same"


def test_a_stranger_state_dict_is_refused_by_name() -> None:
    with pytest.raises(CoCoMixError, match=r"has no transformer\.wte\.weight"):
        from_reference_state_dict({"a": torch.zeros(1)}, num_heads=2, insert_layer=0, concept_topk=4)
