"""Imports this model's classes from the package cocomix, and does nothing else.

If transformers asks whether to run it: write `import cocomix.model` before `from_pretrained`, and nothing is asked.
"""

from cocomix import CoCoMixConfig, CoCoMixForCausalLM  # noqa
