"""Checks of what is stored of blocks: tokens, labels, teacher probabilities."""

from pathlib import Path

from cocomix import artifacts
from cocomix.data import Tokens
from cocomix.integrity.findings import Findings
from cocomix.labelling import Labels, TeacherProbabilities
from cocomix.runtime.errors import CoCoMixError

__all__ = ["check_stored"]

_KINDS = (Tokens, Labels, TeacherProbabilities)  # imported, so that they are recognised


def check_stored(path: Path, checklist: Findings) -> None:
    """All that the artefact's own `verify` looks at; of an unfinished one what can be told already."""
    for finding in artifacts.verify(path).found:
        if finding.state == "not checked":
            checklist.skip(finding.what, finding.detail)
        else:
            fault = CoCoMixError(finding.detail) if finding.state == "broken" else None
            checklist.note(finding.what, finding.detail, fault)
