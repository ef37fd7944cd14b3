"""Every shipped recipe parses, can be costed, and trains at toy size."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cocomix.config import load_recipe
from cocomix.data import PreparedData
from cocomix.demo import recipes_folder
from cocomix.output import read_json
from cocomix.training import describe_plan, plan_run, train
from tests.command_line import Cli
from tests.workshop import BLOCK, Workshop

YAML = sorted(recipes_folder().rglob("*.yaml"))
RECIPES = [path for path in YAML if "arms" not in yaml.safe_load(path.read_text(encoding="utf-8"))]  # the rest: sweeps
ARMS = sorted((recipes_folder() / "arms").glob("*.yaml"))
TOY = ("n_embd=32", "n_layer=4", "n_head=2")


def test_there_are_recipes() -> None:
    assert {"demo.yaml", "gpt2_69m_ntp.yaml", "gpt2_69m_cocomix.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_says_what_it_is_and_only_what_differs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    values = yaml.safe_load(text)
    if "base" in values:
        inherited = load_recipe(path.parent / values["base"]).model_dump(mode="json")
        for name, value in values.items():
            assert name == "base" or inherited[name] != value


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_dry_run(path: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no data here: the recipe alone
    result = cli("train", path, "--dry-run", "--json")
    plan = json.loads(result.out)
    assert plan["active parameters"] > 0
    assert plan["training FLOPs"] > 0
    assert plan["tokens"] >= load_recipe(path).tokens


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_two_steps_at_toy_size(path: Path, workshop: Workshop, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    overrides = [f"data={workshop.data}", "evaluation_blocks=4"]
    overrides += (
        ["model.num_concepts=48"] if recipe.labels is None else [f"labels={workshop.labels}", "model.num_concepts=null"]
    )
    overrides += [f"model.backbone.{size}" for size in TOY]
    overrides += ["training.per_device_train_batch_size=2", "training.bf16=false"]
    overrides += ["training.gradient_accumulation_steps=1", "training.dataloader_num_workers=0", f"tokens={4 * BLOCK}"]
    # The labels at hand come from the toy teacher, which is 16 wide.
    overrides += ["teacher=null", "dictionary=null", "attribution=null", "model.teacher_hidden_size=null"]
    if recipe.predicts_hidden or recipe.distillation is not None:
        overrides.append(f"teacher={{model: {workshop.teacher}, layer: 1}}")
    if recipe.distillation is not None and recipe.distillation.targets != "online":
        overrides.append(f"distillation.targets={workshop.probabilities}")
    if "vocab_size" in recipe.model.backbone:
        overrides += ["model.backbone.vocab_size=300", f"model.backbone.n_positions={BLOCK}"]
    run = train(load_recipe(path, overrides), tmp_path / "run")
    manifest = read_json(run / "manifest.json")
    assert (manifest["steps"], manifest["objective"], manifest["arm"]) == (2, recipe.objective, recipe.arm)
    assert manifest["final"]["eval_loss"] > 0
    told = {name for name in ("eval_concept_loss", "eval_hidden_loss", "eval_kd_loss") if name in manifest["final"]}
    expected = {"eval_concept_loss"} if recipe.has_concepts and recipe.labels is not None else set()
    expected |= {"eval_hidden_loss"} if recipe.predicts_hidden else set()
    expected |= {"eval_kd_loss"} if recipe.distillation is not None else set()
    assert told == expected


@pytest.mark.parametrize("path", ARMS, ids=lambda path: path.stem)
def test_an_arm_differs_from_cocomix_in_few_lines_and_says_so(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 3
    base, arm = load_recipe(recipes_folder() / "corpus_cocomix.yaml"), load_recipe(path)
    assert (arm.data, arm.tokens, arm.training) == (base.data, base.tokens, base.training)
    assert arm.model.backbone == base.model.backbone
    if path.stem.startswith("labels_"):
        assert (arm.arm, arm.model) == ("cocomix", base.model)
    else:
        assert arm.arm != base.arm


def test_arms_are_told_apart() -> None:
    """But for the source of labels and of a teacher's distributions, which manifests name."""
    names = [load_recipe(path).arm for path in ARMS if not path.stem.startswith("labels_") and path.stem != "kd_stored"]
    assert len(set(names)) == len(names)
    assert {"ntp, matched, kd", "pause, kd", "cocomix, residual, mixing only", "cocomix, hidden cosine"} <= set(names)


def test_the_papers_matched_baseline_has_the_papers_width() -> None:
    plan = plan_run(load_recipe(recipes_folder() / "gpt2_69m_ntp.yaml"))
    assert plan.config.n_embd == 624
    mixed = plan_run(load_recipe(recipes_folder() / "gpt2_69m_cocomix.yaml"))
    assert mixed.config.hidden_size == 512
    assert plan.accounting.active_parameters == pytest.approx(mixed.accounting.active_parameters, rel=0.02)
    assert mixed.accounting.active_parameters == pytest.approx(69e6, rel=0.02)


def test_the_papers_settings() -> None:
    recipe = load_recipe(recipes_folder() / "gpt2_69m_cocomix.yaml")
    assert recipe.tokens == 20_000_000_000
    assert (recipe.model.insert_layer, recipe.model.num_concepts, recipe.model.concept_topk) == (3, 32_768, 32)
    assert recipe.model.concept_loss_weight == 0.1
    assert recipe.training["learning_rate"] == 6e-4
    # 0.5M tokens a step with the eight processes that its header starts.
    assert 8 * describe_plan(recipe, plan_run(recipe))["tokens per step"] == pytest.approx(0.5e6, rel=0.05)


def test_the_cost_in_the_header_is_the_planned_one() -> None:
    for name in ("gpt2_69m_cocomix", "gpt2_69m_ntp"):
        path = recipes_folder() / f"{name}.yaml"
        plan: dict[str, Any] = describe_plan(load_recipe(path), plan_run(load_recipe(path)))
        gflop = f"{plan['training FLOPs per token'] / 1e9:.2f} GFLOP"
        total = f"{plan['training FLOPs']:.1e}".replace("e+", "e") + " FLOP"
        header = path.read_text()
        assert gflop in header, (name, gflop)
        assert total in header, (name, total)


def test_demo_arms_share_everything_but_the_objective(workshop: Workshop) -> None:
    data = PreparedData.open(workshop.data)
    configs = {name: load_recipe(recipes_folder() / f"{name}.yaml") for name in ("demo", "demo_ntp", "demo_residual")}
    first = configs["demo"]
    for config in configs.values():
        assert (config.tokens, config.training, config.data) == (first.tokens, first.training, first.data)
    assert configs["demo_residual"].model == first.model.model_copy(update={"mixing": "residual"})
    active = {name: plan_run(config, data).accounting.active_parameters for name, config in configs.items()}
    assert active["demo_ntp"] == pytest.approx(active["demo"], rel=0.1)
