"""Experiment trackers: TensorBoard files in the run folder, and the services that `training.report_to` names.

The services are transformers' integrations: they take their accounts and addresses from the environment or from their
own login, never from a recipe, and see the run's numbers, its `TrainingArguments` and its model's configuration.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from cocomix.runtime.errors import CoCoMixError, require_extra

TENSORBOARD = "tensorboard"

_IN_EXTRA = (TENSORBOARD, "mlflow", "trackio", "wandb")
"""What `pip install 'cocomix[track]'` brings, by the names that are imported."""


def trackers(training: Mapping[str, Any]) -> tuple[str, ...]:
    """Who is told about a run, from a recipe's `training.report_to`: a name, a list of names, or `none`.

    By default TensorBoard where it is installed, and nobody where it is not.

    Raises:
        CoCoMixError: it is neither; a name is unknown; the package of a tracker is not installed.
    """
    asked = training.get("report_to", TENSORBOARD if find_spec(TENSORBOARD) else "none")
    names = [asked] if isinstance(asked, str) else asked
    if names in (None, ["none"], []):
        return ()
    known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CoCoMixError(f"training.report_to is {asked!r}; give none, a name or a list of names among {known}.")
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise CoCoMixError(f"training.report_to names {name!r}; trackers are {known}, or none alone.")
        if name in _IN_EXTRA:
            require_extra("track", name, purpose=f"training.report_to: {name}")
    return tuple(dict.fromkeys(names))
