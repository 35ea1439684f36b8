"""The command line: `python -m backend generate|render|convert|models|bench|doctor`.

Exit codes: 0 done, 1 failed, 2 bad request, 3 a model or device is missing. On failure one line on stderr says what is
wrong and what to do next; the log has the rest.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from backend import __version__
from backend.errors import BAD_REQUEST, FAILED, INSTALL, MODEL_MISSING, UserError, missing_package
from backend.in_use import hold_environment
from blender_addon.shared.styles import style_settings

AXES = ("y_up", "y_down", "z_up")


class _Parser(argparse.ArgumentParser):
    """Answers a wrong command line with one line."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with code 2."""
        self.exit(BAD_REQUEST, f"error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = _Parser(prog="python -m backend", description="Effigy's backend: one photo to a rigged Gaussian avatar.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="make an avatar from a photo")
    generate.add_argument("method", metavar="METHOD", help="body or portrait")
    generate.add_argument("--image", type=Path, required=True, metavar="FILE", help="the photo")
    generate.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the result")
    generate.add_argument("--preset", metavar="P", help="fast, balanced or best")
    generate.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter; repeatable")
    more = "the same person from behind or from the side; repeatable"
    generate.add_argument("--photo", action="append", default=[], metavar="FILE", help=more)
    style = "of a portrait: a preset, your own words, or a picture whose colours it takes"
    generate.add_argument("--style", metavar="TEXT_OR_FILE", help=style)
    generate.add_argument("--smplx", type=Path, metavar="FILE", help="your own SMPL-X file, as the body")
    generate.add_argument("--resume", action="store_true", help="go on where an interrupted run of this job stopped")

    render = commands.add_parser("render", help="render an avatar or a splat file")
    source = "folder of an avatar, or any splat file; several are drawn with one camera"
    render.add_argument("sources", type=Path, nargs="+", metavar="BUNDLE_OR_FILE", help=source)
    render.add_argument("--out", type=Path, required=True, metavar="PNG", help="for several sources a folder")
    render.add_argument("--azimuth", type=float, default=0.0, metavar="DEG", help="0 front, 90 the subject's left")
    render.add_argument("--elevation", type=float, default=0.0, metavar="DEG", help="positive looks down")
    render.add_argument("--size", type=int, default=512, metavar="PX")
    render.add_argument("--turntable", type=int, default=1, metavar="N", help="N views around: NAME_000.png and so on")
    render.add_argument("--from-axes", choices=AXES, help="of a splat file, where they are not what its format says")
    render.add_argument("--pose", choices=("rest", "photo"), default="rest", help="of an avatar")
    render.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="CONTROL=VALUE",
        help="a facial action, 0..1, or a learned control",
    )

    bench = commands.add_parser("bench", help="measure how fast the parts are, against named alternatives")
    bench.add_argument("names", nargs="*", metavar="NAME", help="which; all if none is named")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    bench.add_argument("--repeats", type=int, metavar="N", help="timed runs of each side")

    convert = commands.add_parser("convert", help="turn a splat file into another format, and say what was lost")
    convert.add_argument("source", type=Path, metavar="IN", help="any splat file, or the folder of an avatar")
    convert.add_argument("target", type=Path, metavar="OUT", help=".ply, .compressed.ply, .spz, .splat or .glb")
    convert.add_argument("--degree", type=int, choices=range(5), help="spherical harmonics of OUT")
    convert.add_argument("--axes", choices=AXES, help="of OUT, where its format leaves them open (.ply, .splat)")
    convert.add_argument("--from-axes", choices=AXES, help="of IN, where they are not what its format says")
    convert.add_argument("--spz-version", type=int, choices=(3, 4), default=3, help="4 is smaller and newer")
    convert.add_argument("--drop-invalid", action="store_true", help="leave damaged Gaussians out")

    serve = commands.add_parser("serve", help="do jobs for Blender over standard input and output")
    serve.add_argument("--jobs", type=Path, required=True, metavar="DIR", help="folder of the job folders")
    serve.add_argument("--keep-days", type=float, metavar="N", help="remove finished jobs that are older")
    serve.add_argument("--keep-gb", type=float, default=20.0, metavar="N", help="and the oldest beyond this size")
    serve.add_argument("--memory-gb", type=float, default=0.0, metavar="N", help="a job plans with so much at most")
    serve.add_argument("--smplx", type=Path, metavar="FILE", help="the user's own SMPL-X file")
    serve.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where jobs work")
    serve.add_argument("--offline", action="store_true", help="refuse every connection")

    _add_models(commands)

    doctor = commands.add_parser("doctor", help="say what works on this machine")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.add_argument("--jobs", type=Path, metavar="DIR", help="folder of the jobs, which must be writable")
    doctor.add_argument("--models", type=Path, metavar="DIR", help="folder of models, else EFFIGY_MODELS")
    doctor.add_argument("--smplx", type=Path, metavar="FILE", help="your own SMPL-X file, to be checked")
    return parser


