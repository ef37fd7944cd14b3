"""Accelerate's FSDP2 on CPU processes: for tests, since accelerate itself shards on accelerators only.

Nothing of the sharding is replaced: accelerate is made to believe that CPU processes may shard, and cocomix, which
refuses to ask it for that, not to refuse.
"""

import os
from collections.abc import Mapping
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from cocomix.training import launching, run

__all__ = ["allow_cpu_shards"]


def allow_cpu_shards() -> None:
    """From now on processes of this launch shard where they are asked to."""
    begin = AcceleratorState.__init__

    def begun(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            PartialState._shared_state["distributed_type"] = self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    def asked(training: Mapping[str, Any], environment: Mapping[str, str], processes: int) -> dict[str, Any]:
        return launching.sharding_asked(training, environment, int(os.environ["WORLD_SIZE"]))

    AcceleratorState.__init__ = begun
    run.sharding_asked = asked
