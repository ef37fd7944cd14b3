"""What mixing concepts into a pretrained model changes before any training: its loss, form by form.

    python -m benchmarks.start_of_continued MODEL TEXT... [--layers 5 10 20] [--tokens 3072] [--forms zero]

MODEL is anything `cocomix.runtime.hub.load_causal_lm` reads, TEXT are text files. Prints one JSON object.
Random concept layers, seed 0; the paper's N(0, initializer_range²) start of the compression beside the zero one.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cocomix import from_pretrained_backbone
from cocomix.runtime.hub import load_causal_lm, load_tokenizer

FORMS: dict[str, dict[str, Any]] = {
    "add, zero, without mean": {"mixing": "add", "compression_init": "zero", "add_mean": False},
    "add, zero": {"mixing": "add", "compression_init": "zero", "add_mean": True},
    "add, normal": {"mixing": "add", "compression_init": "normal", "add_mean": True},
    "residual, zero": {"mixing": "residual", "compression_init": "zero"},
    "residual, normal": {"mixing": "residual", "compression_init": "normal"},
    "interleave, zero": {"mixing": "interleave", "compression_init": "zero"},
    "interleave, normal": {"mixing": "interleave", "compression_init": "normal"},
}


def blocks_of(model: str, texts: list[Path], tokens: int, block_size: int) -> Tensor:
    """The first `tokens` tokens of the texts, in blocks. [blocks, block_size]"""
    tokenizer = load_tokenizer(model)
    ids = tokenizer("\n".join(path.read_text(encoding="utf-8") for path in texts)).input_ids[:tokens]
    return torch.tensor(ids[: len(ids) // block_size * block_size]).view(-1, block_size)


@torch.no_grad()
def loss_of(model: PreTrainedModel, blocks: Tensor) -> float:
    """Mean next-token loss in nats, block by block."""
    return sum(float(model(block[None], labels=block[None]).loss) for block in blocks) / len(blocks)


def losses(plain: PreTrainedModel, blocks: Tensor, given: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """The loss of every form at every layer."""
    for layer in given.layers:
        for form in (form for form in FORMS if given.forms in form):
            model = from_pretrained_backbone(plain, layer, num_concepts=given.concepts, **FORMS[form])
            yield f"{form}, before block {layer}", loss_of(model, blocks)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--layers", nargs="+", type=int, default=[1])
    parser.add_argument("--tokens", type=int, default=3072)
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--concepts", type=int, default=2048)
    parser.add_argument("--forms", default="", help="only those whose name holds this")
    given = parser.parse_args()
    plain = load_causal_lm(given.model)
    blocks = blocks_of(given.model, given.texts, given.tokens, given.block_size)
    before = loss_of(plain, blocks)
    found = {name: round(loss - before, 5) for name, loss in losses(plain, blocks, given)}
    print(
        json.dumps(
            {"model": Path(given.model).name, "tokens": blocks.numel(), "plain": round(before, 5), "change": found}
        )
    )


if __name__ == "__main__":
    main()
