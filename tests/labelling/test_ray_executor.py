"""Computing on a Ray cluster: what one process computes, with a worker killed; how many workers, and of which kind."""

import logging
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cocomix.artifacts import read_json
from cocomix.labelling import ray_executor
from cocomix.labelling.executors import Inline
from cocomix.labelling.map_shards import PartFolder, Report, map_shards
from cocomix.labelling.ray_executor import RayExecutor
from cocomix.runtime.errors import CoCoMixError

from .shards import BLOCK, Doubled, toy_shards
from .test_map_shards import contents


def compute(folder: Path, executor: Any, **trouble: Any) -> Report:
    folder.mkdir(exist_ok=True)
    function = Doubled(folder.parent / f"{folder.name}-journal", **trouble)
    return map_shards(
        function,
        toy_shards(),
        folders=[PartFolder(folder, {name: name for name in function.columns})],
        executor=executor,
    )


class PlainRay:
    """The functions of Ray that the executor uses, in this process: a method runs when its reference is looked at."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.resources = [dict(node) for node in nodes]
        self.options: list[dict[str, Any]] = []
        self.pending: list[Any] = []
        self.killed: list[Any] = []
        self.lost: set[int] = set()
        self.at_once = 0

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        return [dead, *({"Alive": True, "Resources": node} for node in self.resources)]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Any:
        def decorate(cls: type) -> Any:
            def create(*arguments: Any) -> Any:
                self.options.append(options)
                return PlainActor(self, cls(*arguments))

            return type("Remote", (), {"remote": staticmethod(create)})

        return decorate

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        self.at_once = max(self.at_once, len(references))
        return references[-1:], references[:-1]

    def get(self, reference: Any) -> Any:
        actor, method, arguments = reference.call
        if arguments and int(arguments[0].tokens[0, 0]) in self.lost:
            self.lost.remove(int(arguments[0].tokens[0, 0]))
            raise self.exceptions.RayError("the node is gone")
        return getattr(actor, method)(*arguments)

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


class PlainActor:
    def __init__(self, ray: PlainRay, inner: Any) -> None:
        self.ray, self.inner = ray, inner

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Any:
            return type("Reference", (), {"call": (self.inner, method, arguments)})()

        return type("Method", (), {"remote": staticmethod(remote)})


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the executor use a `PlainRay` with these nodes."""
    monkeypatch.setattr("cocomix.runtime.allocator.keep_freed_memory", lambda: True)

    def use(*nodes: dict[str, float]) -> PlainRay:
        ray = PlainRay(*nodes)
        monkeypatch.setattr(ray_executor, "_import_ray", lambda: ray)
        return ray

    return use


