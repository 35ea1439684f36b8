"""Makes and repairs the checkout's `.venv`. Standard library only; the versions come from pyproject.toml.

An environment is good when its stamp, written last, covers what is needed, its Python starts and a probe imports the
packages. Anything else is made good: a changed list is installed on top, a half-made or broken one is made anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (3, 11)  # the bpy wheel is built for this one only
NEEDED_BYTES = 6_000_000_000  # the finished environment has 3.5 GB; wheels are unpacked beside it
STAMP = "effigy-stamp.json"
IMPORTS = {
    "cpu": (
        "numpy",
        "scipy",
        "PIL",
        "numba",
        "cv2.ximgproc:guidedFilter",
        "torch",
        "mediapipe",
        "zstandard",
        "safetensors",
    ),
    "diffusion": ("diffusers", "transformers", "peft", "accelerate", "ftfy", "insightface"),
    "blender": ("bpy",),
    "dev": ("pytest", "xdist", "smplx", "hypothesis", "gsplat"),
    "bpy42": ("bpy",),
    "bpy50": ("bpy",),
}
CONTRIB = "opencv-contrib-python"
OTHER_BLENDERS = ("bpy42", "bpy50")
"""Extras that cannot share an environment with `blender`; each has its own, `.venv-NAME`."""
OTHER_BLENDER_BYTES = 2_000_000_000
# Settings of the caller that would let another environment leak into this one or send packages elsewhere.
# The caller's package index, proxy, certificates and cache stay as they are.
LEAKS = (
    "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONSAFEPATH", "__PYVENV_LAUNCHER__",
    "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_NO_DEPS", "PIP_REQUIREMENT", "PIP_CONSTRAINT",
    "PIP_EDITABLE", "PIP_DRY_RUN", "PIP_REPORT", "PIP_IGNORE_INSTALLED", "PIP_PRE", "PIP_PYTHON",
)  # fmt: skip
AGAIN = "then run the same command again"
OFFLINE = f"the package index cannot be reached: check the network, {AGAIN}"
REASONS = (
    ("No space left on device", f"the disk is full: free 6 GB, {AGAIN}"),
    ("Permission denied", f"a file may not be written: see who owns the folder, {AGAIN}"),
    ("Temporary failure in name resolution", OFFLINE),
    ("Failed to establish a new connection", OFFLINE),
    ("Network is unreachable", OFFLINE),
    ("Read timed out", "the package index answers too slowly: run the same command again"),
    ("No matching distribution found", "pip's package index lacks a package: check `pip config list`"),
    ("ResolutionImpossible", "the pinned versions contradict each other: report this with the log"),
)


class SetupError(Exception):
    """The environment cannot be made; the message is one line with the next step."""


@dataclass(frozen=True)
class Plan:
    """What the environment must be.

    Attributes:
        folder: Where it lies.
        requirements: Pinned requirements, as pip takes them.
        imports: What the probe imports, `module` or `module:attribute`.
        python: The interpreter that it is made from.
        needed_bytes: Free disk space that making it takes.
    """

    folder: Path
    requirements: tuple[str, ...]
    imports: tuple[str, ...]
    python: str
    needed_bytes: int = NEEDED_BYTES

    @property
    def interpreter(self) -> Path:
        """The environment's own Python."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def read_requirements(extras: tuple[str, ...], pyproject: Path = ROOT / "pyproject.toml") -> tuple[str, ...]:
    """The pinned requirements of `extras`, read from pyproject.toml, references between extras resolved."""
    import tomllib  # from 3.11 on; whoever gets here has it

    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    own = re.compile(rf"{project['name']}\[([\w,-]+)\]$")
    found: dict[str, None] = dict.fromkeys(project["dependencies"])
    waiting = list(extras)
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop(0)]:
            if reference := own.match(requirement):
                waiting += reference[1].split(",")
            else:
                found[requirement] = None
    return tuple(found)


