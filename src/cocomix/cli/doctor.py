"""The verb `doctor`."""

from cocomix.cli.printing import Printed, table
from cocomix.runtime.errors import CoCoMixError


def doctor() -> Printed:
    """Look over this machine: versions, device, disk, hub.

    [dim]Example: cocomix doctor[/dim]
    """
    from cocomix.runtime.machine import examine

    lines = examine()
    failed = [line for line in lines if line.state == "fail"]
    error = CoCoMixError(f"{failed[0].name}: {failed[0].value}; {failed[0].advice}.") if failed else None
    rows = [(name, state, "; ".join(filter(None, texts))) for name, state, *texts in lines]
    return Printed([line._asdict() for line in lines], table(rows, state=1), error, only_aloud=True)
