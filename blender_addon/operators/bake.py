"""Baking of an avatar's motion into plain keys."""

from __future__ import annotations

import bpy

from ..motion.bake import bake_motion
from ..motion.bvh import MotionError
from .animate import avatar_rig


class EFFIGY_OT_bake_motion(bpy.types.Operator):
    """Bake what the avatar is seen to do (IK, curls, gaze, layered actions) into keys of its bones and sliders."""

    bl_idname = "effigy.bake_motion"
    bl_label = "Bake to Keyframes"
    bl_options = {"REGISTER", "UNDO"}

    step: bpy.props.IntProperty(name="Step", description="Frames from key to key", default=1, min=1, soft_max=10)  # pyright: ignore[reportInvalidTypeForm]

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        """Needs an avatar."""
        return avatar_rig(context) is not None

    def execute(self, context: bpy.types.Context) -> set[str]:
        """Over the scene's frames, the last one included whatever the step."""
        rig, scene = avatar_rig(context), context.scene
        assert rig is not None
        frames = list(range(scene.frame_start, scene.frame_end + 1, self.step))
        if frames and frames[-1] != scene.frame_end:
            frames.append(scene.frame_end)
        try:
            action = bake_motion(rig, frames)
        except MotionError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        self.report({"INFO"}, f"{action.name}: {len(frames)} keys a bone")
        return {"FINISHED"}
