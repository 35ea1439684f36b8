"""Runs a method: a short visible list of stages, checked before any heavy work, each one timed and checkpointed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backend import checkpoint
from backend.context import Context
from backend.memory import Shortage, peak_bytes, reset_peak, run_with_ladder
from backend.step_checkpoints import NoKeeper, StepCheckpoints

_TITLE = re.compile(r"\[(\d+)/(\d+)\] (.*)", re.DOTALL)


@dataclass(frozen=True)
class Stage:
    """One step of a method.

    Attributes:
        name: What people see.
        needs: Names of the values that it takes, in the order of `run`'s parameters.
        provides: Names of the values that it makes.
        run: Called with the needed values and, last, the `Context`. Returns the value if `provides` has one name, a
            tuple of values if it has several, None if it has none.
        keep: Store the values for a later resume. False for what is cheap to make again, or writes files.
        version: Counted up when the stage's result changes meaning, so that old checkpoints are not taken.
        economies: What the stage does with less memory: one line for people per step of `Context.economy`, e.g.
            "matched at 256 px". Tried in this order when memory runs out.
    """

    name: str
    needs: tuple[str, ...]
    provides: tuple[str, ...]
    run: Callable[..., Any]
    keep: bool = True
    version: int = 1
    economies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a method says about its result; the last stage may provide it under the name "outcome".

    Attributes:
        generators: What made the result: every model by name, revision and licence, or "photo only".
        warnings: Lines for people.
    """

    generators: tuple[str, ...] = ("photo only",)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageRecord:
    """How a stage went.

    Attributes:
        name: The stage.
        seconds: Wall time, that of the earlier run where it was resumed.
        peak_memory_bytes: Peak resident memory of the process while it ran.
        resumed: Taken from a checkpoint.
        warnings: What its values say in their `warnings`.
    """

    name: str
    seconds: float
    peak_memory_bytes: int
    resumed: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """Content of a checkpoint file."""

    stage: str
    version: int
    values: tuple[Any, ...]
    record: StageRecord


@dataclass(frozen=True)
class Run:
    """All values at the end, and how each stage went."""

    values: Mapping[str, Any]
    records: tuple[StageRecord, ...] = field(default=())

    @property
    def outcome(self) -> Outcome:
        """The method's outcome; the plain one where no stage provides it."""
        return self.values.get("outcome") or Outcome()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every warning once, in the order of the stages."""
        every = [line for record in self.records for line in record.warnings]
        return tuple(dict.fromkeys([*every, *self.outcome.warnings]))


def check_chain(stages: Sequence[Stage], given: Sequence[str]) -> None:
    """Check that every stage finds what it needs and that nothing is made twice.

    Raises:
        ValueError: If the list cannot run; a defect of the method, not of the request.
    """
    known: dict[str, str] = dict.fromkeys(given, "the request")
    names: set[str] = set()
    for stage in stages:
        missing = [name for name in stage.needs if name not in known]
        if missing:
            raise ValueError(f"stage '{stage.name}' needs {', '.join(missing)}, which nothing before it provides")
        twice = [name for name in stage.provides if name in known]
        if twice:
            raise ValueError(f"stage '{stage.name}' provides {twice[0]}, which {known[twice[0]]} provides already")
        if stage.name in names:
            raise ValueError(f"two stages are called '{stage.name}'")
        names.add(stage.name)
        known.update(dict.fromkeys(stage.provides, f"stage '{stage.name}'"))


def run(stages: Sequence[Stage], given: Mapping[str, Any], context: Context, checkpoints: Path | None = None) -> Run:
    """Run the stages in their order.

    Args:
        stages: The method.
        given: Values that are there at the start ("photo", "request", "folder").
        context: Progress, cancel, device, seed.
        checkpoints: Folder for the stages' values; what it holds already is taken instead of running the stage, up to
            the first stage that has none. None: nothing is stored.

    Returns:
        All values and records.

    Raises:
        ValueError: If the chain is wrong; nothing has run then.
        Cancelled: If the user cancelled.
        UserError: If a stage meets something that the user can put right.
    """
    check_chain(stages, tuple(given))
    values = dict(given)
    records: list[StageRecord] = []
    resuming = checkpoints is not None
    for index, stage in enumerate(stages, start=1):
        context.raise_if_cancelled()
        title = stage_title(index, len(stages), stage.name)
        steps = StepCheckpoints(checkpoints / f"{index:02d}-steps") if checkpoints else NoKeeper()
        path = checkpoints / f"{index:02d}.npz" if checkpoints and stage.keep else None
        kept = _take(path, stage) if resuming and path else None
        if kept is not None:
            produced, record = kept.values, kept.record
            context.progress(title, 1, 1, "kept from the earlier run")
            _warn(record.warnings, context)
        else:
            resuming = resuming and not stage.keep  # a stage that stores nothing does not end the kept ones
            produced, record = _run_stage(stage, values, replace(context, checkpoint=steps), title)
            context.raise_if_cancelled()
            if path:
                checkpoint.save(path, Kept(stage.name, stage.version, produced, record))
                if isinstance(steps, StepCheckpoints):
                    steps.remove()
        values.update(zip(stage.provides, produced, strict=True))
        records.append(record)
    return Run(values, tuple(records))


def stage_title(index: int, count: int, name: str) -> str:
    """What people see of a stage: "[3/8] Fit the body"."""
    return f"[{index}/{count}] {name}"


def split_title(title: str) -> tuple[int, int, str]:
    """The inverse of `stage_title`: index, count, name; zeros for any other text."""
    found = _TITLE.fullmatch(title)
    return (int(found[1]), int(found[2]), found[3]) if found else (0, 0, title)


@dataclass(frozen=True)
class _Rung:
    """One way to run a stage, and what is lost by it."""

    economy: int
    device: str
    loss: str


def _ladder(stage: Stage, device: str) -> list[_Rung]:
    """Full size, the stage's own economies, and at last the processor's memory instead of the device's."""
    rungs = [_Rung(0, device, "")]
    rungs += [_Rung(step, device, loss) for step, loss in enumerate(stage.economies, start=1)]
    if device != "cpu":
        rungs.append(_Rung(len(stage.economies), "cpu", "moved to the processor, which is slower"))
    return rungs


