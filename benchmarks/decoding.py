"""Cached greedy generation of a CoCoMix student against a plain decoder of the same shape."""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from benchmarks.ratios import Section, ratio
from benchmarks.settings import Settings, Shape
from benchmarks.timing import alternate
from benchmarks.workload import flops_per_token, random_model

__all__ = ["decoder", "forward_work", "measure", "random_prompt"]


def measure(settings: Settings) -> Section:
    """`generate` and bare cached forward passes at every batch size."""
    sizes, shape = settings.sizes, settings.sizes.main
    models = {
        "CoCoMix": decoder(shape.student, settings),
        "NTP": decoder(shape.backbone, settings),
    }
    context = sizes.prompt + sizes.new_tokens
    by_flops = flops_per_token(shape.student, context) / flops_per_token(shape.backbone, context)
    target = "≤ 1.8" if settings.device == "cpu" and shape.name == "69M" else ""
    ratios = []
    for batch in sizes.decoding_batches:
        prompt = random_prompt(shape, batch, sizes.prompt, settings.device)
        for quantity, work in (("generate", _generate_work), ("forward alone", forward_work)):
            new_tokens = sizes.new_tokens if work is _generate_work else max(1, sizes.new_tokens // 4)
            contestants = {name: work(model, prompt, new_tokens) for name, model in models.items()}
            case = f"{shape.name}, {settings.dtypes[0]}, batch {batch}, {sizes.prompt} + {new_tokens} tokens"
            seconds = alternate(contestants, settings.rounds, settings.device)
            per_token = {name: [1e3 * each / new_tokens for each in times] for name, times in seconds.items()}
            ratios.append(
                ratio(
                    case,
                    f"{quantity}, CoCoMix ÷ GPT-2",
                    per_token["CoCoMix"],
                    per_token["NTP"],
                    "ms/token",
                    by_flops=by_flops,
                    target=target if work is _generate_work else "",
                )
            )
    return Section(
        "Decoding",
        "Milliseconds per token, of all sequences of the batch at once, with the key-value cache, in those of a GPT-2 "
        "of the same width and depth. `generate` contains the prompt; forward alone is one call per token after it. "
        "At small batches reading the weights costs more than the arithmetic, so FLOPs are no floor there.",
        {
            "shape": asdict(shape),
            "prompt": sizes.prompt,
            "new_tokens": sizes.new_tokens,
            "batches": sizes.decoding_batches,
            "dtype": settings.dtypes[0],
        },
        ratios,
    )


def decoder(config: PreTrainedConfig, settings: Settings) -> PreTrainedModel:
    """A model in evaluation mode whose weights have the first dtype of the run."""
    model = random_model(config, settings.device)
    decoding: PreTrainedModel = model.to(getattr(torch, settings.dtypes[0])).eval()
    return decoding


def _generate_work(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> Callable[[], Tensor]:
    mask = torch.ones_like(prompt)

    def work() -> Tensor:
        tokens: Tensor = model.generate(
            prompt, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
        assert tokens.shape[1] == prompt.shape[1] + new_tokens
        return tokens

    return work


def forward_work(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> Callable[[], None]:
    """`new_tokens` greedy steps, one forward call each, after a prompt that is read once, here."""
    with torch.no_grad():
        read = model(prompt, use_cache=True, logits_to_keep=1)
    cache, first = read.past_key_values, read.logits[:, -1:].argmax(-1)

    @torch.no_grad()
    def work() -> None:
        tokens = first
        for _ in range(new_tokens):
            logits = model(tokens, past_key_values=cache, use_cache=True).logits
            tokens = logits[:, -1:].argmax(-1)
        cache.crop(-new_tokens)

    return work


def random_prompt(shape: Shape, batch: int, length: int, device: str) -> Tensor:
    """Tokens to start from. [batch, length]"""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(shape.vocabulary, (batch, length), generator=generator).to(device)
