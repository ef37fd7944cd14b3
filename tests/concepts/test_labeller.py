"""The registry of labellers, their configurations, and fingerprints."""

from importlib.metadata import EntryPoint
from typing import ClassVar, Literal

import pytest
import torch
from pydantic import ValidationError

from cocomix.concepts import (
    ConceptLabels,
    ConceptTeacher,
    LabellerConfig,
    Vocabulary,
    build_labeller,
    labeller,
    labeller_config,
    labeller_kinds,
    register_labeller,
)
from cocomix.runtime import registry
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

from .conftest import VOCAB, make_dictionary, make_model

SOURCE = {"teacher": {"model": "somewhere", "layer": 1}, "dictionary": {"path": "elsewhere"}}


class EchoConfig(LabellerConfig):
    kind: Literal["echo"] = "echo"
    shift: int = 0


class EchoLabeller:
    """Labels every token with its own number."""

    config_type: ClassVar = EchoConfig
    num_concepts = VOCAB

    def __init__(self, shift):
        self.shift = shift

    @classmethod
    def build(cls, config, *, device, vocabulary):
        return cls(config.shift)

    def label(self, input_ids, attention_mask=None, *, k):
        ids = torch.full((*input_ids.shape, k), IGNORE)
        ids[..., 0] = (input_ids + self.shift) % VOCAB
        return ConceptLabels(ids)

    def fingerprint(self):
        return {"kind": "echo", "algorithm": "1", "shift": str(self.shift)}

    def flops_per_token(self, seq):
        return 0.0

    def describe(self, concept):
        return f"token {concept}"


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setattr(labeller.LABELLERS, "registered", {})
    return register_labeller("echo")(EchoLabeller)


def test_a_registered_kind_is_configured_built_and_labels(echo, input_ids):
    config = labeller_config({"kind": "echo", "shift": 2})
    assert config == EchoConfig(shift=2)
    assert "echo" in labeller_kinds()
    labels = build_labeller(config).label(input_ids, k=2)
    assert torch.equal(labels.ids[..., 0], (input_ids + 2) % VOCAB)


def test_an_installed_package_adds_a_kind_by_its_entry_point(monkeypatch):
    point = EntryPoint("echo", f"{__name__}:EchoLabeller", "cocomix.labellers")
    monkeypatch.setattr(
        registry, "entry_points", lambda group, name="echo": [point] if group == "cocomix.labellers" else []
    )
    assert isinstance(labeller_config({"kind": "echo"}), EchoConfig)
    assert labeller_kinds()[-1] == "echo"


def test_a_name_is_given_once(echo):
    assert register_labeller("echo")(EchoLabeller) is EchoLabeller
    for name in ("echo", "attribution"):
        with pytest.raises(CoCoMixError, match=name):
            register_labeller(name)(type("Other", (), {}))


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(CoCoMixError, match=r"'atribution'.*attribution, activation, random, contextual, token_lookup"):
        labeller_config({"kind": "atribution"})
    with pytest.raises(CoCoMixError, match="None"):
        labeller_config({"k": 4})


def test_a_wrong_setting_is_named_where_it_stands():
    with pytest.raises(ValidationError) as caught:
        labeller_config({"kind": "attribution", **SOURCE, "sign": "lost"})
    assert caught.value.errors()[0]["loc"] == ("sign",)
    with pytest.raises(ValidationError, match="seed"):
        labeller_config({"kind": "attribution", **SOURCE, "seed": 3})


@pytest.mark.parametrize("kind", ["attribution", "activation", "contextual", "random", "token_lookup"])
def test_a_configuration_survives_a_dump(kind):
    config = labeller_config({"kind": kind, **SOURCE, "k": 7})
    assert (config.kind, config.k) == (kind, 7)
    assert labeller_config(config.model_dump(mode="json")) == config


def test_tables_for_a_kind_that_learns_none_are_refused(echo):
    with pytest.raises(CoCoMixError, match="echo"):
        build_labeller(EchoConfig(), tables={"ids": torch.zeros(1)})


@pytest.mark.parametrize("kind", ["attribution", "activation", "random"])
def test_a_labeller_is_built_from_what_its_configuration_names(kind, tmp_path, input_ids):
    model, dictionary = make_model("gpt2"), make_dictionary()
    model.save_pretrained(tmp_path / "teacher")
    dictionary.save(tmp_path / "sae")
    values = {
        "teacher": {"model": str(tmp_path / "teacher"), "layer": 1},
        "dictionary": {"path": str(tmp_path / "sae")},
    }
    config = labeller_config({"kind": kind, **values})
    built = build_labeller(config, vocabulary=Vocabulary(VOCAB, 0, int(input_ids[0, 0])))
    by_hand = type(built)(ConceptTeacher(model, dictionary, 1, bos_token_id=int(input_ids[0, 0])))
    assert torch.equal(built.label(input_ids, k=3).ids, by_hand.label(input_ids, k=3).ids)
    assert built.fingerprint() == by_hand.fingerprint()
    pinned = values["dictionary"] | {"fingerprint": "0" * 64}
    with pytest.raises(CoCoMixError, match=dictionary.fingerprint()):
        build_labeller(labeller_config({"kind": kind, **values, "dictionary": pinned}))