def clean_environment() -> dict[str, str]:
    """The caller's environment variables without those that break the isolation of a virtual environment."""
    kept = {name: value for name, value in os.environ.items() if name not in LEAKS}
    return kept | {"PYTHONNOUSERSITE": "1", "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}


def find_python() -> str:
    """A Python of the version that the pins are made for: this one, else one on the PATH.

    Raises:
        SetupError: If there is none.
    """
    if sys.version_info[:2] == PYTHON:
        return sys.executable
    name = "python{}.{}".format(*PYTHON)
    found = shutil.which(name)
    question = [found or "", "-c", "import sys; print(*sys.version_info[:2])"]
    if found and _run(question).stdout.split() == [str(number) for number in PYTHON]:
        return found
    here = "{}.{}".format(*sys.version_info[:2])
    raise SetupError(f"Python 3.11 is needed and this is {here}: install Python 3.11, then run `{name} {sys.argv[0]}`")


def fault(plan: Plan) -> str:
    """Why the environment cannot be used as it is; empty if it can.

    "changed" means that the environment is sound and that installing the missing requirements is enough.
    """
    if not plan.folder.exists():
        return "not there yet"
    try:
        stamp = json.loads((plan.folder / STAMP).read_text("utf-8"))
        present, version = set(stamp["requirements"]), stamp["python"]
    except (OSError, ValueError, KeyError, TypeError):
        return "half made (no valid stamp)"
    try:
        actual = _version(plan)
    except OSError:
        return "broken (its Python is gone)"
    if actual != version:
        return "broken (its Python does not start or is another version)"
    if not present.issuperset(plan.requirements):
        return "changed"
    return _probe(plan)


def ensure(plan: Plan, say: Callable[[str], None] = print) -> Path:
    """Make or repair the environment if needed.

    Args:
        plan: What is needed.
        say: Takes each line for people.

    Returns:
        The environment's Python.

    Raises:
        SetupError: If it cannot be made.
    """
    if not fault(plan):
        return plan.interpreter
    with _lock(plan.folder, say):
        reason = fault(plan)  # another process may have made it while this one waited
        if not reason:
            return plan.interpreter
        try:
            _make(plan, reason, say)
        except OSError as error:
            why = error.strerror or error
            raise SetupError(f"{plan.folder} cannot be written ({why}): check space and rights, {AGAIN}") from error
    return plan.interpreter


def _make(plan: Plan, reason: str, say: Callable[[str], None]) -> None:
    if reason == "changed":
        say(f"{plan.folder.name}: adding what is missing")
        (plan.folder / STAMP).unlink()
    else:
        say(f"{plan.folder.name}: {reason}; making it (once, some minutes; needs {plan.needed_bytes / 1e9:.0f} GB)")
        _create(plan)
    log = plan.folder / "setup.log"
    log.unlink(missing_ok=True)
    if plan.requirements:
        _install(plan, plan.requirements, log, say)
        # Two distributions unpack into cv2's folder where insightface brings the smaller one: the larger must be last.
        last = tuple(name for name in plan.requirements if name.startswith(CONTRIB))
        if last and _broken_opencv(plan):
            _install(plan, ("--force-reinstall", "--no-deps", *last), log, say)
    check = _run([str(plan.interpreter), "-I", "-m", "pip", "check"])
    if check.returncode:
        first = (check.stdout.strip().splitlines() or ["pip check failed"])[0]
        raise SetupError(f"the installed packages do not fit together ({first}): report this with {log}")
    if broken := _probe(plan):
        raise SetupError(f"{plan.folder.name} is {broken} though just installed: see {log}")
    unfinished = plan.folder / (STAMP + ".part")
    content = {"python": _version(plan), "requirements": list(plan.requirements)}
    unfinished.write_text(json.dumps(content, indent=1), "utf-8")
    unfinished.replace(plan.folder / STAMP)
    say(f"{plan.folder.name}: ready")


def _create(plan: Plan) -> None:
    _remove(plan.folder)
    free, needed = shutil.disk_usage(plan.folder.parent).free, plan.needed_bytes
    if free < needed:
        raise SetupError(f"{free / 1e9:.1f} GB are free and {needed / 1e9:.0f} GB are needed: free some space, {AGAIN}")
    made = _run([plan.python, "-I", "-m", "venv", str(plan.folder)])
    if made.returncode:
        text = (made.stdout + made.stderr).strip()
        hint = "install the system's python3.11-venv package" if "ensurepip" in text else text[-160:]
        raise SetupError(f"python -m venv failed: {hint}, {AGAIN}")


def _broken_opencv(plan: Plan) -> bool:
    return _run([str(plan.interpreter), "-I", "-c", _import("cv2.ximgproc:guidedFilter")]).returncode != 0


def _install(plan: Plan, wanted: Sequence[str], log: Path, say: Callable[[str], None]) -> None:
    command = [str(plan.interpreter), "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--no-warn-script-location", *wanted]
    display = Display(plan, say)
    with log.open("a", encoding="utf-8") as file, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=clean_environment()
    ) as process:  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=1.0)
            except queue.Empty:
                line = ""  # nothing new, but a long download or unpacking should be seen to live
            if line is None:
                break
            file.write(line)
            display.update(line)
    display.close()
    if process.returncode:
        raise SetupError(f"{_explain(log.read_text('utf-8'))} (log: {log})")


