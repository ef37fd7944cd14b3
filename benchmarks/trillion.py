"""What a corpus of 10^12 tokens costs: `python -m benchmarks.trillion OUTPUT.json [--quick]`.

Measures, in a scratch folder that is removed at the end,

- `prepare`: tokens a second of one core, of encoding and of packing, and the gain of a second process;
- `store`: bytes a token and files; seconds and memory of opening a folder of 10^12 tokens, whose files are sparse, so
  that they take no room; the cost of a block anywhere in it, and how many maps are open afterwards;
- `verify`: bytes a second of one thread, and of all;
- `resume`: seconds until an interrupted `prepare` of some thousand finished units goes on, and until training finds the
  blocks of a step in the middle of 10^12 tokens.

Rates are of CPU time where the work is one thread's, because the machine may have other work. Every figure for 10^12
tokens that is not measured at that size is arithmetic on a measured one, which is written beside it.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from cocomix.data import PrepareSettings, SplitMeta, Tokens, TokensFile, TokensManifest, prepare
from cocomix.data import units as units_module
from cocomix.data.documentation import documentation_texts
from cocomix.data.documents import resolve_sources
from cocomix.data.packing import BlockShape, file_plans, pack_file
from cocomix.data.permutation import permuted
from cocomix.data.splits import DocumentHash, Member, divide
from cocomix.data.units import Encoding, encode_unit, plan_units
from cocomix.runtime.hub import load_tokenizer

TRILLION = 10**12
_UNIT_BYTES = units_module.MAX_UNIT_BYTES  # of a corpus of 10^12 tokens, some 4 bytes each
BLOCK = 1024
BEFORE = {"files": 476_000, "open_seconds": 10.0, "open_mb": 424, "verify_hours": 3.0, "prepare_days": 17.0}
"""The same figures of the former format, one process throughout."""


def corpus(path: Path, megabytes: int) -> int:
    """English documentation of this machine as JSON Lines, repeated with a number in front; bytes of text."""
    texts = [text for _, text in documentation_texts() if text]
    size, number = 0, 0
    with path.open("w", encoding="utf-8") as stream:
        while size < megabytes * 10**6:
            text = f"{number} {texts[number % len(texts)]}"
            stream.write(json.dumps({"text": text}) + "\n")
            size, number = size + len(text.encode()), number + 1
    return size


def cpu_seconds() -> float:
    """CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_prepare(folder: Path, megabytes: int) -> dict[str, Any]:
    """One core: tokens a second of CPU time of encoding and packing. Two processes: the gain on the clock."""
    size = corpus(folder / "corpus.jsonl", megabytes)
    tokenizer = folder / "tokenizer"
    settings = {"block_size": BLOCK, "text_column": "text"}
    first = PrepareSettings(
        sources=(str(folder / "corpus.jsonl"),), vocab_size=32_768, max_bytes=20_000_000, **settings
    )
    shutil.copytree(prepare(first, folder / "first").path / "tokenizer", tokenizer)

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loaded = load_tokenizer(str(tokenizer))
    (folder / "logs").mkdir()
    encoding = Encoding(
        PrepareSettings(sources=()), 2**64 // 100, folder / "logs", tokenizer, "", int(loaded.eos_token_id), len(loaded)
    )
    units = plan_units(resolve_sources([str(folder / "corpus.jsonl")]), "text", None)
    started = cpu_seconds()
    for unit in units:
        encode_unit(encoding, unit, lambda amount: None, lambda: None)
    encode = cpu_seconds() - started
    started = cpu_seconds()
    members = [Member(encoding.log(unit), 0, encoding.threshold, 0) for unit in units]
    division = divide(members, drawn=True, max_bytes=None, needed=BLOCK)
    shape = BlockShape(BLOCK, None, 2**28)
    for split, of_units in division.tokens.items():
        for plan in file_plans(split, division.members, of_units, shape):
            pack_file(folder, shape, plan, lambda amount: None, lambda: None)
    pack = cpu_seconds() - started
    tokens = sum(sum(of_units) for of_units in division.tokens.values())

    clock = {}
    for workers in (1, 2):
        script = (
            "import sys; from cocomix.cli import main; sys.argv = ['cocomix', *sys.argv[1:]]\n"
            "if __name__ == '__main__': main()"
        )
        run = folder / "run.py"
        run.write_text(script)
        command = [sys.executable, str(run), "prepare", str(folder / "corpus.jsonl"), "--tokenizer", str(tokenizer)]
        command += ["--block-size", str(BLOCK), "--workers", str(workers), "-o", str(folder / f"w{workers}"), "-q"]
        started = time.perf_counter()
        subprocess.run(command, check=True)
        clock[workers] = time.perf_counter() - started
    rate = tokens / (encode + pack)
    return {
        "text_mb": size / 1e6,
        "tokens": tokens,
        "bytes_of_text_per_token": size / tokens,
        "units": len(units),
        "encode_tokens_per_cpu_second": tokens / encode,
        "pack_tokens_per_cpu_second": tokens / pack,
        "tokens_per_cpu_second": rate,
        "seconds_by_workers": clock,
        "days_of_one_core_for_1T": TRILLION / rate / 86_400,
        "days_for_1T_by_processes": {n: TRILLION / rate / 86_400 / n for n in (8, 64, 512)},
    }


