"""A LLaVA-Mini made from a LLaVA: its vision encoder, projector and LLM, with new parts between.

    mini = from_llava(llava, compressor_size=1, num_prefusion_layers=4)         # for stage 2
    plain = from_llava(llava, compression="none", num_prefusion_layers=0)       # for stage 1

The compressor is initialised at random, pre-fusion as a copy of the LLM's first layers, so that
words read the image as in the LLM from the first step. (The authors initialise it at random, or
from pretrained weights.)
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from probe.models.llava_mini.chat_templates import template_for
from probe.models.llava_mini.compressor import LlavaMiniCompressor
from probe.models.llava_mini.conditional_generation import LlavaMiniForConditionalGeneration
from probe.models.llava_mini.configuration import LlavaMiniConfig
from probe.models.llava_mini.prefusion import LlavaMiniPrefusion
from probe.models.llava_mini.processing import END_OF_TURN, LlavaMiniProcessor

SHARED = (
    "image_token_index",
    "vision_feature_layer",
    "projector_hidden_act",
    "multimodal_projector_bias",
    "tie_word_embeddings",
)


def from_llava(
    llava: PreTrainedModel, *, copy_prefusion: bool = True, seed: int = 0, **fields: Any
) -> LlavaMiniForConditionalGeneration:
    """A LLaVA-Mini with the parts of `llava`. It shares their tensors, so do not use `llava` again.

    `llava` is any model with a vision tower, a projector and a Llama under the names of
    `LlavaForConditionalGeneration`; the compressor and pre-fusion of a LLaVA-Mini are replaced.
    `fields` are those of `LlavaMiniConfig`. New parts are drawn from `seed`; `copy_prefusion=False`
    keeps the pre-fusion layers random. Raises ValueError where the LLM's layers are not Llama's, or
    fewer than pre-fusion copies.
    """
    source: Any = llava
    llm = source.model.language_model
    _expect_llama(llm.layers, fields.get("num_prefusion_layers", 4), copy_prefusion)
    shared = {name: getattr(llava.config, name) for name in SHARED}
    config = LlavaMiniConfig(
        vision_config=llava.config.vision_config,
        text_config=llava.config.text_config,
        **shared,
        **fields,
    )
    with torch.device("meta"):
        mini = LlavaMiniForConditionalGeneration(config)
    inner: Any = mini.model
    inner.vision_tower = source.model.vision_tower
    inner.multi_modal_projector = source.model.multi_modal_projector
    inner.language_model = llm
    mini.lm_head = source.lm_head
    mini.generation_config = source.generation_config
    _new_parts(mini, seed)
    if copy_prefusion:
        inner.copy_llm_to_prefusion()
    return mini


def processor_for(mini: LlavaMiniForConditionalGeneration, processor: Any) -> LlavaMiniProcessor:
    """A LLaVA-Mini's processor with the image processor and tokenizer of another, such as a
    LLaVA's.

    The chat template is kept if it closes an answer with an end of turn, which the model must
    learn.
    """
    config = mini.config
    return LlavaMiniProcessor(
        processor.image_processor,
        processor.tokenizer,
        compressor_size=config.compressor_size,
        view_tokens=config.patches_per_side**2 if config.compression == "none" else None,
        resolution_ratio=getattr(processor, "resolution_ratio", 1),
        aspect=getattr(processor, "aspect", "square"),
        image_token_id=config.image_token_id,
        chat_template=_closing_template(processor),
    )


def _closing_template(processor: Any) -> str:
    if getattr(processor, "chat_template", None):
        messages = [
            {"role": role, "content": [{"type": "text", "text": role}]}
            for role in ("user", "assistant")
        ]
        text = processor.apply_chat_template(messages)
        end = END_OF_TURN.match(text, text.rindex("assistant") + len("assistant"))
        if end is not None and end[1]:
            return processor.chat_template
    return template_for(processor.tokenizer)


def _new_parts(mini: LlavaMiniForConditionalGeneration, seed: int) -> None:
    """Initialises compressor and pre-fusion as transformers does; keeps the global seed."""
    inner: Any = mini.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if inner.compressor is not None:
            old = inner.compressor
            heads = old.attention.num_heads
            inner.compressor = LlavaMiniCompressor(
                old.attention.config, old.query.shape[1], old.size, heads
            )
        inner.prefusion = LlavaMiniPrefusion(mini.config.text_config, len(inner.prefusion.layers))
        for part in (inner.compressor, inner.prefusion):
            if part is not None:
                part.apply(mini._init_weights)
                part.to(inner.language_model.device, inner.language_model.dtype)


def _expect_llama(layers: Any, wanted: int, copied: bool) -> None:
    if wanted and not isinstance(layers[0], LlamaDecoderLayer):
        raise ValueError(
            f"from_llava: expected an LLM with Llama's layers, got {type(layers[0]).__name__}"
        )
    if copied and wanted > len(layers):
        raise ValueError(
            f"from_llava: expected num_prefusion_layers of at most {len(layers)}, the LLM's "
            f"layers, got {wanted}"
        )
