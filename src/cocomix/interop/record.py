"""What is known of a run when it is exported: from its own folder, and from what it was made of where that is near."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cocomix.artifacts import read_json
from cocomix.data import Tokens, TokensManifest
from cocomix.evaluation import Downstream, Run, RunEvaluation, evaluations_of
from cocomix.evaluation.downstream import read_downstream
from cocomix.labelling import Labels, LabelsManifest
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.recipe import RunConfig, load_recipe

Found = TypeVar("Found")


class RunRecord(NamedTuple):
    """A run with its surroundings.

    Attributes:
        recipe: as it was resolved when the run started.
        config: the model's `config.json`.
        final: the last evaluation, by the names of its metrics.
        versions: of PyTorch and transformers.
        data: of every corpus that is still where the run found it and still the same.
        labels: of every label folder, likewise.
        evaluation: what `cocomix eval` measured, if it did.
        downstream: benchmark results, if there are any.
    """

    run: Run
    recipe: RunConfig
    config: dict[str, Any]
    final: dict[str, float]
    versions: dict[str, str]
    data: tuple[TokensManifest, ...]
    labels: tuple[LabelsManifest, ...]
    evaluation: RunEvaluation | None
    downstream: Downstream | None


def read_record(run: Run) -> RunRecord:
    """Collect what is known of a run; data and labels that are gone or have changed are left out.

    Raises:
        CoCoMixError: a file of the run itself is damaged.
    """
    recipe = load_recipe(run.path / "recipe.yaml")
    data = [_found(Tokens.open, path) for path in recipe.data_folders]
    labels = [_found(Labels.open, path) for path in recipe.label_folders]
    return RunRecord(
        run,
        recipe,
        read_json(run.path / "config.json"),
        run.manifest.final.model_dump(),
        run.manifest.versions,
        tuple(opened.manifest for opened in data if opened is not None and _is_of(run, opened.manifest.fingerprint)),
        tuple(found.manifest for found in labels if found is not None and _is_of(run, found.fingerprint)),
        next(iter(evaluations_of(run)), None),
        read_downstream(run.path),
    )


def public_name(name: str) -> str:
    """A hub name as it is; of a path on this machine, which is nobody else's business, the last part."""
    path = Path(name)
    return path.name if path.is_absolute() or path.exists() else name


def _is_of(run: Run, fingerprint: str) -> bool:
    """Whether the run was made with data or labels of this fingerprint; of a mixture's parts none are recorded."""
    manifest = run.manifest
    recorded = {manifest.data.fingerprint, None if manifest.labels is None else manifest.labels.fingerprint}
    return manifest.data.mixture is not None or fingerprint in recorded


def _found(read: Callable[[Path], Found], path: Path) -> Found | None:
    try:
        return read(path)
    except CoCoMixError:
        return None
