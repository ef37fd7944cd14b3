"""Where in a model an autoencoder was trained, by the name of the hook in its configuration."""

import re

from cocomix.runtime.errors import CoCoMixError

__all__ = ["block_of_hook"]

# `blocks.5.hook_resid_post` (TransformerLens), `transformer.h.5`, `model.layers.5` (modules of a Hugging Face model)
_HOOK = re.compile(r"^(?:.*\.)?(?:blocks|block|h|layers|layer)\.(\d+)(?:\.(.+))?$")
_OUTPUT = (None, "hook_resid_post", "hook_out", "output")
_INPUT = ("hook_resid_pre", "hook_in", "input")


def block_of_hook(hook_name: str | None, name: str, hook_name_out: str | None = None) -> int | None:
    """The 0-based block whose output an autoencoder reads; None where its configuration does not say.

    The input of block N is the output of block N − 1.

    Args:
        hook_name: of what it reads.
        name: of the autoencoder, for messages.
        hook_name_out: of what it predicts, for transcoders.

    Raises:
        CoCoMixError: it reads something else than the output of a block, or predicts something else than it reads.
    """
    if hook_name_out not in (None, hook_name):
        raise CoCoMixError(
            f"{name} is a transcoder from {hook_name} to {hook_name_out}; a dictionary must read and rebuild the same."
        )
    found = _HOOK.match(hook_name or "")
    if found is None:
        return None
    block, place = int(found[1]), found[2]
    if place in _OUTPUT:
        return block
    if place in _INPUT and block > 0:
        return block - 1
    what = "the embeddings" if place in _INPUT else "not the output of a block"
    raise CoCoMixError(
        f"{name} was trained on {hook_name}, which is {what}; choose an SAE of the residual stream after a block "
        "(hook_resid_post)."
    )
