"""Serving the page: on this machine alone unless asked otherwise, and then behind a password."""

import hmac
import ipaddress
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from cocomix.explorer.limits import LIMITS
from cocomix.explorer.subject import Subject
from cocomix.runtime.errors import CoCoMixError

__all__ = ["PASSWORD_VARIABLE", "USER", "find_password", "serve", "serving"]

logger = logging.getLogger(__name__)

PASSWORD_VARIABLE = "COCOMIX_EXPLORER_PASSWORD"
"""Environment variable that may hold the password."""
USER = "cocomix"
"""The one user name."""

_SHORTEST_PASSWORD = 8
_SESSIONS = 200


def find_password(host: str, password_file: Path | None) -> str | None:
    """The password the page asks for: from the file, else from the environment, else none.

    Raises:
        CoCoMixError: the page would be reached from other machines and there is none, or it is too short, or the file
            cannot be read.
    """
    password = os.environ.get(PASSWORD_VARIABLE)
    if password_file is not None:
        try:
            password = password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CoCoMixError(f"the password file {password_file} cannot be read ({error}).") from error
    if not password:
        if _is_loopback(host):
            return None
        raise CoCoMixError(
            f"--host {host} can be reached from other machines, so a password is needed: give --password-file, or set "
            f"{PASSWORD_VARIABLE}."
        )
    if len(password) < _SHORTEST_PASSWORD:
        raise CoCoMixError(f"the password has {len(password)} characters; use at least {_SHORTEST_PASSWORD}.")
    return password


def serve(
    subject: Subject,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        CoCoMixError: the port is taken, or the host is not this machine's.
    """
    with serving(subject, host=host, port=port, password=password) as address:
        logger.info(f"the explorer of {subject.run.manifest.name} is at {address}; Ctrl-C ends it.")
        if password is not None:
            logger.info(f"the user name is {USER}.")
        try:
            Event().wait()
        except KeyboardInterrupt:
            logger.info("the explorer has ended.")


@contextmanager
def serving(
    subject: Subject, *, host: str = "127.0.0.1", port: int = 7860, password: str | None = None
) -> Iterator[str]:
    """Serve the page from a thread while the block runs; yields its address. Arguments and errors as in `serve`."""
    _refuse_taken(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    from cocomix.explorer.app import build_app
    from cocomix.explorer.look import style_sheet, theme

    app = build_app(subject)
    options: dict[str, Any] = {}
    if password is not None:
        options["auth"] = lambda user, given: hmac.compare_digest(
            f"{user}\0{given}".encode(), f"{USER}\0{password}".encode()
        )
    _, address, _ = app.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=1,
        max_threads=LIMITS.running + LIMITS.waiting,
        state_session_capacity=_SESSIONS,
        theme=theme(),
        css=style_sheet(),
        **options,
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
