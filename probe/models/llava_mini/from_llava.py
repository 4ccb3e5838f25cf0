"""A LLaVA-Mini made of a LLaVA: its vision encoder, projector and LLM, and new parts between them.

    mini = from_llava(llava, compressor_size=1, num_prefusion_layers=4)                        # for stage 2
    plain = from_llava(llava, compression="none", num_prefusion_layers=0)                      # for stage 1

The compressor starts at random. Pre-fusion starts as a copy of the LLM's first layers (the authors
start it at random, or from weights of their own): a word then reads the image as it would in the
LLM, from the first step on.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from probe.models.llava_mini.chat_templates import template_for
from probe.models.llava_mini.compressor import LlavaMiniCompressor
from probe.models.llava_mini.configuration import LlavaMiniConfig
from probe.models.llava_mini.modeling import LlavaMiniForConditionalGeneration
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
    """A LLaVA-Mini that takes the parts of `llava` over: the same tensors, so let go of `llava`
    afterwards.

    `llava` is any model with a vision tower, a projector and a Llama where
    `LlavaForConditionalGeneration` has them: a LLaVA-Mini too, whose compressor and pre-fusion are
    then left behind. `fields` are `LlavaMiniConfig`'s. New parts are drawn from `seed`;
    `copy_prefusion=False` leaves the pre-fusion layers as drawn. Raises ValueError where pre-fusion
    can't be like the LLM: that has other layers than Llama's, or fewer to copy.
    """
    theirs: Any = llava
    _expect_llama(
        theirs.model.language_model.layers, fields.get("num_prefusion_layers", 4), copy_prefusion
    )
    shared = {name: getattr(llava.config, name) for name in SHARED}
    config = LlavaMiniConfig(
        vision_config=llava.config.vision_config,
        text_config=llava.config.text_config,
        **shared,
        **fields,
    )
    with torch.device("meta"):
        mini = LlavaMiniForConditionalGeneration(config)
    mine: Any = mini.model
    mine.vision_tower, mine.multi_modal_projector = (
        theirs.model.vision_tower,
        theirs.model.multi_modal_projector,
    )
    mine.language_model, mini.lm_head = theirs.model.language_model, theirs.lm_head
    mini.generation_config = theirs.generation_config
    _new_parts(mini, seed)
    if copy_prefusion:
        mine.copy_llm_to_prefusion()
    return mini


def processor_for(mini: LlavaMiniForConditionalGeneration, processor: Any) -> LlavaMiniProcessor:
    """A LLaVA-Mini's processor with the images and words of another one, a LLaVA's for instance.

    Its chat template is kept if it writes an end of turn behind an answer: without one, no end
    would be learned.
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
        said = [
            {"role": who, "content": [{"type": "text", "text": who}]}
            for who in ("user", "assistant")
        ]
        end = END_OF_TURN.match(
            text := processor.apply_chat_template(said), text.rindex("assistant") + len("assistant")
        )
        if end is not None and end[1]:
            return processor.chat_template
    return template_for(processor.tokenizer)


def _new_parts(mini: LlavaMiniForConditionalGeneration, seed: int) -> None:
    """Compressor and pre-fusion, with weights as transformers draws them; the global seed is left
    as it was.
    """
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
            f"from_llava: expected num_prefusion_layers of at most {len(layers)}, the LLM's layers, got {wanted}"
        )
