"""`python -m tests.many.child STEP train …`: `cocomix`, which may shard on CPUs, ended after a step as by SIGTERM.

That is, with a checkpoint. Step 0: not ended.
"""

import sys
from typing import Any

from cocomix.cli import main
from cocomix.training.callbacks import SaveAndStop
from tests.many.cpu_shards import allow_cpu_shards


def stop_after(step: int) -> None:
    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            control.should_save = control.should_training_stop = True

    SaveAndStop.on_step_end = on_step_end  # type: ignore[method-assign]


if __name__ == "__main__":
    allow_cpu_shards()
    stop_after(int(sys.argv.pop(1)))
    main()
