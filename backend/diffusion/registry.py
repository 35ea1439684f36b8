"""Every pretrained model that a method can use: one row each, to be read as a table.

Nothing was downloaded where this was written. What is not known for certain (a commit, a size, a hash) is None, and the
row's note says so; the first download or import records it in the lock (see `weights`), and every later use is held to
that. `tests/diffusion/test_registry.py` checks the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from backend.diffusion.model_row import Licence, Memory, ModelFile, ModelRow, Preset, Role
from backend.errors import UserError

__all__ = ["ROWS", "Licence", "Memory", "ModelFile", "ModelRow", "Preset", "Role", "by_role", "row"]

HUB: Final = "https://huggingface.co"
"""Where repositories are; a mirror replaces it (see `download`)."""


def row(model_id: str) -> ModelRow:
    """The row of one model.

    Raises:
        UserError: If there is none.
    """
    for candidate in ROWS:
        if candidate.id == model_id:
            return candidate
    raise UserError(f"there is no model '{model_id}'; python -m backend models list names them all")


def by_role(role: Role) -> Iterator[ModelRow]:
    """All rows of one role, in the table's order: the first is the default."""
    return (candidate for candidate in ROWS if candidate.role == role)


def _files(*paths: str) -> tuple[ModelFile, ...]:
    """Files of which neither size nor hash is known."""
    return tuple(ModelFile(path) for path in paths)


def _all(gigabytes: float, cpu: float | None = None) -> Memory:
    """The same for every preset; on a CPU in 32 bit where that differs."""
    return Memory(gigabytes, gigabytes, gigabytes, gigabytes, gigabytes, cpu or gigabytes)


_APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", commercial=True)
_MIT = "MIT"
_OPENRAIL_M = Licence("CreativeML-OpenRAIL-M", f"{HUB}/spaces/CompVis/stable-diffusion-license", commercial=True)
_STABILITY = Licence("Stability-AI-Community", "https://stability.ai/community-license-agreement", commercial=True)
_SV3D = Licence("Stability-AI-Community or sv3d-nc-community", f"{HUB}/stabilityai/sv3d", commercial=False)
_INSIGHTFACE = "non-commercial research (InsightFace)"
_UNKNOWN = Licence("unknown", "", commercial=False)

_PASS_ON = "The licence's use restrictions must be passed on."
_NO_PIN = "Commit, sizes and hashes: unknown until the first download."
_USERS = "Whatever the user installs; nobody here knows its licence, so it counts as non-commercial."

_TOKENIZER = tuple(
    f"tokenizer/{name}" for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
)
_T5 = tuple(
    f"tokenizer/{name}"
    for name in ("special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer_config.json")
)
_SAFETENSORS = "diffusion_pytorch_model.safetensors"
_PIPELINE = ("model_index.json", "scheduler/scheduler_config.json")
_UNET = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors")
_UNET_16 = ("unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors")
_VAE = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")
_VAE_16 = ("vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors")
_TEXT = ("text_encoder/config.json", "text_encoder/model.safetensors")
_TEXT_16 = ("text_encoder/config.json", "text_encoder/model.fp16.safetensors")
_TEXT_SHARDS = ("text_encoder/config.json", "text_encoder/*.safetensors", "text_encoder/model.safetensors.index.json")
_IMAGE = ("image_encoder/config.json", "image_encoder/model.safetensors")
_IMAGE_16 = ("image_encoder/config.json", "image_encoder/model.fp16.safetensors")
_FEATURES = ("feature_extractor/preprocessor_config.json",)
_TRANSFORMER = ("transformer/config.json", "transformer/*.safetensors")
_SD_16 = _files(*_PIPELINE, *_TOKENIZER, *_TEXT_16, *_UNET_16, *_VAE_16)
_CONTROL = _files("config.json", "diffusion_pytorch_model.fp16.safetensors")
_VISION = _files("config.json", "preprocessor_config.json", "model.safetensors")

