"""Stacks outside of encoder and LLM in the record: what they count, and where."""

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

import probe
from probe.errors import ProbeError
from probe.hooks.attention_call import attention_rows
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import projection_in, stacks
from probe.measures.attention.sinks import layer_norms
from probe.measures.verify import state
from probe.records.validate import validate
from tests.families.checks import CHECKS, QUESTION, Case, picture, readers
from tests.families.layer_models import LAYER_FAMILIES
from tests.families.models import CLIP, FAMILIES, square, text
from tests.families.processors import IMAGE

# An LLM whose attention calls no kernel of transformers
BY_ITSELF = text("xglm", d_model=32, ffn_dim=48, num_layers=2, attention_heads=4)
PERCEIVER = "idefics, resampler"  # whose softmax is in its own code, as that of Aria's projector


def loaded(name):
    if name == PERCEIVER:
        return probe.load(*FAMILIES["idefics"](resampler=True))
    return probe.load(*FAMILIES[name]())


def measured(name, **options):
    subject = loaded(name)
    options = {"max_new_tokens": 3, "contribution": True, **options}
    return subject, validate(probe.measure(subject, picture(0), QUESTION, **options))


@pytest.mark.parametrize("name", ["blip2", "idefics2", "aria", PERCEIVER])
def test_learned_queries_are_a_compressor_whose_keys_have_places(name):
    subject, record = measured(name)
    node = record["compressor"].to_dataset().isel(sample=0)
    assert node.sizes["layer"] == len(stacks(subject.model)["compressor"].layers)
    assert node["query_type"].values.tolist() == ["compressed"]
    first = node.isel(layer=0)
    np.testing.assert_allclose(first["mass"].sum("key_type"), 1, atol=1e-5)
    assert (node["key_box"].notnull()).all()
    # the maps of single queries, averaged, are what patches receive
    received = first["received"].sel(query_type="compressed")
    np.testing.assert_allclose(first["maps"].mean("token"), received, atol=1e-6)


def test_a_perceiver_of_its_own_code_is_exact_unchanged_and_restored():
    case = Case(loaded(PERCEIVER))
    before = state(case.subject.model)
    assert readers(case) == "yes: compressor, cross"
    assert state(case.subject.model) == before


@pytest.mark.parametrize("name", ["aria", PERCEIVER])
def test_what_arrives_by_attention_of_its_own_code(name):
    """Contributions of single queries add up to what the module itself puts out: their weighted
    values through the output projection, by hand.
    """
    subject, record = measured(name, response=[14, 16])
    stack = stacks(subject.model)["compressor"]
    module = next(iter(stack.attention.values()))
    calls, outputs = [], []
    inputs = subject.encode(picture(0), QUESTION, response=[14, 16])
    hook = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad(), tap(stack.attention, calls.append):
        subject.model(**inputs, use_cache=False)
    hook.remove()
    call, by_head = calls[0], projection_in(stack, module).weight.view(32, 4, 8)
    weights = (call.query @ call.key.mT * 8**-0.5).softmax(-1)
    arrived = torch.einsum("hqk,hkd,ohd->qho", weights[0], call.value[0], by_head).detach()
    constant = outputs[0][0] - arrived.sum(1)  # of biases alone: the same for every query
    np.testing.assert_allclose(constant, constant[:1].expand_as(constant), atol=1e-5)
    patches = slice(-16, None) if name == "aria" else slice(1, 17)
    vision = weights[0][..., patches] @ call.value[0][:, patches]
    norms = torch.einsum("hqd,ohd->qho", vision, by_head).detach().norm(dim=-1).mean(0)
    found = record["compressor"]["contribution"].sel(key_type="vision").values.ravel()
    np.testing.assert_allclose(found, norms, rtol=1e-3)


def test_masks_of_torchs_own_attention_hide_keys():
    """Patches of filling are masked in Aria's projector: no query gives them any weight."""
    projector = loaded("aria").model.model.multi_modal_projector
    states, is_filling = torch.randn(2, 16, 32), torch.zeros(2, 16, dtype=torch.bool)
    is_filling[1, 10:] = True
    calls = []
    with torch.no_grad(), tap({"cross_attn": projector.cross_attn}, calls.append):
        projector(states, attn_mask=is_filling)
    weights = torch.stack([attention_rows(calls[0], row, torch.arange(12, 16)) for row in (0, 1)])
    assert weights[0].min() > 0 and weights[1, ..., :10].min() > 0
    assert weights[1, ..., 10:].max() == 0


