"""Perception on a real photograph: what must hold whatever the networks' noise."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from backend.context import Context
from backend.errors import UserError
from backend.perception.labels import Label
from backend.perception.people import Person, find_person

PORTRAIT = Path(__file__).parents[2] / "scripts" / "data" / "collins.png"


def read_portrait() -> np.ndarray:
    return np.ascontiguousarray(cv2.imread(str(PORTRAIT))[..., ::-1])


@pytest.fixture(scope="module")
def person() -> Person:
    return find_person(read_portrait(), 0, Context.quiet())


def label_at(person: Person, x: float, y: float) -> Label:
    return Label(person.labels[int(y), int(x)])


def test_the_mask_holds_the_face_and_leaves_out_the_background(person: Person) -> None:
    x, y = person.face_px[:468, 0].astype(int), person.face_px[:468, 1].astype(int)
    assert (person.mask[y, x] > 0.9).mean() > 0.98  # a landmark of the jaw may lie on the soft edge
    assert person.mask[:140, :100].max() < 0.05  # the flag and the wall
    assert person.mask[:150, 330:].max() < 0.05  # the model of the shuttle
    assert person.mask[430:, :15].mean() < 0.2  # the flag's red stripes beside the red suit
    assert 0.4 < (person.mask > 0.5).mean() < 0.6


def test_labels_follow_what_is_there(person: Person) -> None:
    for landmark in (50, 280, 205, 425):
        assert label_at(person, *person.face_px[landmark, :2]) is Label.SKIN
    assert label_at(person, 225, 35) is Label.HAIR
    assert label_at(person, 110, 300) is Label.UPPER
    assert (person.labels[person.mask < 0.5] == Label.NONE).all()
    assert (person.labels[person.mask > 0.5] != Label.NONE).all()


def test_a_mirrored_photo_gives_the_mirrored_person(person: Person) -> None:
    image = read_portrait()
    mirrored = find_person(np.ascontiguousarray(image[:, ::-1]), 0, Context.quiet())
    a, b = person.mask > 0.5, mirrored.mask[:, ::-1] > 0.5
    assert (a & b).sum() / (a | b).sum() > 0.97
    shoulders = person.keypoints_px[[11, 12]]
    back = mirrored.keypoints_px[[12, 11]] * [-1, 1] + [image.shape[1], 0]
    assert np.abs(shoulders - back).max() < 20
    nose = person.face_px[4, :2]
    assert np.linalg.norm(nose - (mirrored.face_px[4, :2] * [-1, 1] + [image.shape[1], 0])) < 2


def test_a_larger_picture_gives_the_same_landmarks(person: Person) -> None:
    image = cv2.resize(read_portrait(), None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)
    larger = find_person(image, 0, Context.quiet())
    assert np.abs(larger.face_px[:468, :2] / 1.5 - person.face_px[:468, :2]).mean() < 1.0


def two_people() -> np.ndarray:
    """The portrait, and a smaller copy of its person beside it."""
    image = read_portrait()
    small = cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    canvas = np.full((512, 512 + small.shape[1] + 20, 3), 190, np.uint8)
    canvas[:, :512] = image
    canvas[-small.shape[0] :, 532:] = small
    return canvas


def test_of_several_people_the_largest_is_taken_and_a_parameter_takes_another() -> None:
    image = two_people()
    largest = find_person(image, 0, Context.quiet())
    assert any("2 people" in line for line in largest.warnings)
    assert largest.face_px[:, 0].max() < 512
    assert largest.mask[:, 540:].max() < 0.5
    second = find_person(image, 1, Context.quiet())
    assert second.face_px[:, 0].min() > 512
    assert second.mask[:, :500].mean() < 0.02
    with pytest.raises(UserError, match="2 people"):
        find_person(image, 2, Context.quiet())


@pytest.mark.parametrize("picture", ["noise", "plain", "wall"])
def test_a_photo_without_a_person_is_refused(picture: str) -> None:
    rng = np.random.default_rng(0)
    images = {
        "noise": rng.integers(0, 255, (300, 400, 3), np.uint8),
        "plain": np.full((300, 400, 3), 128, np.uint8),
        "wall": read_portrait()[:140, 320:],
    }
    with pytest.raises(UserError, match="No person"):
        find_person(np.ascontiguousarray(images[picture]), 0, Context.quiet())
