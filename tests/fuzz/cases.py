"""What a fuzz target is, and how a case is judged."""

import faulthandler
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from cocomix.runtime.errors import CoCoMixError
from tests.workshop import Workshop

SECONDS = 20
"""Of the processor's time: a case that takes more counts as a hang, whatever else the machine does meanwhile."""
LAST_RESORT = 900
"""Seconds after which the whole run is ended, with the stack on stderr: code outside Python may heed no signal, or wait
without computing."""


class Hang(BaseException):
    """A case did not end; no `except Exception` keeps it."""


@dataclass
class World:
    """What cases start from.

    Attributes:
        workshop: whole folders, never changed.
        scratch: a folder of the target's own.
        refused: cases that ended in a `CoCoMixError` so far.
    """

    workshop: Workshop
    scratch: Path
    refused: int = 0

    def refusal_or_result(self, function: Callable[[], Any]) -> Any:
        """Call a function; a refusal in one sentence gives `None`, and any other error is the case's failure."""
        try:
            return function()
        except CoCoMixError as error:
            self.refused += 1
            sentence = str(error).strip()
        assert sentence, "an empty refusal"
        assert "Traceback" not in sentence
        return None


Case = Callable[[World, Callable[..., Any]], None]


@dataclass(frozen=True)
class Target:
    """One kind of case.

    Attributes:
        name: in tables.
        case: draws what it needs and checks.
        share: of a long run's cases, in any unit.
        setting_up: makes what all cases share, once.
    """

    name: str
    case: Case
    share: int
    setting_up: Callable[[World], None] = lambda world: None


@dataclass(frozen=True)
class Outcome:
    """What a number of cases of one target came to."""

    target: str
    cases: int
    refused: int
    failure: str | None


def run_target(target: Target, workshop: Workshop, scratch: Path, *, cases: int, seed: int) -> Outcome:
    """Run so many cases of a target; the first failure, made as small as it can be, ends it."""
    scratch.mkdir(parents=True)
    world = World(workshop, scratch)
    target.setting_up(world)
    done = 0

    @hypothesis.seed(seed)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(st.data())
    def one(data: st.DataObject) -> None:
        nonlocal done
        done += 1
        with _limited():
            target.case(world, data.draw)

    failure = None
    try:
        one()
    except (Exception, Hang) as error:
        each = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
        failure = "\n\n".join(
            "\n".join((f"{type(one).__name__}: {one}", *getattr(one, "__notes__", ()))) for one in each
        )
    return Outcome(target.name, done, world.refused, failure)


@contextmanager
def _limited() -> Iterator[None]:
    def hang(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no end after {SECONDS} seconds of computing")

    before = signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    faulthandler.dump_traceback_later(LAST_RESORT, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
