"""The statistic against attention known by construction, and against the plain computation from
whole maps.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda
from hypothesis import given
from hypothesis import strategies as st

from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.measures.attention import compiled, streaming
from probe.measures.attention.reference import difference, plain_table
from probe.measures.attention.statistic import AttentionStatistic
from probe.measures.attention.type_sums import merge

NAMES = ("instruction", "vision", "response")
DIM = 8


def layout(before=4, vision=12, after=6, response=5, padding=(0, 0)):
    """Type ids of one row: text, vision, text, response; -1 for padding on either side."""
    ids = [0] * before + [1] * vision + [0] * after + [2] * response
    return np.array([-1] * padding[0] + ids + [-1] * padding[1])


def rows(*layouts):
    ids = np.stack(layouts)
    return ids, ids.copy(), ids == 1


def visibility(ids, query_count=None, causal=True, window=None):
    """Which key each query may see, with padding left out; padding itself sees only itself."""
    size = ids.shape[1]
    position = torch.arange(size)
    visible = torch.ones(len(ids), size, size, dtype=torch.bool)
    if causal:
        visible &= position <= position[:, None]
    if window:
        visible &= position > position[:, None] - window
    visible &= torch.tensor(ids >= 0)[:, None] | torch.eye(size, dtype=torch.bool)
    return visible[:, size - (query_count or size) :]


def call_of(query, key, value=None, mask=None, causal=True, window=None, scaling=DIM**-0.5):
    value = key if value is None else value
    return AttentionCall(
        name="layer",
        module=torch.nn.Identity(),
        query=query,
        key=key,
        value=value,
        effective_mask=mask,
        model_mask=mask,
        scaling=scaling,
        causal=causal,
        window=window,
        options={},
    )


def weights_of(call, visible):
    key = call.key.double().repeat_interleave(call.query.shape[1] // call.key.shape[1], 1)
    scores = call.query.double() @ key.transpose(2, 3) * call.scaling
    return scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1)


def table(call, ids, asked, vision, **options):
    statistic = AttentionStatistic(NAMES, ids, asked, vision, **options)
    statistic(call)
    return statistic.table("layer")


def random_call(ids, heads=4, key_heads=4, queries=None, seed=0, scale=1.0, **options):
    generator = torch.Generator().manual_seed(seed)
    batch, size = ids.shape
    draw = lambda n, length: torch.randn(batch, n, length, DIM, generator=generator) * scale  # noqa: E731
    return call_of(
        draw(heads, queries or size), draw(key_heads, size), draw(key_heads, size), **options
    )


# Attention known by construction


def test_uniform_attention():
    """Every score is 0, so a query at i gives 1 / (i + 1) to each key it can see."""
    ids, asked, vision = rows(layout())
    size = ids.shape[1]
    out = table(
        call_of(torch.zeros(1, 2, size, DIM), torch.randn(1, 2, size, DIM)), ids, asked, vision
    )
    i = np.arange(size)
    seen_vision = np.clip(i - 3, 0, 12)
    for a, name in enumerate(NAMES):
        of_type = (ids[0] == a) & (seen_vision > 0)
        expected = (seen_vision / (i + 1))[of_type].mean()
        assert out["mass"][:, a, 1] == pytest.approx(expected, abs=1e-6), name
        assert out["lift"][:, a, 1] == pytest.approx(1, abs=1e-6)
        two = (ids[0] == a) & (seen_vision >= 2)
        assert out["entropy"][a, 1] == pytest.approx(np.log(seen_vision[two]).mean(), abs=1e-6)
        assert out["head_entropy"][:, a, 1] == pytest.approx(
            np.log(seen_vision[two]).mean(), abs=1e-6
        )


EVEN = {
    "causal": {},
    "grouped queries": {"key_heads": 1},
    "bidirectional": {"causal": False},
    "padding on the left": {"padding": (3, 0), "mask": True},
    "padding on the right": {"padding": (0, 3), "mask": True},
    "window": {"window": 9, "mask": True},
    "cached decoding": {"queries": 5},
}


@pytest.mark.parametrize("case", EVEN)
def test_an_even_spread_has_a_ratio_of_one_for_every_pair(case):
    """Also where causality or a window shows a query only some of the keys."""
    options = dict(EVEN[case])
    padding, masked = options.pop("padding", (0, 0)), options.pop("mask", False)
    ids, asked, vision = rows(layout(after=9), layout(after=9 - sum(padding), padding=padding))
    window = options.get("window")
    visible = visibility(ids, causal=options.get("causal", True), window=window)
    mask = visible[:, None] if masked else None
    call = random_call(ids, scale=0.0, mask=mask, **options)
    statistic = AttentionStatistic(NAMES, ids, asked, vision)
    statistic(call)
    for row in range(2):
        out = statistic.table("layer", [row])
        for name in ("entropy", "head_entropy"):
            spread = out[f"{name}_count"] > 0
            assert spread.any()
            assert out[f"{name}_ratio"][spread] == pytest.approx(1, abs=1e-6)
            assert np.isnan(out[f"{name}_ratio"][~spread]).all()


def one_hot_call(targets, size, strength=300.0):
    """Queries that put all weight on one key: `targets[head][query]`."""
    key = torch.eye(size)[None, None].repeat(1, len(targets), 1, 1)
    query = strength * torch.stack([torch.eye(size)[list(target)] for target in targets])[None]
    return call_of(query, key, scaling=1.0)


def test_one_hot_attention():
    """All on the first key: mass on its type is 1, on the others 0; nothing is spread."""
    ids, asked, vision = rows(layout())
    size = ids.shape[1]
    out = table(one_hot_call([[0] * size] * 2, size), ids, asked, vision)
    assert out["mass"][:, :, 0] == pytest.approx(1, abs=1e-6)
    assert out["mass"][:, 1:, 1] == pytest.approx(0, abs=1e-6)
    assert out["entropy"][2, 0] == pytest.approx(0, abs=1e-6)
    assert out["head_entropy"][:, 2, 0] == pytest.approx(0, abs=1e-6)
    assert out["head_entropy_ratio"][:, 2, 0] == pytest.approx(0, abs=1e-6)
    assert np.isnan(out["entropy"][2, 1]), "no weight on vision, so no entropy over it"
    assert (out["head_entropy_count"][:, 2, 1] == 0).all()


def test_heads_that_look_at_different_keys():
    """Four sharp heads: no entropy in any of them, ln 4 in their mean."""
    ids, asked, vision = rows(layout())
    size = ids.shape[1]
    asked = np.where(ids == 2, ids, -1)  # the response, which sees every vision key
    out = table(one_hot_call([[4 + head] * size for head in range(4)], size), ids, asked, vision)
    assert out["head_entropy"][:, 2, 1] == pytest.approx(0, abs=1e-6)
    assert out["entropy"][2, 1] == pytest.approx(np.log(4), abs=1e-6)
    assert out["received"][2, :4] == pytest.approx(0.25, abs=1e-6)
    assert out["received"][2, 4:] == pytest.approx(0, abs=1e-6)
    assert out["lift"][:, 2, 1] == pytest.approx(
        np.mean([(i + 1) / 12 for i in range(22, 27)]), abs=1e-5
    )


# Against whole maps


CASES = {
    "causal, no mask": {},
    "grouped queries": {"key_heads": 2},
    "one key head": {"key_heads": 1, "mask": "bool"},
    "bool mask": {"mask": "bool"},
    "additive mask": {"mask": "additive"},
    "half precision additive mask": {"mask": "additive", "dtype": torch.bfloat16},
    "flash mask": {"mask": "flash"},
    "bidirectional": {"causal": False},
    "window": {"mask": "bool", "window": 9},
    "window, flash": {"mask": "flash", "window": 9},
    "cached decoding": {"queries": 3, "mask": "bool"},
    "one query": {"queries": 1},
    "large scores": {"scale": 4.0},
}


PADDINGS = {"one row": ((0, 0),), "left": ((0, 0), (3, 0)), "right": ((0, 0), (0, 3))}
PADDED = [
    (case, side)
    for case in CASES
    for side in PADDINGS
    if side == "one row" or "mask" in CASES[case]
]


@pytest.fixture(params=["compiled", "tensors"])
def way(request, monkeypatch):
    """Both ways of computing the sums on a CPU."""
    if request.param == "tensors":
        monkeypatch.setattr(streaming, "is_compiled_for", lambda call, extras: False)
    elif compiled.library() is None:
        pytest.skip("no C compiler")


@pytest.mark.parametrize(("case", "side"), PADDED)
def test_equals_the_plain_computation(case, side, way):
    options = dict(CASES[case])
    kind, dtype, window = (
        options.pop("mask", None),
        options.pop("dtype", torch.float32),
        options.pop("window", None),
    )
    causal, queries = options.pop("causal", True), options.get("queries")
    ids, asked, vision = rows(
        *(layout(padding=padding, after=9 - sum(padding)) for padding in PADDINGS[side])
    )
    visible = visibility(ids, queries, causal, window)
    call = random_call(ids, causal=causal, **options)
    mask = {
        None: None,
        "bool": visible[:, None],
        "additive": torch.zeros(visible.shape, dtype=dtype).masked_fill(
            ~visible, torch.finfo(dtype).min
        )[:, None],
        "flash": torch.tensor(ids >= 0),
    }[kind]
    call = call_of(call.query, call.key, call.value, mask, causal, window)
    asked[:, : ids.shape[1] - call.query_count] = -1
    weights = weights_of(call, visible)
    statistic = AttentionStatistic(NAMES, ids, asked, vision)
    statistic(call)
    for row in range(len(ids)):
        whole = torch.zeros(weights.shape[1], ids.shape[1], ids.shape[1], dtype=torch.float64)
        whole[:, -call.query_count :] = weights[row]
        sees = torch.zeros(ids.shape[1], ids.shape[1], dtype=torch.bool)
        sees[-call.query_count :] = visible[row]
        expected = plain_table(whole, sees, NAMES, ids[row], asked[row], vision[row])
        assert difference(statistic.table("layer", [row]), expected) < 1e-5


@given(
    st.lists(st.integers(0, 2), min_size=2, max_size=60),
    st.integers(1, 4),
    st.integers(0, 100),
    st.sampled_from([1, 64, None]),
)
def test_any_layout(ids, heads, seed, block):
    """Types in any order, more runs than are summed as slices, and blocks of any size."""
    ids = np.array([ids])
    asked, vision = ids, ids == 1
    call = random_call(ids, heads=heads, key_heads=1, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        if block is not None:  # by tensor operations
            patch.setattr(streaming, "is_compiled_for", lambda call, extras: False)
            patch.setattr("probe.measures.attention.tensor_sums.BLOCK_QUERIES", block)
        out = table(call, ids, asked, vision)
    visible = visibility(ids)
    expected = plain_table(
        weights_of(call, visible)[0], visible[0], NAMES, ids[0], asked[0], vision[0]
    )
    assert difference(out, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(dtype):
    ids, asked, vision = rows(layout())
    call = random_call(ids, scale=2.0)
    half = call_of(call.query.to(dtype), call.key.to(dtype))
    full = call_of(half.query.float(), half.key.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert difference(table(half, ids, asked, vision), table(full, ids, asked, vision)) == 0


def test_what_an_intervention_hides_counts_as_zero_but_stays_visible():
    ids, asked, vision = rows(layout())
    call = random_call(ids)
    visible = visibility(ids)
    text = torch.tensor(ids != 1)[:, :, None]
    hidden = visible & ~(text & torch.tensor(vision)[:, None])
    out = table(call.with_mask(hidden[:, None]), ids, asked, vision)
    expected = plain_table(
        weights_of(call, hidden)[0], visible[0], NAMES, ids[0], asked[0], vision[0]
    )
    assert difference(out, expected) < 1e-5
    assert (out["mass"][:, 2, 1] == 0).all() and (out["lift"][:, 2, 1] == 0).all()
    assert np.isnan(out["entropy"][2, 1]) and out["query_count"][2, 1] == 5


# What is kept only on request


def test_maps_and_heads():
    ids, asked, vision = rows(layout())
    call = random_call(ids, key_heads=2)
    weights = weights_of(call, visibility(ids))[0].numpy()
    positions = [20, 23, 26]
    out = table(call, ids, asked, vision, map_positions=[positions], received_head=True)
    assert out["maps"] == pytest.approx(weights[:, positions][..., vision[0]].mean(0), abs=1e-6)
    response = weights[:, ids[0] == 2][..., vision[0]].mean(1)
    assert out["received_head"][:, 2] == pytest.approx(response, abs=1e-6)
    out = table(call, ids, asked, vision, map_positions=[positions], map_heads=True)
    assert out["maps"] == pytest.approx(weights[:, positions][..., vision[0]], abs=1e-6)


def test_contribution_is_the_norm_of_what_arrives():
    ids, asked, vision = rows(layout())
    call = random_call(ids, key_heads=2)
    project = torch.nn.Linear(4 * DIM, 24)
    out = table(call, ids, asked, vision, contribution=lambda module: project)
    weights, value = (
        weights_of(call, visibility(ids))[0],
        call.value[0].double().repeat_interleave(2, 0),
    )
    for head in range(4):
        part = project.weight[:, head * DIM : (head + 1) * DIM].double()
        for a in range(3):
            for b in range(3):
                arrives = (
                    weights[head][ids[0] == a][:, ids[0] == b] @ value[head][ids[0] == b] @ part.T
                )
                if out["query_count"][a, b]:
                    expected = arrives.norm(dim=-1).sum().item() / out["query_count"][a, b]
                    assert out["contribution"][head, a, b] == pytest.approx(expected, rel=1e-4)


def test_weights_that_a_module_returns():
    ids, asked, vision = rows(layout())
    call = random_call(ids)
    visible = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    weights = weights_of(call, visible).float()
    out = table(AttentionWeights("layer", torch.nn.Identity(), weights), ids, asked, vision)
    expected = plain_table(weights[0], visible[0], NAMES, ids[0], asked[0], vision[0])
    assert difference(out, expected) < 1e-5


# Streaming


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["causal", "window", "mask", "rows", "many types", "decoding"])
def test_compiled_sums_equal_those_of_tensors(case, dtype, monkeypatch):
    """Blocks of queries that are full and not, keys in the layout of a model, heads of 20."""
    if compiled.library() is None:
        pytest.skip("no C compiler")
    ids, asked, vision = rows(layout(before=3, vision=90, after=20, response=7))
    size, queries = ids.shape[1], 3 if case == "decoding" else ids.shape[1]
    generator = torch.Generator().manual_seed(1)
    draw = lambda heads, n: torch.randn(1, n, heads, 20, generator=generator).to(dtype)  # noqa: E731
    query, key = 3 * draw(4, queries).transpose(1, 2), draw(2, size).transpose(1, 2)
    mask = visibility(ids, window=40)[:, None] if case == "mask" else None
    call = call_of(query, key, None, mask, window=33 if case == "window" else None)
    if case == "rows":
        asked = np.where(vision, -1, ids)
    if case == "many types":
        ids = asked = np.arange(size)[None] * 7 % 3
    tables = {}
    for way in ("compiled", "tensors"):
        with monkeypatch.context() as patch:
            if way == "tensors":
                patch.setattr(streaming, "is_compiled_for", lambda call, extras: False)
            tables[way] = table(call, ids, asked, vision)
    assert difference(tables["compiled"], tables["tensors"]) < 2e-6


def test_what_an_edit_hides_is_hidden_by_compiled_code(way):
    """Under an edit's mask, hidden keys count as 0 and stay visible; also where it hides all."""
    ids, asked, vision = rows(layout())
    size = ids.shape[1]
    call = random_call(ids)
    edited = visibility(ids)[:, None] & ~torch.tensor(vision)[:, None, None]
    edited[:, :, -1] = torch.arange(size) == 5  # the last query sees one vision token only
    out = table(replace(call, effective_mask=edited), ids, asked, vision)
    whole = table(call, ids, asked, vision)
    assert out["mass"][:, 0, 1] == pytest.approx(0, abs=1e-6)
    assert out["mass"][:, 2, 1] == pytest.approx(1 / 5, abs=1e-6)
    assert (out["query_count"] == whole["query_count"]).all()
    assert out["received"][2, 1] == pytest.approx(1 / 5, abs=1e-6)


