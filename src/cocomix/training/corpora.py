"""The data and labels a recipe names: of one corpus or of a mixture."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cocomix.artifacts import Artifact
from cocomix.concepts import LabellerConfig
from cocomix.data import TRAIN, MixedData, Tokens, tokenizer_fingerprint, warn_of_overlap
from cocomix.labelling import Concatenated, Labels, StoredArrays
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.order import MixtureOrder, ShuffledOrder, WindowedOrder
from cocomix.training.recipe import RunConfig
from cocomix.training.recipe_data import MixtureConfig

StoredLabels = Concatenated[Labels]
"""Labels of one corpus, or of every corpus of a mixture."""
S = TypeVar("S", bound=StoredArrays[Any])


def corpora_of(data: Tokens) -> Sequence[Tokens]:
    """The corpora of a mixture, or the one corpus that data are."""
    return data.parts if isinstance(data, MixedData) else (data,)


def open_data(recipe: RunConfig) -> Tokens:
    """The recipe's data; refused also where a folder's tokenizer is another than that of its blocks."""
    parts = [Tokens.open(path) for path in recipe.data_folders]
    for part in parts:
        have_files(recipe, part)
        if tokenizer_fingerprint(part.tokenizer()) != part.manifest.tokenizer_fingerprint:
            raise CoCoMixError(
                f"{part.path / 'tokenizer'} is not the tokenizer the blocks beside it were made with; copy that one "
                "back, or prepare the data again."
            )
    if isinstance(recipe.data, MixtureConfig):
        warn_of_overlap(parts, parts)
        return MixedData(parts, [corpus.weight for corpus in recipe.data.mixture])
    return parts[0]


def have_files(recipe: RunConfig, artifact: Artifact[Any]) -> None:
    """Fetch what is at a URL now rather than in the middle of training, but for what a bounded cache will hold."""
    training = [name for name in artifact.manifest.files if name.startswith(f"{TRAIN}-")]
    artifact.fetch(later=() if recipe.bounds is None else training)


def block_order(recipe: RunConfig, data: Tokens, seed: int) -> MixtureOrder | ShuffledOrder | WindowedOrder:
    """The order that draws from a mixture, or reads few files at a time; else all blocks of one corpus, shuffled."""
    within: tuple[WindowedOrder, ...] = ()
    if recipe.bounds is not None:
        files = (tuple(file.blocks for file in part.manifest.splits[TRAIN].files) for part in corpora_of(data))
        within = tuple(WindowedOrder(f, recipe.bounds.window_files, seed, corpus) for corpus, f in enumerate(files))
    if not isinstance(data, MixedData):
        blocks, first = data.manifest.splits[TRAIN].blocks, recipe.first_blocks or 0
        if first > blocks:
            raise CoCoMixError(f"first_blocks is {first:,} and the training split has {blocks:,}; lower it.")
        return within[0] if within else ShuffledOrder(blocks, seed, first)
    for part in data.parts:
        if part.manifest.splits[TRAIN].blocks == 0:
            raise CoCoMixError(f"{part.path} has no training block; leave it out of the mixture.")
    order = MixtureOrder(data.sizes(TRAIN), data.shares, seed, within)
    assert sum(order.draws_per_period)  # refuses shares that are too small before anything is trained
    return order


def open_labels(recipe: RunConfig, data: Tokens) -> StoredLabels | None:
    """The stored labels that a recipe's model learns from; refused if of other data, or made otherwise than it says."""
    if not recipe.has_concepts or not recipe.label_folders:
        return None
    stored = open_beside(Labels, recipe, recipe.label_folders, data)
    wanted = None if recipe.labels is None else recipe.labels.labeller
    for path, labels in zip(recipe.label_folders, stored.parts, strict=True):
        for name, asked, found in _asked_and_found(wanted, labels.manifest.labels):
            if asked is not None and asked != found:
                raise CoCoMixError(
                    f"the recipe's labels.{name} is {asked!r} but the labels in {path} were made with {found!r}; make "
                    "new labels or correct the recipe."
                )
    return stored


def open_beside(kind: type[S], recipe: RunConfig, folders: Sequence[Path], data: Tokens) -> Concatenated[S]:
    """What is stored of a recipe's data, of every corpus in a folder of its own; refused where it is of other data."""
    stores = [kind.open(folder) for folder in folders]
    for store, corpus in zip(stores, corpora_of(data), strict=True):
        have_files(recipe, store)
        store.require_tokens(corpus)
    return Concatenated(stores)


def labels_to_match(recipe: RunConfig) -> Labels | None:
    """The labels that tell a matched baseline the number of concepts, where the recipe does not."""
    folders = recipe.label_folders
    if recipe.baseline is None or not folders or recipe.model.num_concepts is not None:
        return None
    return Labels.open(folders[0])


def _asked_and_found(asked: LabellerConfig | None, made: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, wanted and found value of every setting of labels that a recipe gives."""
    values = {} if asked is None else asked.model_dump(mode="json", exclude_unset=True)
    for name, value in values.items():
        if value == "auto":  # left to the machine that made them; the labels say what it chose
            continue
        if not isinstance(value, dict):
            yield name, value, made.get(name)
            continue
        for part in set(value) - {"revision", "fingerprint"}:  # the contents themselves are compared elsewhere
            yield f"{name}.{part}", value[part], (made.get(name) or {}).get(part)
