"""Making a folder of stored arrays: claim it, compute what is missing with `map_shards`, describe it, finish it.

However a command was stopped, the same command goes on with what is left. Jobs that share a folder (`SlurmArray`) may
be started in any order, at once and more than once; the one that finds everything there finishes the folder, and if it
is killed meanwhile, the next one does, or `finish`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cocomix.artifacts import (
    PLAN,
    AlreadyExists,
    MadeFromSomethingElse,
    Staging,
    partial_path,
    read_json,
    shown,
    url_of,
    write_json,
    written_aside,
)
from cocomix.data import TRAIN, Tokens
from cocomix.labelling.executors import Inline, SlurmArray
from cocomix.labelling.map_shards import PARTS, Executor, PartFolder, Report, Work, file_of, map_shards
from cocomix.labelling.stored_arrays import StoredArrays
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from cocomix.data import SplitMeta, TokenShard

logger = logging.getLogger(__name__)

NOTES = "notes.json"  # of the command that began a folder: how its tokens are cut, and what its manifest says

A = TypeVar("A", bound=StoredArrays[Any])


@dataclass(frozen=True)
class Job:
    """How the work is done. Nothing of it determines the results but `batch_tokens`, and that by rounding alone."""

    batch_tokens: int = 4096
    """Tokens of a forward pass."""
    unit_tokens: int | None = None
    """Tokens of a shard, which are computed and saved together; by default 2²⁰ with an accelerator and 2¹⁵ without,
    half a minute of GPT-2's work. An unfinished folder keeps those it was begun with."""
    executor: Executor = field(default_factory=Inline)
    """Where the work is done."""
    retries: int = 2
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Options of the command line, for the manifest."""

    def batch(self, block_size: int) -> int:
        """Blocks of a forward pass."""
        return max(1, self.batch_tokens // block_size)

    def shard(self, block_size: int) -> int:
        """Blocks of a shard: whole batches, so that batches are the same however the blocks are cut into shards."""
        from cocomix.runtime.device import default_device

        tokens = self.unit_tokens or (2**15 if default_device().type == "cpu" else 2**20)
        batch = self.batch(block_size)
        return max(1, tokens // (batch * block_size)) * batch


def recognised(kind: type[A], output: Path, data: Path | str, asked: Mapping[str, Any]) -> A | None:
    """The finished folder, if a command with these options made it of this data set; else None. Needs no PyTorch."""
    try:
        found = kind.open(output)
        tokens = Tokens.open(data).manifest.fingerprint
    except CoCoMixError:
        return None
    if found.manifest.asked != asked or found.differing({"tokens": tokens}) or _missing(found):
        return None
    logger.info("nothing to do: %s is finished, and was made by the same command", shown(output))
    return found


def made(kind: type[A], output: Path, identity: Mapping[str, Any], changed: Callable[[A], Sequence[str]]) -> A | None:
    """The finished folder, if there is one and it was made as `identity` tells (`AlreadyExists` if otherwise).

    One that lacks files, because damaged ones were deleted, becomes an unfinished one. `changed` says what it was made
    with that is another now, such as `dictionary`.
    """
    found = kind.made(output, identity)
    if found is None:
        return None
    if keys := tuple(changed(found)):
        raise AlreadyExists(
            f"{shown(output)} was made with another {' and '.join(keys)} than there is now; remove it or choose "
            "another --output.",
            keys,
        )
    if not (missing := _missing(found)):
        logger.info("nothing to do: %s is finished, and was made with these settings", shown(output))
        return found
    plan = {"kind": kind.kind, "version": kind.version, "identity": found.manifest.identity}
    write_json(output / PLAN, plan)
    output.rename(partial_path(output))
    logger.warning("%s lacks %s, which is made again", output, ", ".join(missing))
    return None


def _missing(found: StoredArrays[Any]) -> list[str]:
    """Files of a finished folder that are not there; one at a URL is taken at its word."""
    return [] if found.url else [name for name in found.manifest.files if not (found.path / name).is_file()]


@dataclass(frozen=True)
class Order(Generic[A]):
    """A folder of `kind` that is to be made at `output`."""

    kind: type[A]
    output: Path
    function: Any  # a `BlockFunction` that computes its arrays
    columns: Mapping[str, str]  # the arrays that it keeps, each with its name among those that are computed
    identity: Mapping[str, Any]  # everything that determines the result
    about: Mapping[str, Any]  # what the manifest says that only the kind knows
    # what else belongs into the folder → writes it
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)

    @property
    def shared_pass(self) -> Any:
        """Which pass of a teacher makes this folder and another one; None if it is made alone."""
        return self.about.get("shared_pass")

    def may_share(self) -> bool:
        """Whether what was begun of it, if anything, was begun in that pass."""
        notes = partial_path(self.output) / PARTS / NOTES
        return not notes.is_file() or read_json(notes)["manifest"].get("shared_pass") == self.shared_pass


def store(orders: Sequence[Order[Any]], tokens: Tokens, job: Job, blocks: int | None = None) -> list[Any]:
    """Compute what is missing of folders that one function fills, and finish them when nothing is missing of any.

    Several orders have the same function, and are begun and cut into shards alike. With `blocks`, only so many training
    blocks are computed, from the beginning.

    Returns:
        The finished folders in the order of `orders`; None where shards are left to other jobs.

    Raises:
        CoCoMixError: shards failed; what was begun is of something else; another process writes it.
    """
    import torch

    shared = isinstance(job.executor, SlurmArray)
    if shared and (urls := [url for order in orders if (url := url_of(order.output)) is not None]):
        raise CoCoMixError(f"{urls[0]} is no folder that jobs can share; make one and `cocomix push` it.")
    block_size = tokens.manifest.block_size
    splits = {
        name: _first_files(split, blocks if name == TRAIN else None) for name, split in tokens.manifest.splits.items()
    }
    work: dict[str, Any] = {"shard_blocks": job.shard(block_size), "threads": torch.get_num_threads()}
    try:
        with ExitStack() as held:
            begun: list[tuple[Order[Any], Staging[Any], dict[str, Any]]] = []
            folders = []
            for order in orders:
                staging = held.enter_context(
                    order.kind.create(order.output, identity=order.identity, resume=True, shared=shared)
                )
                manifest = {"block_size": block_size, "splits": splits, **order.about}
                noted_at = staging.path / PARTS / NOTES
                if not noted_at.is_file():  # else the command that began it has said how its tokens are cut
                    noted_at.parent.mkdir(exist_ok=True)
                    write_json(noted_at, {**work, "columns": list(order.columns), "manifest": manifest})
                notes = read_json(noted_at)
                work = {name: notes[name] for name in work}
                shards, folder = _shards(tokens, splits, work["shard_blocks"]), PartFolder(staging.path, order.columns)
                begun_in = notes["manifest"].get("shared_pass")
                if begun_in != order.shared_pass and not all(map(folder.holds, shards)):  # the rest is made otherwise
                    notes["manifest"]["shared_pass"] = order.shared_pass
                    write_json(noted_at, notes)
                for name, write in order.files.items():
                    if not (staging.path / name).is_file():
                        with written_aside(staging.path / name) as aside:
                            write(aside)
                begun.append((order, staging, notes))
                folders.append(folder)
            torch.set_num_threads(work["threads"])  # sums depend on it in their last bits
            function = orders[0].function
            report = map_shards(function, shards, folders=folders, executor=job.executor, retries=job.retries)
            finished = [
                _complete(order.kind, staging, report, notes["manifest"], tokens, shared=shared)
                for order, staging, notes in begun
            ]
    except (AlreadyExists, FileNotFoundError):
        if shared and any(found := [order.kind.made(order.output, order.identity) for order in orders]):
            return found  # other jobs did the rest meanwhile, and finished
        raise
    return [_opened(order.kind, order.output) if done else None for order, done in zip(orders, finished, strict=True)]


def _first_files(split: "SplitMeta", blocks: int | None) -> list[dict[str, Any]]:
    """The token files of a split, or those of its first blocks, and how many of each file's blocks."""
    files, left = [], split.blocks if blocks is None else blocks
    if left > split.blocks:
        raise CoCoMixError(f"there are {split.blocks:,} training blocks, not {left:,}; give fewer, or none for all.")
    for file in split.files:
        if left > 0 or blocks is None:
            files.append({"name": file.name.removesuffix(".npy"), "blocks": min(left, file.blocks)})
        left -= file.blocks
    return files


