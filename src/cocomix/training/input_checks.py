"""What a run is made from is what its recipe means, and stays so: contents are compared, not names."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from cocomix.concepts import (
    TeacherConfig,
    configuration_fingerprint,
    files_fingerprint,
    load_teacher,
    model_fingerprint,
)
from cocomix.data import TRAIN, Tokens
from cocomix.labelling import Concatenated, Labels, StoredArrays
from cocomix.runtime.errors import CoCoMixError
from cocomix.training.arguments import tokens_after, total_steps
from cocomix.training.corpora import StoredLabels
from cocomix.training.distillation import Teaching
from cocomix.training.objectives import Objective
from cocomix.training.recipe import RunConfig

logger = logging.getLogger(__name__)


def check_sources(recipe: RunConfig, labels: StoredLabels | None, teaching: Teaching) -> None:
    """Refuse stored labels and probabilities of another teacher or dictionary than the recipe's.

    What the recipe does not name is not looked for, and neither is what is not on this machine: a model on the hub is
    told by its name and, in `revision`, its commit. A teacher whose files are no longer those that were loaded then is
    loaded for this, which takes seconds for small models, once in a process; an online teacher is hashed already.
    """
    stores: tuple[Labels, ...] = () if labels is None else labels.parts
    if recipe.labels is not None and stores:
        _check_teacher(recipe.labels.teacher, "labels.teacher", stores, None)
        if (dictionary := recipe.labels.dictionary) is not None:
            wanted = {"fingerprint": dictionary.fingerprint, "path": dictionary.fingerprint_here()}
            for store, field in itertools.product(stores, wanted):
                if wanted[field] not in (None, store.manifest.made_from.get("dictionary")):
                    raise CoCoMixError(
                        f"{store.path} was made with another dictionary than the recipe's labels.dictionary.{field} "
                        "names now; bring that one back, or label again."
                    )
    targets = () if teaching.stored is None else teaching.stored.parts
    _check_teacher(recipe.teacher, "teacher", targets, (teaching.reference or {}).get("teacher"))


def check_coverage(
    recipe: RunConfig,
    data: Tokens,
    stored: Mapping[str, Concatenated[Any] | None],
    objectives: Sequence[Objective],
    arguments: TrainingArguments,
) -> None:
    """Refuse labels or probabilities of a part of the data that lack blocks which are trained on while they are needed.

    Args:
        stored: what is read beside the tokens, by one of its columns.
    """
    total = data.manifest.splits[TRAIN].blocks
    steps = total_steps(arguments, total)
    for column, folders in stored.items():
        have = total if folders is None else sum(part.manifest.blocks(TRAIN) for part in folders.parts)
        until = max((one.weight.steps(steps) for one in objectives if column in one.needs), default=0)
        if folders is None or have == total or until == 0:
            continue
        read = tokens_after(until, arguments, total, data.manifest.block_size) // data.manifest.block_size
        first = recipe.first_blocks or total
        if have < (first if read <= first else total):
            raise CoCoMixError(
                f"{folders.first.path} has the first {have:,} of {total:,} training blocks, and the run needs {read:,} "
                f"until step {until:,}; make it of so many (`--blocks {read}`) and set first_blocks: {read} in this "
                "recipe and in those that it is compared with, so that these blocks come first."
            )


def _check_teacher(
    teacher: TeacherConfig | None, section: str, stores: Sequence[StoredArrays[Any]], known: str | None
) -> None:
    """Refuse what was made with other weights than a teacher in a folder or file here has, `known` where they are.

    Of another configuration of the same weights a warning tells.
    """
    stores = [store for store in stores if "weights" in store.manifest.made_from]
    if teacher is None or not stores:
        return
    here, configuration = known, None
    if known is None and Path(teacher.model).exists():
        files = files_fingerprint(teacher.model)
        stores = [store for store in stores if files is None or store.manifest.teacher_files != files]
        if stores:
            here, configuration = _fingerprints(teacher.model, files)
    for store in stores:
        if here not in (None, store.manifest.made_from["weights"]):
            raise CoCoMixError(
                f"{store.path} was made with other weights than the recipe's {section}.model {teacher.model} has now; "
                "bring those back, or make it again."
            )
        made = store.manifest.labeller.get("configuration") if isinstance(store, Labels) else None
        if None not in (made, configuration) and made != configuration:
            logger.warning(
                f"{teacher.model} has another configuration now than when it made {store.path}, in settings that "
                "change no number; used all the same."
            )


@lru_cache(maxsize=4)
def _fingerprints(teacher: str, files: str | None) -> tuple[str, str]:
    """Of the weights and of the rest of the configuration; the runs of a sweep ask for those of one teacher."""
    model = load_teacher(teacher)
    return model_fingerprint(model), configuration_fingerprint(model)
