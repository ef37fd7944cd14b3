"""Arrays stored beside the tokens they belong to, file by file: what labels and teacher probabilities have in common.

    FOLDER/
      manifest.json           `StoredManifest`
      train-00000.NAME.npy    array [blocks, block_size, …] of the blocks of the token file train-00000.npy

They are plain `.npy` files, which `np.load(file, mmap_mode="r")` reads. Opening a folder needs no PyTorch.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cocomix.artifacts import Artifact, Findings, MadeFromSomethingElse, Manifest, fingerprint_json, mapped_array
from cocomix.data import Tokens
from cocomix.labelling.map_shards import PARTS
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Section

if TYPE_CHECKING:
    from torch.utils.data import ConcatDataset


class Layout(NamedTuple):
    """Type of an array, and its shape after the blocks."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class StoredFile(Section):
    """The part of a folder that belongs to one token file."""

    name: str = Field(pattern=r"^\w+-\d+$")  # of the token file, without its ending: `train-00000`
    blocks: int = Field(ge=0, le=2**48)  # no file has more, and `len` must be able to say it


class SharedPass(Section):
    """A forward pass of a teacher that made labels and probabilities together."""

    id: str  # the same in the manifests of both
    flops_per_token: float  # of the part of the pass that each of them would have needed for itself, by formula


class StoredManifest(Manifest):
    """What every manifest of stored arrays says."""

    block_size: int
    splits: dict[str, tuple[StoredFile, ...]]
    """The token files of every split, in order."""
    asked: dict[str, Any] = Field(default_factory=dict)
    """Options of the command line that made it; the same command given again is recognised by them."""
    teacher_files: str | None = None
    """Hash of the files that the teacher was loaded from; None of a hub name, and without a teacher."""
    flops_per_token: float
    """Of what computed it, in its blocks, by formula; all of it, also where a pass was shared."""
    shared_pass: SharedPass | None = None
    """The pass that made it together with another folder; None where it was made alone."""
    tokens_per_second: float = 0.0
    """Of the command that finished it, loading included; 0 where others had computed everything."""

    def tokens(self, split: str) -> int:
        """How many tokens a split has."""
        return self.block_size * self.blocks(split)

    def blocks(self, split: str) -> int:
        """How many blocks a split has; fewer than the tokens' where only the first were asked for."""
        return sum(file.blocks for file in self.splits[split])

    @property
    def layouts(self) -> dict[str, Layout]:
        """The arrays that belong to every token file, by name."""
        raise NotImplementedError

    def contents(self) -> Any:
        return {"of": super().contents(), "block_size": self.block_size, "splits": self.model_dump(include={"splits"})}


M = TypeVar("M", bound=StoredManifest)


