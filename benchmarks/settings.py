"""The sizes of a benchmark run, and what the machine can run."""

from dataclasses import dataclass, replace

import torch
from transformers import GPT2Config

from benchmarks.machine import cpu_has_bf16
from cocomix.model import CoCoMixConfig

__all__ = ["SIZES", "Settings", "Shape", "Sizes", "TeacherShape"]


@dataclass(frozen=True)
class TeacherShape:
    """A GPT-2-like teacher and the dictionary of one of its blocks."""

    width: int
    blocks: int
    heads: int
    layer: int
    active: int  # concepts per position, K_SAE


@dataclass(frozen=True)
class Shape:
    """A student, its teacher and the tokens of one training step."""

    name: str
    width: int
    blocks: int
    heads: int
    insert_layer: int
    concepts: int
    concept_topk: int
    vocabulary: int
    batch: int
    context: int
    teacher: TeacherShape
    accumulation: int = 1  # batches per optimizer step

    @property
    def backbone(self) -> GPT2Config:
        """The plain decoder: GPT-2 without dropout, and without a token that ends a generation."""
        return self._gpt2(self.width, self.blocks, self.heads)

    @property
    def student(self) -> CoCoMixConfig:
        """The CoCoMix model of the same width."""
        return CoCoMixConfig(
            backbone=self.backbone,
            insert_layer=self.insert_layer,
            num_concepts=self.concepts,
            concept_topk=self.concept_topk,
        )

    @property
    def teacher_config(self) -> GPT2Config:
        """The teacher, with the student's vocabulary and context."""
        return self._gpt2(self.teacher.width, self.teacher.blocks, self.teacher.heads)

    def _gpt2(self, width: int, blocks: int, heads: int) -> GPT2Config:
        return GPT2Config(
            vocab_size=self.vocabulary,
            n_embd=width,
            n_layer=blocks,
            n_head=heads,
            n_positions=self.context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )


@dataclass(frozen=True)
class Sizes:
    """What is measured on one kind of machine.

    Attributes:
        steps: shapes whose training steps are timed.
        main: shape of labels, decoding, parts of the step and, with `memory_batch` × `memory_context` tokens, memory.
        short_batch: sequences where the contestants take long: labels, and the next-token loss alone.
        memory_batch: sequences of the step whose memory is measured.
        memory_context: their length in tokens.
        prompt: tokens before a generation.
        new_tokens: tokens of a generation.
        decoding_batches: sequences generated at once.
        growth_context: context of the growth curves where it is not what varies.
        growth_concepts: sizes C of the dictionary.
        growth_contexts: contexts in tokens.
        growth_layers: insert layers.
    """

    steps: tuple[Shape, ...]
    main: Shape
    short_batch: int
    memory_batch: int
    memory_context: int
    prompt: int
    new_tokens: int
    decoding_batches: tuple[int, ...]
    growth_context: int
    growth_concepts: tuple[int, ...]
    growth_contexts: tuple[int, ...]
    growth_layers: tuple[int, ...]

    @property
    def short(self) -> Shape:
        """`main` with `short_batch` sequences."""
        return replace(self.main, batch=self.short_batch)


_GPT2_SMALL = TeacherShape(768, 12, 12, 5, 32)
_DEMO = Shape("demo", 192, 4, 4, 2, 2048, 32, 4096, 8, 128, TeacherShape(192, 4, 4, 1, 32))
_MIDDLE = Shape("20M", 320, 6, 5, 2, 8192, 32, 16384, 2, 256, TeacherShape(320, 6, 5, 2, 32))
_69M = Shape("69M", 512, 8, 8, 3, 32768, 32, 50257, 2, 512, _GPT2_SMALL)
_69M_GPU = Shape("69M", 512, 8, 8, 3, 32768, 32, 50257, 16, 1024, _GPT2_SMALL, accumulation=2)
_386M_GPU = Shape("386M", 1024, 24, 16, 5, 32768, 32, 50257, 8, 1024, _GPT2_SMALL, accumulation=4)
_TOY = Shape("toy", 32, 3, 2, 1, 2048, 8, 97, 2, 16, TeacherShape(32, 3, 2, 1, 8))

SIZES = {
    "cpu": Sizes(
        steps=(_DEMO, _MIDDLE, _69M),
        main=_69M,
        short_batch=1,
        memory_batch=4,
        memory_context=1024,
        prompt=64,
        new_tokens=32,
        decoding_batches=(1, 16),
        growth_context=256,
        growth_concepts=(4096, 32768, 131072),
        growth_contexts=(128, 256, 512),
        growth_layers=(0, 3, 7),
    ),
    "cuda": Sizes(
        steps=(_69M_GPU, _386M_GPU),
        main=_69M_GPU,
        short_batch=16,
        memory_batch=4,
        memory_context=1024,
        prompt=64,
        new_tokens=64,
        decoding_batches=(1, 16),
        growth_context=1024,
        growth_concepts=(4096, 32768, 131072),
        growth_contexts=(256, 1024, 4096),
        growth_layers=(0, 3, 7),
    ),
    "fast": Sizes(
        steps=(_TOY,),
        main=_TOY,
        short_batch=2,
        memory_batch=2,
        memory_context=16,
        prompt=4,
        new_tokens=4,
        decoding_batches=(1, 2),
        growth_context=16,
        growth_concepts=(1024, 4096),
        growth_contexts=(8, 16),
        growth_layers=(0, 2),
    ),
}


@dataclass(frozen=True)
class Settings:
    """One run of the benchmarks.

    Attributes:
        device: `cpu` or `cuda`.
        rounds: timed rounds.
        fast: toy sizes, to see that everything runs.
        bf16: measure bfloat16 on a CPU even where it has no instructions for it.
    """

    device: str
    rounds: int
    fast: bool = False
    bf16: bool = False

    @property
    def sizes(self) -> Sizes:
        """What is measured."""
        return SIZES["fast" if self.fast else self.device]

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes to measure; the first is the one of sections that measure one only."""
        if self.device != "cpu":
            return ("bfloat16",)
        return ("float32", "bfloat16") if self.bf16 or cpu_has_bf16() else ("float32",)

    @property
    def notes(self) -> list[str]:
        """What of the dtypes is left out, and why."""
        if self.device != "cpu" or "bfloat16" in self.dtypes:
            return []
        return [
            "bfloat16 is left out: this CPU has neither avx512_bf16 nor amx_bf16 instructions; `--bf16` measures it."
        ]

    def autocast(self, dtype: str) -> torch.autocast:
        """Run the matrix products in `dtype`; parameters stay float32."""
        return torch.autocast(self.device, torch.bfloat16, enabled=dtype == "bfloat16")
