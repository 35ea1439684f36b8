"""The messages between Blender and the backend: one JSON object per line over two pipes, the only definition of them.

Client to backend: Run, Cancel, Finish, Ping, Shutdown. Backend to client: the rest. Every job that is `Accepted` ends
in exactly one of `Result`, `Failed` and `Cancelled`. Unknown fields are ignored, so that a newer side may add some; an
unknown type raises `UnknownTypeError`. Arrays never travel here: they are files of the job's folder, named relative to
it. Standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, Literal, TypeAlias, cast, get_args, get_origin, get_type_hints

PROTOCOL = "1.1"
"""Major and minor: another major is refused at hello, another minor works. 1.1 brought Finish and Finishable."""

MAX_LINE_BYTES = 1024 * 1024
"""A longer line is answered with an error and skipped without being kept."""

MAX_JOB_ID = 64

FailureCode = Literal[
    "BAD_REQUEST",
    "BAD_IMAGE",
    "BAD_MODEL",
    "NO_MODEL",
    "OFFLINE",
    "NO_DEVICE",
    "OUT_OF_MEMORY",
    "DISK_FULL",
    "CANCELLED",
    "PROTOCOL",
    "INTERNAL",
]

_JOB_ID = re.compile(r"[a-z0-9][a-z0-9_-]*")
_DEVICE_NAMES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])")


class ProtocolError(ValueError):
    """A line that is no message; the text says why, in one line."""


class UnknownTypeError(ProtocolError):
    """A well-formed message of a type that this side does not know."""


@dataclass(frozen=True)
class Run:
    """Make an avatar. The photo lies in the job's folder already.

    Attributes:
        job_id: Name of the job's folder below the folder of jobs; see `check_job_id`.
        method: Method id.
        request: The method's parameters; missing ones have their defaults.
        image: Name of the photo, relative to the job's folder.
        resume: Take over what an interrupted run of the same job left.
    """

    job_id: str
    method: str
    request: Mapping[str, Any]
    image: str
    resume: bool = False


@dataclass(frozen=True)
class Cancel:
    """Stop a job, whether it waits or runs."""

    job_id: str


@dataclass(frozen=True)
class Finish:
    """End what a job is improving, and go on with what there is; it still ends in `Result`.

    Meant for a job that is `Finishable`. One that is not yet takes the wish to its loop; one without a loop ignores it.
    """

    job_id: str


@dataclass(frozen=True)
class Ping:
    """Are you there?"""


@dataclass(frozen=True)
class Shutdown:
    """Cancel everything and end."""


@dataclass(frozen=True)
class Device:
    """What the driver says about the machine, without any library of the backend being loaded.

    Attributes:
        kind: "cuda" or "cpu".
        name: For people.
        memory_bytes: Of the device; 0 where unknown.
        free_bytes: Of the device at that moment; 0 where unknown.
        driver: Version of the driver; empty on a CPU.
        count: How many such devices.
    """

    kind: str = "cpu"
    name: str = ""
    memory_bytes: int = 0
    free_bytes: int = 0
    driver: str = ""
    count: int = 1


@dataclass(frozen=True)
class Hello:
    """First message of the backend."""

    protocol: str
    backend_version: str
    pid: int
    device: Device


@dataclass(frozen=True)
class Capabilities:
    """Follows when the libraries are loaded.

    Attributes:
        methods: Method ids that can run.
        device: Where the work will run, "cpu" or "cuda".
        packages: Version by name of the libraries that matter.
        problem: One line if something needed is missing; empty otherwise.
    """

    methods: tuple[str, ...]
    device: str = "cpu"
    packages: Mapping[str, Any] | None = None
    problem: str = ""


@dataclass(frozen=True)
class Accepted:
    """The job is in the backend's queue."""

    job_id: str


@dataclass(frozen=True)
class Progress:
    """How far a job is; a newer one replaces an older one that was not sent yet.

    Attributes:
        job_id: The job.
        stage: Name of the stage, for people.
        done: Finished units of the stage, 0..total.
        total: All units of the stage, > 0.
        note: A few words.
        index: Number of the stage, from 1; 0 where unknown.
        count: How many stages; 0 where unknown.
    """

    job_id: str
    stage: str
    done: float
    total: float
    note: str = ""
    index: int = 0
    count: int = 0


