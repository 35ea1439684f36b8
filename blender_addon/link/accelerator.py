"""Which build of the backend fits this machine, asked of the driver. Standard library only."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from typing import Literal

Accelerator = Literal["cpu", "cuda", "mac"]

LEAST_DRIVER = 580
"""CUDA 13 needs this series of NVIDIA's driver (CUDA 13.0 release notes) ..."""

LEAST_CAPABILITY = (7, 5)
"""... and this compute capability (Turing): CUDA 13 left the older ones out."""


@dataclass(frozen=True)
class Choice:
    """An accelerator and why it was chosen, for people."""

    accelerator: Accelerator
    reason: str


@dataclass(frozen=True)
class Nvidia:
    """The first device as the driver describes it: name, driver version, compute capability."""

    name: str
    driver: str
    capability: tuple[int, int]


def choose(wish: str = "auto", system: str = sys.platform) -> Choice:
    """The accelerator for this machine.

    Args:
        wish: "auto", "cpu" or "cuda".
        system: `sys.platform`.
    """
    if system == "darwin":
        return Choice("mac", "Apple" if platform.machine() == "arm64" else "macOS")
    if wish == "cpu":
        return Choice("cpu", "chosen")
    if wish == "cuda":
        return Choice("cuda", "chosen")
    return fitting(_ask_driver(system))


def fitting(device: Nvidia | None) -> Choice:
    """The accelerator for a device, or for none."""
    if device is None:
        return Choice("cpu", "no NVIDIA device found")
    series = device.driver.split(".")[0]
    if not series.isdigit() or int(series) < LEAST_DRIVER:
        return Choice("cpu", f"{device.name} has driver {device.driver or 'unknown'}; CUDA 13 needs {LEAST_DRIVER}")
    if device.capability < LEAST_CAPABILITY:
        return Choice("cpu", f"{device.name} is too old for CUDA 13")
    return Choice("cuda", device.name)


def supported(system: str = sys.platform, machine: str = platform.machine()) -> str:
    """Why there is no backend for this kind of machine; empty if there is one."""
    if system == "darwin":
        return (
            "" if machine == "arm64" else "the backend needs a Mac with an Apple processor (torch has none for Intel)"
        )
    if system not in ("linux", "win32") or machine.lower() not in ("x86_64", "amd64"):
        return f"the backend needs an x86-64 processor on Linux or Windows, not {machine}: mediapipe has none for it"
    return ""


def _ask_driver(system: str) -> Nvidia | None:
    """The first NVIDIA device by NVML, which comes with the driver and makes no context; None without one."""
    windows = os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvml.dll")
    names = {"linux": "libnvidia-ml.so.1", "win32": windows}
    try:
        library = ctypes.CDLL(names[system])
    except (KeyError, OSError):
        return None
    if library.nvmlInit_v2() != 0:
        return None
    try:
        handle, major, minor = ctypes.c_void_p(), ctypes.c_int(0), ctypes.c_int(0)
        if library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) != 0:
            return None
        name, driver = ctypes.create_string_buffer(96), ctypes.create_string_buffer(80)
        library.nvmlDeviceGetName(handle, name, len(name))
        library.nvmlSystemGetDriverVersion(driver, len(driver))
        library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
        words = [buffer.value.decode("utf-8", errors="replace") for buffer in (name, driver)]
        return Nvidia(words[0], words[1], (major.value, minor.value))
    finally:
        library.nvmlShutdown()
