"""Which block a hook's name means; a dictionary of another layer fits nearly as well, so its name must be read."""

import pytest

from cocomix.concepts import ConceptDictionary, ConceptTeacher, DictionaryConfig, dictionary_layer
from cocomix.concepts.saelens import block_of_hook
from cocomix.runtime.errors import CoCoMixError

from .conftest import make_dictionary, make_model


@pytest.mark.parametrize(
    ("hook", "block"),
    [
        ("blocks.5.hook_resid_post", 5),
        ("blocks.5.hook_resid_pre", 4),
        ("transformer.h.5", 5),
        ("model.layers.11", 11),
        ("gpt_neox.layers.0", 0),
        ("blocks.3.hook_out", 3),
        ("blocks.3.hook_in", 2),
        ("unknown.place", None),
        ("", None),
        (None, None),
    ],
)
def test_the_block_of_a_hook(hook, block):
    assert block_of_hook(hook, "an SAE") == block


@pytest.mark.parametrize(
    "hook",
    [
        "blocks.5.hook_resid_mid",
        "blocks.5.hook_mlp_out",
        "blocks.5.hook_attn_out",
        "blocks.5.attn.hook_z",
        "blocks.0.hook_resid_pre",
        "model.layers.5.mlp",
    ],
)
def test_other_places_are_refused(hook):
    with pytest.raises(CoCoMixError, match=hook):
        block_of_hook(hook, "an SAE")


def test_a_transcoder_is_refused():
    assert block_of_hook("blocks.2.hook_resid_post", "an SAE", "blocks.2.hook_resid_post") == 2
    with pytest.raises(CoCoMixError, match="hook_mlp_out"):
        block_of_hook("blocks.2.hook_resid_post", "an SAE", "blocks.2.hook_mlp_out")


def of_layer(layer):
    dictionary = make_dictionary()
    return ConceptDictionary(dictionary.W_enc, dictionary.b_enc, dictionary.W_dec, dictionary.b_dec, k=8, layer=layer)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_dictionary_of_another_layer_is_refused_or_forced(layer, caplog):
    with pytest.raises(CoCoMixError, match=f"block 1, .*block {layer}"):
        ConceptTeacher(make_model("gpt2"), of_layer(1), layer)
    assert ConceptTeacher(make_model("gpt2"), of_layer(1), layer, force=True).layer == layer
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    ConceptTeacher(make_model("gpt2"), of_layer(1), 1)
    ConceptTeacher(make_model("gpt2"), of_layer(None), layer)


def test_the_layer_is_kept_in_a_saved_dictionary(tmp_path):
    of_layer(1).save(tmp_path / "sae")
    assert ConceptDictionary.from_sae_lens(tmp_path / "sae").layer == 1
    assert dictionary_layer(DictionaryConfig(path=str(tmp_path / "sae"))) == 1


def test_where_the_layer_is_not_recorded_it_is_asked_for_and_a_missing_folder_is_not_mistaken_for_that(tmp_path):
    of_layer(None).save(tmp_path / "sae")
    with pytest.raises(CoCoMixError, match="--layer"):
        dictionary_layer(DictionaryConfig(path=str(tmp_path / "sae")))
    with pytest.raises(CoCoMixError, match=r"missing"):
        dictionary_layer(DictionaryConfig(path=str(tmp_path / "missing")))
