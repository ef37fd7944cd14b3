"""The verb that opens a run in the browser: explore."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import RunOrExample
from cocomix.runtime.errors import require_extra


def explore(
    run: RunOrExample,
    atlas: Annotated[
        Path | None, typer.Option(help="Folder written by `cocomix atlas`; default: RUN_atlas, if there is one.")
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Another run for the curves; repeatable.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Teacher to steer too; default: the one of the labels.")] = None,
    dictionary: Annotated[str | None, typer.Option(help="Its dictionary; default: the one of the labels.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve on.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to serve on; any but this machine's own needs a password.")
    ] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name by which a proxy is reached; any name not known is refused."),
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File with a password for the user cocomix; or set COCOMIX_EXPLORER_PASSWORD")
    ] = None,
) -> None:
    """Open a run in the browser: read, steer, compare.

    [dim]Example: cocomix explore runs/first --compare runs/ntp[/dim]
    """
    require_extra("explorer", "gradio", purpose="the explorer")
    from cocomix.explorer import find_password, open_subject, serve

    password = find_password(host, password_file)
    subject = open_subject(run, atlas=atlas, compare_with=compare or (), teacher=teacher, dictionary=dictionary)
    serve(subject, host=host, port=port, password=password, allowed_hosts=allowed_host or ())