def test_attention_that_is_more_than_its_parts_is_refused():
    subject = loaded(PERCEIVER)
    stack = stacks(subject.model)["compressor"]
    next(iter(stack.attention.values())).qk_scale = 0.1
    with pytest.raises(ProbeError, match="another output than that of softmax") as error:
        probe.measure(subject, picture(0), QUESTION, response=[14], stacks=["compressor"])
    assert "\n" not in str(error.value)


def test_layers_of_a_q_former_that_read_no_patches_are_nan_and_named():
    _, record = measured("blip2")
    mass = record["compressor"]["mass"]
    assert mass.sel(layer=0).notnull().all()
    assert mass.sel(layer=1).isnull().all()
    assert record.attrs["without_attention"] == "compressor 1: none"


def test_layers_of_linear_attention_are_nan_and_named():
    _, record = measured("qwen3_5")
    mass = record["llm"]["mass"]
    assert mass.sel(layer=[0, 2]).isnull().all()
    assert mass.sel(layer=[1, 3]).notnull().any(["head", "query_type", "key_type"]).all()
    assert record.attrs["without_attention"] == "llm 0, 2: linear_attn"
    figure = probe.plots.mass(record).figure
    assert "layer 1, 3, with linear_attn" in figure.get_supxlabel()


def test_a_convolution_beside_attention_reads_images_that_are_hidden_from_attention():
    subject = probe.load(*LAYER_FAMILIES["llava_falcon_h1"]())
    reason = r"layer 0 \(from 0\), where a convolution reads those before them too"
    for hiding in (
        probe.drop_vision(subject.model, [0], "mask"),
        probe.knockout(subject.model, "text", "vision", [0]),
    ):
        with pytest.raises(ProbeError, match=reason), hiding:
            pass


def test_layers_that_get_their_arguments_by_place_and_read_padding():
    """RecurrentGemma: rows that lose as many tokens each run together, as each does alone; where
    one keeps fewer than another, the filler before them would go into its state.
    """
    if Version(transformers.__version__) < Version("5.24"):
        pytest.skip("this transformers: LLaVA does not run on RecurrentGemma")
    subject = probe.load(*LAYER_FAMILIES["llava_recurrent_gemma"]())
    model, pixels = subject.model, torch.rand(3, 3, 32, 32)
    words = torch.arange(9, 29).tolist()
    rows = [[2, *[IMAGE] * 16, *words[:20]], [2, *words[:4], *[IMAGE] * 16, *words[4:20]]]
    more = [2, *[IMAGE] * 32, *words[:4]]

    def scores(rows: list[list[int]], pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), probe.drop_vision(model, [0, 1], "remove"):
            return model(input_ids=torch.tensor(rows), pixel_values=pixels).logits[:, -4:]

    together = scores(rows, pixels[:2])
    for number, row in enumerate(rows):
        alone = scores([row], pixels[number : number + 1])[0]
        torch.testing.assert_close(together[number], alone, atol=1e-5, rtol=0)
    with pytest.raises(ProbeError, match=r"layer 0 \(from 0\), whose state reads it"):
        scores([rows[0], more], pixels)


def test_attention_past_the_interface_is_refused_before_a_forward():
    model, processor = FAMILIES["llava"](text_config=BY_ITSELF, attn="eager")
    subject = probe.load(model, processor=processor)
    for hiding in (
        probe.drop_vision(subject.model, [0], "mask"),
        probe.knockout(subject.model, "text", "vision", [0]),
    ):
        with pytest.raises(ProbeError, match=r"one of its own in .*XGLMAttention"), hiding:
            pass
    case = Case(subject)
    assert CHECKS["drop: remove"](case) == "yes"


def test_norms_of_several_streams_are_those_of_all_of_them_together():
    subject = probe.load(*LAYER_FAMILIES["llava_gemma3n"]())
    inputs = subject.encode(picture(0), QUESTION)
    llm = stacks(subject.model)["llm"]
    given = []
    hook = llm.layers[2].register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with hook, layer_norms(llm) as norms:
        subject.generate_ids(inputs, 2)
    assert given[0].shape[:2] == (2, 1)  # streams, batch
    assert [each.shape for each in norms[2]] == [(1, inputs["input_ids"].shape[1]), (1, 1)]
    for found, states in zip(norms[2], given, strict=True):
        torch.testing.assert_close(found, states.square().sum((0, -1)).sqrt())
    record = probe.measure(subject, picture(0), QUESTION, max_new_tokens=2)
    assert record.attrs["passes"] == "one"