def _run_stage(
    stage: Stage, values: Mapping[str, Any], context: Context, title: str
) -> tuple[tuple[Any, ...], StageRecord]:
    context.progress(title, 0, 100)
    reset_peak()
    began = time.perf_counter()
    losses: list[str] = []

    def attempt(rung: _Rung) -> tuple[Any, ...]:
        inner = replace(context, economy=rung.economy, device=rung.device).part(title, 0, 100, 100)
        return _as_tuple(stage, stage.run(*(values[name] for name in stage.needs), inner))

    def step_down(rung: _Rung, shortage: Shortage) -> None:
        losses[:] = [f"{stage.name}: {rung.loss}, because memory was short ({shortage})"]
        context.warn(losses[0], "MEMORY")

    produced = run_with_ladder(attempt, _ladder(stage, context.device), step_down)
    context.progress(title, 100, 100)
    found = [line for value in produced for line in getattr(value, "warnings", ())]
    _warn(found, context)
    return produced, StageRecord(stage.name, time.perf_counter() - began, peak_bytes(), warnings=(*losses, *found))


def _warn(lines: Sequence[str], context: Context) -> None:
    for line in lines:
        context.warn(line)


def _as_tuple(stage: Stage, result: Any) -> tuple[Any, ...]:
    if not stage.provides:
        return ()
    if len(stage.provides) == 1:
        return (result,)
    if not isinstance(result, tuple) or len(result) != len(stage.provides):
        raise ValueError(f"stage '{stage.name}' must return {len(stage.provides)} values: {', '.join(stage.provides)}")
    return result


def _take(path: Path, stage: Stage) -> Kept | None:
    """The stage's checkpoint if it is there, whole and of this version."""
    if not path.exists():
        return None
    try:
        kept = checkpoint.load(path)
    except checkpoint.CheckpointError:
        return None  # the stage runs again, which is what a missing checkpoint means too
    if not isinstance(kept, Kept) or (kept.stage, kept.version) != (stage.name, stage.version):
        return None
    if len(kept.values) != len(stage.provides):
        return None
    record = kept.record
    again = StageRecord(record.name, record.seconds, record.peak_memory_bytes, True, record.warnings)
    return Kept(kept.stage, kept.version, kept.values, again)
