"""Loading pretrained models and tokenizers: what is shown meanwhile, and what is absent rather than unreadable."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from transformers import modeling_gguf_pytorch_utils

from cocomix.runtime import hub
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import NoTokenizer, load_causal_lm, load_tokenizer
from tests.workshop import Workshop


def test_the_bar_of_gguf_files_can_be_switched_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with pytest.raises(CoCoMixError):
        load_causal_lm(tmp_path / "broken.gguf")
    shown = []
    for switch in (transformers.logging.disable_progress_bar, transformers.logging.enable_progress_bar):
        switch()
        assert list(modeling_gguf_pytorch_utils.tqdm([1, 2], desc="de-quantizing")) == [1, 2]
        shown.append("de-quantizing" in capfd.readouterr().err)
    assert shown == [False, True]


def test_a_model_that_is_still_being_made_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "teacher.partial").mkdir(parents=True)
    with pytest.raises(CoCoMixError, match=r"runs/teacher\.partial"):
        load_causal_lm("runs/teacher")
    for name in ("./runs/nowhere", str(tmp_path / "nowhere"), "runs/a/nowhere"):
        with pytest.raises(CoCoMixError, match=f"{name} does not exist"):
            load_causal_lm(name)
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(CoCoMixError, match=r"runs/nowhere does not exist.*cocomix train"):
            load("runs/nowhere")


def test_a_folder_with_weights_only_holds_no_tokenizer(workshop: Workshop, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(workshop.teacher / name, tmp_path / name)
    with pytest.raises(NoTokenizer, match=tmp_path.name):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read_is_not_taken_for_an_absent_one(
    workshop: Workshop, tmp_path: Path, file: str
) -> None:
    folder = Path(shutil.copytree(workshop.teacher, tmp_path / "teacher"))
    (folder / file).write_text("{")
    with pytest.raises(CoCoMixError, match="teacher") as caught:
        load_tokenizer(str(folder))
    assert not isinstance(caught.value, NoTokenizer)


@pytest.mark.parametrize("absent", [True, False])
def test_a_repository_holds_no_tokenizer_only_if_the_hub_said_so(monkeypatch: pytest.MonkeyPatch, absent: bool) -> None:
    known = hub._CACHED_NO_EXIST if absent else None  # None: nothing is known, because the hub was not reached
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *arguments, **options: known)
    with pytest.raises(CoCoMixError, match="some/weights") as caught:
        load_tokenizer("some/weights")
    assert isinstance(caught.value, NoTokenizer) is absent


@pytest.mark.parametrize("load", [load_causal_lm, load_tokenizer])
def test_that_the_hub_is_asked_is_said(
    load: Callable[[str], object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(hub.AutoTokenizer, "from_pretrained", unreachable)
    monkeypatch.setattr(hub.AutoModelForCausalLM, "from_pretrained", unreachable)
    monkeypatch.setattr(hub.logger, "propagate", True)
    for name in ("somebody/nothing", "nothing"):
        with caplog.at_level("INFO"), pytest.raises(CoCoMixError, match=name):
            load(name)
        assert f"no {name} here" in caplog.messages[-1]
