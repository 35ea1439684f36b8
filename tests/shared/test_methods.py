"""Requests: parsing, ranges, round trip."""

from __future__ import annotations

from dataclasses import fields

import pytest

from blender_addon.shared.methods import (
    REQUESTS,
    BodyRequest,
    request_from_json,
    request_from_settings,
    request_to_json,
)


def test_settings_and_json_round_trip() -> None:
    request = request_from_settings("body", {"preset": "fast", "person": "1", "height_m": "1.7", "outline": "no"})
    assert request == BodyRequest(preset="fast", person=1, height_m=1.7, outline=False)
    assert request_from_json("body", request_to_json(request)) == request


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": "red"}, "no parameter 'colour'"),
        ({"person": "two"}, "whole number"),
        ({"person": "99"}, "between 0 and 15"),
        ({"height_m": "nan"}, "between"),
        ({"outline": "perhaps"}, "true or false"),
        ({"preset": "ultra"}, "one of fast, balanced, best"),
    ],
)
def test_bad_settings_say_what_is_allowed(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        request_from_settings("body", settings)
    assert "\n" not in str(error.value)


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="body"):
        request_from_settings("bodies", {})


def test_every_parameter_has_what_a_panel_needs() -> None:
    for cls in REQUESTS.values():
        for field in fields(cls):
            assert field.metadata["label"]
            assert field.metadata["help"].endswith(".")


def test_files_are_texts_with_commas_or_tuples_and_lists_in_json() -> None:
    assert request_from_settings("body", {"photos": "a.png, b c.jpg"}).photos == ("a.png", "b c.jpg")
    request = request_from_settings("body", {"photos": ("with, comma.png",)})
    assert request.photos == ("with, comma.png",)
    stored = request_to_json(request)
    assert stored["photos"] == ["with, comma.png"] and request_from_json("body", stored) == request
    del stored["photos"]
    assert request_from_json("body", stored) == BodyRequest(), "requests from before the parameter load"


@pytest.mark.parametrize("photos", ["a.png", ["a.png", 3], [""], [["a.png"]], None, ["a.png"] * 99])
def test_names_of_files_are_texts_and_not_too_many(photos: object) -> None:
    with pytest.raises(ValueError, match="photos takes"):
        request_from_json("body", {"photos": photos})
