"""Questions that test_panel.py asks, answered inside Blender: `python inside_panel.py QUESTION FOLDER`."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np

import blender_addon
from blender_addon.shared import methods
from blender_addon.shared.methods import parameter
from tests.blender.synthetic import write_synthetic_bundle


@dataclass(frozen=True)
class EchoRequest:
    """Says it back. And more."""

    preset: Literal["fast", "balanced", "best"] = parameter("fast", "Preset", "How long it takes.")
    loud: bool = parameter(True, "Loud", "So that everybody hears it.")
    times: int = parameter(3, "Times", "How often it comes back.", minimum=1, maximum=9)
    depth_m: float = parameter(1.5, "Depth", "Of the valley.", unit="m", minimum=0.0, maximum=4.0)
    loss: float = parameter(0.05, "Loss", "Per echo.", unit="dB", minimum=0.0, maximum=0.1)
    words: str = parameter("hello", "Words", "What is said.")
    look: str = parameter("", "Look", "A picture.", files="picture")
    photos: tuple[str, ...] = parameter((), "More photos", "Of the same echo.", maximum=3, files="picture")

    def __post_init__(self) -> None:
        methods._check(self)  # type: ignore[arg-type]


def parameters(folder: Path) -> dict[str, Any]:
    """A method that was added to the table and nowhere else."""
    methods.REQUESTS["echo"] = EchoRequest  # type: ignore[index]
    blender_addon.register()
    from blender_addon import properties

    settings = bpy.context.scene.effigy
    choices = settings.bl_rna.properties["method"].enum_items
    known = type(settings.echo).bl_rna.properties
    shown = {}
    for name in ("preset", "loud", "times", "depth_m", "loss", "words", "look", "photos"):
        item = known[name]
        limits = [item.hard_min, item.hard_max] if item.type in ("INT", "FLOAT") else []
        options = [choice.identifier for choice in item.enum_items] if item.type == "ENUM" else []
        shown[name] = [item.name, item.description, item.type, item.unit, [round(x, 6) for x in limits], options]
    settings.method = "echo"
    answer: dict[str, Any] = {
        "methods": [[choice.identifier, choice.name, choice.description] for choice in choices],
        "shown": shown,
        "default": properties.chosen_request(settings) == EchoRequest(),
    }
    settings.echo.loss, settings.echo.depth_m = 0.1, 2.7
    changed = properties.chosen_request(settings)
    answer["exact"] = [changed.loss, changed.depth_m]
    settings.echo.loss, settings.method = 0.01, "body"
    properties.show_request(settings, "echo", changed)
    answer["shown_again"] = [settings.method, properties.chosen_request(settings) == changed]
    answer["subtype"] = known["look"].subtype
    blender_addon.unregister()
    return answer


def files(folder: Path) -> dict[str, Any]:
    """Rows of files: added by the browser and by dropping, edited, taken away, put back by a stored request."""
    methods.REQUESTS["echo"] = EchoRequest  # type: ignore[index]
    blender_addon.register()
    from blender_addon import properties

    settings = bpy.context.scene.effigy
    settings.method = "echo"
    rows = settings.echo.photos

    def choose(*names: str) -> dict[str, Any]:
        return {"directory": str(folder), "files": [{"name": name} for name in names]}

    def now() -> list[str]:
        return [Path(path).name for path in properties.chosen_request(settings).photos]

    told = [bpy.ops.effigy.add_files(parameter="photos", **choose("back.png", "left.png")), now()]
    told += [bpy.ops.effigy.drop_more_photos(**choose("back.png", "right.png")), now()]
    told += [bpy.ops.effigy.remove_file(parameter="photos", number=0), now()]
    told += [bpy.ops.effigy.remove_file(parameter="words", number=0), bpy.ops.effigy.add_files(parameter="words")]
    rows.add()
    told.append(now())
    chosen = properties.chosen_request(settings)
    answer: dict[str, Any] = {"whole": all(Path(path).is_absolute() for path in chosen.photos)}
    rows.add().path = "elsewhere.png"
    properties.show_request(settings, "echo", chosen)
    answer["shown"] = properties.chosen_request(settings) == chosen
    bpy.ops.effigy.add_files(parameter="photos", **choose("1.png", "2.png", "3.png"))
    try:
        properties.chosen_request(settings)
    except ValueError as error:
        answer["many"] = str(error)
    bpy.ops.wm.save_as_mainfile(filepath=str(folder / "here.blend"))
    rows = bpy.context.scene.effigy.echo.photos
    properties.show_files(rows, ["//beside.png"])
    answer["relative"] = properties.chosen_request(bpy.context.scene.effigy).photos == (str(folder / "beside.png"),)
    blender_addon.unregister()
    return answer | {"told": [sorted(item) if isinstance(item, set) else item for item in told]}


def memory(folder: Path) -> dict[str, Any]:
    """What an avatar remembers, and where its files are when they have moved."""
    blender_addon.register()
    from blender_addon.operators.generate import BUNDLE_PROPERTY, remembered_request

    place = write_synthetic_bundle(folder / "someone", 300)
    request = {"preset": "best", "height_m": 1.7, "person": 1, "photos": ["photos-0.png"]}
    made = {"method": "body", "request": request, "generators": ["photo only"], "warnings": ["dark"]}
    (place / "result.json").write_text(json.dumps(made))
    picture = bpy.data.images.new("photo", 8, 8)
    picture.save(filepath=str(place / "input.png"))
    picture.save(filepath=str(place / "photos-0.png"))
    results = [bpy.ops.effigy.import_avatar(directory=str(place))]
    rig = bpy.context.view_layer.objects.active
    answer: dict[str, Any] = {"made_by": rig["effigy_made_by"], "warnings": rig["effigy_warnings"]}
    results.append(bpy.ops.effigy.use_settings())
    settings = bpy.context.scene.effigy
    answer["panel"] = [
        settings.image.name,
        settings.body.preset,
        round(settings.body.height_m, 5),
        settings.body.person,
        [Path(row.path).relative_to(place).as_posix() for row in settings.body.photos],
    ]
    moved = folder / "moved"
    shutil.move(place, moved)
    refused = []
    for wrong in (place, folder):
        try:
            bpy.ops.effigy.relink(directory=str(wrong))
        except RuntimeError as error:
            refused.append(str(error).strip())
    answer["refused"], answer["kept"] = refused, rig[BUNDLE_PROPERTY] == str(place)
    try:
        remembered_request(rig)
    except ValueError as error:
        answer["gone"] = str(error)
    results.append(bpy.ops.effigy.relink(directory=str(moved)))
    _, again, photo = remembered_request(rig)
    answer["linked"] = [rig[BUNDLE_PROPERTY] == str(moved), photo == moved / "input.png"]
    answer["further"] = again.photos == (str(moved / "photos-0.png"),)
    rig["effigy_request"] = rig["effigy_request"].replace("photos-0.png", "../result.json")
    try:
        remembered_request(rig)
    except ValueError as error:
        answer["outside"] = str(error)
    results.append(bpy.ops.effigy.import_avatar(directory=str(moved)))
    second = bpy.context.view_layer.objects.active
    cameras = [ob.location.x for ob in bpy.data.objects if ob.type == "CAMERA" and "photo" in ob.name]
    answer["apart_m"] = [second.location.x - rig.location.x, max(cameras) - min(cameras)]
    blender_addon.unregister()
    return answer | {"finished": [result == {"FINISHED"} for result in results]}


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def bad_motion(folder: Path) -> dict[str, Any]:
    """Motion files that are none, through the operator."""
    blender_addon.register()
    canary = folder / "canary"
    with zipfile.ZipFile(folder / "pickled.npz", "w") as archive:
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
        archive.writestr("poses.npy", b"\x93NUMPY\x01\x00v\x00" + header + pickle.dumps(_Canary(canary)))
    np.savez(folder / "empty.npz", poses=np.zeros((0, 165)), trans=np.zeros((0, 3)), mocap_framerate=30)
    np.savez(folder / "missing.npz", trans=np.zeros((5, 3)), mocap_framerate=30)
    (folder / "text.npz").write_text("no archive")
    (folder / "none.bvh").write_text("HIERARCHY\nROOT")
    bpy.ops.effigy.import_avatar(directory=str(write_synthetic_bundle(folder / "someone", 200)))
    rig = bpy.context.view_layer.objects.active
    action = rig.animation_data.action.name
    said = {}
    for name in ("pickled.npz", "empty.npz", "missing.npz", "text.npz", "none.bvh", "absent.bvh"):
        try:
            bpy.ops.effigy.import_motion(filepath=str(folder / name))
            said[name] = ""
        except RuntimeError as error:
            said[name] = str(error).strip()
    blender_addon.unregister()
    return {"said": said, "canary": canary.exists(), "same": rig.animation_data.action.name == action}


def lines(folder: Path) -> dict[str, Any]:
    """A long text and a path in a narrow sidebar."""
    import blf

    from blender_addon.layouts import wrap

    text = "Nobody can be seen in the photo; choose " + "/a/long/path" * 20 + " or another one"
    blf.size(0, 11)
    found = wrap(text, 180.0)
    widths = [blf.dimensions(0, line)[0] for line in found]
    kept = "".join(found).replace(" ", "") == text.replace(" ", "")
    return {"widest": max(widths), "lines": len(found), "kept": kept, "empty": wrap("", 180.0)}


class Drawn:
    """A layout that writes down what is put into it."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def row(self, **_: object) -> Drawn:
        return self

    def label(self, text: str = "", **_: object) -> None:
        self.seen.append(text)

    def progress(self, **_: object) -> None:
        pass

    def operator(self, name: str, **_: object) -> Any:
        self.seen.append(name)
        return type("Button", (), {})()


