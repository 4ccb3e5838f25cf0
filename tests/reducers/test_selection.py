"""The methods that select patches: their rules against plain computations, their numbers of tokens,
and their ends (few tokens, all tokens, odd grids, no class token).
"""

import itertools
import math

import pytest
import torch
from torch.nn.functional import normalize

from probe.reducers import cdpruner, dart, divprune, hiprune, holov, vispruner, vscan
from probe.reducers.cosine import Cosines
from probe.reducers.patch_selection import KeptTokens, top


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(views, patches, seed=1):
    return random(views, patches, seed=seed).softmax(-1)


@pytest.mark.parametrize("keep", [1, 2, 5, 9])
def test_divprune_takes_the_farthest_each_time(keep):
    features = random(9, 4)
    unit = normalize(features, dim=-1)
    distance = 1 - unit @ unit.T
    others = [distance[i][torch.arange(9) != i].min().item() for i in range(9)]
    picked = [max(range(9), key=lambda i: (others[i], -i))]
    while len(picked) < keep:
        rest = [i for i in range(9) if i not in picked]
        picked.append(max(rest, key=lambda i: (distance[i][picked].min().item(), -i)))
    assert divprune.select(features, keep).tolist() == picked


def test_divprune_is_not_beaten_by_more_than_half_of_the_best_spread():
    """Greedy max-min reaches at least half of the largest distance that any set has, in a metric;
    here against all sets, as chord lengths.
    """
    features = normalize(random(8, 3), dim=-1)
    chord = (features[:, None] - features[None]).norm(dim=-1)

    def spread(chosen):
        return min(chord[i, j].item() for i, j in itertools.combinations(chosen, 2))

    best = max(spread(chosen) for chosen in itertools.combinations(range(8), 4))
    assert spread(divprune.select(features, 4).tolist()) >= best / 2


def test_divprune_takes_a_fraction_and_no_more_than_there_are():
    features = random(10, 4)
    assert len(divprune.select(features, 0.25)) == round(2.5)
    assert sorted(divprune.select(features, 40).tolist()) == list(range(10))
    assert len(divprune.select(features, 0)) == 0
    assert divprune.select(features[:1], 1).tolist() == [0]


def test_equal_tokens_are_picked_once():
    features = torch.ones(6, 3)
    assert sorted(divprune.select(features, 6).tolist()) == list(range(6))
    picked = cdpruner.most_diverse(Cosines(features), torch.ones(6), 6)
    assert sorted(picked.tolist()) == list(range(6))


def test_cosines_of_many_tokens_need_no_whole_matrix(monkeypatch):
    features = random(30, 5)
    few = Cosines(features)
    monkeypatch.setattr("probe.reducers.cosine.WHOLE", 10)
    monkeypatch.setattr("probe.reducers.cosine.CHUNK", 7)
    many = Cosines(features)
    assert many._matrix is None
    assert torch.allclose(few.row(torch.tensor(17)), many.row(torch.tensor(17)), atol=1e-6)
    assert torch.allclose(few.nearest_other(), many.nearest_other(), atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 3, 5])
def test_cdpruner_multiplies_the_determinant_as_much_as_any_patch_would(tokens):
    features, relevance = random(7, 9), torch.rand(7, generator=torch.Generator().manual_seed(3))
    unit = normalize(features, dim=-1)
    kernel = (relevance[:, None] * (unit @ unit.T) * relevance).double()
    picked = []
    for _ in range(tokens):
        rest = [i for i in range(7) if i not in picked]
        picked.append(max(rest, key=lambda i: kernel[[*picked, i]][:, [*picked, i]].det().item()))
    assert cdpruner.most_diverse(Cosines(features), relevance, tokens).tolist() == picked


def test_cdpruner_by_view_does_not_depend_on_other_views():
    features, image, text = random(2, 16, 8), random(2, 16, 6, seed=1), random(2, 6, seed=2)
    both = cdpruner._selected(features, image, text, 5, by_view=True)
    alone = cdpruner._selected(features[:1], image[:1], text, 5, by_view=True)
    assert torch.equal(both[:1], alone)
    assert both.sum(1).tolist() == [5, 5]


