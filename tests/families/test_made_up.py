"""A model class that no table knows, with modules of other names: it loads, is measured, drops its
image, decodes without it, and is as it was.
"""

import copy
import inspect
import re

import models
import torch
from torch import nn
from transformers import Cache, DynamicCache, LlavaForConditionalGeneration, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaConfig,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.models.llava.modeling_llava import LlavaModel

import probe
from probe.reducers import VisionZip
from tests.families.checks import CHECKS, Case, results

IN_LLAMA = inspect.signature(LlamaModel.forward).parameters
CACHE = "cache" if "cache" in IN_LLAMA else "past_key_values"  # as this transformers calls it
OTHER_NAMES = {  # of the library's modules: what they are called here
    "layers": "floors",
    "embed_tokens": "words",
    "self_attn": "gaze",
    "input_layernorm": "before_gaze",
    "post_attention_layernorm": "before_thought",
    "mlp": "thought",
    "q_proj": "asks",
    "k_proj": "offers",
    "v_proj": "carries",
    "o_proj": "brings",
}


class Gaze(nn.Module):
    """Attention."""

    def __init__(self, config, number):
        super().__init__()
        self.config, self.number, self.is_causal = config, number, True
        width, self.head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        kept = config.num_key_value_heads * self.head_dim
        self.asks = nn.Linear(width, width, bias=False)
        self.offers = nn.Linear(width, kept, bias=False)
        self.carries = nn.Linear(width, kept, bias=False)
        self.brings = nn.Linear(width, width, bias=False)

    def forward(self, states, mask, angles, kept, **options):
        def of_heads(projected):
            return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        query, key, value = (
            of_heads(each(states)) for each in (self.asks, self.offers, self.carries)
        )
        query, key = apply_rotary_pos_emb(query, key, *angles)
        if kept is not None:
            key, value = kept.update(key, value, self.number)
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = kernel(
            self, query, key, value, mask, dropout=0.0, scaling=self.scaling, **options
        )
        return self.brings(output.flatten(-2)), weights


class Floor(nn.Module):
    """A layer."""

    def __init__(self, config, number):
        super().__init__()
        self.gaze, self.thought = Gaze(config, number), LlamaMLP(config)
        self.before_gaze, self.before_thought = (
            LlamaRMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2)
        )

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        position_embeddings=None,
        kept: Cache | None = None,
        **options,
    ):
        states = self.before_gaze(hidden_states)
        seen, _ = self.gaze(states, attention_mask, position_embeddings, kept, **options)
        hidden_states = hidden_states + seen
        return hidden_states + self.thought(self.before_thought(hidden_states))


class House(PreTrainedModel):
    """The decoder."""

    config_class = LlamaConfig
    _supports_sdpa = _supports_attention_backend = True
    _input_embed_layer = "words"

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        floors = range(config.num_hidden_layers)
        self.floors = nn.ModuleList([Floor(config, number) for number in floors])
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def set_input_embeddings(self, value):
        self.words = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **options,
    ):
        states = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        kept = past_key_values if cache is None else cache
        if use_cache and kept is None:
            kept = DynamicCache(config=self.config)
        if position_ids is None:
            past = 0 if kept is None else kept.get_seq_length()
            position_ids = torch.arange(past, past + states.shape[1], device=states.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: kept},
        )
        angles = self.rotary_emb(states, position_ids)
        for floor in self.floors:
            states = floor(
                states,
                attention_mask=mask,
                position_embeddings=angles,
                position_ids=position_ids,
                kept=kept,
                **options,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(states), **{CACHE: kept})


class Lighthouse(LlavaForConditionalGeneration):
    """LLaVA on such a decoder."""

    def __init__(self, config):
        super().__init__(config)
        self.model.language_model = House(config.text_config)


def renamed(weights):
    """The library's weights under the names of this file."""
    decoder = "model.language_model."
    found = {}
    for name, values in weights.items():
        parts = name.removeprefix(decoder).split(".")
        own = ".".join(OTHER_NAMES.get(part, part) for part in parts)
        found[decoder + own if name.startswith(decoder) else name] = values
    return found


def made_up():
    known, processor = models.llava15()
    model = Lighthouse._from_config(copy.deepcopy(known.config), attn_implementation="sdpa").eval()
    model.load_state_dict(renamed(known.state_dict()))
    return model, known, processor


def test_an_unknown_class_can_what_a_known_one_can():
    model, known, processor = made_up()
    case = Case(probe.load(model, processor=processor))
    with torch.no_grad():
        expected = known(**case.answered[0]).logits
        torch.testing.assert_close(model(**case.answered[0]).logits, expected)
    found = results(case)
    assert found == {**dict.fromkeys(CHECKS, "yes"), "compressor, cross": "no: it has none"}


