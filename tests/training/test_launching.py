"""What recipes and launchers ask of processes, and which wishes are refused."""

import importlib.util
import json
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed import TCPStore

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.processes import first_to_fail, is_first_process
from cocomix.training.arguments import training_arguments
from cocomix.training.launching import check_deepspeed, refuse_under_fsdp, sharding_asked
from cocomix.training.objectives import auxiliary, auxiliary_objective
from cocomix.training.recipe import save_recipe
from tests.command_line import Cli
from tests.training.test_arguments import recipe
from tests.workshop import Workshop

LAUNCH = Path(__file__).parents[2] / "recipes" / "launch"


def test_who_asks_for_fsdp(tmp_path: Path) -> None:
    assert sharding_asked({}, {}, 0) == {}
    assert sharding_asked({"fsdp": False, "fsdp_config": None}, {"ACCELERATE_USE_FSDP": "false"}, 0) == {}
    assert sharding_asked({"fsdp": True}, {}, 2) == {"fsdp": True, "fsdp_config": {}}
    options = {"fsdp_version": 2, "reshard_after_forward": False, "state_dict_type": "FULL_STATE_DICT"}
    path = tmp_path / "fsdp.json"
    path.write_text(json.dumps(options))
    for config in (options, str(path)):
        found = sharding_asked({"fsdp": True, "fsdp_config": config}, {}, 2)["fsdp_config"]
        assert found == {"version": 2, "reshard_after_forward": False, "state_dict_type": "FULL_STATE_DICT"}
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false", "X": "1"}
    found = sharding_asked({}, environment, 2)
    assert found == {"fsdp": True, "fsdp_config": {"version": "2", "reshard_after_forward": "false"}}


