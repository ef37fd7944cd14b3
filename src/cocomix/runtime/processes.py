"""What changes when a launcher (torchrun, accelerate) starts several processes of one command.

The first process speaks and writes; of processes that fail, the first to do so says why.
"""

import os
from datetime import timedelta

_PATIENCE = timedelta(seconds=5)


def is_first_process() -> bool:
    """Whether this process speaks and writes for all."""
    return int(os.environ.get("RANK", "0")) == 0


def first_to_fail() -> bool:
    """Whether no other process of this launch has failed before; alone, always.

    The launcher's store is asked, which is there before processes know one another and after they have lost one
    another. Where it cannot be reached, every process counts as the first.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # public, but not listed

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=_PATIENCE, wait_for_workers=False)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return bool(store.add(f"cocomix/failed/{attempt}", 1) == 1)
    except (KeyError, DistError, RuntimeError):
        return True
