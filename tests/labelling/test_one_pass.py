"""Labels and probabilities of one pass of the teacher: the bytes of two passes, in half the forward passes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cocomix.artifacts import AlreadyExists, partial_path
from cocomix.concepts import FrozenDecoder, TeacherConfig, labeller_config
from cocomix.labelling import (
    Inline,
    Job,
    Labels,
    Processes,
    SlurmArray,
    TeacherProbabilities,
    distill_data,
    label_and_distill,
    label_data,
    make_labels,
    map_shards,
)
from cocomix.labelling.block_functions import DistillFunction
from cocomix.runtime.errors import CoCoMixError
from tests.command_line import Cli
from tests.workshop import BLOCK, Workshop, prepare_toy

KEPT = 4
SHARD = 32 * BLOCK  # tokens: some shards of every token file, one batch each


@pytest.fixture(scope="module")
def other(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with another tokenizer than the teacher's."""
    return prepare_toy(workshop.corpus, tmp_path_factory.mktemp("other") / "data", vocab_size=280).path


def config(workshop: Workshop, **settings: Any) -> Any:
    values = {
        "kind": "contextual",
        "teacher": {"model": str(workshop.teacher), "layer": 1},
        "dictionary": {"path": str(workshop.dictionary)},
        **({"sample_tokens": 1000} if settings.get("kind", "contextual") == "contextual" else {}),
    }
    return labeller_config({**values, **settings})


def job(executor: Any = None) -> Job:
    return Job(batch_tokens=SHARD, unit_tokens=SHARD, executor=executor or Inline())


def separately(workshop: Workshop, data: Path, folder: Path, **settings: Any) -> tuple[Labels, TeacherProbabilities]:
    made = config(workshop, **settings)
    source = TeacherConfig(model=str(workshop.teacher), layer=1)
    labels = label_data(data, made, folder / "labels", force=True, job=job())
    targets = distill_data(data, source, folder / "probabilities", top_k=KEPT, dtype=made.dtype, job=job())
    assert labels is not None
    assert targets is not None
    return labels, targets


def together(workshop: Workshop, data: Path, folder: Path, executor: Any = None, **settings: Any) -> Any:
    how: dict[str, Any] = {"force": True, "top_k": KEPT, "job": job(executor)}
    return label_and_distill(data, config(workshop, **settings), folder / "labels", folder / "probabilities", **how)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.glob("*/*"))
        if path.suffix in (".npy", ".safetensors")
    }


