"""A concept loss that ends early: its labels cover only the blocks that are trained on until then."""

import json
from pathlib import Path
from typing import Any

import pytest

from cocomix.artifacts import partial_path, read_json
from cocomix.data import Tokens
from cocomix.evaluation import Run, compare
from cocomix.evaluation.teacher_flops import teacher_flops
from cocomix.labelling import Job, LabelBlocks, Labels, label_data
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import estimate, train
from cocomix.training.online import OnlineLabels
from tests.command_line import Cli
from tests.many.launches import launched
from tests.training.test_resume import Killed, assert_same_run, kill_at, rows
from tests.workshop import BLOCK, Workshop

# One pass over 222 blocks, 8 a step, is 28 steps; a quarter of them are 7, which see 56 blocks.
ALL, STEPS, UNTIL, FIRST = 222, 28, 7, 56
SETTINGS: dict[str, Any] = {
    "name": "run",
    "tokens": None,
    "first_blocks": FIRST,
    "model": {"concept_loss_weight": {"shape": "linear", "until": 0.25}},
    "training": {"logging_steps": 1, "save_steps": 4, "eval_steps": 5},
}


@pytest.fixture(scope="module")
def labels(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of the first 56 training blocks, in shards of 16 of the files' 40."""
    folder = tmp_path_factory.mktemp("few") / "labels"
    config = Labels.open(workshop.labels).manifest.config()
    label_data(workshop.data, config, folder, blocks=FIRST, job=Job(batch_tokens=16 * BLOCK, unit_tokens=16 * BLOCK))
    return folder


@pytest.fixture(scope="module")
def whole(workshop: Workshop, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = workshop.recipe("cocomix", labels=str(labels), **SETTINGS)
    return train(recipe, tmp_path_factory.mktemp("few") / "run")


def online(workshop: Workshop) -> dict[str, Any]:
    """The same labels, made while training."""
    return {"path": None, **Labels.open(workshop.labels).manifest.labels}


def test_labels_of_the_first_blocks(workshop: Workshop, labels: Path) -> None:
    few, all_of_them = Labels.open(labels), Labels.open(workshop.labels)
    assert not few.verify().broken
    assert len(few.split("train")) == few.manifest.blocks("train") == FIRST
    assert len(few.split("validation")) == len(all_of_them.split("validation"))
    for index in (0, 39, 40, FIRST - 1):  # token files have 40 blocks
        assert few.split("train")[index]["concept_labels"].equal(all_of_them.split("train")[index]["concept_labels"])
    assert {file.name for file in few.manifest.splits["train"]} == {"train-00000", "train-00001"}


def test_the_command_line(workshop: Workshop, cli: Cli, tmp_path: Path) -> None:
    command = ["label", workshop.data, "--teacher", workshop.teacher, "--dictionary", workshop.dictionary]
    for _ in range(2):  # the second time it is recognised
        cli(*command, "--blocks", 41, "--shard", "0/1", "--output", tmp_path / "labels")
    assert Labels.open(tmp_path / "labels").manifest.blocks("train") == 41
    cli(*command, "--blocks", 42, "--output", tmp_path / "labels", status=1)
    assert str(ALL + 1) in cli(*command, "--blocks", ALL + 1, "--output", tmp_path / "more", status=1).err
    assert not (tmp_path / "more").exists()


def test_it_trains_to_the_end(workshop: Workshop, labels: Path, whole: Path, tmp_path: Path) -> None:
    training = [row for row in rows(whole) if "loss" in row]
    assert len(training) == STEPS
    weights = [row.get("concept_loss_weight") for row in training]
    assert weights == [pytest.approx(0.1 * (1 - step / UNTIL)) for step in range(UNTIL)] + [None] * (STEPS - UNTIL)
    assert [("concept_loss" in row) for row in training] == [step < UNTIL for step in range(STEPS)]
    for row in training:
        auxiliary = row["concept_loss_weight"] * row["concept_loss"] if "concept_loss" in row else 0.0
        assert row["loss"] == pytest.approx(row["ntp_loss"] + auxiliary)
    manifest = Run.open(whole).manifest
    assert (manifest.labels_until, manifest.steps, manifest.data.first_blocks) == (UNTIL, STEPS, FIRST)
    assert manifest.labels is not None
    assert manifest.labels.tokens == (FIRST * BLOCK,)
    assert manifest.weights["cocomix"] == {"shape": "linear", "value": 0.1, "until": 0.25}
    # With labels of all blocks, in the same order, it is the same run.
    twin = train(workshop.recipe("cocomix", **SETTINGS), tmp_path / "twin")
    assert rows(twin) == rows(whole)


def test_the_flops_show_the_saving(workshop: Workshop, labels: Path, whole: Path, tmp_path: Path) -> None:
    tokens = Tokens.open(workshop.data).manifest.splits["train"].blocks * BLOCK
    constant = train(workshop.recipe("cocomix", **{**SETTINGS, "name": "all", "model": {}}), tmp_path / "all")
    unread = train(workshop.recipe("cocomix", **SETTINGS), tmp_path / "unread")  # of labels of all blocks
    assert teacher_flops(Run.open(unread)) == teacher_flops(Run.open(whole))
    few, all_of_them = teacher_flops(Run.open(whole)), teacher_flops(Run.open(constant))
    assert few is not None
    assert all_of_them is not None
    assert few / all_of_them == pytest.approx(FIRST * BLOCK / tokens)
    online = {"path": None, "kind": "attribution"}
    online |= {
        "teacher": {"model": str(workshop.teacher), "layer": 1},
        "dictionary": {"path": str(workshop.dictionary)},
    }
    paid = train(workshop.recipe("cocomix", **{**SETTINGS, "labels": online}), tmp_path / "online")
    manifest = Run.open(paid).manifest
    per_token = Labels.open(workshop.labels).manifest.flops_per_token
    assert manifest.teacher_flops_per_token == pytest.approx(per_token * FIRST * BLOCK / tokens)
    assert teacher_flops(Run.open(paid)) == pytest.approx(few)
    assert [row["loss"] for row in rows(paid) if "loss" in row] == pytest.approx(
        [row["loss"] for row in rows(whole) if "loss" in row], rel=1e-4
    )


@pytest.mark.parametrize("step", [5, 9])  # from checkpoint 4, before the switch, and 8, after it
def test_resumed_equals_uninterrupted(
    workshop: Workshop, labels: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    recipe = workshop.recipe("cocomix", labels=str(labels), **SETTINGS)
    with monkeypatch.context() as patched:
        kill_at(patched, step + 1)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["interleave", "none"])  # with the second, the predictor is idle after the switch
def test_two_processes_are_one(workshop: Workshop, labels: Path, tmp_path: Path, mixing: str) -> None:
    training = {**SETTINGS["training"], "optim": "sgd"}
    changes = {**SETTINGS, "model": {**SETTINGS["model"], "mixing": mixing}, "training": training}
    one = train(workshop.recipe("cocomix", labels=str(labels), **changes), tmp_path / "one")
    training |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 2}
    recipe = workshop.recipe_file(tmp_path / "two.yaml", "cocomix", labels=str(labels), **changes)
    launched(["train", recipe, "--output", tmp_path / "two"], 2)
    for row, twin in zip(rows(tmp_path / "two"), rows(one), strict=True):
        assert row == pytest.approx(twin, rel=1e-4)


def test_no_label_is_read_or_made_afterwards(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = LabelBlocks.__getitem__

    def watched(self: LabelBlocks, index: int) -> Any:
        if len(self) == ALL:
            read.append(index)
        return original(self, index)

    monkeypatch.setattr(LabelBlocks, "__getitem__", watched)
    train(workshop.recipe("cocomix", **SETTINGS), tmp_path / "stored")
    assert sorted(read) == list(range(FIRST))
    made: list[int] = []
    label = OnlineLabels.label

    def counted(self: OnlineLabels, input_ids: Any, *args: Any) -> Any:
        made.append(len(input_ids))
        return label(self, input_ids, *args)

    monkeypatch.setattr(OnlineLabels, "label", counted)
    online = {"kind": "attribution", "path": None}
    online |= {
        "teacher": {"model": str(workshop.teacher), "layer": 1},
        "dictionary": {"path": str(workshop.dictionary)},
    }
    changes = {**SETTINGS, "labels": online, "training": {**SETTINGS["training"], "gradient_accumulation_steps": 2}}
    changes["training"]["per_device_train_batch_size"] = 4
    train(workshop.recipe("cocomix", **changes), tmp_path / "online")
    assert sum(made) == FIRST + 11  # and the validation blocks, once


def test_a_missing_label_is_refused_before_training(workshop: Workshop, labels: Path, tmp_path: Path) -> None:
    few = {**SETTINGS, "labels": str(labels)}
    for changes in (
        {"first_blocks": None},
        {"first_blocks": FIRST + 1},
        {"model": {"concept_loss_weight": {"shape": "linear", "until": 0.3}}},
        {"model": {"concept_loss_weight": 0.1}},
        {"tokens": 240 * BLOCK, "model": {"concept_loss_weight": {"shape": "stop", "until": 0.3}}},
    ):
        with pytest.raises(CoCoMixError, match="first_blocks") as refused:
            train(workshop.recipe("cocomix", **{**few, **changes}), tmp_path / "run")
        assert str(labels) in str(refused.value)
        assert not partial_path(tmp_path / "run").exists()
    with pytest.raises(CoCoMixError, match=f"first_blocks is {ALL + 1}"):
        train(workshop.recipe("cocomix", **{**few, "first_blocks": ALL + 1}), tmp_path / "run")


def test_the_plan_says_how_many_blocks_to_label(workshop: Workshop) -> None:
    said = estimate(workshop.recipe("cocomix", **SETTINGS), seconds=0)
    assert (said["labels until step"], said["blocks to label, with first_blocks"]) == (UNTIL, FIRST)


def test_runs_in_another_order_are_not_compared(workshop: Workshop, whole: Path, tmp_path: Path) -> None:
    short = {"tokens": None, "training": SETTINGS["training"]}
    plain = train(workshop.recipe("ntp", name="plain", **short), tmp_path / "plain")
    with pytest.raises(CoCoMixError, match="first_blocks"):
        compare([Run.open(plain), Run.open(whole)])
    same = train(workshop.recipe("ntp", name="plain", first_blocks=FIRST, **short), tmp_path / "same")
    assert len(compare([Run.open(same), Run.open(whole)]).arms) == 2
    assert read_json(same / "manifest.json")["labels_until"] is None


def test_distillation_ends_too(workshop: Workshop, tmp_path: Path) -> None:
    weight = {"shape": "stop", "value": 0.5, "until": 0.25}
    changes = {"distillation": {"weight": weight}, "teacher": {"model": str(workshop.teacher), "layer": 1}}
    run = train(workshop.recipe("ntp", training={"logging_steps": 1}, **changes), tmp_path / "run")
    training = [row for row in rows(run) if "loss" in row]
    assert [row.get("kd_loss_weight") for row in training] == [0.5] * 3 + [None] * 9
    manifest = json.loads((run / "manifest.json").read_text())
    (paid,) = manifest["extra_flops"].values()
    assert paid["tokens"] * 4 == manifest["tokens"]
    assert manifest["arm"] == "ntp, kd, λ_KD 0.5 until 25%"
