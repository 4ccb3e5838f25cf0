"""Random tiny models of the LLaVA family with processors of the same shape as the real checkpoints.

Everything is built offline in well under a second: configurations shrunk to 3 layers, tokenizers
trained here on a few sentences, the image processors and chat templates of the checkpoints.

    model, processor = llava15()            # LLaVA-1.5: USER / ASSISTANT, image cropped to a square
    model, processor = llava_next_mistral()  # any resolution, grouped queries, sliding window, [INST]
    model, processor = llava15(layers=2, side=48, attn="eager")

The tokenizers keep what makes real ones awkward: the post-processor adds BOS, `<image>` is a
special token, and the merges were learnt across role borders ("yes USER:" is one token).
"""

import json
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import models as algorithms
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from probe.models.llava_mini import (
    LlavaMiniConfig,
    LlavaMiniForConditionalGeneration,
    LlavaMiniProcessor,
)

# What the templates of the checkpoints render, images first in every message as they do.
IMAGES = "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
TEXTS = "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}"
LLAVA15 = (  # llava-hf/llava-1.5-7b-hf
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    + IMAGES
    + TEXTS
    + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
VICUNA = (  # llava-hf/llava-v1.6-vicuna-7b-hf: it renders the system prompt twice, and so do we
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }}"
    "{% else %}{{ m['role'].upper() + ': ' }}{% endif %}"
    + IMAGES
    + TEXTS
    + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (  # llava-hf/llava-v1.6-mistral-7b-hf: no system role
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    + IMAGES
    + "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'][0]['text'] + '</s> ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA3 = (  # llava-hf/llama3-llava-next-8b-hf: a default system prompt, headers, trimmed contents
    "{% if messages[0]['role'] != 'system' %}<|start_header_id|>system<|end_header_id|>\n\n"
    "You are a helpful assistant.<|eot_id|>{% endif %}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    + IMAGES
    + "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] | trim }}{% endfor %}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>"
    "{{ '\n\n' }}{% endif %}"
)

SENTENCES = [
    "A chat between a curious human and an artificial intelligence assistant. USER: what is in the picture? "
    "ASSISTANT: a red circle is above a blue square",
    "USER: how many circles are there? ASSISTANT: there are three circles in the picture",
    "[INST] where is the red square? [/INST] a red square is in the middle [INST] a circle? [/INST] above it",
    "You are a helpful assistant. user assistant system what colour is it? it is red, a picture of a circle",
    "USER: is it red? ASSISTANT: yes USER: is it blue? ASSISTANT: yes USER: is it there? ASSISTANT: yes USER: is",
] * 4
PINPOINTS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # in tiles, as in the checkpoints


