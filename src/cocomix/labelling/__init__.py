"""Labelling: concept labels and teacher probabilities of token blocks, computed shard by shard.

The names are imported when they are first used, so that a finished folder is recognised without PyTorch.
"""

from typing import TYPE_CHECKING

from cocomix.runtime.lazy import lazily

if TYPE_CHECKING:
    from cocomix.labelling.block_functions import check_tokenizer, fit_flops, load_labeller, open_decoder, open_labeller
    from cocomix.labelling.executors import Inline, Processes, SlurmArray
    from cocomix.labelling.fitting import fit_on_data, fitted
    from cocomix.labelling.label_content import MOST_POSITIONS, LabelContent
    from cocomix.labelling.make_labels import distill_data, label_and_distill, label_data
    from cocomix.labelling.map_shards import Executor
    from cocomix.labelling.ray_executor import RayExecutor
    from cocomix.labelling.stored_arrays import Concatenated, StoredArrays, StoredManifest
    from cocomix.labelling.stored_labels import LabelBlocks, Labels, LabelsManifest
    from cocomix.labelling.stored_probabilities import TeacherProbabilities
    from cocomix.labelling.storing import Job, finish, recognised

__all__ = [
    "MOST_POSITIONS",
    "Concatenated",
    "Executor",
    "Inline",
    "Job",
    "LabelBlocks",
    "LabelContent",
    "Labels",
    "LabelsManifest",
    "Processes",
    "RayExecutor",
    "SlurmArray",
    "StoredArrays",
    "StoredManifest",
    "TeacherProbabilities",
    "check_tokenizer",
    "distill_data",
    "finish",
    "fit_flops",
    "fit_on_data",
    "fitted",
    "label_and_distill",
    "label_data",
    "load_labeller",
    "open_decoder",
    "open_labeller",
    "recognised",
]

__getattr__ = lazily(__name__)
