"""The command line in the test's own process."""

import sys
from dataclasses import dataclass
from typing import Any

import pytest

from cocomix.cli import application, main


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


class Cli:
    """Calls `cocomix.cli.main` as the shell would, and looks at everything it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.allocator_calls = 0
        monkeypatch.setattr(application, "keep_freed_memory", self._allocator)

    def _allocator(self) -> bool:
        self.allocator_calls += 1
        return True

    def __call__(self, *arguments: Any, status: int = 0) -> Result:
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["cocomix", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = self.capsys.readouterr()
        assert caught.value.code == status, err
        assert "Traceback" not in err, err
        return Result(status, out, err)

    def refuses(self, *arguments: Any, says: str) -> str:
        """Exit status 1 and one sentence on standard error."""
        result = self(*arguments, status=1)
        lines = result.err.strip().splitlines()
        assert lines[-1].startswith("error: "), result.err
        assert sum(line.startswith("error: ") for line in lines) == 1
        assert says in lines[-1], lines[-1]
        assert result.out == ""
        return lines[-1]
