"""What reducers inside the LLM are told of positions is one thing, however a model rotates."""

import pytest
import torch
from transformers import AutoConfig
from transformers.models.cohere2 import modeling_cohere2 as cohere
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek
from transformers.models.llama import modeling_llama as llama

import probe
from probe.hooks.layer_input import HiddenStates, LayerInput
from probe.reducers import DART, SparseVLM
from tests.families.checks import QUESTION, picture
from tests.families.models import FAMILIES, TEXT, text

LENGTH, WIDTH = 5, 8
ROPE = {"rope_type": "default", "rope_theta": 100.0}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": WIDTH,
    "qk_nope_head_dim": WIDTH,
    "v_head_dim": WIDTH,
}


def by_llama(ones, tables):
    return llama.apply_rotary_pos_emb(ones, ones, *tables)[0]


def by_cohere(ones, tables):
    return cohere.apply_rotary_pos_emb(ones, ones, *tables)[0]


def by_deepseek(ones, table):
    return deepseek.apply_rotary_emb(ones, ones, table)[0]


@pytest.mark.parametrize(
    ("kind", "fields", "embedding", "rotate"),
    [
        ("llama", {}, llama.LlamaRotaryEmbedding, by_llama),
        ("cohere2", {}, cohere.Cohere2RotaryEmbedding, by_cohere),
        ("deepseek_v2", LATENT, deepseek.DeepseekV2RotaryEmbedding, by_deepseek),
    ],
)
def test_positions_are_cosines_and_sines_of_halves(kind, fields, embedding, rotate):
    fields = {**TEXT, "head_dim": WIDTH, "rope_parameters": ROPE, **fields}
    config = AutoConfig.for_model(kind, **fields)
    hidden = torch.zeros(1, LENGTH, TEXT["hidden_size"])
    given = embedding(config)(hidden, position_ids=torch.arange(LENGTH)[None])
    arguments = {"position_embeddings": given}
    model, _ = FAMILIES["llava"]()
    layer_input = LayerInput(model, 0, hidden, arguments, HiddenStates(), lambda hidden: None)
    cos, sin = layer_input.positions()
    ones = torch.ones(1, 1, LENGTH, WIDTH)
    own = rotate(ones, given)[0, 0]
    found = llama.apply_rotary_pos_emb(ones, ones, cos, sin)[0][0, 0]
    torch.testing.assert_close(found @ found.T, own @ own.T)  # what distance alone contributes
    assert cos.shape == sin.shape == (1, LENGTH, WIDTH)


@pytest.mark.parametrize("reducer", [DART(1, 0.5), SparseVLM(tokens=(288,), layers=(0,))])
def test_reducers_run_where_rotations_are_complex_numbers(reducer):
    """DeepSeek-V2's, as Llama 4's."""
    config = text("deepseek_v2", first_k_dense_replace=3, n_routed_experts=4, **LATENT)
    subject = probe.load(*FAMILIES["llava"](text_config=config))
    inputs = subject.encode(picture(0), QUESTION)
    with torch.no_grad():
        whole = subject.model(**inputs).logits
        with reducer(subject):
            reduced = subject.model(**inputs).logits
        assert not torch.equal(whole[:, -1], reduced[:, -1])
        assert torch.equal(subject.model(**inputs).logits, whole)
