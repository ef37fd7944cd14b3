"""How large a tensor a piece of work makes."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def largest_tensor(work: Callable[[], object], dtype: torch.dtype | None = None) -> int:
    """Elements of the largest tensor (of a dtype) that any operation of `work` returns, backward passes included."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor) and dtype in (None, tensor.dtype):
                    largest = max(largest, tensor.numel())
            return result

    with Watch():
        work()
    return largest
