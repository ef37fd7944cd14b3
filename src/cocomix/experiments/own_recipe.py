"""Recipes for one's own corpus from four answers: corpus, teacher, size of the student, hardware (`cocomix init`).

Written are NAME.yaml, the student with concepts, NAME_ntp.yaml, its baseline, and, where no teacher exists yet,
NAME_teacher.yaml. They run as they stand. The numbers are our choice unless a comment names another source, and stand
in the recipe to be changed. Small students get the form that did best at 1M parameters (results/scarce, results/demo,
results/optimizers), others and those asked for with `--paper` the paper's.
"""

import json
import logging
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cocomix.artifacts import MANIFEST, read_json, shown, url_of, write_text
from cocomix.experiments.way import sibling, steps_of
from cocomix.runtime.errors import CoCoMixError

logger = logging.getLogger(__name__)

TRAINED_HERE = "train"
"""In place of a teacher's name: one of the student's size is trained on the corpus first."""
_VOCABULARY = 4096  # entries of a tokenizer that is trained on the corpus
_BYTES_PER_TOKEN = 4  # about, of English text
_COMPRESSED = 3  # bytes of text in a byte of gzip, Zstandard or Parquet, about
_STEPS = 2000  # optimizer steps aimed at: with the paper's 0.5M tokens a step, a short run would have a few dozen
_PAPER_STEP = 2**19  # tokens
_VALIDATION = 100_000  # tokens aimed at, but at most a fifth of the corpus: 1% of a small one is a document or two
_EVALUATED = 8192  # tokens at least of an evaluation while it trains
_LARGE = 0.6  # share of a student's parameters from which its vocabulary is worth a word
_FEWEST = 200_000  # tokens of a run: a smaller corpus is read more than once
_ELSEWHERE = 100_000_000  # tokens of a run on a corpus whose size is not known here
_TOKENS_PER_PARAMETER = 20  # at most, as in the training-optimal runs of Hoffmann et al. (2022)
_SMALL = ("tiny", "mini", "small")  # sizes of CPUs or one GPU, which the paper's form did not suit best
_MUON = 4  # Muon's learning rate over AdamW's: the ratio of the best ones at d = 96 (results/optimizers)


class Size(NamedTuple):
    """A student; `small`, `medium` and `large` have the paper's shapes, insertion layers and AdamW learning rates."""

    d_model: int
    layers: int
    heads: int
    insert_layer: int
    block_size: int
    num_concepts: int
    learning_rate: float
    meant_for: str


SIZES = {
    "tiny": Size(192, 4, 4, 2, 128, 2048, 2e-3, "minutes on two CPU cores"),
    "mini": Size(384, 6, 6, 2, 256, 4096, 1e-3, "a night on a few CPU cores"),
    "small": Size(512, 8, 8, 3, 1024, 8192, 6e-4, "the paper's 69M, one GPU"),
    "medium": Size(1024, 24, 16, 5, 1024, 8192, 3e-4, "the paper's 386M, GPUs"),
    "large": Size(2048, 24, 16, 5, 1024, 16384, 2e-4, "the paper's 1.38B, GPUs"),
}
HARDWARE = {
    "cpu": (2048, "", "float32"),
    "cpu-bf16": (2048, "bf16: true, ", "bfloat16, for CPUs with AMX"),
    "gpu": (16384, "bf16: true, dataloader_num_workers: 2, ", "bfloat16, one GPU"),
}
"""Tokens of a micro-batch, fields of `training`, and what is meant."""