class Display:
    """pip's output as one line: what is collected, then package n of m.

    While pip unpacks it says nothing, so the packages that arrive are counted in the environment.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None], live: bool | None = None) -> None:
        """Show the progress of `plan`; `live` rewrites one line in place instead of calling `say`."""
        self._folder, self._say = plan.folder, say
        self._live = sys.stdout.isatty() if live is None else live
        self._began, self._shown, self._text = time.monotonic(), -10.0, ""
        self._collected = 0
        self._name = ""
        self._names: list[str] = []

    def update(self, line: str) -> None:
        """Take one line of pip's output (empty: just refresh)."""
        changed = False
        if found := re.match(r"\s*Collecting (\S+)", line):
            self._collected, self._name = self._collected + 1, found[1]
        elif found := re.match(r"\s*(?:Downloading|Using cached|Processing) (\S+)(?:.* \((.*)\))?", line):
            self._name = Path(found[1]).name.split("-")[0] + (f" ({found[2]})" if found[2] else "")
        elif found := re.match(r"Installing collected packages: (.*)", line):
            self._names, changed = [name.strip() for name in found[1].split(",")], True
        self._show(changed)

    def text(self) -> str:
        """The current state in words."""
        if not self._collected:
            return "asking the package index"
        if not self._names:
            return f"collecting package {self._collected}: {self._name}"
        site = [*self._folder.glob("lib/python*/site-packages"), self._folder / "Lib" / "site-packages"]
        present = {_canonical(path.name.split("-")[0]) for folder in site for path in folder.glob("*.dist-info")}
        names = [_canonical(name) for name in self._names]
        missing = [name for name in names if name not in present]
        current = missing[0] if missing else "finishing"
        return f"installing package {min(len(names) - len(missing) + 1, len(names))} of {len(names)}: {current}"

    def close(self) -> None:
        """End the line."""
        self._show(True)
        if self._live:
            print(flush=True)

    def _show(self, always: bool) -> None:
        now = time.monotonic() - self._began
        if not always and now - self._shown < (0.5 if self._live else 3.0):
            return
        self._shown, text = now, self.text()
        if self._live:
            width = max(shutil.get_terminal_size().columns - 1, 20)
            print("\r\x1b[K" + f"  {now:5.0f} s  {text}"[:width], end="", flush=True)
        elif always or text != self._text or now - self._shown >= 30:
            self._say(f"  {now:5.0f} s  {text}")
        self._text = text


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _explain(log: str) -> str:
    for sign, meaning in REASONS:
        if sign in log:
            return meaning
    errors = [line for line in log.splitlines() if line.startswith("ERROR")]
    return f"pip failed ({errors[-1][:160] if errors else 'no reason given'}): run the same command again"


def _version(plan: Plan) -> str:
    return _run([str(plan.interpreter), "-I", "-c", "import platform; print(platform.python_version())"]).stdout.strip()


def _probe(plan: Plan) -> str:
    """Import the packages in one process; empty if all went well."""
    if not plan.imports:
        return ""
    answer = _run([str(plan.interpreter), "-I", "-c", "\n".join(map(_import, plan.imports))])
    if answer.returncode == 0:
        return ""
    last = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
    return f"broken ({last[:160]})"


def _import(name: str) -> str:
    """The statement for `module` or `module:attribute`."""
    module, _, attribute = name.partition(":")
    return f"from {module} import {attribute}" if attribute else f"import {module}"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    settings = clean_environment()
    return subprocess.run(command, capture_output=True, text=True, errors="replace", env=settings, check=False)


def _remove(folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


@contextlib.contextmanager
def _lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One maker at a time. The system drops the lock when its holder dies, so that it cannot go stale."""
    path = folder.with_name(folder.name + ".lock")
    try:
        file = path.open("a+b")
    except OSError as error:
        raise SetupError(f"{path.parent} cannot be written ({error.strerror}): use a checkout that you own") from error
    with file:
        told = False
        while not _try_lock(file.fileno()):
            if not told:
                say(f"{folder.name}: another process is making it; waiting")
                told = True
            time.sleep(0.5)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def ready(*extras: str) -> Path:
    """The Python of a `.venv` that has `extras`, made or repaired if needed.

    Raises:
        SetupError: If it cannot be made.
    """
    imports = tuple(name for extra in extras for name in IMPORTS.get(extra, ()))
    python = find_python()
    return ensure(Plan(ROOT / ".venv", read_requirements(extras), imports, python))


def ready_other_blender(extra: str) -> Path:
    """The Python of `.venv-EXTRA` with one of `OTHER_BLENDERS`, made or repaired if needed.

    Raises:
        SetupError: If it cannot be made.
    """
    folder, python = ROOT / f".venv-{extra}", find_python()
    return ensure(Plan(folder, read_requirements((extra,)), IMPORTS[extra], python, OTHER_BLENDER_BYTES))


def main_guard(main: Callable[[], int]) -> int:
    """Run `main`; a set-up that fails or is interrupted ends in one line and an exit code.

    Returns:
        The exit code of the command.
    """
    try:
        return main()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