ROWS: Final[tuple[ModelRow, ...]] = (
    # ---- Stable Diffusion 1.5 and what steers it: portrait, scene ---------------------------------------------------
    ModelRow(
        "sd15", "base", "Stable Diffusion 1.5", _OPENRAIL_M, _all(2.2, cpu=4.3),
        f"{_PASS_ON} The 16-bit variant. {_NO_PIN}",
        "stable-diffusion-v1-5/stable-diffusion-v1-5", _SD_16,
    ),
    ModelRow(
        "sd15-inpaint", "inpainting", "Stable Diffusion 1.5 inpainting", _OPENRAIL_M, _all(2.2, cpu=4.3),
        f"{_PASS_ON} The 16-bit variant. {_NO_PIN}",
        "stable-diffusion-v1-5/stable-diffusion-inpainting", _SD_16,
    ),
    ModelRow(
        "control-mediapipe-face", "control", "ControlNet of MediaPipe's face mesh",
        Licence("OpenRAIL", f"{HUB}/CrucibleAI/ControlNetMediaPipeFace", commercial=True), _all(0.72, cpu=1.45),
        f"{_PASS_ON} Only the 16-bit variant (723 MB) is safetensors. {_NO_PIN}",
        "CrucibleAI/ControlNetMediaPipeFace", tuple(ModelFile(f"diffusion_sd15/{file.path}") for file in _CONTROL),
    ),
    ModelRow(
        "control-openpose", "control", "ControlNet 1.1 of OpenPose skeletons",
        Licence("OpenRAIL", f"{HUB}/lllyasviel/control_v11p_sd15_openpose", commercial=True), _all(0.72, cpu=1.45),
        f"{_PASS_ON} The 16-bit variant, 723 MB. {_NO_PIN}",
        "lllyasviel/control_v11p_sd15_openpose", _CONTROL,
    ),
    ModelRow(
        "control-depth", "control", "ControlNet 1.1 of depth",
        Licence("OpenRAIL", f"{HUB}/lllyasviel/control_v11f1p_sd15_depth", commercial=True), _all(0.72, cpu=1.45),
        f"{_PASS_ON} The 16-bit variant, 723 MB. {_NO_PIN}",
        "lllyasviel/control_v11f1p_sd15_depth", _CONTROL,
    ),
    ModelRow(
        "ip-adapter-plus-face", "identity adapter", "IP-Adapter plus-face with its CLIP ViT-H image encoder", _APACHE,
        _all(1.36, cpu=2.7), f"The encoder (1.26 GB in 16 bit) runs once and leaves the device. {_NO_PIN}",
        "h94/IP-Adapter", _files(
            "models/ip-adapter-plus-face_sd15.safetensors",
            *(f"models/{path}" for path in _IMAGE),
        ),
    ),
    ModelRow(
        "ip-adapter-faceid", "identity adapter", "IP-Adapter FaceID (the user's)",
        Licence(_INSIGHTFACE, f"{HUB}/h94/IP-Adapter-FaceID", commercial=False), _all(0.2),
        "Published as pickle and for research only, as it was trained on InsightFace: the user brings safetensors.",
    ),
    # ---- several views at once: portrait ----------------------------------------------------------------------------
    ModelRow(
        "mvdream", "multi-view", "MVDream (SD 2.1, 4 views of 256 px)",
        Licence("OpenRAIL", f"{HUB}/ashawkey/mvdream-sd2.1-diffusers", commercial=True), _all(1.74, cpu=3.5),
        f"An older commit said MIT. The repository's python files are neither fetched nor needed. {_NO_PIN}",
        "ashawkey/mvdream-sd2.1-diffusers", _files(_PIPELINE[1], *_TOKENIZER, *_TEXT, *_UNET, *_VAE),
    ),
    ModelRow(
        "imagedream", "multi-view", "ImageDream (MVDream with an input picture)",
        Licence("OpenRAIL", f"{HUB}/ashawkey/imagedream-ipmv-diffusers", commercial=True), _all(1.9, cpu=3.8),
        f"The image encoder (1.26 GB in 16 bit) runs once. The python files are not fetched. {_NO_PIN}",
        "ashawkey/imagedream-ipmv-diffusers",
        _files(_PIPELINE[1], *_TOKENIZER, *_FEATURES, *_IMAGE, *_TEXT, *_UNET, *_VAE),
    ),
    # ---- an orbit around an object: object --------------------------------------------------------------------------
    ModelRow(
        "svd", "orbit", "Stable Video Diffusion XT", _STABILITY, Memory(3.05, 3.25, 4.5, 4.5, 4.5),
        f"Free below a revenue of 1 million US$ a year. {_NO_PIN}",
        "stabilityai/stable-video-diffusion-img2vid-xt",
        _files(*_PIPELINE, *_FEATURES, *_IMAGE_16, *_UNET_16, *_VAE_16), gated=True,
    ),
    ModelRow(
        "sv3d-u", "orbit", "SV3D, level orbit", _SV3D, Memory(3.05, 3.25, 4.5, 4.5, 4.5),
        f"The card contradicts itself on commercial use, so it counts as none. About 9.4 GB. {_NO_PIN}",
        "stabilityai/sv3d", _files("sv3d_u.safetensors"), gated=True,
    ),
    ModelRow(
        "sv3d-p", "orbit", "SV3D, any orbit", _SV3D, Memory(3.05, 3.25, 4.5, 4.5, 4.5),
        f"The card contradicts itself on commercial use, so it counts as none. About 9.4 GB. {_NO_PIN}",
        "stabilityai/sv3d", _files("sv3d_p.safetensors"), gated=True,
    ),
    # ---- a person in prescribed poses: body, head -------------------------------------------------------------------
    ModelRow(
        "wan-animate", "video", "Wan 2.2 Animate 14B", _APACHE, Memory(None, 5.5, 17.3, 34.9, 17.3),
        f"82.3 GB, the transformer in 32 bit: convert it once (bf16 35 GB, int8 17 GB). {_NO_PIN}",
        "Wan-AI/Wan2.2-Animate-14B-Diffusers", _files(
            *_PIPELINE, *_T5, *_TEXT_SHARDS, *_TRANSFORMER, f"transformer/{_SAFETENSORS}.index.json", *_VAE,
            "image_processor/preprocessor_config.json", "image_encoder/config.json", "image_encoder/*.safetensors",
        ),
    ),
    ModelRow(
        "wan-vace", "video", "Wan 2.1 VACE 1.3B", _APACHE, Memory(4.55, 4.55, 4.55, 4.55, 4.55),
        f"19 GB, of which 11.4 GB are the text encoder, which runs once. {_NO_PIN}",
        "Wan-AI/Wan2.1-VACE-1.3B-diffusers", _files(*_PIPELINE, *_T5, *_TEXT_SHARDS, *_TRANSFORMER, *_VAE),
    ),
    # ---- edits: head, scene -----------------------------------------------------------------------------------------
    ModelRow(
        "flux2-klein", "edit", "FLUX.2 klein 4B", _APACHE, Memory(4.0, 7.75, 15.8, 15.8, 15.8),
        f"About 16 GB; the text encoder (8 GB in 16 bit) runs once an instruction. {_NO_PIN}",
        "black-forest-labs/FLUX.2-klein-4B", _files(
            *_PIPELINE, "tokenizer/*.json", "tokenizer/*.jinja", "tokenizer/merges.txt",
            *_TEXT_SHARDS, *_TRANSFORMER, *_VAE,
        ),
    ),
    # ---- what a picture says about its surface ----------------------------------------------------------------------
    ModelRow(
        "marigold-normals", "surface", "Marigold normals 0.1", _APACHE, _all(2.6, cpu=5.2),
        f"The 16-bit variant. {_NO_PIN}",
        "prs-eth/marigold-normals-v0-1", _SD_16,
    ),
    ModelRow(
        "depth-anything", "surface", "Depth Anything 2, small", _APACHE, _all(0.1),
        f"99 MB. The larger ones are non-commercial. {_NO_PIN}",
        "depth-anything/Depth-Anything-V2-Small-hf", _VISION,
    ),
    ModelRow(
        "moge2", "surface", "MoGe-2 (the user's)", Licence(_MIT, "https://github.com/microsoft/MoGe", commercial=True),
        Memory(), "Points in metres, normals and field of view; package and weights are the user's to install.",
    ),
    # ---- features, similarity, identity -----------------------------------------------------------------------------
    ModelRow(
        "dinov2-small", "features", "DINOv2, small", _APACHE, _all(0.09), _NO_PIN, "facebook/dinov2-small", _VISION,
    ),
    ModelRow(
        "dinov2-base", "features", "DINOv2, base", _APACHE, _all(0.35), _NO_PIN, "facebook/dinov2-base", _VISION,
    ),
    ModelRow(
        "clip-l", "features", "CLIP ViT-L/14, text and image",
        Licence(_MIT, "https://github.com/openai/CLIP/blob/main/LICENSE", commercial=True), _all(0.86, cpu=1.71),
        f"MIT is the code's licence; the hub's card names none for the weights. {_NO_PIN}",
        "openai/clip-vit-large-patch14", _files(
            "config.json", "preprocessor_config.json", "merges.txt", "special_tokens_map.json",
            "tokenizer_config.json", "vocab.json", "model.safetensors",
        ),
    ),
    ModelRow(
        "lpips-vgg", "perceptual", "LPIPS on VGG16 (the user's)",
        Licence(
            "BSD-2-Clause (LPIPS) and BSD-3-Clause (torchvision's VGG16)",
            "https://github.com/richzhang/PerceptualSimilarity/blob/master/LICENSE", commercial=True,
        ),
        _all(0.06), "Published as pickle only: the user brings vgg16.safetensors and lpips.safetensors.",
    ),
    ModelRow(
        "auraface", "identity", "AuraFace 1 (ArcFace R100)", _APACHE, _all(0.3),
        f"A pack for insightface: detector, landmarks, glintr100.onnx. {_NO_PIN}",
        "fal/AuraFace-v1", _files("*.onnx"),
    ),
    ModelRow(
        "insightface-pack", "identity", "A pack of InsightFace (the user's)",
        Licence(_INSIGHTFACE, "https://github.com/deepinsight/insightface", commercial=False), _all(0.35),
        "buffalo_l or antelopev2; never fetched here: unpack it yourself and import the folder.",
    ),
    # ---- adapters to packages that the user installs ----------------------------------------------------------------
    ModelRow(
        "triposplat", "lift", "TripoSplat (the user's)",
        Licence(_MIT, "https://github.com/VAST-AI-Research", commercial=True), Memory(),
        "Package and weights are the user's to install; it needs DINOv3, which has Meta's own licence.",
    ),
    ModelRow(
        "trellis", "lift", "TRELLIS image-large (the user's)",
        Licence(_MIT, f"{HUB}/microsoft/TRELLIS-image-large", commercial=True), Memory(gb24=16.0, gb48=16.0),
        "Linux, 16 GB and compiled extensions, which the user installs.",
    ),
    ModelRow(
        "sam3d-body", "body pose", "SAM 3D Body (the user's)",
        Licence("SAM License", "https://github.com/facebookresearch/sam-3d-body", commercial=True), Memory(),
        "Limited fields of use; a copy of the licence must accompany it. Installed by the user who accepted it.",
    ),
    ModelRow("matting", "matting", "A matting network (the user's)", _UNKNOWN, Memory(), _USERS),
    ModelRow("parsing", "parsing", "A human-parsing network (the user's)", _UNKNOWN, Memory(), _USERS),
    ModelRow("restoration", "restoration", "A face super-resolution network (the user's)", _UNKNOWN, Memory(), _USERS),
    ModelRow("albedo", "albedo", "An intrinsic-albedo network (the user's)", _UNKNOWN, Memory(), _USERS),
)  # fmt: skip
