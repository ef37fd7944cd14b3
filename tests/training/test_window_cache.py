"""`data: {path: URL, cache_gb: …}`: training on tokens and labels of which this machine holds a few files at a time."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from cocomix.artifacts import arrays, cache_folder, file_sha256
from cocomix.data import TRAIN, Tokens
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError
from cocomix.training import train
from cocomix.training.corpora import block_order, open_data, open_labels
from cocomix.training.loading import joined_blocks, ordered_loader
from cocomix.training.recipe import RunConfig
from cocomix.training.window_cache import WindowCache
from tests.artifacts.test_file_cache import taken
from tests.served import Served, served
from tests.training.test_resume import Killed, kill_at, rows
from tests.workshop import Workshop, merged

GLOBAL_BATCH = 8
EPOCH_STEPS = 27  # of 222 blocks in files of 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cocomix.artifacts.store._FIRST_WAIT", 0.001)


@pytest.fixture(scope="module")
def server(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("there")
    shutil.copytree(workshop.data, folder / "data")
    shutil.copytree(workshop.labels, folder / "data" / "labels", dirs_exist_ok=True)
    shutil.copytree(workshop.probabilities, folder / "probabilities")
    with served(folder) as server:
        yield server


def needed(workshop: Workshop, files: int) -> int:
    """Bytes of so many of the largest training files with their labels."""
    tokens, labels = Tokens.open(workshop.data), Labels.open(workshop.labels)
    beside = labels.split(TRAIN).files()
    sizes = [
        tokens.manifest.files[file.name].size + sum(labels.manifest.files[name].size for name in names)
        for file, names in zip(tokens.manifest.splits[TRAIN].files, beside, strict=True)
    ]
    return files * max(sizes)


def recipe(workshop: Workshop, url: str, **changes: Any) -> RunConfig:
    places = {"data": {"path": f"{url}/data", "cache_gb": needed(workshop, 3) / 1e9, "window_files": 2}}
    return workshop.recipe("cocomix", **merged({**places, "labels": f"{url}/data/labels"}, changes))


class Readers(NamedTuple):
    """Loader workers of every process, and processes."""

    workers: int
    processes: int


def read(config: RunConfig, readers: Readers, start: int, stop: int) -> list[list[bytes]]:
    """Tokens and labels of steps `start` to `stop` of a run, as new processes read them."""
    arrays._maps.clear()
    data = open_data(config)
    labels = open_labels(config, data)
    order = block_order(config, data, seed=5)
    assert config.bounds is not None
    assert order is not None
    window = WindowCache(config.bounds, data, (labels, None), order)
    blocks = joined_blocks(config, data, {"concept_labels": labels}, TRAIN, None)
    iterators = []
    for process in range(readers.processes):
        arguments = SimpleNamespace(
            world_size=readers.processes,
            process_index=process,
            train_batch_size=GLOBAL_BATCH // readers.processes,
            device=torch.device("cpu"),
            dataloader_num_workers=readers.workers,
            dataloader_prefetch_factor=2,
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            dataloader_persistent_workers=False,
            dataloader_multiprocessing_context=None,
            dataloader_in_order=True,
        )
        iterators.append(_batches(ordered_loader(blocks, order, list, arguments, reached=window.reach), start))  # type: ignore[arg-type]
    found = []
    for _ in range(start, stop):
        shares = [next(iterator) for iterator in iterators]
        found.append([row for rows in zip(*shares, strict=True) for row in rows])
        assert taken(window.cache.folder) <= window.cache.limit
    if window._thread is not None:
        window._thread.join()
    return found


def _batches(loader: Any, start: int) -> Iterator[list[bytes]]:
    """Batches from a step on, epoch after epoch."""
    epoch, passed = divmod(start, len(loader.batch_sampler))
    while True:
        loader.set_epoch(epoch)
        loader.batch_sampler.pass_over(passed)
        for batch in loader:
            if batch:
                yield [row["input_ids"].numpy().tobytes() + row["concept_labels"].numpy().tobytes() for row in batch]
        epoch, passed = epoch + 1, 0


@pytest.fixture(scope="module")
def expected(workshop: Workshop) -> list[list[bytes]]:
    """Two epochs, from the folders on this machine."""
    config = workshop.recipe("cocomix", data={"path": str(workshop.data), "cache_gb": 1, "window_files": 2})
    return read(config, Readers(0, 1), 0, 2 * EPOCH_STEPS)


@pytest.mark.parametrize(
    ("first", "then", "stop"),
    [
        (Readers(2, 1), Readers(2, 1), 13),  # in the middle of a window
        (Readers(0, 1), Readers(0, 1), 13),
        (Readers(2, 1), Readers(2, 1), 45),  # in the second epoch
        (Readers(2, 2), Readers(2, 2), 13),
        (Readers(2, 1), Readers(3, 1), 13),
        (Readers(2, 1), Readers(0, 1), 20),
        (Readers(1, 2), Readers(1, 4), 13),
        (Readers(2, 2), Readers(4, 1), 30),
    ],
)
def test_a_run_goes_on_exactly(
    first: Readers, then: Readers, stop: int, workshop: Workshop, server: Served, expected: list[list[bytes]]
) -> None:
    config = recipe(workshop, server.url)
    assert read(config, first, 0, stop) == expected[:stop]
    if stop == 20:  # after eviction: another machine
        shutil.rmtree(cache_folder())
    end = min(stop + 20, len(expected))
    assert read(config, then, stop, end) == expected[stop:end]


def test_a_window_needs_its_files_and_no_other(workshop: Workshop, server: Served) -> None:
    server.asked.clear()
    read(recipe(workshop, server.url), Readers(0, 1), 0, 5)
    assert len({name for name in server.asked if name.startswith("train-") and name.count(".") == 1}) == 3  # one ahead


def test_a_mixture_beyond_the_disk(workshop: Workshop, server: Served) -> None:
    def mixture(place: str, cache_gb: float) -> RunConfig:
        corpora = [{"path": f"{place}/data", "labels": f"{place}/data/labels", "weight": weight} for weight in (3, 1)]
        data = {"mixture": corpora, "cache_gb": cache_gb, "window_files": 2}
        return RunConfig.model_validate({**workshop.values("cocomix"), "data": data, "labels": None})

    here = read(mixture(str(server.folder), 1), Readers(0, 1), 0, 40)
    far = mixture(server.url, needed(workshop, 5) / 1e9)
    assert read(far, Readers(2, 1), 0, 21) == here[:21]
    assert read(far, Readers(1, 2), 21, 40) == here[21:]


def test_a_killed_run_ends_as_if_it_had_not_been(
    workshop: Workshop, server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"max_steps": 44, "save_steps": 12, "logging_steps": 10, "eval_steps": 22, "dataloader_num_workers": 1}
    config = recipe(workshop, server.url, name="run", tokens=None, training=training)
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patched:
        kill_at(patched, 41)
        with pytest.raises(Killed):
            train(config, tmp_path / "run")
    server.fault = lambda number, name: "503" if number % 5 == 0 else None
    more_disk = recipe(workshop, server.url, name="run", tokens=None, training=training, data={"cache_gb": 1})
    resumed = train(more_disk, tmp_path / "run")
    assert file_sha256(resumed / "model.safetensors") == file_sha256(whole / "model.safetensors")
    assert rows(resumed) == rows(whole)
    server.fault = lambda number, name: None


def test_stored_probabilities_go_through_the_cache(workshop: Workshop, server: Served, tmp_path: Path) -> None:
    runs = []
    for place, cache_gb in ((str(server.folder), 1), (server.url, 4 * needed(workshop, 3) / 1e9)):
        targets = {"targets": f"{place}/probabilities"}
        config = recipe(
            workshop, place, tokens=None, training={"max_steps": 4}, data={"cache_gb": cache_gb}, distillation=targets
        )
        runs.append(train(config, tmp_path / f"run{len(runs)}"))
    assert rows(runs[0]) == rows(runs[1])
    assert any(name.endswith(".log_probs.npy") and name.startswith("train-") for name in server.asked)
    assert not list((cache_folder() / "copies").rglob("train-*.npy"))


def test_a_cache_that_is_too_small(workshop: Workshop, server: Served) -> None:
    small = needed(workshop, 3) - 1
    with pytest.raises(CoCoMixError, match=rf"cache_gb is {small / 1e9:g}, and {(small + 1) / 1e9:.6g} are needed"):
        read(recipe(workshop, server.url, data={"cache_gb": small / 1e9}), Readers(0, 1), 0, 1)
