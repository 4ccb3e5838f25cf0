"""The cache is found whatever its argument is called, and what is dropped stays dropped."""

import inspect

import models
import pytest
import torch
from prompts import decoded, row, six_layers
from torch import nn
from transformers import Cache, DynamicCache

import probe
from probe.errors import ProbeError
from probe.hooks.layer_arguments import cache_argument, output_cache
from probe.interventions import drop_vision
from probe.reducers import FastV

QUESTIONS = ("what is in the picture?", "how many circles are there?", "where is the red square?")


@pytest.mark.parametrize("options", [{}, {"mode": "remove"}, {"mode": "mask_frozen"}])
def test_with_vision_dropped_in_all_layers_the_answer_does_not_depend_on_the_image(options):
    subject = six_layers()
    for question in QUESTIONS:
        answers = []
        with drop_vision(subject, range(6), **options):
            for seed in range(2):
                inputs = row(subject, 1, question, seed)
                answers.append(subject.generate_ids(inputs, 8, min_new_tokens=8)[0])
        assert torch.equal(*answers)


class Renamed(nn.Module):
    """A decoder layer that is handed the cache under another name, as in transformers 5.24; `wrap`
    may hide what it is.
    """

    def __init__(self, layer, wrap):
        super().__init__()
        self.layer, self.wrap = layer, wrap

    def __call__(self, *args, **kwargs):
        caches = {name: value for name, value in kwargs.items() if isinstance(value, Cache)}
        others = {name: value for name, value in kwargs.items() if name not in caches}
        for cache in caches.values():
            others["kv_store"] = self.wrap(cache)
        return super().__call__(*args, **others)

    def forward(self, hidden_states, kv_store=None, **kwargs):
        cache = kv_store[0] if isinstance(kv_store, list) else kv_store
        return self.layer(hidden_states, **cache_argument(self.layer, cache), **kwargs)


def renamed(wrap=lambda cache: cache):
    """LLaVA-1.5 of six renamed layers."""
    model, processor = models.llava15(layers=6, side=24)
    layers = model.get_decoder().layers
    for index, layer in enumerate(layers):
        layers[index] = Renamed(layer, wrap)
    return probe.load(model, processor=processor)


BLOCKS = {
    "mask": lambda subject: drop_vision(subject, (1, 2)),
    "remove": lambda subject: drop_vision(subject, (1, 2), mode="remove"),
    "FastV": lambda subject: probe.reduced(subject, FastV(2, 0.25)),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_layer_may_call_its_cache_as_it_likes(block):
    found = []
    for subject in (six_layers(), renamed()):
        with block(subject):
            found.append(decoded(subject, row(subject))[1])
    assert torch.equal(*found)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_cache_that_cannot_be_found_is_an_error_and_never_a_new_prompt(block):
    subject = renamed(wrap=lambda cache: [cache])
    with block(subject), pytest.raises(ProbeError, match="that the layer was not seen to get"):
        decoded(subject, row(subject))


@torch.no_grad()
def test_a_mask_over_more_than_the_tokens_is_an_error_without_a_cache():
    subject = six_layers()
    with drop_vision(subject, 1), pytest.raises(ProbeError, match="a mask over 9 for 1 tokens"):
        subject.model(torch.tensor([[300]]), attention_mask=torch.ones(1, 9))


@torch.no_grad()
def test_a_cache_of_another_class_is_an_error():
    subject = six_layers()
    (name,) = cache_argument(subject.model, None)
    message = f"expected a transformers Cache, got {name} of type tuple"
    with drop_vision(subject, 1), pytest.raises(ProbeError, match=message):
        subject.model(**row(subject), **{name: ((), ())})


@torch.no_grad()
def test_arguments_of_a_model_may_be_positional():
    subject, found = six_layers(), []
    inputs = row(subject)
    names = list(inspect.signature(type(subject.model).forward).parameters)[1:]
    values = [inputs.get(name) for name in names[: 1 + names.index("attention_mask")]]
    with drop_vision(subject, (1, 2)):
        for args, kwargs in ((), inputs), (values, {}):
            output = subject.model(*args, **kwargs, use_cache=True)
            assert isinstance(output_cache(output), DynamicCache)
            found.append(output.logits)
    assert torch.equal(*found)
