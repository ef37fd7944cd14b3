"""Labels of several corpora used as one, in the order of a mixture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset

from cocomix.artifacts.output import fingerprint_json
from cocomix.labelling.labels import ConceptLabelStore
from cocomix.runtime.errors import CoCoMixError

__all__ = ["MixedLabels", "check_made_alike"]


class MixedLabels:
    """Label folders whose blocks are numbered through, folder after folder.

    Attributes:
        parts: the folders.
    """

    def __init__(self, parts: Sequence[ConceptLabelStore]) -> None:
        """Join label folders.

        Args:
            parts: at least one; made by the same teacher, layer and dictionary in the same way.

        Raises:
            CoCoMixError: a folder was made differently from the first.
        """
        self.parts = tuple(parts)
        made = [(part.path, _how_made(part)) for part in parts]
        check_made_alike(made, "labels", "label both corpora alike")

    @property
    def num_concepts(self) -> int:
        """Number of concepts in the labels' dictionary."""
        return self.parts[0].num_concepts

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the folders' fingerprints, in order."""
        return fingerprint_json([part.manifest.fingerprint for part in self.parts])

    def split(self, name: str) -> "ConcatDataset[dict[str, Tensor]]":
        """The labels of one split, as a map-style data set.

        Raises:
            CoCoMixError: a folder has no such split.
        """
        blocks: list[Any] = [part.split(name) for part in self.parts]
        return ConcatDataset(blocks)


def check_made_alike(folders: Sequence[tuple[Path, Mapping[str, Any]]], kind: str, remedy: str) -> None:
    """Refuse to mix folders that were made differently.

    Args:
        folders: their paths, and how each was made: what is compared → its value.
        kind: what they hold, for the refusal.
        remedy: what to do, likewise.

    Raises:
        CoCoMixError: a folder differs from the first; the first difference is named.
    """
    first_path, first = folders[0]
    for path, made in folders[1:]:
        for what, expected in first.items():
            if made[what] != expected:
                raise CoCoMixError(
                    f"the {kind} in {path} and {first_path} cannot be mixed: they differ in their {what} "
                    f"({made[what]} and {expected}); {remedy}."
                )


def _how_made(part: ConceptLabelStore) -> dict[str, Any]:
    made = part.manifest
    return {
        "dictionary": made.dictionary.fingerprint[:16],
        "teacher": made.teacher.fingerprint[:16],
        "layer": made.layer,
        "settings": made.settings,
    }
