"""Checkpoints and autoencoders of other code."""

from cocomix.interop.conversion import convert_autoencoder, export_to_released, import_released
from cocomix.interop.openai_sae import read_openai_autoencoder
from cocomix.interop.reference import from_reference_state_dict, to_reference_state_dict
from cocomix.interop.reference_folder import ConceptSettings, read_reference_folder, write_reference_folder

__all__ = [
    "ConceptSettings",
    "convert_autoencoder",
    "export_to_released",
    "from_reference_state_dict",
    "import_released",
    "read_openai_autoencoder",
    "read_reference_folder",
    "to_reference_state_dict",
    "write_reference_folder",
]
