"""Compression and fusion inside the LLM: its first layers see the whole image, the later ones only
compressed tokens.

    layers 1 .. K:    [vision rows of all frames | text]        K = num_prefusion_layers
    compression:      each frame's vision rows -> C x C tokens, at the placeholders
    layers K+1 .. :   [text with C x C tokens]

So the cache of the first layers is longer than that of the others. Generated words also run through
the first layers and see all vision rows there. The model has no pre-fusion stack, nothing is
averaged over frames, and `fuse_mask` has no effect.

Source: arXiv 2501.03895, Table 12 (one sentence; there is no public code).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from probe.models.llava_mini.cache_argument import cache_keyword
from probe.models.llava_mini.frames import Frame, chunks
from probe.models.llava_mini.vision import join_tiles, with_whole


def run(
    model: Any,
    input_ids: Int[Tensor, "row token"],
    frames: Sequence[Frame],
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache | None,
    use_cache: bool | None,
) -> BaseModelOutputWithPast:
    """Runs a prompt with its images (`frames`), or what follows it with the prompt's cache."""
    llm = model.language_model
    first = model.config.num_prefusion_layers
    if use_cache and cache is None:
        cache = DynamicCache()
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            "LLaVA-Mini in the LLM: expected a mask (row, token), got a static cache's; "
            "use a dynamic cache"
        )
    placeholder = input_ids == model.config.image_token_id
    text = model.get_input_embeddings()(input_ids.masked_fill(placeholder, 0))
    vision, seen = _vision(model, frames, text)
    none = seen.new_zeros(len(seen), 0)
    # visible columns of the first layers, and of the others
    columns, words = getattr(cache, "llava_mini_columns", (none, none))
    words = torch.cat([words, torch.ones_like(placeholder)], dim=1)
    words = words if attention_mask is None else attention_mask.bool()
    new_words = words[:, -input_ids.shape[1] :] & ~placeholder
    columns = torch.cat([columns, seen, new_words], dim=1)
    hidden = _layers(llm, range(first), torch.cat([vision, text], dim=1), columns, None, cache)
    if cache is not None:
        setattr(cache, "llava_mini_columns", (columns, words))  # noqa: B010

    text = hidden[:, vision.shape[1] :]
    if frames:
        tokens = _compress(model, frames, hidden, seen)
        text = text.masked_scatter(placeholder[..., None], tokens.to(text.dtype))
    text = _layers(llm, range(first, len(llm.layers)), text, words, position_ids, cache)
    return BaseModelOutputWithPast(
        last_hidden_state=llm.norm(text), **cache_keyword(BaseModelOutputWithPast, cache)
    )


def _vision(
    model: Any, frames: Sequence[Frame], text: Float[Tensor, "row token dim"]
) -> tuple[Float[Tensor, "row patch dim"], Bool[Tensor, "row patch"]]:
    """The vision rows of each batch row's frames in sequence, and which of them are not padding."""
    rows: list[list[Tensor]] = [[text[row, :0]] for row in range(len(text))]
    for chunk in chunks(frames, model.config.frames_per_chunk):
        pixels = torch.stack([pixels for pixels, _, _ in chunk])
        patches = model.patches(pixels)
        with_tiles = with_whole(join_tiles(patches), patches)
        projected = model.multi_modal_projector(with_tiles)
        for (_, row, _), patch in zip(chunk, projected, strict=True):
            rows[row].append(patch.to(text))
    vision = [torch.cat(row) for row in rows]
    filled = [row.new_ones(len(row), dtype=torch.bool) for row in vision]
    padded = nn.utils.rnn.pad_sequence(vision, batch_first=True)
    return padded, nn.utils.rnn.pad_sequence(filled, batch_first=True)


def _compress(
    model: Any, frames: Sequence[Frame], hidden: Tensor, seen: Tensor
) -> Float[Tensor, "token dim"]:
    """The tokens of every frame, in order, from its vision rows after the first layers."""
    side = model.config.patches_per_side
    tokens = []
    used = [0] * len(hidden)
    for pixels, row, _ in frames:
        views = len(pixels)
        start = used[row]
        used[row] += views * side**2
        rows = hidden[row, start : used[row]]
        if model.config.compression != "none":
            compressed_views = max(views - 1, 1)  # not the whole image after its sub-images
            rows = model.compress(rows[None, : compressed_views * side**2])[0]
        tokens.append(rows)
    return torch.cat(tokens)


def _layers(
    llm: Any,
    indices: range,
    hidden: Float[Tensor, "row token dim"],
    visible: Bool[Tensor, "row key"],
    position_ids: Tensor | None,
    cache: Cache | None,
) -> Float[Tensor, "row token dim"]:
    """Some layers of the LLM, whose cache may be longer than other layers'."""
    if position_ids is None:
        positions = (visible.long().cumsum(1) - 1).clamp_min(0)
        position_ids = positions[:, -hidden.shape[1] :]
    mask = _causal(llm.config._attn_implementation, visible, hidden)
    embedded = llm.rotary_emb(hidden, position_ids=position_ids)
    for i in indices:
        hidden = llm.layers[i](
            hidden,
            attention_mask=mask,
            position_embeddings=embedded,
            **cache_keyword(type(llm.layers[i]).forward, cache),
        )
    return hidden


def _causal(implementation: str | None, visible: Bool[Tensor, "row key"], hidden: Tensor) -> Tensor:
    """The mask by which each query sees the visible keys up to itself: (row, key) for flash, else
    additive.
    """
    if "flash" in (implementation or ""):
        return visible
    queries = hidden.shape[1]
    keys = visible.shape[1]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=hidden.device).tril(keys - queries)
    itself = torch.eye(keys, dtype=torch.bool, device=hidden.device)[
        -queries:
    ]  # so that every query sees a key
    seen = seen & (visible[:, None, None, :] | itself)
    return torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(
        ~seen, torch.finfo(hidden.dtype).min
    )
