"""The verb `init`."""

import logging
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cocomix.cli.printing import Printed, table
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)
T = TypeVar("T")


def init(
    shipped: Annotated[
        str | None, typer.Argument(metavar="[SHIPPED]", help="A recipe that comes with cocomix, to copy instead.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the recipes.")] = Path("recipes"),
    corpus: Annotated[str | None, typer.Option(help="What `cocomix prepare` reads, or has written.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Hub name, folder, run or GGUF file; `train` trains one on the corpus.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Of the student: tiny, mini, small, medium or large.")] = None,
    hardware: Annotated[str | None, typer.Option(help="cpu, cpu-bf16 or gpu.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the recipes and of what they make; default: the corpus's.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's form at every size: interleaving, attribution, AdamW.")
    ] = False,
    distill: Annotated[
        bool, typer.Option("--distill", help="Also learn the teacher's next-token distributions, for the lowest loss.")
    ] = False,
    vocab_size: Annotated[
        int | None, typer.Option(help="Train a tokenizer of so many entries on the corpus; default: the teacher's.")
    ] = None,
    show_shipped: Annotated[bool, typer.Option("--list", help="List the shipped recipes.")] = False,
) -> Printed:
    """Write recipes for your own corpus, or copy one.

    Asks what the options do not say: corpus, teacher, size of the student, hardware. What is in the folder already is
    never overwritten.

    [dim]Example: cocomix init --corpus books/ --teacher openai-community/gpt2 --size small --hardware gpu[/dim]

    [dim]Example: cocomix init demo; cocomix plan recipes/demo.yaml[/dim]
    """
    from cocomix.experiments.shipped import copy_recipe, shipped_recipes

    if show_shipped:
        recipes = shipped_recipes()
        return Printed([recipe._asdict() for recipe in recipes], table(recipes))
    answers = {"corpus": corpus, "teacher": teacher, "size": size, "hardware": hardware}
    if shipped is None:
        return _write_own(answers, name, output, paper=paper, distill=distill, vocab_size=vocab_size)
    wishes = {"paper": paper or None, "distill": distill or None, "vocab-size": vocab_size}
    others = {**answers, "name": name, **wishes}
    if given := [f"--{option}" for option, value in others.items() if value is not None]:
        raise CoCoMixError(f"{shipped} is copied as it is; leave out {' and '.join(given)}, or leave out {shipped}.")
    copied = copy_recipe(shipped, output)
    recipe, added, kept = str(copied.recipe), list(map(str, copied.added)), list(map(str, copied.kept))
    for path in kept:
        logger.warning(f"{path} was there already and is kept as it is; {recipe} starts from it.")
    for path in added:
        logger.info(f"{path}, which it starts from")
    logger.info(f"{recipe} is yours to change")
    return Printed({"recipe": recipe, "added": added, "kept": kept}, next=f"cocomix plan {shlex.quote(recipe)}")


def _write_own(given: dict[str, str | None], name: str | None, folder: Path, **wishes: Any) -> Printed:
    from cocomix.experiments.own_recipe import HARDWARE, SIZES, TRAINED_HERE, Corpus, OwnRecipe, Teacher

    found = None if (source := given["corpus"]) is None else Corpus.find(source)
    labelled = found is not None and found.num_concepts is not None
    missing = [option for option, value in given.items() if value is None and not (labelled and option == "teacher")]
    if missing and not sys.stdin.isatty():
        raise CoCoMixError(
            f"{', '.join(f'--{option}' for option in missing)} must be given where there is no terminal to ask in; or "
            "name a shipped recipe (`cocomix init --list`)."
        )
    question = "Corpus: folder, file, Hub data set, or prepared data"
    corpus = found or _answer(given, "corpus", question, None, Corpus.find)
    teacher = None
    if corpus.num_concepts is None:
        question = f"Teacher: Hub name, folder or GGUF file; {TRAINED_HERE} trains one on the corpus"
        teacher = _answer(given, "teacher", question, TRAINED_HERE, Teacher.find)
    elif given["teacher"] is not None:
        raise CoCoMixError(f"{corpus.source} is labelled already; leave out --teacher, or move its folder labels away.")
    sizes = ", ".join(f"{one} ({size.meant_for})" for one, size in SIZES.items())
    size = _answer(given, "size", f"Size of the student: {sizes}", "tiny", lambda text: _one_of("size", text, SIZES))
    kinds = ", ".join(f"{kind} ({meant})" for kind, (_, _, meant) in HARDWARE.items())
    here = _hardware_here() if given["hardware"] is None else None
    hardware = _answer(given, "hardware", f"Hardware: {kinds}", here, lambda text: _one_of("hardware", text, HARDWARE))
    own = OwnRecipe(_name(name or corpus.name), corpus, teacher, size, hardware, **wishes)
    recipe, *others = own.write(folder)
    logger.info(f"{recipe}, {', '.join(map(str, others))} are yours to change; all commands stand in the first")
    printed = {"recipe": str(recipe), "added": [str(path) for path in others], "kept": []}
    return Printed(printed, next=own.prepare() or own.after_preparation(recipe))


def _name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise CoCoMixError(f"--name {text} becomes the name of files; use letters, digits, and _ - . in it.")
    return text


def _answer(given: dict[str, str | None], name: str, question: str, default: str | None, read: Callable[[str], T]) -> T:
    """What an option says, or a person, who is asked again as long as the answer cannot be used."""
    if (value := given[name]) is not None:
        return read(value)
    while True:
        try:
            return read(typer.prompt(question, default=default, err=True))
        except CoCoMixError as error:
            typer.echo(str(error), err=True)


def _one_of(option: str, text: str, known: dict[str, T]) -> str:
    if text not in known:
        raise CoCoMixError(f"--{option} {text} is not one of {', '.join(known)}.")
    return text


def _hardware_here() -> str:
    from cocomix.runtime.device import default_device, fast_bfloat16

    device = default_device()
    return "gpu" if device.type != "cpu" else "cpu-bf16" if fast_bfloat16(device) else "cpu"
