"""The memory that this process holds, and the most that it held."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"  # see proc(5), clear_refs


def held_bytes() -> int:
    """Return the resident bytes of this process; 0 where the system does not tell."""
    return _read("VmRSS")


def peak_bytes() -> int:
    """Return the most resident bytes since `forget_peak`; 0 where the system does not tell."""
    return _read("VmHWM")


def forget_peak() -> None:
    """Give back what was freed and count the peak from here on, so that loading is not in it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_FORGET_PEAK)


def _read(field: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)
