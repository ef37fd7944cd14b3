"""A folder served over HTTP on this machine, some of whose answers can be spoilt."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("503", "cut", "short", "reset")
"""`cut`: half of the body, then the connection is closed; `short`: the same without saying how long it would be."""


class Served:
    """A server.

    Attributes:
        folder: that is served.
        url: of it.
        asked: names of the files that were asked for.
        fault: what to do with the n-th request for a file of the name; None answers it.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.asked: list[str] = []
        self.fault: Callable[[int, str], str | None] = lambda number, name: None


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve a folder."""

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[1]
            state.asked.append(name)
            fault = state.fault(len(state.asked), name)
            if fault is None:
                super().do_GET()
            elif fault == "503":
                self.send_error(503)
            elif fault != "reset":
                body = Path(self.translate_path(self.path)).read_bytes()
                self.send_response(200)
                if fault == "cut":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    state = Served(folder, f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
