"""Which teacher and which dictionary: what a recipe and the command line name them by."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from cocomix.artifacts import MANIFEST
from cocomix.concepts.dictionary_folder import Dictionary
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.section import Section

if TYPE_CHECKING:
    from cocomix.concepts.dictionary import ConceptDictionary


class TeacherConfig(Section):
    """The frozen language model that gives the concept targets."""

    model: str
    """Hub name, folder or GGUF file of a causal language model."""
    layer: int = Field(ge=0)
    """0-based index of the block whose output the dictionary describes (paper: 5 of 12)."""
    revision: str | None = None
    """Commit, tag or branch on the hub; pin a commit to be able to repeat a run."""


class DictionaryConfig(Section):
    """The sparse autoencoder on the teacher's hidden state."""

    path: str
    """A folder that SAELens or `cocomix sae` wrote, or its URL; `hf://OWNER/REPOSITORY[@REVISION]/FOLDER`; or, with
    `sae_id`, a release of SAELens."""
    sae_id: str | None = None
    """Which autoencoder of the release."""
    fingerprint: str | None = None
    """SHA-256 of the weights and settings, as `cocomix label` records it: any other is refused. Pins a release, which
    has no revision."""

    @property
    def name(self) -> str:
        """What manifests call it."""
        return self.path if self.sae_id is None else f"{self.path}/{self.sae_id}"

    def load(self) -> "ConceptDictionary":
        """Read it, in float32 on the CPU.

        Raises:
            CoCoMixError: there is none, or it is not the pinned one.
        """
        from cocomix.concepts.dictionary import ConceptDictionary  # imports PyTorch

        found = ConceptDictionary.from_sae_lens(self.path, self.sae_id)
        if self.fingerprint not in (None, found.fingerprint()):
            raise CoCoMixError(
                f"the dictionary {self.name} is not the one that dictionary.fingerprint pins: what is there now has "
                f"{found.fingerprint()}; pin that, or name the dictionary that was meant."
            )
        return found

    def fingerprint_here(self) -> str | None:
        """Of what its folder on this machine holds now; `None` where it is elsewhere, or gone."""
        if (Path(self.path) / MANIFEST).is_file():
            return Dictionary.open(self.path).manifest.dictionary_fingerprint
        from cocomix.concepts.dictionary import ConceptDictionary  # imports PyTorch

        there = (Path(self.path) / "cfg.json").is_file()
        return ConceptDictionary.from_sae_lens(self.path).fingerprint() if there else None


def dictionary_layer(dictionary: DictionaryConfig) -> int:
    """The block whose output a dictionary was fitted on, as its configuration says; refused where it does not."""
    layer = dictionary.load().layer
    if layer is None:
        raise CoCoMixError(f"which layer {dictionary.name} describes is not recorded there; give it with --layer.")
    return layer
