"""A labeller that notes in a file which process labels a batch; a module of its own, so that Ray workers import it."""

import os
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from cocomix.concepts import ConceptLabels, register_labeller
from tests.labelling.tiny import TinyConfig, TinyLabeller

__all__ = ["PATIENCE_SECONDS", "JournalledConfig", "begun_by"]

PATIENCE_SECONDS = 300


class JournalledConfig(TinyConfig):
    """Settings of `journalled`."""

    kind: Literal["journalled"] = "journalled"  # type: ignore[assignment]
    journal: str = ""
    """The file."""
    slow: bool = True
    """Wait half a second before a batch, and for a second process to have begun one."""


@register_labeller("journalled")
class JournalledLabeller(TinyLabeller):
    """The tiny labeller; it keeps a journal."""

    config_type: ClassVar[Any] = JournalledConfig
    config: JournalledConfig

    @classmethod
    def build(cls, config: Any, **options: Any) -> Any:
        labeller = super().build(config, **options)
        labeller.config = config
        return labeller

    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        journal = Path(self.config.journal)
        with journal.open("a", encoding="utf-8") as stream:
            stream.write(f"{os.getpid()}\n")
        until = time.monotonic() + PATIENCE_SECONDS
        time.sleep(0.5 * self.config.slow)
        while self.config.slow and len(set(begun_by(journal))) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        return super().label(input_ids, attention_mask, k=k)


def begun_by(journal: Path) -> list[int]:
    """The processes that labelled batches, in order."""
    return [int(line) for line in journal.read_text(encoding="utf-8").split()] if journal.exists() else []
