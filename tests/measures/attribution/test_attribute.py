"""Every method against what it claims to compute, written out by hand; and against models whose
truth is known.
"""

from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from PIL import Image

import probe
from probe.errors import ProbeError
from probe.hooks.attention_tap import routed
from probe.hooks.model_structure import stacks
from probe.interventions import drop_vision, knockout
from probe.measures.attribution import attribute
from probe.models.planted import planted
from probe.subject.inputs import Inputs, collate, with_response
from probe.subject.subject import Subject

METHODS = ("ablation", "shapley", "integrated_gradients", "gradient_x_attention")
QUIET = {"progress": False, "attention": False}
ANSWER = "a red circle"


def loaded(factory, **overrides) -> Subject:
    model, processor = factory(**overrides)
    return probe.load(model, processor=processor)


@pytest.fixture(scope="module")
def llava() -> Subject:
    return loaded(models.llava15, side=16)


@pytest.fixture(scope="module")
def anyres() -> Subject:
    return loaded(models.llava_next_vicuna, side=16)


def asked(subject: Subject, kind: str) -> Inputs:
    """One row with its answer: alone, padded on the left, or about two images."""
    images = [models.picture(1), models.picture(2)][: 2 if kind == "two" else 1]
    inputs = subject.encode(images, "where is it?")
    ids = subject.vocabulary.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    row = with_response(inputs, ids)
    if kind != "left":
        return row
    longer = with_response(subject.encode(images, "where is the red circle in the picture?"), ids)
    both = collate([row, longer], side="left")
    arrays = {name: getattr(both.types, name)[:1] for name in ("ids", "vision", "role", "turn")}
    return row.having(
        {name: t[: len(t) // 2] for name, t in both.items()}, types=replace(both.types, **arrays)
    )


@torch.no_grad()
def logprob(subject: Subject, inputs: Inputs, **changed) -> float:
    """log p of the answer, from a plain forward."""
    count = int((inputs.types.role[0] == 5).sum())
    logits = (
        subject.model(**{**inputs, **changed}).logits[0, -count - 1 : -1].float().log_softmax(-1)
    )
    return float(logits[torch.arange(count), inputs["input_ids"][0, -count:]].sum())


@pytest.mark.parametrize("kind", ["one", "left", "two"])
def test_ablation_is_a_loop_over_grey_patches(llava, kind):
    inputs = asked(llava, kind)
    found = attribute(llava, inputs, **QUIET)
    colour = tuple(int(v * 255) for v in llava.processor.image_processor.image_mean)
    grey = llava.encode([Image.new("RGB", p.size, colour) for p in inputs.images[0]], "?")[
        "pixel_values"
    ]
    own = logprob(llava, inputs)
    for feature in range(4 * len(inputs.images[0])):
        image, row, col = feature // 4, feature % 4 // 2, feature % 2
        pixels = inputs["pixel_values"].clone()
        patch = np.s_[image, :, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]
        pixels[patch] = grey[patch]
        assert float(found["attribution"][feature]) == pytest.approx(
            own - logprob(llava, inputs, pixel_values=pixels), abs=2e-5
        )


@pytest.mark.parametrize("kind", ["one", "left", "two"])
@pytest.mark.parametrize("share", [True, False])
def test_ablation_of_hidden_tokens_is_a_loop_over_knockouts(llava, kind, share):
    inputs = asked(llava, kind)
    found = attribute(llava, inputs, baseline="hidden", share=share, **QUIET)
    assert (found.attrs["sharing"] == "exact") == share
    own, places = logprob(llava, inputs), np.flatnonzero(inputs.types.vision[0])
    for feature, place in enumerate(places):
        types = inputs.as_types({"gone": np.arange(inputs["input_ids"].shape[1]) == place}).types
        with knockout(llava, "text", "gone", range(3), types=types):
            without = logprob(llava, inputs)
        assert float(found["attribution"][feature]) == pytest.approx(own - without, abs=2e-5)


@pytest.mark.parametrize("baseline", ["rows", "zero"])
def test_ablation_of_rows_is_a_loop_over_embeddings_and_words_are_features_like_patches(
    llava, baseline
):
    inputs = asked(llava, "one")
    with torch.no_grad():
        vision = inputs.types.vision[0]
        embeds = llava.model.get_input_embeddings()(inputs["input_ids"])
        embeds[0, vision] = llava.model.model.get_image_features(
            inputs["pixel_values"]
        ).pooler_output[0]
        found = attribute(llava, inputs, baseline=baseline, **QUIET)
        positions = [[i] for i in np.flatnonzero(vision)]
        tokens = [inputs.tokens[0][i] for i in range(len(vision))]
        for name, kind in zip(
            found["feature"].values[4:], found["feature_kind"].values[4:], strict=True
        ):
            assert kind == "word" and name.split(" (")[0].replace(" ", "") in "".join(
                tokens
            ).replace(" ", "")
        words = probe.measures.attribution.words.words_of(inputs)
        positions += [word for _, word in words]
        text = sorted(i for _, word in words for i in word)
        own = logprob(llava, inputs)
        for feature, places in enumerate(positions):
            mean = embeds[0, text if places[0] in text else vision].mean(0)
            changed = embeds.clone()
            changed[0, places] = mean if baseline == "rows" else 0.0
            rest = {name: inputs[name] for name in ("attention_mask",)}
            count = len(inputs["input_ids"][0]) - int(inputs.types.prompt_length[0])
            logits = (
                llava.model(inputs_embeds=changed, **rest)
                .logits[0, -count - 1 : -1]
                .log_softmax(-1)
            )
            without = float(logits[torch.arange(count), inputs["input_ids"][0, -count:]].sum())
            assert float(found["attribution"][feature]) == pytest.approx(own - without, abs=2e-5)


@pytest.mark.parametrize(
    ("method", "baseline"),
    [("ablation", "rows"), ("ablation", "zero"), ("ablation", "hidden"), ("shapley", "hidden")],
)
def test_a_shared_prefix_changes_nothing_on_any_resolution(anyres, baseline, method):
    options = {
        "over": "grid",
        "baseline": baseline,
        "method": method,
        "samples": 1,
        "response": ANSWER,
        **QUIET,
    }
    image = models.picture(3, 40, 20)
    shared, whole = (
        attribute(anyres, image, "where?", share=share, **options) for share in (True, False)
    )
    assert shared.attrs["sharing"] == "exact"
    np.testing.assert_allclose(shared["token_attribution"], whole["token_attribution"], atol=2e-5)


def test_one_region_of_a_image_is_the_same_region_in_all_of_its_views(anyres):
    image = models.picture(3, 40, 20)
    left = np.zeros((20, 40), bool)
    left[:, :20] = True
    found = attribute(anyres, image, "where?", ANSWER, over={"left": left, "right": ~left}, **QUIET)
    grid = anyres.encode(image, "where?").grid[0]
    middle = (grid.box[:, 0] + grid.box[:, 2]) / 2
    expected = np.where(np.isnan(middle), -1, middle >= 0.5)
    assert set(grid.tile.tolist()) > {0}
    np.testing.assert_array_equal(found["key_feature"], expected)


def test_where_a_window_forgets_the_prefix_nothing_is_shared():
    subject = loaded(models.llava_next_mistral, side=16, sliding_window=12)
    found = attribute(
        subject, models.picture(3), "where?", ANSWER, over="grid", baseline="hidden", **QUIET
    )
    assert "window" in found.attrs["sharing"]


def test_integrated_gradients_are_captums_over_the_embeddings_summed_over_each_feature(llava):
    inputs = asked(llava, "one")
    vision = inputs.types.vision[0]
    embeds = llava.model.get_input_embeddings()(inputs["input_ids"]).detach()
    embeds[0, vision] = (
        llava.model.model.get_image_features(inputs["pixel_values"]).pooler_output[0].detach()
    )
    start = embeds.clone()
    start[0, vision] = embeds[0, vision].mean(0)
    count = len(inputs["input_ids"][0]) - int(inputs.types.prompt_length[0])

    def answer(e):
        logits = llava.model(inputs_embeds=e).logits[:, -count - 1 : -1].log_softmax(-1)
        return logits[:, torch.arange(count), inputs["input_ids"][0, -count:]].sum(-1)

    by_hand = IntegratedGradients(answer).attribute(embeds, start, n_steps=20).sum(-1)[0, vision]
    options = {
        "method": "integrated_gradients",
        "baseline": "rows",
        "words": False,
        "steps": 20,
        **QUIET,
    }
    found = attribute(llava, inputs, **options)
    np.testing.assert_allclose(found["attribution"], by_hand.detach(), atol=2e-5)


@pytest.mark.filterwarnings(
    "ignore:attribute. integrated_gradients is off"
)  # of pixels through a random encoder
@pytest.mark.parametrize("kind", ["one", "left", "two"])
@pytest.mark.parametrize("baseline", ["rows", "mean"])
def test_complete_methods_are_complete_up_to_the_delta_they_report(llava, kind, baseline):
    inputs, limit = asked(llava, kind), {"shapley": 1e-4, "integrated_gradients": 0.05}
    for method in limit:
        found = attribute(
            llava, inputs, method=method, baseline=baseline, samples=1, over="grid", **QUIET
        )
        total = float(found["logprob"] - found["logprob_without"])
        assert float(found["attribution"].sum()) == pytest.approx(
            total + float(found["delta"]), abs=1e-4
        )
        assert baseline == "mean" or abs(float(found["delta"])) < limit[method]


def test_a_way_that_does_not_converge_is_warned_of(llava):
    with pytest.warns(UserWarning, match="convergence delta"):
        attribute(
            llava,
            asked(llava, "one"),
            method="integrated_gradients",
            baseline="zero",
            steps=1,
            **QUIET,
        )


def test_gradient_x_attention_is_that_of_the_whole_maps(llava):
    inputs = asked(llava, "one")
    maps = []

    def explicit(call, kernel):
        scores = call.query @ call.key.mT * call.scaling
        scores = scores.masked_fill(
            ~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf
        )
        maps.append(scores.softmax(-1).requires_grad_())
        maps[-1].retain_grad()
        return (maps[-1] @ call.value).transpose(1, 2), None

    count = len(inputs["input_ids"][0]) - int(inputs.types.prompt_length[0])
    with routed(stacks(llava.model)["llm"].attention, explicit):
        logits = llava.model(**inputs, use_cache=False).logits[0, -count - 1 : -1].log_softmax(-1)
    logits[torch.arange(count), inputs["input_ids"][0, -count:]].sum().backward()
    llava.model.zero_grad()
    vision = inputs.types.vision[0]
    by_hand = torch.stack([(m * m.grad)[0][:, ~vision][..., vision].sum((0, 1)) for m in maps])
    found = attribute(llava, inputs, method="gradient_x_attention", **QUIET)
    np.testing.assert_allclose(found["layer_attribution"][:, :4], by_hand.detach(), atol=2e-5)


@pytest.fixture(scope="module", params=[((3,), (8,)), ((2, 4), (14, 15, 20, 21))], ids=str)
def known(request):
    return planted(*request.param)


@pytest.mark.filterwarnings(
    "ignore:attribute. integrated_gradients is off"
)  # steps of weights in the hundreds
@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_planted_patches_and_layers_first(known, method):
    subject = probe.load(known.model, processor=known.processor)
    image = known.image("red", 1)
    options = {"method": method, "words": False, "samples": 6, "batch": 36, **QUIET}
    side, over = (
        (2, "grid") if method == "shapley" else (1, "patches")
    )  # many orders of few regions
    there = {patch // 6 // side * (6 // side) + patch % 6 // side for patch in known.patches}
    found = attribute(subject, image, known.question, over=over, **options)["attribution"]
    first = np.argsort(-found.values)[: len(there)]
    assert set(first.tolist()) == there and bool((found[first] > 0).all())
    if method == "gradient_x_attention":
        found = attribute(subject, image, known.question, **options)["layer_attribution"].sum(
            "feature"
        )
    else:
        found = attribute(subject, image, known.question, over="layers", **options)["attribution"]
    assert set(np.argsort(-found.values)[: len(known.read_layers)].tolist()) == set(
        known.read_layers
    )


def test_attention_beside_it_is_what_measure_says_of_the_same_tokens(known):
    subject = probe.load(known.model, processor=known.processor)
    image = known.image("red", 1)
    found = attribute(
        subject, image, known.question, method="gradient_x_attention", tokens=[0], progress=False
    )
    inputs = subject.encode(image, known.question)
    vision = np.flatnonzero(inputs.types.vision[0])
    last = inputs.types.role[0] == 4
    types = {"row": last, "patch": np.isin(np.arange(len(last)), vision[list(known.patches)[:1]])}
    node = (
        probe.measure(
            subject,
            inputs.images[0][0],
            known.question,
            "red",
            types=types,
            contribution=True,
            stacks=["llm"],
        )["llm"]
        .isel(sample=0)
        .sel(query_type="row", key_type="patch")
    )
    for name in ("mass", "lift", "contribution"):
        np.testing.assert_allclose(
            found[name][..., known.patches[0]], node[name], rtol=1e-5, atol=1e-6
        )


def test_it_composes_with_interventions_and_says_so(llava):
    with drop_vision(llava, range(3)):
        found = attribute(llava, asked(llava, "one"), baseline="rows", **QUIET)
    assert np.abs(found["attribution"][:4]).max() < 1e-5 < np.abs(found["attribution"][4:]).max()
    assert "drop_vision" in found.attrs["intervention"] and "drop_vision" in found.attrs["sharing"]


def test_under_a_reducer_nothing_is_shared_and_what_it_took_gets_no_attention(llava):
    with probe.reduced(llava, probe.reducers.VisionZip(dominant=2, contextual=0)):
        found = attribute(llava, models.picture(1), "where is it?", ANSWER, progress=False)
    gone = ~np.isin(np.arange(4), found["key_feature"])
    assert "VisionZip" in found.attrs["reducer"] and 0 < gone.sum() < 4
    assert bool((found["mass"][..., :4][..., gone] == 0).all()) and bool(
        (found["mass"][..., :4][..., ~gone] > 0).all()
    )


def test_chosen_tokens_of_the_answer_add_up_to_the_whole(llava):
    inputs = asked(llava, "one")
    whole = attribute(llava, inputs, baseline="hidden", **QUIET)
    parts = [
        attribute(llava, inputs, baseline="hidden", tokens=[i], **QUIET)
        for i in range(whole.sizes["token"])
    ]
    np.testing.assert_allclose(
        sum(part["attribution"] for part in parts), whole["attribution"], atol=2e-5
    )


def test_the_model_is_as_it_was_and_the_seed_decides(llava):
    inputs = asked(llava, "one")
    before = logprob(llava, inputs)
    first, again = (
        attribute(llava, inputs, method="shapley", samples=2, over="grid", **QUIET)
        for _ in range(2)
    )
    assert first.equals(again) and logprob(llava, inputs) == before


def test_it_is_saved_and_opened_like_a_record(llava, tmp_path):
    found = attribute(llava, asked(llava, "one"), over="grid", progress=False)
    again = probe.open_record(probe.save_record(found, tmp_path / "attribution"))
    assert again.identical(found)


def test_an_answer_the_model_would_never_give_has_its_numbers_too(llava):
    found = attribute(
        llava, models.picture(), "where?", "image image image image", over="grid", **QUIET
    )
    assert float(found["logprob"]) < -5 and bool(found["attribution"].notnull().all())


def test_a_image_of_one_patch_is_one_region():
    subject = loaded(models.llava15, side=8)
    found = attribute(subject, models.picture(), "where?", progress=False)
    assert found["feature_kind"].values.tolist().count("region") == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"over": np.ones((3, 4), bool)}, "a mask of 30 x 40"),
        ({"over": np.zeros((30, 40), bool)}, "not empty"),
        ({"over": {"a": np.ones((30, 40)), "b": np.ones((30, 40))}}, "30 x 40 .* of float64"),
        ({"over": {"a": np.ones((30, 40), int), "b": np.ones((30, 40), int)}}, "overlap"),
        ({"over": [np.ones((30, 40), bool)] * 2}, "a mask for each of 1 images"),
        ({"over": "pixels"}, "'patches', 'grid'"),
        ({"method": "lime"}, "a method of ablation"),
        ({"baseline": "black"}, "baseline of mean"),
        ({"method": "integrated_gradients", "baseline": "hidden"}, "a straight line to it"),
        ({"response": ""}, "at least one token"),
        ({"tokens": [99]}, "tokens of the answer"),
        ({"batch": 0}, "batch of 1 or more"),
        ({"image": None}, "an image"),
        ({"question": None}, "a question"),
    ],
)
def test_mistakes_are_told_in_one_line(llava, given, told):
    options = {"image": models.picture(), "question": "where?", **QUIET} | given
    with pytest.raises(ProbeError, match=told) as error:
        attribute(llava, options.pop("image"), options.pop("question"), **options)
    assert "\n" not in str(error.value)
