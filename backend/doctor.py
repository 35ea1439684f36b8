"""`doctor`: what works on this machine, for people and as JSON."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from backend import __version__
from backend.errors import DONE, INSTALL, MODEL_MISSING

State = Literal["ok", "none", "missing"]
BODY = Path(__file__).parent / "human" / "data" / "default_body.npz"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        value: What was found, for people.
        state: "ok"; "none": optional and not there; "missing": needed and not there.
        next_step: What to do, empty where nothing is needed.
    """

    name: str
    value: str
    state: State = "ok"
    next_step: str = ""


def examine() -> tuple[Finding, ...]:
    """Look at everything; imports torch only if it is there."""
    return (
        Finding("effigy", __version__),
        _python(),
        _package("torch", needed=True),
        _package("numba", needed=True),
        _package("mediapipe", needed=True),
        _package("bpy", needed=False, absent="not in this Python; Blender itself, or pip install effigy[blender]"),
        _rasteriser(),
        _cuda_rasteriser(),
        _gpu(),
        _body_model(),
        Finding("identity embedding", "none", "none"),
        Finding("diffusion models", "none; results are made from the photo only", "none"),
        _memory(),
        Finding("disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB free here"),
    )


def doctor(as_json: bool) -> int:
    """Print the findings.

    Returns:
        0, or 3 if something needed is missing.
    """
    findings = examine()
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            step = f"  -> {finding.next_step}" if finding.next_step else ""
            print(f"{finding.name:<20} {finding.value}{step}")
    return MODEL_MISSING if any(finding.state == "missing" for finding in findings) else DONE


def _python() -> Finding:
    value = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("python", value)
    return Finding("python", value, "missing", "use Python 3.11 or 3.12")


def _package(name: str, needed: bool, absent: str = "not installed") -> Finding:
    if importlib.util.find_spec(name) is None:
        step = INSTALL if needed else ""
        return Finding(name, absent, "missing" if needed else "none", step)
    return Finding(name, importlib.metadata.version(name))


def _rasteriser() -> Finding:
    found = importlib.util.find_spec("numba") is not None
    return Finding("rasteriser", "portable (CPU)" if found else "none", "ok" if found else "missing")


def _cuda_rasteriser() -> Finding:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("numba") is None:
        return Finding("cuda rasteriser", "unknown without torch and numba", "none")
    from backend.raster import cuda

    fault = cuda.why_not()
    return Finding("cuda rasteriser", f"not used: {fault}" if fault else "gsplat", "none" if fault else "ok")


def _gpu() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("gpu", "unknown without torch", "none")
    import torch

    if not torch.cuda.is_available():
        return Finding("gpu", "none; everything runs on the CPU", "none")
    return Finding("gpu", f"{torch.cuda.get_device_name()}; not used by this version", "none")


def _body_model() -> Finding:
    if BODY.is_file():
        return Finding("body model", f"default body (CC0, not SMPL-X), {BODY.stat().st_size / 1e6:.1f} MB")
    return Finding("body model", "missing", "missing", "the checkout is incomplete: fetch it again")


def _memory() -> Finding:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Finding("memory", "unknown on this system", "none")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Finding("memory", f"{total / 1e9:.1f} GB, {os.cpu_count()} cores")
