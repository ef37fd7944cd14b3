"""The configuration: what it refuses, that it survives JSON, and that it never touches the caller's backbone."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GPT2Config

from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model.backbone import SUPPORTED_BACKBONES
from cocomix.runtime.errors import CoCoMixError
from tests.model.factories import LAYERS, VOCAB, backbone_config, student_config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"insert_layer": LAYERS}, "insert_layer=3 is out of range: the backbone has 3 blocks.*between 0 and 2"),
        ({"insert_layer": -1}, "insert_layer=-1 is out of range"),
        ({"num_concepts": 0}, "num_concepts=0 must be at least 1"),
        ({"num_concepts": 8, "concept_topk": 9}, "concept_topk=9 must be between 1 and num_concepts=8"),
        ({"concept_topk": 0}, "concept_topk=0 must be between 1"),
        ({"concept_rank": 0}, "concept_rank=0 must be between 1 and 31"),
        ({"concept_rank": 32}, "concept_rank=32 must be between 1 and 31"),
        ({"concept_rank": 8, "num_concepts": 8, "concept_topk": 2}, "concept_rank=8 must be between 1 and 7"),
        ({"concept_rank": 8, "prediction": "hidden", "teacher_hidden_size": 8}, "concept_rank=8 needs prediction"),
        ({"head_chunk_size": 0}, "head_chunk_size=0 must be at least 1"),
        ({"concept_loss_weight": -0.1}, "concept_loss_weight=-0.1 must be"),
        ({"concept_loss_weight": float("nan")}, "concept_loss_weight=nan must be"),
        ({"mixing": "stir"}, "mixing='stir' is not one of interleave, residual, add, none, pause, values"),
        ({"prediction": "tokens"}, "prediction='tokens' is not one of concepts, hidden"),
        ({"hidden_loss": "l3"}, "hidden_loss='l3' is not one of l1, l2, cosine"),
        ({"compression_init": "large"}, "compression_init='large' is not one of normal, small, zero"),
        ({"concept_weights": "l2"}, "concept_weights='l2' is not one of logits, softmax"),
        (
            {"concept_weights": "softmax", "prediction": "hidden", "teacher_hidden_size": 8},
            "concept_weights='softmax' needs prediction='concepts'",
        ),
        ({"prediction": "hidden"}, "teacher_hidden_size=None must be the width"),
        ({"prediction": "hidden", "teacher_hidden_size": 8, "mixing": "pause"}, "mixing='pause' predicts nothing"),
        ({"backbone": {"n_layer": 4}}, "no model_type"),
        ({"backbone": "openai-community/gpt2"}, "openai-community/gpt2"),
        ({"backbone": {"model_type": "gpt5"}}, "backbone cannot be built"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CoCoMixError, match=message):
        CoCoMixConfig(**({"backbone": backbone_config("llama"), "insert_layer": 1} | settings))


@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_json_round_trip(family: str, tmp_path: Path) -> None:
    config = student_config(family, 2, "residual", concept_loss_weight=0.25)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, CoCoMixConfig)
    assert type(loaded.backbone) is type(config.backbone)
    ours, theirs = config.to_dict(), loaded.to_dict()
    assert theirs.pop("_name_or_path") == str(tmp_path)
    assert ours.pop("_name_or_path") == ""
    assert ours == theirs
    again = CoCoMixConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.to_dict() == ours | {"_name_or_path": ""}
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "cocomix"
    assert {key: written[key] for key in ("insert_layer", "mixing", "concept_loss_weight")} == {
        "insert_layer": 2,
        "mixing": "residual",
        "concept_loss_weight": 0.25,
    }


def test_a_dict_builds_the_backbone() -> None:
    config = CoCoMixConfig(backbone={"model_type": "gpt2", "n_layer": 4, "n_embd": 24, "n_head": 2}, insert_layer=1)
    assert isinstance(config.backbone, GPT2Config)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (4, 24, 2)


@pytest.mark.parametrize("family", SUPPORTED_BACKBONES)
def test_the_callers_backbone_is_never_changed(family: str) -> None:
    backbone = backbone_config(family)
    before = copy.deepcopy(backbone.to_dict())
    config = student_config(family, backbone=backbone)
    model = CoCoMixForCausalLM(config)
    model.set_attn_implementation("eager")
    model.resize_token_embeddings(VOCAB + 3)
    assert backbone.to_dict() == before
    assert backbone._attn_implementation != "eager"


def test_settings_follow_the_backbone_unless_given() -> None:
    tied, untied = student_config("qwen3"), student_config("llama")
    assert tied.tie_word_embeddings
    assert not untied.tie_word_embeddings
    assert (tied.vocab_size, tied.bos_token_id, tied.eos_token_id, tied.pad_token_id) == (VOCAB, 0, None, 0)
    own = student_config("llama", tie_word_embeddings=True, eos_token_id=5)
    assert (own.tie_word_embeddings, own.eos_token_id) == (True, 5)
    assert own.max_position_embeddings == 64


def test_positions_per_token() -> None:
    found = {
        mixing: student_config("gpt2", mixing=mixing).positions_per_token
        for mixing in ("interleave", "residual", "pause")
    }
    found |= {mixing: student_config("gpt2", mixing=mixing).positions_per_token for mixing in ("add", "none")}
    assert found == {"interleave": 2, "residual": 2, "pause": 2, "add": 1, "none": 1}
