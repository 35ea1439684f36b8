"""`models`: what is installed, fetch, verify, import, convert, remove, and the token for gated models.

With --json every line of the output is one JSON object with a "type": model, plan, progress, done, verified or failed;
the add-on draws them. Progress is in megabytes (1e6 bytes), sizes elsewhere in bytes.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from backend.context import Context, Sink, TerminalSink
from backend.diffusion import licences, registry
from backend.diffusion.hub import base_address
from backend.diffusion.lock import check, lock_path
from backend.diffusion.model_row import ModelRow
from backend.diffusion.tokens import forget_token, read_token, store_token
from backend.diffusion.transport import Transport, origin
from backend.diffusion.weights import STORAGES, Weights, default_folder, installed_models, missing
from backend.errors import BAD_REQUEST, DONE, FAILED, MODEL_MISSING, Cancelled, UserError
from backend.offline import forbid_connections
from backend.parent import watch_parent


def models_command(options: argparse.Namespace) -> int:
    """Run one action.

    Returns:
        The exit code.
    """
    if options.offline:
        forbid_connections()
    weights = Weights(options.models or default_folder())
    voice = _Voice(sys.stdout, options.json)
    actions = {
        "list": _list,
        "fetch": _fetch,
        "verify": _verify,
        "import": _import,
        "convert": _convert,
        "remove": _remove,
        "token": _token,
    }
    try:
        with _cancelling(voice, watch=options.json and options.action in ("fetch", "convert", "import")) as context:
            return actions[options.action](options, weights, voice, context)
    except Cancelled:
        voice.failed("CANCELLED", "cancelled; what came so far is kept")
        return FAILED
    except UserError as error:
        if not options.json:
            raise
        voice.failed(error.kind, error.message)
        return error.code


@dataclass(frozen=True)
class _Voice:
    """Lines for people, or JSON lines for programs."""

    stream: TextIO
    as_json: bool

    def say(self, kind: str, line: str = "", **facts: Any) -> None:
        """One line: `line` for people, or `kind` with `facts` for programs."""
        words = json.dumps({"type": kind, **facts}, ensure_ascii=False) if self.as_json else line
        print(words, file=self.stream, flush=True)

    def failed(self, code: str, text: str) -> None:
        """Why it went wrong; for people on the error stream."""
        if self.as_json:
            self.say("failed", code=code, text=text)
        else:
            print(f"error: {text}", file=sys.stderr)


class _JsonSink:
    """Progress as JSON lines, at most ten a second and the last."""

    def __init__(self, voice: _Voice) -> None:
        self._voice = voice
        self._shown = 0.0

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        """One line."""
        now = time.monotonic()
        if done >= total or now - self._shown >= 0.1:
            self._shown = now
            self._voice.say("progress", stage=stage, done=round(done, 3), total=round(total, 3), note=note)

    def preview(self, image: np.ndarray) -> None:
        """There are none."""

    def warning(self, code: str, text: str) -> None:
        """One line."""
        self._voice.say("warning", code=code, text=text)

    def finishable(self, possible: bool) -> None:
        """Nothing here can end early."""


@contextmanager
def _cancelling(voice: _Voice, watch: bool) -> Iterator[Context]:
    """A context that an interrupt cancels; a child of the add-on also ends with it."""
    sink: Sink = _JsonSink(voice) if voice.as_json else TerminalSink(sys.stderr)
    context = Context(Path(tempfile.gettempdir()) / "effigy-models", sink=sink)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: context.cancel_event.set())
    if watch:
        watch_parent(lambda: os._exit(FAILED))
    try:
        yield context
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if isinstance(sink, TerminalSink):
            sink.close()


def _list(options: argparse.Namespace, weights: Weights, voice: _Voice, context: Context) -> int:
    there = {(item.row.id, item.storage): item for item in installed_models(weights.root)}
    if not voice.as_json:
        print(f"models in {weights.root}")
    for row in registry.ROWS:
        storages = [storage for storage in STORAGES if (row.id, storage) in there]
        size = sum(there[row.id, storage].bytes for storage in storages)
        part = weights.partial_bytes(row.id)
        state = f"installed ({', '.join(storages)}, {size / 1e9:.2f} GB)" if storages else "-"
        state = f"begun ({part / 1e9:.2f} GB): fetch goes on" if part else state
        how = "gated" if row.gated else "fetch" if row.fetchable else "yours"
        use = "" if row.commercial else "NON-COMMERCIAL"
        line = f"{row.id:<22} {row.role:<17} {how:<6} {state:<34} {row.licence:<46} {use}".rstrip()
        state_of = {"installed": storages, "bytes": size, "partial_bytes": part}
        voice.say("model", line, **_facts(row), **state_of, accepted=_accepted(weights, row))
    return DONE


def _facts(row: ModelRow) -> dict[str, Any]:
    files = [asdict(file) for file in row.files]
    return {
        "id": row.id,
        "role": row.role,
        "title": row.title,
        "repository": row.repository,
        "revision": row.revision,
        "files": files,
        "licence": row.licence,
        "licence_url": row.licence_url,
        "commercial": row.commercial,
        "gated": row.gated,
        "fetchable": row.fetchable,
        "memory_gb": row.memory_gb,
        "note": row.note,
    }


def _accepted(weights: Weights, row: ModelRow) -> bool:
    return licences.accepted(weights.root, row)


def _fetch(options: argparse.Namespace, weights: Weights, voice: _Voice, context: Context) -> int:
    from backend.diffusion.download import fetch, plan

    rows = [registry.row(model_id) for model_id in options.ids]
    for row in rows:
        if not row.fetchable:
            raise UserError(missing(row, weights), MODEL_MISSING)
        if not options.plan and not _accepted(weights, row):
            _ask(options, weights, row)
    transport = _transport(options.mirror)
    for row in rows:
        listing = plan(row, weights, transport, options.update)
        voice.say(
            "plan",
            f"{row.id}: {len(listing.files)} files, {listing.total_bytes / 1e6:.1f} MB, commit {listing.commit[:12]}",
            model=row.id,
            commit=listing.commit,
            bytes=listing.total_bytes,
            files=[{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in listing.files],
        )
        if not options.plan:
            lock = fetch(row, weights, transport, context, update=options.update)
            folder = weights.place(row.id)
            voice.say("done", f"{row.id} is in {folder}", model=row.id, folder=str(folder), bytes=lock.total_bytes)
    return DONE


def _ask(options: argparse.Namespace, weights: Weights, row: ModelRow) -> None:
    """Accept a licence by option, or by hand at a terminal."""
    if row.licence in options.accept:
        licences.accept(weights.root, row, row.licence)
    elif not options.json and sys.stdin.isatty():
        print(licences.describe(row))
        if input("Accept this licence? [y/N] ").strip().lower() not in ("y", "yes"):
            raise UserError(f"the licence of {row.id} was not accepted; nothing was downloaded", BAD_REQUEST)
        licences.accept(weights.root, row, row.licence)
    else:
        licences.require(weights.root, row)


def _transport(mirror: str | None) -> Transport:
    return Transport(base_address(mirror), read_token)


def _verify(options: argparse.Namespace, weights: Weights, voice: _Voice, context: Context) -> int:
    wanted = set(options.ids or ())
    for model_id in wanted:
        if not weights.installed(model_id):
            raise UserError(missing(registry.row(model_id), weights), MODEL_MISSING)
    code = DONE
    for item in installed_models(weights.root):
        if wanted and item.row.id not in wanted:
            continue
        name = item.row.id if item.storage == "published" else f"{item.row.id}@{item.storage}"
        total, done = max(item.bytes, 1) / 1e6, 0.0

        def seen(count: int, name: str = name, total: float = total) -> None:
            nonlocal done
            done += count / 1e6
            context.progress(f"verify {name}", min(done, total), total)

        wrong = check(weights.place(item.row.id, item.storage), item.lock, thorough=True, seen=seen)
        text = f"{name}: " + ("; ".join(wrong) if wrong else f"all {len(item.lock.files)} files are right")
        voice.say("verified", text, model=item.row.id, storage=item.storage, wrong=wrong)
        code = FAILED if wrong else code
    if not voice.as_json and not installed_models(weights.root):
        print(f"no models in {weights.root}")
    return code


def _import(options: argparse.Namespace, weights: Weights, voice: _Voice, context: Context) -> int:
    from backend.diffusion.adopt import adopt

    row = registry.row(options.ids[0])
    if not voice.as_json:
        print(licences.describe(row))
    lock = adopt(row, weights, options.source, context, copy=options.copy)
    folder = weights.place(row.id)
    voice.say("done", f"{row.id} is in {folder}", model=row.id, folder=str(folder), bytes=lock.total_bytes)
    return DONE


def _convert(options: argparse.Namespace, weights: Weights, voice: _Voice, context: Context) -> int:
    from backend.diffusion.convert_weights import convert

    row = registry.row(options.ids[0])
    lock = convert(row, weights, options.to, context)
    folder = weights.place(row.id, options.to)
    text = f"{row.id} as {options.to} is in {folder}, {lock.total_bytes / 1e9:.2f} GB"
    voice.say("done", text, model=row.id, folder=str(folder), bytes=lock.total_bytes)
    return DONE


def _remove(options: argparse.Namespace, weights: Weights, voice: _Voice, context: Context) -> int:
    for row in [registry.row(model_id) for model_id in options.ids]:
        for storage in (options.storage,) if options.storage else STORAGES:
            folder = weights.place(row.id, storage)
            with weights.busy(row.id):
                there = folder.is_dir()
                lock_path(folder).unlink(missing_ok=True)  # first: what has no lock is not installed
                # A loader may keep the network in the library's layout beside the published one.
                for place in (folder, folder.with_name(f"{folder.name}-diffusers")):
                    if place.is_dir():
                        shutil.rmtree(place)
            if there:
                voice.say("done", f"{folder} is removed", model=row.id, folder=str(folder), bytes=0)
    return DONE


def _token(options: argparse.Namespace, weights: Weights, voice: _Voice, context: Context) -> int:
    host = origin(base_address(options.mirror)).host
    if options.forget:
        text = f"the token for {host} is removed" if forget_token(host) else f"there was no token for {host}"
    else:
        # Never an argument: other users of the machine see those. A program writes it to our standard input.
        ask = sys.stdin.isatty() and not options.json
        store_token(host, getpass.getpass(f"token for {host}: ") if ask else sys.stdin.readline())
        text = f"the token for {host} is in the system's keyring"
    voice.say("done", text, host=host)
    return DONE
