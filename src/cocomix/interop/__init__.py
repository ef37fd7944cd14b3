"""Checkpoints and autoencoders of other code, and runs exported for it."""

from cocomix.interop.delphi_cache import export_delphi
from cocomix.interop.hub_upload import check_hub_access, push_to_hub
from cocomix.interop.label_dataset import export_labels
from cocomix.interop.neuronpedia import export_neuronpedia
from cocomix.interop.openai_sae import convert_autoencoder, read_openai_autoencoder
from cocomix.interop.reference import from_reference_state_dict, to_reference_state_dict
from cocomix.interop.reference_folder import (
    ConceptSettings,
    export_to_released,
    import_released,
    read_reference_folder,
    write_reference_folder,
)
from cocomix.interop.repository import export_run

__all__ = [
    "ConceptSettings",
    "check_hub_access",
    "convert_autoencoder",
    "export_delphi",
    "export_labels",
    "export_neuronpedia",
    "export_run",
    "export_to_released",
    "from_reference_state_dict",
    "import_released",
    "push_to_hub",
    "read_openai_autoencoder",
    "read_reference_folder",
    "to_reference_state_dict",
    "write_reference_folder",
]
