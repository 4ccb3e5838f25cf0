"""Last layers that read the keys of earlier ones (the small Gemma 4): a model leaves tokens out of
them whose logits are not asked for, and no block or measurement does.
"""

import pytest
import torch

import probe
from tests.families.checks import QUESTION, RESPONSE, SAME, Case, picture
from tests.families.layer_models import LAYER_FAMILIES
from tests.families.models import FAMILIES

LAST = 2  # the layer that reads the keys of the one before it


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def case(request):
    return Case(probe.load(*LAYER_FAMILIES["gemma4_small"](attn=request.param)))


@pytest.mark.parametrize("mode", ["mask", "mask_frozen", "zero"])
@torch.no_grad()
def test_generating_in_a_drop_is_the_same_with_and_without_a_cache(case, mode):
    model, prompt = case.subject.model, case.prompts[0]
    plain = case.logits(case.answered[0])
    for layers in ([LAST], [0, LAST]):
        with probe.drop_vision(model, layers, mode):
            made = case.scores(prompt)
            words = {**prompt, "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
            options = {"output_logits": True, "return_dict_in_generate": True, "use_cache": False}
            again = torch.stack(model.generate(**words, **options).logits)
            first = model(**prompt, use_cache=False).logits[0, -1]
        assert (made - again).abs().max() < SAME
        assert (made[0, 0] - first).abs().max() < SAME
    assert torch.equal(plain, case.logits(case.answered[0]))


def test_every_token_is_a_query_of_the_last_layer(case):
    """The response's logits alone are asked for, and the prompt's words have their rows."""
    found = probe.measure(case.subject, case.shown(0), QUESTION, [*RESPONSE], stacks=["llm"])
    mass = found["llm"]["mass"].isel(sample=0).sel(query_type="vision", key_type="vision")
    assert (mass.isel(layer=LAST) > 0).all()


def test_a_conversation_keeps_its_cache(case):
    chat = case.subject.chat(case.shown(0))
    for question in (QUESTION, "what is blue ?"):
        answer = chat.ask(question, max_new_tokens=3)
        assert answer == case.subject.answer(chat.image, chat.messages[:-1], max_new_tokens=3)


@pytest.mark.parametrize("layers", [[0], [0, 1], [LAST]])
def test_removing_is_refused_in_every_layer(case, layers):
    """The last layer would read keys of vision that an earlier one no longer has."""
    refusal = "got layer 2 .* which reads those of an earlier layer"
    with (
        pytest.raises(probe.ProbeError, match=refusal),
        probe.drop_vision(case.subject.model, layers, "remove"),
    ):
        case.logits(case.answered[0])


def test_inputs_of_each_layer_keep_cases_and_gradients_from_running_on_embeddings():
    subject = probe.load(*FAMILIES["gemma4"](hidden_size_per_layer_input=8))
    sample = probe.Sample("a", picture(0), QUESTION, answer="red")
    table = probe.drop_sweep(subject, [sample], {"last": [2]}, max_new_tokens=2, progress=False)
    assert table.attrs["sharing"] == "it takes an LLM that is given one embedding of each token"
    with pytest.raises(probe.ProbeError, match=r"attribution_patching: .*per_layer_inputs beside"):
        probe.attribution_patching(subject, [sample], corruption="blank", progress=False)
