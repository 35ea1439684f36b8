"""`doctor`: what works on this machine and what to do about the rest, for people and as JSON.

Everything that the photo-only method needs is tried, not only looked up: torch calculates, the rasteriser draws,
mediapipe's models load. Exit code 0 means that this method can run here.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from backend import __version__
from backend.errors import DONE, INSTALL, MODEL_MISSING, UserError
from backend.memory import free_bytes, total_bytes
from blender_addon.shared import file_lock

State = Literal["ok", "none", "missing"]
BODY = Path(__file__).parent / "human" / "data" / "default_body.npz"
REQUIREMENTS = Path(file_lock.__file__).parent.parent / "requirements"
REPAIR = "press Repair in the add-on's preferences"
LIBRARIES = {
    "torch": "torch", "numba": "numba", "mediapipe": "mediapipe", "scipy": "scipy", "pillow": "PIL", "opencv": "cv2",
    "zstandard": "zstandard", "safetensors": "safetensors",
}  # fmt: skip
LEAST_MEMORY_GB, LEAST_DISK_GB = 4.0, 2.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        value: What was found, for people.
        state: "ok"; "none": optional and not there, or worth a word; "missing": needed and not there or not usable.
        next_step: What to do, empty where nothing is needed.
    """

    name: str
    value: str
    state: State = "ok"
    next_step: str = ""


@dataclass(frozen=True)
class Subject:
    """What is looked at beside the machine.

    Attributes:
        folders: Name and place of folders that must be writable; parents are looked at where one is not there yet.
        models: Folder of models; None for the usual one.
        own_body: The user's SMPL-X file, if any.
    """

    folders: tuple[tuple[str, Path], ...] = ()
    models: Path | None = None
    own_body: Path | None = None


def examine(subject: Subject | None = None) -> tuple[Finding, ...]:
    """Look at everything; imports torch only if it is there."""
    subject = subject or Subject()
    found = [Finding("effigy", __version__), _python(), *_environment(), _packages("photo")]
    libraries = [_library(name, module) for name, module in LIBRARIES.items()]
    found += libraries
    absent = {finding.name for finding in libraries if finding.state == "missing"}
    trials: list[tuple[str, tuple[str, ...], Callable[[], Finding]]] = [
        ("torch calculates", ("torch",), _torch),
        ("rasteriser", ("torch", "numba"), _rasteriser),
        ("mediapipe models", ("mediapipe", "opencv"), _mediapipe),
        ("body model", ("scipy",), _body_model),
        ("cuda", ("torch",), _cuda),
        ("cuda rasteriser", ("torch", "numba"), _cuda_rasteriser),
        ("codecs", ("pillow", "zstandard"), _codecs),
        ("own body", ("scipy",), lambda: _own_body(subject.own_body)),
    ]
    for name, needs, trial in trials:
        found.append(_try(name, [need for need in needs if need in absent], trial))
    found += [_packages("models"), *_try_models(subject.models)]
    found += [_memory(), _disk(subject), *(_writable(name, path) for name, path in subject.folders)]
    return tuple(found)


