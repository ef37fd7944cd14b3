"""`python -m tests.many.child STEP train …`: `cocomix`, ended after a step as by SIGTERM: with a checkpoint."""

import sys
from typing import Any

from cocomix.cli import main
from cocomix.training.metrics import SaveAndStop


def stop_after(step: int) -> None:
    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            control.should_save = control.should_training_stop = True

    SaveAndStop.on_step_end = on_step_end  # type: ignore[method-assign]


if __name__ == "__main__":
    stop_after(int(sys.argv.pop(1)))
    main()
