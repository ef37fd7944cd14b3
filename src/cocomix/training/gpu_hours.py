"""How long a run takes on one GPU: its FLOPs ÷ the FLOPs a second that were measured at the nearest widths.

Measured were training steps of the paper's shapes on one H200, bfloat16, not compiled (results/corpus/raw): tokens a
second × training FLOPs a token by `cocomix.model.accounting`. Between two widths it is interpolated. A run beyond the
widest is assumed to do no better than it, one below the narrowest no worse: larger models use a GPU better, so the
first takes less than is said and the second more.
"""

from transformers import PreTrainedConfig

from cocomix.model import CoCoMixConfig

_PLAIN = {512: 90.0e12, 624: 95.2e12, 1024: 160.7e12, 1072: 142.9e12}  # width: FLOPs a second
_WITH_CONCEPTS = {512: 86.3e12, 1024: 171.8e12}


def gpu_hours(config: PreTrainedConfig, flops: float) -> float:
    """Hours on one H200; on an H100, whose arithmetic is as fast and whose memory is slower, some more.

    Args:
        flops: of the whole run, by formula.
    """
    measured = _WITH_CONCEPTS if isinstance(config, CoCoMixConfig) else _PLAIN
    width = min(max(config.hidden_size, min(measured)), max(measured))
    below, above = max(w for w in measured if w <= width), min(w for w in measured if w >= width)
    share = 0.0 if above == below else (width - below) / (above - below)
    return flops / (measured[below] + share * (measured[above] - measured[below])) / 3600