def doctor(as_json: bool, subject: Subject | None = None) -> int:
    """Print the findings.

    Returns:
        0, or 3 if something needed is missing.
    """
    findings = examine(subject)
    ready = all(finding.state != "missing" for finding in findings)
    if as_json:
        print(json.dumps({"ready": ready, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            step = f"  -> {finding.next_step}" if finding.next_step else ""
            print(f"{finding.name:<20} {finding.value}{step}")
        print(f"{'result':<20} " + ("the photo-only method can run" if ready else "the photo-only method cannot run"))
    return DONE if ready else MODEL_MISSING


def _try(name: str, absent: list[str], trial: Callable[[], Finding]) -> Finding:
    """One trial; whatever goes wrong in it is a finding, because a library that is broken may raise anything."""
    if absent:
        return Finding(name, f"not tried without {' and '.join(absent)}", "none")
    try:
        with _quiet():
            return trial()
    except UserError as error:
        return Finding(name, error.message, "missing", REPAIR)
    except Exception as error:
        return Finding(name, _reason(error), "missing", REPAIR)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What libraries print, from native code too, is kept out of the report."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(null, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(null)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1][:160] if lines else 'no message'}"


def _python() -> Finding:
    bits = struct.calcsize("P") * 8
    value = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] < (3, 13) and bits == 64:
        return Finding("python", value)
    step = f"install the backend with Python 3.11 or 3.12, 64 bit; {REPAIR}"
    return Finding("python", value if bits == 64 else f"{value}, {bits} bit", "missing", step)


def _environment() -> list[Finding]:
    """What the add-on wrote about the environment that it made; nothing in any other Python."""
    path = Path(sys.prefix) / file_lock.ENVIRONMENT_STATE
    if not path.is_file():
        return []
    try:
        state = json.loads(path.read_text("utf-8"))
        value = f"made by {state['tool']} for {state['accelerator']}, {state['state']}"
        if state["python"] != platform.python_version():
            text = f"{value}, but its Python {state['python']} is {platform.python_version()} now"
            return [Finding("environment", text, "none", REPAIR)]
    except (OSError, ValueError, KeyError, TypeError):
        return [Finding("environment", "its state file is damaged", "none", REPAIR)]
    return [Finding("environment", value)]


def _accelerator() -> str:
    """Which requirements this Python is to be held to."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        path = Path(sys.prefix) / file_lock.ENVIRONMENT_STATE
        name = str(json.loads(path.read_text("utf-8"))["accelerator"])
        if (REQUIREMENTS / f"{name}.txt").is_file():
            return name
    return "mac" if sys.platform == "darwin" else "cpu"


def pinned(text: str, section: str) -> dict[str, str]:
    """Version by package of one section of a requirements file, for this machine and Python."""
    part = text.partition(f"# section: {section}\n")[2].partition("# section:")[0]
    out: dict[str, str] = {}
    for name, version, marker in re.findall(r"^([\w.-]+)==([^\s;\\]+)\s*(?:; ([^\\\n]*))?", part, re.MULTILINE):
        if _applies(marker):
            out[name] = version
    return out


def _applies(marker: str) -> bool:
    """Evaluate the short markers of our own files."""
    values = {"sys_platform": sys.platform, "python_version": "{}.{}".format(*sys.version_info[:2])}
    return all(values[name] == value for name, value in re.findall(r"(\w+) == '([^']+)'", marker))


def _packages(section: str) -> Finding:
    """The packages of a section against the pins: absent ones, and those of another version."""
    name, needed = ("packages", True) if section == "photo" else ("model packages", False)
    wanted = pinned((REQUIREMENTS / f"{_accelerator()}.txt").read_text("utf-8"), section)
    absent: list[str] = []
    other: list[str] = []
    for package, version in wanted.items():
        try:
            have = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            absent.append(package)
            continue
        if have.split("+")[0] != version.split("+")[0]:
            other.append(f"{package} {have} instead of {version}")
    if absent:
        value = f"{len(absent)} of {len(wanted)} are absent: {_some(absent)}"
        return Finding(name, value, "missing" if needed else "none", REPAIR if needed else f"for models {REPAIR}")
    if other:
        return Finding(name, f"not as tested: {_some(other)}", "none", REPAIR)
    return Finding(name, f"{len(wanted)} of {len(wanted)}, in the versions that were tested")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _library(name: str, module: str) -> Finding:
    """Whether a library is there and loads: a shared library of the system may be absent, or a file of its own."""
    if importlib.util.find_spec(module) is None:
        return Finding(name, "not installed", "missing", INSTALL)
    try:
        with _quiet():
            loaded = importlib.import_module(module)
    except Exception as error:
        return Finding(name, f"does not load ({_reason(error)})", "missing", REPAIR)
    if module == "cv2" and not hasattr(getattr(loaded, "ximgproc", None), "guidedFilter"):
        # opencv-python in the same folder overwrites it
        return Finding(name, "lacks what opencv-contrib-python has; another OpenCV replaced it", "missing", REPAIR)
    return Finding(name, str(getattr(loaded, "__version__", "loads")))


def _torch() -> Finding:
    import torch

    a = torch.arange(6.0).reshape(2, 3).requires_grad_()
    (a @ a.T).sum().backward()
    if a.grad is None or a.grad.tolist() != [[6.0, 10.0, 14.0], [6.0, 10.0, 14.0]]:
        return Finding("torch calculates", "wrongly", "missing", REPAIR)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    count = torch.get_num_threads()
    return Finding("torch calculates", f"a build {build}, {count} thread{'s' if count != 1 else ''}")


def _rasteriser() -> Finding:
    import torch

    from backend.raster import Cameras, SplatTensors, rasterize

    one = SplatTensors(
        torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.25), torch.tensor([0.5])
    )
    k = torch.tensor([[[16.0, 0, 8.5], [0, 16.0, 8.5], [0, 0, 1]]])
    drawn = rasterize(
        one, Cameras(torch.eye(4)[None], k, 16, 16), features=torch.ones(1, 3), antialiased=False, backend="portable"
    )
    alpha = float(drawn.alpha[0, 8, 8]) if drawn.alpha is not None else 0.0
    if abs(alpha - 0.5) > 1e-3:
        return Finding("rasteriser", f"draws wrongly: alpha {alpha:.4f} where 0.5 must be", "missing", REPAIR)
    return Finding("rasteriser", "portable (CPU), draws")


def _mediapipe() -> Finding:
    import numpy as np

    from backend.perception.landmarks import detect_pose

    detect_pose(np.zeros((64, 64, 3), np.uint8))
    return Finding("mediapipe models", "load")


def _body_model() -> Finding:
    if not BODY.is_file():
        return Finding("body model", "missing", "missing", "the add-on is incomplete: install it again")
    from backend.human.model import load_default_body

    body = load_default_body()
    size = f"{len(body.template_m)} vertices, {BODY.stat().st_size / 1e6:.1f} MB"
    return Finding("body model", f"default body (CC0, not SMPL-X), {size}")


def _own_body(path: Path | None) -> Finding:
    if path is None:
        return Finding("own body", "none; Effigy's default body is used", "none")
    from backend.human.model import load_smplx

    try:
        body = load_smplx(path)
    except UserError as error:
        return Finding("own body", error.message, "none", "choose another file in the preferences")
    return Finding("own body", f"{path.name}, {len(body.template_m)} vertices, under its own licence")


def _cuda() -> Finding:
    from backend.device import cuda_fault, query_device

    found = query_device(5.0)
    if found.kind != "cuda":
        return Finding("gpu", "none; everything runs on the CPU", "none")
    title = f"{found.name}, {found.memory_bytes / 1e9:.1f} GB, driver {found.driver}"
    if fault := cuda_fault():
        return Finding("gpu", f"{title}; not usable", "none", fault)
    return Finding("gpu", title)


def _cuda_rasteriser() -> Finding:
    from backend.raster import cuda

    fault = cuda.why_not()
    return Finding("cuda rasteriser", f"not used: {fault}" if fault else "gsplat", "none" if fault else "ok")


def _codecs() -> Finding:
    import zstandard
    from PIL import features

    if zstandard.ZstdDecompressor().decompress(zstandard.ZstdCompressor().compress(b"effigy")) != b"effigy":
        return Finding("codecs", "zstandard does not give back what it was given", "missing", REPAIR)
    absent = [name for name in ("jpg", "zlib", "webp") if not features.check(name)]
    if "jpg" in absent or "zlib" in absent:
        return Finding("codecs", f"Pillow cannot read {_some(absent)}", "missing", REPAIR)
    note = "" if not absent else "; no WebP, so SOG files cannot be read"
    return Finding("codecs", f"JPEG, PNG, {'' if absent else 'WebP, '}zstd{note}", "none" if absent else "ok")


def _try_models(folder: Path | None) -> list[Finding]:
    """Which pretrained models are there; none is needed."""
    try:
        from backend.diffusion.registry import ROWS
        from backend.diffusion.weights import Weights, default_folder

        weights = Weights(folder or default_folder())
        there = [row.id for row in ROWS if weights.installed(row.id)]
        faces = [row.id for row in ROWS if row.role == "identity" and row.id in there]
    except ImportError as error:
        reason = f"unknown ({_reason(error)})"
        return [Finding("identity embedding", reason, "none"), Finding("diffusion models", reason, "none")]
    embedding = Finding("identity embedding", _some(faces) if faces else "none", "ok" if faces else "none")
    if not there:
        return [
            embedding,
            Finding("diffusion models", "none; results are made from the photo only", "none"),
            *_added(there),
        ]
    return [embedding, Finding("diffusion models", f"{len(there)} of {len(ROWS)}: {_some(there)}"), *_added(there)]


def _added(there: list[str]) -> list[Finding]:
    """What makes results better when it is there, each with what is done without it."""
    from backend.diffusion.outside import available

    return [
        Finding(line.name, line.role, "ok")
        if line.installed
        else Finding(line.name, f"none ({line.role}); {line.fallback}", "none", line.next_step)
        for line in available(lambda model_id: model_id in there)
    ]


def _memory() -> Finding:
    total, free = total_bytes() / 1e9, free_bytes() / 1e9
    if not total:
        return Finding("memory", "unknown on this system", "none")
    value = f"{total:.1f} GB, {free:.1f} GB free, {os.cpu_count()} cores"
    if free and free < LEAST_MEMORY_GB:
        return Finding("memory", value, "none", f"a job takes up to {LEAST_MEMORY_GB:.0f} GB; close other programs")
    return Finding("memory", value)


def _disk(subject: Subject) -> Finding:
    place = _existing(dict(subject.folders).get("jobs folder", Path.cwd()))
    free = shutil.disk_usage(place).free / 1e9
    where = "where the jobs go" if subject.folders else "here"
    if free < LEAST_DISK_GB:
        return Finding("disk", f"{free:.1f} GB free {where}", "none", f"free {LEAST_DISK_GB:.0f} GB, or move the jobs")
    return Finding("disk", f"{free:.1f} GB free {where}")


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _writable(name: str, path: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=_existing(path)) as probe:
            probe.write(b"effigy")
    except OSError as error:
        text = f"cannot be written ({error.strerror or error})"
        return Finding(name, text, "missing", "choose another folder in the preferences")
    return Finding(name, "can be written")
