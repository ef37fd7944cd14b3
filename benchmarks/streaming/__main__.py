"""Measure one part: python -m benchmarks.streaming PART --work FOLDER --output FILE.json [--only NAME]."""

import argparse
import json
import os
import platform
import sys
import sysconfig
import tempfile
from collections import Counter
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from benchmarks.streaming.candidates import CANDIDATES, FORMATS
from benchmarks.streaming.corpus import BIG, SMALL, Size, write_corpus
from benchmarks.streaming.dependencies import dependencies
from benchmarks.streaming.groups import Group, Run, read
from benchmarks.streaming.store import BUCKET, FAULTS, Proxy, store

_STOP, _LATER_STOP = 37, 165
_WITH_CACHE = ("mosaicml-streaming", "litdata", "flat files")
_REMOTE = tuple(name for name in CANDIDATES if name in (*_WITH_CACHE, "datasets, buffer 256"))


def main() -> None:
    """Measure one part and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {
        "resume": resume,
        "eviction": eviction,
        "faults": faults,
        "cost": cost,
        "forks": forks,
        "dependencies": dependencies,
    }
    parser.add_argument("part", choices=parts)
    parser.add_argument("--work", type=Path, required=True, help="folder for corpora and caches")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    parser.add_argument("--only", action="append", choices=tuple(CANDIDATES), help="these libraries, not all")
    told = parser.parse_args()
    told.work.mkdir(parents=True, exist_ok=True)
    names = told.only or list(CANDIDATES)
    found = {
        "command": f"python -m benchmarks.streaming {told.part}",
        "machine": {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "versions": {
            name: version(name) for name in ("mosaicml-streaming", "litdata", "datasets", "torchdata", "torch")
        },
        "results": parts[told.part](told.work, names),
    }
    told.output.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(told.output.read_text())["results"] if told.only and told.output.exists() else {}
    found["results"] = {**old, **found["results"]}
    written = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    for place, shown in _places(told.work).items():
        written = written.replace(place, shown)
    told.output.write_text(written)


def _places(work: Path) -> dict[str, str]:
    """Folders of this machine, and what is written in their place."""
    library = sysconfig.get_path("purelib")
    return {
        str(work): "WORK",
        library: "LIBRARY",
        os.path.realpath(library): "LIBRARY",
        str(Path.cwd()): "REPOSITORY",
        sys.base_prefix: "PYTHON",
    }


def resume(work: Path, names: list[str]) -> dict[str, Any]:
    """Continue with the same and with other numbers of workers and processes; local folders, shuffled."""
    return {name: _said(name, _resume_one(name, work)) for name in names}


def _resume_one(name: str, work: Path) -> dict[str, Any]:
    base, scratch = _group(name, SMALL, work), _scratch(work)
    epoch = SMALL.blocks // base.global_batch
    one = read(_with(base, steps=2 * epoch, save_at=(_STOP, _LATER_STOP)), scratch)
    two = read(_with(base, world=2, save_at=(_STOP,)), scratch)
    none = read(_with(base, workers=0, save_at=(_STOP,)), scratch)
    again = read(_with(base, steps=_STOP), scratch)
    found: dict[str, Any] = {
        "uninterrupted": {"1 process": _whole(one, epoch), "2 processes": _whole(two, epoch)},
        "two runs are alike": bool(again.steps) and again.steps == one.steps[:_STOP],
    }
    continued = {
        "same: 1 process, 2 workers": (one, _STOP, epoch, {}),
        "same: 1 process, no workers": (none, _STOP, epoch, {"workers": 0}),
        "same, in the second epoch": (one, _LATER_STOP, 2 * epoch, {}),
        "same: 2 processes, 2 workers each": (two, _STOP, epoch, {"world": 2}),
        "2 workers, then 3": (one, _STOP, epoch, {"workers": 3}),
        "2 workers, then 0": (one, _STOP, epoch, {"workers": 0}),
        "2 processes, then 4": (two, _STOP, epoch, {"world": 4}),
        "2 processes, then 1": (two, _STOP, epoch, {"world": 1}),
    }
    for case, (whole, stop, end, changes) in continued.items():
        rest = read(_with(base, **changes, steps=end - stop, states=whole.states[stop]), scratch)
        found[case] = _compared(whole, rest, stop, end, epoch)
    return found


def _compared(whole: Run, rest: Run, stop: int, end: int, epoch: int) -> dict[str, Any]:
    """How what was read after resuming differs from the uninterrupted run; blocks are of the epoch of the stop."""
    first = stop // epoch * epoch
    expected = whole.steps[stop:end]
    seen = _flat(whole.steps[first:stop])
    got = _flat(rest.steps)
    counts = Counter(seen + got)
    return {
        "same order": bool(expected) and rest.steps == expected,
        "same global batches": bool(expected) and [sorted(a) for a in rest.steps] == [sorted(a) for a in expected],
        "same set": bool(expected) and sorted(got) == sorted(_flat(expected)),
        "first different step": next(
            (n for n, (a, b) in enumerate(zip(rest.steps, expected, strict=False)) if sorted(a) != sorted(b)), None
        ),
        "steps": [len(rest.steps), len(expected)],
        "blocks of the rest never read": len(set(_flat(expected)) - set(got)),
        "blocks read again": sum(count - 1 for count in counts.values()),
        "errors": _told(rest),
    }


def _whole(run: Run, epoch: int) -> dict[str, Any]:
    blocks = _flat(run.steps[:epoch])
    return {
        "steps": len(run.steps),
        "blocks of the first epoch": len(blocks),
        "different": len(set(blocks)),
        "errors": _told(run),
    }


def eviction(work: Path, names: list[str]) -> dict[str, Any]:
    """A cache of a quarter of the tokens, from S3; one and two processes."""
    write_corpus(BIG, work / BIG.name)
    scratch, found, epoch = _scratch(work), {}, BIG.blocks // 64
    limit = BIG.blocks * BIG.block * 2 // 4
    with store(_folders(work, BIG)) as proxy:
        for name in names:
            if name not in _WITH_CACHE:
                continue
            found[name] = {"limit": limit, "data": BIG.blocks * BIG.block * 2}
            cases: dict[str, dict[str, Any]] = {
                "1 process": {"world": 1},
                "2 processes": {"world": 2},
                "no limit": {"limit": None},
            }
            if name == "mosaicml-streaming":  # whose default shuffles more blocks than there are
                within = {"shuffle_block": 4 * BIG.shard_blocks}
                cases |= {"1 process, shuffled within 4 files": within}
                cases |= {"2 processes, shuffled within 4 files": {"world": 2, **within}}
            for case, changes in cases.items():
                group = _remote(name, BIG, work, proxy, limit=limit, global_batch=64, steps=epoch, timeout=150)
                proxy.start("none")
                run = read(_with(group, **changes), scratch)
                found[name][case] = {"peak": run.peak, "requests": proxy.seen, **_whole(run, epoch)}
            _said(name, found[name])
    return found


def faults(work: Path, names: list[str]) -> dict[str, Any]:
    """An epoch from S3 with every fault, and over plain HTTP."""
    write_corpus(SMALL, work / SMALL.name)
    scratch, found = _scratch(work), {}
    with store(_folders(work, SMALL)) as proxy:
        for name in (name for name in names if name in _REMOTE):
            found[name] = {}
            for fault in FAULTS:
                proxy.start(fault)
                run = read(_remote(name, SMALL, work, proxy, timeout=180), scratch)
                found[name][fault] = _faulty(run, proxy)
            proxy.start("none")
            found[name]["plain HTTP"] = _faulty(read(_http(name, SMALL, work, proxy), scratch), proxy)
            _said(name, found[name])
    return found


def _faulty(run: Run, proxy: Proxy) -> dict[str, Any]:
    return {
        **_whole(run, 128),
        "timed out": run.timed_out,
        "requests": proxy.seen,
        "spoiled": proxy.spoiled,
        "seconds": round(max(out["seconds"].get("all", 0) for out in run.outputs), 1),
    }


def forks(work: Path, names: list[str]) -> dict[str, Any]:
    """Epochs of mosaicml-streaming from S3 without faults; with and without the S3 client that its workers inherit."""
    write_corpus(SMALL, work / SMALL.name)
    scratch, found = _scratch(work), {}
    with store(_folders(work, SMALL)) as proxy:
        for case, changes in {"as it is": {}, "client dropped before the fork": {"fresh_client": True}}.items():
            found[case] = []
            for _ in range(8):
                proxy.start("none")
                group = _with(_remote("mosaicml-streaming", SMALL, work, proxy, timeout=100), **changes)
                found[case].append(_faulty(read(group, scratch), proxy))
            _said(case, found[case])
    return found


def cost(work: Path, names: list[str]) -> dict[str, Any]:
    """From S3: seconds to the first batch at 0% and 50% of an epoch, and tokens per second in two epochs."""
    write_corpus(BIG, work / BIG.name)
    scratch, found = _scratch(work), {}
    with store(_folders(work, BIG)) as proxy:
        for name in names:
            epoch = BIG.blocks // 64
            group = _remote(
                name, BIG, work, proxy, global_batch=64, steps=2 * epoch, save_at=(epoch // 2,), timeout=600
            )
            run = read(group, scratch)
            out = run.outputs[0]
            later = [
                read(_with(group, steps=1, save_at=(), states=run.states[epoch // 2] if half else ()), scratch)
                for half in (False, True, False, True)
            ]
            found[name] = {
                "tokens per second": _rates(out["seconds"]),
                "tokens per CPU second": _rates(out["cpu"]),
                "to the first batch": [_first(each) for each in later[::2]],
                "to the first batch at 50%": [_first(each) for each in later[1::2]],
                "that batch is the right one": [
                    bool(each.steps) and sorted(each.steps[0]) == sorted(run.steps[epoch // 2]) for each in later[1::2]
                ],
                "errors": _told(run) + _told(later[1]),
                "steps": len(run.steps),
                "load average": round(os.getloadavg()[0], 1),
            }
            _said(name, found[name])
    return found


def _rates(told: dict[str, Any]) -> list[int]:
    """Tokens per second of each epoch, the start of the workers counted with the first."""
    ends = [0.0, *told.get("epochs", [])]
    return [round(BIG.blocks * BIG.block / (b - a)) for a, b in pairwise(ends)]


def _first(run: Run) -> dict[str, float]:
    out = run.outputs[0]
    return {kind: round(out[kind].get("first", -1), 2) for kind in ("seconds", "cpu") if kind in out}


def _flat(steps: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(steps))


def _folders(work: Path, size: Size) -> dict[str, Path]:
    return {f"{size.name}/{kind}": work / size.name / kind for kind in sorted(set(FORMATS.values()))}


def _group(name: str, size: Size, work: Path, **changes: Any) -> Group:
    write_corpus(size, work / size.name)
    folder = work / size.name
    return Group(
        **{
            "candidate": name,
            "place": str(folder),
            "size": size,
            "tokenizer": folder / "text/tokenizer.json",
            **changes,
        }
    )


def _remote(name: str, size: Size, work: Path, proxy: Proxy, **changes: Any) -> Group:
    return _group(name, size, work, place=f"s3://{BUCKET}/{size.name}", endpoint=proxy.endpoint, **changes)


def _http(name: str, size: Size, work: Path, proxy: Proxy) -> Group:
    names = tuple(path.name for path in sorted((work / size.name / FORMATS[name]).iterdir()))
    return _group(name, size, work, place=f"{proxy.endpoint}/{BUCKET}/{size.name}", names=names)


def _with(group: Group, **changes: Any) -> Group:
    return Group(**{**group.__dict__, **changes})


def _told(run: Run) -> list[dict[str, str]]:
    return run.errors[:1]


def _scratch(work: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix="runs-", dir=work))


def _said(name: str, found: Any) -> Any:
    print(name, json.dumps(found, indent=1, ensure_ascii=False), file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
