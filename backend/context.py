"""The one object that is passed down: progress, preview, cancel, scratch folder, device and seed."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np

from backend.errors import Cancelled
from backend.step_checkpoints import Keeper, NoKeeper


class Sink(Protocol):
    """Where progress and previews go: a terminal, the protocol, a test's list."""

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        """`done` of `total` units of `stage` are finished."""
        ...

    def preview(self, image: np.ndarray) -> None:
        """Show a picture, uint8 [H, W, 3]."""
        ...

    def warning(self, code: str, text: str) -> None:
        """Say something that people should know while the job goes on."""
        ...

    def finishable(self, possible: bool) -> None:
        """Say whether the job could end early with what it has, from now on."""
        ...


class QuietSink:
    """Drops everything."""

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        """Ignore."""

    def preview(self, image: np.ndarray) -> None:
        """Ignore."""

    def warning(self, code: str, text: str) -> None:
        """Ignore."""

    def finishable(self, possible: bool) -> None:
        """Ignore."""


class TerminalSink:
    """One line per stage: name, done/total, elapsed seconds, note.

    On a terminal the line is rewritten in place. In a pipe or a log file a line is written when a stage begins and
    ends, and in between at most every `interval_s` seconds, so that a long stage is seen to live.
    """

    def __init__(self, stream: TextIO, interval_s: float = 5.0) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._live = stream.isatty()
        self._interval_s = 0.1 if self._live else interval_s
        self._stage = ""
        self._line = ""
        self._began = self._shown = 0.0

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        """Show the state of `stage`; a new name begins a new line."""
        now = time.monotonic()
        begins, ends = stage != self._stage, done >= total
        if begins:
            self.close()
            self._stage, self._began = stage, now
        self._line = f"{stage:<34} {_amount(done)}/{_amount(total)}  {now - self._began:6.1f} s  {note}".rstrip()
        if begins or ends or now - self._shown >= self._interval_s:
            self._shown = now
            self._stream.write(f"\r\x1b[K{self._line}" if self._live else f"{self._line}\n")
            self._stream.flush()

    def preview(self, image: np.ndarray) -> None:
        """A terminal shows no pictures."""

    def warning(self, code: str, text: str) -> None:
        """A terminal shows the warnings together, when the job is done."""

    def finishable(self, possible: bool) -> None:
        """A terminal has no button for it."""

    def close(self) -> None:
        """End the current line."""
        if self._live and self._stage:
            self._stream.write(f"\r\x1b[K{self._line}\n")
            self._stream.flush()
        self._stage = ""


def _amount(value: float) -> str:
    return f"{value:.0f}" if abs(value - round(value)) < 1e-9 else f"{value:.1f}"


@dataclass(frozen=True)
class Context:
    """What every stage may rely on. Passed down, never global.

    Attributes:
        scratch: A folder for temporary files of this job, removed with it.
        device: Torch device name, "cpu" or "cuda".
        seed: Seed of every random generator of the job.
        sink: Where progress and previews go.
        cancel_event: Set from another thread or a signal handler to stop the job.
        finish_event: Set from another thread when people like what they see: a loop that makes its result better step
            by step ends with what it has, and the job goes on from there.
        checkpoint: Where a long loop keeps its state; see `Keeper`.
        memory_bytes: What the job may plan with on the device, from what is free, the preset and the user's limit; 0
            where unknown. A stage that can work in pieces makes them fit.
        economy: How often memory ran out in this stage: 0 for full size; a stage that declares economies works on
            smaller pieces for every further one.
        share: (stage, first, last, total): when set, inner progress is shown as this part of that stage.
    """

    scratch: Path
    device: str = "cpu"
    seed: int = 0
    sink: Sink = field(default_factory=QuietSink)
    cancel_event: threading.Event = field(default_factory=threading.Event)
    finish_event: threading.Event = field(default_factory=threading.Event)
    checkpoint: Keeper = field(default_factory=NoKeeper)
    memory_bytes: int = 0
    economy: int = 0
    share: tuple[str, float, float, float] | None = None

    @classmethod
    def quiet(cls, seed: int = 0, device: str = "cpu") -> Context:
        """A silent context for tests and tools; scratch goes to the system's temporary folder."""
        return cls(scratch=Path(tempfile.gettempdir()) / "effigy-scratch", device=device, seed=seed)

    def progress(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Report progress, and stop here if the job was cancelled.

        Args:
            stage: Name of the work, shown to people.
            done: Finished units, 0..total.
            total: All units, > 0.
            note: A few words on the state, e.g. "loss 0.12".

        Raises:
            Cancelled: If the user cancelled the job.
        """
        self.raise_if_cancelled()
        if self.share is None:
            self.sink.progress(stage, done, total, note)
            return
        outer, first, last, outer_total = self.share
        fraction = min(max(done / total, 0.0), 1.0) if total > 0 else 1.0
        words = ("" if stage in outer else stage, note)
        self.sink.progress(outer, first + (last - first) * fraction, outer_total, ": ".join(filter(None, words)))

    def preview(self, image: np.ndarray) -> None:
        """Show an intermediate picture, uint8 [H, W, 3] RGB."""
        self.sink.preview(image)

    def warn(self, text: str, code: str = "NOTE") -> None:
        """Say something that people should know while the job goes on, in one line."""
        self.sink.warning(code, " ".join(text.split()))

    def raise_if_cancelled(self) -> None:
        """Stop the job if the user asked for it; call it in every long loop.

        Raises:
            Cancelled: If the user cancelled the job.
        """
        if self.cancel_event.is_set():
            raise Cancelled("cancelled")

    @property
    def finish_asked(self) -> bool:
        """Whether a loop should end early and keep what it has; it is asked where `raise_if_cancelled` is called."""
        return self.finish_event.is_set()

    @contextmanager
    def finishable(self) -> Iterator[None]:
        """Inside, a loop asks for `finish_asked`, and people are offered to finish."""
        self.sink.finishable(True)
        try:
            yield
        finally:
            self.sink.finishable(False)

    def part(self, stage: str, first: float, last: float, total: float) -> Context:
        """A context whose whole progress is the part from `first` to `last`, of `total`, of this context's `stage`.

        Parts nest: a part of a part covers the share of a share.
        """
        if self.share is None:
            return replace(self, share=(stage, first, last, total))
        outer, start, end, outer_total = self.share
        span = (end - start) / total
        return replace(self, share=(outer, start + span * first, start + span * last, outer_total))

    @contextmanager
    def scratch_folder(self, name: str) -> Iterator[Path]:
        """A folder inside the scratch folder that is removed again at the end."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=self.scratch) as path:
            yield Path(path)
