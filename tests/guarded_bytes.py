"""bytes that end where readable memory ends: whoever reads one byte further is killed by SIGSEGV.

An object of CPython's own layout is laid at the end of a mapping, so that even the NUL that CPython keeps behind the
bytes lies in a page that nobody may read. A crash can't be caught: run what is doubted in a process of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import TypeVar, cast

if sys.implementation.name != "cpython":
    raise ImportError("these are objects of CPython's layout")

_HEADER_BYTES = bytes.__basicsize__ - 1  # what stands before the bytes; the type's size counts the NUL behind them
_PROT_NONE = 0
_NEVER_FREED = 1 << 30

Result = TypeVar("Result")

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedBytes:
    """Room for one guarded object at a time. The memory stays mapped as long as the process runs."""

    def __init__(self, max_bytes: int) -> None:
        readable = -(-(_HEADER_BYTES + max_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        start = _LIBC.mmap(None, readable + mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if start == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        self._guard = start + readable
        self._max_bytes = max_bytes
        if _LIBC.mprotect(self._guard, mmap.PAGESIZE, _PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")

    def call(self, read: Callable[[bytes], Result], data: bytes) -> Result:
        """`read` of `data` with the guard behind it. It must keep no reference: the next call overwrites the object."""
        if len(data) > self._max_bytes:
            raise ValueError(f"{len(data)} bytes are more than {self._max_bytes}")
        at = self._guard - len(data) - _HEADER_BYTES
        ctypes.memmove(at, id(data), _HEADER_BYTES + len(data))
        ctypes.c_ssize_t.from_address(at).value = _NEVER_FREED
        return read(cast("bytes", ctypes.cast(at, ctypes.py_object).value))
