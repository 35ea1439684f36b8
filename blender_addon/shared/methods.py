"""One request dataclass per method: everything that influences a result, with label, range, unit and default.

The panel, the command line and the job folder are all drawn from these fields, so a parameter exists in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias, cast, get_args, get_origin, get_type_hints

from .styles import STYLES

Preset = Literal["fast", "balanced", "best"]
Body = Literal["auto", "effigy", "smplx"]
Frames = Literal["auto", "photo", "generated"]
Way = Literal["auto", "palette", "sas", "edit"]
Files = Literal["", "picture", "motion"]

SEVERAL = tuple[str, ...]
"""Type of a parameter that names several files."""


def parameter(
    default: Any,
    label: str,
    help: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    files: Files = "",
) -> Any:
    """A dataclass field with what an interface needs to show it.

    Args:
        default: Value when the user says nothing.
        label: Short name for the panel.
        help: Tooltip, one sentence.
        unit: Unit of a number, for example "m"; empty where there is none.
        minimum: Smallest value allowed.
        maximum: Largest value allowed; of a `tuple[str, ...]`, how many files.
        files: What kind of file the text names, see `request_files.KINDS`; empty where it names none. A `str` names
            one file or none, a `tuple[str, ...]` several.
    """
    limits = {"unit": unit, "minimum": minimum, "maximum": maximum}
    return field(default=default, metadata={"label": label, "help": help, "files": files, **limits})


@dataclass(frozen=True)
class BodyRequest:
    """A whole-body avatar from one photograph."""

    preset: Preset = parameter(
        "balanced", "Preset", "fast: fewer steps against the photo; best: more, for a sharper front."
    )
    person: int = parameter(
        0, "Person", "Which person of the photo: 0 is the largest, 1 the next, and so on.", minimum=0, maximum=15
    )
    height_m: float = parameter(
        0.0, "Height", "Body height; 0 keeps the height that the fit finds.", unit="m", minimum=0.0, maximum=2.5
    )
    body: Body = parameter(
        "auto",
        "Body",
        "effigy: the body that comes with Effigy; smplx: your own SMPL-X file; auto: your file where one is set up.",
    )
    outline: bool = parameter(True, "Outline layer", "Build volume for loose clothes and hair from the outline.")
    photos: tuple[str, ...] = parameter(
        (),
        "More photos",
        "The same person in the same clothes, from behind or from the side: they colour what the photo does not show.",
        maximum=8,
        files="picture",
    )
    lift: bool = parameter(
        True,
        "Lift back and hair",
        "Where TripoSplat or TRELLIS is installed, its Gaussians give what the photo does not show; else this is idle.",
    )
    frames: Frames = parameter(
        "auto",
        "Frames",
        "generated: a video model shows the person in motion, and folds that follow the pose are learned from it;"
        " photo: the photo alone; auto: generated where a video model is installed.",
    )
    motions: tuple[str, ...] = parameter(
        (),
        "More motions",
        "Motion files (AMASS or SMPL-X .npz, .bvh) that the video model shows the person in, besides our own two.",
        maximum=4,
        files="motion",
    )
    seed: int = parameter(0, "Seed", "The same seed gives the same avatar.", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        """Check every value against its type and range.

        Raises:
            ValueError: One line that names the parameter and what is allowed.
        """
        _check(self)


@dataclass(frozen=True)
class PortraitRequest:
    """A stylised bust that blinks, speaks and turns."""

    preset: Preset = parameter("balanced", "Preset", "fast: fewer steps; best: more, for a finer portrait.")
    style: str = parameter(
        "golden statue",
        "Style",
        f"One of {', '.join(STYLES)}; or your own words, where an image model is installed.",
    )
    style_image: str = parameter(
        "", "Style picture", "A picture whose colours the portrait takes instead.", files="picture"
    )
    strength: float = parameter(
        1.0, "Strength", "How far the style goes: 0 is the person as photographed.", minimum=0.0, maximum=1.0
    )
    negative: str = parameter(
        "", "Avoid", "What the image model shall avoid; empty takes the style's own words. Not used without a model."
    )
    way: Way = parameter(
        "auto",
        "Way",
        "palette: colours and material by rule, without a model; sas: Style Aligned Sampling; edit: the photo is"
        " restyled first; auto: sas where its models are installed, else palette.",
    )
    person: int = parameter(
        0, "Person", "Which person of the photo: 0 is the largest, 1 the next, and so on.", minimum=0, maximum=15
    )
    body: Body = parameter(
        "auto",
        "Body",
        "effigy: the body that comes with Effigy; smplx: your own SMPL-X file; auto: your file where one is set up.",
    )
    seed: int = parameter(0, "Seed", "The same seed gives the same portrait.", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        """Check every value against its type and range, and that there is a style.

        Raises:
            ValueError: One line that names the parameter and what is allowed.
        """
        _check(self)
        if not self.style.strip() and not self.style_image:
            raise ValueError(f"style is empty; name one of: {', '.join(STYLES)}; or give a style picture")


Request: TypeAlias = BodyRequest | PortraitRequest
"""Any method's request."""

