"""`cocomix import`: what other code saved as a folder of ours, and a model of ours as a folder of the released code."""

from pathlib import Path

from cocomix.artifacts import file_sha256, whole_folder
from cocomix.concepts import ConceptDictionary, Dictionary, DictionaryManifest
from cocomix.data.tokenizer import vocabulary_size
from cocomix.interop.openai_sae import read_openai_autoencoder
from cocomix.interop.reference_folder import ConceptSettings, read_reference_folder, write_reference_folder
from cocomix.model import CoCoMixForCausalLM
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.hub import load_causal_lm, load_tokenizer
from cocomix.training.auto_classes import write_auto_classes


def import_released(
    folder: Path, output: Path, given: ConceptSettings | None = None, tokenizer: str | None = None
) -> CoCoMixForCausalLM:
    """Write a checkpoint of the released code as a model folder that `from_pretrained` loads.

    Args:
        folder: as `read_reference_folder` takes it.
        output: folder to write; must not exist.
        given: settings that override the checkpoint's `config.yaml`.
        tokenizer: folder or hub name of the tokenizer to put beside it; the released code's is openai-community/gpt2.

    Raises:
        CoCoMixError: as `read_reference_folder`; or the tokenizer has more tokens than the model.
    """
    model = read_reference_folder(folder, given)
    with whole_folder(output) as target:
        if tokenizer is not None:
            loaded = load_tokenizer(tokenizer)
            if vocabulary_size(loaded) > model.config.vocab_size:
                raise CoCoMixError(
                    f"the tokenizer {tokenizer} has {vocabulary_size(loaded):,} tokens and the model in {folder} "
                    f"{model.config.vocab_size:,}; give the one it was trained with."
                )
            loaded.save_pretrained(target)
        model.save_pretrained(target)
        write_auto_classes(target)
    return model


def export_to_released(source: Path, output: Path) -> CoCoMixForCausalLM:
    """Write a run, or a model folder, as a checkpoint that the released code loads.

    Args:
        source: holds a CoCoMix model.
        output: folder to write; must not exist.

    Raises:
        CoCoMixError: there is no such model, or none that the released code has (see `to_reference_state_dict`).
    """
    model = load_causal_lm(source)
    if not isinstance(model, CoCoMixForCausalLM):
        raise CoCoMixError(
            f"{source} holds a plain {model.config.model_type}, which transformers loads as it is; export a "
            "run with concepts."
        )
    with whole_folder(output) as target:
        write_reference_folder(model, target)
    return model


def convert_autoencoder(path: Path, output: Path) -> ConceptDictionary:
    """Write an autoencoder file of OpenAI's as a SAELens folder: safetensors, with the normalisation it needs.

    Args:
        path: as `read_openai_autoencoder` takes it.
        output: folder to write; must not exist.

    Raises:
        CoCoMixError: as `read_openai_autoencoder`.
    """
    dictionary = read_openai_autoencoder(path)
    with Dictionary.create(output, identity={"file": file_sha256(path)}) as staging:
        dictionary.save(staging.path)
        staging.finish(
            DictionaryManifest(
                num_concepts=dictionary.n_concepts,
                dictionary_fingerprint=dictionary.fingerprint(),
                layer=dictionary.layer,
            )
        )
    return dictionary
