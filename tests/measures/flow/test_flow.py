"""Flow maps against plain computations from whole attention maps, written out here."""

import models
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import probe
from probe.errors import ProbeError
from probe.interventions import drop_vision, knockout
from probe.models.planted import planted
from probe.reducers import FastV
from probe.subject.subject import Subject
from tests.families.score_models import SCORE_FAMILIES

METHODS = ("rollout", "gradient_rollout", "grad_cam", "contribution")
FACTORIES = {
    "llava": models.llava15,
    "anyres": models.llava_next_mistral,
    "capped": lambda side: SCORE_FAMILIES["llava_gemma2"](),
    "sinks": lambda side: SCORE_FAMILIES["llava_gpt_oss"](),
}
QUESTION, ANSWER = "where is it?", "a red circle"


def loaded(factory, **options) -> Subject:
    model, processor = factory(**options)
    return probe.load(model, processor=processor)


@pytest.fixture(scope="module", params=list(FACTORIES))
def subject(request) -> Subject:
    return loaded(FACTORIES[request.param], side=16)


class Plain:
    """Whole maps of eager attention (layer, head, query, key), their gradients, those of the LLM's
    input, and the values of each layer.
    """

    def __init__(self, subject: Subject, inputs: dict, rows: list[int], ids: list[int]):
        model = subject.model
        own = model.config._attn_implementation
        embeddings, values = [], []

        def note_input(module, args, kwargs):
            embeddings.append(kwargs["inputs_embeds"])

        def note_values(module, args, output):
            values.append(output[0].detach())

        hooks = [model.model.language_model.register_forward_pre_hook(note_input, with_kwargs=True)]
        layers = model.model.language_model.layers
        hooks += [x.self_attn.v_proj.register_forward_hook(note_values) for x in layers]
        model.set_attn_implementation("eager")
        found = model(**inputs, output_attentions=True, use_cache=False)
        model.set_attn_implementation(own)
        for hook in hooks:
            hook.remove()
        logprob = found.logits[0, rows].log_softmax(-1)[torch.arange(len(rows)), ids].sum()
        maps = found.attentions[-len(layers) :]
        *of_maps, of_input = torch.autograd.grad(logprob, [*maps, embeddings[0]])
        self.maps = torch.stack([each[0].detach() for each in maps])
        self.gradients = torch.stack([each[0] for each in of_maps])
        self.input, self.input_gradient = embeddings[0][0].detach(), of_input[0]
        self.values, self.layers = values, layers


def plain_scores(method: str, plain: Plain, rows: list[int], vision: np.ndarray) -> np.ndarray:
    """A score for each vision token."""
    tokens = plain.maps.shape[-1]
    eye, product = torch.eye(tokens), torch.eye(tokens)
    if method == "rollout":
        for map_of_heads in plain.maps:
            product = (0.5 * map_of_heads.mean(0) + 0.5 * eye) @ product
        return product[rows][:, vision].mean(0).numpy()
    if method == "gradient_rollout":
        for weights, gradient in zip(plain.maps, plain.gradients, strict=True):
            product = product + (weights * gradient).clamp(min=0).mean(0) @ product
        return product[rows][:, vision].mean(0).numpy()
    activations, gradient = plain.input[vision], plain.input_gradient[vision]
    return (activations @ gradient.mean(0)).clamp(min=0).numpy()


