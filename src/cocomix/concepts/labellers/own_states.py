"""`online`: concepts of the student's own states, found while it trains (our choice; no teacher and no dictionary).

Hidden states are the output of one block of a copy of the student, which follows it as an exponential moving average. A
TopK autoencoder learns from them as the batches pass (`LearningDictionary`), and a position's labels are its k most
active concepts. That is `activation` with the copy as teacher and the slow copy of the autoencoder as dictionary, and
after training `cocomix label --kind activation` makes the labels of any text with the two.

Copy and autoencoder move once in every optimizer step, in between labels are a function of the batch alone. In the
beginning they mean little: let λ begin at 0 (`concept_loss_weight: {stages: {0: 0, 0.1: 0.1}}`).
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, ClassVar, Literal, NoReturn

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from cocomix.concepts.decoder import NumberFormat, decoder_blocks
from cocomix.concepts.dictionary import ConceptDictionary
from cocomix.concepts.labeller import ConceptLabels, LabellerConfig, Vocabulary, drop_without_target
from cocomix.concepts.labellers.activation import ActivationLabeller
from cocomix.concepts.learning_dictionary import LearningDictionary, learning_flops
from cocomix.concepts.scoring import best_labels
from cocomix.concepts.teacher import ConceptTeacher
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.flops import block_flops
from cocomix.runtime.ignore import IGNORE


class OnlineConfig(LabellerConfig):
    """Settings of `online`."""

    kind: Literal["online"] = "online"
    """The k most active concepts of a dictionary that is learned on the student's own states while it trains."""
    num_concepts: int = Field(default=2048, ge=2)
    """Concepts of the dictionary (C)."""
    active: int = Field(default=32, ge=1)
    """Concepts that are active at a position, at most; the labels are among them."""
    layer: int | None = Field(default=None, ge=0)
    """0-based index of the block whose output is read; by default three quarters of the way up, or where concepts are
    interleaved the last block below them if that is lower."""
    ema: float = Field(default=0.99, ge=0.0, lt=1.0)
    """How much of the student's copy, and of the dictionary that makes labels, stays in every optimizer step; in the
    first steps less."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Of the autoencoder's Adam; by default a fifth of what `cocomix sae` takes for as many concepts."""
    dead_after_tokens: int = Field(default=100_000, ge=1)
    """A concept that was active at none of the last so many training positions counts as dead and is revived."""
    dtype: NumberFormat = "float32"
    """`bfloat16` and `float16` run the copy under autocast; by default as the run. The dictionary stays in float32."""
    seed: int = Field(default=0, ge=0)
    """Of the autoencoder's initial weights."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "OnlineConfig":
        if not self.k <= self.active <= self.num_concepts:
            raise ValueError(
                f"k: {self.k}, active: {self.active} and num_concepts: {self.num_concepts} must not fall in this order"
            )
        return self


class OnlineLabeller:
    """Labels by the activation of concepts of the student's own states. `follow` a student before it labels.

    `bos_token_id` is what every block begins with, which gets no labels; `None` where that is text.
    """

    kind: ClassVar[str] = "online"
    algorithm: ClassVar[str] = "1"
    """Raised whenever the same settings and student would give other labels than before."""
    config_type: ClassVar = OnlineConfig
    teacher: ConceptTeacher
    """The student's copy with the dictionary that makes labels, once there is a student."""
    learning: LearningDictionary
    """The autoencoder, likewise."""

    def __init__(self, config: OnlineConfig, bos_token_id: int | None = None) -> None:
        self.config, self.num_concepts, self.bos_token_id = config, config.num_concepts, bos_token_id
        self._student: dict[str, Tensor] = {}  # its parameters by name, once there is one

    @classmethod
    def build(
        cls, config: Any, *, device: torch.device | str | None, vocabulary: Vocabulary | None, force: bool = False
    ) -> NoReturn:
        """Refused: outside training there is no student."""
        raise CoCoMixError(
            "labels of kind 'online' are of a student's states while it trains, so they cannot be made before; train "
            "with labels: {kind: online}, or make those of a finished run: --kind activation --teacher "
            "RUN/labels/teacher --dictionary RUN/labels/dictionary."
        )

    def layer_of(self, student: PreTrainedModel, below: int | None = None) -> int:
        """The block of a student whose output is read; `below` is the first with more than one position a token."""
        if self.config.layer is not None:
            return self.config.layer
        layer = 3 * len(decoder_blocks(student)) // 4 - 1
        return max(0, layer if below is None else min(layer, below - 1))

    def follow(self, student: PreTrainedModel, layer: int) -> None:
        """Copy a student that is about to train, on its device, and begin a dictionary of its states.

        Raises:
            CoCoMixError: it has no such block, or one with more than one position a token.
        """
        width = int(student.config.get_text_config().hidden_size)
        self._student = dict(student.named_parameters())
        self.learning = LearningDictionary(width, self.config, layer=layer, device=student.device)
        self.teacher = ConceptTeacher(
            deepcopy(student), self.dictionary, layer, name="the student", bos_token_id=self.bos_token_id
        )

    @torch.no_grad()
    def label(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, k: int) -> ConceptLabels:
        """See `ConceptLabeller.label`; labels are on the student's device."""
        self._require_student()
        with torch.autocast(self.teacher.decoder.device.type, enabled=False):  # of an evaluation around it
            return ActivationLabeller(self.teacher, dtype=self.config.dtype).label(input_ids, attention_mask, k=k)

    @torch.no_grad()
    def learn(self, input_ids: Tensor, attention_mask: Tensor | None, targets: Tensor | None, *, k: int) -> Tensor:
        """Labels as of `label`, while the dictionary learns from the same states at its next `step`.

        Args:
            input_ids: int64 [batch, seq].
            attention_mask: [batch, seq], 1 = token, 0 = padding.
            targets: the tokens, `IGNORE` in place of those that are not predicted; before them there are no labels, and
                nothing is learned. [batch, seq]

        Returns:
            Ids of the labels, `IGNORE` where there is none. int64 [batch, seq, k]
        """
        self._require_student()
        decoder = self.teacher.decoder
        input_ids = input_ids.to(decoder.device)
        attention_mask = None if attention_mask is None else attention_mask.to(decoder.device)
        hidden = decoder.hidden_states(input_ids, attention_mask, dtype=getattr(torch, self.config.dtype))
        states, _ = self.teacher.dictionary.standardize(hidden)
        codes = self.teacher.dictionary.encode(hidden)
        labelled = self.teacher.labelled_positions(input_ids, attention_mask)
        if targets is not None:
            marks = torch.zeros_like(input_ids).unsqueeze(-1)
            labelled = labelled & (drop_without_target(marks, targets).squeeze(-1) != IGNORE)
        ids = best_labels(codes, codes.values, labelled, k).ids
        self.learning.add(states[labelled], ids[ids != IGNORE])
        return ids

    @torch.no_grad()
    def step(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """After an optimizer step of the student: one of the autoencoder, and copies follow, if there were labels.

        copy ← ema · copy + (1 − ema) · student, of every parameter; the first steps move further, as the dictionary's.
        `reduce` adds a tensor up over all processes.
        """
        self._require_student()
        moves = self.learning.moves
        if self.learning.step(reduce):
            for name, weight in self.teacher.decoder.model.named_parameters():
                weight.lerp_(self._student[name].detach(), moves)

    def state(self) -> dict[str, Tensor]:
        """Everything that labels of later steps depend on, by name."""
        copied = self.teacher.decoder.model.named_parameters()
        return {f"student.{name}": weight for name, weight in copied} | self.learning.state()

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    @property
    def dictionary(self) -> ConceptDictionary:
        """The dictionary that makes labels."""
        return self.learning.copy

    def fingerprint(self) -> dict[str, str]:
        """See `ConceptLabeller.fingerprint`: settings; the student is the run's own."""
        settings = self.config.model_dump(exclude={"k"})
        return {"algorithm": self.algorithm, **{name: str(value) for name, value in settings.items()}}

    def flops_of(self, student: PreTrainedModel, layer: int, seq: int) -> float:
        """`flops_per_token` for a student and a block that it would read; the student may be on the meta device."""
        config = student.config.get_text_config()
        below = block_flops(nn.ModuleList(list(decoder_blocks(student))[: layer + 1]), config, seq)
        return below + learning_flops(int(config.hidden_size), self.num_concepts, self.config.active)

    def flops_per_token(self, seq: int) -> float:
        """Forward FLOPs of the blocks up to the one that is read, and of the dictionary, learning included."""
        self._require_student()
        return self.flops_of(self.teacher.decoder.model, self.teacher.layer, seq)

    def describe(self, concept: int) -> str | None:
        """None: a dictionary has no words for its concepts."""
        return None

    def _require_student(self) -> None:
        if not self._student:
            raise CoCoMixError("an online labeller has no states to label before it follows a student; call follow.")
