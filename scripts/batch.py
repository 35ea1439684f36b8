"""Photos to rigged avatars without a window, in Blender or with the bpy wheel.

    blender -b -P scripts/batch.py -- --method body --input FILE_OR_FOLDER --output FOLDER
                                      [--motion walk|FILE] [--render] [--set name=value ...] [--photo FILE ...]
                                      [--style TEXT_OR_FILE]
    python scripts/batch.py ...       the same with the bpy wheel

The backend makes the avatar in a process of its own; this one makes avatar.blend from it. Results of one file go to
FOLDER, those of a folder to FOLDER/<name of the photo>. What is finished is skipped. Exit codes: 0 done, 1 failed, 2
bad request, 3 a model or package is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import shutil
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = "summary.json"
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".avif")
DONE, FAILED, BAD_REQUEST, MISSING = 0, 1, 2, 3
WALK_VIEW = ("--azimuth", "25", "--elevation", "4", "--size", "512")


class BatchError(Exception):
    """One line for the user and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        """Keep the message on one line."""
        super().__init__(" ".join(message.split()))
        self.code = code


@dataclass
class Item:
    """One row of summary.json."""

    input: str
    output: str
    key: str
    state: str = "waiting"  # waiting, done, failed
    code: int = DONE
    message: str = ""
    seconds: float = 0.0
    files: list[dict[str, Any]] = field(default_factory=list)


class Parser(argparse.ArgumentParser):
    """Answers a wrong command line with one line and code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise BatchError(f"{message}; see --help", BAD_REQUEST)


def main() -> int:
    """Run the whole batch; whatever happens ends in an exit code, since Blender ignores exceptions of -P scripts."""
    try:
        return run(parse(own_arguments()))
    except BatchError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on", file=sys.stderr, flush=True)
        return FAILED
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else FAILED
    except BaseException as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}; please report this", file=sys.stderr, flush=True)
        return FAILED


def own_arguments() -> list[str]:
    """The arguments after `--`; all of them for plain Python without one."""
    if "--" in sys.argv:
        return sys.argv[sys.argv.index("--") + 1 :]
    return sys.argv[1:] if Path(sys.argv[0]).name == Path(__file__).name else []


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read and check the command line.

    Raises:
        BatchError: If it makes no sense.
    """
    parser = Parser(prog="batch.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", required=True, help="body or portrait")
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE_OR_FOLDER", help="a photo or a folder of photos"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--motion", default="", metavar="walk|FILE", help="what the saved file plays: the walk, or a .bvh or .npz file"
    )
    parser.add_argument(
        "--render", action="store_true", help="draw the motion file as motion/frame_001.png, else the walk as walk/"
    )
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="parameters")
    parser.add_argument(
        "--photo", nargs="+", action="extend", default=[], metavar="FILE", help="the same person, e.g. from behind"
    )
    parser.add_argument("--style", metavar="TEXT_OR_FILE", help="of portraits: a preset, own words, or a picture")
    parser.add_argument("--backend-python", metavar="FILE", help="Python that runs the backend")
    options = parser.parse_args(arguments)
    if options.motion not in ("", "walk") and not Path(options.motion).is_file():
        raise BatchError(f"--motion {options.motion} is not there; give walk, or a .bvh or .npz file", BAD_REQUEST)
    if not options.input.exists():
        raise BatchError(f"{options.input} is not there; give a photo or a folder of photos", BAD_REQUEST)
    if options.photo and options.input.is_dir():
        raise BatchError("--photo shows one person again; give that person's photo with --input", BAD_REQUEST)
    return options


def run(options: argparse.Namespace) -> int:
    """Work through the inputs one after the other.

    Returns:
        0 if all are done, the code of the failures if they agree, else 1.

    Raises:
        BatchError: If nothing can be started.
    """
    addon = find_addon()
    python = find_python(addon, options.backend_python)
    check_settings(addon, options)
    check_motion(addon, options.motion)
    items = plan(options)
    output = options.output.resolve()
    known = read_summary(output / SUMMARY)
    for number, item in enumerate(items, 1):
        before = known.get(item.input)
        same = before is not None and before.key == item.key
        if before is not None and same and is_finished(before, Path(item.output)):
            items[number - 1] = before
            print(f"[{number}/{len(items)}] {item.input}: finished before, skipped", flush=True)
            continue
        print(f"[{number}/{len(items)}] {item.input}", flush=True)
        work_on(item, options, addon, python, resume=same)
        write_summary(output, items)
    write_summary(output, items)
    failures = {item.code for item in items if item.state != "done"}
    if len(items) > 1:
        print(f"{sum(item.state == 'done' for item in items)} of {len(items)} done", flush=True)
    return DONE if not failures else failures.pop() if len(failures) == 1 else FAILED