@pytest.fixture
def passes(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every batch that a teacher reads."""
    assert workshop.dictionary.exists()  # it is fitted at first, which takes passes, too
    read: list[int] = []
    original = FrozenDecoder._inputs

    def counted(self: Any, input_ids: Any, attention_mask: Any) -> Any:
        read.append(len(input_ids))
        return original(self, input_ids, attention_mask)

    monkeypatch.setattr(FrozenDecoder, "_inputs", counted)
    return read


@pytest.mark.parametrize("tokenizer", ["own", "other"])
@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "activation"},
        {"kind": "activation", "dtype": "bfloat16"},
        {"kind": "random"},
        {"kind": "contextual"},
        {"kind": "attribution"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_both_folders_hold_the_bytes_of_two_passes(
    workshop: Workshop, other: Path, tmp_path: Path, passes: list[int], tokenizer: str, settings: dict[str, str]
) -> None:
    data = workshop.data if tokenizer == "own" else other
    expected = separately(workshop, data, tmp_path / "two", **settings)
    two = len(passes)
    passes.clear()
    found = together(workshop, data, tmp_path / "one", **settings)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [made.fingerprint for made in found] == [made.fingerprint for made in expected]
    batches = sum(
        -(-min(SHARD // BLOCK, left) // (SHARD // BLOCK))
        for files in found[0].manifest.splits.values()
        for file in files
        for left in range(file.blocks, 0, -SHARD // BLOCK)
    )
    if settings["kind"] == "attribution":  # it needs the gradient of a pass of its own
        assert (len(passes), found[0].manifest.shared_pass) == (two, None)
    else:
        assert len(passes) == two - batches
        assert found[0].manifest.shared_pass == found[1].manifest.shared_pass is not None
    assert [made.manifest.flops_per_token for made in found] == [made.manifest.flops_per_token for made in expected]


def test_an_interrupted_pass_goes_on_and_a_finished_one_loads_nothing(
    workshop: Workshop, tmp_path: Path, interrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    separately(workshop, workshop.data, tmp_path / "two")
    done = interrupted(2)
    with pytest.raises(KeyboardInterrupt) as stopped:
        together(workshop, workshop.data, tmp_path / "one")
    for name in ("labels", "probabilities"):
        assert any(str(partial_path(tmp_path / "one" / name)) in note for note in stopped.value.__notes__)
    written = map_shards._write_part

    def killed(path: Path, arrays: Any) -> None:  # between the parts of a shard
        if partial_path(tmp_path / "one" / "probabilities") in path.parents:
            raise SystemExit(137)
        written(path, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(map_shards, "_write_part", killed)
        with pytest.raises(SystemExit):
            together(workshop, workshop.data, tmp_path / "one")
    done.clear()
    labels, targets = together(workshop, workshop.data, tmp_path / "one")
    everything = sum(file.blocks for files in labels.manifest.splits.values() for file in files)
    assert sum(done) == everything - 40  # the first file, of two shards
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert labels.manifest.shared_pass == targets.manifest.shared_pass is not None
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"labels", "probabilities"}

    def load(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(make_labels, "open_labeller", load)
    monkeypatch.setattr(DistillFunction, "load", load)
    again = together(workshop, workshop.data, tmp_path / "one")
    assert [made.fingerprint for made in again] == [labels.fingerprint, targets.fingerprint]
    with pytest.raises(AlreadyExists, match="k"):
        together(workshop, workshop.data, tmp_path / "one", k=2)


def test_what_is_there_or_was_begun_alone_is_not_made_again(
    workshop: Workshop, tmp_path: Path, interrupted: Any, passes: list[int]
) -> None:
    labels, targets = separately(workshop, workshop.data, tmp_path / "two")
    shutil.copytree(labels.path, tmp_path / "one" / "labels")
    passes.clear()
    found = together(workshop, workshop.data, tmp_path / "one")
    assert found[1].fingerprint == targets.fingerprint
    assert [made.manifest.shared_pass for made in found] == [None, None]

    interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        label_data(workshop.data, config(workshop), tmp_path / "half" / "labels", force=True, job=job())
    found = together(workshop, workshop.data, tmp_path / "half")
    assert contents(tmp_path / "half") == contents(tmp_path / "two")
    assert [made.manifest.shared_pass for made in found] == [None, None]


def test_a_folder_that_is_gone_on_with_alone_was_not_shared(
    workshop: Workshop, tmp_path: Path, interrupted: Any
) -> None:
    interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        together(workshop, workshop.data, tmp_path)
    labels = label_data(workshop.data, config(workshop), tmp_path / "labels", force=True, job=job())
    assert labels is not None
    assert labels.manifest.shared_pass is None


def test_parts_share_passes_too_and_the_last_finishes_both(workshop: Workshop, tmp_path: Path) -> None:
    separately(workshop, workshop.data, tmp_path / "two")
    assert together(workshop, workshop.data, tmp_path / "one", SlurmArray(1, 2, Inline())) == (None, None)
    labels, targets = together(workshop, workshop.data, tmp_path / "one", SlurmArray(0, 2, Inline()))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert labels.manifest.shared_pass == targets.manifest.shared_pass is not None
    late = together(workshop, workshop.data, tmp_path / "one", SlurmArray(1, 2, Inline()))
    assert [made.fingerprint for made in late] == [labels.fingerprint, targets.fingerprint]


@pytest.mark.slow
def test_processes_write_the_bytes_of_one_process(workshop: Workshop, other: Path, tmp_path: Path) -> None:
    separately(workshop, other, tmp_path / "two")
    together(workshop, other, tmp_path / "one", Processes(2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_labels_without_a_teacher_float16_and_one_folder_for_both_are_refused(
    workshop: Workshop, tmp_path: Path
) -> None:
    with pytest.raises(CoCoMixError, match="future_words"):
        label_and_distill(
            workshop.data, labeller_config({"kind": "future_words"}), tmp_path / "labels", tmp_path / "probabilities"
        )
    with pytest.raises(CoCoMixError, match="float16"):
        together(workshop, workshop.data, tmp_path, dtype="float16")
    with pytest.raises(CoCoMixError, match=str(tmp_path / "labels")):
        label_and_distill(workshop.data, config(workshop), tmp_path / "labels", tmp_path / "labels")
    assert not list(tmp_path.iterdir())


def test_the_command(workshop: Workshop, tmp_path: Path, cli: Cli) -> None:
    source = ("--teacher", workshop.teacher, "--dictionary", workshop.dictionary, "--kind", "activation")
    labels, targets = tmp_path / "labels", tmp_path / "probabilities"
    command = ("label", workshop.data, *source, "-o", labels)
    cli.refuses(*command, "--top-k", KEPT, says="--probabilities")
    both = (*command, "--probabilities", targets, "--top-k", KEPT)
    found = json.loads(cli(*both, "--shard", "0/2", "--unit-tokens", 1, "--json").out)
    assert found == {"finished": False}
    found = json.loads(cli(*both, "--shard", "1/2", "--unit-tokens", 1, "--json").out)
    assert found["fingerprint"] == Labels.open(labels).fingerprint
    assert found["probabilities"]["fingerprint"] == TeacherProbabilities.open(targets).fingerprint
    assert found["probabilities"]["shared_pass"] == found["shared_pass"] is not None
    for again in (both, command, (*both, "--finish")):
        assert "nothing to do" in cli(*again).err
    distilled = ("distill", workshop.data, "--teacher", workshop.teacher, "--top-k", KEPT, "--dtype", "float32")
    assert "nothing to do" in cli(*distilled, "-o", targets).err
    cli.refuses(*both[:-1], KEPT + 1, says="top_k")
