"""An S3 store on 127.0.0.1 (moto), behind a proxy that spoils some of the answers."""

import http.client
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

__all__ = ["BUCKET", "FAULTS", "Proxy", "store"]

BUCKET = "corpus"
FAULTS = ("none", "503", "cut", "reset", "down")
"""`503`, `cut` (half of the body, then the connection is closed), `reset` (closed before an answer): every 5th GET of
an object. `down`: 503 for every GET of a shard after the 10th."""

_EVERY = 5
_WORKING_BEFORE_DOWN = 10


class Proxy:
    """Passes requests on; `fault` says what happens to some of them."""

    def __init__(self, upstream_port: int) -> None:
        self.fault = "none"
        self.seen = self.spoiled = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self._pass_on("GET")

            def do_HEAD(self) -> None:
                self._pass_on("HEAD")

            def _pass_on(self, method: str) -> None:
                fault = proxy.fault_of(method, self.path)
                if fault == "reset":
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault == "503":
                    self._answer(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=30)
                upstream.request(method, self.path, headers=dict(self.headers))
                answer = upstream.getresponse()
                body = answer.read()
                upstream.close()
                dropped = {"transfer-encoding", "connection", "content-length"}
                headers = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
                length = answer.getheader("Content-Length") or str(len(body))
                self._answer(answer.status, headers, body, length, cut=fault == "cut" and method == "GET")

            def _answer(
                self, status: int, headers: dict[str, str], body: bytes, length: str = "", cut: bool = False
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", length or str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)
                if cut:
                    self.wfile.flush()
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def start(self, fault: str) -> None:
        """Count from zero, and spoil answers so."""
        self.fault, self.seen, self.spoiled = fault, 0, 0

    def fault_of(self, method: str, path: str) -> str:
        """What happens to this request."""
        name = path.split("?")[0].rsplit("/", 1)[-1]
        if method != "GET" or "list-type" in path or not name:
            return "none"
        with self._lock:
            self.seen += 1
            if self.fault == "none":
                return "none"
            if self.fault == "down":
                spoiled = self.seen > _WORKING_BEFORE_DOWN
                found = "503" if spoiled else "none"
            else:
                spoiled = self.seen % _EVERY == 0
                found = self.fault if spoiled else "none"
            self.spoiled += spoiled
            return found

    def stop(self) -> None:
        """End the server."""
        self._server.shutdown()


@contextmanager
def store(folders: dict[str, Path]) -> Iterator[Proxy]:
    """Put folders into a bucket, and give the proxy before it."""
    os.environ.update(
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
        AWS_ALLOW_HTTP="true",
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket=BUCKET, ACL="public-read")
    for name, folder in folders.items():
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), BUCKET, f"{name}/{path.relative_to(folder)}", {"ACL": "public-read"})
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.stop()
        server.stop()
