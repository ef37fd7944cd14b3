"""Encoding as tasks of datatrove, whose executors run it on this machine, as a Slurm array, or on a Ray cluster.

    executor = SlurmPipelineExecutor([EncodeUnits(settings, "/shared/data/books")], tasks=500, time="08:00:00", ...)
    executor.run()

Task i of n encodes the units i, i + n, i + 2 n, …; a task that is run again goes on where it was. When all have ended,
`prepare(settings, "/shared/data/books", workers=…)` packs what they encoded, and encodes what is missing. Needs the
extra `datatrove`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cocomix.data.preparation import encode_share
from cocomix.data.prepare_settings import PrepareSettings
from cocomix.runtime.errors import require_extra

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError:
    PipelineStep = None


class EncodeUnits(PipelineStep or object):  # type: ignore[misc]  # datatrove has no types
    """Pipeline step that encodes one task's share of the units, by the settings and to the output of `encode_share`."""

    type = "TOKENIZER"
    name = "cocomix units"

    def __init__(self, settings: PrepareSettings, output: Path | str) -> None:
        require_extra("datatrove", "datatrove", purpose="encoding as tasks of datatrove")
        super().__init__()
        self.settings, self.output = settings.model_dump(mode="json"), str(output)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Encode share `rank` of `world_size`; documents of earlier steps pass through unchanged."""
        with self.track_time("task"):
            encode_share(PrepareSettings.model_validate(self.settings), self.output, rank, world_size)
        yield from data or ()