def test_by_default_the_whole_cluster_computes(tmp_path: Path, join: Any) -> None:
    ray = join({"CPU": 2.0}, {"CPU": 3.0})
    report = compute(tmp_path / "ray", RayExecutor(cpus=1))
    assert (report.tokens, report.failed, report.left) == (10 * BLOCK, {}, [])
    assert len(ray.options) == 5
    assert ray.options[0] == {"num_cpus": 1, "num_gpus": 0.0, "max_restarts": 0, "max_task_retries": 0}
    assert len(ray.killed) == 5
    compute(tmp_path / "one", Inline())
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("nodes", "settings", "workers", "gpus"),
    [
        ([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}], {}, 3, 1.0),
        ([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}], {"gpus": 0.5}, 4, 0.5),
        ([{"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}], {"gpus": 0, "cpus": 2}, 5, 0),
        ([{"CPU": 4.0, "GPU": 4.0}], {"cpus": 2}, 2, 1.0),
        ([{"CPU": 4.0}], {"concurrency": (1, 2)}, 2, 0.0),
        ([{"CPU": 1.0}], {"concurrency": (3, 3)}, 3, 0.0),
        ([{"CPU": 64.0}], {}, 6, 0.0),
    ],
    ids=["GPU nodes", "half a GPU", "no GPUs", "too few cores", "at most", "at least", "no more than shards"],
)
def test_how_many_workers_and_of_which_kind(
    tmp_path: Path, join: Any, nodes: Any, settings: Any, workers: int, gpus: float
) -> None:
    ray = join(*nodes)
    assert compute(tmp_path / "ray", RayExecutor(**settings)).tokens == 10 * BLOCK
    assert {options["num_gpus"] for options in ray.options} == {gpus}
    assert len(ray.options) == workers


def test_nodes_that_come_later_are_used_with_their_gpus(
    tmp_path: Path, join: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "_SECONDS_BETWEEN_LOOKS", 0.0)
    ray = join({"CPU": 1.0})
    original = ray.get

    def get(reference: Any) -> Any:
        if reference.call[1] == "compute":
            ray.resources.append({"CPU": 1.0, "GPU": 1.0})
        return original(reference)

    monkeypatch.setattr(ray, "get", get)
    assert compute(tmp_path / "ray", RayExecutor()).tokens == 10 * BLOCK
    assert [options["num_gpus"] for options in ray.options[:2]] == [0.0, 1.0]
    assert {options["num_gpus"] for options in ray.options[1:]} == {1.0}


def test_a_cluster_that_must_grow_first_is_told(
    tmp_path: Path, join: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ray = join({"CPU": 1.0})
    with caplog.at_level(logging.WARNING):
        compute(tmp_path / "ray", RayExecutor(cpus=2))
    assert "2 CPU cores and 0 GPUs" in caplog.text
    assert len(ray.options) == 1  # it is asked for all the same: an autoscaler sees it wait


def test_a_lost_worker_is_replaced_and_only_its_shard_is_tried_again(tmp_path: Path, join: Any) -> None:
    ray = join({"CPU": 2.0})
    ray.lost = {10, 1000}
    report = compute(tmp_path / "ray", RayExecutor(), trouble={20: "refused"})
    assert report.failed == {"train-00000[4:5]": "token 20 is refused."}
    assert report.tokens == 9 * BLOCK
    assert len(ray.options) > 2


def test_workers_that_cannot_begin(tmp_path: Path, join: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = join({"CPU": 2.0})
    with pytest.raises(CoCoMixError, match="there is no such model here"):
        compute(tmp_path / "ray", RayExecutor(), trouble={0: "setup"})

    def lost(reference: Any) -> Any:
        raise ray.exceptions.RayError("out of memory")

    monkeypatch.setattr(ray, "get", lost)
    with pytest.raises(CoCoMixError, match="out of memory"):
        compute(tmp_path / "ray", RayExecutor())


def test_an_address_where_nothing_answers_is_refused_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself took 290 s."""
    pytest.importorskip("ray")
    assert ray_executor._SECONDS_TO_ANSWER <= 30
    monkeypatch.setattr(ray_executor, "_SECONDS_TO_ANSWER", 1.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        for text in (address, f"ray://{address}", "nowhere"):
            started = time.monotonic()
            with pytest.raises(CoCoMixError, match=f"cluster at {text}"):
                compute(tmp_path / "ray", RayExecutor(text))
            assert time.monotonic() - started < 20


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CoCoMixError, match=r"cocomix\[ray\]"):
        compute(tmp_path / "ray", RayExecutor())


@pytest.mark.parametrize("wrong", [{"gpus": -1}, {"cpus": 0}, {"concurrency": (0, 1)}, {"concurrency": (3, 2)}])
def test_workers_that_cannot_be(wrong: Any) -> None:
    with pytest.raises(CoCoMixError):
        RayExecutor(**wrong)


@pytest.mark.slow
def test_a_worker_of_two_nodes_is_killed_and_the_labels_are_those_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "tests.ray_kill", "--blocks", "40", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_json(tmp_path / "kill.json")
    assert found["nodes"] == 2
    assert found["killed"]
    assert found["shards_begun"] == found["shards"] + 1
    assert not any(found["differing"].values())
    assert len(set(found["fingerprints"].values())) == 1
