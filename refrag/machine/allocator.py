"""Tells glibc's allocator to keep the memory that a forward pass frees for the next one.

By default glibc gives large blocks back to the kernel at once, and gives every thread but the first an arena that it
trims all the time. Each layer's activations are then paged in and zeroed again. In the engine's own thread, a prefill
of 574 slots of the demo decoder took 100 ms that way instead of 68. The models before it are slowed down too, since
they pass on hundreds of kilobytes with each request: the projector took 3.5 ms instead of 1.9.
"""

import ctypes
import sys

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# Largest block that comes from the heap, and the most that glibc allows; larger ones are mapped, as before.
LARGEST_KEPT_BLOCK = 32 * 2**20
MOST_KEPT = 256 * 2**20


def keep_freed_memory() -> bool:
    """Use one heap for all threads, trimmed above MOST_KEPT bytes; return False if the allocator is not glibc's."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: LARGEST_KEPT_BLOCK, M_TRIM_THRESHOLD: MOST_KEPT}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
