"""A killed optimisation goes on at its iteration and ends at the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.context import Context
from backend.errors import Cancelled
from backend.step_checkpoints import StepCheckpoints
from tests.splats.test_optimise import ALL, Scene, equal


class Always(StepCheckpoints):
    """Saves after every step."""

    def due(self) -> bool:
        return True


class StopAt:
    """Cancels when so many steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seen: list[float] = []
        self.context = Context.quiet()

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        self.seen.append(done)
        if done == self.step:
            self.context.cancel_event.set()

    def preview(self, image: np.ndarray) -> None:
        pass

    def warning(self, code: str, text: str) -> None:
        pass


@pytest.mark.parametrize("step", [1, 4])
def test_an_optimisation_that_was_stopped_ends_at_the_same_bits(tmp_path: Path, step: int) -> None:
    scene = Scene()
    keeper = Always(tmp_path)
    sink = StopAt(step)
    sink.context = replace(Context.quiet(), sink=sink, checkpoint=keeper)
    with pytest.raises(Cancelled):
        scene.optimise(context=sink.context)
    again = StopAt(0)
    resumed = scene.optimise(context=replace(Context.quiet(), sink=again, checkpoint=keeper))
    assert again.seen == [float(n) for n in range(step + 2, 7)]  # it stopped after the next step
    assert equal(resumed, scene.optimise(), ALL)
    other = scene.optimise(context=replace(Context.quiet(seed=1), checkpoint=keeper))
    assert not equal(other, resumed, ("colours",))
