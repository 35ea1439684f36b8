"""One request dataclass per method: everything that influences a result, with label, range, unit and default.

The panel, the command line and the job folder are all drawn from these fields, so a parameter exists in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

Preset = Literal["fast", "balanced", "best"]
Body = Literal["auto", "effigy", "smplx"]


def parameter(
    default: Any, label: str, help: str, *, unit: str = "", minimum: float | None = None, maximum: float | None = None
) -> Any:
    """A dataclass field with what an interface needs to show it.

    Args:
        default: Value when the user says nothing.
        label: Short name for the panel.
        help: Tooltip, one sentence.
        unit: Unit of a number, for example "m"; empty where there is none.
        minimum: Smallest value allowed.
        maximum: Largest value allowed.
    """
    return field(
        default=default, metadata={"label": label, "help": help, "unit": unit, "minimum": minimum, "maximum": maximum}
    )


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
    seed: int = parameter(0, "Seed", "The same seed gives the same avatar.", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        """Check every value against its type and range.

        Raises:
            ValueError: One line that names the parameter and what is allowed.
        """
        _check(self)


Request: TypeAlias = BodyRequest
"""Any method's request."""

REQUESTS: Mapping[str, type[Request]] = {"body": BodyRequest}
"""Method id to request dataclass."""


def request_from_settings(method: str, settings: Mapping[str, str]) -> BodyRequest:
    """Build a request from `name=value` texts.

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


def request_to_json(request: BodyRequest) -> dict[str, Any]:
    """All parameters by name, as JSON holds them."""
    return asdict(request)


def request_from_json(method: str, values: Mapping[str, Any]) -> BodyRequest:
    """The inverse of `request_to_json`.

    Raises:
        ValueError: As for `request_from_settings`.
    """
    if method not in REQUESTS:
        raise ValueError(f"there is no method {method!r}; choose one of: {', '.join(REQUESTS)}")
    unknown = sorted(set(values) - {f.name for f in fields(REQUESTS[method])})
    if unknown:
        raise ValueError(f"method {method} has no parameter {unknown[0]!r}")
    return REQUESTS[method](**values)


def _parse(name: str, hint: Any, text: str) -> Any:
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


def _check(request: BodyRequest) -> None:
    hints = get_type_hints(type(request))
    for item in fields(request):
        value = getattr(request, item.name)
        choices = get_args(hints[item.name])
        if choices and value not in choices:
            raise ValueError(f"{item.name} takes one of {', '.join(choices)}, not {value!r}")
        if hints[item.name] in (int, float):
            _check_number(item, value, hints[item.name])
        if hints[item.name] is bool and not isinstance(value, bool):
            raise ValueError(f"{item.name} takes true or false, not {value!r}")


def _check_number(item: Field[Any], value: Any, kind: type) -> None:
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{item.name} takes {'a whole number' if kind is int else 'a number'}, not {value!r}")
    low, high, unit = item.metadata["minimum"], item.metadata["maximum"], item.metadata["unit"]
    if not (low is None or value >= low) or not (high is None or value <= high):
        raise ValueError(f"{item.name} must lie between {low} and {high}{' ' + unit if unit else ''}, not {value}")


__all__ = [
    "REQUESTS",
    "BodyRequest",
    "Preset",
    "Request",
    "request_from_json",
    "request_from_settings",
    "request_to_json",
]
