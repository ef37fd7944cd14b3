"""Turn a concept of a trained run up and down, and see what it says.

python examples/steering.py runs/first
"""

import sys
from pathlib import Path

import torch

from cocomix import ConceptEdit
from cocomix.data import PreparedData
from cocomix.evaluation import Run
from cocomix.interpret import generate, steering, steering_candidates

run = Run.open(Path(sys.argv[1]))
model, tokenizer = run.model(), run.tokenizer()

# Which concept is worth turning? Try the frequent ones on a little validation text.
blocks = PreparedData.open(run.manifest.data.path).split("validation")
text = torch.stack([blocks[index]["input_ids"] for index in range(min(8, len(blocks)))])
best = steering_candidates(model, tokenizer, text)[0]
print(f"concept {best.concept} raises {[token for token, _ in best.raised]}")

# One batch: the same prompt untouched, and with the concept up and down. `start` spares the prompt.
prompt = sys.argv[2]
start = len(tokenizer.encode(prompt))
edits = [ConceptEdit(best.concept, "scale", factor, start=start, rows=(row,)) for row, factor in ((1, 8.0), (2, -8.0))]
for continuation in generate(model, tokenizer, [prompt] * 3, edits=edits, max_new_tokens=8, temperature=0.0):
    print(prompt + continuation)

# As a block: every forward pass and every kind of generation inside it is steered.
with steering(model, [ConceptEdit(best.concept, "ban")]):
    tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    beams = model.generate(**tokens, num_beams=4, max_new_tokens=8, pad_token_id=tokenizer.eos_token_id)
print(tokenizer.decode(beams[0]))
