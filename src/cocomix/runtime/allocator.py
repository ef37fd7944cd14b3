"""glibc's allocator, told to keep the memory PyTorch frees.

By default glibc returns every large tensor's pages to the kernel and faults them in again for the next one; on virtual
machines that costs time (our measurement, 1.2 to 1.3 times for a 69M step: `results/allocator.md`).
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and never shrink it, where there is glibc; returns whether this was done.

    Call at program start, before tensors are made.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**30))
    return all(mallopt(option, value) == 1 for option, value in settings)
