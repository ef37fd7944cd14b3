"""Options of the verbs that compute something of every shard of a data set, and the job they describe."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cocomix.cli.options import part_of
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from cocomix.labelling import Executor, Job


Blocks = Annotated[
    int | None,
    typer.Option(min=1, help="Only so many training blocks, from the beginning; see first_blocks of recipes."),
]


@dataclass(frozen=True)
class JobOptions:
    """How the work is done; every field is an option."""

    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens per forward pass.")] = 4096
    unit_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens computed between two savings; default: 1M on a GPU, 32k on a CPU.")
    ] = None
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes, one per GPU or sharing the cores; default 1. With Ray, also MIN:MAX; default: as many "
            "as the cluster has room for.",
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Compute part I of N, from 0; parts share a folder and may run at once."),
    ] = None
    engine: Annotated[Literal["processes", "ray"], typer.Option(help="Where the workers are.")] = "processes"
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT; default: start one here."),
    ] = None
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="GPUs of a Ray worker, also 0.5; default: 1 if the cluster has any.")
    ] = None
    cpus_per_worker: Annotated[int, typer.Option(help="CPU cores of a Ray worker.")] = 1
    retries: Annotated[int, typer.Option(min=0, help="How often a shard that failed is tried again.")] = 2

    def job(self, asked: Mapping[str, Any]) -> "Job":
        """The job that the options describe, if they go together; `asked` are those that determine the result."""
        from cocomix.labelling import Job, SlurmArray

        executor = self._executor()
        if self.shard is not None:
            executor = SlurmArray(*part_of("--shard", self.shard), executor)
        return Job(self.batch_tokens, self.unit_tokens, executor, self.retries, asked)

    def _executor(self) -> "Executor":
        from cocomix.labelling import Inline, Processes, RayExecutor

        fewest, _, most = (self.workers or "").partition(":")
        if self.workers is not None and not (fewest.isdecimal() and (most.isdecimal() or ":" not in self.workers)):
            raise CoCoMixError(f"--workers {self.workers} is no number, nor two of the form MIN:MAX.")
        if self.engine == "ray":
            concurrency = (int(fewest), int(most or fewest)) if self.workers else (1, None)
            return RayExecutor(self.address, concurrency, self.gpus_per_worker, self.cpus_per_worker)
        if self.address is not None or self.gpus_per_worker is not None or most:
            raise CoCoMixError(
                "--address, --gpus-per-worker and --workers MIN:MAX are for a Ray cluster; add --engine ray."
            )
        if fewest not in ("", "1"):
            return Processes(int(fewest))
        from cocomix.runtime.device import choose_threads

        choose_threads()
        return Inline()


def asked_of(**options: Any) -> dict[str, Any]:
    """Options that determine a result, as JSON, by which the same command given again is recognised at once.

    Of a folder on this machine that an option names, a hash of its description is added, so that one that was made
    anew is noticed.
    """
    from cocomix.artifacts import file_sha256

    asked = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    for name in [name for name, value in asked.items() if isinstance(value, str)]:
        described = [Path(asked[name], file) for file in ("", "manifest.json", "cfg.json", "config.json")]
        hashes = [file_sha256(path) for path in described if path.is_file() and path.stat().st_size < 2**24]
        if hashes:
            asked[f"{name} is"] = hashes
    return asked
