"""Golden numbers of the released code: where they lie and how to read them.

They are not part of the repository. Point COCOMIX_GOLDEN at a folder of `model_*.safetensors` and
`attribution_*.safetensors`; by default `../shared/golden` beside the repository.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(os.environ.get("COCOMIX_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))


def golden_files(kind: str) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`, one per golden file of a kind; one skipped entry if there is none."""
    files = sorted(GOLDEN.glob(f"{kind}_*.safetensors"))
    if not files:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no {kind} golden files in {GOLDEN}"))]
    return [pytest.param(file, id=file.stem) for file in files]


def read_golden(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of a golden file."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["meta"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
