"""Installs the backend: an environment of its own, made by uv or by a Python of this machine. No bpy, no torch.

The work is done by child processes; a thread starts them one after the other and reads what they print, so that
whoever shows the progress only looks at `Installation.progress`. Blender's own Python is neither touched nor used.

An environment counts only when `doctor` has found it complete. Whatever interrupts the work leaves it "incomplete",
the next try goes on there, and an older finished environment stays until the new one works.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal

from ..shared.file_lock import held
from . import environments
from .accelerator import supported
from .backend_python import backend_command, backend_environment
from .environments import Environment
from .install_progress import PipMeter, UvMeter, explain, lacks_torch
from .install_tools import PYTHONS, InstallCancelled, InstallError, UvRelease, download_uv, find_pythons, find_uv
from .package_sources import clean_environment, uv_arguments, uv_settings
from .process_group import ProcessGroup

SIZES_GB: Mapping[str, tuple[float, float]] = {"cpu": (0.7, 2.3), "cuda": (3.5, 9.0), "mac": (0.6, 2.2)}
"""Download and place on the disk by accelerator: the first measured on Linux, the others from the sizes of wheels."""

OFFLINE = "Blender's online access is off, so nothing is downloaded; allow it in the preferences under System"

_WINDOWS_LONGEST = 185
"""The longest path inside the environment (a licence file of torch), characters; Windows allows 259 in all."""

Mode = Literal["install", "repair", "remove"]
Outcome = Literal["running", "ready", "removed", "failed", "cancelled"]


@dataclass(frozen=True)
class Order:
    """What shall be done.

    Attributes:
        root: Folder of the environments; made if it is missing.
        accelerator: cpu, cuda or mac.
        mode: repair installs every package again; remove takes everything in `root` away.
        online: Whether Blender may use the network.
        requirements: The requirements file; None takes the add-on's own.
        check: Command that prints doctor's findings as JSON, given the environment's Python.
        needed_bytes: Free space that it takes; 0 takes it from `SIZES_GB`.
        caller: Variables that the child processes start from.
        blender: Folders whose Pythons are left alone.
        release: Where uv comes from if this machine has none.
        pythons: Versions that may be used, the best first; empty for those that the requirements are made for.
    """

    root: Path
    accelerator: str
    mode: Mode = "install"
    online: bool = True
    requirements: Path | None = None
    check: Callable[[Path], Sequence[str]] = lambda python: backend_command(python, "doctor", "--json")
    needed_bytes: int = 0
    caller: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    blender: tuple[Path, ...] = ()
    release: UvRelease = field(default_factory=UvRelease)
    pythons: tuple[str, ...] = ()

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions of Python that may be used, the best first."""
        return self.pythons or pythons_for(self.accelerator)

    @property
    def file(self) -> Path:
        """The requirements file."""
        return self.requirements or environments.REQUIREMENTS / f"{self.accelerator}.txt"

    @property
    def folder(self) -> Path:
        """Where the environment will lie."""
        return self.root / environments.wanted_name(self.accelerator, self.file)


@dataclass(frozen=True)
class Progress:
    """How far it is: state, step for people, fraction 0..1, and more words, the problem if it failed."""

    state: Outcome = "running"
    step: str = "Starting"
    fraction: float = 0.0
    text: str = ""


