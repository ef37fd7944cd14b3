"""An export on the Hugging Face Hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)


def check_hub_access(repo_id: str) -> str:
    """Find out who is logged in, and so whether this machine can upload, before any work is done for it.

    Args:
        repo_id: `owner/name`, or `name` for a repository of the logged-in user.

    Raises:
        CoCoMixError: the name cannot be one, nobody is logged in, or the hub does not answer.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CoCoMixError(f"{repo_id!r} cannot be the name of a repository; use owner/name.") from error
    with _explained("log in", ""):
        return str(HfApi().whoami()["name"])


def push_to_hub(
    folder: Path, repo_id: str, *, private: bool = True, kind: Literal["model", "dataset"] = "model"
) -> str:
    """Upload an export as one commit and return the address; the repository is made if it is not there.

    `repo_id` and what is refused are as in `check_hub_access`, and so is a folder that is no export.

    Args:
        folder: written by `export_run`, or for a dataset by `export_labels`.
        private: whether a new repository is only its owner's to see; one that exists stays as it is.
    """
    if not all((folder / name).exists() for name in ("README.md", "config.json" if kind == "model" else "data")):
        raise CoCoMixError(f"{folder} is no export; write one with `cocomix export RUN --output {folder}`.")
    check_hub_access(repo_id)
    option = "" if kind == "model" else f" --repo-type {kind}"
    with _explained("upload", f"; the export is in {folder}, try again with `hf upload {repo_id} {folder}{option}`"):
        address = HfApi().create_repo(repo_id, private=private, exist_ok=True, repo_type=kind)
        HfApi().upload_folder(
            repo_id=address.repo_id, folder_path=folder, commit_message="Export by cocomix", repo_type=kind
        )
    logger.info(f"{folder} is at {address}")
    return str(address)


@contextmanager
def _explained(doing: str, remedy: str) -> Iterator[None]:
    """One sentence for whatever the hub's client raises: its HTTP library has errors of its own."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise CoCoMixError(
            "nobody is logged in to the Hugging Face Hub; run `hf auth login`, or set HF_TOKEN to a token that may "
            f"write{remedy}."
        ) from error
    except OfflineModeIsEnabled as error:
        raise CoCoMixError(f"HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it{remedy}.") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CoCoMixError(f"cannot {doing} at the Hugging Face Hub ({reason}){remedy}.") from error