@dataclass(frozen=True)
class Preview:
    """A picture of the work so far, a file of the job's folder."""

    job_id: str
    file: str


@dataclass(frozen=True)
class Warning:
    """Something that people should know about a job that goes on."""

    job_id: str
    code: str
    text: str


@dataclass(frozen=True)
class Finishable:
    """Whether a job could end early with what it has, from now on.

    Attributes:
        job_id: The job.
        possible: It is in a loop that makes its result better; False when the loop has ended.
    """

    job_id: str
    possible: bool


@dataclass(frozen=True)
class Cancelling:
    """The wish to cancel has arrived; `Cancelled` follows when the work has stopped."""

    job_id: str


@dataclass(frozen=True)
class File:
    """One file of a result: its path is relative to the job's folder, with forward slashes."""

    role: str
    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Result:
    """The job is done."""

    job_id: str
    files: tuple[File, ...]


@dataclass(frozen=True)
class Failed:
    """The job could not be done.

    Attributes:
        job_id: The job.
        code: What kind of failure, for programs.
        text: What is wrong, one line for people.
        hint: What to do next, one line; may be empty.
        retryable: The same job may succeed when it is started again (in a fresh process).
        log: File of the job's folder that has the rest; empty if there is none.
    """

    job_id: str
    code: FailureCode
    text: str
    hint: str = ""
    retryable: bool = False
    log: str = ""


@dataclass(frozen=True)
class Cancelled:
    """The job has stopped because the user asked for it."""

    job_id: str


@dataclass(frozen=True)
class Pong:
    """Answer to a ping."""


@dataclass(frozen=True)
class Error:
    """Answer to a line that is no message, or to a request about a job that is not there; ends no job."""

    code: FailureCode
    text: str
    job_id: str = ""


@dataclass(frozen=True)
class Retiring:
    """The backend ends after this; the next job needs a fresh process. The last message."""

    reason: str


ClientMessage: TypeAlias = Run | Cancel | Finish | Ping | Shutdown
BackendMessage: TypeAlias = (
    Hello
    | Capabilities
    | Accepted
    | Progress
    | Preview
    | Warning
    | Finishable
    | Cancelling
    | Result
    | Failed
    | Cancelled
    | Pong
    | Error
    | Retiring
)
Message: TypeAlias = ClientMessage | BackendMessage

TERMINAL = (Result, Failed, Cancelled)
"""Exactly one of these ends every accepted job."""

_CLIENT: Mapping[str, type[Any]] = {cls.__name__.lower(): cls for cls in get_args(ClientMessage)}
_BACKEND: Mapping[str, type[Any]] = {cls.__name__.lower(): cls for cls in get_args(BackendMessage)}


def encode(message: Message) -> bytes:
    """A message as its line, with the newline.

    Raises:
        ProtocolError: If it does not fit into a line, or holds what JSON cannot say.
    """
    content = {"type": type(message).__name__.lower(), **_plain(message)}
    try:
        line = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise ProtocolError(f"a {content['type']} message cannot be written: {error}") from error
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"a {content['type']} message has {len(line)} bytes, {MAX_LINE_BYTES} are allowed")
    return line


def decode_client(line: bytes) -> ClientMessage:
    """A line from Blender, as the backend reads it.

    Raises:
        ProtocolError: If it is no message; `UnknownTypeError` if it is one of an unknown type.
    """
    return _decode(line, _CLIENT)


def decode_backend(line: bytes) -> BackendMessage:
    """A line from the backend, as Blender reads it.

    Raises:
        ProtocolError: If it is no message; `UnknownTypeError` if it is one of an unknown type.
    """
    return _decode(line, _BACKEND)


def version_problem(theirs: str) -> str:
    """One line if a backend of this protocol cannot be used; empty if it can."""
    try:
        major = int(theirs.split(".")[0])
    except ValueError:
        return f"the backend speaks an unknown protocol ({theirs[:20]!r}); set it up again"
    ours = int(PROTOCOL.split(".")[0])
    if major == ours:
        return ""
    older = "the backend" if major < ours else "the add-on"
    return f"the backend speaks protocol {theirs[:20]}, the add-on {PROTOCOL}; update {older}"


