"""Nothing of a stranger's is run, secrets stay where they are, and the disk may fail."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cocomix.artifacts import partial_path
from cocomix.concepts import load_teacher
from cocomix.evaluation import Run
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.packaged import recipes_folder
from cocomix.training import train
from cocomix.training.checkpoints import Checkpoint, last_complete_checkpoint
from cocomix.training.recipe import load_recipe
from tests.command_line import Cli
from tests.training.test_resume import Killed, kill_at
from tests.workshop import BLOCK, Workshop, resealed

ROOT = Path(__file__).parents[1]


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def plant(path: Path, marker: Path) -> None:
    """A file of `torch.save` that touches `marker` where it is loaded carelessly."""
    torch.save({"weights": Planted(marker)}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()
    marker.unlink()


# --- nothing is unpickled ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin"])
def test_a_model_of_pickles_is_refused(workshop: Workshop, tmp_path: Path, name: str) -> None:
    folder, marker = Path(shutil.copytree(workshop.ntp_run, tmp_path / "run")), tmp_path / "marker"
    (folder / "model.safetensors").unlink()
    plant(folder / name, marker)
    with pytest.raises(CoCoMixError, match=r"safetensors"):
        load_teacher(folder)
    for run in (folder, resealed(folder)):
        with pytest.raises(CoCoMixError, match=r"model.safetensors is missing|cannot be loaded"):
            Run.open(run).model()
    assert not marker.exists()


def test_a_dictionary_of_pickles_is_refused(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    folder, marker = Path(shutil.copytree(workshop.dictionary, tmp_path / "sae")), tmp_path / "marker"
    (folder / "sae_weights.safetensors").unlink()
    plant(folder / "sae.pt", marker)
    shutil.copy(folder / "sae.pt", folder / "sae_weights.safetensors")
    cli("verify", folder, status=1)
    command = ("label", workshop.data, "--teacher", workshop.teacher, "--dictionary", folder, "-o", tmp_path / "out")
    assert "Traceback" not in cli(*command, status=1).err
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "training_args.bin"]
)
def test_a_pickle_in_a_checkpoint_is_not_run(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Neither if its hash betrays it, nor if someone has written the hashes anew."""
    recipe, marker = workshop.recipe("ntp"), tmp_path / "marker"
    with monkeypatch.context() as patched:
        kill_at(patched, 9)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "run")
    checkpoint = last_complete_checkpoint(partial_path(tmp_path / "run") / "checkpoints")
    assert checkpoint is not None
    plant(checkpoint / name, marker)
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    Checkpoint.seal(checkpoint, Checkpoint.open(checkpoint).manifest.model_copy(update={"files": {}}))
    if name == "training_args.bin":
        train(recipe, tmp_path / "run")
    else:
        with pytest.raises(CoCoMixError, match=r"checkpoint-8"):
            train(recipe, tmp_path / "run")
        (checkpoint / name).write_bytes((checkpoint / name).read_bytes() + b"x")
        train(recipe, tmp_path / "run")
    assert not marker.exists()
    assert not list((tmp_path / "run").rglob("*.bin"))
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_the_linter_refuses_pickles(tmp_path: Path) -> None:
    source = tmp_path / "loads.py"
    source.write_text('"""Loads."""\n\nimport pickle\n\nimport joblib\nimport torch\n\nx = torch.load("f")\n')
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*ruff, str(source)], capture_output=True, text=True, check=False)
    for banned in ("`pickle` is banned", "`joblib` is banned", "`torch.load` is banned"):
        assert banned in done.stdout


# --- nothing is run ---------------------------------------------------------------------------------------------------