def _wrap(
    tokenizer: Tokenizer, bos: str, eos: str, pad: str, special: tuple[str, ...]
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in (bos, eos, pad, "<image>", *special)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, padding_side="left"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>", *special]})
    return fast


@lru_cache
def sentencepiece_tokenizer() -> Tokenizer:
    """Llama 2's and Mistral's kind: spaces are "▁" and nothing but the merges says where a token
    may end.
    """
    tokenizer = Tokenizer(algorithms.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=264,
        special_tokens=["<unk>", "<s>", "</s>"],
        max_token_length=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    state = json.loads(tokenizer.to_str())
    for byte in range(256):  # what the merges can't spell is spelt in bytes
        state["model"]["vocab"][f"<0x{byte:02X}>"] = len(state["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(state))


@lru_cache
def bytelevel_tokenizer() -> Tokenizer:
    """Llama 3's kind: byte-level BPE within words."""
    tokenizer = Tokenizer(algorithms.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def _copy(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(tokenizer.to_str())


def llama_tokenizer() -> PreTrainedTokenizerFast:
    return _wrap(_copy(sentencepiece_tokenizer()), "<s>", "</s>", "<pad>", ())


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    special = ("<|start_header_id|>", "<|end_header_id|>")
    return _wrap(_copy(bytelevel_tokenizer()), "<|begin_of_text|>", "<|eot_id|>", "<pad>", special)


def _text(
    config: type, tokenizer, layers: int, max_positions: int, **more
) -> LlamaConfig | MistralConfig:
    defaults = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    return config(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        max_position_embeddings=max_positions,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{**defaults, **more},
    )


def _vision(side: int, patch: int, layers: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=16,
        image_size=side,
        patch_size=patch,
        initializer_factor=4.0,
    )


def _llava(
    tokenizer,
    template,
    *,
    side=32,
    patch=8,
    layers=3,
    attn="sdpa",
    max_positions=2048,
    seed=0,
    **more,
):
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=_vision(side, patch, layers),
        vision_feature_layer=-2,
        text_config=_text(LlamaConfig, tokenizer, layers, max_positions, **more),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // patch) ** 2,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attn).eval()
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return model, LlavaProcessor(images, tokenizer, **_processing(patch, template))


def _next(
    tokenizer,
    template,
    text,
    *,
    side=32,
    patch=8,
    layers=3,
    attn="sdpa",
    max_positions=4096,
    seed=0,
    **more,
):
    torch.manual_seed(seed)
    pinpoints = [[rows * side, columns * side] for rows, columns in PINPOINTS]
    config = LlavaNextConfig(
        vision_config=_vision(side, patch, layers),
        vision_feature_layer=-2,
        image_grid_pinpoints=pinpoints,
        text_config=_text(text, tokenizer, layers, max_positions, **more),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = LlavaNextForConditionalGeneration._from_config(config, attn_implementation=attn).eval()
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=pinpoints,
    )
    return model, LlavaNextProcessor(images, tokenizer, **_processing(patch, template))


def _processing(patch: int, template: str) -> dict:
    return {
        "patch_size": patch,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": template,
    }


def llava15(**overrides):
    """LLaVA-1.5: CLIP, Llama, one square view of (side / patch)² tokens. `overrides`: side, patch,
    layers, attn, max_positions, seed, and any field of the text configuration. Returns (model,
    processor).
    """
    return _llava(llama_tokenizer(), LLAVA15, **overrides)


def llava_llama3(**overrides):
    """LLaVA-1.5's shape with Llama 3's tokenizer, headers and default system prompt. Returns
    (model, processor)."""
    return _llava(llama3_tokenizer(), LLAMA3, **overrides)


def llava_next_vicuna(**overrides):
    """LLaVA-NeXT with Vicuna: base view and up to 4 tiles, newline tokens. Returns (model,
    processor).
    """
    return _next(llama_tokenizer(), VICUNA, LlamaConfig, **overrides)


def llava_next_mistral(**overrides):
    """LLaVA-NeXT with Mistral: grouped queries and a sliding window of 64, which bites here.
    (model, processor)."""
    overrides = {"num_key_value_heads": 2, "sliding_window": 64, **overrides}
    return _next(llama_tokenizer(), MISTRAL, MistralConfig, **overrides)


def llava_mini(
    *,
    llama3=False,
    side=32,
    patch=8,
    layers=3,
    attn="sdpa",
    max_positions=2048,
    seed=0,
    ratio=1,
    aspect="square",
    text=None,
    **fields,
):
    """LLaVA-Mini: `ratio` is its processor's resolution_ratio; `fields` are those of its config
    (compressor_size, num_prefusion_layers, compression, fusion, frames_per_chunk), `text` those of
    its text config. (model, processor)
    """
    torch.manual_seed(seed)
    tokenizer = llama3_tokenizer() if llama3 else llama_tokenizer()
    image = tokenizer.convert_tokens_to_ids("<image>")
    text_config = _text(
        LlamaConfig, tokenizer, layers, max_positions, **{"num_key_value_heads": 2, **(text or {})}
    )
    text_config.vocab_size = (
        image if image == len(tokenizer) - 1 else len(tokenizer)
    )  # the placeholder has no row
    config = LlavaMiniConfig(
        vision_config=_vision(side, patch, layers),
        text_config=text_config,
        **{"compressor_size": 2, "num_prefusion_layers": 2, **fields},
    )
    model = LlavaMiniForConditionalGeneration._from_config(config, attn_implementation=attn).eval()
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    processor = LlavaMiniProcessor(
        images,
        tokenizer,
        compressor_size=config.compressor_size,
        resolution_ratio=ratio,
        aspect=aspect,
        view_tokens=config.patches_per_side**2 if config.compression == "none" else None,
        image_token_id=config.image_token_id,
        chat_template=LLAMA3 if llama3 else VICUNA,
    )
    return model, processor


FACTORIES = (llava15, llava_llama3, llava_next_vicuna, llava_next_mistral)


def picture(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    """Smooth random colours: images that survive resizing and differ by seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
