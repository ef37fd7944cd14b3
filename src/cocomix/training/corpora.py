"""The data and labels a recipe names: of one corpus, of a mixture, or of a stream."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cocomix.concepts import LabellerConfig
from cocomix.data import TRAIN, MixedData, StreamedData, Tokens, tokenizer_fingerprint
from cocomix.labelling import Concatenated, Labels
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.order import MixtureOrder
from cocomix.training.recipe import MixtureConfig, RunConfig, StreamConfig

__all__ = ["StoredLabels", "labels_to_match", "mixture_order", "open_data", "open_labels"]

StoredLabels = Concatenated[Labels]
"""Labels of one corpus, or of every corpus of a mixture."""


def open_data(recipe: RunConfig) -> Tokens:
    """The recipe's data.

    Raises:
        CoCoMixError: as `Tokens.open`, `MixedData` and `StreamedData`; a folder's tokenizer is another than the
            one its blocks were made with.
    """
    parts = [Tokens.open(path) for path in recipe.data_folders]
    for part in parts:
        part.fetch()
        if tokenizer_fingerprint(part.tokenizer()) != part.manifest.tokenizer_fingerprint:
            raise CoCoMixError(
                f"{part.path / 'tokenizer'} is not the tokenizer the blocks beside it were made with; copy that one "
                "back, or prepare the data again."
            )
    if isinstance(recipe.data, MixtureConfig):
        return MixedData(parts, [corpus.weight for corpus in recipe.data.mixture])
    if isinstance(recipe.data, StreamConfig):
        stream = recipe.data
        return StreamedData(parts[0], stream.stream, text_column=stream.text_column, lanes=stream.lanes)
    return parts[0]


def mixture_order(data: Tokens, seed: int) -> MixtureOrder | None:
    """The order that draws from a mixture; `None` for one corpus.

    Raises:
        CoCoMixError: a corpus has no block to train on, or too small a share.
    """
    if not isinstance(data, MixedData):
        return None
    for part in data.parts:
        if part.manifest.splits[TRAIN].blocks == 0:
            raise CoCoMixError(f"{part.path} has no training block; leave it out of the mixture.")
    order = MixtureOrder(data.sizes(TRAIN), data.shares, seed)
    assert sum(order.draws_per_period)  # refuses shares that are too small before anything is trained
    return order


def open_labels(recipe: RunConfig, data: Tokens) -> StoredLabels | None:
    """The labels that a recipe's model learns from, where it learns from stored ones.

    Raises:
        CoCoMixError: they are of other data, or made otherwise than the recipe says.
    """
    if not recipe.has_concepts or not recipe.label_folders:
        return None
    corpora = data.parts if isinstance(data, MixedData) else (data,)
    paths = zip(recipe.label_folders, corpora, strict=True)
    return Concatenated([_of_data(recipe, path, part) for path, part in paths])


def labels_to_match(recipe: RunConfig) -> Labels | None:
    """The labels that tell a matched baseline the number of concepts, where the recipe does not."""
    folders = recipe.label_folders
    if recipe.baseline is None or not folders or recipe.model.num_concepts is not None:
        return None
    return Labels.open(folders[0])


def _of_data(recipe: RunConfig, path: Path, data: Tokens) -> Labels:
    labels = Labels.open(path)
    labels.fetch()
    labels.require_tokens(data)
    made = labels.manifest.labels
    wanted = None if recipe.labels is None else recipe.labels.labeller
    for name, asked, found in _asked_and_found(wanted, made):
        if asked is not None and asked != found:
            raise CoCoMixError(
                f"the recipe's labels.{name} is {asked!r} but the labels in {path} were made with {found!r}; make new "
                "labels or correct the recipe."
            )
    return labels


def _asked_and_found(asked: LabellerConfig | None, made: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, wanted and found value of every setting of labels that a recipe gives."""
    values = {} if asked is None else asked.model_dump(mode="json", exclude_unset=True)
    for name, value in values.items():
        if not isinstance(value, dict):
            yield name, value, made.get(name)
            continue
        for part in set(value) - {"revision", "fingerprint"}:  # the contents themselves are compared elsewhere
            yield f"{name}.{part}", value[part], (made.get(name) or {}).get(part)
