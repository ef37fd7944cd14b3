"""What a verification found, one line per thing that was looked at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cocomix.runtime.errors import CoCoMixError


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str  # a file, or a property
    # `not checked` is what is not within reach, such as a teacher on the hub
    state: Literal["ok", "broken", "not checked"]
    detail: str  # what was compared; of a broken one what is wrong and what to do


@dataclass
class Findings:
    """Collects findings while checks run."""

    path: str
    """Of the artefact, as a person writes it."""
    kind: str
    version: int
    found: list[Finding] = field(default_factory=list)
    """In the order of the checks."""

    @property
    def broken(self) -> list[Finding]:
        return [finding for finding in self.found if finding.state == "broken"]

    @contextmanager
    def check(self, what: str, detail: str, remedy: str) -> Iterator[None]:
        """Note `what` as ok with `detail`, what is compared, or as broken if the block raises: then with the reason.

        The remedy is added to reasons that are not our own sentences, which name theirs.
        """
        try:
            yield
        except CoCoMixError as error:
            self.found.append(Finding(what, "broken", str(error)))
        except Exception as error:  # a damaged file makes its parser fail in whatever way it likes
            reason = " ".join(str(error).split()) or type(error).__name__
            self.found.append(Finding(what, "broken", f"{what} cannot be read ({reason}); {remedy}."))
        else:
            self.found.append(Finding(what, "ok", detail))

    def skip(self, what: str, why: str) -> None:
        """Note that something was not within reach."""
        self.found.append(Finding(what, "not checked", why))

    def source(self, role: str, place: str, recorded: str, current: Callable[[], str]) -> None:
        """Note whether what an artefact was made from, where that is here, still has the recorded fingerprint.

        `role` is as in `Manifest.made_from`, `place` where it was, any name; `current` gives the fingerprint of now.
        """
        if not Path(place).exists():
            self.skip(role, f"{place} is not on this machine")
            return
        with self.check(role, f"fingerprint of {place}", "get it again"):
            if current() != recorded:
                raise CoCoMixError(
                    f"{place} is no longer what this was made from; bring that back, or make this again."
                )

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON; `whole` if nothing is broken."""
        return {**asdict(self), "whole": not self.broken}
