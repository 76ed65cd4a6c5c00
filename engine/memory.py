"""How the process takes memory from the system, settled once before anything large is held.

The C library keeps what was freed for the next who asks, and moves the size from which it does not
upwards as it goes; caches of tens of megabytes that come and go then leave holes that nothing fills.
With 32 players at once that made 3.8 GB of 2.5. Knows nothing of models.
"""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h.
_M_MMAP_THRESHOLD = -3
# Pieces of at least so many bytes are taken from the system and given back to it, each by itself.
_LARGE = 1 << 20


def settle_allocator() -> bool:
    """Give large pieces of memory back at once; return whether this C library was told so."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE))
    except (AttributeError, OSError):  # another C library
        return False
