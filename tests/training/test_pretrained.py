"""Runs that start from a pretrained model's weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.artifacts import read_json
from cocomix.data import Tokens
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_causal_lm
from cocomix.runtime.packaged import recipes_folder
from cocomix.training import estimate, plan_run, train
from cocomix.training.recipe import load_recipe
from cocomix.training.student import build_student
from tests.command_line import Cli
from tests.workshop import BLOCK, TOY_BACKBONE, Workshop, prepare_toy

NEUTRAL = {"mixing": "add", "compression_init": "zero", "add_mean": False}


def pretrained(workshop: Workshop, **model: Any) -> dict[str, Any]:
    """What a recipe says of a model that starts from the toy teacher."""
    return {"backbone": None, "pretrained": str(workshop.teacher), **NEUTRAL, **model}


@pytest.mark.parametrize("objective", ["cocomix", "ntp"])
def test_training_goes_on_where_the_pretrained_model_was(workshop: Workshop, tmp_path: Path, objective: str) -> None:
    recipe = workshop.recipe(objective, model=pretrained(workshop), tokens=2 * 8 * BLOCK)
    data = Tokens.open(workshop.data)
    labels = Labels.open(workshop.labels) if objective == "cocomix" else None
    plain = load_causal_lm(workshop.teacher)
    blocks = data.split("validation")[0]["input_ids"][None]
    started = build_student(recipe, plan_run(recipe, data, labels).config).eval()
    torch.testing.assert_close(started(blocks).logits, plain(blocks).logits, rtol=1e-5, atol=1e-5)

    manifest = read_json(train(recipe, tmp_path / "run") / "manifest.json")
    assert manifest["arm"].endswith("continued")
    assert manifest["pretrained"] == {"model": str(workshop.teacher), "revision": None}
    rows = torch.stack([data.split("validation")[index]["input_ids"] for index in range(11)])  # that are evaluated
    before = plain(rows, labels=rows).loss.item()
    assert manifest["final"]["eval_loss"] < before + 0.5


def test_the_shipped_recipe_is_pinned_and_neutral() -> None:
    model = load_recipe(recipes_folder() / "gpt2_continue.yaml").model
    assert re.fullmatch(r"[0-9a-f]{40}", model.revision or "")
    assert {name: getattr(model, name) for name in NEUTRAL} == NEUTRAL


def test_a_backbone_beside_it_may_only_differ_in_what_is_not_computed(workshop: Workshop) -> None:
    data = Tokens.open(workshop.data)
    backbone = {**TOY_BACKBONE, "vocab_size": 290, "n_positions": BLOCK, "resid_pdrop": 0.2}
    recipe = workshop.recipe("ntp", model=pretrained(workshop, backbone=backbone))
    model = build_student(recipe, plan_run(recipe, data).config)
    assert (model.config.resid_pdrop, model.config.vocab_size) == (0.2, 290)
    recipe = workshop.recipe("ntp", model=pretrained(workshop, backbone={**backbone, "layer_norm_epsilon": 1e-3}))
    with pytest.raises(CoCoMixError, match=r"layer_norm_epsilon = 0\.001"):
        plan_run(recipe, data)


def test_data_of_another_tokenizer_is_refused(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    for vocab, says in ((280, "reads another tokenizer than the one"), (300, "the tokenizer has 300 tokens")):
        data = prepare_toy(workshop.corpus, tmp_path / str(vocab), vocab_size=vocab).path
        recipe = workshop.recipe_file(tmp_path / "r.yaml", "ntp", data=str(data), model=pretrained(workshop))
        assert "prepare the data with" in cli.refuses("train", recipe, "-o", tmp_path / "run", says=says)
        assert not list(tmp_path.glob("run*"))


def test_data_with_longer_blocks_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    data = prepare_toy(workshop.corpus, tmp_path / "long", block_size=2 * BLOCK).path
    recipe = workshop.recipe("ntp", data=str(data), model=pretrained(workshop))
    with pytest.raises(CoCoMixError, match=r"n_positions.* 16"):
        estimate(recipe, seconds=0)


def test_recipes_that_contradict_themselves(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    recipe = workshop.recipe_file(tmp_path / "r.yaml", "ntp", model=pretrained(workshop))
    for change, says in (
        ("baseline=matched", "cannot start from model.pretrained"),
        ("model.pretrained=null", "backbone or pretrained is needed"),
        (f"model.pretrained={tmp_path / 'nothing'}", "model.pretrained"),
    ):
        cli.refuses("train", recipe, "--set", change, "-o", tmp_path / "run", says=says)
