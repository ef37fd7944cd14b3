"""Which teacher and which dictionary: what a recipe and the command line name them by."""

from pydantic import Field

from cocomix.runtime.section import Section

__all__ = ["DictionaryConfig", "TeacherConfig"]


class TeacherConfig(Section):
    """The frozen language model that gives the concept targets. Read by `cocomix label` and checked by `train`."""

    model: str
    """Hub name, folder or GGUF file of a causal language model."""
    layer: int = Field(ge=0)
    """0-based index of the block whose output the dictionary describes (paper: 5 of 12)."""
    revision: str | None = None
    """Commit, tag or branch on the hub; pin a commit to be able to repeat a run."""


class DictionaryConfig(Section):
    """The sparse autoencoder on the teacher's hidden state. Read by `cocomix label` and checked by `train`."""

    path: str
    """SAELens release name, or a folder that SAELens or `cocomix sae` wrote."""
    sae_id: str | None = None
    """Which autoencoder of the release."""
    fingerprint: str | None = None
    """SHA-256 of the weights and settings, as `cocomix label` records it: any other is refused. Pins a release, of
    which SAELens can name no revision."""

    @property
    def name(self) -> str:
        """What manifests call it."""
        return self.path if self.sae_id is None else f"{self.path}/{self.sae_id}"