def _shards(tokens: Tokens, splits: Mapping[str, Any], blocks: int) -> "list[TokenShard]":
    """The shards of these files, as far as their blocks go."""
    ends = {file["name"]: file["blocks"] for files in splits.values() for file in files}
    shards = [shard for split in splits for shard in tokens.shards(split, blocks)]
    ended = [replace(shard, stop=min(shard.stop, ends.get(file_of(shard), 0))) for shard in shards]
    return [shard for shard in ended if shard.start < shard.stop]


def finish(kind: type[A], output: Path, data: Path | str) -> A:
    """Finish a folder of which everything is computed, without the model that computed it.

    Raises:
        MadeFromSomethingElse: it was begun for other tokens.
        CoCoMixError: nothing was begun there; shards have no result (they are named).
    """
    folder = partial_path(output)
    if not folder.is_dir():
        return kind.open(output)
    if not (folder / PARTS / NOTES).is_file():
        raise CoCoMixError(f"there is nothing to finish in {folder}; give the command that began it again.")
    identity, notes = read_json(folder / PLAN)["identity"], read_json(folder / PARTS / NOTES)
    tokens = Tokens.open(data)
    if identity["tokens"] != tokens.manifest.fingerprint:
        raise MadeFromSomethingElse(
            f"{folder} was begun for other data than {tokens.path}; name that data.", ("tokens",)
        )
    manifest = notes["manifest"]
    shards = _shards(tokens, manifest["splits"], notes["shard_blocks"])
    with kind.create(output, identity=identity, resume=True) as staging:
        parts = PartFolder(staging.path, {name: name for name in notes["columns"]})
        with Work([parts], shards, (), retries=0) as work:
            report = Report(0, 1.0, {}, work.join_all())
        _complete(kind, staging, report, manifest, tokens, shared=False)
    return _opened(kind, output)


