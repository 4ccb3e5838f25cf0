"""Sparse attention: a module that chooses keys by their content is observed as it is, and no edit
of its calls is taken for one that leaves nothing of an image.
"""

import pytest
import transformers

import probe
from probe.errors import ProbeError
from probe.hooks.attention_call import as_bool
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import stacks
from tests.families.checks import Case, measured
from tests.families.models import FAMILIES, VISION, build, text
from tests.families.patch_models import INDEXER, LATENT, ROUTED
from tests.families.processors import IMAGE

CLASS = "MistralLarge4ForConditionalGeneration"
if not hasattr(transformers, CLASS):
    pytest.skip(f"this transformers has no {CLASS}", allow_module_level=True)


def sparse(chosen):
    """A model whose queries see at most so many tokens, which it chooses."""
    options = {**ROUTED, **LATENT, **INDEXER, "index_topk": chosen}
    model = build(
        CLASS,
        "mistral_large4",
        vision_config={"model_type": "pixtral", **VISION, "image_size": 128, "head_dim": 8},
        text_config=text("mistral_large4_text", mlp_layer_types=["dense"] * 3, **options),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    _, processor = FAMILIES["mistral3"]()
    return Case(probe.load(model, processor=processor))


def test_a_module_that_asks_for_its_kernel_by_name_goes_the_same_way_when_tapped():
    case = sparse(4)
    assert measured(case) == "yes"  # the logits are the same to the bit
    calls = []
    with tap(stacks(case.subject.model)["llm"].attention, calls.append):
        case.logits(case.answered[0])
    assert all(as_bool(call.model_mask).sum(-1).max() == 4 for call in calls)


def test_hiding_tokens_is_refused_where_they_decide_what_else_is_seen():
    case = sparse(4)
    model = case.subject.model
    with (
        pytest.raises(ProbeError, match="which chooses them by their content"),
        probe.drop_vision(model, [0]),
    ):
        case.logits(case.answered[0])
    attention = stacks(model)["llm"].attention
    with probe.ablate_heads(model, {0: [1]}), tap(attention, lambda call: None):
        case.logits(case.answered[0])


def test_a_prompt_of_no_more_tokens_than_are_chosen_is_dropped():
    case = sparse(64)
    with probe.drop_vision(case.subject.model, case.layers):
        first, second = map(case.logits, case.answered)
    assert (first - second).abs().max() < 1e-5
