"""Memory: what there is, what a job used, and what to do when it runs out."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from backend.errors import FAILED, UserError

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")

PRESET_SHARE = {"fast": 0.5, "balanced": 0.75, "best": 0.9}
"""Part of the free memory that a job of each preset may plan with; the rest is Blender's and the picture's."""

_UNITS = {"": 1, "b": 1, "bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50, "eib": 2**60}
_WANTED = re.compile(
    r"(?:tried to allocate|unable to allocate|failed to allocate)\s+([\d.]+)\s*([a-z]*)", re.IGNORECASE
)
_EXHAUSTED = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad allocation",
    "std::bad_alloc",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "allocation failed",
)

T = TypeVar("T")
R = TypeVar("R")


def reset_peak() -> bool:
    """Begin a new measurement.

    Returns:
        False where the system has no reset; `peak_bytes` is then the peak since the process began.
    """
    try:
        _CLEAR.write_text("5")  # Linux: resets VmHWM, see proc(5)
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Peak resident memory since `reset_peak` (Linux) or since the start; 0 where the system does not tell."""
    if _STATUS.exists():
        return _status_bytes("VmHWM:")
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Resident memory of this process now (Linux); elsewhere its peak."""
    return _status_bytes("VmRSS:") if _STATUS.exists() else peak_bytes()


@dataclass(frozen=True)
class Budget:
    """What a job may plan with.

    Attributes:
        device: "cpu" or "cuda".
        total_bytes: Of the device; 0 where unknown.
        free_bytes: Of the device now; 0 where unknown.
        allowed_bytes: What the preset and the user's limit leave of it; 0 where unknown.
    """

    device: str
    total_bytes: int
    free_bytes: int
    allowed_bytes: int


def budget(device: str = "cpu", preset: str = "balanced", limit_bytes: int = 0) -> Budget:
    """Look at the device.

    Args:
        device: "cpu" or "cuda".
        preset: fast, balanced or best.
        limit_bytes: The user's own limit; 0 for none.
    """
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
    else:
        free, total = free_bytes(), total_bytes()
    allowed = int(free * PRESET_SHARE.get(preset, 0.75))
    return Budget(device, total, free, min(allowed, limit_bytes) if limit_bytes else allowed)


def total_bytes() -> int:
    """Physical memory, or what the container may use of it; 0 where the system does not tell."""
    if sys.platform == "win32":
        return _windows_memory()[0]
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _cgroup("memory.max")
    return min(physical, limit) if limit else physical


def free_bytes() -> int:
    """Memory that a process can still get without anything being swapped; 0 where the system does not tell."""
    if sys.platform == "win32":
        return _windows_memory()[1]
    if not _MEMINFO.exists():
        return 0
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    free = int(lines.get("MemAvailable", "0 kB").split()[0]) * 1024
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    return min(free, _free_addresses(), max(limit - used, 0) if limit else free)


def free_caches() -> None:
    """Give back what is kept for later: unreachable objects, the allocators' free blocks."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)


@dataclass(frozen=True)
class Shortage:
    """An allocation that failed.

    Attributes:
        needed_bytes: Size of that allocation; 0 where the error does not tell.
        free_bytes: What was free right after it; 0 where the system does not tell.
    """

    needed_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        """Needed against free, for people."""
        needed = f"{_amount(self.needed_bytes)} more were needed" if self.needed_bytes else "more was needed"
        return f"{needed}, {_amount(self.free_bytes)} were free" if self.free_bytes else needed


def is_exhaustion(error: BaseException) -> bool:
    """Whether an exception means that memory ran out; libraries say so in many ways."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _EXHAUSTED)


def wanted_bytes(error: BaseException) -> int:
    """Size of the allocation that an error of numpy or torch names; 0 if it names none."""
    found = _WANTED.search(str(error))
    if not found or found.group(2).lower() not in _UNITS:
        return 0
    return int(float(found.group(1)) * _UNITS[found.group(2).lower()])


def run_with_ladder(
    attempt: Callable[[R], T],
    rungs: Sequence[R],
    step_down: Callable[[R, Shortage], None],
    release: Callable[[], None] = free_caches,
    free: Callable[[], int] = free_bytes,
) -> T:
    """Try the rungs from the best to the smallest until one fits.

    Whenever memory runs out, everything the attempt made is dropped (its traceback too, which holds it), caches are
    freed and, once on the first rung, the same is tried again; after that the next rung follows.

    Args:
        attempt: Does the work on a rung; must be able to begin anew.
        rungs: At least one, e.g. sizes of a batch.
        step_down: Told the rung that is tried next and why; warns the user.
        release: Frees caches.
        free: Memory that is free now, bytes.

    Raises:
        UserError: OUT_OF_MEMORY with needed against free, when the last rung does not fit either.
    """
    shortage = Shortage(0, 0)
    for index, rung in enumerate([rungs[0], *rungs]):
        if index > 1:
            step_down(rung, shortage)
        try:
            return attempt(rung)
        except Exception as error:
            if not is_exhaustion(error):
                raise
            shortage = Shortage(wanted_bytes(error), free())
        release()  # outside the handler: inside it the traceback still holds the attempt's arrays
    raise out_of_memory(shortage)


def out_of_memory(shortage: Shortage) -> UserError:
    """The error at the ladder's end."""
    step = "close other programs or use --preset fast"
    return UserError(f"the memory is full ({shortage}); {step}", FAILED, "OUT_OF_MEMORY")


def _amount(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{count / 1e6:.1f} MB"


def _status_bytes(label: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(label):
            return int(line.split()[1]) * 1024
    return 0


def _free_addresses() -> int:
    """What a limit on the address space (ulimit -v) leaves to this process; huge without one."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return 1 << 62 if limit == resource.RLIM_INFINITY else max(limit - _status_bytes("VmSize:"), 0)


def _cgroup(name: str) -> int:
    """A number of the container's memory controller (cgroup 2); 0 where there is none or no limit."""
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


def _windows_memory() -> tuple[int, int]:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel32 = getattr(ctypes, "windll").kernel32  # noqa: B009  exists on Windows only
    return (status.total, status.available) if kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else (0, 0)
