"""Does attention rank the regions of an image as attribution does? Rank correlations, and what to
hold them against.

    correlation    Spearman's rank correlation over the regions, between an attention measure and an attribution
    floor          what the same maps reach when they are misplaced: 99 % of shuffles of the regions, and 99 % of shifts
                   and flips of their grid (neighbours stay neighbours), are below it in all layers and measures at once
    ceiling        the same correlation between two methods of attribution: more cannot be asked of attention

    table = rank_agreement({"ablation": first, "integrated_gradients": second})
    table["by_layer"].sel(reference="ablation", measure="mass")             # (layer): heads averaged first

Attributions keep their sign: what speaks against the answer ranks below what says nothing. (Their
size would not do: in any model, one of random weights too, what is attended to moves the answer,
one way or the other.) Below 1 % of the largest they are ties. A measure that is the same in all
regions ranks nothing: NaN.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int

from probe.errors import ProbeError

MEASURES = ("mass", "lift", "received", "contribution")
SHUFFLES = 1000
CERTAIN = 0.99
NEGLIGIBLE = 0.01  # of the largest: what is owed less is not ranked among itself
FEWEST = 3  # regions: of fewer, every order is as good as any


def spearman(
    first: Float[np.ndarray, "*row region"], second: Float[np.ndarray, "*other region"]
) -> Float[np.ndarray, "..."]:
    """Rank correlation along the last axis, ties with their mean rank; NaN below 3 regions and for
    what is constant.

    >>> float(spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 40.0, 20.0])).round(2))
    0.5
    """
    product = _standard_ranks(first) * _standard_ranks(second)
    return (
        np.asarray(product.sum(-1))
        if first.shape[-1] >= FEWEST
        else np.full(product.shape[:-1], np.nan)
    )


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with mean 0 and length 1."""
    flat = np.atleast_2d(values.reshape(-1, values.shape[-1])).astype(float)
    # attention and attributions are known to seven digits: what differs by less is a tie
    scale = np.maximum(np.nanmax(np.abs(flat), -1, keepdims=True, initial=0), 1e-30)
    ranks = pd.DataFrame(np.round(flat / scale, 6)).rank(axis=1).to_numpy()
    ranks = ranks - ranks.mean(-1, keepdims=True)
    length = np.sqrt((ranks**2).sum(-1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > 0, ranks / length, np.nan).reshape(values.shape)


def rank_agreement(found: Mapping[str, xr.Dataset], seed: int = 0) -> xr.Dataset:
    """Correlations of every attribution with every attention measure: correlation (reference,
    measure, layer, head), by_layer (reference, measure, layer), floor (reference), ceiling
    (reference, other).

    Raises ProbeError for datasets without attention, without regions, or of other regions than the
    first.
    """
    names, signed = list(found), {name: _signed(name, one) for name, one in found.items()}
    first = next(iter(found.values()))
    here = regions_of(first)
    for name, one in found.items():
        if regions_of(one)["feature"].values.tolist() != here["feature"].values.tolist():
            raise ProbeError(
                "agreement",
                expected="attributions over the same regions",
                got=f"others in {name!r}",
            )
    heads = np.stack(
        [here[measure].values for measure in MEASURES]
    )  # (measure, layer, head, region)
    pooled, owed = heads.mean(2), np.stack([signed[name] for name in names])
    misplaced = [_shuffles(owed.shape[-1], seed), _moves(here)]
    floors = [
        max(_reached(pooled, one, orders) for orders in misplaced if len(orders)) for one in owed
    ]
    values = {
        "correlation": (
            ("reference", "measure", "layer", "head"),
            spearman(heads[None], owed[:, None, None, None]),
        ),
        "by_layer": (
            ("reference", "measure", "layer"),
            spearman(pooled[None], owed[:, None, None]),
        ),
        "floor": (("reference",), np.array(floors)),
        "ceiling": (("reference", "other"), spearman(owed[:, None], owed[None])),
    }
    coords = {"reference": names, "other": names, "measure": list(MEASURES)}
    numbered = {"layer": here["layer"].values, "head": here["head"].values}
    labels = {name: np.array(each, object) for name, each in coords.items()}
    described = {"long_name": "Spearman's rank correlation", "units": "correlation"}
    variables = {
        name: (dims, array.astype(np.float32), described) for name, (dims, array) in values.items()
    }
    attrs = {
        **first.attrs,
        "kind": "agreement",
        "regions": owed.shape[-1],
        "shuffles": SHUFFLES,
        "seed": seed,
    }
    return xr.Dataset(variables, labels | numbered, attrs)


def _shuffles(regions: int, seed: int) -> Int[np.ndarray, "order region"]:
    return np.random.default_rng(seed).permuted(np.tile(np.arange(regions), (SHUFFLES, 1)), axis=1)


def _moves(here: xr.Dataset) -> Int[np.ndarray, "order region"]:
    """The grid of regions shifted around its edges, and flipped; none where regions are no grid of
    one image.
    """
    count, side = here.sizes["feature"], {"patches": 1, "grid": 2}.get(str(here.attrs["over"]))
    if side is None or int(here["patch_image"].max()) > 0:
        return np.empty((0, count), int)
    base = here["patch_tile"].values == 0
    columns = -(-(int(here["patch_col"].values[base].max()) + 1) // side)
    grid = np.arange(count).reshape(-1, columns)
    flips = [grid, grid[::-1], grid[:, ::-1], grid[::-1, ::-1]]
    moved = [
        np.roll(flip, (r, c), (0, 1)).ravel()
        for flip in flips
        for r in range(len(grid))
        for c in range(columns)
    ]
    return np.array(moved[1:]).reshape(-1, count)  # the first is the map itself


def _reached(maps: np.ndarray, owed: np.ndarray, orders: np.ndarray) -> float:
    """What the largest correlation with any map stays below in 99 % of the orders; 0 where there
    are none.
    """
    ranked, own = _standard_ranks(maps.reshape(-1, maps.shape[-1])), _standard_ranks(owed)
    ranked = ranked[~np.isnan(ranked).any(-1)]
    if not len(ranked) or np.isnan(own).any() or len(own) < FEWEST:
        return float("nan")
    orders = orders[
        ~np.isclose(own[orders] @ own, 1)
    ]  # a flip of a map that is symmetric misplaces nothing
    return float(np.quantile((own[orders] @ ranked.T).max(-1), CERTAIN)) if len(orders) else 0.0


def regions_of(attribution: xr.Dataset) -> xr.Dataset:
    """The part over regions, without words. Raises ProbeError for what is no attribution, or one
    without regions.
    """
    if not isinstance(attribution, xr.Dataset) or "attribution" not in attribution:
        raise ProbeError(
            "agreement",
            expected="an attribution (of probe.attribute)",
            got=type(attribution).__name__,
        )
    found = attribution.isel(feature=attribution["feature_kind"].values == "region")
    if not found.sizes["feature"]:
        raise ProbeError(
            "agreement",
            expected="an attribution over regions",
            got=f"over {attribution.attrs['over']}",
        )
    return found


def _signed(name: str, attribution: xr.Dataset) -> Float[np.ndarray, "region"]:
    if missing := [measure for measure in MEASURES if measure not in attribution]:
        raise ProbeError(
            "agreement",
            expected=f"an attribution with {missing[0]}",
            got=f"{name!r} without",
            fix="call attribute with attention=True",
        )
    owed = regions_of(attribution)["attribution"].values
    return np.where(np.abs(owed) < NEGLIGIBLE * np.abs(owed).max(), 0.0, owed)


def above_floor(table: xr.Dataset, reference: str, measure: str) -> Sequence[int]:
    """The layers (from 0) that agree more than shuffled regions do."""
    one = table.sel(reference=reference, measure=measure)
    return one["layer"].values[(one["by_layer"] > one["floor"]).values].tolist()