def sparse_tokens(folder: Path) -> None:
    """A folder of 10^12 tokens, all 0: its files are holes, its manifest is true to the last hash."""
    blocks_per_file, blocks = 2**28 // BLOCK, TRILLION // BLOCK
    folder.mkdir()
    kinds: dict[int, tuple[int, str]] = {}
    files, entries = [], {}
    for number, first in enumerate(range(0, blocks, blocks_per_file)):
        count, name = min(blocks_per_file, blocks - first), f"train-{number:05d}.npy"
        path = folder / name
        with path.open("wb") as stream:
            header = {"descr": "<u2", "fortran_order": False, "shape": (count * BLOCK,)}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.truncate(stream.tell() + 2 * count * BLOCK)
        if count not in kinds:
            with path.open("rb") as stream:
                kinds[count] = path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()
        files.append(TokensFile(name=name, blocks=count))
        entries[name] = {"size": kinds[count][0], "sha256": kinds[count][1]}
    split = SplitMeta(documents=10**9, tokens=TRILLION, bytes=0, blocks=blocks, files=tuple(files))
    numbers = {"vocab_size": 32_768, "eos_token_id": 0, "block_size": BLOCK, "seed": 0, "invalid_utf8": 0}
    names = {"tokenizer_fingerprint": "", "tokenizer_name": "", "sources": (), "splits": {"train": split}}
    manifest = TokensManifest(kind="tokens", version=Tokens.version, files=entries, **numbers, **names)
    (folder / "manifest.json").write_text(manifest.model_dump_json())


OPEN = """
import json, psutil, sys, time
from pathlib import Path
import numpy as np
from cocomix.data import Tokens
import cocomix.data.token_blocks
def memory():
    return psutil.Process().memory_info().rss / 1e6
before, started = memory(), time.process_time()
tokens = Tokens.open(sys.argv[1])
blocks = tokens.split("train", scattered=True)
opened, grown = time.process_time() - started, memory() - before
tokens._verified.holds = lambda path, sha256: True   # the hash of a file at its first use is verify's cost
places = np.random.default_rng(0).integers(len(blocks), size=4000)
for place in places[:100]:
    blocks[int(place)]
started = time.process_time()
for place in places[100:]:
    blocks[int(place)]
scattered = (time.process_time() - started) / 3900
started = time.process_time()
for place in range(10_000):
    blocks[place]
near = (time.process_time() - started) / 10_000
maps = sum(sys.argv[1] in line for line in Path("/proc/self/maps").read_text().splitlines())
times = {"scattered_block_us": scattered * 1e6, "neighbouring_block_us": near * 1e6}
print(json.dumps({"open_seconds": opened, "open_mb": grown, "blocks": len(blocks), **times, "open_maps": maps}))
"""


def measure_store(folder: Path) -> dict[str, Any]:
    """Open 10^12 tokens, in a process of its own."""
    place = folder / "trillion"
    sparse_tokens(place)
    found = json.loads(
        subprocess.run([sys.executable, "-c", OPEN, str(place)], check=True, capture_output=True, text=True).stdout
    )
    files = [path for path in place.iterdir() if path.name != "manifest.json"]
    size = sum(path.stat().st_size for path in files)
    manifest = (place / "manifest.json").stat().st_size
    shutil.rmtree(place)
    return {"files": len(files), "bytes_per_token": size / TRILLION, "manifest_kb": manifest / 1e3, **found}