@pytest.mark.parametrize("case", ["causal", "mask", "edit", "decoding"])
def test_nothing_waits_for_the_device(case):
    """On fake CUDA tensors, to mix devices or to read a value raises."""
    ids, asked, vision = rows(layout(), layout(before=2, after=8))
    size = ids.shape[1]
    with fake_cuda():
        query = torch.zeros(2, 4, 1 if case == "decoding" else size, DIM, device="cuda")
        key = torch.zeros(2, 4, size, DIM, device="cuda")
        visible = torch.zeros(2, 1, size, size, dtype=torch.bool, device="cuda")
        call = call_of(query, key, None, visible if case == "mask" else None)
        if case == "edit":
            active = torch.zeros(2, size, dtype=torch.bool, device="cuda")
            call = replace(call, active_queries=active, effective_mask=visible)
        projection = torch.nn.Linear(4 * DIM, 16, bias=False, device="meta")
        projection.weight = torch.nn.Parameter(torch.zeros(16, 4 * DIM, device="cuda"))
        statistic = AttentionStatistic(
            NAMES,
            ids,
            asked,
            vision,
            received_head=True,
            map_positions=[[size - 1], [size - 2]],
            contribution=lambda module: projection,
        )
        statistic(call)
        statistic(replace(call, name="second layer"))
        sums = statistic._sums["second layer"][1]
        assert {value.device.type for value in sums.values()} == {"cuda"}


