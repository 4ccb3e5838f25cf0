"""Tiny LLaVA-Mini models of random weights, and batches for them."""

import torch

from probe.models.llava_mini import LlavaMiniConfig, LlavaMiniForConditionalGeneration

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "model_type": "clip_vision_model",
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 90,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "model_type": "llama",
}
IMAGE = 90


def build(**fields):
    torch.manual_seed(0)
    config = LlavaMiniConfig(
        **{
            "vision_config": dict(VISION),
            "text_config": dict(TEXT),
            "compressor_size": 2,
            "num_prefusion_layers": 2,
            **fields,
        }
    )
    return LlavaMiniForConditionalGeneration(config).eval()


def pixels(*shape, seed=0):
    return torch.randn(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def ids(*parts, model=None, tokens=4):
    """Numbers are words, "image" is an image, ("video", n) a video of n frames."""
    tokens = model.config.image_seq_length if model is not None else tokens
    row = []
    for part in parts:
        if isinstance(part, int):
            row.append(part)
        else:
            row += [IMAGE] * (tokens * (part[1] if isinstance(part, tuple) else 1))
    return torch.tensor([row])


def batch(*rows, left=True):
    length = max(row.shape[1] for row in rows)
    fill = [(length - row.shape[1], 0) if left else (0, length - row.shape[1]) for row in rows]
    pad = torch.nn.functional.pad
    masks = [pad(torch.ones_like(row), f) for row, f in zip(rows, fill, strict=True)]
    return {
        "input_ids": torch.cat([pad(row, f) for row, f in zip(rows, fill, strict=True)]),
        "attention_mask": torch.cat(masks),
    }
