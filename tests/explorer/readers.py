"""Many readers of one explorer at once, and a soak: the explorer's memory while readers come and go.

    python -m tests.explorer.readers RUN --minutes 60 --readers 20 --output soak.json

Each reader opens the page as a browser does, reads a text of its own, and leaves. The command starts `cocomix explore`,
prints its memory after every round and fails if the last quarter of the time needs over 10% more than the second one.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

__all__ = ["read_together"]

_WORDS = ["the", "list", "of", "items", "and", "a", "key", "in", "this", "file", "returns", "value", "string", "index"]


def read_together(address: str, readers: int, first: int = 0) -> list[str]:
    """What so many readers are told of their texts, all asking at once; `first` numbers their texts."""

    async def everyone() -> list[str]:
        # No connection is used twice: the server closes an idle one, and httpx, unlike a browser, does not ask again.
        limits = httpx.Limits(max_connections=2 * readers, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
            return await asyncio.gather(*(_read(client, first + reader) for reader in range(readers)))

    # In a thread of its own: a browser that an earlier test opened leaves a running event loop in this one.
    with ThreadPoolExecutor(max_workers=1) as alone:
        return alone.submit(asyncio.run, everyone()).result()


async def _read(client: httpx.AsyncClient, reader: int) -> str:
    """Open the page, read a text, and give the sentence on where its concept is mixed in."""
    assert (await client.get("/")).status_code == 200
    config = (await client.get("/config")).json()
    found = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "cx-found")
    event = next(one for one in config["dependencies"] if found in one["outputs"])
    text = " ".join(_WORDS[(reader * step + step) % len(_WORDS)] for step in range(1, 9)) + f" {reader}"
    session = uuid.uuid4().hex
    asked = {"data": [text, "", 1], "fn_index": event["id"], "session_hash": session}
    (await client.post("/gradio_api/queue/join", json=asked)).raise_for_status()
    told = ""
    async with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as answer:
        async for line in answer.aiter_lines():
            said: dict[str, Any] = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if said.get("msg") == "process_generating" and not told:
                told = str(said["output"]["data"][event["outputs"].index(found)])
            if said.get("msg") in ("process_completed", "close_stream"):
                assert said.get("success", True), said
                break
    return told


def _soak(run: Path, minutes: float, readers: int, output: Path | None) -> int:
    """Let readers come and go; 0 where memory stays bounded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cocomix", "explore", str(run), "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        process, address = psutil.Process(server.pid), f"http://127.0.0.1:{port}"
        while True:
            assert server.poll() is None, "the explorer has ended"
            try:
                httpx.get(address)
                break
            except httpx.ConnectError:
                time.sleep(1)
        began, rounds = time.monotonic(), []
        while (elapsed := time.monotonic() - began) < 60 * minutes:
            told = read_together(address, readers, first=readers * len(rounds))
            assert all(told), "a reader was not answered"
            rounds.append({"seconds": round(elapsed, 1), "resident_mib": process.memory_info().rss >> 20})
            print(json.dumps(rounds[-1]), flush=True)  # noqa: T201
    finally:
        server.terminate()
        server.wait(30)
    quarters = [rounds[len(rounds) * quarter // 4 : len(rounds) * (quarter + 1) // 4] for quarter in range(4)]
    peaks = [max((one["resident_mib"] for one in quarter), default=0) for quarter in quarters]
    bounded = peaks[3] <= 1.1 * peaks[1]
    summary = {"readers": readers * len(rounds), "peak_mib_by_quarter": peaks, "bounded": bounded}
    print(json.dumps(summary))  # noqa: T201
    if output is not None:
        output.write_text(json.dumps({**summary, "minutes": minutes, "rounds": rounds}, indent=1) + "\n")
    return 0 if bounded else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    sys.exit(_soak(asked.run, asked.minutes, asked.readers, asked.output))