def test_an_llm_that_calls_the_size_of_a_head_otherwise():
    """GPT-NeoX has a `head_size`, and its own names for cache and projection."""
    model, processor = FAMILIES["llava"](text_config=text("gpt_neox"))
    case = Case(probe.load(model, processor=processor))
    for check in ("LLM measured", "drop while decoding", "remove = mask_frozen", "sweep", "FastV"):
        assert CHECKS[check](case) == "yes", check


@pytest.mark.parametrize(("name", "layers"), [("mllama", [1]), ("idefics", [0, 1, 2])])
def test_words_read_the_image_in_cross(name, layers):
    _, record = measured(name)
    node = record["cross"].to_dataset().isel(sample=0)
    assert node["layer"].values.tolist() == layers
    assert node["query_type"].values.tolist() == ["instruction", "response"]
    assert node["key_type"].values.tolist() == ["cls", "vision"]
    np.testing.assert_allclose(node["mass"].sum("key_type"), 1, atol=1e-5)
    counts = node["query_count"].sel(key_type="vision")
    assert counts.sel(query_type="response") == 2  # the last token of three is no query
    tokens = record.to_dataset()["token_type"].values[0].tolist()
    # words before the image are no queries
    assert 0 < counts.sel(query_type="instruction") < tokens.count("instruction")
    assert probe.plots.figures(record)


@pytest.mark.parametrize("name", ["mllama", "idefics"])
def test_what_arrives_by_cross_attention_is_weighted_by_its_gate(name):
    """Against the sum over keys of weighted values through the output projection, by hand."""
    subject, record = measured(name, response=[14, 16])
    inputs = subject.encode(picture(0), QUESTION, response=[14, 16])
    stack = stacks(subject.model)["cross"]
    calls = []
    with torch.no_grad(), tap(stack.attention, calls.append):
        subject.model(**inputs, use_cache=False)
    call, block = calls[0], stack.layers[0]
    gate = getattr(block, "cross_attn_attn_gate", getattr(block, "alpha_cross_attn", None))
    groups = call.query.shape[1] // call.key.shape[1]
    keys, values = (part.repeat_interleave(groups, 1) for part in (call.key, call.value))
    weights = (call.query @ keys.mT * call.scaling + call.effective_mask).softmax(-1)
    # without the class token, over the patches of the one image
    arrived = weights[0, :, -2:, 1:17] @ values[0, :, 1:17]
    projection = call.module.o_proj.weight.view(32, 4, -1).permute(1, 2, 0)
    norms = (arrived @ projection * gate.tanh().flatten()).norm(dim=-1)[:, :1]
    found = record["cross"]["contribution"].isel(sample=0, layer=0)
    found = found.sel(query_type="response", key_type="vision")
    np.testing.assert_allclose(found, norms.detach().mean(1), rtol=1e-4)


def test_two_samples_of_unequal_images_share_a_batch():
    subject = probe.load(*FAMILIES["idefics"]())
    samples = [
        probe.Sample("one", picture(0), QUESTION),
        probe.Sample("two", (picture(1), picture(2)), QUESTION),
    ]
    together = probe.measure_samples(subject, samples, [[14, 16]] * 2, stacks=["cross"])
    assert together["cross"]["key_count"].sel(key_type="vision").values.tolist() == [16, 32]
    for index, sample in enumerate(samples):
        alone = probe.measure_samples(subject, [sample], [[14, 16]], stacks=["cross"])
        np.testing.assert_allclose(
            together["cross"]["mass"][index], alone["cross"]["mass"][0], atol=1e-5
        )


def test_a_module_that_calls_its_kernel_twice_is_refused():
    """DiffLlama: the difference of two attentions, which one weight a pair of tokens does not
    describe.
    """
    fields = {"vision_config": CLIP, "image_token_index": IMAGE}
    fields["text_config"] = text("diffllama")
    subject = probe.load(*square("LlavaForConditionalGeneration", "llava", 16, **fields))
    for response in (None, [14, 16]):
        with pytest.raises(
            ProbeError, match="a layer that runs once in a forward, got another pass"
        ):
            probe.measure(subject, picture(0), QUESTION, response, max_new_tokens=3)
    record = probe.measure(subject, picture(0), QUESTION, [14, 16], stacks=["vision"])
    assert list(record.children) == ["vision"]


def test_where_tokens_have_no_place_the_stacks_that_have_are_named():
    for name, has_places in (("blip2", "compressor"), ("mllama", "cross")):
        _, record = measured(name)
        with pytest.raises(ProbeError, match=f"stand for a place .*; .*draw stack='{has_places}'"):
            probe.plots.heatmaps(record)
        assert probe.plots.heatmaps(record, stack=has_places)
