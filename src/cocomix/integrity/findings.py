"""What a verification found, one line per thing that was looked at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from cocomix.artifacts.urls import shown
from cocomix.runtime.errors import CoCoMixError

__all__ = ["Finding", "Findings", "State", "Verification"]

T = TypeVar("T")
State = Literal["ok", "broken", "not checked"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: a file, or a property.
        state: `not checked` is what is not within reach, such as a teacher on the hub.
        detail: what was compared; of a broken one what is wrong and what to do.
    """

    what: str
    state: State
    detail: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        path: the artefact.
        kind: what it is, in words.
        format_version: of its manifest.
        findings: in the order of the checks.
    """

    path: Path
    kind: str
    format_version: int
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The findings that are broken."""
        return tuple(finding for finding in self.findings if finding.state == "broken")

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "path": shown(self.path),
            "kind": self.kind,
            "format_version": self.format_version,
            "whole": not self.broken,
            "findings": [asdict(finding) for finding in self.findings],
        }


@dataclass
class Findings:
    """Collects findings while checks run, and tells `advance` of each."""

    found: list[Finding] = field(default_factory=list)
    advance: Callable[[float], None] = lambda amount: None

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The findings that are broken."""
        return tuple(finding for finding in self.found if finding.state == "broken")

    @contextmanager
    def check(self, what: str, detail: str, remedy: str) -> Iterator[None]:
        """Note `what` as ok with `detail`, or as broken if the block raises: then with the reason.

        Args:
            what: is looked at.
            detail: what is compared.
            remedy: added to reasons that are not our own sentences, which name theirs.
        """
        try:
            yield
        except CoCoMixError as error:
            self._note(what, "broken", str(error))
        except Exception as error:  # a damaged file makes its parser fail in whatever way it likes
            reason = " ".join(str(error).split()) or type(error).__name__
            self._note(what, "broken", f"{what} cannot be read ({reason}); {remedy}.")
        else:
            self._note(what, "ok", detail)

    def attempt(self, what: str, detail: str, remedy: str, make: Callable[[], T]) -> T | None:
        """What `make` returns; `None` where it fails, which is noted as in `check`."""
        made: list[T] = []
        with self.check(what, detail, remedy):
            made.append(make())
        return made[0] if made else None

    def equal(self, what: str, found: object, recorded: object, detail: str, remedy: str) -> None:
        """Note whether two values agree."""
        with self.check(what, detail, remedy):
            if found != recorded:
                raise CoCoMixError(f"{what} is not what was recorded ({detail}); {remedy}.")

    def note(self, what: str, detail: str, fault: Exception | None) -> None:
        """Note `what` as ok with `detail`, or as broken by `fault`."""
        self._note(what, "ok" if fault is None else "broken", detail if fault is None else str(fault))

    def skip(self, what: str, why: str) -> None:
        """Note that something was not within reach."""
        self._note(what, "not checked", why)

    def _note(self, what: str, state: State, detail: str) -> None:
        self.found.append(Finding(what, state, detail))
        self.advance(1)
