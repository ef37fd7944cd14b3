"""Pretrained causal language models, read without unpickling or running anything of a stranger's."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from cocomix.runtime.errors import CoCoMixError

__all__ = ["load_causal_lm"]


def load_causal_lm(
    name_or_folder: str | Path,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Load a causal LM, on the CPU and in evaluation mode.

    Args:
        name_or_folder: a hub name, a folder written by `save_pretrained`, or the path of a `.gguf` file.
        revision: branch, tag or commit on the hub.
        gguf_file: name of the GGUF file inside the folder or hub repository; its weights are de-quantised.
        dtype: of the weights; float32 if None.
        attn_implementation: attention kernel as transformers names it; the best it finds if None.

    Raises:
        CoCoMixError: nothing that can be read as a causal LM is there, or its weights are no safetensors.
    """
    source = Path(name_or_folder)
    name = str(name_or_folder)
    options: dict[str, Any] = {"revision": revision} if revision is not None else {}
    options |= {"trust_remote_code": False, "use_safetensors": True}  # nothing of a stranger's is unpickled or run
    if source.suffix == ".gguf":
        if not source.is_file():
            raise CoCoMixError(f"{source} does not exist; give the path of a GGUF file, a folder or a hub name.")
        name, gguf_file = str(source.parent), source.name
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
        _let_gguf_bars_be_switched()
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, dtype=dtype or torch.float32, **options)
    except ImportError as error:
        raise CoCoMixError(
            f"loading {name_or_folder} needs a missing package ({error}); for GGUF files run: pip install "
            "'cocomix[gguf]'."
        ) from error
    except (OSError, ValueError, KeyError) as error:
        if not source.exists():
            _refuse_missing_folder(name)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CoCoMixError(
            f"cannot load a causal language model from {name_or_folder}: {reason.rstrip('.')}."
        ) from error
    return model.eval()


def _refuse_missing_folder(name: str) -> None:
    """Refuse a path that nothing on the hub can be meant by, where the hub's own error would mislead.

    Raises:
        CoCoMixError: a model is being made there, or the path is no name of the hub: these are NAME or OWNER/NAME.
    """
    if Path(f"{name}.partial").is_dir():
        raise CoCoMixError(
            f"{name} is not finished: {name}.partial is still being written, or was left by a command that stopped; "
            "wait for it, or give that command again to go on."
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CoCoMixError(f"{name} does not exist; give a folder with a model, the path of a GGUF file or a hub name.")


def _let_gguf_bars_be_switched() -> None:
    """Have the bar of transformers' GGUF reader obey transformers' own switch for bars, which it overlooks."""
    from transformers import modeling_gguf_pytorch_utils

    modeling_gguf_pytorch_utils.tqdm = logging.tqdm
