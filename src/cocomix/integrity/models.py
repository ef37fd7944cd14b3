"""Checks of what holds weights: dictionaries, runs, checkpoints."""

from dataclasses import asdict
from pathlib import Path

from cocomix.artifacts import MANIFEST
from cocomix.artifacts.hashing import file_sha256
from cocomix.artifacts.output import read_json
from cocomix.concepts import ConceptDictionary, Dictionary
from cocomix.evaluation import Run
from cocomix.integrity.findings import Finding, Findings
from cocomix.integrity.sources import check_data_source, check_label_source
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.checkpoints import checkpoint_fault, checkpoint_step
from cocomix.training.recipe import load_recipe

__all__ = ["check_checkpoint", "check_dictionary", "check_run", "check_unfinished_run"]

_FIT = "fit it again with `cocomix sae`"
_TRAIN = "restore it from a copy, or train the run again"


def check_dictionary(path: Path, checklist: Findings) -> None:
    """A dictionary: its manifest where it has one, and that it can be read."""
    if (path / MANIFEST).is_file():
        checklist.found += [Finding(**asdict(found)) for found in Dictionary.open(path).verify().found]
        return
    checklist.skip(MANIFEST, "not written by cocomix, so there is no hash to compare with")
    checklist.attempt("weights", "shapes, finite", _FIT, lambda: _finite_dictionary(path))


def _finite_dictionary(path: Path) -> ConceptDictionary:
    dictionary = ConceptDictionary.from_sae_lens(path)
    if not all(bool(weights.isfinite().all()) for weights in (dictionary.W_enc, dictionary.W_dec)):
        raise CoCoMixError(f"{path} has weights that are not finite; {_FIT}.")
    return dictionary


def check_run(path: Path, checklist: Findings) -> None:
    """A run: its files, its model, and data and labels where they are near."""
    run = Run.open(path)
    files = read_json(path / "manifest.json").get("files")
    if files is None:
        checklist.skip("files", "trained before hashes of a run's files were recorded")
    for name, sha256 in (files or {}).items():
        with checklist.check(name, "its hash", _TRAIN):
            if not _within(path, name).is_file():
                raise CoCoMixError(f"{path / name} is missing; {_TRAIN}.")
            if file_sha256(path / name) != sha256:
                raise CoCoMixError(f"{path / name} has changed since it was written; {_TRAIN}.")
    with checklist.check("recipe", "its fields", _TRAIN):
        load_recipe(path / "recipe.yaml")
    with checklist.check("model", "loads, is finite and has as many parameters as recorded", _TRAIN):
        model = run.model()
        if sum(weights.numel() for weights in model.parameters()) != run.manifest.parameters.total:
            raise CoCoMixError(f"the model in {path} has another number of parameters than recorded; {_TRAIN}.")
        if not all(bool(weights.isfinite().all()) for weights in model.parameters()):
            raise CoCoMixError(f"the model in {path} has weights that are not finite; {_TRAIN}.")
    check_data_source(run.manifest.data.path, run.manifest.data.folder_fingerprint, checklist)
    if run.manifest.labels is not None:
        check_label_source(run.manifest.labels.path, run.manifest.labels.fingerprint, checklist)


def check_unfinished_run(path: Path, checklist: Findings) -> None:
    """The checkpoints of an unfinished run."""
    for checkpoint in sorted((path / "checkpoints").glob("checkpoint-*"), key=checkpoint_step):
        check_checkpoint(checkpoint, checklist)
    checklist.skip("the run", "not finished; run the same `cocomix train` again to go on")


def check_checkpoint(path: Path, checklist: Findings) -> None:
    """A checkpoint: every file against its hash."""
    with checklist.check(path.name, "hashes of all its files", "remove it"):
        if fault := checkpoint_fault(path):
            raise CoCoMixError(
                f"{path} {fault}; remove it: the same `cocomix train` then goes on from the checkpoint before."
            )


def _within(folder: Path, name: str) -> Path:
    """A file that a manifest names.

    Raises:
        CoCoMixError: the name leads out of the folder.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CoCoMixError(f"the manifest of {folder} names {name}, which lies outside; do not use this folder.")
    return path
