"""How `label_data` and `distill_data` go on, share, finish, refuse; that their results depend on none of it."""

import pickle
import subprocess
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pytest
import torch
from torch import Tensor

from cocomix.artifacts import AlreadyExists, BeingWritten, MadeFromSomethingElse, NotAnArtifact, partial_path
from cocomix.concepts import ConceptLabels, LabellerConfig, TeacherConfig, Vocabulary, register_labeller
from cocomix.data import Tokens
from cocomix.labelling import (
    Executor,
    Inline,
    Job,
    Labels,
    Processes,
    SlurmArray,
    TeacherProbabilities,
    distill_data,
    finish,
    label_data,
    make_labels,
    storing,
)
from cocomix.labelling.block_functions import DistillFunction
from cocomix.labelling.executors import attempt
from cocomix.runtime.errors import CoCoMixError
from tests.concepts.conftest import make_model

from .tiny import BLOCK, TinyConfig, TinyLabeller, toy_tokens

SHARD = 2 * BLOCK  # tokens: shards of two blocks, one batch each
ALL = 7  # shards


def label(tokens: Tokens, output: Path, executor: Any = None, *, batch_tokens: int = SHARD, **settings: Any) -> Any:
    job = Job(batch_tokens=batch_tokens, unit_tokens=SHARD, executor=executor or Inline())
    return label_data(tokens.path, TinyConfig(**settings), output, job=job)


def distill(tokens: Tokens, output: Path, executor: Any = None, **settings: Any) -> Any:
    teacher = tokens.path.parent / "teacher"
    if not teacher.exists():
        make_model("gpt2").save_pretrained(teacher)
    job = Job(batch_tokens=SHARD, unit_tokens=SHARD, executor=executor or Inline())
    return distill_data(
        tokens.path, TeacherConfig(model=str(teacher), layer=0), output, **{"top_k": 4, **settings}, job=job
    )


MAKERS = pytest.mark.parametrize("make", [label, distill])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def part(text: str) -> SlurmArray:
    return SlurmArray(*map(int, text.split("/")), Inline())


@MAKERS
def test_an_interrupted_command_goes_on_and_writes_the_same_bytes(
    make: Any, tokens: Tokens, tmp_path: Path, interrupted: Any
) -> None:
    whole, output = make(tokens, tmp_path / "whole"), tmp_path / "out"
    done = interrupted(3)
    with pytest.raises(KeyboardInterrupt) as stopped:
        make(tokens, output)
    assert any("5 of 12 blocks are kept" in note for note in stopped.value.__notes__)
    assert not output.exists()
    with pytest.raises(NotAnArtifact, match="not finished"):
        type(whole).open(output)
    done.clear()
    found = make(tokens, output)
    assert len(done) == ALL - 3
    assert contents(output) == contents(tmp_path / "whole")
    assert found.fingerprint == whole.fingerprint
    assert not partial_path(output).exists()
    assert {path.name for path in output.iterdir()} == {*found.manifest.files, "manifest.json"}


@MAKERS
def test_how_the_blocks_are_cut_into_shards_changes_nothing(make: Any, tokens: Tokens, tmp_path: Path) -> None:
    make(tokens, tmp_path / "small")
    for unit in (None, 4 * BLOCK):
        output = tmp_path / f"unit{unit}"
        job = Job(batch_tokens=SHARD, unit_tokens=unit)
        if make is label:
            label_data(tokens.path, TinyConfig(), output, job=job)
        else:
            distill_data(tokens.path, TeacherConfig(model=str(tmp_path / "teacher"), layer=0), output, top_k=4, job=job)
        assert contents(output) == contents(tmp_path / "small")


def test_an_unfinished_folder_keeps_its_shards(tokens: Tokens, tmp_path: Path, interrupted: Any) -> None:
    done = interrupted(1)
    with pytest.raises(KeyboardInterrupt):
        label(tokens, tmp_path / "out")
    done.clear()
    label_data(tokens.path, TinyConfig(), tmp_path / "out", job=Job(batch_tokens=SHARD, unit_tokens=2**20))
    assert len(done) == ALL - 1