def find_addon() -> str:
    """Package of the add-on: the enabled extension's, else this checkout's; never both.

    Raises:
        BatchError: If this Python has no bpy.
    """
    try:
        import bpy
    except ImportError:
        hint = "run it with `blender -b -P` or with .venv/bin/python (made by `python3 scripts/demo.py`)"
        raise BatchError(f"this Python has no bpy; {hint}", MISSING) from None
    for name in bpy.context.preferences.addons.keys():
        if name.startswith("bl_ext.") and name.endswith(".effigy"):
            return f"{name}.blender_addon"
    sys.path.insert(0, str(ROOT))
    return "blender_addon"


def load(addon: str, module: str) -> ModuleType:
    """A module of the add-on."""
    return importlib.import_module(f"{addon}.{module}")


def find_python(addon: str, given: str | None) -> Path:
    """The backend's Python.

    Raises:
        BatchError: If there is none.
    """
    link = load(addon, "link.backend_python")
    root = None
    if addon.startswith("bl_ext."):
        import bpy

        root = load(addon, "backend_settings").environments_root(bpy.context)
    try:
        return link.find_backend_python(given, root)
    except link.NoBackendError as error:
        raise BatchError(str(error), MISSING) from error


def check_settings(addon: str, options: argparse.Namespace) -> None:
    """Check method, parameters and the files that they name before any work; note the files' hashes.

    Raises:
        BatchError: If they are wrong.
    """
    wrong = next((text for text in options.set if "=" not in text), None)
    if wrong is not None:
        raise BatchError(f"--set takes name=value, not '{wrong}'", BAD_REQUEST)
    settings: dict[str, str | tuple[str, ...]] = {
        name: value for name, _, value in (t.partition("=") for t in options.set)
    }
    if options.photo:
        if "photos" in settings:
            raise BatchError("--photo and --set photos= both name further photos; use one of them", BAD_REQUEST)
        settings["photos"] = tuple(options.photo)
    if options.style is not None and {"style", "style_image"} & set(settings):
        raise BatchError("--style and --set style= both name the style; use one of them", BAD_REQUEST)
    try:
        if options.style is not None:
            settings.update(load(addon, "shared.styles").style_settings(options.style))
        request = load(addon, "shared.methods").request_from_settings(options.method, settings)
        _, files = load(addon, "shared.request_files").for_job(request)
    except ValueError as error:
        raise BatchError(str(error), BAD_REQUEST) from error
    options.files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()]


def check_motion(addon: str, motion: str) -> None:
    """Read the motion file before any work.

    Raises:
        BatchError: If it cannot be played.
    """
    if motion in ("", "walk"):
        return
    files = load(addon, "motion.files")
    try:
        files.load_motion(Path(motion))
    except (files.MotionError, OSError) as error:
        raise BatchError(f"--motion: {error}", BAD_REQUEST) from error


def plan(options: argparse.Namespace) -> list[Item]:
    """The inputs and where their results go.

    Raises:
        BatchError: If a folder has no pictures, or the output folder cannot be written.
    """
    source, output = options.input.resolve(), options.output.resolve()
    check_writable(output)
    if source.is_file():
        return [Item(str(source), str(output), key_of(source, options))]
    pictures = sorted(p for p in source.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))
    if not pictures:
        raise BatchError(f"{source} has no pictures; give a folder with {', '.join(PICTURES[:4])} files", BAD_REQUEST)
    stems = [p.stem for p in pictures]
    names = [p.stem if stems.count(p.stem) == 1 else p.name.replace(".", "_") for p in pictures]
    return [Item(str(p), str(output / name), key_of(p, options)) for p, name in zip(pictures, names, strict=True)]


def check_writable(output: Path) -> None:
    """Raise unless files can be made in `output`, or in the nearest folder above it that exists.

    Raises:
        BatchError: With code 2.
    """
    nearest = output
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise BatchError(f"{nearest} is a file; give a folder with --output", BAD_REQUEST)
    probe = nearest / f".effigy-{os.getpid()}.probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BatchError(
            f"{output} cannot be written ({error.strerror}); give another --output", BAD_REQUEST
        ) from error


def key_of(picture: Path, options: argparse.Namespace) -> str:
    """Hash of everything that decides an item's files."""
    digest = hashlib.sha256(picture.read_bytes())
    digest.update(
        json.dumps([options.method, sorted(options.set), options.style, options.motion, options.render]).encode()
    )
    digest.update("".join(options.files).encode())
    if options.motion not in ("", "walk"):
        digest.update(Path(options.motion).read_bytes())
    return digest.hexdigest()