class Installation:
    """One order, worked on in a thread of its own."""

    def __init__(self, order: Order) -> None:
        """Begin."""
        self.order = order
        self.log = order.root / "install.log"
        self.progress = Progress()
        self._cancelled = threading.Event()
        self._group: ProcessGroup | None = None
        self._guard = threading.Lock()
        self._inherited: tuple[int, ...] = ()
        self._thread = threading.Thread(target=self._run, name="effigy install", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it still works."""
        return self._thread.is_alive()

    def cancel(self) -> None:
        """Stop; what is there stays, and the next try goes on from it. Returns at once."""
        self._cancelled.set()
        with self._guard:
            if self._group is not None:
                self._group.kill()

    def close(self, patience_s: float = 2.0) -> None:
        """Stop and wait for the end, for Blender's exit and for disabling the add-on."""
        self.cancel()
        self._thread.join(patience_s)

    # The rest runs in the thread.

    def _run(self) -> None:
        try:
            done: Outcome = "ready"
            if self.order.mode == "remove":
                self._remove()
                done = "removed"
            else:
                self._install()
            self._say(done, "", 1.0)
        except InstallCancelled:
            self._say("cancelled", "what is there stays; Install goes on with it")
        except InstallError as error:
            self._say("failed", str(error))
        except OSError as error:
            where = error.filename or self.order.root
            self._say("failed", f"{where} cannot be used ({error.strerror or error}); choose another folder or free it")

    def _say(self, state: Outcome, text: str, fraction: float | None = None) -> None:
        now = self.progress
        self.progress = Progress(state, now.step, now.fraction if fraction is None else fraction, text)

    def _step(self, step: str, fraction: float, text: str = "") -> None:
        if self._cancelled.is_set():
            raise InstallCancelled
        self.progress = Progress("running", step, fraction, text)

    def _install(self) -> None:
        order = self.order
        self._step("Look at the machine", 0.0)
        if not order.online:
            raise InstallError(OFFLINE)
        if problem := supported():
            raise InstallError(problem)
        self._prepare_folder()
        with held(order.root / "install.lock", self._wait_for) as lock:
            self._inherited = (lock.fileno(),)  # a tool that outlives Blender keeps the lock until it has ended
            there = environments.read(order.folder)
            if order.mode == "install" and there.usable:
                return  # another Blender made it while this one waited
            if environments.is_in_use(order.folder):
                raise InstallError("the backend works with this environment; wait for its jobs or cancel them")
            self._check_space()
            with self.log.open("wb") as log:
                self._make(there, log)
            environments.sweep(order.root, order.folder)

    def _prepare_folder(self) -> None:
        root = self.order.root
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root) as probe:
                probe.write(b"effigy")
        except OSError as error:
            raise InstallError(
                f"{root} cannot be written ({error.strerror or error}); choose another folder"
            ) from error
        if sys.platform == "win32" and len(str(self.order.folder)) + _WINDOWS_LONGEST > 259 and not _long_paths():
            most = 259 - _WINDOWS_LONGEST - len(self.order.folder.name) - 1
            raise InstallError(
                f"{root} is too long a path for Windows ({len(str(root))} characters, at most {most}); "
                "choose a shorter folder, or allow long paths in Windows"
            )

    def _wait_for(self, pid: int) -> None:
        self._step("Wait", 0.0, f"another Blender (process {pid or 'unknown'}) is installing here")

    def _check_space(self) -> None:
        needed = self.order.needed_bytes or int(sum(SIZES_GB[self.order.accelerator]) * 1e9)
        free = shutil.disk_usage(self.order.root).free
        if free < needed:
            amounts = f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
            raise InstallError(f"{amounts} in {self.order.root}; free some space or choose another folder")

    def _make(self, there: Environment, log: IO[bytes]) -> None:
        """Make or complete the environment, and try it."""
        order = self.order
        digest = environments.requirements_digest(order.file)
        wanted = Environment(order.folder, step="packages", accelerator=order.accelerator, requirements=digest)
        uv, pythons = self._find_tool()
        tool = "uv" if uv else "pip"
        # Written when the environment itself was whole; before that nothing is worth keeping.
        begun = (there.state == "ready" or there.step in ("packages", "check")) and there.tool == tool
        version = self._python_version(there, log) if begun else ""
        if not version:
            self._step("Make the environment", 0.06)
            if not environments.remove(order.folder):
                raise InstallError(
                    f"{order.folder} is in use; end the backend's jobs and other Blenders, and try again"
                )
            self._make_environment(uv, pythons, log)
            version = self._python_version(wanted, log)
        # A package that was interrupted half-way looks installed: all are installed again, from the cache.
        again = begun and (order.mode == "repair" or there.step == "packages")
        wanted = environments.write(replace(wanted, tool=tool, python=version))
        self._step("Install the packages", 0.12)
        (self._sync_with_uv if uv else self._install_with_pip)(uv, wanted, again, log)
        wanted = environments.write(replace(wanted, step="check"))
        self._step("Try it", 0.92, "the first start compiles some parts")
        self._check(wanted, log)
        environments.write(replace(wanted, state="ready", step=""))

    def _find_tool(self) -> tuple[Path | None, dict[str, Path]]:
        """uv, or Pythons of this machine by version."""
        order = self.order
        self._step("Look for uv", 0.01)
        tools, variables = order.root / "tools", self._variables()
        uv = find_uv(tools, variables)
        if uv is not None:
            return uv, {}
        problem = ""
        try:
            self._step("Download uv", 0.02)
            uv = download_uv(order.release, tools, self._downloaded, self._cancelled.is_set)
            if find_uv(tools, variables) is not None:
                return uv, {}
            problem = "the downloaded uv does not start here"
        except InstallError as error:
            problem = str(error)
        self._step("Look for Python", 0.05)
        found = find_pythons(variables, order.blender)
        usable = {version: path for version, path in found.items() if version in order.versions}
        if usable:
            return None, usable
        raise InstallError(f"there is no Python {' or '.join(order.versions)} here: install one; or: {problem}")

    def _downloaded(self, have: int, total: int) -> None:
        share = have / total if total else 0.5
        self._step("Download uv", 0.02 + 0.03 * share, f"{have / 1e6:.0f} of {total / 1e6:.0f} MB")

    def _make_environment(self, uv: Path | None, pythons: Mapping[str, Path], log: IO[bytes]) -> None:
        folder, outputs = str(self.order.folder), []
        for version in self.order.versions:
            if uv is not None:
                command = [str(uv), "venv", "--no-project", "--python", version, folder]
            elif version in pythons:
                command = [str(pythons[version]), "-I", "-m", "venv", folder]
            else:
                continue
            code, output = self._call(command, log, lambda line: self._step("Make the environment", 0.08, line.strip()))
            if code == 0:
                return
            environments.remove(self.order.folder)
            outputs.append(output)
        tool = "uv" if uv else "venv"
        raise InstallError(f"no Python {' or '.join(self.order.versions)} can be used: {explain(tool, outputs[0])}")

    def _sync_with_uv(self, uv: Path | None, wanted: Environment, again: bool, log: IO[bytes]) -> None:
        command = [str(uv), "pip", "sync", "--require-hashes", "--only-binary", ":all:"]
        command += ["--python", str(wanted.interpreter), *(["--reinstall"] if again else [])]
        command += [*uv_arguments(self.order.caller), str(self.order.file)]
        code, output = self._packages(command, UvMeter(self._count()), log)
        if code and lacks_torch(output):
            # PyTorch has builds that the general index lacks; uv knows PyTorch's own index.
            build = "cu130" if self.order.accelerator == "cuda" else "cpu"
            code, output = self._packages([*command, "--torch-backend", build], UvMeter(self._count()), log)
        self._raise_for("uv", code, output)

    def _install_with_pip(self, uv: Path | None, wanted: Environment, again: bool, log: IO[bytes]) -> None:
        command = [str(wanted.interpreter), "-I", "-X", "utf8", "-m", "pip", "install", "--require-hashes", "--no-deps"]
        command += ["--only-binary", ":all:", "--progress-bar", "off", "--no-warn-script-location"]
        command += [*(["--force-reinstall"] if again else []), "-r", str(self.order.file)]
        code, output = self._packages(command, PipMeter(self._count(), wanted.folder), log)
        self._raise_for("pip", code, output)

    def _packages(self, command: Sequence[str], meter: UvMeter | PipMeter, log: IO[bytes]) -> tuple[int, str]:
        def look(line: str) -> None:
            meter.take(line)
            self._step("Install the packages", 0.12 + 0.78 * meter.fraction, meter.text)

        return self._call(command, log, look)

    def _raise_for(self, tool: str, code: int, output: str) -> None:
        if code and lacks_torch(output):
            other = "choose another accelerator" if self.order.accelerator == "cuda" else "choose the accelerator CUDA"
            raise InstallError(
                f"the package index lacks this build of torch, and PyTorch's own cannot be reached; {other}, "
                "or let your mirror carry it"
            )
        if code:
            raise InstallError(explain(tool, output))

    def _count(self) -> int:
        return sum(1 for line in self.order.file.read_text("utf-8").splitlines() if "==" in line and line[0].isalnum())

    def _python_version(self, environment: Environment, log: IO[bytes]) -> str:
        """Version of the environment's Python; empty if it does not start."""
        if not environment.interpreter.exists():
            return ""
        code = "import platform; print(platform.python_version())"
        lines: list[str] = []
        result, _ = self._call([str(environment.interpreter), "-I", "-c", code], log, lines.append, patience_s=60)
        version = lines[-1].strip() if lines and result == 0 else ""
        return version if version.startswith(tuple(f"{short}." for short in self.order.versions)) else ""

    def _check(self, wanted: Environment, log: IO[bytes]) -> None:
        """Let doctor look at it.

        Raises:
            InstallError: With the first thing that is missing.
        """
        lines: list[str] = []
        command, own = self.order.check(wanted.interpreter), backend_environment(self.order.root.parent / "cache")
        code, output = self._call(command, log, lines.append, patience_s=600, variables=own)
        if code == 0:
            return
        with contextlib.suppress(ValueError, KeyError, TypeError):
            for finding in json.loads("".join(lines))["findings"]:
                if finding["state"] == "missing":
                    raise InstallError(f"{finding['name']}: {finding['value']}; press Repair; log: {self.log}")
        last = (output.strip().splitlines() or [f"code {code}"])[-1]
        raise InstallError(f"the installed backend does not work ({last[:160]}); press Repair; log: {self.log}")

    def _call(
        self,
        command: Sequence[str],
        log: IO[bytes],
        on_line: Callable[[str], None],
        patience_s: float = 7200.0,
        variables: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:
        """Run one tool to its end.

        Args:
            command: Program and arguments.
            log: Gets everything that it prints.
            on_line: Told every line; may raise.
            patience_s: It is ended after this time.
            variables: Of a process of the backend, whose errors go to the log only; None: those of the tools.

        Returns:
            Exit code and the last lines that it printed.

        Raises:
            InstallCancelled: If it was cancelled.
            InstallError: If it cannot be started.
        """
        tail: deque[str] = deque(maxlen=200)
        log.write(("\n$ " + " ".join(command) + "\n").encode("utf-8", errors="replace"))
        log.flush()
        with self._guard:
            if self._cancelled.is_set():
                raise InstallCancelled
            try:
                errors = None if variables is None else log
                chosen = self._variables() if variables is None else variables
                group = ProcessGroup(command, chosen, self.order.root, errors, self._inherited)
            except OSError as error:
                raise InstallError(f"{command[0]} cannot be started ({error.strerror or error})") from error
            self._group = group
        late = threading.Timer(patience_s, group.kill)
        late.daemon = True
        late.start()
        try:
            group.stdin.close()
            for raw in io.BufferedReader(group.stdout):  # pyright: ignore[reportArgumentType]  a raw file
                log.write(raw)
                log.flush()
                line = raw.decode("utf-8", errors="replace")
                tail.append(line)
                on_line(line)
        finally:
            late.cancel()
            with self._guard:
                self._group = None
            code = _end(group)
        if self._cancelled.is_set():
            raise InstallCancelled
        return code, "".join(tail)

    def _variables(self) -> dict[str, str]:
        """Variables of the child processes: the user's own, less what would leak in, and where things are kept."""
        order = self.order
        kept = clean_environment(order.caller)
        kept |= {"UV_PYTHON_INSTALL_DIR": str(order.root / "python"), "UV_NO_PROGRESS": "1"}
        kept.setdefault("UV_CACHE_DIR", str(order.root / "cache"))  # beside the environment: its files are linked
        return kept | uv_settings(order.caller)

    def _remove(self) -> None:
        root = self.order.root
        if not root.is_dir():
            return
        self._step("Remove", 0.1)
        with held(root / "install.lock", self._wait_for):
            used = environments.sweep(root, root)
            if used:
                raise InstallError(
                    f"{used[0].name} is in use; end the backend's jobs and other Blenders, and try again"
                )
            for index, name in enumerate(("tools", "python", "cache", "install.log")):
                self._step("Remove", 0.4 + 0.15 * index, name)
                environments.remove(root / name)


def pythons_for(accelerator: str, system: str = sys.platform) -> tuple[str, ...]:
    """Versions of Python that an accelerator's requirements have wheels for, the best tested first.

    The digest of torch's wheel with CUDA for Windows is known for Python 3.12 only (scripts/make_requirements.py).
    """
    return ("3.12",) if accelerator == "cuda" and system == "win32" else PYTHONS


def tidy(root: Path, keep: Path) -> None:
    """Remove older environments that nobody uses any more; nothing where somebody installs at this moment."""

    def give_up(pid: int) -> None:
        raise InstallCancelled

    with contextlib.suppress(InstallCancelled, OSError):
        with held(root / "install.lock", give_up):
            environments.sweep(root, keep)


def _end(group: ProcessGroup) -> int:
    """Exit code of a child whose output has ended; one that goes on all the same is ended."""
    deadline = time.monotonic() + 10
    while (code := group.wait(0.5)) is None:
        if time.monotonic() > deadline:
            group.kill()
    group.stdout.close()
    return code


def _long_paths() -> bool:
    """Whether Windows allows paths of more than 259 characters."""
    with contextlib.suppress(ImportError, OSError):
        import winreg

        key = r"SYSTEM\CurrentControlSet\Control\FileSystem"
        with getattr(winreg, "OpenKey")(getattr(winreg, "HKEY_LOCAL_MACHINE"), key) as opened:  # noqa: B009
            return bool(getattr(winreg, "QueryValueEx")(opened, "LongPathsEnabled")[0])  # noqa: B009
    return False
