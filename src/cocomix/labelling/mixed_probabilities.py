"""A teacher's stored distributions on several corpora used as one, in the order of a mixture."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset

from cocomix.artifacts.output import fingerprint_json
from cocomix.labelling.mixed_labels import check_made_alike
from cocomix.labelling.probabilities import TeacherProbabilities

__all__ = ["MixedProbabilities"]


class MixedProbabilities:
    """Folders of distributions whose blocks are numbered through, folder after folder.

    Attributes:
        parts: the folders.
    """

    def __init__(self, parts: Sequence[TeacherProbabilities]) -> None:
        """Join folders.

        Args:
            parts: at least one; of the same teacher, stored in the same way.

        Raises:
            CoCoMixError: a folder was made differently from the first.
        """
        self.parts = tuple(parts)
        made = [(part.path, _how_made(part)) for part in parts]
        check_made_alike(made, "probabilities", "distill both corpora alike")

    @property
    def complete(self) -> bool:
        """Whether the whole distributions are stored."""
        return self.parts[0].complete

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the folders' fingerprints, in order."""
        return fingerprint_json([part.fingerprint for part in self.parts])

    def split(self, name: str) -> "ConcatDataset[dict[str, Tensor]]":
        """The distributions of one split, as a map-style data set."""
        blocks: list[Any] = [part.split(name) for part in self.parts]
        return ConcatDataset(blocks)


def _how_made(part: TeacherProbabilities) -> dict[str, Any]:
    made = part.manifest
    return {"teacher": made.teacher.fingerprint[:16], "number of probabilities": made.top_k, "dtype": made.dtype}
