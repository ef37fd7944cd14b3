"""A run folder in a program that knows nothing of cocomix yet."""

import subprocess
import sys

from transformers import AutoTokenizer

from tests.workshop import BLOCK, Workshop

LOAD = "from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained({run!r})"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, input="")


def test_the_tokenizer_knows_the_context(workshop: Workshop) -> None:
    tokenizer = AutoTokenizer.from_pretrained(workshop.cocomix_run)
    assert tokenizer.model_max_length == BLOCK
    assert len(tokenizer("list " * 300, truncation=True)["input_ids"]) == BLOCK


def test_the_folder_that_transformers_names_says_what_to_import(workshop: Workshop) -> None:
    """Transformers asks whether to run the folder's code and says where it is; there it says that none need be run."""
    run = workshop.cocomix_run
    asked = python(LOAD.format(run=str(run)))
    assert asked.returncode != 0
    assert f"inspect the repository content at {run}" in asked.stderr
    (module,) = run.glob("*.py")
    text = module.read_text(encoding="utf-8")
    first = next(line for line in text.splitlines() if "`import " in line)
    statement = first.partition("`")[2].partition("`")[0]
    load = LOAD.format(run=str(run)) + "\nprint(type(model).__name__)"
    for code in (f"{statement}\n{load}", load.replace("\nmodel", f"\n{statement}\nmodel")):  # in either order
        loaded = python(code)
        assert loaded.stdout.strip() == "CoCoMixForCausalLM", loaded.stderr
        assert "custom code" not in loaded.stdout + loaded.stderr