def buttons(folder: Path) -> dict[str, Any]:
    """Of a job that runs, that could end early, that was asked to, and that is being stopped."""
    import time

    blender_addon.register()
    from blender_addon import job_panel
    from blender_addon.link.jobs import Job

    job_panel.text_lines = lambda *_, **__: None  # wraps by the region's width, and there is no window
    shown = {}
    for name, changes in {
        "running": {}, "finishable": {"finishable": True}, "finishing": {"finishable": True, "finishing": True},
        "stopping": {"finishable": True, "status": "cancelling"},
    }.items():  # fmt: skip
        seen: list[str] = []
        values: dict[str, Any] = {"status": "running", "began": time.monotonic(), **changes}
        job = Job("one", folder, "portrait", {}, "input.png", **values)
        job_panel.draw_job(Drawn(seen), bpy.context, None, job)  # pyright: ignore[reportArgumentType]
        shown[name] = [text for text in seen if text.startswith(("effigy.", "Finishing"))]
    answer = {"shown": shown, "alone": list(bpy.ops.effigy.finish(job_id="nobody"))}
    blender_addon.unregister()
    return answer


def main() -> int:
    question: Callable[[Path], dict[str, Any]] = globals()[sys.argv[1]]
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    print("ANSWER " + json.dumps(question(Path(sys.argv[2]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
