"""What the driver says about the machine, in milliseconds and without torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from pathlib import Path

from backend.memory import free_bytes, total_bytes
from blender_addon.shared.protocol import Device

_CPU_INFO = Path("/proc/cpuinfo")
_LIBRARIES = {"linux": ("libnvidia-ml.so.1",), "win32": ("nvml.dll", r"C:\Windows\System32\nvml.dll")}


def query_device(patience_s: float = 0.8) -> Device:
    """The first NVIDIA device, else the processor.

    NVIDIA's management library comes with the driver and makes no context on the device. A driver that sleeps may need
    seconds; after `patience_s` the processor is named, and the capabilities that follow later say more.
    """
    found: list[Device] = []
    asking = threading.Thread(target=lambda: found.extend(_nvidia()), daemon=True)
    asking.start()
    asking.join(patience_s)
    return found[0] if found else _processor()


def _processor() -> Device:
    return Device("cpu", _processor_name(), total_bytes(), free_bytes(), "", os.cpu_count() or 1)


def _processor_name() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text("utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_uint64), ("free", ctypes.c_uint64), ("used", ctypes.c_uint64))


def _nvidia() -> list[Device]:
    """One entry, or none where there is no driver or no device."""
    library = _load(_LIBRARIES.get(sys.platform, ()))
    if library is None or library.nvmlInit_v2() != 0:
        return []
    count, handle, memory = ctypes.c_uint(0), ctypes.c_void_p(), _Memory()
    name, driver = ctypes.create_string_buffer(96), ctypes.create_string_buffer(80)
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or count.value == 0:
        return []
    if library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) != 0:
        return []
    library.nvmlDeviceGetName(handle, name, len(name))
    library.nvmlSystemGetDriverVersion(driver, len(driver))
    library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    words = [buffer.value.decode("utf-8", errors="replace") for buffer in (name, driver)]
    return [Device("cuda", words[0], memory.total, memory.free, words[1], count.value)]


def _load(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue  # no NVIDIA driver under this name
    return None
