"""Options of the verbs that compute something of every shard of a data set, and the job they describe."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from cocomix.labelling import Executor

__all__ = [
    "Address",
    "BatchTokens",
    "CpusPerWorker",
    "Engine",
    "Finish",
    "GpusPerWorker",
    "Part",
    "Retries",
    "UnitTokens",
    "Where",
    "Workers",
    "asked_of",
    "executor_of",
]


class Engine(Enum):
    """Where the workers are."""

    processes = "processes"
    ray = "ray"


BatchTokens = Annotated[int, typer.Option(min=1, help="Tokens per forward pass.")]
UnitTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens computed between two savings; default: 1M on a GPU, 32k on a CPU.")
]
Workers = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Processes, one per GPU or sharing the cores; default 1. With Ray, also MIN:MAX; default: as many "
        "as the cluster has room for.",
    ),
]
Part = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Compute part I of N, from 0; parts share a folder and may run at once."),
]
Finish = Annotated[bool, typer.Option("--finish", help="Complete a folder whose parts are all computed.")]
Where = Annotated[Engine, typer.Option(help="Where the workers are.")]
Address = Annotated[
    str | None, typer.Option(help="Of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT; default: start one here.")
]
GpusPerWorker = Annotated[
    float | None, typer.Option(help="GPUs of a Ray worker, also 0.5; default: 1 if the cluster has any.")
]
CpusPerWorker = Annotated[int, typer.Option(help="CPU cores of a Ray worker.")]
Retries = Annotated[int, typer.Option(min=0, help="How often a shard that failed is tried again.")]


def executor_of(
    workers: str | None, shard: str | None, engine: Engine, address: str | None, gpus: float | None, cpus: int
) -> "Executor":
    """Where the options have a job computed.

    Raises:
        CoCoMixError: they do not go together.
    """
    from cocomix.labelling import Inline, Processes, RayExecutor, SlurmArray

    fewest, _, most = (workers or "").partition(":")
    if workers is not None and not (fewest.isdecimal() and (most.isdecimal() or ":" not in workers)):
        raise CoCoMixError(f"--workers {workers} is no number, nor two of the form MIN:MAX.")
    executor: Executor
    if engine is Engine.ray:
        concurrency = (int(fewest), int(most or fewest)) if workers else (1, None)
        executor = RayExecutor(address, concurrency, gpus, cpus)
    elif address is not None or gpus is not None or most:
        raise CoCoMixError(
            "--address, --gpus-per-worker and --workers MIN:MAX are for a Ray cluster; add --engine ray."
        )
    else:
        executor = Inline() if fewest in ("", "1") else Processes(int(fewest))
        if isinstance(executor, Inline):
            from cocomix.runtime.threads import choose_threads

            choose_threads()
    return executor if shard is None else SlurmArray.parse(shard, executor)


def asked_of(**options: Any) -> dict[str, Any]:
    """Options that determine a result, as JSON, by which the same command given again is recognised at once.

    Of a folder on this machine that an option names, a hash of its description is added, so that one that was made
    anew is noticed.
    """
    from cocomix.artifacts import file_sha256

    asked = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    for name in [name for name, value in asked.items() if isinstance(value, str)]:
        place = Path(asked[name])
        described = (
            [place] if place.is_file() else [place / file for file in ("manifest.json", "cfg.json", "config.json")]
        )
        hashes = [file_sha256(path) for path in described if path.is_file() and path.stat().st_size < 2**24]
        if hashes:
            asked[f"{name} is"] = hashes
    return asked