def test_an_unfinished_folder_keeps_its_number_of_threads(
    tokens: Tokens, tmp_path: Path, interrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums depend on it in their last bits, and it may be chosen by a measurement that comes out otherwise."""
    interrupted(1)
    with pytest.raises(KeyboardInterrupt):
        label(tokens, tmp_path / "out")
    chosen: list[int] = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    label(tokens, tmp_path / "out")
    assert chosen == [1]


@pytest.mark.parametrize("tokens_each", [1, BLOCK, 3 * BLOCK, 10 * BLOCK])
def test_a_shard_is_a_whole_number_of_batches(tokens_each: int) -> None:
    job = Job(batch_tokens=2 * BLOCK, unit_tokens=tokens_each)
    assert job.shard(BLOCK) % job.batch(BLOCK) == 0
    assert job.shard(BLOCK) >= job.batch(BLOCK)


@pytest.mark.slow
@MAKERS
def test_processes_and_parts_write_the_bytes_of_one_process(make: Any, tokens: Tokens, tmp_path: Path) -> None:
    whole = make(tokens, tmp_path / "whole")
    assert make(tokens, tmp_path / "parts", part("1/3")) is None
    assert make(tokens, tmp_path / "parts", SlurmArray(0, 3, Processes(2))) is None
    made = [make(tokens, tmp_path / "processes", Processes(2)), make(tokens, tmp_path / "parts", part("2/3"))]
    assert {found.fingerprint for found in made} == {whole.fingerprint}
    assert contents(tmp_path / "processes") == contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_does_not_stop_the_work(tokens: Tokens, tmp_path: Path) -> None:
    settings = {"kill": str(tmp_path / "killed")}
    found = label(tokens, tmp_path / "out", Processes(2), **settings)
    assert (tmp_path / "killed").exists()
    label(tokens, tmp_path / "whole")
    assert contents(found.path) == contents(tmp_path / "whole")


def test_a_worker_needs_nothing_of_the_data_but_its_shards(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of a cluster share no folder with the process that calls them."""

    class Elsewhere(Executor):
        def run(self, function: Any, work: Any) -> Any:
            there = pickle.loads(pickle.dumps(function))  # noqa: S301 (what executors do with our own object)
            with monkeypatch.context() as patched:
                patched.setattr(Tokens, "open", lambda *arguments: pytest.fail("the data is opened"))
                there.setup(torch.device("cpu"))
            while (task := work.take()) is not None:
                yield attempt(there, task)

    assert label(tokens, tmp_path / "out", Elsewhere()).fingerprint == label(tokens, tmp_path / "one").fingerprint


def test_parts_in_any_order_make_the_folder_of_one_job_and_the_last_finishes_it(tokens: Tokens, tmp_path: Path) -> None:
    whole, output = label(tokens, tmp_path / "whole"), tmp_path / "labels"
    assert label(tokens, output, part("2/3")) is None
    assert label(tokens, output, part("0/3")) is None
    assert label(tokens, output, part("2/3")) is None  # once more: nothing is left to do
    found = label(tokens, output, part("1/3"))
    assert found.fingerprint == whole.fingerprint
    assert contents(output) == contents(tmp_path / "whole")
    assert label(tokens, output, part("0/3")).fingerprint == whole.fingerprint  # a job that comes late


def test_jobs_at_the_same_time_on_the_same_shards_do_not_clash(tokens: Tokens, tmp_path: Path) -> None:
    output, gate = tmp_path / "labels", threading.Barrier(4)
    label(tokens, tmp_path / "whole")

    def job(text: str) -> Any:
        gate.wait()
        return label(tokens, output, part(text))

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(job, ["0/1", "0/1", "0/2", "1/2"]))
    assert any(outcome is not None for outcome in outcomes)
    assert contents(output) == contents(tmp_path / "whole")
    assert not partial_path(output).exists()


