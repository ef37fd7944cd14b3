"""Every shipped recipe parses, can be costed, and trains at toy size."""

import importlib.util
import json
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from cocomix.artifacts import read_json
from cocomix.concepts import OnlineConfig
from cocomix.runtime.packaged import recipes_folder
from cocomix.training import describe_plan, plan_run, train
from cocomix.training.recipe import load_recipe
from cocomix.training.recipe_cost import describe_memory
from cocomix.training.recipe_file import recipe_values
from tests.command_line import Cli
from tests.workshop import BLOCK, Workshop

YAML = sorted(path for path in recipes_folder().rglob("*.yaml") if path.parent.name != "launch")
RECIPES = [path for path in YAML if "arms" not in recipe_values(path)]  # the rest: sweeps
ARMS = sorted((recipes_folder() / "arms").glob("*.yaml"))
TOY_GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 2}
TOY_OTHERS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
ON_THE_HUB = [
    path.stem for path in RECIPES if (labels := load_recipe(path).labels) and labels.teacher and labels.teacher.revision
]
DOCS = Path(__file__).parents[1] / "docs" / "recipes.md"


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
def test_the_plan_and_the_cost_in_the_header(
    path: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no data here: the recipe alone
    monkeypatch.setattr(
        import_module("cocomix.training.recipe_cost"), "activation_bytes", lambda *_, **__: 0
    )  # has tests of its own
    plan = json.loads(cli("plan", path, "--seconds", 0, "--json").out)
    recipe = load_recipe(path)
    assert plan["active parameters"] > 0
    trained = plan["parameters"] + plan.get("parameters of auxiliary losses", 0)
    assert plan["GiB of weights, gradients and optimizer, at most"] == float(f"{16 * trained / 2**30:.3g}")
    assert plan["tokens"] >= recipe.tokens
    header = " ".join(line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    if "Cost by formula" not in header:
        return
    flops = plan["training FLOPs"]
    gflop = f"{plan['training FLOPs per token'] / 1e9:.2f}"
    total = f"{flops:.1e}".replace("e+", "e")
    hours = plan["hours on one H200 or H100, estimated"]
    hours = f"{hours:,.0f}" if hours >= 1 else f"{hours:.1f}"
    tokens = f"{recipe.tokens / 1e9:g}B"
    assert f"{tokens} tokens × {gflop} GFLOP = {total} FLOP, {hours} GPU hour" in header
    row = f"| `{path.stem}` | {plan['active parameters'] / 1e6:,.0f}M | {tokens} | {gflop} | {total} | {hours} |"
    assert row in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("stem", "tokens_per_second"),
    [
        ("gpt2_69m_cocomix", 150_668),
        ("gpt2_69m_ntp", 214_841),
        ("gpt2_386m_cocomix", 40_272),
        ("gpt2_386m_ntp", 57_903),
    ],
)
def test_hours_are_those_of_the_measured_steps(stem: str, tokens_per_second: float) -> None:
    """Of results/corpus/raw/step_times_h200.txt; 37 hours and 138 where the page once said 10 and 79."""
    recipe = load_recipe(recipes_folder() / f"{stem}.yaml")
    plan = describe_plan(recipe, plan_run(recipe))
    assert recipe.tokens is not None
    expected = recipe.tokens / tokens_per_second / 3600
    assert plan["hours on one H200 or H100, estimated"] == pytest.approx(expected, rel=0.01)


def test_the_largest_recipe_fits_one_gpu_as_the_plan_says() -> None:
    """With `gelu_new` it took about 91 GiB, DDP's copy of the gradients (5) among them, and was said to fit."""
    found = {}
    for name in ("gelu_new", "gelu_pytorch_tanh"):
        settings = [f"model.backbone.activation_function={name}"]
        recipe = load_recipe(recipes_folder() / "gpt2_1380m_cocomix.yaml", settings)
        found[name] = describe_memory(recipe, plan_run(recipe))["GiB of both"]
    assert 80 < found["gelu_new"] < 90
    assert found["gelu_pytorch_tanh"] < 52
    shipped = load_recipe(recipes_folder() / "gpt2_1380m_cocomix.yaml").model.backbone
    assert isinstance(shipped, dict)
    assert shipped["activation_function"] == "gelu_pytorch_tanh"


def test_the_cost_of_what_needs_gpus_is_told() -> None:
    shapes = {"gpt2_69m", "gpt2_386m", "gpt2_1380m"}
    assert {f"{shape}_{arm}" for shape in shapes for arm in ("ntp", "kd", "pause", "cocomix")} <= set(ON_THE_HUB)
    families = {"qwen3_qwen_scope", "qwen3_gemma_scope", "llama_llama_scope"}
    assert {f"{family}_{arm}" for family in families for arm in ("ntp", "cocomix")} <= set(ON_THE_HUB)
    for stem in ON_THE_HUB:
        assert "Cost by formula" in (recipes_folder() / f"{stem}.yaml").read_text(encoding="utf-8")


def test_dictionaries_are_what_saelens_lists() -> None:
    """Release, id, the model and the layer they were made for, and their size."""
    package = importlib.util.find_spec("sae_lens")
    assert package is not None
    assert package.origin is not None
    text = (Path(package.origin).parent / "pretrained_saes.yaml").read_text(encoding="utf-8")
    registry = yaml.load(text, Loader=yaml.CSafeLoader)
    sizes = {"32k": 32_768, "16k": 16_384, "8x": 32_768}  # 8 times Llama's width of 4,096
    seen = set()
    for stem in ON_THE_HUB:
        recipe = load_recipe(recipes_folder() / f"{stem}.yaml")
        assert recipe.labels is not None
        teacher, dictionary = recipe.labels.teacher, recipe.labels.dictionary
        assert teacher is not None
        assert dictionary is not None
        release, sae_id = dictionary.path, dictionary.sae_id
        seen.add(release)
        assert sae_id in {sae["id"] for sae in registry[release]["saes"]}
        model = teacher.model.removeprefix("openai-community/")
        assert registry[release]["model"].removesuffix("-small") == model
        assert f"{teacher.layer}" in re.findall(r"\d+", sae_id or "")
        (size,) = {size for size in sizes if re.search(rf"(?<!\d){size}\b", f"{release} {sae_id}".replace("_", " "))}
        assert recipe.model.num_concepts == sizes[size]
    assert len(seen) == 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_two_steps_at_toy_size(path: Path, workshop: Workshop, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    overrides = [f"data={workshop.data}", "evaluation_blocks=4"]
    if isinstance(recipe.online_labels, OnlineConfig):  # which needs nothing made beforehand
        overrides += ["labels.num_concepts=48", "model.num_concepts=null"]
    elif recipe.labels is None:
        overrides += ["model.num_concepts=48"]
    else:
        overrides += [f"labels={workshop.labels}", "model.num_concepts=null"]
    pretrained = recipe.model.pretrained is not None
    if pretrained:
        overrides += [f"model.pretrained={workshop.teacher}", "model.revision=null", "model.backbone=null"]
        overrides += ["model.insert_layer=1"]
    else:
        gpt2 = recipe.model.backbone["model_type"] == "gpt2"
        sizes = TOY_GPT2 if gpt2 else TOY_OTHERS
        if "vocab_size" in recipe.model.backbone:
            sizes = {**sizes, "vocab_size": 300, "n_positions" if gpt2 else "max_position_embeddings": BLOCK}
        overrides += [f"model.backbone.{name}={size}" for name, size in sizes.items()]
        overrides.append(f"model.insert_layer={min(recipe.model.insert_layer, 2)}")
    if recipe.model.concept_rank is not None:
        overrides.append("model.concept_rank=8")
    overrides += ["training.per_device_train_batch_size=2", "training.bf16=false", "training.torch_compile=false"]
    overrides += [f"batch_tokens={2 * BLOCK}", "training.dataloader_num_workers=0", f"tokens={4 * BLOCK}"]
    # The labels at hand come from the toy teacher, which is 16 wide.
    overrides += ["teacher=null", "model.teacher_hidden_size=null"]
    if recipe.predicts_hidden or recipe.distillation is not None:
        overrides.append(f"teacher={{model: {workshop.teacher}, layer: 1}}")
    if recipe.distillation is not None and recipe.distillation.targets != "online":
        overrides.append(f"distillation.targets={workshop.probabilities}")
    if "hint" in recipe.auxiliary:
        overrides.append(f"auxiliary.hint.teacher={{model: {workshop.teacher}, layer: 1}}")
    trained = load_recipe(path, overrides)
    run = train(trained, tmp_path / "run")
    manifest = read_json(run / "manifest.json")
    assert (manifest["steps"], manifest["objective"], manifest["arm"]) == (2, recipe.objective, trained.arm)
    assert manifest["final"]["eval_loss"] > 0
    told = {name for name in ("eval_concept_loss", "eval_hidden_loss", "eval_kd_loss") if name in manifest["final"]}
    lasts = recipe.model.concept_loss_weight.steps(2) == 2  # labels are not read once λ is 0 for good
    expected = {"eval_concept_loss"} if recipe.has_concepts and recipe.labels is not None and lasts else set()
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


@pytest.mark.parametrize(
    ("size", "millions", "width", "baseline_width"),
    [
        ("69m", 69, 512, 624),
        ("386m", 386, 1024, 1072),
        ("1380m", 1380, 2048, 2096),
    ],
)
def test_the_papers_matched_baselines_have_the_papers_widths(
    size: str, millions: int, width: int, baseline_width: int
) -> None:
    plan = plan_run(load_recipe(recipes_folder() / f"gpt2_{size}_ntp.yaml"))
    assert plan.config.n_embd == baseline_width
    mixed = plan_run(load_recipe(recipes_folder() / f"gpt2_{size}_cocomix.yaml"))
    assert mixed.config.hidden_size == width
    assert plan.accounting.active_parameters == pytest.approx(mixed.accounting.active_parameters, rel=0.02)
    assert mixed.accounting.active_parameters == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize(
    ("size", "layer", "rate", "step_tokens"),
    [
        ("69m", 3, 6e-4, 0.5e6),
        ("386m", 5, 3e-4, 0.5e6),
        ("1380m", 5, 2e-4, 1e6),
    ],
)
def test_the_papers_settings(size: str, layer: int, rate: float, step_tokens: float) -> None:
    for arm in ("cocomix", "ntp", "kd", "pause"):
        recipe = load_recipe(recipes_folder() / f"gpt2_{size}_{arm}.yaml")
        assert recipe.tokens == 20_000_000_000
        assert (recipe.model.insert_layer, recipe.model.num_concepts, recipe.model.concept_topk) == (layer, 32_768, 32)
        assert recipe.model.concept_loss_weight.peak == 0.1
        assert (recipe.distillation is not None) == (arm == "kd")
        training = recipe.training
        assert training["learning_rate"] == rate
        assert recipe.batch_tokens == pytest.approx(step_tokens, rel=0.05)
    assert recipe.arm == "pause"


@pytest.mark.parametrize("script", sorted((recipes_folder() / "launch").glob("train_*.sh")), ids=lambda path: path.stem)
def test_launchers_start_what_their_comments_say(script: Path, tmp_path: Path) -> None:
    """The scripts run with stand-ins for torchrun and Slurm, which print what they were asked to start."""
    text = script.read_text(encoding="utf-8")
    for name, body in {
        "torchrun": 'printf "%s\\n" "$@"',
        "srun": '"$@"',
        "scontrol": "echo node1; echo node2",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "node[1-2]", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "8", "JOB_ID": "7"}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **{f"SLURM_{name}": value for name, value in slurm.items()}}
    examples = re.findall(rf"{script.name} (recipes/\S+\.yaml \S+(?: \d+)?)", text)
    assert examples
    for example in examples:
        recipe, output, *numbers = example.split()
        assert (recipes_folder().parent / recipe).is_file()
        command = ["bash", str(script), recipe, output, *numbers]
        started = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
        module = started.index("-m")
        assert started[module : module + 5] == ["-m", "cocomix", "train", recipe, "--output"]
        assert started[module + 5 :] == [output]
        assert [word for word in started if word.isdigit()] == [*(numbers or ["8"])] or "slurm" in script.name
        if "slurm" in script.name:
            assert started[started.index("--rdzv-endpoint") + 1] == "node1:29500"
    without = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert without.returncode != 0
    assert "recipe" in without.stderr
