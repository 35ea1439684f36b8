"""One job in the sidebar: how it stands, how it ended, and what can be done with it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import bpy

from . import session
from .layouts import text_lines
from .link.jobs import ENDED, Job

_ICONS = {"done": "CHECKMARK", "failed": "ERROR", "cancelled": "X", "interrupted": "TIME", "waiting": "SORTTIME"}
_TEXTS = {
    "preparing": "Copying the photo",
    "cancelling": "Stopping ...",
    "checking": "Checking the files",
    "cancelled": "Cancelled",
}

_SURE = 0.1
"""From this share of a job on, the time so far says something about the rest."""

_MOST_WARNINGS = 4


def draw_order(jobs: Sequence[Job]) -> list[Job]:
    """What runs, what waits in its order, then what has ended, the newest first."""
    open_jobs = [job for job in jobs if job.status not in ENDED]
    running = [job for job in open_jobs if job.began is not None]
    return [
        *running,
        *(job for job in open_jobs if job.began is None),
        *(j for j in reversed(jobs) if j.status in ENDED),
    ]


def draw_job(box: bpy.types.UILayout, context: bpy.types.Context, running: session.Session, job: Job) -> None:
    """Draw one job.

    Args:
        box: Its own.
        context: Of the drawing.
        running: The session.
        job: The job.
    """
    _draw_header(box, job)
    if job.status not in ENDED:
        _draw_open(box, context, running, job)
    for warning in job.warnings[:_MOST_WARNINGS]:
        text_lines(box, context, warning, "INFO", most=4)
    if job.status == "done":
        _draw_arrival(box, context, running, job)
    elif job.status in ENDED:
        _draw_end(box, context, job)


def _draw_header(box: bpy.types.UILayout, job: Job) -> None:
    """Name, time, and what takes it off the list."""
    header = box.row()
    name = header.row()
    name.alert = job.status == "failed"
    name.label(text=job.title or job.job_id, icon=_ICONS.get(job.status, "RENDER_ANIMATION"))
    buttons = header.row(align=True)
    buttons.alignment = "RIGHT"
    if job.status in ENDED:
        if job.began is not None:
            buttons.label(text=clock(job.elapsed_s(time.monotonic())))
        buttons.operator("effigy.open_log", text="", icon="TEXT", emboss=False).job_id = job.job_id
        buttons.operator("effigy.dismiss", text="", icon="X", emboss=False).job_id = job.job_id
    elif job.status in ("waiting", "preparing"):
        buttons.operator("effigy.cancel", text="", icon="X", emboss=False).job_id = job.job_id


def _draw_open(box: bpy.types.UILayout, context: bpy.types.Context, running: session.Session, job: Job) -> None:
    """Bar, stage, times, picture and Cancel of a job that has not ended."""
    if job.began is None:
        text = _TEXTS.get(job.status) or _place_in_line(running, job)
        box.label(text=text, icon="BLANK1")
        return
    box.progress(factor=job.fraction, text=f"{100 * job.fraction:.0f} %")
    stage = _TEXTS.get(job.status) or (f"{job.stage}: {job.note}" if job.note else job.stage) or "Starting"
    text_lines(box, context, stage, most=2)
    elapsed = job.elapsed_s(time.monotonic())
    row = box.row()
    row.label(text=clock(elapsed), icon="TIME")
    left = remaining_s(job, elapsed)
    if left is not None and job.status == "running":
        right = row.row()
        right.alignment = "RIGHT"
        right.label(text=f"about {clock(left)} left")
    icon = running.icon(job.preview) if job.preview is not None else 0
    if icon:
        box.template_icon(icon_value=icon, scale=8)
    if job.status == "running":
        buttons = box.row(align=True)
        if job.finishing:
            buttons.label(text="Finishing with what there is ...")
        elif job.finishable:
            buttons.operator("effigy.finish", icon="CHECKMARK").job_id = job.job_id
        buttons.operator("effigy.cancel", icon="X").job_id = job.job_id


def _draw_arrival(box: bpy.types.UILayout, context: bpy.types.Context, running: session.Session, job: Job) -> None:
    """How the result of a finished job gets into the scene, if it is not there."""
    if job.job_id in running.arrived:
        return
    if job.job_id in running.problems:
        text_lines(box, context, f"{running.problems[job.job_id]}; generate it again", "ERROR")
    elif job.job_id in running.arriving:
        box.label(text=session.obstacle() or "Coming into the scene", icon="BLANK1")
    else:
        box.label(text="Started from another file", icon="BLANK1")
    box.operator("effigy.bring", icon="IMPORT").job_id = job.job_id


def _draw_end(box: bpy.types.UILayout, context: bpy.types.Context, job: Job) -> None:
    """Why a job did not get done, and the next step."""
    text = "; ".join(text for text in (job.text or _TEXTS.get(job.status, ""), job.hint) if text)
    if text:
        text_lines(box, context, text[:1].upper() + text[1:])
    row = box.row(align=True)
    if job.retryable or job.status == "interrupted":
        label = "Resume" if job.status == "interrupted" else "Try Again"
        row.operator("effigy.again", text=label, icon="FILE_REFRESH").job_id = job.job_id
    if job.status == "failed":
        row.operator("effigy.open_log", icon="TEXT").job_id = job.job_id


def _place_in_line(running: session.Session, job: Job) -> str:
    queue = running.queue
    waiting = [other.job_id for other in queue.jobs if other.status not in ENDED] if queue is not None else []
    before = waiting.index(job.job_id) if job.job_id in waiting else 0
    if before == 0:
        return "Starting the backend"
    return "Waiting: next in line" if before == 1 else f"Waiting: {before} before it"


def remaining_s(job: Job, elapsed_s: float) -> float | None:
    """Estimate of the seconds that are left: from earlier jobs of this kind, else from this one's own pace."""
    if job.remaining_s is not None:
        return job.remaining_s
    return elapsed_s * (1 - job.fraction) / job.fraction if job.fraction >= _SURE else None


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
