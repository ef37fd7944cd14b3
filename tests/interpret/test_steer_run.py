"""`cocomix steer-eval` on a toy run: what it writes, where it finds the teacher, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cocomix.data import Tokens
from cocomix.evaluation import Run
from cocomix.interpret.run_teacher import open_run_teacher
from cocomix.interpret.text_measures import MEASURES
from cocomix.runtime.errors import CoCoMixError
from tests.workshop import CONCEPTS

SMALL = ("--factors", "-5,1,10", "--prompts", 2, "--prompt-tokens", 4, "--new-tokens", 6)


def moved(run: Path, folder: Path, *, labels: str | None = None, **recipe: object) -> Path:
    """A copy of a run whose labels have gone, or whose recipe says more."""
    shutil.copytree(run, folder)
    if labels is not None:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["labels"]["path"] = labels
        (folder / "manifest.json").write_text(json.dumps(manifest))
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**values, **recipe}))
    return folder


@pytest.mark.usefixtures("progress_at_once")
def test_a_run_is_measured_from_its_folder_alone(workshop, cli, tmp_path):
    output = tmp_path / "steering"
    paper = ("--num-concepts", 3, "--choice", "frequent", "--turn", "scale")
    result = cli("steer-eval", workshop.cocomix_run, "-o", output, *paper, *SMALL, "--json")
    for phase in ("reading concepts: 0 of", "steering: 0 of"):
        assert phase in result.err
    values = json.loads(result.out)
    assert values == json.loads((output / "steering.json").read_text())
    assert values["run"] == "mixed"
    assert values["teacher"] == str(workshop.teacher)
    assert values["settings"]["factors"] == [-5.0, 1.0, 10.0]
    assert len(values["concepts"]) == 3
    for concept in values["concepts"]:
        assert concept["control"] != concept["concept"]
        assert concept["typical_tokens"]
        for arm in ("student", "control", "teacher"):
            assert concept[arm]["low"] <= concept[arm]["high"]
            assert 0 < concept[arm]["p_value"] <= 1
    scores = [concept["student"]["correlation"] for concept in values["concepts"]]
    assert scores == sorted(scores, reverse=True)
    rows = list(csv.DictReader((output / "steering.csv").open()))
    assert len(rows) == 3 * 3 * 3
    for name in MEASURES:
        mean = sum(float(row[name]) for row in rows if row["arm"] == "student" and row["factor"] == "10") / 3
        if name == "activation":
            assert values["curves"]["student"][name]["mean"][2] == pytest.approx(mean, rel=1e-4)
    page = (output / "steering.md").read_text()
    assert "3 concepts" in page
    assert page.count("\n| ") == 2 * (1 + 1 + 3) + len(MEASURES) * (1 + 1 + 3)
    following = values["following"]["concepts"]
    assert {concept["concept"] for concept in following} == {concept["concept"] for concept in values["concepts"]}
    assert all(
        concept["student"] != other["student"] for concept, other in zip(following, values["concepts"], strict=True)
    )
    assert Image.open(output / "steering.png").size[0] > 1000
    assert {path.name for path in output.iterdir()} == {f"steering.{kind}" for kind in ("json", "csv", "md", "png")}

    again = cli("steer-eval", workshop.cocomix_run, "-o", tmp_path / "again", *paper, *SMALL)
    assert json.loads((tmp_path / "again" / "steering.json").read_text()) == values
    assert "of 3 concepts steer" in again.out
    assert {"by", "what", "follows"} <= set(again.out.split())  # the table wraps it
    cli.refuses("steer-eval", workshop.cocomix_run, "-o", output, *SMALL, says="already exists")


def test_persistent_concepts_are_chosen_and_added_to(workshop, cli, tmp_path):
    output = tmp_path / "steering"
    options = ("--num-concepts", 3, "--factors", "-5,0,10")
    result = cli("steer-eval", workshop.cocomix_run, "-o", output, *SMALL, *options, "--json")
    values = json.loads(result.out)
    assert (values["settings"]["choice"], values["settings"]["turn"]) == ("persistent", "add")
    assert values["settings"]["concepts"] == [
        concept["concept"] for concept in sorted(values["concepts"], key=lambda concept: -concept["persistence"])
    ]
    assert all(concept["persistence"] > 0 and concept["typical_logit"] > 0 for concept in values["concepts"])
    assert all(0 < concept["mixed_share"] <= 0.5 for concept in values["concepts"])
    rows = list(csv.DictReader((output / "steering.csv").open()))
    neutral = {
        arm: [row["activation"] for row in rows if row["arm"] == arm and row["factor"] == "0"]
        for arm in ("student", "control")
    }
    assert neutral["student"] == neutral["control"]
    page = (output / "steering.md").read_text()
    assert "had its usual value added to it" in page
    assert f"{values['concepts'][0]['persistence']:.2f}" in page


def test_what_cannot_be_measured_is_said_and_leaves_nothing(workshop, cli, tmp_path):
    run, output = workshop.cocomix_run, tmp_path / "steering"
    for arguments, says in (
        ([workshop.ntp_run, *SMALL], "has no concepts"),
        ([run, *SMALL, "--concepts", CONCEPTS], f"concept {CONCEPTS} does not exist"),
        ([run, *SMALL, "--concepts", "3,x"], "--concepts 3,x must be numbers separated by commas"),
        ([run, *SMALL, "--factors", "1,2"], "at least three different numbers"),
        ([run, *SMALL, "--factors", "1,nan,3"], "between -100 and 100"),
        ([run, *SMALL, "--prompts", 10_000], "lower --prompts"),
        ([run, *SMALL, "--prompt-tokens", 17], "lower --prompt-tokens"),
        ([run, *SMALL, "--new-tokens", 100], "do not fit the context"),
        ([run, *SMALL, "--teacher", tmp_path / "none"], "does not exist"),
        ([run, *SMALL, "--dictionary", tmp_path / "none"], "there is no dictionary at"),
    ):
        cli.refuses("steer-eval", "-o", output, *arguments, says=says)
        assert not output.exists()
        assert not list(tmp_path.iterdir())


def test_teacher_and_dictionary_are_found_where_the_run_says(workshop, tmp_path):
    data = Tokens.open(workshop.data)
    source = {"teacher": {"model": str(workshop.teacher), "layer": 1}, "dictionary": {"path": str(workshop.dictionary)}}
    by_labels = open_run_teacher(Run.open(workshop.cocomix_run), data)
    by_recipe = open_run_teacher(Run.open(moved(workshop.cocomix_run, tmp_path / "a", labels="online", **source)), data)
    for found in (by_labels, by_recipe):
        assert found.teacher.layer == 1
        assert found.teacher.name == str(workshop.teacher)
        assert found.teacher.dictionary.fingerprint() == by_labels.teacher.dictionary.fingerprint()
        assert found.k == 4
    lost = Run.open(moved(workshop.cocomix_run, tmp_path / "b", labels=str(tmp_path / "gone")))
    with pytest.raises(CoCoMixError, match="--dictionary"):
        open_run_teacher(lost, data)
    with pytest.raises(CoCoMixError, match="label folder"):
        open_run_teacher(lost, data, teacher=str(workshop.teacher), dictionary=str(workshop.dictionary))


def test_a_dictionary_of_other_concepts_is_refused(workshop, tmp_path):
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(workshop.dictionary, tmp_path / "other")
    weights = next(other.glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights)
    (other / "manifest.json").unlink()
    with pytest.raises(CoCoMixError, match=r"labels"):
        open_run_teacher(Run.open(workshop.cocomix_run), Tokens.open(workshop.data), dictionary=str(other))
