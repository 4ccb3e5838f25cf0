"""VoCo-LLaMA: the LLM itself compresses an image into a few VoCo tokens, by a rule on its mask.

Prompt: <image tokens> newline <voco> ... <voco> newline, then the conversation. With first and last
the positions of the first and last VoCo token of a row, on top of causality and padding:

    a query up to `last`     sees the keys up to `last`
    a query after `last`     sees the keys from `first` on only: neither the image, nor BOS, nor any
                             text before the VoCo tokens

Positions are not renumbered. The rule holds in every kernel (the authors' code applies it under
sdpa only: under eager their text reads the image), and in decoding, where new tokens are queries
after `last` (their code does not decode at this commit). A generated VoCo token would move `last`:
pass `suppress_tokens=[config.voco_token_id]` to `generate`, as `probe` does. A row without VoCo
tokens is plainly causal; rows that are padding see all keys, so that nothing divides by zero.

Source: arXiv 2406.12275; Yxxxb/VoCo-LLaMA at 3b6e14d.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, no_type_check
from weakref import WeakKeyDictionary

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from probe.models.llava_mini.cache_argument import pop_cache
from probe.models.original import llava_names
from probe.models.original.layout import Layout, Settings
from probe.models.original.shapes import Shapes
from probe.models.rivals.base import (
    Pixels,
    RivalConfig,
    RivalForConditionalGeneration,
    RivalModel,
    TokenIds,
)
from probe.models.rivals.processing import (
    RivalProcessor,
    processor_options,
    square_image_processor,
)

VOCO = "<voco>"
VOCO_TOKEN_ID = 32000
TOKENIZER_FILES = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant of the image. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@no_type_check
@strict
class VocoConfig(RivalConfig):
    """voco_token_id: the id of the token <voco>."""

    model_type = "voco_llama"

    voco_token_id: int = VOCO_TOKEN_ID

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.image_seq_length = self.patches_per_side**2


class VocoModel(RivalModel):
    config: VocoConfig
    _supports_flash_attn = False  # it takes no mask that differs between queries
    NOTE = "text after the VoCo tokens sees neither the image nor BOS"

    def __init__(self, config: VocoConfig):
        super().__init__(config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.post_init()

    def vision_tokens(self, pixel_values: Pixels) -> Float[Tensor, "image patch hidden"]:
        """The patches of each image, which the LLM compresses."""
        patches = self.patch_features(pixel_values)
        return self.multi_modal_projector(patches)


class VocoForConditionalGeneration(RivalForConditionalGeneration):
    config: VocoConfig
    MODEL = VocoModel
    _supports_flash_attn = False

    def __init__(self, config: VocoConfig):
        super().__init__(config)
        self._ids_of: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()  # by cache

    def visible(
        self, input_ids: TokenIds, attention_mask: Tensor | None = None
    ) -> Bool[Tensor, "row query key"]:
        """Which keys each query of a whole sequence sees."""
        rows, length = input_ids.shape
        device = input_ids.device
        real = torch.ones(rows, length, dtype=torch.bool, device=device)
        if attention_mask is not None:
            real = attention_mask[:, :length].to(device).bool()
        position = torch.arange(length, device=device)
        causal = position[None, :] <= position[:, None]
        is_voco = (input_ids == self.config.voco_token_id) & real
        has_voco = is_voco.any(1)
        first = is_voco.to(torch.uint8).argmax(1)
        last = length - 1 - is_voco.flip(1).to(torch.uint8).argmax(1)
        is_after = has_voco[:, None] & (position > last[:, None])
        is_early = position < first[:, None]
        hidden = is_after[:, :, None] & is_early[:, None, :]
        seen = causal & real[:, None, :] & ~hidden
        return seen | ~seen.any(-1, keepdim=True)

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs,
    ):
        """As `RivalForConditionalGeneration.forward`, under the rule of the VoCo tokens.

        What new tokens see follows from the ids of the whole sequence, which are remembered by its
        cache; a mask (row, 1, query, key) is taken as it is, as `generate` passes it. Raises
        ValueError for a cache whose beginning this model has not seen.
        """
        cache = cache if past_key_values is None else past_key_values
        whole = None
        if input_ids is not None and (attention_mask is None or attention_mask.ndim < 4):
            whole = self._with_past(input_ids, cache)
            visible = self.visible(whole, attention_mask)
            attention_mask = self._additive(visible[:, -input_ids.shape[1] :])
        arguments = {"past_key_values": cache, **kwargs}
        outputs = super().forward(input_ids, pixel_values, attention_mask, **arguments)
        filled = pop_cache(dict(outputs)) if isinstance(outputs, dict) else None
        if filled is not None and whole is not None:
            self._ids_of[filled] = whole
        return outputs

    def _with_past(self, input_ids: TokenIds, cache: Cache | None) -> Int[Tensor, "row position"]:
        """The ids of a whole sequence, of which `input_ids` is the end."""
        past = 0 if cache is None else cache.get_seq_length()
        if not past:
            return input_ids
        known = self._ids_of.get(cache)
        if known is None or known.shape[1] < past:
            raise ValueError(
                "VoCo-LLaMA: expected a cache that this model filled from the prompt on, got one "
                "that can't tell where the VoCo tokens are"
            )
        return torch.cat([known[:, :past], input_ids], 1)

    def prepare_inputs_for_generation(self, input_ids, *args, attention_mask=None, **kwargs):
        """The mask of this step's queries, from the ids of the whole sequence."""
        prepared = super().prepare_inputs_for_generation(
            input_ids, *args, attention_mask=attention_mask, **kwargs
        )
        queries = prepared["input_ids"].shape[1]
        visible = self.visible(input_ids, attention_mask)
        prepared["attention_mask"] = self._additive(visible[:, -queries:])
        return prepared

    def _additive(self, visible: Bool[Tensor, "row query key"]) -> Float[Tensor, "row 1 query key"]:
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(self.dtype).min)[:, None]


