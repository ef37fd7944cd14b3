"""Checkpoints of other code."""

from cocomix.interop.reference import from_reference_state_dict

__all__ = ["from_reference_state_dict"]
