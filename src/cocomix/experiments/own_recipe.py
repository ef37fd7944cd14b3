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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined  # comes with PyTorch

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
        if url_of(source) is None and resolved.files and size < _BYTES_PER_TOKEN:
            raise CoCoMixError(f"{source} holds {size} bytes, so no text to train on; give a corpus that holds some.")
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

    Refused where there is no teacher from before to distill, the corpus is prepared and has its tokenizer, or
    `vocab_size` is too small.
    """

    name: str
    corpus: Corpus
    teacher: Teacher | None
    size: str
    hardware: str
    paper: bool = False  # the paper's form whatever the size
    distill: bool = False  # also learn the teacher's next-token distributions
    vocab_size: int | None = None  # of a tokenizer trained on the corpus; by default the teacher's tokenizer is taken

    def __post_init__(self) -> None:
        if self.distill and (self.teacher is None or self.trains_teacher):
            raise CoCoMixError(
                "--distill needs a teacher that exists and is stronger than the student; name --teacher."
            )
        if self.vocab_size is not None:
            if self.corpus.block_size is not None:
                raise CoCoMixError(f"{self.corpus.source} is prepared and has its tokenizer; leave out --vocab-size.")
            from cocomix.data.tokenizer import check_vocab_size

            check_vocab_size(self.vocab_size)

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher is trained on the corpus first."""
        return self.teacher is not None and self.teacher.name == TRAINED_HERE

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
        entries = self.vocab_size or (_VOCABULARY if self.trains_teacher else None)
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
        """Write the files, the student's recipe first; refused where one is there already or cannot be written."""
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
        if self.trains_teacher:
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
            write_text(recipe, self._student(recipe, filter(None, commands)))  # the files are there that tell them
        except OSError as error:
            raise CoCoMixError(f"cannot write to {folder} ({error.strerror}); choose another --output.") from error
        return list(texts)

    def _student(self, recipe: Path, commands: Iterable[str] = ()) -> str:
        size, (micro, training, arithmetic) = SIZES[self.size], HARDWARE[self.hardware]
        teacher = self.teacher or Teacher("")
        vocabulary = self.corpus.vocab_size or self.vocab_size or teacher.vocab_size or _VOCABULARY
        parameters = 12 * size.layers * size.d_model**2 + size.d_model * vocabulary  # about
        tokens = _rounded(max(_FEWEST, min(self.corpus.tokens, _TOKENS_PER_PARAMETER * parameters)))
        blocks = max(8, min(_PAPER_STEP, 2 ** (tokens // _STEPS).bit_length()) // self.block_size)  # of a step
        batch = max(each for each in range(1, max(1, micro // self.block_size) + 1) if blocks % each == 0)
        passes = round(tokens / max(1, self.corpus.tokens))
        training += "optim: muon, " if self.measured else ""
        rate = size.learning_rate * (_MUON if self.measured else 1)
        training = f"{{{training}learning_rate: {rate:.1e}, per_device_train_batch_size: {batch}}}"
        if self.measured:
            training += "  # Muon was well below AdamW at the same tokens"
        if self.trains_teacher:
            teacher = Teacher(f"runs/{self.name}_teacher", size.layers)
        environment = Environment(
            loader=PackageLoader("cocomix.experiments"),
            undefined=StrictUndefined,
            autoescape=False,  # YAML, whose texts are quoted here
            trim_blocks=True,
            keep_trailing_newline=True,
        )
        text: str = environment.get_template("own_recipe.jinja").render(
            own=self,
            source=shown(Path(self.corpus.source)),
            arithmetic=arithmetic,
            commands=commands,
            recipe=recipe,
            data=_quoted(self.data),
            labels=_quoted(f"{self.data}/labels"),
            teacher=None if self.teacher is None else _quoted(teacher.name),
            layer=((teacher.layers or 2) - 1) // 2,
            shape=size,
            vocabulary=vocabulary,
            large_vocabulary=size.d_model * vocabulary > _LARGE * parameters,
            num_concepts=self.corpus.num_concepts or size.num_concepts,
            tokens=f"{tokens:_}",
            passes=f"{passes} passes" if passes > 1 else "one pass",
            tokens_per_parameter=_TOKENS_PER_PARAMETER,
            batch_tokens=f"{blocks * self.block_size:_}",
            evaluation_blocks=min(2000, max(8, max(tokens // 100, _EVALUATED) // self.block_size)),
            training=training,
        )
        return text


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text)


def _rounded(tokens: int) -> int:
    unit = int(10 ** max(0, len(str(tokens)) - 2))
    return max(1, tokens // unit) * unit
