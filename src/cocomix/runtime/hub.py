"""Pretrained language models and tokenizers, read without unpickling or running anything of a stranger's."""

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from cocomix.runtime.errors import CoCoMixError, require_extra

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("vocab.json", "vocab.txt", "spiece.model"),
)
_NO_FILES = "{name} holds no tokenizer files; give the folder that tokenizer.json lies in."


class NoTokenizer(CoCoMixError):
    """There is no tokenizer at a place, as opposed to one that cannot be read."""


def load_causal_lm(name_or_folder: str | Path, *, revision: str | None = None) -> PreTrainedModel:
    """Load a causal LM in float32, on the CPU and in evaluation mode.

    From a hub name (at a branch, tag or commit), a folder written by `save_pretrained`, or a `.gguf` file, which is
    de-quantised. Refused where nothing is a causal LM there, or its weights are no safetensors.
    """
    source = Path(name_or_folder)
    name = str(name_or_folder)
    options: dict[str, Any] = {"revision": revision} if revision is not None else {}
    options |= {"trust_remote_code": False, "use_safetensors": True}  # nothing of a stranger's is unpickled or run
    if source.suffix == ".gguf":
        if not source.is_file():
            raise CoCoMixError(f"{source} does not exist; give the path of a GGUF file, a folder or a hub name.")
        name, options["gguf_file"] = str(source.parent), source.name
        from transformers import modeling_gguf_pytorch_utils

        modeling_gguf_pytorch_utils.tqdm = transformers_logging.tqdm  # it overlooks transformers' own switch for bars
    elif not source.exists():
        _before_asking(name, revision)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options)
    except ImportError as error:
        raise CoCoMixError(
            f"loading {name_or_folder} needs a missing package ({error}); for GGUF files run: pip install "
            "'cocomix[gguf]'."
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise CoCoMixError(f"cannot load a causal language model from {name_or_folder}: {_reason(error)}.") from error
    return model.eval()


def _before_asking(name: str, revision: str | None) -> None:
    """Refuse what cannot be meant as a name on the hub, NAME or OWNER/NAME, and say of others that it is asked."""
    if Path(f"{name}.partial").is_dir():
        raise CoCoMixError(
            f"{name} is not finished: {name}.partial is still being written, or was left by a command that stopped; "
            "wait for it, or give that command again to go on."
        )
    if name.startswith("runs/"):  # where `cocomix train` writes
        raise CoCoMixError(f"{name} does not exist; train it with `cocomix train`, or name another model.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CoCoMixError(f"{name} does not exist; give a folder with a model, the path of a GGUF file or a hub name.")
    if not isinstance(_cached(name, "config.json", revision), str):
        logger.info(f"there is no {name} here: asking the Hugging Face Hub, which takes a minute without a network")


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer that has an end token.

    From a folder written by `save_pretrained`, a GGUF file, or a name on the Hugging Face Hub. Raises `NoTokenizer` if
    that holds none, such as a folder with weights only; `CoCoMixError` if there is nothing, or the tokenizer cannot be
    read, is not a fast one, or has no end token.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() != ".gguf":
        raise CoCoMixError(f"{name} is not a tokenizer: give the folder it lies in, a GGUF file, or a name on the Hub.")
    if path.is_file():
        require_extra("gguf", "gguf", purpose=f"reading {path}")
    tokenizer = _read(name, path, revision)
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what transformers makes of a bare config.json
        fault = CoCoMixError if any((path / file).exists() for file in _TOKENIZER_FILES) else NoTokenizer
        raise fault(_NO_FILES.format(name=name))
    if not tokenizer.is_fast:
        raise CoCoMixError(f"the tokenizer {name} has no fast version (tokenizer.json); convert it or use another.")
    if tokenizer.eos_token_id is None:
        raise CoCoMixError(
            f"the tokenizer {name} has no end-of-text token to put between documents; set eos_token in its "
            "tokenizer_config.json or use another tokenizer."
        )
    return tokenizer


def _read(name: str, path: Path, revision: str | None) -> Any:
    if not path.exists():
        _before_asking(name, revision)
    where = str(path) if path.exists() else name
    options: dict[str, Any] = {"revision": revision}
    if path.is_file():
        where, options = str(path.parent), {"gguf_file": path.name}
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
    except Exception as error:  # the Hub client and the parsers of tokenizer files raise errors of many kinds
        reason = _reason(error)
        if path.is_file():
            raise CoCoMixError(f"cannot load a tokenizer from {path} ({reason}); use another GGUF file.") from error
        if _holds_no_tokenizer(name, path, revision):
            raise NoTokenizer(_NO_FILES.format(name=name)) from error
        raise CoCoMixError(
            f"cannot load the tokenizer {name}: it must be a folder with a tokenizer or a name that the Hugging Face "
            f"Hub knows ({reason})."
        ) from error


def _holds_no_tokenizer(name: str, path: Path, revision: str | None) -> bool:
    """Whether a folder is there and none of a tokenizer's files is; of a hub name, whether the hub has said so."""
    if path.is_dir():
        return not any((path / file).exists() for file in _TOKENIZER_FILES)
    return all(_cached(name, file, revision) is _CACHED_NO_EXIST for file in _TOKENIZER_FILES[:2])


def _cached(name: str, file: str, revision: str | None) -> Any:
    try:
        return try_to_load_from_cache(name, file, revision=revision)
    except ValueError:  # no name that the hub could have
        return None


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__
