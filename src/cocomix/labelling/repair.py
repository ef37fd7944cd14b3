"""Making again only what is missing of a finished folder of shards.

A shard that `cocomix verify` finds damaged is deleted by hand, and the command that made the folder is given again: the
folder becomes an unfinished one, in which every shard but that one is there.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cocomix.artifacts.output import PLAN, partial_path, write_json
from cocomix.labelling.labels import LabelShard
from cocomix.labelling.shards import PROGRESS
from cocomix.runtime.console import Reporter
from cocomix.runtime.errors import CoCoMixError

__all__ = ["reopen_with_gaps"]


def reopen_with_gaps(
    output: Path,
    splits: Mapping[str, Sequence[LabelShard]],
    *,
    made_of: Mapping[str, Any],
    wanted: Mapping[str, Any],
    record: Callable[[LabelShard], Mapping[str, Any]],
    reporter: Reporter,
) -> None:
    """Turn a finished folder that lacks shards into `NAME.partial`, to be continued; one that lacks none stays.

    Args:
        output: the folder.
        splits: the shards its manifest names.
        made_of: what it was made of, as `claim_partial` compares it.
        wanted: the same of the command that is to continue it.
        record: what `progress/` says of a shard that is there.
        reporter: told which shards are made again.

    Raises:
        CoCoMixError: shards are missing, but the command would not make the same ones.
    """
    shards = [shard for members in splits.values() for shard in members]
    there = [shard for shard in shards if (output / f"{shard.name}.arrow").is_file()]
    missing = [shard.name for shard in shards if shard not in there]
    if not missing:
        return
    differing = [key for key, value in wanted.items() if made_of.get(key) != value]
    if differing or partial_path(output).exists():
        why = f"it was made with another {', '.join(differing)}" if differing else f"{partial_path(output)} exists"
        raise CoCoMixError(
            f"{output} lacks {', '.join(missing)}, which this command cannot make again: {why}; give the command that "
            "made it, or remove it."
        )
    for shard in there:
        (output / PROGRESS / shard.name).parent.mkdir(parents=True, exist_ok=True)
        write_json(output / PROGRESS / f"{shard.name}.json", dict(record(shard)))
    write_json(output / PLAN, dict(wanted))
    output.rename(partial_path(output))
    reporter.say(f"{output} lacks {', '.join(missing)}; only that is made again")
