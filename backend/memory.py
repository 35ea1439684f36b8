"""Peak memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


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
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