@pytest.mark.parametrize("tokens", [1, 2, 7, 17, 35, 36, 100])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_vispruner_keeps_as_many_as_asked_for(tokens, ratio):
    features, weights = random(2, 36, 8), attention(2, 72).view(2, 2, 36)
    mask = vispruner.select(features, weights, tokens, ratio)
    assert mask.sum(1).tolist() == [min(tokens, 36)] * 2
    important = int(min(tokens, 36) * ratio)
    assert (mask & top(weights.mean(1), important)).sum(1).tolist() == [important] * 2


def test_vispruner_drops_one_of_each_pair_of_equal_patches():
    features = random(8, 16).repeat_interleave(2, 0)[None]  # neighbours in rank are equal
    falling = torch.linspace(1, 0, 16).view(1, 1, 16)
    kept = vispruner.select(features, falling, 8, 0.0)[0].nonzero()[:, 0]
    assert sorted((kept // 2).tolist()) == list(range(8))


@pytest.mark.parametrize(("crops", "patches"), [(4, 36), (5, 36), (36, 36), (50, 36), (1, 36)])
@pytest.mark.parametrize("tokens", [1, 7, 36])
def test_holov_spreads_its_tokens_over_all_runs(crops, patches, tokens):
    features, weights = random(2, patches, 8), attention(2, patches)
    kept = holov.select(features, weights, crops, tokens)
    assert kept.shape == (2, tokens)
    assert all(len(set(row)) == tokens for row in kept.tolist())


def test_holov_gives_a_full_run_no_more_than_it_has():
    weights = torch.full((1, 12), 1e-6)
    weights[0, :3] = 1.0
    kept = holov.select(random(1, 12, 4), weights, 4, 8)[0]
    assert {0, 1, 2} <= set(kept.tolist())
    assert len(set(kept.tolist())) == 8


def test_hiprune_takes_an_anchor_with_its_neighbours():
    object_layer, deep = torch.zeros(1, 36), torch.linspace(0, 1, 36)[None]
    object_layer[0, 14] = 1
    kept = hiprune.select(object_layer, deep, 10, 0.5)[0].nonzero()[:, 0].tolist()
    assert kept == [8, 13, 14, 15, 20, 31, 32, 33, 34, 35]


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("tokens", [1, 5, 36, 50])
def test_hiprune_keeps_as_many_as_asked_for(tokens, alpha):
    mask = hiprune.select(attention(2, 36), attention(2, 36, seed=5), tokens, alpha)
    assert mask.sum(1).tolist() == [min(tokens, 36)] * 2


@pytest.mark.parametrize("patches", [36, 64, 81])
@pytest.mark.parametrize("tokens", [1, 32, 36])
def test_vscan_keeps_some_of_every_window_and_merges_the_rest(patches, tokens):
    shallow, deep = attention(2, patches), attention(2, patches, seed=9)
    mask = vscan.select(shallow, deep, tokens)
    assert mask.sum(1).tolist() == [tokens] * 2
    window = vscan._window_of(patches)
    for number in range(16):
        assert (mask[:, window == number].sum(1) >= tokens // 2 // 16).all()
    features = random(2, patches, 8)
    merged = vscan.merge(features, mask)
    assert merged.shape == (2, tokens, 8)
    kept = features[0][mask[0]]
    nearest = (normalize(features[0], dim=-1) @ normalize(kept, dim=-1).T).argmax(1)
    for slot in range(tokens):
        own = features[0][(nearest == slot) & ~mask[0]]
        expected = torch.cat([kept[slot : slot + 1], own]).mean(0)
        assert torch.allclose(merged[0, slot], expected, atol=1e-6)


@pytest.mark.parametrize("text", [0, 1, 20])
def test_dart_keeps_its_number_also_where_there_is_little_text(text):
    hidden, keys = random(1, 40 + text, 8), random(1, 2, 40 + text, 4, seed=4)
    kept = dart.select(hidden, keys, 0, 40, 2, 2, 0.5)
    assert len(kept) == dart.kept_count(40, 0.5, 2, 2) == 22
    assert kept.max() < 40


def test_a_budget_of_the_image_is_divided_among_its_views():
    assert KeptTokens(640, budget="image").tokens(576, 5) == 128
    assert KeptTokens(3, budget="image").tokens(576, 5) == 1
    assert KeptTokens(0.25, budget="image").tokens(576, 5) == 144
    assert math.isclose(KeptTokens(100).tokens(36), 36)
