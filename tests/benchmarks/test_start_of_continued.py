"""The measurement of results/continued, at toy size: adding starts at the pretrained model's loss."""

import json
from pathlib import Path

import pytest

from benchmarks import start_of_continued
from tests.workshop import BLOCK, WORDS, Workshop


def test_it_measures_the_forms(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(WORDS * 30), encoding="utf-8")
    sizes = ("--tokens", str(4 * BLOCK), "--block-size", str(BLOCK), "--concepts", "48", "--forms", "zero")
    monkeypatch.setattr("sys.argv", ["start_of_continued", str(workshop.teacher), str(text), *sizes])
    start_of_continued.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["tokens"]) == ("teacher", 4 * BLOCK)
    assert set(found["change"]) == {f"{form}, before block 1" for form in start_of_continued.FORMS if "zero" in form}
    assert abs(found["change"]["add, zero, without mean, before block 1"]) < 1e-3
    assert found["change"]["interleave, zero, before block 1"] > 0.1