@MAKERS
def test_a_second_writer_is_refused(make: Any, tokens: Tokens, tmp_path: Path, monkeypatch: Any) -> None:
    """Both ran, with tracebacks in the folder they shared."""
    refused = []

    def again(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(storing, "map_shards", original)
        with pytest.raises(BeingWritten) as caught:
            make(tokens, tmp_path / "out")
        refused.append(caught.value.pid)
        return original(*arguments, **options)

    original = storing.map_shards
    monkeypatch.setattr(storing, "map_shards", again)
    make(tokens, tmp_path / "out")
    assert len(refused) == 1
    assert refused[0] > 0


@MAKERS
@pytest.mark.parametrize("moment", ["counting", "sealing", "renaming"])
def test_what_a_killed_finisher_left_is_finished_by_the_next_part(
    make: Any, moment: str, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`label --shard 1/2` with other settings then ended with status 0, and said nothing."""
    output = tmp_path / "out"
    whole = make(tokens, tmp_path / "whole")

    def killed(*arguments: Any) -> Any:
        raise SystemExit(137)

    make(tokens, output, part("0/2"))
    with monkeypatch.context() as patched:
        kind = type(whole)
        place = {"counting": f"{kind.__module__}.{kind.__name__}.counted"}.get(moment, "")
        place = (
            place or {"sealing": "cocomix.artifacts.staging.flush_folder", "renaming": "pathlib.Path.rename"}[moment]
        )
        patched.setattr(place, killed)
        with pytest.raises(SystemExit):
            make(tokens, output, part("1/2"))
    other = {"sign": "abs"} if make is label else {"top_k": 5}
    key = "labels.sign" if make is label else "top_k"
    for text in ("0/2", "1/2"):
        with pytest.raises(MadeFromSomethingElse) as caught:
            make(tokens, output, part(text), **other)
        assert caught.value.keys == (key,)
    found = make(tokens, output, part("0/2"))  # whose own shards are all there
    assert found.fingerprint == whole.fingerprint
    assert contents(output) == contents(tmp_path / "whole")


def test_finishing_says_what_is_left(tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, whole = tmp_path / "labels", label(tokens, tmp_path / "whole")
    with pytest.raises(NotAnArtifact):
        finish(Labels, output, tokens.path)
    label(tokens, output, part("0/2"))
    with pytest.raises(CoCoMixError, match=r"4 shards .*train-00001\[0:2\]"):
        finish(Labels, output, tokens.path)
    with monkeypatch.context() as patched:
        patched.setattr(storing, "_complete", lambda *arguments, **options: False)
        label(tokens, output, part("1/2"))
        assert partial_path(output).exists()
    assert finish(Labels, output, tokens.path).fingerprint == whole.fingerprint
    assert finish(Labels, output, tokens.path).fingerprint == whole.fingerprint
    assert contents(output) == contents(tmp_path / "whole")


@MAKERS
def test_a_finished_command_given_again_loads_nothing(
    make: Any, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It failed with "already exists", after all had been loaded."""
    first = make(tokens, tmp_path / "out")

    def load(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(make_labels, "open_labeller", load)
    monkeypatch.setattr(DistillFunction, "load", load)
    with caplog.at_level("INFO"):
        assert make(tokens, tmp_path / "out").fingerprint == first.fingerprint
    assert "nothing to do" in caplog.text
    for other in {label: [{"sign": "abs"}, {"k": 3}], distill: [{"top_k": 5}, {"dtype": "bfloat16"}]}[make]:
        with pytest.raises(AlreadyExists) as caught:
            make(tokens, tmp_path / "out", **other)
        assert [key.split(".")[-1] for key in caught.value.keys] == list(other)
    with pytest.raises(AlreadyExists) as caught:
        make(toy_tokens(tmp_path / "other", seed=1), tmp_path / "out")
    assert caught.value.keys == ("tokens",) if make is label else "tokens" in caught.value.keys


@pytest.mark.parametrize("change", ["algorithm", "versions", "code", "weights"])
def test_no_folder_is_gone_on_with_by_another_definition_of_its_labels(
    change: str, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Any
) -> None:
    """One shard of 31 was made with the sign flipped; verification found nothing."""
    done = interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        label(tokens, tmp_path / "out")
    if change == "algorithm":
        monkeypatch.setattr(TinyLabeller, "algorithm", "2")
    elif change == "versions":
        monkeypatch.setattr("cocomix.concepts.fingerprints.version", lambda name: "99.0")
    elif change == "code":
        monkeypatch.setattr(make_labels, "code_version", lambda: "another")
    else:
        original = make_model("gpt2", seed=7)
        monkeypatch.setattr("tests.labelling.tiny.make_model", lambda *arguments, **options: original)
    done.clear()
    with pytest.raises(MadeFromSomethingElse) as caught:
        label(tokens, tmp_path / "out")
    assert caught.value.keys == (f"made_with.{change}",)
    assert not done


def test_a_finished_folder_stays_valid_when_a_package_is_upgraded(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = label(tokens, tmp_path / "out")
    monkeypatch.setattr("cocomix.concepts.fingerprints.version", lambda name: "99.0")
    assert label(tokens, tmp_path / "out").fingerprint == whole.fingerprint


@MAKERS
def test_a_file_that_is_deleted_is_made_again_and_nothing_else(
    make: Any, tokens: Tokens, tmp_path: Path, interrupted: Any
) -> None:
    whole = make(tokens, tmp_path / "out")
    before = contents(whole.path)
    (whole.path / "train-00001.ids.npy").unlink()
    done = interrupted(100)
    again = make(tokens, tmp_path / "out")
    assert len(done) == 2
    assert contents(again.path) == before
    assert again.fingerprint == whole.fingerprint
    (whole.path / "train-00001.ids.npy").unlink()
    with pytest.raises(AlreadyExists):
        make(tokens, tmp_path / "out", **({"k": 2} if make is label else {"top_k": 2}))


def test_shards_that_fail_are_listed_and_the_rest_is_kept(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Any
) -> None:
    original = TinyLabeller.label

    def failing(self: Any, input_ids: Tensor, *arguments: Any, **options: Any) -> Any:
        if torch.equal(input_ids, tokens.split("train")[8]["input_ids"][None]) or len(input_ids) == 1:
            raise CoCoMixError("the loss of the teacher is not finite.")
        return original(self, input_ids, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(TinyLabeller, "label", failing)
        with pytest.raises(CoCoMixError, match=r"2 shards .*not finite") as caught:
            label(tokens, tmp_path / "out")
    assert "train-00000[4:5]" in str(caught.value)
    assert "validation-00000[2:3]" in str(caught.value)
    done = interrupted(100)
    assert label(tokens, tmp_path / "out").manifest.statistics.labels > 0
    assert len(done) == 2


class CountedConfig(LabellerConfig):
    """Settings of `counted`."""

    kind: Literal["counted"] = "counted"


@register_labeller("counted")
class Counted:
    """A labeller of another kind, with a first pass: a token's label is how often the sample holds it."""

    config_type: ClassVar[Any] = CountedConfig
    num_concepts = 100
    sample_tokens = 4 * BLOCK

    def __init__(self, tables: Mapping[str, Tensor] | None = None) -> None:
        self._tables = dict(tables or {})

    @classmethod
    def build(cls, config: Any, *, device: Any = None, vocabulary: Vocabulary | None = None) -> "Counted":
        return cls()

    def fit(self, batches: Iterable[Tensor]) -> Self:
        counts = torch.bincount(torch.cat([batch.flatten() for batch in batches]), minlength=61)
        return type(self)({"counts": counts})

    def tables(self) -> dict[str, Tensor]:
        return self._tables

    def with_tables(self, tables: Mapping[str, Tensor]) -> Self:
        return type(self)(tables)

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        first = self._tables["counts"][input_ids][..., None]
        return ConceptLabels(torch.cat([first, first.new_full((*first.shape[:-1], k - 1), -100)], -1))

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "counted", "algorithm": "1", "table": str(self._tables["counts"].sum().item())}

    def flops_per_token(self, seq: int) -> float:
        return 0.0

    def describe(self, concept: int) -> str | None:
        return f"{concept} times"


def test_what_a_first_pass_learns_is_kept_beside_the_labels_and_learned_once(
    tokens: Tokens, tmp_path: Path, interrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(output: Path) -> Labels:
        job = Job(batch_tokens=SHARD, unit_tokens=SHARD)
        found = label_data(tokens.path, CountedConfig(k=2), output, scores="none", job=job)
        assert found is not None
        return found

    whole = make(tmp_path / "whole")
    assert "tables.safetensors" in whole.manifest.files
    train = tokens.split("train")
    sample = torch.stack([train[place * len(train) // 4]["input_ids"] for place in range(4)])  # spread over the split
    block = whole.split("validation")[1]["concept_labels"]
    expected = torch.bincount(sample.flatten(), minlength=61)[tokens.split("validation")[1]["input_ids"]]
    assert torch.equal(block[:, 0], expected)
    assert (block[:, 1] == -100).all()
    interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out")
    monkeypatch.setattr(Counted, "fit", lambda self, batches: pytest.fail("it learns again"))
    assert make(tmp_path / "out").fingerprint == whole.fingerprint


def test_parts_need_a_folder_that_they_share(tokens: Tokens) -> None:
    with pytest.raises(CoCoMixError, match="memory://b/labels"):
        label(tokens, Path("memory://b/labels"), part("0/2"))


def test_top_k_must_be_possible(tokens: Tokens, tmp_path: Path) -> None:
    for top_k in (0, 62):
        with pytest.raises(CoCoMixError, match=f"top_k={top_k}"):
            distill(tokens, tmp_path / "out", top_k=top_k)
    assert isinstance(distill(tokens, tmp_path / "out", top_k=61), TeacherProbabilities)


@pytest.mark.parametrize(
    ("environment", "element"),
    [
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "7"}, "3/8"),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "5", "PARTS": "8"}, "3/8"),
        ({}, None),
    ],
)
def test_a_task_of_the_slurm_script(environment: dict[str, str], element: str | None, tmp_path: Path) -> None:
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
    if element is None:
        assert done.returncode != 0
        assert "start this as an array" in done.stderr
    else:
        assert done.stdout.splitlines() == ["label", "data", "--output", "my labels", "--shard", element]
