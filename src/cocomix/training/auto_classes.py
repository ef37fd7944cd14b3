"""What lets programs that do not import cocomix load a run: `trust_remote_code=True` finds the classes through it."""

from pathlib import Path

from cocomix.artifacts import read_json, write_json, write_text
from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM

_MODULE = "cocomix_classes"
_HINT = """Imports this model's classes from the package cocomix, and does nothing else.

If transformers asks whether to run it: write `import cocomix.model` before `from_pretrained`, and nothing is asked.
"""


def write_auto_classes(folder: Path) -> None:
    """Name the model's classes in a saved model's `config.json`, beside a module that imports them.

    So `lm_eval --model hf --model_args pretrained=RUN,trust_remote_code=True` works wherever cocomix is installed.
    Where cocomix is imported already the entry has no effect. A plain decoder's folder is left as it is.
    """
    config = read_json(folder / "config.json")
    if config["model_type"] != CoCoMixConfig.model_type:
        return
    names = {"AutoConfig": CoCoMixConfig.__name__, "AutoModelForCausalLM": CoCoMixForCausalLM.__name__}
    imports = ", ".join(names.values())
    write_text(folder / f"{_MODULE}.py", f'"""{_HINT}"""\n\nfrom cocomix import {imports}  # noqa\n')
    config["auto_map"] = {auto: f"{_MODULE}.{name}" for auto, name in names.items()}
    write_json(folder / "config.json", config)
