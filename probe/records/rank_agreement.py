"""Does attention rank the regions of an image as attribution does? Rank correlations, and what to
compare them with.

    correlation    Spearman's rank correlation over the regions, between an attention measure and an
                   attribution
    floor          what maps reach by chance: the highest correlation, over all layers and measures,
                   of the same maps with their regions shuffled, and with their grid shifted and
                   flipped (neighbours stay neighbours), each image on its own. The highest and not
                   a quantile: neighbouring shifts give nearly the same map, so that all of a grid
                   are worth few independent ones
    ceiling        the same correlation between two methods of attribution: attention cannot be
                   expected to agree better. Where it does not exceed the floor, agreement cannot
                   be told from chance on these regions (`can_tell`)

    table = rank_agreement({"ablation": first, "integrated_gradients": second})
    table["by_layer"].sel(reference="ablation", measure="mass")    # (layer): heads averaged first

A layer agrees (`agreeing_layers`) where one measure is above the floor of every attribution: one
method alone may favour regions that are attended to for a reason of its own. Where there is only
one, every measure has to be, of where the weight goes and of what arrives.

Attributions keep their sign: evidence against the answer ranks below no evidence. (Absolute values
would not do: in any model, one of random weights too, regions that are attended to move the answer
in one direction or the other.) Attributions below 1 % of the largest are ties. A measure that is
the same in all regions ranks nothing: NaN.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int

from probe.errors import ProbeError
from probe.records.schema import Variable, dataset

MEASURES = ("mass", "lift", "received", "contribution")
OPTIONAL = "contribution"  # not to be had of quantized weights
SHUFFLES = 1000
NEGLIGIBLE = 0.01  # of the largest attribution: smaller ones are not ranked among themselves
FEWEST = 3  # regions: with fewer, every order is as good as any
DIGITS = 6  # attention and attributions are known to seven: what differs by less is a tie

_MEANING = ("correlation", "Spearman's rank correlation")
SCHEMA = {
    "correlation": Variable("reference measure layer head", *_MEANING),
    "by_layer": Variable("reference measure layer", *_MEANING),
    "floor": Variable("reference", *_MEANING),
    "ceiling": Variable("reference other", *_MEANING),
}


def spearman(
    first: Float[np.ndarray, "*row region"], second: Float[np.ndarray, "*other region"]
) -> Float[np.ndarray, "..."]:
    """Rank correlation along the last axis; other axes broadcast. Ties get their mean rank; NaN for
    fewer than 3 regions and for constant maps.

    >>> float(spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 40.0, 20.0])).round(2))
    0.5
    """
    product = _standard_ranks(first) * _standard_ranks(second)
    correlation = np.asarray(product.sum(-1))
    return correlation if first.shape[-1] >= FEWEST else np.full_like(correlation, np.nan)


def rank_agreement(attributions: Mapping[str, xr.Dataset], seed: int = 0) -> xr.Dataset:
    """Correlations of every attribution with every attention measure: correlation (reference,
    measure, layer, head), by_layer (reference, measure, layer), floor (reference), ceiling
    (reference, other).

    Attention is that of the first attribution. Raises ProbeError for datasets without attention or
    without regions, and for attributions over other regions than the first.
    """
    values_of = {name: _signed(name, each) for name, each in attributions.items()}
    first = next(iter(attributions.values()))
    regions = regions_of(first)
    names = regions["feature"].values.tolist()
    for name, attribution in attributions.items():
        if regions_of(attribution)["feature"].values.tolist() != names:
            raise ProbeError(
                "agreement",
                expected="attributions over the same regions",
                got=f"others in {name!r}",
            )
    signed = np.stack(list(values_of.values()))  # (reference, region)
    measures = [measure for measure in MEASURES if measure in regions]
    by_head = np.stack([regions[measure].values for measure in measures])
    by_layer = by_head.mean(axis=2)  # (measure, layer, region)
    orders = [_shuffles(_image_of_regions(regions), seed), _grid_moves(regions, seed)]
    values = {
        "correlation": spearman(by_head[None], signed[:, None, None, None]),
        "by_layer": spearman(by_layer[None], signed[:, None, None]),
        "floor": [_floor(by_layer, attribution, orders) for attribution in signed],
        "ceiling": spearman(signed[:, None], signed[None]),
    }
    coords = {"reference": list(attributions), "other": list(attributions), "measure": measures}
    coords |= {axis: regions[axis].values for axis in ("layer", "head")}
    attrs = {"kind": "agreement", "regions": len(names), "shuffles": SHUFFLES, "seed": seed}
    return dataset("agreement", values, SCHEMA, coords, first.attrs | attrs)


def regions_of(attribution: xr.Dataset) -> xr.Dataset:
    """The part over regions, without words. Raises ProbeError for what is not an attribution, and
    for one without regions.
    """
    if not isinstance(attribution, xr.Dataset) or "attribution" not in attribution:
        raise ProbeError(
            "agreement",
            expected="an attribution (of probe.attribute)",
            got=type(attribution).__name__,
        )
    regions = attribution.isel(feature=attribution["feature_kind"].values == "region")
    if not regions.sizes["feature"]:
        raise ProbeError(
            "agreement",
            expected="an attribution over regions",
            got=f"over {attribution.attrs['over']}",
        )
    return regions


def above_floor(table: xr.Dataset, reference: str, measure: str) -> Sequence[int]:
    """The layers (counted from 0) that agree more than misplaced maps do."""
    one = table.sel(reference=reference, measure=measure)
    return one["layer"].values[(one["by_layer"] > one["floor"]).values].tolist()


def agreeing_layers(table: xr.Dataset) -> list[int]:
    """The layers (counted from 0) in which a measure agrees with every attribution more than
    misplaced maps do; with one attribution alone, in which every measure does.
    """
    above = (table["by_layer"] > table["floor"]).all("reference")
    one_alone = table.sizes["other"] == 1
    agrees = above.all("measure") if one_alone else above.any("measure")
    return table["layer"].values[agrees.values].tolist()


def highest_agreement(table: xr.Dataset, reference: str) -> float:
    """The highest correlation of an attribution with any measure in any layer, heads averaged."""
    return float(table["by_layer"].sel(reference=reference).max())


def ceiling_of(table: xr.Dataset, reference: str) -> float:
    """The highest correlation of an attribution with another one; NaN without another."""
    others = table["ceiling"].sel(reference=reference).drop_sel(other=reference)
    return float(others.max()) if others.size else float("nan")


def can_tell(table: xr.Dataset, reference: str) -> bool:
    """Whether agreement could be told from chance: the ceiling exceeds the floor. Without another
    attribution, whether perfect agreement would exceed it.
    """
    floor = float(table["floor"].sel(reference=reference))
    ceiling = ceiling_of(table, reference)
    return floor < (1 if np.isnan(ceiling) else ceiling)


def _signed(name: str, attribution: xr.Dataset) -> Float[np.ndarray, "region"]:
    """The attribution of each region; negligible ones are 0."""
    needed = [measure for measure in MEASURES if measure != OPTIONAL]
    if missing := [measure for measure in needed if measure not in attribution]:
        raise ProbeError(
            "agreement",
            expected=f"an attribution with {missing[0]}",
            got=f"{name!r} without",
            fix="call attribute with attention=True",
        )
    values = regions_of(attribution)["attribution"].values
    size = np.abs(values)
    return np.where(size < NEGLIGIBLE * size.max(), 0.0, values)


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, with mean 0 and length 1; NaN for a constant map."""
    maps = np.atleast_2d(values.reshape(-1, values.shape[-1])).astype(float)
    largest = np.nanmax(np.abs(maps), axis=-1, keepdims=True, initial=1e-30)
    rounded = np.round(maps / largest, DIGITS)
    ranks = pd.DataFrame(rounded).rank(axis=1).to_numpy()
    centred = ranks - ranks.mean(-1, keepdims=True)
    length = np.sqrt((centred**2).sum(-1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        standard = np.where(length > 0, centred / length, np.nan)
    return standard.reshape(values.shape)


def _image_of_regions(regions: xr.Dataset) -> Int[np.ndarray, "region"]:
    """The image of each region, from 0. A region without a patch belongs to the one before it."""
    image = np.zeros(regions.sizes["feature"], int)
    feature = regions["patch_feature"].values
    image[feature[feature >= 0]] = regions["patch_image"].values[feature >= 0]
    return np.maximum.accumulate(image)


def _shuffles(image_of: Int[np.ndarray, "region"], seed: int) -> Int[np.ndarray, "order region"]:
    """Orders of the regions in which each stays in its image."""
    orders = np.tile(np.arange(len(image_of)), (SHUFFLES, 1))
    generator = np.random.default_rng(seed)
    for image in np.unique(image_of):
        inside = image_of == image
        orders[:, inside] = generator.permuted(orders[:, inside], axis=1)
    return orders


def _grid_moves(regions: xr.Dataset, seed: int) -> Int[np.ndarray, "order region"]:
    """Shifts (around the edges) and flips of the grid of each image, without the orders that move
    nothing: all of them for one image, and for several as many random ones as there are shuffles.
    None where the regions are not a grid of patches.
    """
    count = regions.sizes["feature"]
    patches_in_a_region = {"patches": 1, "grid": 2}.get(str(regions.attrs["over"]))  # a side
    if patches_in_a_region is None:
        return np.empty((0, count), int)
    moves, start = [], 0
    for image, in_image in enumerate(_counts_of_images(regions)):
        size = _grid_of(regions, image, in_image, patches_in_a_region)
        if size is None:
            return np.empty((0, count), int)
        moves.append(start + _moves_of_grid(*size))
        start += in_image
    if len(moves) == 1:
        return moves[0][1:]
    generator = np.random.default_rng(seed)
    chosen = [generator.integers(len(of_image), size=SHUFFLES) for of_image in moves]
    moved = np.any(chosen, axis=0)  # 0 moves nothing
    return np.concatenate(
        [of_image[choice[moved]] for of_image, choice in zip(moves, chosen, strict=True)], axis=1
    )


def _counts_of_images(regions: xr.Dataset) -> list[int]:
    """The number of regions of each image."""
    return np.bincount(_image_of_regions(regions)).tolist()


def _grid_of(regions: xr.Dataset, image: int, count: int, side: int) -> tuple[int, int] | None:
    """Rows and columns of an image's regions, of `side` x `side` patches or, where patches are
    merged before the LLM, of what as many of its vision tokens show. None where neither gives
    `count` regions.
    """
    for kind in ("patch", "key"):
        own = regions[f"{kind}_image"].values == image
        own = own & (regions[f"{kind}_tile"].values == 0)
        if own.any():
            last_row = int(regions[f"{kind}_row"].values[own].max())
            last_column = int(regions[f"{kind}_col"].values[own].max())
            rows = last_row // side + 1
            columns = last_column // side + 1
            if rows * columns == count:
                return rows, columns
    return None


def _moves_of_grid(rows: int, columns: int) -> Int[np.ndarray, "order region"]:
    """All shifts and flips of a grid; the first one moves nothing."""
    grid = np.arange(rows * columns).reshape(rows, columns)
    moves = [
        np.roll(flipped, (down, right), (0, 1)).ravel()
        for flipped in (grid, grid[::-1], grid[:, ::-1], grid[::-1, ::-1])
        for down in range(rows)
        for right in range(columns)
    ]
    return np.array(moves)


def _floor(
    maps: Float[np.ndarray, "measure layer region"],
    attribution: Float[np.ndarray, "region"],
    kinds: Sequence[np.ndarray],  # each (order, region)
) -> float:
    """The floor of one attribution: the highest over the kinds of misplacement that exist."""
    return max(_floor_of(maps, attribution, orders) for orders in kinds if len(orders))


def _floor_of(
    maps: Float[np.ndarray, "measure layer region"],
    attribution: Float[np.ndarray, "region"],
    orders: Int[np.ndarray, "order region"],
) -> float:
    """The largest correlation with any map, of any of the orders. 0 where no order misplaces
    anything (a symmetric map is equal to its flip).
    """
    ranked_maps = _standard_ranks(maps.reshape(-1, maps.shape[-1]))
    ranked_maps = ranked_maps[~np.isnan(ranked_maps).any(-1)]
    ranks = _standard_ranks(attribution)
    if not len(ranked_maps) or np.isnan(ranks).any() or len(ranks) < FEWEST:
        return float("nan")
    misplaced = ranks[orders]
    misplaced = misplaced[~np.isclose(misplaced @ ranks, 1)]
    if not len(misplaced):
        return 0.0
    return float((misplaced @ ranked_maps.T).max())
