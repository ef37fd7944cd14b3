"""Promises about the package as a whole."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

import cocomix
from cocomix import allocator
from cocomix.device import default_device

SOURCE = Path(cocomix.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = [info.name for info in pkgutil.walk_packages([str(SOURCE)], "cocomix.")]
ROOMS_APART = ("data", "concepts", "modeling")


def test_importing_says_nothing_and_starts_nothing() -> None:
    program = (
        "import sys, threading; import cocomix; assert threading.active_count() == 1; "
        "heavy = {'sae_lens', 'gguf', 'lm_eval', 'matplotlib.pyplot', 'tensorboard'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", MODULES)
def test_public_names_exist(name: str) -> None:
    if name == "cocomix.__main__":
        return
    module = importlib.import_module(name)
    assert module.__doc__
    for public in module.__all__:
        assert getattr(module, public) is not None
    assert list(module.__all__) == sorted(set(module.__all__), key=module.__all__.index)


def test_auto_classes_know_the_model() -> None:
    assert type(AutoConfig.for_model("cocomix")) is cocomix.CoCoMixConfig
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", cocomix.__version__)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_is_unpickled(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for call in re.findall(r"torch\.load\([^)]*\)", text):
        assert "weights_only=True" in call, call
    assert not re.search(r"^\s*(import|from) (pickle|cloudpickle|dill|joblib|shelve|marshal)\b", text, re.MULTILINE)
    assert "yaml.load(" not in text
    assert "allow_pickle=True" not in text
    assert not re.search(r"\b(eval|exec)\(", re.sub(r"\.eval\(", "", text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert not re.search(r"(?<![.\w])(hasattr|print)\(", text)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    # An accelerator may be asked what it is, but never assumed.
    assert not re.search(r"""\.cuda\(|(\bto\(|device=|device\()\s*["']cuda""", text)


@pytest.mark.parametrize("room", ROOMS_APART)
def test_rooms_do_not_import_one_another(room: str) -> None:
    others = "|".join(name for name in (*ROOMS_APART, "training", "evaluation", "interpret") if name != room)
    for path in (SOURCE / room).rglob("*.py"):
        found = re.findall(rf"^\s*(?:from|import) cocomix\.(?:{others})\b.*", path.read_text(), re.MULTILINE)
        assert not found, (path, found)


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