def test_its_record_is_that_of_the_known_class():
    model, known, processor = made_up()
    records = [
        probe.measure(
            probe.load(each, processor=processor), models.picture(0), "what is it?", "a red circle"
        )
        for each in (model, known)
    ]
    for stack in ("vision", "llm"):
        for name in ("mass", "entropy", "received"):
            difference = abs(records[0][stack][name] - records[1][stack][name]).max()
            assert float(difference) < 1e-5


class Glance(Gaze):
    """Attention with one projection for query, key and value, and one in a sequence at its end."""

    def __init__(self, config, number):
        super().__init__(config, number)
        self.sizes = [each.out_features for each in (self.asks, self.offers, self.carries)]
        del self.asks, self.offers, self.carries, self.brings
        width = config.hidden_size
        self.everything = nn.Linear(width, sum(self.sizes), bias=False)
        self.sends = nn.Sequential(nn.Linear(width, width, bias=False), nn.Dropout(0.1))

    def forward(self, states, mask, angles, kept, **options):
        parts = self.everything(states).split(self.sizes, -1)
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts
        )
        query, key = apply_rotary_pos_emb(query, key, *angles)
        if kept is not None:
            key, value = kept.update(key, value, self.number)
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = kernel(
            self, query, key, value, mask, dropout=0.0, scaling=self.scaling, **options
        )
        return self.sends(output.flatten(-2)), weights


class Tower(House):
    """A decoder whose layers have names, in a dict."""

    def __init__(self, config):
        super().__init__(config)
        floors = list(self.floors)
        for number, floor in enumerate(floors):
            floor.gaze = Glance(config, number)
        self.floors = nn.ModuleDict({f"floor {n}": floor for n, floor in enumerate(floors)})
        self._in_order = floors

    def __getattribute__(self, name):
        in_forward = name == "floors" and "_in_order" in vars(self)
        return vars(self)["_in_order"] if in_forward else super().__getattribute__(name)


class Telescope(LlavaForConditionalGeneration):
    """LLaVA on such a decoder, with an encoder and a projector of other names."""

    def __init__(self, config):
        super().__init__(config)
        base = self.model
        base.language_model = Tower(config.text_config)
        base.eye, base.glass = base.vision_tower, base.multi_modal_projector
        del base.vision_tower, base.multi_modal_projector
        base.__class__ = Sight


class Sight(LlavaModel):
    def get_image_features(self, pixel_values, **options):
        output = self.eye(pixel_values, output_hidden_states=True, return_dict=True)
        seen = output.hidden_states[self.config.vision_feature_layer][:, 1:]
        output.pooler_output = tuple(self.glass(seen))
        return output


def harder():
    known, processor = models.llava15()
    model = Telescope._from_config(copy.deepcopy(known.config), attn_implementation="sdpa").eval()
    weights = renamed(known.state_dict())
    for old, new in {"model.vision_tower": "model.eye", "multi_modal_projector": "glass"}.items():
        weights = {name.replace(old, new): values for name, values in weights.items()}
    found = {}
    for name, values in weights.items():
        found[re.sub(r"floors\.(\d+)", r"floors.floor \1", name).replace("brings", "sends.0")] = (
            values
        )
    for number in range(known.config.text_config.num_hidden_layers):
        own = f"model.language_model.floors.floor {number}.gaze."
        parts = [found.pop(f"{own}{each}.weight") for each in ("asks", "offers", "carries")]
        found[f"{own}everything.weight"] = torch.cat(parts)
    model.load_state_dict(found)
    return model, known, processor


def test_fused_projections_layers_in_a_dict_and_an_encoder_of_another_name():
    model, known, processor = harder()
    case = Case(probe.load(model, processor=processor))
    with torch.no_grad():
        expected = known(**case.answered[0]).logits
        torch.testing.assert_close(model(**case.answered[0]).logits, expected)
    assert results(case) == {**dict.fromkeys(CHECKS, "yes"), "compressor, cross": "no: it has none"}
    records = [
        probe.measure(
            probe.load(each, processor=processor),
            models.picture(0),
            "what is it?",
            "a red circle",
            contribution=True,
        )
        for each in (model, known)
    ]
    for stack in ("vision", "llm"):
        for name in ("mass", "received", "contribution"):
            difference = abs(records[0][stack][name] - records[1][stack][name]).max()
            assert float(difference) < 1e-5, (stack, name)
    with VisionZip(3, 2)(case.subject):
        assert case.subject.encode(models.picture(0), "what is it?").types.vision.sum() == 5