def test_rows_called_one_by_one_equal_a_batch():
    """An encoder that loops over its images."""
    ids, asked, vision = rows(layout(), layout(before=2, after=8))
    call = random_call(ids, causal=False)
    whole, parts = (AttentionStatistic(NAMES, ids, asked, vision) for _ in range(2))
    whole(call)
    for row in range(2):
        parts(call_of(call.query[[row]], call.key[[row]], causal=False))
    for row in range(2):
        assert difference(whole.table("layer", [row]), parts.table("layer", [row])) < 1e-6


def test_tables_of_several_rows_are_pooled_exactly():
    ids, asked, vision = rows(layout(), layout(before=2, after=8))
    statistic = AttentionStatistic(NAMES, ids, asked, vision)
    statistic(random_call(ids))
    one, other, both = (statistic.table("layer", which) for which in ([0], [1], [0, 1]))
    for name, count in (
        ("mass", "query_count"),
        ("entropy", "entropy_count"),
        ("head_entropy", "head_entropy_count"),
        ("head_entropy_ratio", "head_entropy_count"),
    ):
        n, m = one[count], other[count]
        with np.errstate(invalid="ignore"):
            expected = (np.nan_to_num(one[name]) * n + np.nan_to_num(other[name]) * m) / (n + m)
        np.testing.assert_allclose(both[name], np.where(n + m > 0, expected, np.nan), atol=1e-6)
    assert both["received"].shape[-1] == 24


def test_merge_adds():
    a = {"mass": np.ones((2, 2)), "received": np.zeros((2, 3))}
    b = {"mass": np.ones((2, 2)), "received": np.ones((2, 4))}
    assert merge({"mass": np.ones(2)}, {"mass": np.ones(2)})["mass"].tolist() == [2, 2]
    assert merge(dict(a), b, concatenate_keys=True)["received"].shape == (2, 7)
