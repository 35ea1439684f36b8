"""Which model is taken: the better one where it fits, the smaller one where it does not, and what is said otherwise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from backend.context import Context
from backend.diffusion import chosen
from backend.diffusion.edit import Inpaint, Klein
from backend.diffusion.interfaces import Source
from backend.diffusion.video import WanAnimate, WanVACE
from backend.errors import MODEL_MISSING, UserError
from tests.diffusion.tiny_video import one_thread, write_inpaint, write_klein

pytestmark = pytest.mark.usefixtures("one_thread")
assert one_thread


@dataclasses.dataclass
class Some:
    """A folder of models in which some are installed."""

    root: Path
    installed: tuple[str, ...]

    def folder(self, model_id: str) -> Path:
        if model_id not in self.installed:
            raise UserError(f"the model {model_id} is not installed", MODEL_MISSING)
        return self.root / model_id

    def source(self, model_id: str) -> Source:
        return Source(model_id, "", "CC0-1.0", True)


def context(gigabytes: float) -> Context:
    return dataclasses.replace(Context.quiet(), memory_bytes=int(gigabytes * 1e9))


def test_the_better_video_model_where_it_does_not_crawl(tmp_path: Path) -> None:
    both, small = Some(tmp_path, ("wan-animate", "wan-vace")), Some(tmp_path, ("wan-vace",))
    assert isinstance(chosen.video_generator(both, context(200)), WanAnimate)
    assert isinstance(chosen.video_generator(small, context(200)), WanVACE)
    only = Some(tmp_path, ("wan-animate",))
    tight = 200.0
    while chosen.choose("wan-animate", context(tight)).offload != "sequential":
        tight *= 0.9
    assert isinstance(chosen.video_generator(both, context(tight)), WanVACE)
    assert isinstance(chosen.video_generator(only, context(tight)), WanAnimate)


def test_what_is_missing_or_too_large_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wan-vace is not installed") as missing:
        chosen.video_generator(Some(tmp_path, ()), context(200))
    assert missing.value.code == MODEL_MISSING
    with pytest.raises(UserError) as tight:
        chosen.video_generator(Some(tmp_path, ("wan-animate",)), context(0.01))
    assert tight.value.kind == "OUT_OF_MEMORY"
    with pytest.raises(UserError, match="sv3d-u is not installed"):
        chosen.orbit_generator(Some(tmp_path, ()), context(200))


def test_editors(tmp_path: Path) -> None:
    write_klein(tmp_path / "flux2-klein")
    write_inpaint(tmp_path / "sd15-inpaint")
    both = Some(tmp_path, ("flux2-klein", "sd15-inpaint"))
    editor = chosen.image_editor(both, context(200))
    assert isinstance(editor, Klein) and editor.sources[0].name == "flux2-klein"
    assert isinstance(chosen.image_editor(Some(tmp_path, ("sd15-inpaint",)), context(200)), Inpaint)
