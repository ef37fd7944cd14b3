"""`data: {stream: …}`: training on Parquet shards that are tokenized meanwhile."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from cocomix.artifacts import Damaged, MadeFromSomethingElse, file_sha256, partial_path
from cocomix.data import StreamedData, Tokens
from cocomix.evaluation import Run, evaluate_run
from cocomix.training import train
from cocomix.training.order import ReadingOrder, StepBatches
from cocomix.training.recipe import RunConfig
from cocomix.training.run import dry_run
from cocomix.training.streaming import StreamProgress, WorkedStream
from tests.command_line import Cli
from tests.training.test_resume import Killed, kill_at
from tests.workshop import Workshop


@pytest.fixture(scope="module")
def shards(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    texts = [path.read_text(encoding="utf-8") for path in sorted(workshop.corpus.iterdir())]
    for number in range(3):
        table = pa.table({"text": texts[number * 20 : (number + 1) * 20]})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=5)
    return folder


def values(workshop: Workshop, shards: Path, objective: str = "ntp", **changes: Any) -> dict[str, Any]:
    found = workshop.values(objective, name="streamed", **changes)
    data = {"stream": [f"{shards}/*.parquet"], "heldout": str(workshop.data), "lanes": 4}
    if objective == "cocomix":
        found |= {"labels": "online", "teacher": {"model": str(workshop.teacher), "layer": 1}}
        found |= {"dictionary": {"path": str(workshop.dictionary)}}
    return {**found, "data": data}


def recipe(*args: Any, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(values(*args, **changes))


@pytest.fixture(scope="module")
def whole(workshop: Workshop, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(workshop, shards), tmp_path_factory.mktemp("run") / "whole")


def test_a_run_on_a_stream(workshop: Workshop, shards: Path, whole: Path) -> None:
    run = Run.open(whole)
    assert run.manifest.tokens == 12 * 8 * 16
    data = json.loads((whole / "manifest.json").read_text())["data"]
    assert data["stream"] == {
        "patterns": [f"{shards}/*.parquet"],
        "shards": 3,
        "documents": 60,
        "lanes": 4,
        "heldout": Tokens.open(workshop.data).manifest.fingerprint,
    }
    assert data["fingerprint"] != data["stream"]["heldout"]
    evaluated = evaluate_run(run, device="cpu", limit_blocks=11)  # type: ignore[arg-type]
    assert evaluated.evaluation.loss == pytest.approx(run.manifest.final.eval_loss, rel=1e-5)
    assert dry_run(recipe(workshop, shards))["tokens"] == run.manifest.tokens


def test_stopped_and_gone_on_with_workers(
    workshop: Workshop, shards: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    workers = {"training": {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 2}}
    with monkeypatch.context() as patched:
        kill_at(patched, 7)
        with pytest.raises(Killed):
            train(recipe(workshop, shards, **workers), output)
    other = shutil.copytree(shards, tmp_path / "other")
    pq.write_table(pa.table({"text": ["changed"]}), other / "3.parquet")
    shutil.copytree(partial_path(output), tmp_path / "changed.partial")
    changed = values(workshop, shards, **workers)
    changed["data"]["stream"] = [f"{other}/*.parquet"]
    with pytest.raises(MadeFromSomethingElse) as refused:
        train(RunConfig.model_validate(changed), tmp_path / "changed")
    assert refused.value.keys == ("data", "recipe.data.stream")
    train(recipe(workshop, shards, **workers), output)
    assert file_sha256(output / "model.safetensors") == file_sha256(whole / "model.safetensors")


@pytest.mark.parametrize("masks", [False, True])
def test_labels_are_made_online(workshop: Workshop, shards: Path, tmp_path: Path, masks: bool) -> None:
    changes = {"document_masks": masks, "tokens": 3 * 8 * 16}
    run = train(recipe(workshop, shards, "cocomix", **changes), tmp_path / "run")
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert row["concept_loss"] > 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_processes_share_the_blocks(workshop: Workshop, shards: Path, workers: int, batch: int) -> None:
    data = StreamedData(Tokens.open(workshop.data), [str(shards)], text_column="text", lanes=4)
    expected = [row["input_ids"].tolist() for row in (data.blocks(48, 0)[place] for place in range(48))]
    for processes in (1, 2, 4) if workers == 0 else (2,):
        seen: dict[int, list[int]] = {}
        for process in range(processes):
            own = data.blocks(48, 0)
            arguments: Any = SimpleNamespace(world_size=processes, dataloader_num_workers=workers)
            arguments.train_batch_size, arguments.dataloader_multiprocessing_context = batch, None
            rows: Any = WorkedStream(own, arguments) if workers else own
            places = [
                place
                for each in StepBatches(ReadingOrder(48), batch, processes=processes, process=process)
                for place in each
            ]
            seen |= {place: rows[place]["input_ids"].tolist() for place in places}
            assert {place % processes for place in places} == {process}
            if not workers:
                assert {lane % processes for lane in own._lanes} == {process}  # it reads its own lanes alone
        assert [seen[place] for place in range(48)] == expected


def test_the_furthest_marks_are_kept(workshop: Workshop, shards: Path) -> None:
    data = StreamedData(Tokens.open(workshop.data), [str(shards)], text_column="text", lanes=2)
    blocks = data.blocks(20, 0)
    marks = np.asarray([[0, 3, 1, 2, 3], [1, 2, 5, 6, 7]])
    other = np.asarray([[[2, 9, 9, 9], [4, 8, 8, 8]]])

    class Gathering:
        device = "cpu"

        def gather(self, own: Any) -> Any:
            return own.new_tensor(np.concatenate([own[None].numpy(), other])).flatten(0, 1)

    progress = StreamProgress(blocks)
    batch = {"reached": marks}
    progress.take([batch])
    assert batch == {}
    assert progress.state(Gathering()) == [[3, 1, 2, 3], [4, 8, 8, 8]]


def test_a_worker_refuses_in_one_sentence(cli: Cli, workshop: Workshop, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "0.parquet")
    given = ("--set", "training.dataloader_num_workers=1", "--set", f"data.stream=[{tmp_path / '0.parquet'}]")
    given += ("--set", f"data.heldout={workshop.data}")
    path = workshop.recipe_file(tmp_path / "r.yaml", "ntp")
    message = cli.refuses("train", path, *given, "-o", tmp_path / "run", says="row group 0, row 1: 'text' holds null")
    assert "DataLoader" not in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": "somewhere"}, "a stream has no stored labels"),
        ({"distillation": {"targets": "somewhere"}}, "a stream has no stored probabilities"),
        ({"tokens": None}, "has no end: set tokens or training.max_steps"),
        ({"data": {"stream": [], "heldout": "x"}}, "data.stream.stream: Tuple should have at least 1 item"),
        ({"data": {"stream": ["x"]}}, "data.stream.heldout is missing"),
    ],
)
def test_recipes_that_are_refused(workshop: Workshop, shards: Path, changes: dict[str, Any], says: str) -> None:
    from cocomix.runtime.section import describe_validation_error

    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate({**values(workshop, shards, "cocomix"), **changes})
    assert says in describe_validation_error(caught.value)


def test_a_swapped_tokenizer_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    data = shutil.copytree(workshop.data, tmp_path / "data")
    file = data / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    file.write_text(json.dumps(content))
    with pytest.raises(Damaged, match=r"tokenizer\.json"):
        train(workshop.recipe("ntp", data=str(data)), tmp_path / "run")
