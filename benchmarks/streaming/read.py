"""One process that reads some steps and writes what it saw: python -m benchmarks.streaming.read TOLD OUTPUT."""

import json
import os
import pickle  # noqa: TID251 the libraries' states are more than JSON; only files of this very run are read
import sys
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.streaming.candidates import CANDIDATES, Settings, import_mosaic, mend_torchvision


def main(specification: Path, output: Path) -> None:
    """Read as told."""
    told = json.loads(specification.read_text())
    settings = Settings(**{**told["settings"], "names": tuple(told["settings"]["names"])})
    candidate = CANDIDATES[told["candidate"]]
    mend_torchvision()
    _import(told["candidate"])
    seen: list[list[int]] = []
    found: dict[str, Any] = {"batches": seen, "error": None, "seconds": {}, "cpu": {}}
    start, cpu = time.perf_counter(), _cpu()
    try:
        states = [pickle.loads(Path(path).read_bytes()) for path in told["states"]]  # noqa: S301
        reader = candidate(settings, states)
        for number, batch in enumerate(reader.batches(), 1):
            if number == 1:
                found["seconds"]["first"], found["cpu"]["first"] = time.perf_counter() - start, _cpu() - cpu
            seen.append([zlib.crc32(np.ascontiguousarray(row.astype("<u2")).tobytes()) for row in batch])
            if number % settings.epoch_steps == 0:
                found["seconds"].setdefault("epochs", []).append(time.perf_counter() - start)
                found["cpu"].setdefault("epochs", []).append(_cpu() - cpu)
            if number in told["save_at"]:
                output.with_name(f"{output.stem}-at-{number}.state").write_bytes(pickle.dumps(reader.state()))
            if number == told["steps"]:
                break
    except BaseException as error:
        found["error"] = {
            "type": type(error).__name__,
            "says": str(error)[-600:],
            "where": traceback.format_exc()[-900:],
        }
    found["seconds"]["all"] = time.perf_counter() - start
    output.write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # workers and threads of a library that failed may not end


def _cpu() -> float:
    """CPU seconds of this process and its loader workers: what other programs on the machine change least."""
    process = psutil.Process()
    found = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
    ended = process.cpu_times()  # of workers that ended with an epoch
    return sum(each.user + each.system for each in found) + ended.children_user + ended.children_system


def _import(name: str) -> None:
    """Import before the clock starts."""
    if name == "mosaicml-streaming":
        import_mosaic()
    elif name == "litdata":
        import litdata  # noqa: F401
    elif name.startswith("datasets"):
        import datasets  # noqa: F401
        import torchdata.stateful_dataloader  # noqa: F401
    else:
        import benchmarks.streaming.flat  # noqa: F401


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
