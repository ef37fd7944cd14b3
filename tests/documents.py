"""The code in README and documentation: found, made toy-sized, and run."""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from cocomix.cli import app
from cocomix.training.recipe import load_recipe
from tests.command_line import Cli
from tests.workshop import BLOCK, CONCEPTS, TOY_BACKBONE, VOCAB

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

_BACKBONE = " ".join(
    f"--set model.backbone.{name}={value}" for name, value in TOY_BACKBONE.items() if name != "model_type"
)
TOY_OPTIONS = {
    "prepare": f"--block-size {BLOCK} --validation-fraction 0.2",
    "sae": f"--num-concepts {CONCEPTS} --k 8 --layer 1 --tokens 8000 --batch-size 256 --learning-rate 5e-3",
    "label": "--force",
    "train": f"--set tokens={8 * BLOCK} --set evaluation_blocks=4 --set training.bf16=false "
    "--set training.torch_compile=false "
    "--set training.learning_rate=1e-2 --set batch_tokens=null "
    "--set training.per_device_train_batch_size=2 --set training.dataloader_num_workers=0 --set training.eval_steps=2 "
    f"--set model.num_concepts={CONCEPTS} --set model.insert_layer=1 --set model.backbone.n_positions={BLOCK} "
    f"{_BACKBONE}",
    "generate": "--max-new-tokens 4",
    "atlas": "--tokens 600 --effects 2",
    "steer-eval": "--num-concepts 2 --factors=0,1,5 --prompts 2 --prompt-tokens 4 --new-tokens 4",
    "eval": "--limit-blocks 4 --batch-size 2",
    "analyse": "--limit-blocks 4 --batch-size 2",
}
TOY_OPTIONS["plan"] = f"{TOY_OPTIONS['train']} --seconds 1"
"""Appended to a verb's own options: of an option given twice the last value counts."""

TOY_TEXTS = {"Return the number of items.": "list of the items", "The function returns": "the list"}
"""Texts that fit into the toy models' context."""

_FENCED = re.compile(r"(?:<!-- not run: ([^\n]*) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAMS = "cocomix|torchrun|accelerate|make|pip|lm_eval|python|bash"
_INDENTED = re.compile(rf"(?:<!-- not run: ([^\n]*) -->\n\n?)?((?:^ {{4}}(?:{_PROGRAMS}) .*\n?)+)", re.MULTILINE)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A piece of code of a page; `reason` says why it is not run, where it is not."""

    page: Path
    section: str
    kind: str
    code: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """Its lines; comments are left out, continued lines joined."""
        lines = [line.strip() for line in self.code.replace("\\\n", " ").splitlines()]
        return [line for line in lines if line and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """The code of a page in order: everything fenced, and what is indented and holds commands."""
    text = page.read_text(encoding="utf-8")
    found = [(match.start(), match[2], match[3], match[1]) for match in _FENCED.finditer(text)]
    unfenced = _FENCED.sub(lambda match: re.sub(r"[^\n]", "#", match[0]), text)  # places stay what they were
    found += [(match.start(), "bash", match[2], match[1]) for match in _INDENTED.finditer(unfenced)]
    headings = [(match.start(), match[1]) for match in _HEADING.finditer(unfenced)]
    return [
        Block(page, [title for place, title in headings if place < start][-1], kind, code, reason)
        for start, kind, code, reason in sorted(found)
    ]


def cocomix_arguments(command: str) -> list[str]:
    """What follows `cocomix`, or `torchrun … -m cocomix`."""
    words = shlex.split(command, comments=True)
    return words[words.index("cocomix") + 1 :]


def understand(command: str) -> None:
    """Have the real command line parse a command, and read the recipe it names if that is one of ours."""
    verb, *arguments = cocomix_arguments(command)
    parameters = typer.main.get_command(app).commands[verb].make_context(verb, list(arguments)).params
    if verb == "train" and (ROOT / parameters["recipe"]).is_file():
        assert load_recipe(ROOT / parameters["recipe"], parameters["assignments"] or ()).tokens


def check_names(code: str) -> set[str]:
    """Without running it, see that what a piece of code imports is there and takes the keywords it is given.

    Returns:
        Packages that are not installed, of which nothing could be seen.
    """
    tree, names, missing = ast.parse(code), dict[str, Any](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            package = node.module.split(".")[0]
            if importlib.util.find_spec(package) is None:
                missing.add(package)
                continue
            module = importlib.import_module(node.module)
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := _looked_up(node.func, names)) is not None:
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg is not None}
            inspect.signature(called).bind(*[None] * len(node.args), **keywords)
    return missing


def _looked_up(node: ast.expr, names: dict[str, Any]) -> Any:
    """What `name` or `name.attribute` stands for, where the name was imported; else `None`."""
    if isinstance(node, ast.Attribute):
        owner = _looked_up(node.value, names)
        return None if owner is None else getattr(owner, node.attr)
    return names.get(node.id) if isinstance(node, ast.Name) else None


def run_commands(cli: Cli, commands: list[str], replacements: dict[str, str]) -> None:
    """Run `cocomix` commands at toy size, in the current folder.

    Args:
        cli: the command line.
        commands: as they stand on the page.
        replacements: words of the page and what they are here, e.g. a teacher's name and a folder.
    """
    for command in commands:
        words = [{**TOY_TEXTS, **replacements}.get(word, word) for word in cocomix_arguments(command)]
        words = [re.sub(r"^(412|97)\b", lambda match: str(int(match[0]) % CONCEPTS), word) for word in words]
        options = shlex.split(TOY_OPTIONS.get(words[0], ""))
        if "--vocab-size" in words:
            options += ["--vocab-size", str(VOCAB)]
        if {"--search", "--concept"} & set(words):
            options = []
        cli(*words, *options)