class StoredArrays(Artifact[M]):
    """A folder of arrays that belong to the blocks of a `Tokens` folder."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything they are made of."""
        return self.manifest.fingerprint

    def split(self, name: str, *, scattered: bool = False) -> "StoredBlocks[M]":
        """One split, as a map-style data set of its blocks, `scattered` if they will be read here and there."""
        raise NotImplementedError

    @property
    def summary(self) -> str:
        """What is in it, in a few words."""
        raise NotImplementedError

    @property
    def how_made(self) -> dict[str, Any]:
        """What must be equal of folders that are used as one."""
        raise NotImplementedError

    @property
    def warnings(self) -> list[str]:
        """What a user should know of the content, a sentence each."""
        return []

    @classmethod
    def counted(cls, folder: Path, manifest: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
        """What a manifest says of the content of an unfinished folder in which everything is computed."""
        return {}

    def differing(self, identity: Mapping[str, Any]) -> tuple[str, ...]:
        # What `identity` does not tell is not compared: so a finished folder is recognised before a model is loaded,
        # and stays valid when a package is upgraded.
        return tuple(key for key in super().differing(identity) if key.split(".")[0] in identity)

    def array(self, file: str, name: str, *, scattered: bool = False) -> NDArray[Any]:
        """One array of a token file's blocks, a read-only view of its memory map (see `mapped_array`).

        Raises:
            Damaged: it is missing, or not the one that was written.
        """
        blocks = {member.name: member.blocks for files in self.manifest.splits.values() for member in files}[file]
        layout = self.manifest.layouts[name]
        return mapped_array(self, f"{file}.{name}.npy", layout.dtype, (blocks, *layout.shape), scattered=scattered)

    def require_tokens(self, tokens: Tokens) -> None:
        """Refuse tokens that this was not made from.

        Raises:
            MadeFromSomethingElse: naming what differs.
        """
        meta = tokens.manifest
        for role, found in (("tokenizer", meta.tokenizer_fingerprint), ("tokens", meta.fingerprint)):
            if self.manifest.made_from[role] != found:
                raise MadeFromSomethingElse(
                    f"{self.path} was made from other data than {tokens.path}, whose {role} differ; run "
                    f"`{self.made_by}` on that data.",
                    (role,),
                )

    def check(self, findings: Findings) -> None:
        """Check the arrays' types, shapes and content, and the data if this folder lies within it."""
        for file in (file for files in self.manifest.splits.values() for file in files):
            with findings.check(file.name, "types, shapes and range of its arrays", self._repair):
                self.check_arrays({name: self.array(file.name, name) for name in self.manifest.layouts})
        around = self.path.resolve().parent
        if self.url is not None or not (around / "manifest.json").is_file():
            findings.skip("data", "the folder is not within its data; training compares the fingerprints")
            return
        with findings.check("data", f"fingerprint of {around}", "prepare it again"):
            self.require_tokens(Tokens.open(around))

    @classmethod
    def check_unfinished(cls, folder: Path, findings: Findings) -> None:
        for part in sorted((folder / PARTS).glob("*/*.npz")):
            remedy = "run the same command again, which makes it again"
            with findings.check(f"{part.parent.name}/{part.stem}", "its checksums", remedy), np.load(part) as stored:
                for name in stored:
                    stored[name]

    def check_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Refuse numbers that cannot be."""
        raise NotImplementedError

    @property
    def _repair(self) -> str:
        return f"delete it and run the same `{self.made_by}` again to make only that"


class StoredBlocks(Generic[M]):
    """The arrays of one split, see `StoredArrays.split`. Picklable: workers map the files themselves."""

    read: tuple[str, ...]  # the arrays that belong to an item

    def __init__(self, store: StoredArrays[M], split: str, *, scattered: bool = False) -> None:
        if split not in store.manifest.splits:
            raise CoCoMixError(f"{store.path} has no split {split!r}, only {', '.join(store.manifest.splits)}.")
        self.store, self.scattered = store, scattered
        self._files = store.manifest.splits[split]
        self._starts = [0, *accumulate(file.blocks for file in self._files)]

    def __len__(self) -> int:
        return self._starts[-1]

    def files(self) -> list[list[str]]:
        """The files that are read, for each token file."""
        return [[f"{file.name}.{name}.npy" for name in self.read] for file in self._files]

    def row(self, index: int, name: str) -> NDArray[Any]:
        """One block of an array, a read-only view."""
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        array = self.store.array(self._files[number].name, name, scattered=self.scattered)
        row: NDArray[Any] = array[index - self._starts[number]]
        return row


S = TypeVar("S", bound=StoredArrays[Any])


class Concatenated(Generic[S]):
    """Folders whose blocks are numbered through, one after another, as those of a mixture of corpora; or just one.

    Raises:
        MadeFromSomethingElse: a folder was made otherwise than the first.
    """

    def __init__(self, parts: Sequence[S]) -> None:
        self.parts = tuple(parts)
        first = self.first
        for part in parts[1:]:
            for what, value in part.how_made.items():
                if value != first.how_made[what]:
                    raise MadeFromSomethingElse(
                        f"{part.path} and {first.path} cannot be mixed: they differ in their {what} ({value} and "
                        f"{first.how_made[what]}); make both alike.",
                        (what,),
                    )

    @property
    def first(self) -> S:
        """The first folder, to ask what they have in common."""
        return self.parts[0]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the folders' fingerprints, in order; of one folder, its own."""
        found = [part.fingerprint for part in self.parts]
        return found[0] if len(found) == 1 else fingerprint_json(found)

    def split(self, name: str, *, scattered: bool = False) -> "ConcatDataset[Any]":
        """The blocks of one split, see `StoredArrays.split`."""
        from torch.utils.data import ConcatDataset

        # map-style data sets, though no subclasses
        blocks: list[Any] = [part.split(name, scattered=scattered) for part in self.parts]
        return ConcatDataset(blocks)
