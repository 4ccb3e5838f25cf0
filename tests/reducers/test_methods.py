"""What each reducer of the encoder's output does, against plain loops over whole attention maps."""

import doctest

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

import probe
from probe.measures import encoder_concentration
from probe.reducers import (
    ContextualOnly,
    DominantOnly,
    Grid,
    PruMerge,
    Random,
    Reduction,
    VisionZip,
    baselines,
    dart,
    divprune,
    downsample,
    dpc_knn,
    encode,
    encoder_output,
    patch_selection,
    pyramiddrop,
    sparsevlm,
    token_budget,
    visionzip,
)

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 48,
    "patch_size": 8,
}
PATCHES = 36


def clip(attn="sdpa"):
    torch.manual_seed(0)
    config = CLIPVisionConfig(**SHAPE, initializer_factor=4.0)
    return CLIPVisionModel._from_config(config, attn_implementation=attn).eval()


def siglip(attn="sdpa"):
    torch.manual_seed(0)
    return SiglipVisionModel._from_config(
        SiglipVisionConfig(**SHAPE), attn_implementation=attn
    ).eval()


def pixels(views=2):
    return torch.randn(views, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def shown(tower, layer=-2):
    """Features, whole attention maps and head-mean keys of the layer whose output they are, the
    plain way.
    """
    eager = type(tower)._from_config(tower.config, attn_implementation="eager").eval()
    eager.load_state_dict(tower.state_dict())
    out = eager(pixels(), output_attentions=True, output_hidden_states=True)
    made = layer % 4 - 1
    block, inner = eager.encoder.layers[made], out.hidden_states[made]
    keys = block.self_attn.k_proj(block.layer_norm1(inner))
    return out.hidden_states[layer], out.attentions[made], keys.unflatten(-1, (4, 8)).mean(2)


@pytest.mark.parametrize("merge", ["released", "mean"])
@pytest.mark.parametrize(("tower", "first"), [(clip, 1), (siglip, 0)])
def test_visionzip_is_its_definition(tower, first, merge):
    """Selection, merging and both senses of a merged token, in loops; with and without a class
    token.
    """
    features, attention, keys = shown(tower())
    with torch.no_grad():
        found = encode(tower(), pixels(), VisionZip(9, 4, merge))
    for view in range(2):
        got = attention[view, :, 0].sum(0) if first else attention[view].mean((0, 1))
        torch.testing.assert_close(found.scores[view], got[first:], atol=1e-6, rtol=0)
        best = sorted(range(first, PATCHES + first), key=lambda p: -got[p])[: 9 - first]
        kept = sorted([0] * first + best)
        rest = [p for p in range(PATCHES + first) if p not in kept]
        targets = rest[:: len(rest) // 4][:4]
        groups = {target: [] for target in targets}
        for p in rest:
            if p not in targets:
                likeness = [
                    torch.cosine_similarity(keys[view, p], keys[view, t], 0) for t in targets
                ]
                groups[targets[int(torch.stack(likeness).argmax())]].append(p)
        merged = []
        for target, others in groups.items():
            own = features[view, target]
            if merge == "mean":
                merged.append(features[view, [target, *others]].mean(0))
            else:
                merged.append(own + features[view, others].mean(0) if others else own)
        assert found.kept[view].tolist() == kept
        assert found.source[view].tolist() == kept + targets
        expected = torch.cat([features[view, kept], torch.stack(merged)])
        torch.testing.assert_close(found.tokens[view], expected, atol=1e-5, rtol=1e-5)
        for number, (target, others) in enumerate(groups.items(), 9):
            assert {found.merged_into[view, p].item() for p in [target, *others]} == {number}


def test_nothing_depends_on_the_kernel_or_on_the_other_views():
    for reducer in (VisionZip(9, 4), PruMerge(0.2), PruMerge(0.2, plus=True)):
        with torch.no_grad():
            found, eager = (
                encode(clip(), pixels(), reducer),
                encode(clip("eager"), pixels(), reducer),
            )
            alone = encode(clip(), pixels()[1:], reducer)
        assert torch.equal(found.source, eager.source)
        torch.testing.assert_close(found.tokens, eager.tokens, atol=1e-5, rtol=1e-5)
        assert torch.equal(found.source[1:, : alone.source.shape[1]], alone.source)
        torch.testing.assert_close(found.tokens[1:], alone.tokens, atol=1e-5, rtol=1e-5)


def test_looking_changes_nothing():
    tower = clip()
    with torch.no_grad():
        before = tower(
            pixels(), output_hidden_states=True
        ).last_hidden_state  # transformers adds hooks of its own
        hooks = [
            {**module._forward_hooks, **module._forward_pre_hooks} for module in tower.modules()
        ]
        configs = [vars(module.config) for module in tower.modules() if hasattr(module, "config")]
        encode(tower, pixels(), VisionZip(9, 4))
        assert torch.equal(tower(pixels()).last_hidden_state, before)
    assert [
        {**module._forward_hooks, **module._forward_pre_hooks} for module in tower.modules()
    ] == hooks
    assert [
        vars(module.config) for module in tower.modules() if hasattr(module, "config")
    ] == configs


@pytest.mark.parametrize(
    ("dominant", "contextual", "tokens"),
    [
        (9, 0, 9),
        (1, 0, 1),
        (0, 4, 4),
        (30, 20, 37),
        (37, 5, 37),
        (100, 100, 37),
        (0, 100, 36),
        (36, 1, 37),
    ],
)
def test_visionzip_where_the_authors_code_stops(dominant, contextual, tokens):
    with torch.no_grad():
        found = encode(clip(), pixels(), VisionZip(dominant, contextual))
    assert found.tokens.shape == (2, tokens, 32)
    assert found.count == (tokens, tokens)
    assert torch.isfinite(found.tokens).all()
    assert (found.source[:, 0] == 0).all() == (dominant > 0)  # the class token
    left_out = (found.merged_into < 0).sum(1)
    assert (
        left_out.tolist()
        == [0 if contextual and dominant else 1 if contextual else 37 - tokens] * 2
    )


def test_equal_scores_take_the_first_patch():
    tower = clip()
    with torch.no_grad():
        tower.encoder.layers[1].self_attn.q_proj.weight.zero_()
        tower.encoder.layers[1].self_attn.q_proj.bias.zero_()
        found = encode(tower, pixels(), VisionZip(4, 0))
    assert found.kept.tolist() == [[0, 1, 2, 3]] * 2


def test_prumerge_is_its_definition():
    tower = clip()
    features, _, _ = shown(tower)
    with torch.no_grad():
        found = encode(tower, pixels(), PruMerge(0.2))
        block = tower.encoder.layers[2]
        inner = block.layer_norm1(features)
        query, keys = block.self_attn.q_proj(inner), block.self_attn.k_proj(inner)
    for view in range(2):
        weights = torch.softmax(keys[view] @ query[view, 0] * 32**-0.5, 0)[1:]
        values, patch_keys = features[view, 1:], keys[view, 1:]
        centres = sorted(range(PATCHES), key=lambda p: -weights[p])[: int(PATCHES * 0.2)]
        assert found.source[view].tolist() == [centre + 1 for centre in centres] + [-1]
        for number, centre in enumerate(centres):
            others = [p for p in range(PATCHES) if p != centre]
            likeness = [
                float(torch.cosine_similarity(patch_keys[centre], patch_keys[p], 0)) for p in others
            ]
            near = [p for _, p in sorted(zip(likeness, others, strict=True), reverse=True)[:32]]
            expected = values[centre] + sum(weights[p] * values[p] for p in near)
            torch.testing.assert_close(found.tokens[view, number], expected, atol=1e-5, rtol=0)
        rest = [p for p in range(PATCHES) if p not in centres]
        torch.testing.assert_close(
            found.tokens[view, -1], (weights[rest, None] * values[rest]).sum(0), atol=1e-5, rtol=0
        )
        assert set(found.merged_into[view, 1:].tolist()) <= set(range(len(centres) + 1))


def test_prumerge_without_an_outlier_leaves_one_token():
    tower = clip()
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(tower.encoder.layers[2].self_attn.q_proj, name).zero_()
        for plus in (False, True):
            found = encode(tower, pixels(), PruMerge(plus=plus))
            features, _, _ = shown(tower)
            assert found.count == (1, 1)
            torch.testing.assert_close(
                found.tokens[:, 0], features[:, 1:].sum(1) / 37, atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("keep", [0.001, 0.34, 0.5, 1.0])
@pytest.mark.parametrize("plus", [False, True])
def test_prumerge_takes_any_fraction(keep, plus):
    with torch.no_grad():
        found = encode(clip(), pixels(), PruMerge(keep, plus))
    wanted = int(PATCHES * keep)
    assert found.count == ((wanted * (1 + plus) + 1),) * 2
    assert torch.isfinite(found.tokens).all()


def test_views_may_keep_different_numbers():
    with torch.no_grad():
        found = encode(clip(), pixels(4), PruMerge(plus=True))
    assert len(set(found.count)) > 1
    for view, count in enumerate(found.count):
        assert (found.tokens[view, count:] == 0).all()
        assert (found.source[view, count:] == -1).all()
        assert found.is_real[view].sum() == count
        assert found.is_kept[view].sum() == count - 1  # the last one stands for nothing


def test_controls_keep_what_they_say():
    with torch.no_grad():
        features = clip()(pixels(), output_hidden_states=True).hidden_states[-2]
        for reducer in (Random(9, seed=3), Grid(9), Grid(0.25)):
            found = encode(clip(), pixels(), reducer)
            assert found.tokens.shape[1] == 9
            assert (found.source >= 1).all()
            chosen = found.source[..., None].expand(-1, -1, 32)
            assert torch.equal(found.tokens, features.gather(1, chosen))
        assert torch.equal(
            encode(clip(), pixels(), Random(9, 3)).kept, encode(clip(), pixels(), Random(9, 3)).kept
        )
        assert not torch.equal(
            encode(clip(), pixels(), Random(9, 4)).kept, encode(clip(), pixels(), Random(9, 3)).kept
        )
        grid = encode(clip(), pixels(), Grid(9)).kept - 1
        assert grid[0].tolist() == [row * 6 + column for row in (1, 3, 5) for column in (1, 3, 5)]
        whole, dominant = (
            encode(clip(), pixels(), VisionZip(9, 4)),
            encode(clip(), pixels(), DominantOnly(9)),
        )
        assert torch.equal(dominant.tokens, whole.tokens[:, :9])
        contextual = encode(clip(), pixels(), ContextualOnly(6))
        assert contextual.source[0].tolist() == [1, 7, 13, 19, 25, 31]


@pytest.mark.parametrize("count", range(1, 37))
def test_a_grid_of_any_number_has_that_many_patches(count):
    chosen = baselines.spread(count, 6)
    assert len(set(chosen)) == count == len(chosen)
    assert chosen == sorted(chosen)


def test_features_in_half_precision_are_chosen_in_float32():
    found = encode(clip().bfloat16(), pixels(), VisionZip(9, 4))
    assert found.tokens.dtype == torch.bfloat16
    assert found.scores.dtype == torch.float32


class Brightest:
    """A reducer of one's own: the patches with the longest features."""

    def reduce(self, seen):
        length = seen.features[:, seen.first_patch :].norm(dim=-1)
        return patch_selection.select_patches(seen, length.topk(5).indices.sort().values)


def test_a_reducer_of_ones_own():
    with torch.no_grad():
        found = encode(clip(), pixels(), Brightest())
    assert isinstance(found, Reduction)
    assert found.tokens.shape == (2, 5, 32)


@pytest.mark.parametrize(
    "module",
    [
        *(baselines, dart, divprune, downsample, patch_selection, encoder_concentration),
        *(dpc_knn, pyramiddrop, sparsevlm, token_budget, visionzip),
    ],
)
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionZip(-1, 3), "dominant tokens of 0 or more, got -1"),
        (lambda: VisionZip(0.5, 3), "dominant tokens of 0 or more, got 0.5"),
        (lambda: VisionZip(0, 0), "at least one token"),
        (lambda: VisionZip(9, 4, "average"), "merge released, mean, got 'average'"),
        (lambda: PruMerge(64), "keep='adaptive', or the fraction of patches that is kept, got 64"),
        (lambda: PruMerge("some"), "got 'some'"),
        (lambda: Random(0), "keep as a number of tokens"),
        (lambda: Grid(1.5), "keep as a number of tokens"),
        (lambda: DominantOnly(True), "keep as a number of tokens"),
        (
            lambda: encode(clip(), [1], Random(3)),
            "pixel_values of (view, channel, height, width), got list",
        ),
        (lambda: encode(clip(), pixels()[0], Random(3)), "got (3, 48, 48)"),
        (
            lambda: encode(clip(), pixels(), Random(3), layer=7),
            "4 hidden states of the encoder, got 7",
        ),
        (lambda: encode(clip(), pixels(), "VisionZip"), "a reducer of the encoder's output"),
    ],
)
def test_mistakes_are_one_line(make, message, unchecked):
    with pytest.raises(probe.ProbeError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_attention_received_is_exact_in_chunks(monkeypatch):
    monkeypatch.setattr(encoder_output, "CHUNK", 1000)
    _, attention, _ = shown(siglip(), -2)
    with torch.no_grad():
        found = encode(siglip(), pixels(), VisionZip(9, 4))
    np.testing.assert_allclose(found.scores, attention.mean((1, 2)), atol=1e-7)


@pytest.mark.parametrize("seed", [-1, 1.5, float("nan"), "3", None, 2**63])
def test_a_seed_is_a_whole_number(unchecked, seed):
    with pytest.raises(probe.ProbeError, match=r"^Random: expected a seed"):
        Random(3, seed=seed)
