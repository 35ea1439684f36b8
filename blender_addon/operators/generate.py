"""Generate Avatar: jobs started, stopped, looked at, and their results brought into the scene."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import bpy

from .. import ADDON_ID, properties, session
from ..cloud.viewport import show_splats
from ..link.backend_python import NoBackendError
from ..link.jobs import ENDED, REQUEST, Job
from ..rig.assemble import AvatarObjects, insert_avatar
from ..shared.avatar import BundleError, read_result
from ..shared.methods import Request, request_from_json
from ..shared.protocol import check_relative
from ..shared.request_files import named_files, with_files
from .animate import avatar_rig, is_avatar_rig

REQUEST_PROPERTY = "effigy_request"
"""On an avatar's armature: method, request and photo that made it, as JSON."""

BUNDLE_PROPERTY = "effigy_bundle"
"""On an avatar's armature: the folder that it came from."""

_LONGEST_LOG = 200_000
"""Characters at a log's end that are shown."""

_APART_M = 1.2
"""Between avatars that would stand at the same place."""


class EFFIGY_OT_generate(bpy.types.Operator):
    """Make an avatar from the photo; Blender stays usable meanwhile."""

    bl_idname = "effigy.generate"
    bl_label = "Generate Avatar"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs a photo."""
        if context.scene.effigy.image is None:
            cls.poll_message_set("Choose a photo first")
            return False
        return True

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Queue the job."""
        settings = context.scene.effigy
        try:
            request = properties.chosen_request(settings)
            photo = photo_file(settings.image)
            session.current().submit(context, settings.method, request, photo)
        except (ValueError, NoBackendError, OSError, RuntimeError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        self.report({"INFO"}, f"{photo.stem} is queued")
        return {"FINISHED"}


class _JobOperator:
    """Acts on one job of the list."""

    job_id: bpy.props.StringProperty(options={"HIDDEN"})  # pyright: ignore[reportInvalidTypeForm]


class EFFIGY_OT_cancel(_JobOperator, bpy.types.Operator):
    """Stop this job."""

    bl_idname = "effigy.cancel"
    bl_label = "Cancel"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Ask for it; the panel shows when it has stopped."""
        queue = session.current().queue
        if queue is not None:
            queue.cancel(self.job_id)
        return {"FINISHED"}


class EFFIGY_OT_finish(_JobOperator, bpy.types.Operator):
    """Stop improving this job's result and keep it as the picture shows it."""

    bl_idname = "effigy.finish"
    bl_label = "Finish Now"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Ask for it; the avatar comes as usual."""
        queue = session.current().queue
        if queue is not None:
            queue.finish(self.job_id)
        return {"FINISHED"}


class EFFIGY_OT_again(_JobOperator, bpy.types.Operator):
    """Start this job again; it goes on where it stopped."""

    bl_idname = "effigy.again"
    bl_label = "Try Again"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Queue it; earlier crashes of the backend are forgiven."""
        try:
            session.current().again(context, self.job_id)
        except NoBackendError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class EFFIGY_OT_bring(_JobOperator, bpy.types.Operator):
    """Bring this job's avatar into the scene now."""

    bl_idname = "effigy.bring"
    bl_label = "Bring into Scene"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Read its files in the background; the avatar comes in as an undo step of its own."""
        queue = session.current().queue
        job = queue.job(self.job_id) if queue is not None else None
        if job is not None and job.status == "done":
            session.current().bring(job, wanted=True)
        return {"FINISHED"}


class EFFIGY_OT_dismiss(_JobOperator, bpy.types.Operator):
    """Take this job off the list. A finished one leaves its avatar and its files; of any other the files go too."""

    bl_idname = "effigy.dismiss"
    bl_label = "Dismiss"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Remove a failed or cancelled job with its folder; of a finished one only the list's entry goes."""
        queue = session.current().queue
        job = queue.job(self.job_id) if queue is not None else None
        if queue is not None and job is not None and job.status in ENDED:
            queue.forget(self.job_id) if job.status == "done" else queue.remove(self.job_id)
        return {"FINISHED"}


class EFFIGY_OT_clear_jobs(bpy.types.Operator):
    """Take all finished and cancelled jobs off the list; avatars and their files stay."""

    bl_idname = "effigy.clear_jobs"
    bl_label = "Clear Finished Jobs"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """What failed or was interrupted stays: it can be tried again."""
        queue = session.current().queue
        if queue is None:
            return {"CANCELLED"}
        for job in queue.jobs:
            if job.status in ("done", "cancelled"):
                queue.forget(job.job_id) if job.status == "done" else queue.remove(job.job_id)
        return {"FINISHED"}


class EFFIGY_OT_open_log(_JobOperator, bpy.types.Operator):
    """Show the log in a text editor: of a job, or of what made the active avatar."""

    bl_idname = "effigy.open_log"
    bl_label = "Show Log"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Put the log into a text of this file and open a window with it."""
        name, places = self._places(context)
        log = next((path for path in places if path.is_file()), None)
        if log is None:
            self.report({"WARNING"}, "There is no log yet")
            return {"CANCELLED"}
        try:
            content = log.read_text("utf-8", errors="replace")
        except OSError as error:
            self.report({"ERROR"}, f"{log} cannot be read ({error.strerror})")
            return {"CANCELLED"}
        text = bpy.data.texts.get(name) or bpy.data.texts.new(name)
        text.from_string(content[-_LONGEST_LOG:])
        text.current_line_index = len(text.lines) - 1  # what went wrong stands at the end
        if context.window is not None:
            bpy.ops.wm.window_new()
            area = context.window_manager.windows[-1].screen.areas[0]
            area.type = "TEXT_EDITOR"
            area.spaces.active.text = text
        return {"FINISHED"}

    def _places(self, context: bpy.types.Context) -> tuple[str, list[Path]]:
        """A name for the text, and where the log may be."""
        queue, rig = session.current().queue, avatar_rig(context)
        if self.job_id:
            job = queue.job(self.job_id) if queue is not None else None
            own = [] if job is None else [job.log, job.folder / "result" / "log.txt", job.folder / "log.txt"]
            return f"{job.title or job.job_id} log" if job else "log", [path for path in own if path is not None]
        bundle = None if rig is None else rig.get(BUNDLE_PROPERTY)
        return f"{rig.name} log" if rig else "log", [] if bundle is None else [Path(bundle) / "log.txt"]


class EFFIGY_OT_insert_result(_JobOperator, bpy.types.Operator):
    """Bring a finished avatar into the scene."""

    bl_idname = "effigy.insert_result"
    bl_label = "Generate Avatar"
    bl_options = {"INTERNAL", "UNDO"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Insert what was read in the background; it is selected, and remembers what made it."""
        loaded = session.current().arriving.get(self.job_id)
        if loaded is None:
            return {"CANCELLED"}
        try:
            cloud, avatar = loaded.content.result()
            result = read_result(loaded.job.folder / "result")
            # The avatar will refer to these files: the backend's clean-up leaves folders with this mark alone.
            (loaded.job.folder / "keep").touch()
        except (BundleError, ValueError, OSError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        objects = insert_avatar(photo_name(loaded.job), cloud, avatar, "PHOTO")
        stand_beside_others(objects, context.scene)
        remember(objects.armature, loaded.job.folder / "result", result)
        remember_request(objects.armature, result, loaded.job.folder / loaded.job.image)
        objects.armature["effigy_title"] = photo_name(loaded.job)
        show_splats(objects.cloud, not bpy.app.background)
        return {"FINISHED"}


class EFFIGY_OT_regenerate(bpy.types.Operator):
    """Make this avatar once more, from the same photo with the same settings."""

    bl_idname = "effigy.regenerate"
    bl_label = "Regenerate"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar that remembers its request."""
        rig = avatar_rig(context)
        return rig is not None and REQUEST_PROPERTY in rig

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Queue the job."""
        rig = avatar_rig(context)
        assert rig is not None
        try:
            method, request, photo = remembered_request(rig)
            session.current().submit(context, method, request, photo, _title(rig, photo))
        except (ValueError, NoBackendError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        self.report({"INFO"}, f"{rig.name} is queued")
        return {"FINISHED"}


class EFFIGY_OT_use_settings(bpy.types.Operator):
    """Put this avatar's photo and settings into the panel, to change them and generate another."""

    bl_idname = "effigy.use_settings"
    bl_label = "Duplicate with Changes"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar that remembers its request."""
        return EFFIGY_OT_regenerate.poll(context)

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Fill the panel."""
        rig = avatar_rig(context)
        assert rig is not None
        try:
            method, request, photo = remembered_request(rig)
            context.scene.effigy.image = bpy.data.images.load(str(photo), check_existing=True)
        except (ValueError, RuntimeError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        properties.show_request(context.scene.effigy, method, request)
        return {"FINISHED"}


class EFFIGY_OT_relink(bpy.types.Operator):
    """Tell this avatar where its bundle is now."""

    bl_idname = "effigy.relink"
    bl_label = "Relink Bundle"
    bl_options = {"UNDO"}

    directory: bpy.props.StringProperty(subtype="DIR_PATH")  # pyright: ignore[reportInvalidTypeForm]

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar."""
        return avatar_rig(context) is not None

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        """Ask for the folder."""
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Only a folder that holds a bundle is taken."""
        rig, folder = avatar_rig(context), Path(bpy.path.abspath(self.directory))
        assert rig is not None
        try:
            remember(rig, folder, read_result(folder))
        except BundleError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class EFFIGY_OT_use_editor_image(bpy.types.Operator):
    """Take the picture that an Image Editor shows, or that of the active reference image, as the photo."""

    bl_idname = "effigy.use_editor_image"
    bl_label = "From Image Editor"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs such a picture."""
        return picture_at_hand(context) is not None

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Choose it."""
        context.scene.effigy.image = picture_at_hand(context)
        return {"FINISHED"}


class EFFIGY_OT_drop_photo(bpy.types.Operator):
    """Choose a picture file as the photo."""

    bl_idname = "effigy.drop_photo"
    bl_label = "Use as Photo for an Avatar"
    bl_options = {"UNDO"}

    filepath: bpy.props.StringProperty(subtype="FILE_PATH", options={"SKIP_SAVE"})  # pyright: ignore[reportInvalidTypeForm]

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Load and choose it."""
        try:
            context.scene.effigy.image = bpy.data.images.load(bpy.path.abspath(self.filepath), check_existing=True)
        except RuntimeError as error:
            self.report({"ERROR"}, f"{Path(self.filepath).name} is no picture that Blender reads: {error}".strip())
            return {"CANCELLED"}
        session.redraw_panels()
        return {"FINISHED"}


class EFFIGY_FH_photo(bpy.types.FileHandler):
    """Picture files dropped on the 3D view or its sidebar."""

    bl_idname = "EFFIGY_FH_photo"
    bl_label = "Photo for an Avatar"
    bl_import_operator = "effigy.drop_photo"
    bl_file_extensions = ".jpg;.jpeg;.png;.webp;.tif;.tiff;.bmp"

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        """In the view itself Blender asks whether it is a photo, a reference or a background; the sidebar knows."""
        return context.area is not None and context.area.type == "VIEW_3D" and context.region.type in ("WINDOW", "UI")


class EFFIGY_OT_show_preferences(bpy.types.Operator):
    """Open the add-on's preferences, where its backend is set up."""

    bl_idname = "effigy.show_preferences"
    bl_label = "Set Up in Preferences"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Open them at this add-on."""
        bpy.ops.preferences.addon_show(module=ADDON_ID)
        return {"FINISHED"}


def remember(rig: bpy.types.Object, bundle: Path, result: Mapping[str, object]) -> None:
    """Write onto an armature where its bundle is and, from the bundle's result.json, what made it."""
    generators, warnings = result.get("generators"), result.get("warnings")
    rig[BUNDLE_PROPERTY] = str(bundle)
    rig["effigy_made_by"] = ", ".join(str(name) for name in generators) if isinstance(generators, list) else ""
    rig["effigy_warnings"] = json.dumps(warnings if isinstance(warnings, list) else [])


def remember_request(rig: bpy.types.Object, result: Mapping[str, object], photo: Path) -> None:
    """Write onto an armature what it takes to make it again."""
    memory = {"method": result.get("method"), "request": result.get("request"), "photo": str(photo)}
    rig[REQUEST_PROPERTY] = json.dumps(memory)


def remembered_request(rig: bpy.types.Object) -> tuple[str, Request, Path]:
    """Method, request and photo that `remember_request` wrote; the bundle's copies where the job's own are gone.

    Raises:
        ValueError: If they are damaged, of a version with other parameters, or files of the request are gone; one line.
    """
    try:
        memory = json.loads(rig[REQUEST_PROPERTY])
        method, photo = memory["method"], Path(memory["photo"])
        request = request_from_json(method, memory["request"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{rig.name} no longer says how it was made; choose its photo and generate anew") from error
    folders = [photo.parent]
    if BUNDLE_PROPERTY in rig:
        folders.insert(0, Path(rig[BUNDLE_PROPERTY]))
        if not photo.is_file():
            photo = next(iter(sorted(folders[0].glob("input.*"))), photo)
    files = {
        name: tuple(_find_file(rig, folders, text) for text in texts) for name, texts in named_files(request).items()
    }
    return method, with_files(request, files), photo


def _find_file(rig: bpy.types.Object, folders: list[Path], name: str) -> str:
    """Path of a file that the avatar's request names relative to one of these folders.

    Raises:
        ValueError: If it is in none of them, or the name leads out of them.
    """
    found = [folder / name for folder in folders if not check_relative(name) and (folder / name).is_file()]
    if not found:
        raise ValueError(f"{name}, which {rig.name} was made with, is gone; use Relink Bundle, or generate anew")
    return str(found[0])


def _title(rig: bpy.types.Object, photo: Path) -> str:
    """What the avatar was called when it was made: a job's own copy of the photo has a name that says nothing."""
    return str(rig.get("effigy_title", "")) or photo.stem


def stand_beside_others(objects: AvatarObjects, scene: bpy.types.Scene) -> None:
    """Move a new avatar and its camera aside, as far as it takes not to stand inside another."""
    rig = objects.armature
    others = [ob.matrix_world.translation for ob in scene.objects if is_avatar_rig(ob) and ob != rig]
    aside_m = 0.0
    while any(abs(place.x - aside_m) < _APART_M / 2 and abs(place.y) < _APART_M / 2 for place in others):
        aside_m += _APART_M
    rig.location.x += aside_m
    objects.camera.location.x += aside_m


def photo_name(job: Job) -> str:
    """What an artist calls the job's photo: its file name without the ending; the job's id where that is lost."""
    if job.title:
        return job.title
    try:
        content = json.loads((job.folder / REQUEST).read_text("utf-8"))
        return Path(str(content["name"])).stem or job.job_id
    except (OSError, ValueError, KeyError, TypeError):
        return job.job_id


def photo_file(image: bpy.types.Image) -> Path:
    """A file with the picture: its own if it is on disk unchanged, else one written for the purpose.

    Raises:
        RuntimeError: If Blender cannot write it.
    """
    path = Path(bpy.path.abspath(image.filepath, library=image.library)) if image.filepath else None
    if path is not None and path.is_file() and not image.is_dirty and image.packed_file is None:
        return path
    # Blender removes its temporary folder at exit; the job takes its copy in the background.
    folder = Path(tempfile.mkdtemp(prefix="effigy-", dir=bpy.app.tempdir))
    target = folder / (bpy.path.clean_name(image.name) + ".png")
    if "save_copy" in bpy.types.Image.bl_rna.functions["save"].parameters:
        image.save(filepath=str(target), save_copy=True)
        return target
    unsaved = image.is_dirty
    image.save(filepath=str(target))
    if unsaved:
        image.pixels[0] = image.pixels[0]  # Blender 4.2 counts it as saved now; the artist's own file is not
    return target


def picture_at_hand(context: bpy.types.Context) -> bpy.types.Image | None:
    """A picture that an Image Editor of this screen shows, else that of the active reference empty."""
    areas = context.screen.areas if context.screen is not None else ()
    spaces = (area.spaces.active for area in areas if area.type == "IMAGE_EDITOR")
    shown = next((space.image for space in spaces if space.image is not None), None)
    ob = context.active_object
    if shown is None and ob is not None and ob.type == "EMPTY" and isinstance(ob.data, bpy.types.Image):
        return ob.data
    return shown
