"""Checks of what an artefact was made from, where that is on this machine."""

from pathlib import Path

from cocomix.concepts import ConceptDictionary, load_teacher
from cocomix.concepts.fingerprints import model_fingerprint
from cocomix.data import Tokens
from cocomix.integrity.findings import Findings
from cocomix.labelling import Labels
from cocomix.runtime.errors import CoCoMixError

__all__ = ["check_data_source", "check_dictionary_source", "check_label_source", "check_teacher_source"]


def check_teacher_source(name: str, fingerprint: str, checklist: Findings) -> None:
    """The teacher, if it is a folder or a file here."""
    if not Path(name).exists():
        checklist.skip("teacher", f"{name} is not on this machine")
        return
    with checklist.check("teacher", f"fingerprint of {name}", "get it again"):
        if model_fingerprint(load_teacher(name)) != fingerprint:
            raise CoCoMixError(
                f"{name} is no longer the teacher this was made with; bring that one back, or make this again."
            )


def check_dictionary_source(name: str, fingerprint: str, checklist: Findings) -> None:
    """The dictionary, if it is a folder here."""
    if not Path(name).is_dir():
        checklist.skip("dictionary", f"{name} is not on this machine")
        return
    with checklist.check("dictionary", f"fingerprint of {name}", "fit it again"):
        if ConceptDictionary.from_sae_lens(name).fingerprint() != fingerprint:
            raise CoCoMixError(
                f"{name} is no longer the dictionary this was made with; bring that one back, or make this again."
            )


def check_data_source(name: str, fingerprint: str, checklist: Findings) -> None:
    """The prepared data, if it is a folder here."""
    if not Path(name).is_dir():
        checklist.skip("data", f"{name} is not on this machine")
        return
    with checklist.check("data", f"fingerprint of {name}", "prepare it again"):
        if Tokens.open(name).manifest.fingerprint != fingerprint:
            raise CoCoMixError(f"{name} is no longer the data this was made from; bring that back to compare with it.")


def check_label_source(name: str, fingerprint: str, checklist: Findings) -> None:
    """The labels, if they are a folder here."""
    if not Path(name).is_dir():
        checklist.skip("labels", f"{name} is not on this machine")
        return
    with checklist.check("labels", f"fingerprint of {name}", "label again"):
        if Labels.open(name).manifest.fingerprint != fingerprint:
            raise CoCoMixError(f"{name} are no longer the labels this was made with; bring those back to compare.")
