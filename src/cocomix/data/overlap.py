"""Documents that may train and validate, because tokens of one folder are used with validation tokens of another.

Within a folder no document does both, nor between folders whose splits follow the same rule: which split a document is
in depends on its content, the seed and the share alone.
"""

import logging
from collections.abc import Iterable

import numpy as np

from cocomix.artifacts import shown
from cocomix.data.tokens import Tokens

logger = logging.getLogger(__name__)


def warn_of_overlap(training: Iterable[Tokens], validation: Iterable[Tokens]) -> None:
    """Warn, once, where documents may be in the training tokens of one folder and held out in another.

    Args:
        training: folders whose training tokens are trained on.
        validation: folders whose held-out tokens are evaluated on.
    """
    validation = list(validation)
    pairs = [
        (one, other)
        for one in training
        for other in validation
        if one.manifest.fingerprint != other.manifest.fingerprint and (_rule(one) is None or _rule(one) != _rule(other))
    ]
    if not pairs:
        return
    found = [(len(np.intersect1d(one.heldout_hashes(), other.heldout_hashes())), one, other) for one, other in pairs]
    shared, one, other = max(found, key=lambda pair: pair[0])
    more = "" if len(pairs) == 1 else f" (and {len(pairs) - 1:,} more pairs)"
    logger.warning(
        f"training documents of {_name(one)} may be held out in {_name(other)}{more}: the splits were not drawn "
        f"alike ({_rule(one) or 'unknown'}; {_rule(other) or 'unknown'}). {shared:,} documents are held out in "
        "both. Prepare all with the same --seed and --validation-fraction, or take out what they share."
    )


def _rule(tokens: Tokens) -> str | None:
    """By what documents were divided; `None` where the sources of the splits were given, or nothing is known."""
    made, seed = tokens.manifest.identity, tokens.manifest.seed
    if made.get("validation_sources") or "validation_fraction" not in made:
        return None
    return f"seed {seed}, {made['validation_fraction']:.3%}"


def _name(tokens: Tokens) -> str:
    return tokens.url or shown(tokens.path)