def test_the_options_reach_accelerate(tmp_path: Path) -> None:
    """Blocks and heads are units, weights and states are gathered into files that are no pickles of objects."""
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}
    for training, launcher in (
        ({"fsdp": True, "fsdp_config": {"reshard_after_forward": False}}, {}),
        ({}, environment),
    ):
        sharding = sharding_asked(training, launcher, 2)
        plugin = training_arguments(recipe(**training), tmp_path, 8, sharding=sharding).fsdp_plugin_args
        assert plugin["fsdp_version"] == 2
        assert plugin["auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
        assert plugin["state_dict_type"] == "FULL_STATE_DICT"
        assert plugin["reshard_after_forward"] is False


@pytest.mark.parametrize(
    ("training", "environment", "says"),
    [
        ({"fsdp": "full_shard auto_wrap"}, {}, "training.fsdp is 'full_shard auto_wrap'; set it to true"),
        ({"fsdp_config": {"version": 2}}, {}, "no effect without training.fsdp"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, {}, "only FSDP2"),
        ({}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version is '1'"),
        ({}, {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is not supported"),
        ({"fsdp": True, "fsdp_config": {"cpu_offload": True}}, {}, "training.fsdp_config.cpu_offload is not supported"),
        ({"fsdp": True, "fsdp_config": {"reshard_aftr_forward": True}}, {}, "reshard_aftr_forward is not supported"),
        ({"fsdp": True, "fsdp_config": {"reshard_after_forward": "some"}}, {}, "reshard_after_forward is 'some'"),
        ({"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}, {}, "use FULL_STATE_DICT"),
        ({"fsdp": True, "fsdp_config": "missing.json"}, {}, "'missing.json' cannot be read"),
        ({"fsdp": True, "fsdp_config": [1]}, {}, "must be a mapping"),
        ({"fsdp": True, "fp16": True}, {}, "training.fp16 and fsdp exclude each other"),
        ({"fsdp": True, "deepspeed": {}, "torch_compile": True}, {}, "training.torch_compile and fsdp exclude"),
        ({"fsdp": True, "deepspeed": "ds.json"}, {}, "training.deepspeed and fsdp exclude each other"),
    ],
)
def test_refused_shardings(training: dict[str, Any], environment: dict[str, str], says: str) -> None:
    with pytest.raises(CoCoMixError) as caught:
        sharding_asked(training, environment, 2)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "refused"),
    [
        ("superposition", None, True),
        ("mtp_sequential", None, True),
        ("mtp_parallel", None, True),
        ("nextlat", {"kl": True}, True),
        ("nextlat", None, False),
        ("mtp_headless", None, False),
    ],
)
def test_objectives_that_read_the_models_weights_outside_its_forward_pass_are_refused_under_fsdp(
    name: str, settings: dict[str, Any] | None, refused: bool
) -> None:
    objective = auxiliary_objective(name, auxiliary(name, settings))
    with pytest.raises(CoCoMixError, match=f"auxiliary.{name} .*DDP") if refused else nullcontext():
        refuse_under_fsdp([objective], None)


def test_a_plan_refuses_them_too(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    save_recipe(workshop.recipe("ntp", auxiliary={"superposition": None}, training={"fsdp": True}), path)
    cli.refuses("plan", path, says="auxiliary.superposition")


@pytest.mark.parametrize(("processes", "says"), [(0, "needs GPUs"), (1, "start several with torchrun")])
def test_nothing_to_spread_over(processes: int, says: str) -> None:
    """Accelerate would train as DDP on CPU processes, and say nothing."""
    for training, environment in (({"fsdp": True}, {}), ({}, {"ACCELERATE_USE_FSDP": "true"})):
        with pytest.raises(CoCoMixError, match=says):
            sharding_asked(training, environment, processes)


def test_deepspeed_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_deepspeed({}, {}, has_accelerator=False)
    zero2, zero3 = str(LAUNCH / "deepspeed_zero2.json"), {"zero_optimization": {"stage": 3}}
    launched = {"ACCELERATE_USE_DEEPSPEED": "true"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CoCoMixError, match=r"training\.deepspeed .*package"):
        check_deepspeed({"deepspeed": zero2}, {}, has_accelerator=True)
    with pytest.raises(CoCoMixError, match=r"--use_deepspeed .*package"):
        check_deepspeed({}, launched, has_accelerator=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(CoCoMixError, match="GPU"):
        check_deepspeed({"deepspeed": zero2}, {}, has_accelerator=False)
    check_deepspeed({"deepspeed": zero2}, {}, has_accelerator=True)
    check_deepspeed({}, launched, has_accelerator=True)
    for training, environment in (
        ({"deepspeed": zero3}, {}),
        ({}, {**launched, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}),
    ):
        with pytest.raises(CoCoMixError, match="asks for ZeRO-3"):
            check_deepspeed(training, environment, has_accelerator=True)
    (tmp_path / "ds.json").write_text("{")
    for config in (str(tmp_path / "ds.json"), str(tmp_path / "missing.json"), [2]):
        with pytest.raises(CoCoMixError, match=r"cannot be read|must be a mapping"):
            check_deepspeed({"deepspeed": config}, {}, has_accelerator=True)


def test_the_command_refuses_them(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.recipe_file(tmp_path / "r.yaml", "ntp")
    output = ("-o", tmp_path / "run")
    cli.refuses("train", path, *output, "--set", "training.fsdp=full_shard", says="set it to true")
    cli.refuses("train", path, *output, "--set", "training.deepspeed=missing.json", says="needs the package deepspeed")
    cli.refuses("train", path, *output, "--set", "training.fsdp=true", says="fsdp needs GPUs")
    assert {path.name for path in tmp_path.iterdir()} == {"r.yaml"}


def test_the_shipped_configurations() -> None:
    """Accelerate reads its file as it would to launch; DeepSpeed's leaves to the recipe what a recipe sets."""
    parser = launch_command_parser()
    asked = parser.parse_args(["--config_file", str(LAUNCH / "accelerate_fsdp2.yaml"), "-m", "cocomix"])
    asked, _, _ = _validate_launch_command(asked)
    assert (asked.use_fsdp, asked.num_processes) == (True, 8)
    asked.main_process_port = 0
    found = sharding_asked({}, prepare_multi_gpu_env(asked), 8)["fsdp_config"]
    assert {name: found[name] for name in ("version", "reshard_after_forward")} == {
        "version": "2",
        "reshard_after_forward": "true",
    }
    assert found["state_dict_type"] == "FULL_STATE_DICT"
    zero2 = json.loads((LAUNCH / "deepspeed_zero2.json").read_text())
    assert zero2["zero_optimization"]["stage"] == 2
    assert {name for name, value in zero2.items() if value == "auto"} == {
        "gradient_clipping",
        "gradient_accumulation_steps",
        "train_micro_batch_size_per_gpu",
        "train_batch_size",
    }


def test_the_first_to_fail_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (is_first_process(), first_to_fail()) == (True, True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    settings = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert not is_first_process()
    assert [first_to_fail() for _ in range(3)] == [True, False, False]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert first_to_fail()
    monkeypatch.delenv("MASTER_ADDR")
    assert first_to_fail()
