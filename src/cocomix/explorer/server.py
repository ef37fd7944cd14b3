"""Serving the page: on this machine alone unless asked otherwise, and then behind a password.

Who may use it: a password, the names the server answers to, and the headers that fence the page in.
"""

import base64
import hashlib
import ipaddress
import logging
import os
import re
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import psutil

from cocomix.explorer.subject import RUNNING, Subject
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)

_SESSIONS = 200
PASSWORD_VARIABLE = "COCOMIX_EXPLORER_PASSWORD"
"""Environment variable that may hold the password."""
USER = "cocomix"
"""The one user name."""

_SHORTEST_PASSWORD = 8
_HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Gradio builds templates and plots with `new Function` ('unsafe-eval') and styles them inline. Its inline scripts are
# named by their hashes, so that neither a script nor an event handler slipped into the page would run.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'{hashes}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; manifest-src 'self'; worker-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)


def serve(subject: Subject, **where: Any) -> None:
    """Serve the page until Ctrl-C. Arguments and errors as in `serving`."""
    with serving(subject, **where) as address:
        logger.info(f"the explorer of {subject.run.manifest.name} is at {address}; Ctrl-C ends it.")
        if where.get("password") is not None:
            logger.info(f"the user name is {USER}.")
        try:
            Event().wait()
        except KeyboardInterrupt:
            logger.info("the explorer has ended.")


@contextmanager
def serving(
    subject: Subject,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    allowed_hosts: Sequence[str] = (),
) -> Iterator[str]:
    """Serve the page from a thread while the block runs; yields its address.

    `allowed_hosts` are names the page answers to beside the host's own (see `names_of`). Refused where the port is
    taken, the host is not this machine's, or an allowed host is no name.
    """
    names = names_of(host, allowed_hosts)
    _refuse_taken(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from cocomix.explorer.app import build_app, theme

    app = build_app(subject)
    _, address, _ = app.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=1,
        app_kwargs={
            "middleware": [
                Middleware(SecurityHeaders, names=names),
                Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False),
            ]
        },
        max_threads=RUNNING + 16,
        state_session_capacity=_SESSIONS,
        theme=theme(),
        css_paths=Path(__file__).with_name("explorer.css"),
        auth=None if password is None else (USER, password),  # Gradio compares them in constant time
    )
    try:
        yield address
    finally:
        app.close()


def _refuse_taken(host: str, port: int) -> None:
    """Say in words that a port cannot be served on, before anything is built."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise CoCoMixError(
            f"cannot serve on {host}, port {port} ({error.strerror}); choose another --port or --host."
        ) from error


def find_password(host: str, password_file: Path | None) -> str | None:
    """The password the page asks for: from the file, else from the environment, else none.

    Refused where the page would be reached from other machines and there is none, where it is empty or too short, or
    where the file cannot be read.
    """
    if password_file is not None:
        source = f"the password file {password_file}"
        try:
            password = password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CoCoMixError(f"{source} cannot be read ({error}).") from error
    elif PASSWORD_VARIABLE in os.environ:
        source, password = PASSWORD_VARIABLE, os.environ[PASSWORD_VARIABLE].strip()
    elif _is(host, "is_loopback"):
        return None
    else:
        raise CoCoMixError(
            f"--host {host} can be reached from other machines, so a password is needed: give --password-file, or set "
            f"{PASSWORD_VARIABLE}."
        )
    if len(password) < _SHORTEST_PASSWORD:
        raise CoCoMixError(
            f"{source} holds a password of {len(password)} characters; write one of at least {_SHORTEST_PASSWORD}."
        )
    return password


def names_of(host: str, allowed: Sequence[str] = ()) -> list[str]:
    """The names by which a browser may ask for the page; a request by any other name is refused.

    A web page can make its own host name resolve to this machine (DNS rebinding) and would then share an origin with a
    server that answers to any name. `allowed`: further names, such as the one by which a proxy is reached; refused
    where one holds more than a host.
    """
    for name in allowed:
        if not re.fullmatch(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:]+\]?", name):
            raise CoCoMixError(f"--allowed-host {name} is no host name; give a name alone, without https:// and port.")
    names = {"localhost", "127.0.0.1", "::1", host, *allowed}
    if _is(host, "is_unspecified"):  # served on every address of this machine
        names |= {address.address.partition("%")[0] for found in psutil.net_if_addrs().values() for address in found}
        names |= {socket.gethostname(), socket.getfqdn()}
    return sorted({_bracketed(name.lower()) for name in names})


class SecurityHeaders:
    """ASGI middleware: refuse requests that another site's page sends, and fence ours in.

    Every answer forbids framing, sniffing of content types, and anything that is not this server's own.
    """

    def __init__(self, app: Any, names: Collection[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        from starlette.responses import PlainTextResponse

        origin = dict(scope["headers"]).get(b"origin")
        if origin is not None and _host_of(origin.decode("latin-1")) not in self.names:
            await PlainTextResponse("another site asks for this page", 403, _HEADERS)(scope, receive, send)
            return
        held: dict[str, Any] = {}  # the start of an HTML answer waits for its body, whose scripts it names

        async def fenced(message: Any) -> None:
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                if kind.startswith(b"text/html"):
                    held.update(start=message, body=b"")
                    return
                message = _with_headers(message, b"")
            elif message["type"] == "http.response.body" and held:
                held["body"] += message.get("body", b"")
                if message.get("more_body"):
                    return
                await send(_with_headers(held["start"], held["body"]))
                message = {"type": "http.response.body", "body": held["body"]}
            await send(message)

        await self.app(scope, receive, fenced)


def _with_headers(start: Any, html: bytes) -> Any:
    """The start of an answer with our headers; the policy allows the inline scripts of its HTML."""
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _INLINE_SCRIPT.findall(html)]
    policy = _POLICY.format(hashes="".join(f" 'sha256-{digest}'" for digest in hashes))
    ours = {**_HEADERS, "Content-Security-Policy": policy}
    return {**start, "headers": [*start["headers"], *((name.lower().encode(), ours[name].encode()) for name in ours)]}


def _host_of(origin: str) -> str | None:
    """The host that an `Origin` header names; `None` for an opaque one."""
    try:
        return _bracketed(urlsplit(origin).hostname or "") or None
    except ValueError:
        return None


def _bracketed(host: str) -> str:
    """A host as it stands in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _is(host: str, what: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host), what))
    except ValueError:
        return host == "localhost" and what == "is_loopback"