def check_job_id(job_id: str) -> str:
    """Why this text cannot name a job and its folder on every system; empty if it can."""
    if len(job_id) > MAX_JOB_ID or not _JOB_ID.fullmatch(job_id):
        return f"a job's name has 1 to {MAX_JOB_ID} of the characters a-z 0-9 _ -, and begins with a letter or digit"
    return "this name belongs to a device on Windows" if _DEVICE_NAMES.fullmatch(job_id) else ""


def check_relative(path: str) -> str:
    """Why this path may lead out of the job's folder, read on any system; empty if it cannot."""
    parts = path.split("/")
    if not path or "\\" in path or ":" in path or "\0" in path or len(path) > 500:
        return "a file is named relative to the job's folder, with forward slashes"
    return "a file's name cannot leave the job's folder" if any(part in ("", ".", "..") for part in parts) else ""


class LineSplitter:
    """Bytes in pieces of any size to whole lines; keeps at most one line of the largest size.

    A line that is too long comes once as a `ProtocolError`; its bytes are dropped up to the next newline.
    """

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        """Allow lines of `limit` bytes, newline included."""
        self._limit = limit
        self._pieces: list[bytes] = []
        self._length = 0
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | ProtocolError]:
        """The lines that end in `data`, without their newline; empty lines are left out."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            line = self._keep(data[start : end + 1])
            start = end + 1
            if line is not None:
                yield line
            whole, skipped = b"".join(self._pieces), self._skipping
            self._pieces, self._length, self._skipping = [], 0, False
            if not skipped and whole.strip():
                yield whole.rstrip(b"\r\n")
        line = self._keep(data[start:])
        if line is not None:
            yield line

    def _keep(self, piece: bytes) -> ProtocolError | None:
        if self._skipping or not piece:
            return None
        if self._length + len(piece) > self._limit:
            self._pieces, self._length, self._skipping = [], 0, True
            return ProtocolError(f"a line has more than {self._limit} bytes")
        self._pieces.append(piece)
        self._length += len(piece)
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in cast(list[Any], value)]
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    return dict(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else value


def _decode(line: bytes, types: Mapping[str, type[Any]]) -> Any:
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"a line has more than {MAX_LINE_BYTES} bytes")
    try:
        content: Any = json.loads(line.decode("utf-8"), parse_constant=_refuse)
        if b"\\u" in line:
            json.dumps(content, ensure_ascii=False).encode("utf-8")  # half a surrogate pair cannot be written again
    except RecursionError:
        raise ProtocolError("the line is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError and UnicodeError are
        raise ProtocolError(f"the line is no JSON in UTF-8 ({str(error)[:80]})") from None
    if not isinstance(content, dict) or not isinstance(name := cast(dict[str, Any], content).get("type"), str):
        raise ProtocolError("the line is no JSON object with a 'type'")
    if name not in types:
        raise UnknownTypeError(f"there is no message of type {name[:40]!r}")
    return _build(types[name], cast(dict[str, Any], content), name)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


@cache
def _layout(cls: type[Any]) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type and "must be there" of every field."""
    hints = get_type_hints(cls)
    return tuple((item.name, hints[item.name], item.default is MISSING) for item in fields(cls))


def _build(cls: type[Any], content: Mapping[str, Any], where: str) -> Any:
    values: dict[str, Any] = {}
    for name, hint, needed in _layout(cls):
        if name in content:
            values[name] = _check(content[name], hint, f"{where}.{name}")
        elif needed:
            raise ProtocolError(f"{where}.{name} is missing")
    return cls(**values)


def _check(value: Any, hint: Any, where: str) -> Any:
    """The value in the form of its type.

    Raises:
        ProtocolError: If it is something else.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in inner:
            return value
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_check(item, inner[0], f"{where}[{i}]") for i, item in enumerate(cast(list[Any], value)))
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            return float(value)
    elif hint in (str, int, bool):
        if type(value) is hint:
            return value
    elif isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        if isinstance(value, dict):
            return _build(hint, cast(dict[str, Any], value), where)
    elif isinstance(value, dict) or (value is None and type(None) in inner):
        return cast(Any, value)
    raise ProtocolError(f"{where} has the wrong type")
