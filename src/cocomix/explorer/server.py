"""Serving the page: on this machine alone unless asked otherwise, and then behind a password."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any

from cocomix.explorer.guard import USER, SecurityHeaders, names_of
from cocomix.explorer.subject import LIMITS, Subject
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)

_SESSIONS = 200


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

    Args:
        allowed_hosts: names the page answers to beside the host's own; see `names_of`.

    Raises:
        CoCoMixError: the port is taken, the host is not this machine's, or an allowed host is no name.
    """
    names = names_of(host, allowed_hosts)
    _refuse_taken(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from cocomix.explorer.app import build_app, style_sheet, theme

    app = build_app(subject)
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
        app_kwargs={
            "middleware": [
                Middleware(SecurityHeaders, names=names),
                Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False),
            ]
        },
        max_threads=LIMITS.running + 16,
        state_session_capacity=_SESSIONS,
        theme=theme(),
        css=style_sheet(),
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
