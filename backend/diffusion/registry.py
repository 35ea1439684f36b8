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
_OPENRAIL_M = Licence("CreativeML-OpenRAIL-M", f"{HUB}/spaces/CompVis/stable-diffusion-license", commercial=True)
_STABILITY = Licence("Stability-AI-Community", "https://stability.ai/community-license-agreement", commercial=True)
_SV3D = Licence("Stability-AI-Community or sv3d-nc-community", f"{HUB}/stabilityai/sv3d", commercial=False)
_INSIGHTFACE = "non-commercial research (InsightFace)"
_UNKNOWN = Licence("unknown", "", commercial=False)

_PASS_ON = "The licence's use restrictions must be passed on."
_NO_HASHES = "Sizes and hashes of the other files: unknown until the first download."
_NO_PIN = "Commit, sizes and hashes: unknown until the first download."
_USERS = "Whatever the user installs; nobody here knows its licence, so it counts as non-commercial."

_SAFETENSORS = "diffusion_pytorch_model.safetensors"
_SAFETENSORS_16 = "diffusion_pytorch_model.fp16.safetensors"
_SCHEDULER = "scheduler/scheduler_config.json"
_CONFIGS = ("text_encoder/config.json", "unet/config.json", "vae/config.json")
_SD = _files("model_index.json", _SCHEDULER, "tokenizer/*", *_CONFIGS)
_SD_16 = ("text_encoder/model.fp16.safetensors", f"unet/{_SAFETENSORS_16}", f"vae/{_SAFETENSORS_16}")
_MV = _files(  # no model_index.json: it names modules of the repository's own
    _SCHEDULER,
    "tokenizer/*",
    *_CONFIGS,
    "text_encoder/model.safetensors",
    f"unet/{_SAFETENSORS}",
    f"vae/{_SAFETENSORS}",
)
_WAN = _files(
    "model_index.json", _SCHEDULER, "tokenizer/*", "text_encoder/*.json", "text_encoder/*.safetensors",
    "transformer/*.json", "transformer/*.safetensors", "vae/config.json", f"vae/{_SAFETENSORS}",
)  # fmt: skip
_VISION = _files("config.json", "preprocessor_config.json")

