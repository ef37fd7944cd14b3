"""Labels of several corpora used as one, in the order of a mixture."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset

from cocomix.concepts.labels import ConceptLabelStore
from cocomix.errors import CoCoMixError
from cocomix.output import fingerprint_json

__all__ = ["MixedLabels"]


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
        first = parts[0].manifest
        for part in parts[1:]:
            made = part.manifest
            for what, found, expected in (
                ("dictionary", made.dictionary.fingerprint[:16], first.dictionary.fingerprint[:16]),
                ("teacher", made.teacher.fingerprint[:16], first.teacher.fingerprint[:16]),
                ("layer", made.layer, first.layer),
                ("settings", made.settings, first.settings),
            ):
                if found != expected:
                    raise CoCoMixError(
                        f"the labels in {part.path} and {parts[0].path} cannot be mixed: they differ in their {what} "
                        f"({found} and {expected}); label both corpora alike."
                    )

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