def test_a_recipe_runs_nothing(cli: Cli, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "r.yaml"
    path.write_text(f"data: !!python/object/apply:os.system ['touch {marker}']\n")
    cli.refuses("train", path, says="not valid YAML")
    cli.refuses("train", recipes_folder() / "demo.yaml", "--set", f"data=!!python/name:{marker}", says="not valid YAML")
    assert not marker.exists()


def test_code_that_comes_with_a_model_is_not_run(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    folder, marker = Path(shutil.copytree(workshop.ntp_run, tmp_path / "run")), tmp_path / "marker"
    (folder / "stranger.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = (folder / "config.json").read_text()
    strange = config.replace(
        '"model_type": "gpt2"',
        '"model_type": "stranger", "auto_map": {"AutoConfig": '
        '"stranger.Config", "AutoModelForCausalLM": "stranger.Model"}',
    )
    assert strange != config
    (folder / "config.json").write_text(strange)
    recipe = workshop.recipe_file(tmp_path / "r.yaml", "ntp")
    source = ("--teacher", folder, "--top-k", 4)
    assert "Traceback" not in cli("distill", workshop.data, *source, "-o", tmp_path / "out", status=1).err
    assert "Traceback" not in cli("eval", folder, status=1).err
    result = cli("train", recipe, "--set", f"model.backbone={folder}", "-o", tmp_path / "out", status=1)
    assert "Traceback" not in result.err
    assert not marker.exists()


def hub_teachers(value: Any) -> list[dict[str, Any]]:
    """Every `teacher:` with a name on the hub, at any depth."""
    if not isinstance(value, dict):
        return []
    found = [inner for inner in value.values() if isinstance(inner, dict)]
    own = value.get("teacher")
    named = [own] if isinstance(own, dict) and re.fullmatch(r"[\w-]+/[\w.-]+", str(own.get("model", ""))) else []
    return [teacher for teacher in named if not str(teacher["model"]).startswith("corpus/")] + [
        teacher for inner in found for teacher in hub_teachers(inner)
    ]


def test_recipes_pin_what_they_download() -> None:
    seen = 0
    for path in recipes_folder().rglob("*.yaml"):
        for teacher in hub_teachers(yaml.safe_load(path.read_text(encoding="utf-8"))):
            assert re.fullmatch(r"[0-9a-f]{40}", teacher.get("revision") or ""), (path, teacher)
            seen += 1
    assert seen >= 2
    labels = load_recipe(recipes_folder() / "gpt2_69m_cocomix.yaml").labels
    assert labels is not None
    assert labels.teacher is not None


# --- the clock --------------------------------------------------------------------------------------------------------


def test_the_wall_clock_decides_nothing() -> None:
    """It may jump. Durations are monotonic, checkpoints are ordered by step; people may be told how old a run is.

    Three modules compare a file's time with the one noted before, to see that it was changed, and with no clock; the
    cache orders its files by the times of their last use, which decides what is fetched again and nothing else. Of
    several evaluations of a run, the one made last is shown first.
    """
    source = ROOT / "src" / "cocomix"
    reading = re.compile(r"\btime\.time\(|\bdatetime\.(now|utcnow|today)|st_[mc]time|getmtime")
    found = {str(path.relative_to(source)) for path in source.rglob("*.py") if reading.search(path.read_text("utf-8"))}
    assert found <= {
        "artifacts/arrays.py",
        "artifacts/file_cache.py",
        "artifacts/store.py",
        "data/documents.py",
        "evaluation/downstream.py",
        "evaluation/listing.py",
        "evaluation/run_evaluation.py",
    }


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_stay_in_the_environment(
    cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_planted0secret0of0a0test"
    for name in ("HF_TOKEN", "COCOMIX_NAME_API_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, secret)
    recipe = workshop.recipe_file(tmp_path / "r.yaml", "cocomix")
    said = [cli("train", recipe, "-o", tmp_path / "run")]
    said.append(cli("eval", tmp_path / "run", "--limit-blocks", 4))
    said.append(cli("compare", tmp_path / "run", workshop.ntp_run, "-o", tmp_path / "report"))
    said.append(cli("doctor"))
    assert all(secret not in result.out + result.err for result in said)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    message = cli.refuses("train", recipe, "--set", f"training.hub_token={secret}", says="training.hub_token")
    assert secret not in message


# --- the disk ---------------------------------------------------------------------------------------------------------


def fails(number: int) -> Callable[..., Any]:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise OSError(number, os.strerror(number), "out.partial")

    return fail


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder(cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: Any, number: int) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("prepare", workshop.corpus, "--vocab-size", 290, "--block-size", BLOCK, "-o", "out")
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.mkdir", fails(number))
        cli.refuses(*command, says="choose another --output")
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.rename", fails(number))  # it became read-only meanwhile
        cli.refuses(*command, says=os.strerror(number))
    cli(*command)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
