"""The documentation: its tutorials run, its references are complete, and what it quotes is still so.

Tutorials share the workshop's toy world: each starts in a folder with copies of what its text says it starts from, and
its blocks run in order. A block that cannot run here says why in the comment before it; the skipped tests list these.
"""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

import cocomix
from cocomix.cli import app
from cocomix.experiments import SweepPlan
from cocomix.training.recipe import RunConfig
from cocomix.training.recipe_file import merged
from tests.command_line import Cli
from tests.documents import DOCS, ROOT, Block, blocks, check_names, run_commands, understand
from tests.workshop import Workshop

VERBS = set(typer.main.get_command(app).commands)
PAGES = sorted(DOCS.rglob("*.md"))
BLOCKS = {page: blocks(page) for page in PAGES}


def commands(pattern: str) -> list[Any]:
    """The commands of all pages' bash blocks that match from their beginning."""
    return [
        pytest.param(command, id=f"{page.relative_to(DOCS)}: {command}")
        for page, found in BLOCKS.items()
        for block in found
        if block.kind == "bash"
        for command in block.commands
        if re.match(pattern, command)
    ]


COMMANDS = commands(r"cocomix [a-z]|(torchrun|accelerate) .*cocomix [a-z]")
OTHER_COMMANDS = commands(r"(make|pip|bash|python) ")
STARTS_FROM = {
    "quickstart.md": ("my_texts",),
    "corpus.md": ("my_texts", "held_out", "data/mine", "data/mine/labels", "runs/mine"),
    "dictionary.md": ("data/mine", "runs/teacher"),
    "evaluation.md": ("data/mine", "runs/mine", "runs/mine_ntp"),
    "steering.md": ("runs/mine",),
}
WITH_PYTHON = {
    "models.md": ("runs/teacher",),
    "interop.md": ("exports/first", "sae/mine"),
    "howto/python.md": (),
    "howto/other_tools.md": (),
}
"""Pages that are no tutorials, and what their Python starts from."""
TOY_PYTHON = {
    '"openai-community/gpt2", insert_layer=6': '"runs/teacher", insert_layer=1',
    '"The function returns"': '"the list"',
    "max_new_tokens=32": "max_new_tokens=4",
    "ConceptEdit(412,": "ConceptEdit(12,",
}


def of_kind(kind: str, *, tutorials: bool = True) -> list[Block]:
    """The blocks of a language, of all pages or of those that are no tutorials."""
    return [
        block
        for page, found in BLOCKS.items()
        for block in found
        if block.kind == kind and (tutorials or str(page.relative_to(DOCS)) not in STARTS_FROM)
    ]


def named(block: Block) -> str:
    return f"{block.page.relative_to(DOCS)}: {block.section}"


