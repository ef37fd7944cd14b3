"""A decoder family that is none of ours, in one line: split, trained two steps by a recipe, loaded again."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Starcoder2Config

from cocomix.model.backbone import SUPPORTED_BACKBONES, Backbone
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from tests.training.test_resume import rows
from tests.workshop import BLOCK, Workshop

FAMILY = "starcoder2"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def test_it_is_one_line(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Starcoder2Config(**SIZES, num_key_value_heads=2).to_dict()
    changes = {"model": {"backbone": None}, "tokens": 2 * 8 * BLOCK, "training": {"logging_steps": 1}}
    values = workshop.values("cocomix", **changes)
    values["model"]["backbone"] = {name: backbone[name] for name in (*SIZES, "model_type", "num_key_value_heads")}
    recipe = workshop.recipe("ntp").model_validate(values)
    with pytest.raises(CoCoMixError, match=FAMILY):
        train(recipe, tmp_path / "refused")
    monkeypatch.setitem(SUPPORTED_BACKBONES, FAMILY, Backbone())
    run = train(recipe, tmp_path / "run")
    losses = [row["loss"] for row in rows(run) if "loss" in row]
    assert len(losses) == 2
    model = AutoModelForCausalLM.from_pretrained(run).eval()
    assert type(model.lower).__name__ == type(model.upper).__name__ == "Starcoder2Model"
    ids = torch.arange(1, 9)[None]
    generated = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert torch.equal(generated, model.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False))
