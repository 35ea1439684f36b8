"""Embeddings of prompts by UMT5: the encoder, larger than some video models, runs once, leaves, and is remembered."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from backend.context import Context
from backend.diffusion import gate
from backend.diffusion.load import freed, load, read_tensors
from backend.diffusion.placement import Placement
from backend.diffusion.running import plain
from backend.errors import UserError
from backend.files import whole_file

LENGTH: Final = 512
"""Tokens that Wan's models were trained with."""


def embed_prompts(
    folder: Path,
    prompts: tuple[str, ...],
    placement: Placement,
    context: Context,
    *,
    cache: Path | None = None,
    length: int = LENGTH,
) -> list[Tensor]:
    """One embedding [1, length, D] per prompt, on the CPU, in float32.

    Args:
        folder: Of a Wan model in the published layout (`tokenizer`, `text_encoder`).
        prompts: Texts, the empty one included.
        placement: Where the encoder works; it is loaded only if an embedding is not remembered.
        context: For cancelling; embeddings are remembered in its scratch folder if `cache` is None.
        cache: Where embeddings are remembered, by model, text and length.
        length: Tokens.

    Raises:
        UserError: If the folder has no such encoder.
        Cancelled: Between prompts.
    """
    place = cache or context.scratch / "prompts"
    files = [place / f"{_key(folder, prompt, length)}.safetensors" for prompt in prompts]
    found = [_remembered(file) for file in files]
    if all(embedding is not None for embedding in found):
        return [embedding for embedding in found if embedding is not None]
    context.raise_if_cancelled()
    gate.quiet_imports()
    encode = _encoder(folder, placement, context, length)
    made: list[Tensor] = []
    for prompt, file, known in zip(prompts, files, found, strict=True):
        context.progress("read the prompt", len(made), len(prompts))
        embedding = known if known is not None else encode(prompt)
        if known is None:
            _remember(file, embedding)
        made.append(embedding)
    del encode
    freed(placement.device)
    context.progress("read the prompt", 1, 1)
    return made


def _encoder(folder: Path, placement: Placement, context: Context, length: int) -> Any:
    """A function from text to embedding; the library's own pipeline cleans and pads the text."""
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline
    from transformers import UMT5EncoderModel
    from transformers.models.t5.tokenization_t5 import T5Tokenizer

    pipe: Any = WanPipeline(
        tokenizer=plain(T5Tokenizer, folder, "tokenizer"),
        text_encoder=load(UMT5EncoderModel, folder, "text_encoder", placement=placement, context=context),
        vae=None,  # pyright: ignore[reportArgumentType]
        scheduler=None,  # pyright: ignore[reportArgumentType]
        transformer=None,
    )

    def encode(prompt: str) -> Tensor:
        with torch.no_grad():
            embedding, _ = pipe.encode_prompt(
                prompt=prompt,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
                device=torch.device(placement.device),
            )
        return embedding.float().cpu()

    return encode


def _key(folder: Path, prompt: str, length: int) -> str:
    """Of everything that an embedding depends on; files are told apart by name and size, which is quick."""
    parts = [prompt, str(length)]
    for name in ("tokenizer", "text_encoder"):
        files = sorted((folder / name).glob("*")) if (folder / name).is_dir() else []
        parts += [f"{name}/{file.name}:{file.stat().st_size}" for file in files]
        # Small files decide by their content: a configuration of the same length may say something else.
        parts += [hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.name.endswith("config.json")]
        parts += [hashlib.sha256(_header(f)).hexdigest() for f in files if f.suffix == ".safetensors"]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _header(file: Path) -> bytes:
    """The beginning and the end of a weights file: two models of one shape differ there."""
    with file.open("rb") as opened:
        first = opened.read(65536)
        opened.seek(max(file.stat().st_size - 65536, 0))
        return first + opened.read()


def _remembered(file: Path) -> Tensor | None:
    if not file.is_file():
        return None
    try:
        return read_tensors(file)["embedding"]
    except (UserError, KeyError):  # damaged: it is made again
        return None


def _remember(file: Path, embedding: Tensor) -> None:
    from safetensors.torch import save

    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file, durable=False) as opened:
        opened.write(save({"embedding": embedding.contiguous()}))
