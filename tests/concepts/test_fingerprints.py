"""What labels are refused by, and what is only told (a transformers upgrade must not cost terabytes of labels)."""

import pytest
import torch

from cocomix.concepts import AttributionLabeller, ConceptTeacher
from cocomix.concepts.fingerprints import configuration_fingerprint, model_fingerprint

from .conftest import make_dictionary, make_model, refused_by

HARMLESS = {
    "pad_token_id": 7,
    "eos_token_id": 5,
    "id2label": {0: "yes", 1: "no", 2: "maybe"},
    "attention_dropout": 0.1,
    "initializer_range": 0.5,
    "a_field_of_a_later_version": "new",
}
COMPUTING = {
    "llama": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
        "hidden_act": "gelu",
        "rms_norm_eps": 1e-3,
        "num_attention_heads": 8,
        "head_dim": 4,
    },
    "gpt2": {"layer_norm_epsilon": 1e-3, "activation_function": "relu", "scale_attn_by_inverse_layer_idx": True},
    "gemma3": {"sliding_window": 2, "query_pre_attn_scalar": 4, "final_logit_softcapping": 30.0},
}


@pytest.fixture
def llama():
    return make_model("llama")


@pytest.mark.parametrize("name", HARMLESS)
def test_a_setting_that_changes_no_number_changes_no_refusing_hash(llama, name):
    weights, configuration = model_fingerprint(llama), configuration_fingerprint(llama)
    setattr(llama.config, name, HARMLESS[name])
    assert model_fingerprint(llama) == weights
    assert configuration_fingerprint(llama) != configuration


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in COMPUTING.items() for name in names])
def test_a_setting_that_changes_numbers_without_a_weight_changes_the_hash(kind, name):
    model = make_model(kind)
    before = model_fingerprint(model)
    setattr(model.config, name, COMPUTING[kind][name])
    assert model_fingerprint(model) != before


def test_one_bit_of_one_weight_and_two_swapped_blocks_change_the_hash(llama):
    before = model_fingerprint(llama)
    layers = llama.model.layers
    layers[0], layers[1] = layers[1], layers[0]
    assert model_fingerprint(llama) != before
    layers[0], layers[1] = layers[1], layers[0]
    assert model_fingerprint(llama) == before
    with torch.no_grad():
        layers[0].mlp.up_proj.weight[0, 0] += 1e-6
    assert model_fingerprint(llama) != before


def test_how_a_model_was_stored_changes_nothing(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    loaded = type(llama).from_pretrained(tmp_path, attn_implementation="eager")
    loaded.config.transformers_version = "6.0.0"
    assert model_fingerprint(loaded) == model_fingerprint(llama)
    assert configuration_fingerprint(loaded) == configuration_fingerprint(llama)


def test_labels_are_refused_for_weights_and_only_warned_about_for_the_rest(llama, monkeypatch):
    labeller = AttributionLabeller(ConceptTeacher(llama, make_dictionary(), 1))
    recorded = labeller.fingerprint()
    llama.config.pad_token_id = 9
    monkeypatch.setattr("cocomix.concepts.labellers.teacher_labeller.package_versions", lambda: "torch 3.0")
    assert refused_by(recorded, labeller.fingerprint()) == ()
    assert {name for name, value in labeller.fingerprint().items() if recorded[name] != value} == {
        "configuration",
        "versions",
    }
    llama.config.rms_norm_eps = 0.1
    assert refused_by(recorded, labeller.fingerprint()) == ("weights",)