REQUESTS: Mapping[str, type[Request]] = {"body": BodyRequest, "portrait": PortraitRequest}
"""Method id to request dataclass."""


def request_from_settings(method: str, settings: Mapping[str, str | tuple[str, ...]]) -> Request:
    """Build a request from `name=value` texts; several files are one text with commas, or a tuple.

    Raises:
        ValueError: One line: an unknown method or parameter, or a value out of range.
    """
    if method not in REQUESTS:
        raise ValueError(f"there is no method {method!r}; choose one of: {', '.join(REQUESTS)}")
    cls = REQUESTS[method]
    hints = get_type_hints(cls)
    unknown = sorted(set(settings) - set(hints))
    if unknown:
        raise ValueError(f"method {method} has no parameter {unknown[0]!r}; it has: {', '.join(hints)}")
    return cls(**{name: _parse(name, hints[name], text) for name, text in settings.items()})


def request_to_json(request: Request) -> dict[str, Any]:
    """All parameters by name, as JSON holds them: it knows lists and no tuples."""
    return {n: list(cast("tuple[Any, ...]", v)) if isinstance(v, tuple) else v for n, v in asdict(request).items()}


def request_from_json(method: str, values: Mapping[str, Any]) -> Request:
    """The inverse of `request_to_json`; what was stored before a parameter existed gets its default.

    Raises:
        ValueError: As for `request_from_settings`.
    """
    if method not in REQUESTS:
        raise ValueError(f"there is no method {method!r}; choose one of: {', '.join(REQUESTS)}")
    unknown = sorted(set(values) - {f.name for f in fields(REQUESTS[method])})
    if unknown:
        raise ValueError(f"method {method} has no parameter {unknown[0]!r}")
    content: dict[str, Any] = {
        name: tuple(cast("list[Any]", v)) if isinstance(v, list) else v for name, v in values.items()
    }
    return REQUESTS[method](**content)


def _parse(name: str, hint: Any, text: str | tuple[str, ...]) -> Any:
    if isinstance(text, tuple):
        if hint != SEVERAL:
            raise ValueError(f"{name} takes one value, not {len(text)}")
        return text
    if hint == SEVERAL:
        return tuple(piece.strip() for piece in text.split(",") if piece.strip())
    if hint is bool:
        words = {
            "true": True,
            "yes": True,
            "1": True,
            "on": True,
            "false": False,
            "no": False,
            "0": False,
            "off": False,
        }
        if text.lower() not in words:
            raise ValueError(f"{name} takes true or false, not {text!r}")
        return words[text.lower()]
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise ValueError(f"{name} takes {kind}, not {text!r}") from None
    return text


def _check(request: Request) -> None:
    hints = get_type_hints(type(request))
    for item in fields(request):
        value, hint = getattr(request, item.name), hints[item.name]
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{item.name} takes one of {', '.join(get_args(hint))}, not {value!r}")
        if hint in (int, float):
            _check_number(item, value, hint)
        if hint is bool and not isinstance(value, bool):
            raise ValueError(f"{item.name} takes true or false, not {value!r}")
        if hint is str and not isinstance(value, str):
            raise ValueError(f"{item.name} takes a text, not {value!r}")
        if hint == SEVERAL:
            _check_several(item, value)


def _check_several(item: Field[Any], value: Any) -> None:
    names = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (None,)
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{item.name} takes the names of files, not {value!r}")
    most = item.metadata["maximum"]
    if most is not None and len(names) > most:
        raise ValueError(f"{item.name} takes at most {most} files, not {len(names)}")


def _check_number(item: Field[Any], value: Any, kind: type) -> None:
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{item.name} takes {'a whole number' if kind is int else 'a number'}, not {value!r}")
    low, high, unit = item.metadata["minimum"], item.metadata["maximum"], item.metadata["unit"]
    if not (low is None or value >= low) or not (high is None or value <= high):
        raise ValueError(f"{item.name} must lie between {low} and {high}{' ' + unit if unit else ''}, not {value}")


__all__ = [
    "REQUESTS",
    "SEVERAL",
    "BodyRequest",
    "Files",
    "Preset",
    "Request",
    "parameter",
    "request_from_json",
    "request_from_settings",
    "request_to_json",
]
