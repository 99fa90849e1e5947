"""Keeping freed memory for reuse, because fresh pages are the largest cost of a training step after its matrix products.

A step frees and asks for the same few hundred large arrays again and again. As it comes, the GNU C library returns
each of them to the system at once and gets new, empty pages for the next, and the system must clear every page at
its first touch. Raising two thresholds of its allocator keeps the pages in the process. Other C libraries have no
such thresholds and are left alone. ``MINIPEFT_KEEP_MEMORY=0`` switches this off.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and numbers of <malloc.h>
LARGEST_KEPT = 1 << 30  # bytes; larger arrays still come from the system and go back to it


def keep_freed_memory():
    """Ask the C library to keep freed memory; returns whether it agreed."""
    if not sys.platform.startswith("linux") or os.environ.get("MINIPEFT_KEEP_MEMORY") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not the GNU library
        return False
    # The manual's upper bound for the mmap threshold is half a heap, 32 MiB on 64-bit machines.
    return bool(mallopt(M_MMAP_THRESHOLD, 32 << 20) and mallopt(M_TRIM_THRESHOLD, LARGEST_KEPT))


KEPT = keep_freed_memory()