@dataclass(frozen=True)
class Corpus:
    """A corpus that was found."""

    source: str  # as it was given
    tokens: int  # training tokens of one pass; about, where they are not prepared
    block_size: int | None = None  # of prepared data
    vocab_size: int | None = None  # of prepared data
    num_concepts: int | None = None  # of the labels that prepared data have already, in their folder `labels`

    @classmethod
    def find(cls, source: str) -> "Corpus":
        """Look at what `cocomix prepare` could read, or has written; refused where there is no such thing."""
        if url_of(source) is None and (manifest := Path(source) / MANIFEST).is_file():
            found = read_json(manifest)
            if found.get("kind") != "tokens":
                raise CoCoMixError(f"{source} holds {found.get('kind')}, not text; give a corpus or prepared data.")
            labels = Path(source) / "labels" / MANIFEST
            return cls(
                source.rstrip("/"),
                found["splits"].get("train", {"blocks": 0})["blocks"] * found["block_size"],
                found["block_size"],
                found["vocab_size"],
                read_json(labels)["num_concepts"] if labels.is_file() else None,
            )
        from cocomix.data import resolve_sources

        (resolved,) = resolve_sources([source])
        if resolved.kind == "hub":
            logger.info(f"there is no path {source} here, so it is taken for a data set of the Hugging Face Hub")
        packed = (_COMPRESSED if file.where.endswith((".gz", ".zst", ".parquet")) else 1 for file in resolved.files)
        size = sum(file.size * factor for file, factor in zip(resolved.files, packed, strict=True))
        return cls(source, size // _BYTES_PER_TOKEN or _ELSEWHERE)

    @property
    def name(self) -> str:
        """What its files are called."""
        return re.sub(r"\W+", "_", Path(self.source.rstrip("/:")).name.split(".")[0]).strip("_").lower() or "corpus"


@dataclass(frozen=True)
class Teacher:
    """A teacher that was found, or `TRAINED_HERE`; sizes are `None` where it is trained here."""

    name: str
    layers: int | None = None
    vocab_size: int | None = None
    positions: int | None = None

    @classmethod
    def find(cls, name: str) -> "Teacher":
        """Read a teacher's configuration; refused where it cannot be read."""
        if name == TRAINED_HERE:
            return cls(name)
        import cocomix.model  # noqa: F401  # a run may be the teacher
        from cocomix.training.student import pretrained_config

        config = pretrained_config(name, None, "teacher").get_text_config()
        return cls(name, config.num_hidden_layers, config.vocab_size, getattr(config, "max_position_embeddings", None))


@dataclass(frozen=True)
class OwnRecipe:
    """A name, the four answers, and three wishes; the teacher is `None` for data that are labelled.

    Raises:
        CoCoMixError: there is no teacher from before to distill, the corpus is prepared and has its tokenizer, or
            `vocab_size` is too small.
    """

    name: str
    corpus: Corpus
    teacher: Teacher | None
    size: str
    hardware: str
    paper: bool = False  # the paper's form whatever the size
    distill: bool = False  # also learn the teacher's next-token distributions
    # entries of a tokenizer that is trained on the corpus; by default the teacher's tokenizer is taken
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.distill and (self.teacher is None or self.teacher.name == TRAINED_HERE):
            raise CoCoMixError(
                "--distill needs a teacher that exists and is stronger than the student; name --teacher."
            )
        if self.vocab_size is not None:
            if self.corpus.block_size is not None:
                raise CoCoMixError(f"{self.corpus.source} is prepared and has its tokenizer; leave out --vocab-size.")
            from cocomix.data.tokenizer import check_vocab_size

            check_vocab_size(self.vocab_size)

    @property
    def measured(self) -> bool:
        """Whether the student has the form that did best for us rather than the paper's."""
        return not self.paper and self.size in _SMALL

    @property
    def data(self) -> str:
        """The folder of prepared data."""
        return f"data/{self.name}" if self.corpus.block_size is None else self.corpus.source

    @property
    def block_size(self) -> int:
        """Tokens per block: the data's, else no more than the teacher reads at once."""
        positions = None if self.teacher is None else self.teacher.positions
        return self.corpus.block_size or min(SIZES[self.size].block_size, positions or 2**62)

    def prepare(self) -> str | None:
        """The command before all others; `None` for data that are prepared."""
        if self.corpus.block_size is not None or self.teacher is None:
            return None
        entries = self.vocab_size or (_VOCABULARY if self.teacher.name == TRAINED_HERE else None)
        tokenizer = ["--tokenizer", self.teacher.name] if entries is None else ["--vocab-size", str(entries)]
        words = ["cocomix", "prepare", self.corpus.source, *tokenizer, "--block-size", str(self.block_size)]
        share = round(min(0.2, _VALIDATION / self.corpus.tokens), 2)
        words += ["--validation-fraction", str(share)] if share > 0.01 else []  # 0.01 is the default
        return shlex.join([*words, "--output", self.data])

    def after_preparation(self, recipe: Path) -> str:
        """The first command that reads prepared data and is not done."""
        steps = steps_of(recipe)
        return next((step.command for step in steps if not step.made.exists()), steps[-1].command)

    def write(self, folder: Path) -> list[Path]:
        """Write the files, the student's recipe first; refused where one is there already, or the folder cannot be
        written.
        """
        recipe = folder / f"{self.name}.yaml"
        alike, baseline = ("FLOPs a token", "flops") if self.measured else ("active parameters", "matched")
        texts = {
            recipe: self._student(recipe),
            sibling(recipe, "ntp"): (
                f"# The baseline of {recipe.name}: the next token only, as many {alike}"
                f"{', distilled as well' if self.distill else ''}.\n"
                f"base: {recipe.name}\nobjective: ntp\nbaseline: {baseline}\n"
            ),
        }
        if self.teacher is not None and self.teacher.name == TRAINED_HERE:
            texts[sibling(recipe, "teacher")] = (
                f"# The teacher of {recipe.name}: a plain decoder of the student's size.\n"
                f"base: {recipe.name}\nobjective: ntp\n"
            )
        for path in texts:
            if path.exists():
                raise CoCoMixError(f"{path} is there already and is never overwritten; choose another --output.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, text in texts.items():
                write_text(path, text)
            commands = dict.fromkeys([self.prepare(), *(step.command for step in steps_of(recipe))])
            head = "".join(f"#   {command}\n" for command in commands if command is not None)
            write_text(recipe, texts[recipe].replace(_COMMANDS, head, 1))
        except OSError as error:
            raise CoCoMixError(f"cannot write to {folder} ({error.strerror}); choose another --output.") from error
        return list(texts)

    def _student(self, recipe: Path) -> str:
        size, (micro, training, arithmetic) = SIZES[self.size], HARDWARE[self.hardware]
        teachers = None if self.teacher is None else self.teacher.vocab_size
        vocabulary = self.corpus.vocab_size or self.vocab_size or teachers or _VOCABULARY
        parameters = 12 * size.layers * size.d_model**2 + size.d_model * vocabulary  # about
        tokens = _rounded(max(_FEWEST, min(self.corpus.tokens, _TOKENS_PER_PARAMETER * parameters)))
        blocks = max(8, min(_PAPER_STEP, 2 ** (tokens // _STEPS).bit_length()) // self.block_size)  # of a step
        batch = max(each for each in range(1, max(1, micro // self.block_size) + 1) if blocks % each == 0)
        passes = round(tokens / max(1, self.corpus.tokens))
        rate = size.learning_rate * (_MUON if self.measured else 1)
        optimizer = "optim: muon, " if self.measured else ""
        targets = f"{{targets: probabilities/{self.name}, weight: 1.0}}  # what lowered the loss most for us"
        distillation = f"distillation: {targets}\n" if self.distill else ""
        return (
            f"# A {self.size} student on {shown(Path(self.corpus.source))}, {arithmetic}. In this order:\n"
            f"#\n{_COMMANDS}#\n"
            f"# `cocomix plan {recipe}` says what it costs.\n"
            f"{_WHY if self.measured else ''}"
            f"data: {_quoted(self.data)}\n"
            f"{self._labels()}{distillation}"
            f"model:\n"
            f"{_LARGE_VOCABULARY if size.d_model * vocabulary > _LARGE * parameters else ''}"
            f"  backbone: {{model_type: gpt2, n_embd: {size.d_model}, n_layer: {size.layers}, n_head: {size.heads},\n"
            f"             vocab_size: {vocabulary}, n_positions: {self.block_size},\n"
            f"             {_BACKBONE}}}\n"
            f"  insert_layer: {size.insert_layer}  # its input predicts the concepts\n"
            f"  num_concepts: {self.corpus.num_concepts or size.num_concepts}  # of the dictionary\n"
            f"{_ADD if self.measured else ''}"
            f"tokens: {tokens:_}  # about {f'{passes} passes' if passes > 1 else 'one pass'} over the corpus, at most "
            f"{_TOKENS_PER_PARAMETER} per parameter\n"
            f"batch_tokens: {blocks * self.block_size:_}  # of an optimizer step\n"
            f"evaluation_blocks: {min(2000, max(8, max(tokens // 100, _EVALUATED) // self.block_size))}\n"
            f"training: {{{training}{optimizer}learning_rate: {rate:.1e}, per_device_train_batch_size: {batch}}}"
            f"{'  # Muon was well below AdamW at the same tokens' if self.measured else ''}\n"
        )

    def _labels(self) -> str:
        path = f"{self.data}/labels"
        if self.teacher is None:
            return f"labels: {_quoted(path)}\n"
        model, layers = self.teacher.name, self.teacher.layers
        if model == TRAINED_HERE:
            model, layers = f"runs/{self.name}_teacher", SIZES[self.size].layers
        kind, chosen = ("contextual", "what the token alone does not tell")
        if not self.measured:
            kind, chosen = "attribution", "what they do for the next one"
        return (
            f"labels:  # four concepts per token, by {chosen}\n"
            f"  path: {_quoted(path)}\n"
            f"  kind: {kind}\n"
            f"  teacher: {{model: {_quoted(model)}, layer: {((layers or 2) - 1) // 2}}}\n"
            f"  dictionary: {{path: sae/{self.name}}}\n"
        )


_WHY = """#
# The form that did best at 1M parameters and few tokens (results/scarce). `cocomix init --paper` writes the paper's.
"""
_LARGE_VOCABULARY = (
    "  # Most of it is the teacher's vocabulary; `cocomix init --vocab-size 4096` gives the student one of its own.\n"
)
_ADD = """  mixing: add  # better than the paper's interleaving at 1M parameters, and a fifth cheaper
  concept_weights: softmax  # by their logits they outgrow what they are added to, and steer better
  concept_loss_weight: 1.0  # the paper's is 0.1, which suits logits
"""
_BACKBONE = "activation_function: gelu_pytorch_tanh, resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0"
_COMMANDS = "#   COMMANDS\n"  # in a text, until the files are there that tell them


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text)


def _rounded(tokens: int) -> int:
    unit = int(10 ** max(0, len(str(tokens)) - 2))
    return max(1, tokens // unit) * unit
