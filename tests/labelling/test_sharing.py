"""Parts of one data set, labelled by jobs that share a folder, give the bytes of one job."""

import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cocomix.artifacts.output import PLAN, partial_path, read_json, write_once
from cocomix.labelling import ShardPart, finish_labels, shards, sharing
from cocomix.labelling.labels import read_label_manifest
from cocomix.runtime.errors import CoCoMixError

from .conftest import TokenShard
from .test_workers import BLOCK, TinySource, contents, label


@pytest.fixture
def splits():
    return {
        "train": [TokenShard(f"train/{index:05d}", 3, index, BLOCK) for index in range(5)],
        "validation": [TokenShard("validation/00000", 2, 9, BLOCK)],
    }


@pytest.fixture
def one(splits, tmp_path):
    return label(splits, tmp_path / "one", workers=1)


def label_part(splits, output, text, **options):
    return label(splits, output, workers=1, part=ShardPart.parse(text), **options)


def test_parts_in_any_order_make_the_folder_of_one_job_and_the_last_completes_it(splits, one, tmp_path):
    output = tmp_path / "labels"
    assert label_part(splits, output, "2/3") is None
    assert label_part(splits, output, "0/3") is None
    assert set(contents(partial_path(output))) == {f"train/0000{number}.arrow" for number in (0, 2, 3)} | {
        "validation/00000.arrow"
    }
    assert label_part(splits, output, "2/3") is None  # once more: nothing is left to do
    manifest = label_part(splits, output, "1/3")
    assert manifest == read_label_manifest(output)
    assert without_speed(manifest) == without_speed(one)
    assert contents(output) == contents(tmp_path / "one")
    assert sorted(path.name for path in output.iterdir()) == ["manifest.json", "train", "validation"]
    assert not partial_path(output).exists()
    assert label_part(splits, output, "0/3") == manifest  # a job that comes late
    with pytest.raises(CoCoMixError, match="labels was made with another data_fingerprint; remove it"):
        label_part(splits, output, "0/3", data_fingerprint="e" * 64)


def test_jobs_at_the_same_time_on_the_same_shards_do_not_clash(splits, one, tmp_path):
    output, gate = tmp_path / "labels", threading.Barrier(4)
    teachers = [TinySource().load() for _ in range(4)]

    def job(text, teacher):
        gate.wait()
        return label_part(splits, output, text, teacher=teacher)

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(job, ["0/1", "0/1", "0/2", "1/2"], teachers))
    assert any(outcome is not None for outcome in outcomes)
    assert contents(output) == contents(tmp_path / "one")
    assert not partial_path(output).exists()


def test_a_job_that_others_overtook_gives_their_folder(splits, one, tmp_path, monkeypatch):
    output, original = tmp_path / "labels", shards.write_columns

    def overtaken(path, columns):
        monkeypatch.setattr(shards, "write_columns", original)
        shutil.copytree(tmp_path / "one", output)
        shutil.rmtree(partial_path(output))
        original(path, columns)

    monkeypatch.setattr(shards, "write_columns", overtaken)
    assert label_part(splits, output, "0/2") == one
    assert not partial_path(output).exists()


def test_finishing_after_the_completing_job_was_killed(splits, one, tmp_path, monkeypatch):
    output = tmp_path / "labels"
    with pytest.raises(CoCoMixError, match=r"nothing to finish: .*labels\.partial holds no labels"):
        finish_labels(output)
    label_part(splits, output, "0/2")
    with pytest.raises(CoCoMixError, match=r"3 of 6 shards in .* are not labelled \(train/00001, train/00003, valid"):
        finish_labels(output)
    assert write_once(partial_path(output) / sharing.FINISHING, {"part": "0/2"})  # and it is killed
    assert label_part(splits, output, "1/2") is None
    damaged = partial_path(output) / "train" / "00001.arrow"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    with pytest.raises(CoCoMixError, match=r"1 of 6 shards in .* are not labelled \(train/00001\)"):
        finish_labels(output)
    damaged.write_bytes(whole)
    manifest = finish_labels(output)
    assert without_speed(manifest) == without_speed(one)
    assert finish_labels(output) == manifest
    assert contents(output) == contents(tmp_path / "one")


@pytest.mark.parametrize("again", ["label", "finish"])
def test_a_job_killed_between_the_manifest_and_the_rename(splits, one, tmp_path, monkeypatch, again):
    output = tmp_path / "labels"

    def killed(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cocomix.artifacts.output.flush_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            label(splits, output, workers=1)
    assert not output.exists()
    manifest = label(splits, output, workers=1) if again == "label" else finish_labels(output)
    assert without_speed(manifest) == without_speed(one)
    assert contents(output) == contents(tmp_path / "one")
    assert not partial_path(output).exists()


def test_what_cannot_be_finished_or_begun(splits, tmp_path):
    output = tmp_path / "labels"
    label_part(splits, output, "0/2")
    with pytest.raises(CoCoMixError, match="begun with another block_size"):
        label_part(splits, output, "1/2", block_size=BLOCK + 1)
    plan = partial_path(output) / PLAN
    recorded = read_json(plan)
    plan.write_text("{}")
    with pytest.raises(CoCoMixError, match="was not begun by `cocomix label`, or long ago"):
        finish_labels(output)
    del recorded["made_with"]["teacher"]
    plan.unlink()
    write_once(plan, recorded)
    with pytest.raises(CoCoMixError, match="a record beside it is damaged"):
        label_part(splits, output, "1/2")
    assert not output.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1", "not of the form i/n"),
        ("a/b", "not of the form i/n"),
        ("-1/2", "not of the form i/n"),
        ("2/2", "the last of 2 is 1/2"),
        ("0/0", "n is 0"),
    ],
)
def test_parts_that_do_not_exist(text, says):
    with pytest.raises(CoCoMixError, match=says):
        ShardPart.parse(text)


def test_parts_are_disjoint_and_together_everything():
    shards = list(range(11))
    for count in range(1, 14):
        parts = [ShardPart(index, count).of(shards) for index in range(count)]
        assert sorted(shard for part in parts for shard in part) == shards
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def without_speed(manifest):
    values = manifest.model_dump()
    del values["statistics"]["tokens_per_second"]
    return values


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "7"}, "3/8"),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "5", "PARTS": "8"}, "3/8"),
        ({}, None),
    ],
)
def test_a_task_of_the_slurm_script(environment, part, tmp_path):
    command = tmp_path / "cocomix"
    command.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    script = Path(__file__).parents[2] / "recipes" / "launch" / "label_slurm.sh"
    done = subprocess.run(
        ["bash", script, "data", "--output", "my labels"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if part is None:
        assert done.returncode != 0
        assert "start this as an array" in done.stderr
    else:
        assert done.stdout.splitlines() == ["label", "data", "--output", "my labels", "--shard", part]