TEMPLATE = """\
{%- macro words(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for item in content if item.type == 'text' -%}{{ item.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set found = namespace(images=0) -%}
{%- for message in messages if message.content is not string -%}
{%- for item in message.content if item.type == 'image' -%}
{%- set found.images = found.images + 1 -%}
{%- endfor -%}
{%- endfor -%}
{{- '<image>\\n' * found.images -}}
{{- VOCO ~ '\\n' if found.images -}}
{%- set given = messages and messages[0].role == 'system' -%}
{{- (words(messages[0].content) | trim if given else SYSTEM) ~ ' ' -}}
{%- for message in (messages[1:] if given else messages) -%}
{%- set text = (words(message.content) | trim).replace('\\n', '') -%}
{{- 'USER: ' ~ text ~ ' ' if message.role == 'user' else 'ASSISTANT: ' ~ text ~ '</s>' -}}
{%- endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt -}}
"""


def chat_template(voco_tokens: int = 2) -> str:
    """The prompts that VoCo-LLaMA was trained with: images and VoCo tokens first, then Vicuna's
    conversation without newlines. Released models have 2 VoCo tokens.

    >>> "<voco><voco><voco>" in chat_template(3)
    True
    """
    template = TEMPLATE.replace("SYSTEM", repr(SYSTEM))
    return template.replace("VOCO", repr(VOCO * voco_tokens))


def _recognises(settings: Settings, names: Collection[str], folder: Path) -> bool:
    """LLaVA-1.5's tensors, and a word for a VoCo token."""
    if not any(name.endswith("mm_projector.0.weight") for name in names):
        return False
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if "voco_token_id" in settings or not files:
        return settings.get("vocab_size", 0) > settings.get("voco_token_id", VOCO_TOKEN_ID)
    return any(VOCO in file.read_text(encoding="utf-8", errors="ignore") for file in files)


def _config(settings: Settings, vision_config: Settings, shapes: Shapes) -> VocoConfig:
    return VocoConfig(
        **llava_names.shared_fields(settings, vision_config, ("voco_token_id",)),
        voco_token_id=settings.get("voco_token_id", VOCO_TOKEN_ID),
    )


def _processor(
    config: VocoConfig, settings: Settings, tokenizer: Any, folders: list[Path]
) -> RivalProcessor:
    if VOCO not in tokenizer.get_vocab():
        tokenizer.add_tokens([VOCO], special_tokens=True)
    options = processor_options(config, settings)
    options["chat_template"] = chat_template()
    return RivalProcessor(square_image_processor(config), tokenizer, **options)


LAYOUT = Layout(
    "VoCo-LLaMA",
    VocoForConditionalGeneration,
    _recognises,
    _config,
    llava_names.renamed,
    _processor,
)
from_original = LAYOUT.from_original