ROWS: Final[tuple[ModelRow, ...]] = (
    # ---- Stable Diffusion 1.5 and what steers it: portrait, scene ---------------------------------------------------
    ModelRow(
        "sd15", "base", "Stable Diffusion 1.5", _OPENRAIL_M, _all(2.2, cpu=4.3),
        f"{_PASS_ON} The 16-bit variant; its hashes were read on copies of the repository. {_NO_HASHES}",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        (
            *_SD,
            ModelFile(_SD_16[0], 246144864, "77795e2023adcf39bc29a884661950380bd093cf0750a966d473d1718dc9ef4e"),
            ModelFile(_SD_16[1], 1719125304, "c83908253f9a64d08c25fc90874c9c8aef9a329ce1ca5fb909d73b0c83d1ea21"),
            ModelFile(_SD_16[2], 167335342, "4fbcf0ebe55a0984f5a5e00d8c4521d52359af7229bb4d81890039d2aa16dd7c"),
        ),
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    ),
    ModelRow(
        "sd15-inpaint", "inpainting", "Stable Diffusion 1.5 inpainting", _OPENRAIL_M, _all(2.2, cpu=4.3),
        f"{_PASS_ON} The 16-bit variant. {_NO_HASHES}",
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        (
            *_SD,
            ModelFile(_SD_16[0]),
            ModelFile(_SD_16[1], None, "24b788b4a777748377cc20364eea4ae113c8c42f4468c16bc8c02fdae5492af9"),
            ModelFile(_SD_16[2]),
        ),
        "8a4288a76071f7280aedbdb3253bdb9e9d5d84bb",
    ),
    ModelRow(
        "control-mediapipe-face", "control", "ControlNet of MediaPipe's face mesh",
        Licence("OpenRAIL", f"{HUB}/CrucibleAI/ControlNetMediaPipeFace", commercial=True), _all(0.72, cpu=1.45),
        f"{_PASS_ON} Only the 16-bit variant (723 MB) is safetensors. {_NO_HASHES}",
        "CrucibleAI/ControlNetMediaPipeFace",
        (
            ModelFile("diffusion_sd15/config.json"),
            ModelFile(
                f"diffusion_sd15/{_SAFETENSORS_16}", None,
                "9fb50465b4fd7e15f0dc7df8031767e57309cfda2917082485bcf6c11bedb540",
            ),
        ),
        "f6ed75cc495674bea8bf7409ef3d0e5bfb7d8c90",
    ),
    ModelRow(
        "control-openpose", "control", "ControlNet 1.1 of OpenPose skeletons",
        Licence("OpenRAIL", f"{HUB}/lllyasviel/control_v11p_sd15_openpose", commercial=True), _all(0.72, cpu=1.45),
        f"{_PASS_ON} The 16-bit variant, 723 MB. {_NO_HASHES}",
        "lllyasviel/control_v11p_sd15_openpose",
        (
            ModelFile("config.json"),
            ModelFile(_SAFETENSORS_16, None, "b25b1125e870275550b2a7de289056cb3c236c01c293bd5ba883657b1c006e3e"),
        ),
        "9ae9f970358db89e211b87c915f9535c6686d5ba",
    ),
    ModelRow(
        "control-depth", "control", "ControlNet 1.1 of depth",
        Licence("OpenRAIL", f"{HUB}/lllyasviel/control_v11f1p_sd15_depth", commercial=True), _all(0.72, cpu=1.45),
        f"{_PASS_ON} The 16-bit variant, 723 MB. Sizes and hashes: unknown until the first download.",
        "lllyasviel/control_v11f1p_sd15_depth", _files("config.json", _SAFETENSORS_16),
        "539f99181d33db39cf1af2e517cd8056785f0a87",
    ),
    ModelRow(
        "ip-adapter-plus-face", "identity adapter", "IP-Adapter plus-face with its CLIP ViT-H image encoder", _APACHE,
        _all(1.36, cpu=2.7),
        f"The encoder (1.26 GB in 16 bit, published in 32) runs once and leaves the device. {_NO_HASHES}",
        "h94/IP-Adapter",
        (
            ModelFile(
                "models/ip-adapter-plus-face_sd15.safetensors", None,
                "1c9edc21af6f737dc1d6e0e734190e976cfacf802d6b024b77aa3be922f7569b",
            ),
            ModelFile("models/image_encoder/config.json"),
            ModelFile(
                "models/image_encoder/model.safetensors", None,
                "6ca9667da1ca9e0b0f75e46bb030f7e011f44f86cbfb8d5a36590fcd7507b030",
            ),
        ),
        "018e402774aeeddd60609b4ecdb7e298259dc729",
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
        "An older commit said MIT. The repository's python files are neither fetched nor needed. Published in 16 bit. "
        "Sizes and hashes: unknown until the first download.",
        "ashawkey/mvdream-sd2.1-diffusers", _MV, "503bb19fc2b2bc542c2afdb7d73ac87a7cbc2253",
    ),
    ModelRow(
        "imagedream", "multi-view", "ImageDream (MVDream with an input picture)",
        Licence("OpenRAIL", f"{HUB}/ashawkey/imagedream-ipmv-diffusers", commercial=True), _all(1.9, cpu=3.8),
        "The image encoder (1.26 GB in 16 bit) runs once. The repository's python files are not fetched. "
        "Sizes and hashes: unknown until the first download.",
        "ashawkey/imagedream-ipmv-diffusers",
        (*_MV, *_files("image_encoder/config.json", "image_encoder/model.safetensors")),
        "cf85e6f13a34fe613f9e2eb7076ee42806fee878",
    ),
    # ---- an orbit around an object: object --------------------------------------------------------------------------
    ModelRow(
        "svd", "orbit", "Stable Video Diffusion XT", _STABILITY, Memory(3.05, 3.25, 4.5, 4.5, 4.5),
        f"Free below a revenue of 1 million US$ a year. The 16-bit variant. {_NO_HASHES}",
        "stabilityai/stable-video-diffusion-img2vid-xt",
        (
            *_files("model_index.json", _SCHEDULER, "feature_extractor/*"),
            *_files("image_encoder/config.json", "image_encoder/model.fp16.safetensors"),
            *_files("unet/config.json", f"unet/{_SAFETENSORS_16}", "vae/config.json"),
            ModelFile(_SD_16[2], None, "af602cd0eb4ad6086ec94fbf1438dfb1be5ec9ac03fd0215640854e90d6463a3"),
        ),
        "9e43909513c6714f1bc78bcb44d96e733cd242aa", gated=True,
    ),
    ModelRow(
        "sv3d-u", "orbit", "SV3D, level orbit", _SV3D, Memory(3.05, 3.25, 4.5, 4.5, 4.5),
        f"The card contradicts itself on commercial use, so it counts as none. 9.36 GB. {_NO_PIN}",
        "stabilityai/sv3d", _files("sv3d_u.safetensors"), gated=True,
    ),
    ModelRow(
        "sv3d-p", "orbit", "SV3D, any orbit", _SV3D, Memory(3.05, 3.25, 4.5, 4.5, 4.5),
        f"The card contradicts itself on commercial use, so it counts as none. 9.37 GB. {_NO_PIN}",
        "stabilityai/sv3d", _files("sv3d_p.safetensors"), gated=True,
    ),
    # ---- a person in prescribed poses: body, head -------------------------------------------------------------------
    ModelRow(
        "wan-animate", "video", "Wan 2.2 Animate 14B", _APACHE, Memory(None, 5.5, 17.3, 34.9, 17.3),
        f"82.3 GB, the transformer in 32 bit: convert it once (bf16 35 GB, int8 17 GB). {_NO_PIN}",
        "Wan-AI/Wan2.2-Animate-14B-Diffusers",
        (
            *_WAN,
            *_files("image_processor/*"),
            *_files("image_encoder/config.json", "image_encoder/model.safetensors"),
        ),
    ),
    ModelRow(
        "wan-vace", "video", "Wan 2.1 VACE 1.3B", _APACHE, Memory(4.55, 4.55, 4.55, 4.55, 4.55),
        f"19 GB, of which 11.4 GB are the text encoder, which runs once. {_NO_PIN}",
        "Wan-AI/Wan2.1-VACE-1.3B-diffusers", _WAN,
    ),
    # ---- edits: head, scene -----------------------------------------------------------------------------------------
    ModelRow(
        "flux2-klein", "edit", "FLUX.2 klein 4B", _APACHE, Memory(4.0, 7.75, 15.8, 15.8, 15.8),
        "About 16 GB; the text encoder (8 GB in 16 bit) runs once an instruction. "
        "Sizes and hashes: unknown until the first download.",
        "black-forest-labs/FLUX.2-klein-4B",
        _files(
            "model_index.json", _SCHEDULER, "tokenizer/*", "text_encoder/*.json", "text_encoder/*.safetensors",
            "transformer/*.json", "transformer/*.safetensors", "vae/config.json", f"vae/{_SAFETENSORS}",
        ),
        "e7b7dc27f91deacad38e78976d1f2b499d76a294",
    ),
    # ---- what a picture says about its surface ----------------------------------------------------------------------
    ModelRow(
        "marigold-normals", "surface", "Marigold normals 0.1", _APACHE, _all(2.6, cpu=5.2),
        f"The 16-bit variant. {_NO_PIN}",
        "prs-eth/marigold-normals-v0-1", (*_SD, *_files(*_SD_16)),
    ),
    ModelRow(
        "depth-anything", "surface", "Depth Anything 2, small", _APACHE, _all(0.1),
        f"99 MB. The larger ones are non-commercial. {_NO_HASHES}",
        "depth-anything/Depth-Anything-V2-Small-hf",
        (
            *_VISION,
            ModelFile("model.safetensors", None, "3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70"),
        ),
        "5426e4f0f36572d16453bbda7a8389317b1bef99",
    ),
    ModelRow(
        "moge2", "surface", "MoGe-2 (the user's)", Licence("MIT", "https://github.com/microsoft/MoGe", commercial=True),
        Memory(), "Points in metres, normals and field of view; package and weights are the user's to install.",
    ),
    # ---- features, similarity, identity -----------------------------------------------------------------------------
    ModelRow(
        "dinov2-small", "features", "DINOv2, small", _APACHE, _all(0.09), _NO_HASHES, "facebook/dinov2-small",
        (
            *_VISION,
            ModelFile("model.safetensors", None, "ae1e99fcefd534ed978cdeb8326f08030c96e28b7a81ffcbc98a857c84d14be1"),
        ),
        "ed25f3a31f01632728cabb09d1542f84ab7b0056",
    ),
    ModelRow(
        "dinov2-base", "features", "DINOv2, base", _APACHE, _all(0.35),
        "Sizes and hashes: unknown until the first download.",
        "facebook/dinov2-base", (*_VISION, ModelFile("model.safetensors")), "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    ),
    ModelRow(
        "clip-l", "features", "CLIP ViT-L/14, text and image",
        Licence("MIT", "https://github.com/openai/CLIP/blob/main/LICENSE", commercial=True), _all(0.86, cpu=1.71),
        f"MIT is the code's licence; the hub's card names none for the weights. {_NO_HASHES}",
        "openai/clip-vit-large-patch14",
        (
            *_files("*.json", "merges.txt"),
            ModelFile("model.safetensors", None, "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"),
        ),
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
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
        "auraface", "identity", "AuraFace 1 (ArcFace R100)", _APACHE, _all(0.26),
        "Only the recogniser, 261 MB: the detector and landmark graphs of the repository are InsightFace's, whose "
        "weights are for non-commercial use.",
        "fal/AuraFace-v1",
        (ModelFile("glintr100.onnx", 260694151, "a7933ea5330113b01c9b60351d8f4c33003f145d8470ac5f0e52ee2effe25c60"),),
        "af6d057c9b0ec4071d4c49c80e3539258798b609",
    ),
    ModelRow(
        "insightface-pack", "identity", "A pack of InsightFace (the user's)",
        Licence(_INSIGHTFACE, "https://github.com/deepinsight/insightface", commercial=False), _all(0.35),
        "buffalo_l or antelopev2; never fetched here: unpack it yourself and import the folder.",
    ),
    # ---- adapters to packages that the user installs ----------------------------------------------------------------
    ModelRow(
        "triposplat", "lift", "TripoSplat (the user's)",
        Licence("MIT", "https://github.com/VAST-AI-Research", commercial=True), Memory(),
        "Package and weights are the user's to install; it needs DINOv3, which has Meta's own licence.",
    ),
    ModelRow(
        "trellis", "lift", "TRELLIS image-large (the user's)",
        Licence("MIT", f"{HUB}/microsoft/TRELLIS-image-large", commercial=True), Memory(gb24=16.0, gb48=16.0),
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
