"""Generate Avatar: jobs started, stopped, looked at, and their results brought into the scene."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import bpy

from .. import properties, session
from ..cloud.viewport import show_splats
from ..link.backend_python import NoBackendError
from ..link.jobs import ENDED, REQUEST, Job
from ..rig.assemble import insert_avatar
from ..shared.avatar import BundleError, read_result
from ..shared.methods import Request, request_from_json, request_to_json
from .animate import avatar_rig

REQUEST_PROPERTY = "effigy_request"
"""On an avatar's armature: method, request and photo that made it, as JSON."""

BUNDLE_PROPERTY = "effigy_bundle"
"""On an avatar's armature: the folder that it came from."""


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
            job_id = session.current().jobs(context).submit(settings.method, request_to_json(request), photo)
        except (ValueError, NoBackendError, OSError, RuntimeError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        self.report({"INFO"}, f"{settings.image.name}: {job_id} is queued")
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


class EFFIGY_OT_again(_JobOperator, bpy.types.Operator):
    """Start this job again; it goes on where it stopped."""

    bl_idname = "effigy.again"
    bl_label = "Try Again"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Queue it; earlier crashes of the backend are forgiven."""
        try:
            queue = session.current().jobs(context)
        except NoBackendError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        queue.process.forgive()
        queue.again(self.job_id)
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


class EFFIGY_OT_open_log(_JobOperator, bpy.types.Operator):
    """Show the job's log in a text editor."""

    bl_idname = "effigy.open_log"
    bl_label = "Log"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Load the log as a text and open a window with it."""
        queue = session.current().queue
        job = queue.job(self.job_id) if queue is not None else None
        places = [] if job is None else [job.log, job.folder / "result" / "log.txt"]
        log = next((path for path in places if path is not None and path.is_file()), None)
        if log is None:
            self.report({"WARNING"}, "This job has no log yet")
            return {"CANCELLED"}
        text = bpy.data.texts.load(str(log), internal=True)
        if context.window is not None:
            bpy.ops.wm.window_new()
            area = context.window_manager.windows[-1].screen.areas[0]
            area.type = "TEXT_EDITOR"
            area.spaces.active.text = text
        return {"FINISHED"}


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
        remember(objects.armature, loaded.job.folder / "result", result)
        remember_request(objects.armature, result, loaded.job.folder / loaded.job.image)
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
            session.current().jobs(context).submit(method, request_to_json(request), photo)
        except (ValueError, NoBackendError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
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
    """Take the picture that the Image Editor shows as the photo."""

    bl_idname = "effigy.use_editor_image"
    bl_label = "From Image Editor"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an Image Editor with a picture."""
        return _editor_image(context) is not None

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Choose it."""
        context.scene.effigy.image = _editor_image(context)
        return {"FINISHED"}


class EFFIGY_OT_drop_photo(bpy.types.Operator):
    """Choose a picture file as the photo."""

    bl_idname = "effigy.drop_photo"
    bl_label = "Use as Photo"
    bl_options = {"UNDO"}

    filepath: bpy.props.StringProperty(subtype="FILE_PATH", options={"SKIP_SAVE"})  # pyright: ignore[reportInvalidTypeForm]

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Load and choose it."""
        try:
            context.scene.effigy.image = bpy.data.images.load(bpy.path.abspath(self.filepath), check_existing=True)
        except RuntimeError as error:
            self.report({"ERROR"}, f"{Path(self.filepath).name} is no picture that Blender reads: {error}".strip())
            return {"CANCELLED"}
        return {"FINISHED"}


class EFFIGY_FH_photo(bpy.types.FileHandler):
    """Picture files dropped on the 3D view's sidebar."""

    bl_idname = "EFFIGY_FH_photo"
    bl_label = "Photo for an avatar"
    bl_import_operator = "effigy.drop_photo"
    bl_file_extensions = ".jpg;.jpeg;.png;.webp;.tif;.tiff;.bmp"

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        """In the view itself Blender adds a reference empty; the sidebar takes photos."""
        return context.area is not None and context.area.type == "VIEW_3D" and context.region.type == "UI"


class EFFIGY_OT_doctor(bpy.types.Operator):
    """Ask the backend what works on this machine."""

    bl_idname = "effigy.doctor"
    bl_label = "Check the Backend"

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Run doctor in the background; its lines appear in the preferences."""
        try:
            session.current().ask_doctor(context)
        except NoBackendError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        session.current().forget_backend()
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
    """Method, request and photo that `remember_request` wrote.

    Raises:
        ValueError: If they are damaged, or of a version with other parameters; one line.
    """
    try:
        memory = json.loads(rig[REQUEST_PROPERTY])
        return memory["method"], request_from_json(memory["method"], memory["request"]), Path(memory["photo"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{rig.name} no longer says how it was made; choose its photo and generate anew") from error


def photo_name(job: Job) -> str:
    """What an artist calls the job's photo: its file name without the ending; the job's id where that is lost."""
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


def _editor_image(context: bpy.types.Context) -> bpy.types.Image | None:
    areas = context.screen.areas if context.screen is not None else ()
    spaces = (area.spaces.active for area in areas if area.type == "IMAGE_EDITOR")
    return next((space.image for space in spaces if space.image is not None), None)
