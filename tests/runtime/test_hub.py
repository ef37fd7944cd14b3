"""Loading pretrained models: what the library underneath shows while it does."""

from pathlib import Path

import pytest
import transformers
from transformers import modeling_gguf_pytorch_utils

from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_causal_lm


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
    with pytest.raises(CoCoMixError, match=r"runs/teacher\.partial is still being written"):
        load_causal_lm("runs/teacher")
    for name in ("./runs/nowhere", str(tmp_path / "nowhere"), "runs/a/nowhere"):
        with pytest.raises(CoCoMixError, match=f"{name} does not exist"):
            load_causal_lm(name)
