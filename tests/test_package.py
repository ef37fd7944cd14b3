"""Promises about the package as a whole."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers import AutoConfig

import cocomix
from cocomix.experiments import tour
from cocomix.runtime import allocator
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError, require_extra
from cocomix.runtime.packaged import packaged_folder, recipes_folder
from tests.command_line import Cli
from tests.workshop import BLOCK, Workshop

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCE = Path(cocomix.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = [info.name for info in pkgutil.walk_packages([str(SOURCE)], "cocomix.")]


# Run in a process of its own, where nothing is imported yet and the extras' packages cannot be.
MINIMAL = """
import sys, threading
blocked = "datasets sae_lens transformer_lens matplotlib scipy tensorboard gguf gradio lm_eval ray s3fs gcsfs wandb"
blocked += " trackio mlflow mkdocs pytest hypothesis"
sys.modules |= dict.fromkeys(blocked.split())
import cocomix
assert threading.active_count() == 1
heavy = [name for name in ("torch", "transformers", "datasets") if sys.modules.get(name)]
assert not heavy, heavy
from importlib import import_module
for name in sys.argv[2].split():
    import_module(name)
from cocomix.cli import main
sys.argv = ["cocomix", "train", sys.argv[1], "--output", sys.argv[3], "--quiet"]
main()
"""
NEED_AN_EXTRA = (  # imported on use, where its absence is told, or by TransformerLens itself
    "cocomix.explorer.",
    "cocomix.evaluation.harness",
    "cocomix.interop.transformer_lens_adapter",
)


def test_without_extras_it_imports_in_silence_and_trains(workshop: Workshop, tmp_path: Path) -> None:
    changes = {"tokens": 2 * BLOCK, "training": {"per_device_train_batch_size": 1}, "evaluation_blocks": 2}
    recipe = workshop.recipe_file(tmp_path / "recipe.yaml", "cocomix", **changes)
    names = [name for name in MODULES if not name.startswith(NEED_AN_EXTRA) and name != "cocomix.__main__"]
    command = [sys.executable, "-c", MINIMAL, str(recipe), " ".join(names), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of this source."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return folder


def wheel_files(folder: Path) -> dict[str, bytes]:
    """Contents by name, those about the package without its version."""
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {re.sub(r"^cocomix-.*\.dist-info/", "info/", name): archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_recipes_and_example_and_nothing_else(distributions: Path) -> None:
    names = set(wheel_files(distributions))
    data = {"py.typed", "evaluation/columns.yaml"}
    data |= {f"evaluation/tasks/{path.name}" for path in (SOURCE / "evaluation" / "tasks").iterdir()}
    suffixes = ("css", "html", "jinja", "js", "json", "md")
    data |= {str(path.relative_to(SOURCE)) for suffix in suffixes for path in SOURCE.rglob(f"*.{suffix}")}
    code = {str(path.relative_to(SOURCE)) for path in FILES}
    shipped = {
        f"{folder.name}/{path.relative_to(folder)}"
        for folder in (recipes_folder(), packaged_folder("first_look"))
        for path in folder.rglob("*")
        if path.is_file()
    }
    info = {f"info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names == info | {f"cocomix/{name}" for name in data | code | shipped}


def test_the_wheel_says_what_it_is_and_needs(distributions: Path) -> None:
    files = wheel_files(distributions)
    expected = "[console_scripts]\ncocomix = cocomix.cli:main\n\n[transformer_lens.architectures]\n"
    expected += "CoCoMixForCausalLM = cocomix.interop.transformer_lens_adapter:CoCoMixArchitectureAdapter\n"
    assert files["info/entry_points.txt"].decode() == expected
    metadata: Message = message_from_bytes(files["info/METADATA"])
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?(\+.*)?", metadata["Version"])
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    extras = {"sae", "report", "demo", "eval", "explorer", "ray", "track", "gguf", "docs", "remote", "dev"}
    assert extras <= set(PROJECT["optional-dependencies"])
    always = [need for need in map(Requirement, metadata.get_all("Requires-Dist", [])) if need.marker is None]
    assert {need.name for need in always} == {Requirement(need).name for need in PROJECT["dependencies"]}
    assert "Pretrain a language model" in str(metadata.get_payload())


def test_the_sdist_can_be_tested(distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    tests = {str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("*.py")}
    files = {
        "Makefile",
        "constraints.txt",
        "uv.lock",
        "pyproject.toml",
        "PKG-INFO",
        "LICENSE",
        ".ci/run",
        "recipes/demo.yaml",
    }
    assert tests | files <= names
    assert not any("__pycache__" in name or name.startswith((".venv", ".git/")) for name in names)


def test_the_lock_has_the_pinned_versions_and_names_the_public_index_alone() -> None:
    text = (ROOT / "uv.lock").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^/\"]+", text)) == {"https://pypi.org", "https://files.pythonhosted.org"}
    locked = {package["name"]: package.get("version", "") for package in tomllib.loads(text)["package"]}
    needed = [Requirement(need) for needs in PROJECT["optional-dependencies"].values() for need in needs]
    assert {re.sub(r"[-_.]+", "-", need.name.lower()) for need in needed} <= locked.keys()  # else: uv lock
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pinned = {re.sub(r"[-_.]+", "-", name.lower()): version for name, version in pins}
    other = {name: version for name, version in locked.items() if pinned.get(name, version) != version}
    assert not other, other
    assert "+" not in locked["torch"]


def test_the_licences_of_what_it_needs_are_listed() -> None:
    text = (ROOT / "LICENCES.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip().lower().replace("_", "-"): cells[3].strip()
        for cells in (line.split("|") for line in text.splitlines() if line.startswith("| "))
    }
    extras = [needs for name, needs in PROJECT["optional-dependencies"].items() if name != "dev"]
    for need in map(Requirement, sum(extras, PROJECT["dependencies"])):
        assert need.name == "cocomix" or rows[need.name.lower()], need.name


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for_and_a_room_what_it_offers(name: str) -> None:
    if name == "cocomix.__main__":
        return
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", []):
        assert getattr(module, public) is not None


@pytest.mark.parametrize("name", [name for name in MODULES if name != "cocomix.__main__"])
def test_public_methods_are_described_where_they_are_first_defined(name: str) -> None:
    classes = [value for value in vars(importlib.import_module(name)).values() if inspect.isclass(value)]
    for kind in (one for one in classes if one.__module__ == name and not one.__name__.startswith("_")):
        for method, value in vars(kind).items():
            if inspect.isfunction(value) and value.__name__ == method and not method.startswith("_"):
                assert inspect.getdoc(getattr(kind, method)), (kind, method)


def test_auto_classes_know_the_model() -> None:
    assert type(AutoConfig.for_model("cocomix")) is cocomix.CoCoMixConfig


def test_the_version(cli: Cli) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", cocomix.__version__)
    assert cli("--version").out == f"{cocomix.__version__}\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_is_unpickled(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for call in re.findall(r"torch\.load\([^)]*\)", text):
        assert "weights_only=True" in call, call
    assert not re.search(r"^\s*(import|from) (pickle|cloudpickle|dill|joblib|shelve|marshal)\b", text, re.MULTILINE)
    assert all("SafeLoader" in call for call in re.findall(r"yaml\.load\(.*", text))
    assert "allow_pickle=True" not in text
    assert not re.search(r"\b(eval|exec)\(", re.sub(r"\.eval\(", "", text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert not re.search(r"(?<![.\w])hasattr\(", text)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    # An accelerator may be asked what it is, but never assumed.
    assert not re.search(r"""\.cuda\(|(\bto\(|device=|device\()\s*["']cuda""", text)


def test_files_are_found_by_their_names() -> None:
    """Which rooms may import which is import-linter's to check: `make lint`."""
    names = [path.name for path in FILES if path.name != "__init__.py"]
    assert sorted(name for name, count in Counter(names).items() if count > 1) == []
    assert [path for path in FILES if path.stem == path.parent.name] == []
    assert {path.name for path in SOURCE.iterdir() if path.is_file()} == {"__init__.py", "__main__.py", "py.typed"}


def test_importing_it_registers_the_model_where_transformers_is_imported_already() -> None:
    program = (
        "from transformers import AutoConfig; import cocomix; print(type(AutoConfig.for_model('cocomix')).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "CoCoMixConfig\n"


@pytest.mark.parametrize("name", cocomix.__all__)
def test_public_names_are_imported_when_they_are_used(name: str) -> None:
    assert getattr(cocomix, name) is not None


def test_a_missing_extra_is_named() -> None:
    require_extra("report", "json", purpose="a report")
    with pytest.raises(CoCoMixError, match=r"no_such_package.*cocomix\[report\]"):
        require_extra("report", "json", "no_such_package", purpose="a report")


def test_the_allocator() -> None:
    assert allocator.keep_freed_memory() in (True, False)


def test_the_allocator_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert allocator.keep_freed_memory() is False
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.libc_ver", lambda: ("musl", "1"))
    assert allocator.keep_freed_memory() is False


def test_the_device_is_the_machines() -> None:
    assert default_device().type


@pytest.mark.parametrize("room", ["concepts", "data", "labelling", "training"])
def test_rooms_that_import_lazily_have_every_name_they_list(room: str) -> None:
    package = importlib.import_module(f"cocomix.{room}")
    assert all(hasattr(package, name) for name in package.__all__)


def test_the_installer_downloads_the_teacher_that_the_demo_looks_for() -> None:
    """It reads the package's name out of the source, so that the name stands once."""
    script = (ROOT / ".ci" / "install").read_text(encoding="utf-8")
    pattern, file = re.search(r"sed -n 's/(\^_PACKAGE.*?)/\\1/p' (\S+\.py)\)", script).groups()  # type: ignore[union-attr]
    found = re.findall(pattern.replace(r"\(", "(").replace(r"\)", ")"), (ROOT / file).read_text(encoding="utf-8"), re.M)
    assert found == [tour._PACKAGE]