def _add_models(commands: Any) -> None:
    """The subcommand models, its actions and their options."""
    parser = commands.add_parser("models", help="the pretrained models: list, fetch, verify, import, convert, remove")
    parser.add_argument("--models", type=Path, metavar="DIR", help="folder of models, else EFFIGY_MODELS")
    parser.add_argument("--json", action="store_true", help="one JSON object per line, for programs")
    parser.add_argument("--offline", action="store_true", help="refuse every connection")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    actions.add_parser("list", help="all models: licence, size, whether it is installed")
    fetch = actions.add_parser("fetch", help="download, or go on where a download stopped")
    fetch.add_argument("ids", nargs="+", metavar="ID")
    fetch.add_argument("--accept", action="append", default=[], metavar="LICENCE", help="the licence, as list names it")
    fetch.add_argument("--mirror", metavar="URL", help="another hub, else EFFIGY_HUB or HF_ENDPOINT")
    fetch.add_argument("--update", action="store_true", help="the newest commit instead of the locked one")
    fetch.add_argument("--plan", action="store_true", help="only say what would be downloaded")
    verify = actions.add_parser("verify", help="read every file again and compare its hash; needs no network")
    verify.add_argument("ids", nargs="*", metavar="ID", help="else all that are installed")
    adopt = actions.add_parser("import", help="take a model that is already on this machine")
    adopt.add_argument("ids", nargs=1, metavar="ID")
    adopt.add_argument("source", type=Path, metavar="PATH", help="a Hugging Face cache, a folder or a file")
    adopt.add_argument("--copy", action="store_true", help="never link")
    convert = actions.add_parser("convert", help="once, to a smaller storage")
    convert.add_argument("ids", nargs=1, metavar="ID")
    convert.add_argument("--to", choices=("bf16", "int8"), default="bf16")
    remove = actions.add_parser("remove", help="delete from the disk")
    remove.add_argument("ids", nargs="+", metavar="ID")
    remove.add_argument("--storage", choices=("published", "bf16", "int8"), help="else all")
    token = actions.add_parser("token", help="keep a token for gated models in the system's keyring (asked for)")
    token.add_argument("--mirror", metavar="URL", help="the hub it is for")
    token.add_argument("--forget", action="store_true", help="remove it")


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code.
    """
    options = build_parser().parse_args(arguments)
    in_use = hold_environment()
    try:
        return _run(options)
    except UserError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.code
    except ModuleNotFoundError as error:
        package = missing_package(error)
        if not package:
            raise  # a part of ours is gone: a defect, and its traceback says where
        print(f"error: {package} is not installed; {INSTALL}", file=sys.stderr)
        return MODEL_MISSING
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return FAILED
    finally:
        if in_use is not None:
            in_use.close()


def _run(options: argparse.Namespace) -> int:
    # Each command loads only what it needs: doctor must work where torch does not.
    if options.command == "generate":
        from backend.generate import generate

        settings: dict[str, str | tuple[str, ...]] = dict(parse_settings(options.set))
        if options.preset is not None:
            settings["preset"] = options.preset
        if options.photo:
            if "photos" in settings:
                raise UserError("--photo and --set photos= both name further photos; use one of them")
            settings["photos"] = tuple(options.photo)
        if options.style is not None:
            settings.update(_style(options.style, settings))
        return generate(options.method, options.image, options.out, settings, options.resume, options.smplx)
    if options.command == "render":
        from backend.render import render_command

        return render_command(options, parse_settings(options.set))
    if options.command == "bench":
        from backend.bench import bench

        return bench(options.names, options.json, options.repeats)
    if options.command == "convert":
        from backend.convert import convert

        return convert(options)
    if options.command == "serve":
        from backend.serve import ServeOptions, serve

        keep, memory = int(options.keep_gb * 1e9), int(options.memory_gb * 1e9)
        own = {"own_body": options.smplx, "device": options.device}
        return serve(ServeOptions(options.jobs, options.keep_days, keep, options.offline, memory, **own))
    if options.command == "models":
        from backend.models import models_command

        return models_command(options)
    from backend.doctor import Subject, doctor

    places = [("jobs folder", options.jobs), ("models folder", options.models)]
    caches = [(name, os.environ.get(name)) for name in ("NUMBA_CACHE_DIR", "PYTHONPYCACHEPREFIX")]
    places += [("cache folder", Path(value)) for _, value in caches if value][:1]
    folders = tuple((name, path) for name, path in places if path is not None)
    return doctor(options.json, Subject(folders, options.models, options.smplx))


def _style(text: str, settings: Mapping[str, object]) -> dict[str, str]:
    """What --style stands for.

    Raises:
        UserError: If it names a picture that is not there, or --set gives a style too.
    """
    if {"style", "style_image"} & set(settings):
        raise UserError("--style and --set style= both name the style; use one of them")
    try:
        return style_settings(text)
    except ValueError as error:
        raise UserError(str(error)) from error


def parse_settings(texts: list[str]) -> dict[str, str]:
    """`name=value` texts as a dictionary.

    Raises:
        UserError: If a text has no "=", or a name comes twice.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise UserError(f"--set takes name=value, not '{text}'")
        if name in settings:
            raise UserError(f"--set gives {name} twice; give it once")
        settings[name] = value
    return settings


if __name__ == "__main__":
    sys.exit(main())
