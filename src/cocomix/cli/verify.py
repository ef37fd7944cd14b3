"""The verb `verify`."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.printing import Printed, table
from cocomix.runtime.errors import CoCoMixError


def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Data, labels, dictionary, run, checkpoint, atlas, …")],
) -> Printed:
    """Check an artefact, and what it says it was made from.

    [dim]Example: cocomix verify data/books/labels[/dim]
    """
    import cocomix.interpret  # noqa: F401  # it imports every room that has artefacts
    from cocomix.artifacts import verify as run

    found = run(path)
    rows = [(finding.what, finding.state, finding.detail) for finding in found.found]
    more = f" ({len(found.broken) - 1} more)" if len(found.broken) > 1 else ""
    error = CoCoMixError(f"{found.broken[0].detail}{more}") if found.broken else None
    note = f"{found.kind}, format {found.version}, in {found.path}"
    return Printed(found.to_json(), table(rows, state=1), error, note, only_aloud=True)