def is_finished(item: Item, output: Path) -> bool:
    """Whether all files of a done item are there with their sizes."""
    try:
        whole = all((output / f["path"]).stat().st_size == f["bytes"] for f in item.files)
    except OSError:
        return False
    return item.state == "done" and bool(item.files) and whole


def work_on(item: Item, options: argparse.Namespace, addon: str, python: Path, resume: bool) -> None:
    """Make one avatar and fill in its row; a failure of one input does not stop the others."""
    began = time.monotonic()
    output = Path(item.output)
    try:
        arguments = ["generate", options.method, "--image", item.input, "--out", item.output]
        for text in options.set:
            arguments += ["--set", text]
        for photo in options.photo:
            arguments += ["--photo", photo]
        if options.style is not None:
            arguments += ["--style", options.style]
        run_backend(addon, python, [*arguments, *(["--resume"] if resume else [])])
        build(addon, python, output, options)
        item.state, item.code = "done", DONE
        item.files = list_files(output)
    except BatchError as error:
        item.state, item.code, item.message = "failed", error.code, str(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
    except Exception as error:
        # The next input may well work; the traceback is for the report.
        traceback.print_exc()
        item.state, item.code, item.message = "failed", FAILED, f"{type(error).__name__}: {error}"
        print(f"error: {item.input}: {item.message}; please report this", file=sys.stderr, flush=True)
    item.seconds = round(time.monotonic() - began, 2)
    if item.state == "done":
        print(f"{output / 'avatar.blend'}: done in {item.seconds:.1f} s", flush=True)


def run_backend(addon: str, python: Path, arguments: list[str]) -> None:
    """Run a backend command; its progress goes to the terminal as it comes.

    Raises:
        BatchError: With the backend's own line and code if it fails.
    """
    process = load(addon, "link.backend_python").start_backend(python, arguments)
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        for line in process.stdout or ():
            print(line, end="", flush=True)
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    reader.join()
    if code:
        lines = [line.strip() for line in errors if line.strip()]
        own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        said = own[-1] if own else (lines[-1] if lines else f"the backend ended with code {code}")
        raise BatchError(said, code if code in (FAILED, BAD_REQUEST, MISSING) else FAILED)


def build(addon: str, python: Path, output: Path, options: argparse.Namespace) -> None:
    """From the bundle in `output` to avatar.blend, and the frames of the walk if asked for."""
    began = time.monotonic()
    blend = load(addon, "operators.build_blend")
    scratch = output / ".batch.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        objects = blend.build_scene(output, "WALK" if options.motion == "walk" else "PHOTO")
        if options.motion not in ("", "walk"):
            blend.play_file(objects, Path(options.motion))
        blend.save_blend(scratch / "avatar.blend")
        print(f"{'avatar.blend':<34} 1/1  {time.monotonic() - began:6.1f} s", flush=True)
        if options.render:
            draw_frames(addon, python, blend, objects, output, options.motion)
        (scratch / "avatar.blend").replace(output / "avatar.blend")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def draw_frames(addon: str, python: Path, blend: ModuleType, objects: object, output: Path, motion: str) -> None:
    """The frames of the motion file, or of the walk, as pictures in motion/ or walk/."""
    scratch = output / ".batch.partial"
    name = "walk" if motion in ("", "walk") else "motion"
    if name == "walk":
        blend.play_walk(objects)
    clouds = blend.write_clouds(objects, scratch / "clouds")
    print(f"{f'evaluated clouds of the {name}':<34} {len(clouds)}/{len(clouds)}", flush=True)
    frames = scratch / name
    run_backend(addon, python, ["render", *(str(c) for c in clouds), "--out", str(frames), *WALK_VIEW])
    shutil.rmtree(output / name, ignore_errors=True)
    frames.replace(output / name)


def list_files(output: Path) -> list[dict[str, Any]]:
    """Path relative to `output` and bytes of every result file."""
    paths = sorted(p for p in output.rglob("*") if p.is_file() and p.name != SUMMARY and not p.name.startswith("."))
    return [{"path": p.relative_to(output).as_posix(), "bytes": p.stat().st_size} for p in paths]


def read_summary(path: Path) -> dict[str, Item]:
    """Rows of an earlier run by input; none if there is no readable summary."""
    try:
        rows = json.loads(path.read_text("utf-8"))["items"]
        return {row["input"]: Item(**row) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_summary(output: Path, items: list[Item]) -> None:
    """Write summary.json atomically.

    Raises:
        BatchError: If the folder cannot be written.
    """
    part = output / f"{SUMMARY}.part"
    try:
        output.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"items": [asdict(item) for item in items]}, indent=2) + "\n", "utf-8")
        part.replace(output / SUMMARY)
    except OSError as error:
        raise BatchError(f"{output} cannot be written ({error.strerror}); give another --output", FAILED) from error


if __name__ == "__main__":
    sys.exit(main())
