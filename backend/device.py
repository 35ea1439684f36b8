"""What the driver says about the machine, in milliseconds and without torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from backend.errors import MODEL_MISSING, UserError
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


LEAST_DRIVER = 580
"""Series of NVIDIA's driver that CUDA 13 needs (its release notes); torch's wheels are built for CUDA 13."""


def choose_device(wish: str) -> str:
    """Where a job works.

    Args:
        wish: "auto", "cpu" or "cuda". auto is the processor: the portable rasteriser is what the methods use so far.

    Raises:
        UserError: NO_DEVICE if CUDA is wanted and cannot be used, with the reason.
    """
    if wish != "cuda":
        return "cpu"
    if fault := cuda_fault():
        raise UserError(f"CUDA cannot be used: {fault}; or choose the device Automatic", MODEL_MISSING, "NO_DEVICE")
    return "cuda"


def cuda_fault() -> str:
    """Why torch cannot use a CUDA device, one line with the next step; empty if it can."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"torch cannot be loaded ({error})"
    found = query_device(5.0)
    device = found if found.kind == "cuda" else None
    built, usable = torch.version.cuda or "", torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if usable else (0, 0)
    fault = explain_cuda(device, built, usable, capability, torch.cuda.get_arch_list() if usable else [])
    if not fault:
        try:
            torch.zeros(1, device="cuda").add_(1).cpu()
        except RuntimeError as error:
            fault = f"a first calculation failed ({str(error).strip().splitlines()[0]}); restart the machine"
    return fault


def explain_cuda(
    device: Device | None, built: str, usable: bool, capability: tuple[int, int], architectures: Sequence[str]
) -> str:
    """Why CUDA does not work, from what driver and torch say; empty if nothing speaks against it.

    Args:
        device: What the driver says; None if there is none.
        built: CUDA version that torch is built for; empty: without.
        usable: Whether torch sees a device.
        capability: Compute capability of the device that torch sees.
        architectures: What torch is built for, as "sm_90" or "compute_90".
    """
    if device is None:
        return "no NVIDIA device is found; it is absent, was removed, or its driver is not loaded"
    if not built:
        return f"this torch is built without CUDA for {device.name}; install the backend with the accelerator CUDA"
    series = device.driver.split(".")[0]
    if not usable and series.isdigit() and int(series) < LEAST_DRIVER:
        return f"driver {device.driver} is too old for CUDA {built}; install version {LEAST_DRIVER} or newer"
    if not usable:
        return f"torch does not see {device.name}; restart the machine, then install NVIDIA's driver again"
    if architectures and not any(_runs(name, capability) for name in architectures):
        wanted = ".".join(map(str, capability))
        return f"{device.name} (compute capability {wanted}) is not supported by torch for CUDA {built}; use the CPU"
    return ""


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for `architecture` runs on a device: machine code within one major version, PTX on all newer."""
    kind, _, number = architecture.partition("_")
    digits = "".join(character for character in number if character.isdigit())
    if len(digits) < 2:
        return False
    major, minor = int(digits[:-1]), int(digits[-1])
    if kind == "compute":
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]


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
