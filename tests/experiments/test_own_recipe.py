"""`cocomix init` for one's own corpus: four answers become recipes that run as they stand."""

import io
import json
import shutil
from pathlib import Path

import pytest

from cocomix.experiments.own_recipe import HARDWARE, SIZES, Corpus, OwnRecipe, Teacher
from cocomix.experiments.way import steps_of
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import plan_run
from cocomix.training.recipe import load_recipe
from tests.command_line import Cli
from tests.workshop import BLOCK, CONCEPTS, Workshop

ANSWERS = ("--teacher", "train", "--size", "tiny", "--hardware", "cpu")


@pytest.fixture
def here(tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(workshop.corpus, tmp_path / "my texts")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize(("size", "paper"), [*((size, False) for size in SIZES), ("tiny", True)])
def test_every_size_is_a_recipe_with_a_matched_baseline(size: str, paper: bool, hardware: str, tmp_path: Path) -> None:
    corpus, teacher = Corpus("somebody/texts", 50_000_000), Teacher("some/model", 12, 50_257, 1024)
    written = OwnRecipe("mine", corpus, teacher, size, hardware, paper, distill=not paper).write(tmp_path)
    assert [path.name for path in written] == ["mine.yaml", "mine_ntp.yaml"]
    plans = [plan_run(load_recipe(path)) for path in written]
    recipe, baseline = map(load_recipe, written)
    small = size in ("tiny", "mini", "small") and not paper
    if small:
        costs = [plan.accounting.training_flops_per_token for plan in plans]
    else:
        costs = [plan.accounting.active_parameters for plan in plans]
    assert costs[1] == pytest.approx(costs[0], rel=0.05)
    form = ("add", "contextual", "muon") if small else ("interleave", "attribution", "adamw_torch")
    assert recipe.labels is not None
    assert recipe.labels.labeller is not None
    assert (recipe.model.mixing, recipe.labels.labeller.kind, recipe.training.get("optim", "adamw_torch")) == form
    assert (recipe.distillation is None, baseline.distillation) == (paper, recipe.distillation)
    assert ("--vocab-size" in written[0].read_text()) == (size in ("tiny", "mini"))  # GPT-2's vocabulary is most of it
    assert any("--probabilities" in step.command for step in steps_of(written[0])) == (not paper)
    assert recipe.labels is not None
    assert recipe.labels.teacher is not None
    assert recipe.labels.teacher.layer == 5  # the paper's of GPT-2
    assert recipe.batch_tokens is not None
    assert recipe.batch_tokens % (plans[0].block_size * recipe.training["per_device_train_batch_size"]) == 0


def test_a_student_may_have_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    corpus, teacher = Corpus("texts", 5_000_000), Teacher("some/model", 12, 50_257, 1024)
    own = OwnRecipe("mine", corpus, teacher, "tiny", "cpu", distill=True, vocab_size=300)
    recipe, _ = own.write(tmp_path)
    assert (
        own.prepare()
        == "cocomix prepare texts --vocab-size 300 --block-size 128 --validation-fraction 0.02 --output data/mine"
    )
    assert load_recipe(recipe).model.backbone["vocab_size"] == 300
    assert [step.command.split()[1] for step in steps_of(recipe)][:3] == ["sae", "label", "label"]
    prepared = Corpus("data", 5_000_000, 128, 4096)
    for where, entries in ((corpus, 100), (prepared, 300)):
        with pytest.raises(CoCoMixError, match="100" if where is corpus else "--vocab-size"):
            OwnRecipe("mine", where, teacher, "tiny", "cpu", vocab_size=entries)


@pytest.mark.parametrize("name", ["nothing.txt", "folder"])
def test_a_corpus_without_text_is_refused(cli: Cli, here: Path, name: str) -> None:
    """A file, and a folder of such files; none of them is taken for a large one."""
    file = here / name if name.endswith(".txt") else here / name / "nothing.txt"
    file.parent.mkdir(exist_ok=True)
    file.touch()
    assert f"{name} holds 0 bytes" in cli("init", "--corpus", name, *ANSWERS, status=1).err
    assert not (here / "recipes").exists()
    file.write_text("text " * 10)
    assert Corpus.find(name).tokens == 12


def test_flags_write_what_runs(cli: Cli, here: Path) -> None:
    done = cli("init", "--corpus", "my texts", *ANSWERS, "--json")
    assert json.loads(done.out)["recipe"] == "recipes/my_texts.yaml"
    share = "--validation-fraction 0.2"  # of a corpus this small
    prepare = f"cocomix prepare 'my texts' --vocab-size 4096 --block-size 128 {share} --output data/my_texts"
    assert done.err.splitlines()[-1] == f"next: {prepare}"
    text = (here / "recipes" / "my_texts.yaml").read_text()
    assert f"#   {prepare}\n#   cocomix train recipes/my_texts_teacher.yaml\n" in text
    assert len([line for line in text.splitlines() if not line.startswith("#")]) < 20
    before = sorted(here.rglob("*"))
    cli.refuses("init", "--corpus", "my texts", *ANSWERS, says="recipes/my_texts.yaml")
    assert sorted(here.rglob("*")) == before


def test_a_name_that_is_no_path_is_said_to_be_a_data_set(cli: Cli, here: Path) -> None:
    assert (here / "my texts").is_dir()
    assert "my_txts" in cli("init", "--corpus", "my_txts", *ANSWERS).err.splitlines()[0]
    assert "Hub" not in cli("init", "--corpus", "my texts", *ANSWERS).err


def test_prepared_and_labelled_data_leave_less_to_say(cli: Cli, workshop: Workshop, here: Path) -> None:
    shutil.copytree(workshop.data, here / "data")
    shutil.copytree(workshop.labels, here / "data" / "labels")
    asked = ("--corpus", "data", "--size", "tiny", "--hardware", "cpu")
    cli.refuses("init", *asked, "--teacher", "train", says="--teacher")
    done = cli("init", *asked, "--name", "mine")
    assert done.err.splitlines()[-1] == "next: cocomix train recipes/mine_ntp.yaml"
    recipe = load_recipe(here / "recipes" / "mine.yaml")
    assert (recipe.model.num_concepts, recipe.label_folders) == (CONCEPTS, (Path("data/labels"),))
    assert recipe.model.backbone["n_positions"] == BLOCK


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--corpus": "nowhere.txt"}, "nowhere.txt"),
        ({"--teacher": "./nowhere"}, "./nowhere"),
        ({"--size": "huge"}, "--size huge"),
        ({"--hardware": "abacus"}, "--hardware abacus"),
        ({"--name": "../up"}, "--name ../up"),
        ({"--name": "x", "--distill": ""}, "--distill"),
        ({"--size": None, "--teacher": None}, "--teacher, --size"),
    ],
)
def test_answers_that_cannot_be_used(cli: Cli, here: Path, changes: dict[str, str | None], says: str) -> None:
    given: dict[str, str | None] = {"--corpus": "my texts", **dict(zip(ANSWERS[::2], ANSWERS[1::2], strict=True))}
    asked = {option: value for option, value in {**given, **changes}.items() if value is not None}
    words = [word for option, value in asked.items() for word in (option, value) if word]
    cli.refuses("init", *words, says=says)
    assert [path.name for path in here.iterdir()] == ["my texts"]
    cli.refuses("init", "demo", "--size", "tiny", says="--size")


class Typed(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_is_asked_and_asked_again(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Typed("nowhere.txt\nmy texts\n./nothing\ntrain\nhuge\ntiny\ncpu\n"))
    done = cli("init", "--name", "mine")
    assert "nowhere.txt does not exist" in done.err
    assert "--size huge" in done.err
    assert done.out.strip() == ""
    assert (here / "recipes" / "mine_teacher.yaml").is_file()