def measure_verify(folder: Path, gigabytes: float) -> dict[str, Any]:
    """Hash and look at random tokens: CPU time of one thread, and the clock of all threads."""
    output = folder / "verify"
    blocks = int(gigabytes * 1e9) // (2 * BLOCK) // 4
    with Tokens.create(output, identity={}) as staging:
        files = []
        for number in range(4):
            name = f"train-{number:05d}.npy"
            tokens = np.random.default_rng(number).integers(32_000, size=blocks * BLOCK, dtype=np.uint16)
            np.save(staging.path / name, tokens)
            files.append(TokensFile(name=name, blocks=blocks))
        split = SplitMeta(documents=1, tokens=4 * blocks * BLOCK, bytes=0, blocks=4 * blocks, files=tuple(files))
        numbers = {"vocab_size": 32_768, "eos_token_id": 0, "block_size": BLOCK, "seed": 0, "invalid_utf8": 0}
        names = {"tokenizer_fingerprint": "", "tokenizer_name": "", "sources": (), "splits": {"train": split}}
        staging.finish(TokensManifest(**numbers, **names))
    tokens_folder, size = Tokens.open(output), 8 * blocks * BLOCK
    started, clock = cpu_seconds(), time.perf_counter()
    findings = tokens_folder.verify()
    cpu, clock = cpu_seconds() - started, time.perf_counter() - clock
    assert {finding.what for finding in findings.broken} == {"tokenizer"}, findings.broken  # there is none
    shutil.rmtree(output)
    rate = size / cpu
    return {
        "gb": size / 1e9,
        "mb_per_cpu_second": rate / 1e6,
        "mb_per_second_here": size / clock / 1e6,
        "threads_at_most": 8,
        "hours_for_1T_by_threads": {n: 2 * TRILLION / rate / n / 3600 for n in (1, 2, 8)},
    }


def measure_resume(folder: Path, units: int) -> dict[str, Any]:
    """Plan `units` units, and look which of them are finished and how their documents divide."""
    (folder / "many").mkdir()
    for number in range(units):
        (folder / "many" / f"{number:05d}.jsonl").write_text(json.dumps({"text": f"document {number}"}) + "\n")
    sources = resolve_sources([str(folder / "many")])
    (folder / "resumed").mkdir()
    encoding = Encoding(PrepareSettings(sources=()), 2**64 // 100, folder / "resumed", folder, "", 0, 32_768)

    units_module.MIN_UNIT_BYTES = units_module.MAX_UNIT_BYTES = 1
    planned = plan_units(sources, "text", None)
    documents = 1000
    rows = []
    for number in range(documents):
        digest = DocumentHash()
        digest.update(str(number).encode())
        rows.append((digest.value(), 4000, 0, True))
    for unit in planned:
        with encoding.log(unit) as log:
            log.append([np.zeros(2, dtype=log.dtype)] * documents, rows)
            log.finish()
    started = cpu_seconds()
    plan_units(resolve_sources([str(folder / "many")]), "text", None)
    for unit in planned:
        encode_unit(encoding, unit, lambda amount: None, lambda: None)
    found = cpu_seconds() - started
    started = cpu_seconds()
    members = [Member(encoding.log(unit), 0, encoding.threshold, 0) for unit in planned]
    divide(members, drawn=True, max_bytes=None, needed=BLOCK)
    divided = cpu_seconds() - started
    size = TRILLION // BLOCK
    started = cpu_seconds()
    for step in range(100):
        permuted(np.arange(512, dtype=np.int64) + step * 10**6, size, 0, 0, 0)
    order = (cpu_seconds() - started) / 100
    of_units, of_documents = found / len(planned), divided / len(planned) / documents
    count = 4 * TRILLION // _UNIT_BYTES
    return {
        "units": len(planned),
        "found_us_per_unit": of_units * 1e6,
        "divide_us_per_document": of_documents * 1e6,
        "step_order_ms": order * 1e3,
        "units_of_1T": count,
        "prepare_resume_seconds_for_1T": of_units * count,
        "divide_minutes_for_1T": of_documents * 10**9 / 60,
    }


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/trillion"))
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    options = parser.parse_args()
    shutil.rmtree(options.scratch, ignore_errors=True)
    options.scratch.mkdir(parents=True)
    os.environ["COCOMIX_CACHE"] = str(options.scratch / "cache")
    result: dict[str, Any] = {"machine": describe_machine("cpu"), "before": BEFORE}
    for name, measure in (
        ("store", lambda folder: measure_store(folder)),
        ("prepare", lambda folder: measure_prepare(folder, 4 if options.quick else 64)),
        ("verify", lambda folder: measure_verify(folder, 0.05 if options.quick else 2.0)),
        ("resume", lambda folder: measure_resume(folder, 100 if options.quick else 4000)),
    ):
        (options.scratch / name).mkdir()
        result[name] = measure(options.scratch / name)
        print(name, json.dumps(result[name], indent=2), flush=True)
        shutil.rmtree(options.scratch / name)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(options.scratch)


if __name__ == "__main__":
    main()