def lay_out(workshop: Workshop, names: tuple[str, ...], folder: Path) -> None:
    """Copies of the workshop's things under the names that the pages use."""
    sources = {
        "my_texts": "corpus",
        "sae/mine": "dictionary",
        "exports/first": "exported",
        "held_out": "corpus",
        "data/mine": "data",
        "data/mine/labels": "labels",
        "runs/teacher": "teacher",
        "runs/mine": "cocomix_run",
        "runs/mine_ntp": "ntp_run",
    }
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for name in names:
        shutil.copytree(getattr(workshop, sources[name]), folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("page", STARTS_FROM)
def test_tutorial_runs(
    page: str, cli: Cli, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(workshop, STARTS_FROM[page], tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS[DOCS / page]:
        if block.reason is not None:
            continue
        if block.kind == "bash":
            run_commands(cli, block.commands, {"openai-community/gpt2": str(workshop.teacher)})
        elif block.kind == "python":
            exec(compile(block.code, page, "exec"), names)
        else:
            assert block.kind == "yaml", block
            read_recipe(block)


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_of_other_pages_runs(
    page: str, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(workshop, WITH_PYTHON[page], tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS[DOCS / page]:
        if block.kind == "python" and block.reason is None:
            code = block.code
            for shown, toy in TOY_PYTHON.items():
                code = code.replace(shown, toy)
            exec(compile(code, page, "exec"), names)


def test_names_and_keywords_that_are_not_there_are_found() -> None:
    check_names("from cocomix.data import prepare\nprepare(settings, output=1)")
    for wrong in ("from cocomix.data import prepared_data", "from cocomix.data import prepare\nprepare(1, 2, speed=3)"):
        with pytest.raises((AttributeError, TypeError)):
            check_names(wrong)
    assert check_names("from no_such_package import anything\nanything(1)") == {"no_such_package"}


def test_no_python_is_forgotten() -> None:
    pages = {str(block.page.relative_to(DOCS)) for block in of_kind("python")}
    assert pages <= STARTS_FROM.keys() | WITH_PYTHON.keys()
    text = "".join(block.code for block in of_kind("python"))
    assert all(shown in text for shown in TOY_PYTHON)


@pytest.mark.parametrize("block", of_kind("yaml", tutorials=False), ids=named)
def test_recipes_of_other_pages_can_be_read(block: Block) -> None:
    read_recipe(block)


def read_recipe(block: Block) -> None:
    """A recipe that names its file is written there, for the commands after it; a part of one must fit into one."""
    named = re.match(r"# (\S+\.yaml)\n", block.code)
    if named:
        Path(named[1]).write_text(block.code, encoding="utf-8")
        return
    demo = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8"))
    part = yaml.safe_load(block.code)
    whole = merged({**demo, "labels": None if isinstance(part.get("data"), dict) else "labels"}, part)
    RunConfig.model_validate({**whole, "data": part.get("data", "data")})


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        pytest.param(page, block.reason, id=f"{page}: {block.section}")
        for page in (*STARTS_FROM, *WITH_PYTHON)
        for block in BLOCKS[DOCS / page]
        if block.reason is not None
    ],
)
def test_block_runs_nowhere_here(page: str, reason: str) -> None:
    pytest.skip(f"{page}: {reason}")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_understands_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    understand(command)


@pytest.mark.parametrize("command", OTHER_COMMANDS)
def test_other_commands_name_what_is_there(command: str) -> None:
    """Targets of make, extras of the package, scripts and modules of the repository."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets
    elif words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        asked = re.search(r"(?:cocomix|\.)\[(.*?)\]", command)
        assert asked is None or set(asked[1].split(",")) <= project["optional-dependencies"].keys()
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None


# ---- references ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "hooks"))


def hook(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.usefixtures("hooks")
def test_every_verb_and_option_is_described() -> None:
    page = hook("cli_reference").cli_page(app)
    verbs = [part.split("\n## ")[0] for part in re.split(r"^### ", page, flags=re.MULTILINE)[1:]]
    assert {verb.splitlines()[0] for verb in verbs} == {f"cocomix {name}" for name in VERBS}
    for verb in verbs:
        assert "[dim]" not in verb
        for row in re.findall(r"^\| `.*$", verb, re.MULTILINE):
            assert len(re.split(r"(?<!\\)\|", row)[2].strip()) > 3, row
    assert "cocomix demo [OPTIONS] [DIR]" in page
    assert "cocomix compare [OPTIONS] RUN..." in page
    assert "| `-o, --output <path>` | Folder to write;" in page


@pytest.mark.usefixtures("hooks")
def test_every_field_is_described() -> None:
    reference = hook("configuration_reference")
    package = reference.griffe.load("cocomix")
    for root in (RunConfig, SweepPlan):
        for model in reference.models_of(root):
            assert set(reference.field_texts(model, package)) == set(model.model_fields), model
    parts = [reference.Part("A recipe", "", RunConfig), reference.Part("A plan", "", SweepPlan)]
    page = reference.configuration_page(parts, {"learning_rate": 6e-4})
    assert "| `concept_topk` | integer, ≥ 1 | `32` | K_concept, how many" in page
    assert "| `learning_rate` | `0.0006` |" in page
    for anchor in re.findall(r"\]\(#([\w-]+)\)", page):
        assert anchor in [re.sub(r"\s+", "-", title.lower()) for title in re.findall(r"^#+ (.*)$", page, re.MULTILINE)]


@pytest.mark.usefixtures("hooks")
def test_every_room_has_a_page_of_its_public_names() -> None:
    api = hook("api_reference")
    rooms = {f"cocomix.{path.parent.name}" for path in Path(cocomix.__file__).parent.glob("*/__init__.py")}
    assert set(api.ROOMS) == (rooms | {"cocomix"}) - {"cocomix.cli"}
    for room, page in api.api_pages().items():
        names = [name for name in importlib.import_module(room).__all__ if not name.startswith("__")]
        assert re.findall(r"^::: (.*)$", page, re.MULTILINE) == [f"{room}.{name}" for name in names]


def test_the_picture_of_the_rooms_is_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "figures"))
    drawn = importlib.import_module("rooms")
    source = Path(cocomix.__file__).parent
    assert {room for row in drawn.layers() for room in row} == {
        path.parent.name for path in source.glob("*/__init__.py")
    }
    assert len(drawn.WAY) <= 12
    assert [file for file, _ in drawn.WAY if not (source / file).is_file()] == []
    assert (DOCS / "figures" / "architecture.svg").read_text(encoding="utf-8") == drawn.picture()
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert all(f"**{room}**" in text for row in drawn.layers() for room in row)
    for file in re.findall(r"`(\w+/[\w/]+\.py)`", text):
        assert (source / file).is_file() or (ROOT / file).is_file() or re.search("KIND|VERB|FORM", file), file


# ---- what is taken from elsewhere -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("hooks")
def test_links_out_of_the_documentation_lead_into_the_site(tmp_path: Path) -> None:
    for name, text in {
        "docs/page.md": "",
        "docs/figures/draw.py": "print()",
        "results/README.md": "[back](../docs/page.md#top) [raw](raw) ![curve](curve.png)",
        "results/curve.png": "",
        "results/raw/log.txt": "one line",
        "recipes/a.yaml": "tokens: 1",
        "recipes/.hidden": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    text = "[a](../results) [b](../recipes/a.yaml) [c](../recipes) [d](figures/draw.py) [e](page.md) [f](https://x.org)"
    taken = hook("repository").Taken(tmp_path)
    taken.follow("index.md", text)
    assert taken.rewrite("index.md", text) == (
        "[a](repository/results/README.md) [b](repository/recipes/a.yaml.md) [c](repository/recipes/index.md) "
        "[d](repository/docs/figures/draw.py.md) [e](page.md) [f](https://x.org)"
    )
    assert taken.files["repository/recipes/a.yaml.md"] == "# recipes/a.yaml\n\n~~~~yaml\ntokens: 1\n~~~~\n"
    assert taken.files["repository/recipes/index.md"] == "# recipes\n\n- [a.yaml](a.yaml)\n"
    assert taken.files["repository/results/curve.png"] == tmp_path / "results" / "curve.png"
    assert "one line" in str(taken.files["repository/results/raw/log.txt.md"])
    readme = str(taken.files["repository/results/README.md"])
    assert taken.rewrite("repository/results/README.md", readme) == (
        "[back](../../page.md#top) [raw](raw/index.md) ![curve](curve.png)"
    )


@pytest.mark.usefixtures("hooks")
def test_tables_of_benchmarks(tmp_path: Path) -> None:
    ratio = {"case": "69M", "quantity": "ours ÷ theirs", "median": 1.71, "minimum": 1.6, "maximum": 2.0}
    section = {
        "ratios": [{**ratio, "by_flops": 1.64}, {**ratio, "by_flops": None}],
        "rounds": 5,
        "date": "2026-01-01",
        "command": "bench",
        "machine": {"processor": "CPU", "cores": 2},
    }
    (tmp_path / "cpu.json").write_text(json.dumps({"sections": {"steps": section}}), encoding="utf-8")
    table = hook("measured").with_tables("before\n\n<!-- benchmark: cpu steps -->", tmp_path)
    assert "| 69M | ours ÷ theirs | **1.71** | 1.60 – 2.00 | 1.64 |" in table
    assert "| 69M | ours ÷ theirs | **1.71** | 1.60 – 2.00 |  |" in table
    assert table.endswith("*2026-01-01, 5 rounds, CPU, 2 cores; `bench`.*")


def test_measured_tables_are_there() -> None:
    measured = json.loads((ROOT / "results" / "benchmarks" / "cpu.json").read_text(encoding="utf-8"))
    marks = re.findall(r"<!-- benchmark: (\w+) (\w+) -->", (DOCS / "results.md").read_text(encoding="utf-8"))
    assert marks
    assert all(kind == "cpu" and section in measured["sections"] for kind, section in marks)


# ---- what is named -------------------------------------------------------------------------------------------------

NAMED = re.compile(
    r"(?<![\w/])(?:tests|recipes|results|benchmarks|examples|src|docs|\.ci)/[\w./-]+\w|(?<![\w/])cocomix(?:\.\w+)+"
)
ENTRY_POINTS = ("cocomix.labellers", "cocomix.objectives")
SOURCES = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *Path(cocomix.__file__).parent.rglob("*.py")]


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        text = re.sub(r"^```.*?^```$|\n {4}[^\n]*", "", text, flags=re.MULTILINE | re.DOTALL)
    for name in NAMED.findall(text):
        if not name.startswith("cocomix."):
            assert (ROOT / name).exists(), name
        elif page.suffix == ".md" and name not in ENTRY_POINTS:
            resolve(name)


def resolve(name: str) -> None:
    """Import the longest module of a dotted name, and look up the rest."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return


# ---- what is quoted -------------------------------------------------------------------------------------------------


@cache
def sentences_of_the_source() -> str:
    """Every text in the source, with … for what is filled in."""
    texts = []
    for path in Path(cocomix.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


QUOTED = re.findall(r"^> (.*)$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("sentence", QUOTED)
def test_quoted_errors_exist(sentence: str) -> None:
    source = sentences_of_the_source()
    for part in re.split(r"…", sentence):
        words = part.strip(" .,;:()")
        assert words in source, f"no message says {words!r}"


def test_figures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "figures"))
    importlib.import_module("draw").main(tmp_path)
    shown = re.findall(r"!\[.*?\]\(figures/(\w+\.svg)\)", (DOCS / "concepts.md").read_text(encoding="utf-8"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shown)
    assert all((DOCS / "figures" / name).is_file() for name in shown)
