"""What `keep_freed_memory` is worth: tokens/s of a 69M-shape training step with and without it.

    python -m benchmarks.allocator

Each setting runs in a process of its own, in turn, three times.
"""

import subprocess
import sys
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.runtime.allocator import keep_freed_memory

STEPS = 4


def tokens_per_second() -> float:
    """Four training steps of 2 × 512 tokens after one to warm up."""
    model = GPT2LMHeadModel(GPT2Config(n_embd=512, n_layer=8, n_head=8, n_positions=512))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(50257, (2, 512))
    for step in range(STEPS + 1):
        if step == 1:
            start = time.perf_counter()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return STEPS * tokens.numel() / (time.perf_counter() - start)


def main() -> None:
    """Run both settings in turn, or the one named on the command line."""
    if len(sys.argv) > 1:
        if sys.argv[1] == "on":
            keep_freed_memory()
        print(f"allocator {sys.argv[1]:3}: {tokens_per_second():.0f} tokens/s")
        return
    for setting in ("off", "on") * 3:
        subprocess.run([sys.executable, "-m", "benchmarks.allocator", setting], check=True)


if __name__ == "__main__":
    main()
