"""Attention processors that diffusers' UNets take: image tokens beside the text, and several views as one sequence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TextAndImage = tuple[Tensor, Tensor, Tensor]
"""Text [B, L, D], image tokens [B, K, D], how much they count [B]."""


class CrossViewAttention:
    """Self-attention over all places of all views of a group (MVDream): [B V, L, C] is attended as [B, V L, C]."""

    def __init__(self, views: int) -> None:
        """Consecutive `views` of a batch belong together."""
        self.views = views

    def __call__(self, attn: Any, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        """What diffusers' `Attention` calls; the first dimension is a multiple of the views."""
        batch, length, channels = hidden_states.shape
        joined = hidden_states.reshape(batch // self.views, self.views * length, channels)
        out = _attend(attn, attn.to_q(joined), attn.to_k(joined), attn.to_v(joined))
        return attn.to_out[1](attn.to_out[0](out)).reshape(batch, length, channels)


class ImageTokenAttention(nn.Module):
    """Cross-attention to the text and, with weights of its own, to image tokens (IP-Adapter, ImageDream).

    Attributes:
        to_k_ip: Keys of the image tokens, [channels, D].
        to_v_ip: Their values.
    """

    def __init__(self, token_size: int, channels: int) -> None:
        """For tokens of `token_size` in a layer of `channels`."""
        super().__init__()
        self.to_k_ip = nn.Linear(token_size, channels, bias=False)
        self.to_v_ip = nn.Linear(token_size, channels, bias=False)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | TextAndImage, *_: object, **__: object
    ) -> Tensor:
        """What diffusers' `Attention` calls; plain text leaves the image tokens out."""
        query = attn.to_q(hidden_states)
        if isinstance(encoder_hidden_states, Tensor):
            text = encoder_hidden_states
            out = _attend(attn, query, attn.to_k(text), attn.to_v(text))
        else:
            text, tokens, scale = encoder_hidden_states
            out = _attend(attn, query, attn.to_k(text), attn.to_v(text))
            image = _attend(attn, query, self.to_k_ip(tokens), self.to_v_ip(tokens))
            out = out + scale[:, None, None] * image
        return attn.to_out[1](attn.to_out[0](out))


def _attend(attn: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of [B, L, C] in the layer's heads."""
    q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def join(text: Tensor, tokens: Tensor | None, scale: float | Tensor) -> Tensor | TextAndImage:
    """What a UNet with `ImageTokenAttention` takes as `encoder_hidden_states`."""
    if tokens is None:
        return text
    share = torch.as_tensor(scale, device=text.device).to(text.dtype).expand(len(text))
    return text, tokens.to(text), share
