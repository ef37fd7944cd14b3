"""Runs as model repositories: for people who have transformers but not cocomix, and for the Hugging Face Hub."""

from cocomix.export.hub import check_hub_access, push_to_hub
from cocomix.export.repository import export_run

__all__ = ["check_hub_access", "export_run", "push_to_hub"]