def plain_contribution(plain: Plain, rows: list[int], regions: list[np.ndarray]) -> np.ndarray:
    """The norm of what the tokens of each region add together."""
    total = np.zeros(len(regions))
    for weights, values, layer in zip(plain.maps, plain.values, plain.layers, strict=True):
        heads, dim = weights.shape[0], layer.self_attn.head_dim
        by_head = values.view(len(values), -1, dim)
        out = layer.self_attn.o_proj.weight.detach()
        for head in range(heads):
            value = by_head[:, head * by_head.shape[1] // heads]
            moved = value @ out[:, head * dim : (head + 1) * dim].T
            for number, region in enumerate(regions):
                norms = (weights[head][rows][:, region] @ moved[region]).norm(dim=-1)
                total[number] += float(norms.mean()) / heads
    return total


def over_features(dataset, of_token: np.ndarray) -> np.ndarray:
    """Sums over the vision tokens of each region."""
    keys = dataset["key_feature"].values
    return np.array([of_token[keys == region].sum() for region in range(dataset.sizes["feature"])])


def followed(subject: Subject):
    """The inputs with the answer, the rows that predict it, and its ids."""
    inputs = subject.encode(models.picture(2), QUESTION, ANSWER)
    dataset = probe.flow(subject, inputs, method="grad_cam", attention=False)
    ids = dataset["token_id"].values.tolist()
    start = int(inputs.types.prompt_length[0])
    return inputs, list(range(start - 1, start - 1 + len(ids))), ids


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_whole_maps(subject, method):
    inputs, rows, ids = followed(subject)
    plain = Plain(subject, dict(inputs), rows, ids)
    found = probe.flow(subject, inputs, method=method)
    vision = inputs.types.vision[0]
    if method == "contribution":
        of_key, places = found["key_feature"].values, np.flatnonzero(vision)
        regions = [places[of_key == region] for region in range(found.sizes["feature"])]
        expected = plain_contribution(plain, rows, regions)
    else:
        expected = over_features(found, plain_scores(method, plain, rows, vision))
    assert found["attribution"].values == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert expected.max() > 1e-4 and len(set(expected.round(7))) > 1
    if "rollout" in method:
        mean = found["token_attribution"].values.mean(0)
        assert mean == pytest.approx(found["attribution"].values, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was(subject, method):
    model, inputs = subject.model, subject.encode(models.picture(2), QUESTION, ANSWER)
    with torch.no_grad():
        before = model(**inputs).logits
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with torch.no_grad():  # which the caller may be in
        probe.flow(subject, inputs, method=method)
    assert all(parameter.grad is None for parameter in model.parameters())
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before) and hooks == after


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that anything makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return made


@pytest.mark.parametrize("method", METHODS)
def test_no_tensor_is_as_large_as_a_quarter_of_the_maps(method):
    subject = loaded(models.llava15, side=128, layers=2)
    inputs = subject.encode(models.picture(2), QUESTION, ANSWER)
    length = inputs["input_ids"].shape[1]
    heads = subject.model.config.text_config.num_attention_heads
    with LargestTensor() as made:
        probe.flow(subject, inputs, method=method, attention=False)
    assert length > 256 and 0 < made.largest < heads * length**2 / 4


def test_what_is_knocked_out_does_not_flow():
    subject = loaded(models.llava15, side=16)
    inputs = subject.encode(models.picture(2), QUESTION, ANSWER)
    with knockout(subject, "text", "vision", range(3)):
        for method in METHODS:
            found = probe.flow(subject, inputs, method=method)
            assert np.abs(found["attribution"].values).max() == 0, method


def test_edited_and_removed_rows_flow_as_they_run():
    """Under "zero" a call runs in two parts; FastV and "remove" leave rows out of later layers."""
    subject = loaded(models.llava15, side=16)
    inputs = subject.encode(models.picture(2), QUESTION, ANSWER)
    for method in METHODS:
        own = probe.flow(subject, inputs, method=method)["attribution"].values
        with drop_vision(subject, [], mode="mask"):
            assert (probe.flow(subject, inputs, method=method)["attribution"].values == own).all()
        with drop_vision(subject, range(3), mode="zero"):
            unread = probe.flow(subject, inputs, method=method)["attribution"].values
        with drop_vision(subject, range(3), mode="remove"):
            gone = probe.flow(subject, inputs, method=method)["attribution"].values
        with drop_vision(subject, range(3), mode="mask"):
            masked = probe.flow(subject, inputs, method=method)["attribution"].values
        assert gone == pytest.approx(masked, abs=1e-6)
        if method in ("gradient_rollout", "contribution"):  # values of 0 have no part in the answer
            assert unread.max() == 0
        with probe.reduced(subject, FastV(layer=1, keep=0.25)):
            pruned = probe.flow(subject, inputs, method=method)["attribution"].values
        assert not np.allclose(pruned, own) and np.isfinite(pruned).all()


def test_the_planted_patches_come_first():
    known = planted(read_layers=(2, 4), patches=(14, 15))
    subject = probe.load(known.model, processor=known.processor)
    for method in ("rollout", "gradient_rollout", "contribution"):
        found = probe.flow(subject, known.image("red"), known.question, method=method)
        assert set(np.argsort(-found["attribution"].values)[:2]) == {14, 15}, method


@pytest.mark.wide
def test_plots_and_curves_take_it_as_it_is():
    subject = loaded(models.llava15, side=16)
    asked = subject, models.picture(2), QUESTION, ANSWER
    maps = {name: probe.flow(*asked, method=name) for name in METHODS}
    probe.plots.attribution(maps)
    ablation = probe.attribute(*asked, baseline="hidden", progress=False)
    scores = {name: one["attribution"] for name, one in maps.items()}
    curves = probe.deletion_curves(*asked[:3], scores, ANSWER, points=2, orders=1)
    figure = probe.plots.agreement({"ablation": ablation, **maps}, curves=curves)
    probe.plots.agreement(maps["rollout"])
    assert figure.axes


def test_files_keep_units(subject, tmp_path):
    found = probe.flow(subject, models.picture(2), QUESTION, ANSWER)
    path = tmp_path / "flow.zarr.zip"
    probe.save_record(found, path)
    again = probe.open_record(path)
    assert again["attribution"].attrs["units"] == "fraction"
    assert again["attribution"].values.tolist() == found["attribution"].values.tolist()


def test_mistakes_are_told(subject):
    asked = subject, models.picture(2), QUESTION, ANSWER
    with pytest.raises(ProbeError, match=r"a method of rollout, .*got 'roll'"):
        probe.flow(*asked, method="roll")
    with pytest.raises(ProbeError, match="regions of patches, grid, got 'words'"):
        probe.flow(*asked, over="words")
    with pytest.raises(ProbeError, match="that lie in regions of the image"):
        probe.flow(loaded(models.llava_mini), models.picture(2), QUESTION, ANSWER)
