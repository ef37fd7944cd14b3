import pytest
import torch

from cocomix.concepts import ConceptTeacher, load_teacher
from cocomix.concepts.fingerprints import model_fingerprint
from cocomix.runtime.errors import CoCoMixError

from .conftest import BACKBONES, LAYERS, make_dictionary, make_model


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_saved_teacher_is_loaded_frozen_and_labels_alike(backbone, tmp_path, input_ids):
    model = make_model(backbone)
    model.save_pretrained(tmp_path / "teacher")
    loaded = load_teacher(tmp_path / "teacher")
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert model_fingerprint(loaded) == model_fingerprint(model)
    first = ConceptTeacher(model, make_dictionary(), 1).label(input_ids)
    second = ConceptTeacher(loaded, make_dictionary(), 1).label(input_ids)
    assert torch.equal(first.ids, second.ids)


def test_a_dictionary_of_another_width_is_refused():
    with pytest.raises(CoCoMixError, match=r"24.*32"):
        ConceptTeacher(make_model("gpt2"), make_dictionary(d_model=24), 1)


def test_a_layer_out_of_range_is_refused():
    with pytest.raises(CoCoMixError, match=f"layer 7.*0 to {LAYERS - 1}"):
        ConceptTeacher(make_model("gpt2"), make_dictionary(), 7)


def test_places_without_a_model_are_refused_with_a_sentence(tmp_path):
    with pytest.raises(CoCoMixError, match="causal language model"):
        load_teacher(tmp_path)
    with pytest.raises(CoCoMixError, match=r"nothing\.gguf"):
        load_teacher(tmp_path / "nothing.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with pytest.raises(CoCoMixError, match="causal language model"):
        load_teacher(tmp_path / "broken.gguf")
