"""LLMs whose layers are of an unusual kind: several streams of hidden states side by side, a
convolution beside attention, arguments by place and a state that the layer keeps itself, inputs for
each layer beside the embeddings and keys of an earlier one.

model, processor = LAYER_FAMILIES["llava_gemma3n"]()
"""

from collections.abc import Callable
from functools import partial

from tests.families.models import CLIP, VOCABULARY, Family, gemma4, square, text
from tests.families.processors import IMAGE

LLAVA = partial(
    square,
    "LlavaForConditionalGeneration",
    "llava",
    16,
    vision_config=CLIP,
    image_token_index=IMAGE,
)
STREAMS = text(
    "gemma3n_text",
    head_dim=8,
    num_hidden_layers=4,
    sliding_window=512,
    layer_types=["sliding_attention", "full_attention"] * 2,
    vocab_size_per_layer_input=VOCABULARY,
    hidden_size_per_layer_input=8,
    laurel_rank=4,
    num_kv_shared_layers=0,
    activation_sparsity_pattern=[0.0] * 4,
    altup_num_inputs=2,
)
CONVOLUTIONS = text(
    "falcon_h1",
    head_dim=8,
    mamba_d_ssm=32,
    mamba_n_heads=4,
    mamba_d_head=8,
    mamba_n_groups=1,
    mamba_d_state=8,
    mamba_chunk_size=16,
    mamba_expand=1,
)
BY_PLACE = text(
    "recurrent_gemma",
    head_dim=8,
    lru_width=32,
    attention_window_size=512,
    block_types=["recurrent", "attention"],
)

LAYER_FAMILIES: dict[str, Callable[..., Family]] = {
    "llava_gemma3n": partial(LLAVA, text_config=STREAMS),
    "llava_falcon_h1": partial(LLAVA, text_config=CONVOLUTIONS),
    "llava_recurrent_gemma": partial(LLAVA, text_config=BY_PLACE),
    "gemma4_small": partial(gemma4, hidden_size_per_layer_input=8, num_kv_shared_layers=1),
}
