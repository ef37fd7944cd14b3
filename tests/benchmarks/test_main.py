"""The whole command and the GPU's script at toy sizes: every section runs, and the three files agree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.__main__ import SECTIONS, main
from benchmarks.ratios import Ratio

from cocomix.artifacts import read_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the script that a GPU is given, on the CPU, and of the sections that it leaves out."""
    folder = tmp_path_factory.mktemp("benchmarks")
    main(["--fast", "--rounds", "1", "--only", "decoding,compression,growth", "--output", str(folder)])
    done = run_script(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def run_script(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", "--device", "cpu", "--tiny", "--output", output, *options],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )


def test_the_script_goes_on_where_it_was_cut(results: Path) -> None:
    (results / "work" / "heads.done").unlink()
    before = read_json(results / "cpu.json")["sections"]
    done = run_script(results)
    after = read_json(results / "cpu.json")["sections"]
    assert done.returncode == 0
    assert "heads" in done.stdout
    assert "train" not in done.stdout
    assert after["steps"] == before["steps"]
    assert (results / "metrics.jsonl").read_text().count("ntp_loss") >= 1


def test_the_script_names_what_is_missing(tmp_path: Path) -> None:
    done = run_script(tmp_path / "out", "--corpus", "nowhere.jsonl")
    assert (done.returncode, "nowhere.jsonl" in done.stderr) == (2, True)


def test_every_section_has_ratios(results: Path) -> None:
    written = read_json(results / "cpu.json")
    assert list(written["sections"]) == list(SECTIONS)
    for name, section in written["sections"].items():
        ratios = [Ratio(**values) for values in section["ratios"]]
        assert ratios, name
        for ratio in ratios:
            assert 0 < ratio.minimum <= ratio.median <= ratio.maximum, (name, ratio)
        assert section["machine"]["torch"]
        assert section["config"]


def test_table_and_plot(results: Path) -> None:
    page = (results / "cpu.md").read_text(encoding="utf-8")
    for section in read_json(results / "cpu.json")["sections"].values():
        assert f"## {section['title']}" in page
        for ratio in section["ratios"]:
            assert f"| {ratio['case']} | {ratio['quantity']} |" in page
    assert (results / "cpu.png").read_bytes().startswith(b"\x89PNG")


def test_one_section_keeps_the_others(results: Path) -> None:
    before = read_json(results / "cpu.json")["sections"]
    main(["--fast", "--rounds", "2", "--only", "compression", "--output", str(results)])
    after = read_json(results / "cpu.json")["sections"]
    assert list(after) == list(before)
    assert after["compression"]["rounds"] == 2
    assert after["steps"] == before["steps"]


@pytest.mark.parametrize("arguments", [["--only", "stepz"], ["--rounds", "0"], ["--device", "tpu"]])
def test_wrong_arguments_are_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert arguments[1] in capsys.readouterr().err