def _opened(kind: type[A], output: Path) -> A:
    """A folder that was just finished; says what is in it."""
    found = kind.open(output)
    speed = f" ({found.manifest.tokens_per_second:,.0f} tokens/s)" if found.manifest.tokens_per_second else ""
    logger.info("%s in %s%s", found.summary, shown(output), speed)
    for warning in found.warnings:
        logger.warning(warning)
    return found


def _complete(
    kind: type[A], staging: Staging[Any], report: Report, manifest: Mapping[str, Any], tokens: Tokens, *, shared: bool
) -> bool:
    """Finish a folder if nothing is left; whether that was done."""
    some = ", ".join(report.left[:3]) + (", …" if len(report.left) > 3 else "")
    if report.failed:
        why = "; ".join(f"{name}: {error}" for name, error in list(report.failed.items())[:3])
        raise CoCoMixError(
            f"{len(report.failed):,} shards failed ({why}). The others are kept; the same command tries these again."
        )
    if report.left and not shared:
        raise CoCoMixError(f"{len(report.left):,} shards have no result ({some}); give the commands of their parts.")
    if report.left:
        logger.info("this part is done; %s shards are left to others (%s)", f"{len(report.left):,}", some)
        return False
    with staging.alone() as mine:
        if not mine:
            logger.info("this part is done, and another job finishes %s", staging.output)
            return False
        found = kind.counted(staging.path, manifest, tokens)
        values = {**manifest, **found, "tokens_per_second": report.tokens / report.seconds}
        staging.finish(kind.manifest_type.model_validate(values), scratch=[PARTS])
    return True
