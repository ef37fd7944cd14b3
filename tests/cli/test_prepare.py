"""The verb `prepare`, in processes of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cocomix.cli.options import part_of
from cocomix.data import Tokens
from cocomix.runtime.errors import CoCoMixError
from tests.data.conftest import story, write_jsonl

COMMAND = """
import resource, sys
from cocomix.cli import main
try:
    main()
finally:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    heavy = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
    print(usage.ru_utime + usage.ru_stime, heavy, file=sys.stderr)
"""


def arguments(corpus: Path, output: Path, *more: object) -> list[str]:
    sizes = ("--vocab-size", 300, "--block-size", 16, "--validation-fraction", 0.2)
    return [sys.executable, "-c", COMMAND, "prepare", str(corpus), *map(str, (*sizes, *more)), "-o", str(output)]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", [story(number) for number in range(60)])


def write_texts(folder: Path) -> Path:
    """Files of some 8 MB, so that each is a unit."""
    folder.mkdir()
    for number in range(4):
        texts = [story(place, words=400) for place in range(number * 4000, (number + 1) * 4000)]
        write_jsonl(folder / f"{number}.jsonl", texts)
    return folder


@pytest.mark.slow
def test_a_finished_command_given_again(tmp_path: Path, corpus: Path) -> None:
    assert run(arguments(corpus, tmp_path / "out")).returncode == 0
    again = run(arguments(corpus, tmp_path / "out", "--json"))
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert json.loads(again.stdout)["kind"] == "tokens"
    seconds, heavy = again.stderr.splitlines()[-1].split(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 2.0  # of CPU; under one on a machine that does nothing else
    other = run(arguments(corpus, tmp_path / "out", "--seed", 1))
    assert other.returncode == 1
    assert "another seed" in other.stderr


@pytest.mark.slow
def test_stopping_says_what_is_kept(tmp_path: Path) -> None:
    """Several files, so that two processes are at it."""
    texts = write_texts(tmp_path / "texts")
    first = run(arguments(texts, tmp_path / "whole", "--workers", 1))
    assert first.returncode == 0
    process = subprocess.Popen(arguments(texts, tmp_path / "out", "--workers", 2), stderr=subprocess.PIPE, text=True)
    logs = tmp_path / "out.partial" / "work" / "units"
    while not (logs.is_dir() and sum(path.stat().st_size for path in logs.glob("*.unfinished")) > 0):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert float(re.search(r"([\d.]+) MB of the input are encoded and kept", said)[1]) > 0
    assert "Traceback" not in said
    assert run(arguments(texts, tmp_path / "out", "--workers", 2)).returncode == 0
    assert Tokens.open(tmp_path / "out").manifest == Tokens.open(tmp_path / "whole").manifest


@pytest.mark.slow
def test_workers_end_with_a_killed_command(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts")
    process = subprocess.Popen(arguments(texts, tmp_path / "out", "--workers", 2), stderr=subprocess.DEVNULL)
    logs = tmp_path / "out.partial" / "work" / "units"
    while not (logs.is_dir() and len(list(logs.glob("*.unfinished"))) > 1):
        assert process.poll() is None
        time.sleep(0.02)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/task").exists() for pid in children):
        assert time.monotonic() < deadline, "workers outlive the command"
        time.sleep(0.1)


@pytest.mark.parametrize("share", ["3/3", "0/0", "1", "a/b", "-1/2"])
def test_parts_are_checked(share: str) -> None:
    with pytest.raises(CoCoMixError, match=f"--share {share}"):
        part_of("--share", share)
    assert part_of("--share", "2/3") == (2, 3)
