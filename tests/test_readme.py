"""README commands and code: run at toy size, or read by the real command line where they need the hub or hours."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from cocomix.cli import app
from cocomix.config import load_recipe
from tests.command_line import Cli
from tests.workshop import BLOCK, CONCEPTS, Workshop

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in README.splitlines() if re.match(r" {4}(cocomix|torchrun|make) ", line)]
OWN_CORPUS = README.split("## Your own corpus")[1].split("\n## ")[0]


def cocomix_arguments(command: str) -> list[str]:
    """What follows `cocomix`, or `torchrun … -m cocomix`."""
    words = shlex.split(command, comments=True)
    return words[words.index("cocomix") + 1 :]


@pytest.mark.parametrize("command", [line for line in COMMANDS if "cocomix" in line])
def test_the_command_line_understands_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    verb, *arguments = cocomix_arguments(command)
    subcommand = typer.main.get_command(app).commands[verb]
    parameters = subcommand.make_context(verb, list(arguments)).params
    if verb == "train":
        assert load_recipe(Path(parameters["recipe"]), parameters["assignments"] or ()).tokens


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^ {4}|`)make (\w+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_own_corpus_commands_run(cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, in order, on toy text with the toy teacher."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    smaller = {
        "my_texts/": str(workshop.corpus),
        "openai-community/gpt2": str(workshop.teacher),
        "--block-size 1024": f"--block-size {BLOCK} --validation-fraction 0.2",
        "--layer 5": "--layer 1 --tokens 40000 --batch-size 256 --learning-rate 5e-3",
        "--num-concepts 8192 --k 32": f"--num-concepts {CONCEPTS} --k 8",
        "num_concepts=8192": f"num_concepts={CONCEPTS}",
        "tokens=100000000": f"tokens={8 * BLOCK} --set training.bf16=false "
        "--set training.gradient_accumulation_steps=1 "
        "--set training.per_device_train_batch_size=2 --set training.dataloader_num_workers=0 "
        f"--set model.backbone.n_embd=32 --set model.backbone.n_head=2 --set model.backbone.n_positions={BLOCK} "
        "--set model.backbone.n_layer=4",
    }
    commands = [line.strip() for line in OWN_CORPUS.splitlines() if line.startswith("    cocomix ")]
    assert [cocomix_arguments(line)[0] for line in commands] == ["prepare", "sae", "label", "train", "train", "compare"]
    for command in commands:
        for text, replacement in smaller.items():
            command = command.replace(text, replacement)
        cli(*cocomix_arguments(command))
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_runs(code: str) -> None:
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["steered"].shape == (2, 16)  # type: ignore[attr-defined]
