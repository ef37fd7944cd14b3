"""A run's concepts as the cache that Delphi's `LatentDataset` reads (EleutherAI; arXiv 2410.13928).

OUTPUT/predictor/
  START_END.safetensors   of concepts START … END: `locations` [n, 3] (block, position, concept − START) and
                          `activations` [n], the logits of those among the top k; and `tokens` [blocks, seq], the same
                          in every file
  config.json             the fields of Delphi's `CacheConfig`, and `model_name`, whose tokenizer it loads
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from cocomix.artifacts import explained_full_disk, whole_folder, write_json
from cocomix.data import VALIDATION
from cocomix.evaluation import Run
from cocomix.evaluation.run_inputs import open_run_data, run_blocks
from cocomix.interpret import AtlasSettings, concept_model, read_held_out
from cocomix.runtime.device import default_device
from cocomix.runtime.errors import CoCoMixError

_MODULE = "predictor"  # the student's name for where they come from
_CONCEPTS_A_FILE = 8192


def export_delphi(path: Path, output: Path, *, tokens: int = 200_000, data: Path | None = None) -> Path:
    """Let the student read held-out text, and write where every concept is among its top k.

    Args:
        output: Delphi's `raw_dir`.
        tokens: of the validation split to read, in whole blocks; at least one block.
        data: prepared data with the run's tokenizer; by default the run's own.

    Raises:
        CoCoMixError: the run has no concepts, its data are gone or others by now, or `output` exists.
    """
    if tokens < 1:
        raise CoCoMixError(f"tokens={tokens} must be at least 1.")
    run = Run.open(path)
    model, prepared = concept_model(run.model()), open_run_data(run, data)
    blocks = run_blocks(run, prepared, None, limit_blocks=max(1, tokens // run.manifest.data.block_size))
    with whole_folder(output) as folder, explained_full_disk(folder):
        reading = read_held_out(model.to(default_device()), blocks, AtlasSettings(sampled=2))
        count, seq = reading.tokens.shape
        k = reading.ids.shape[1]
        places = np.repeat(np.arange(count * seq), k)
        concepts, activations = reading.ids.ravel(), reading.logits.ravel()
        (folder / _MODULE).mkdir()
        for start in range(0, model.config.num_concepts, _CONCEPTS_A_FILE):
            end = min(start + _CONCEPTS_A_FILE, model.config.num_concepts) - 1
            here = (start <= concepts) & (concepts <= end)
            locations = np.stack((places[here] // seq, places[here] % seq, concepts[here] - start), axis=1)
            arrays = {
                "locations": locations.astype(np.uint16 if max(count, seq) < 2**16 else np.uint32),
                "activations": activations[here],
                "tokens": reading.tokens.astype(np.int64),
            }
            save_file(arrays, folder / _MODULE / f"{start}_{end}.safetensors")
        about = {"dataset_repo": prepared.path.name, "dataset_split": VALIDATION, "dataset_name": ""}
        sizes = {"batch_size": 1, "cache_ctx_len": seq, "n_tokens": count * seq}
        config = {**about, **sizes, "n_splits": -(-model.config.num_concepts // _CONCEPTS_A_FILE)}
        write_json(folder / _MODULE / "config.json", {**config, "model_name": str(run.path.resolve())})
    return output
