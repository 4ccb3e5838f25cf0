"""Small records that a measurement could have made: every number is computed from explicit
attention maps.

>>> sorted(planted_record(samples=1).children)
['llm', 'vision']
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from probe.records import assemble

HEIGHT, WIDTH = 48, 72
ATTRS = {
    "model": "tiny-llava",
    "revision": "1",
    "dtype": "float32",
    "attention": "sdpa",
    "types": "paper",
    "turns": "last",
    "rows": "all",
    "toy": True,
    "seed": 0,
}


def planted_record(
    samples: int = 2,
    *,
    layers: int = 4,
    heads: int = 3,
    grid: int = 4,
    images: int = 1,
    aspect: str = "pad",
    stacks: Sequence[str] = ("llm", "vision"),
    optional: bool = False,
    shared_image: bool = False,
    prefix: str = "s",
    seed: int = 0,
    **attrs: str,
) -> xr.DataTree:
    """A valid record; `optional` adds contribution, received_head, maps. Responses grow with the
    sample.
    """
    rng = np.random.default_rng(seed)
    keys = [patches(aspect, grid, image) for image in range(images)]
    llm = np.concatenate(keys)
    encoder = llm[llm[:, 2] >= 0]
    rows: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in stacks}
    texts = []
    for sample in range(samples):
        types = (
            ["instruction"] * 3
            + ["vision"] * len(llm)
            + ["instruction"] * 2
            + ["response"] * (3 + sample)
        )
        texts.append(types)
        if "llm" in stacks:
            maps = attention(rng, types, layers, heads, causal=True)
            rows["llm"].append(
                numbers(maps, types, ("instruction", "vision", "response"), llm, optional)
            )
        if "vision" in stacks:
            types = ["cls"] + ["vision"] * len(encoder)
            maps = attention(rng, types, layers + 1, heads, causal=False)
            rows["vision"].append(
                numbers(maps, types, ("cls", "vision"), encoder, optional, drop_last=False)
            )
    names = {"llm": ("instruction", "vision", "response"), "vision": ("cls", "vision")}
    nodes = {
        name: {"query_type": names[name], "key_type": names[name]}
        | {variable: _stacked([row[variable] for row in found]) for variable in found[0]}
        for name, found in rows.items()
    }
    shown = rng.integers(
        0, 256, (1 if shared_image else samples, images, HEIGHT, WIDTH, 3), np.uint8
    )
    root = {
        "sample": [f"{prefix}{i}" for i in range(samples)],
        "question": ["what is at the top ?"] * samples,
        "prompt": ["USER: <image>\nwhat is at the top ? ASSISTANT:"] * samples,
        "response": [" ".join(["red"] * (3 + i)) for i in range(samples)],
        "tokens": _stacked([np.array([name[:2] for name in types], object) for types in texts]),
        "token_type": _stacked([np.array(types, object) for types in texts]),
        "images": np.broadcast_to(shown, (samples, *shown.shape[1:])).copy(),
        "image_size": np.broadcast_to([HEIGHT, WIDTH], (samples, images, 2)),
    }
    return assemble(root, nodes, ATTRS | {"aspect": aspect} | attrs)


def patches(aspect: str, grid: int, image: int = 0) -> np.ndarray:
    """(key, image tile row col left top right bottom); the image is 3:2 landscape."""
    views = {
        "crop": [(0, (1 / 6, 0, 5 / 6, 1))],  # the centre square
        "pad": [(0, (0, -0.25, 1, 1.25))],  # bars above and below
        "anyres": [(0, (0, 0, 1, 1)), (1, (0, 0, 0.5, 1)), (2, (0.5, 0, 1, 1))],
    }[aspect]
    rows = []
    for tile, (left, top, right, bottom) in views:
        for row in range(grid):
            x, y = np.linspace(left, right, grid + 1), np.linspace(top, bottom, grid + 1)
            rows += [(image, tile, row, c, x[c], y[row], x[c + 1], y[row + 1]) for c in range(grid)]
            if aspect == "anyres" and tile:
                rows.append((image, tile, -1, -1, *[np.nan] * 4))
    return np.array(rows)


def attention(
    rng: np.random.Generator, types: list[str], layers: int, heads: int, causal: bool
) -> np.ndarray:
    """(layer head query key): random; one vision key is sought in all layers, vision less with
    depth.
    """
    scores = rng.normal(0, 1.5, (layers, heads, len(types), len(types)))
    vision = np.flatnonzero(np.array(types) == "vision")
    scores[..., vision] -= np.linspace(0, 4, layers)[:, None, None, None]
    scores[..., vision[len(vision) // 3]] += 3
    if causal:
        scores += np.triu(np.full(scores.shape[-2:], -np.inf), 1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def numbers(
    maps: np.ndarray,
    types: list[str],
    names: Sequence[str],
    keys: np.ndarray,
    optional: bool,
    drop_last: bool = True,
) -> dict[str, np.ndarray]:
    """The definitions, literally, from one sample's (layer head query key) maps."""
    of = np.array(types)
    asks = np.arange(len(of)) < len(of) - drop_last
    shape = (*maps.shape[:2], len(names), len(names))
    made: dict[str, np.ndarray] = {
        name: np.full(shape, np.nan)
        for name in ("mass", "share", "lift", "head_entropy", "head_entropy_ratio")
    }
    made["entropy"] = np.full((shape[0], *shape[2:]), np.nan)
    made["entropy_ratio"] = made["entropy"].copy()
    made["head_entropy_count"] = np.zeros(shape, int)
    made["entropy_count"] = np.zeros_like(made["entropy"], int)
    made["query_count"] = np.zeros(shape[2:], int)
    made["share_count"] = np.zeros(len(names), int)
    visible = maps[0, 0] > 0
    for a, query in enumerate(names):
        sees_vision = asks & (of == query) & visible[:, of == "vision"].any(1)
        made["share_count"][a] = sees_vision.sum()
        for b, key in enumerate(names):
            sees = asks & (of == query) & visible[:, of == key].any(1)
            many = asks & (of == query) & (visible[:, of == key].sum(1) >= 2)
            weight = maps[..., of == key].sum(-1)
            made["query_count"][a, b] = sees.sum()
            if sees.any():
                even = visible[:, of == key].sum(1) / visible.sum(1)
                made["mass"][:, :, a, b] = weight[..., sees].mean(-1)
                made["lift"][:, :, a, b] = (weight[..., sees] / even[sees]).mean(-1)
            if sees_vision.any():
                made["share"][:, :, a, b] = weight[..., sees_vision].mean(-1)
            if many.any():
                made["entropy_count"][:, a, b] = made["head_entropy_count"][:, :, a, b] = many.sum()
                highest = np.log(visible[many][:, of == key].sum(1))
                pooled = _entropy(maps.mean(1)[:, many][..., of == key])
                made["entropy"][:, a, b] = pooled.mean(-1)
                made["entropy_ratio"][:, a, b] = (pooled / highest).mean(-1)
                by_head = _entropy(maps[:, :, many][..., of == key])
                made["head_entropy"][:, :, a, b] = by_head.mean(-1)
                made["head_entropy_ratio"][:, :, a, b] = (by_head / highest).mean(-1)
    made["key_count"] = np.array([(of == name).sum() for name in names])
    seen = np.array(of == "vision")
    received = np.stack([maps[:, :, asks & (of == name)][..., seen].mean(2) for name in names], 2)
    made["received"] = received.mean(1)
    made |= dict(
        zip(("key_image", "key_tile", "key_row", "key_col"), keys[:, :4].astype(int).T, strict=True)
    )
    made["key_box"] = keys[:, 4:]
    if optional:
        made |= {"contribution": made["mass"] * 3, "received_head": received}
        chosen = np.flatnonzero(asks)[-2:]
        made |= {
            "maps": maps.mean(1)[:, chosen][..., seen],
            "map_position": chosen,
            "map_token": of[chosen],
        }
    return made


def _entropy(weights: np.ndarray) -> np.ndarray:
    p = weights / weights.sum(-1, keepdims=True)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Along a new first axis, ragged axes padded as the contract says."""
    shape = np.max([array.shape for array in arrays], axis=0)
    kind = np.asarray(arrays[0]).dtype.kind
    fill = {"f": np.nan, "i": -1}.get(kind, "")
    stacked = np.full((len(arrays), *shape), fill, object if kind in "OU" else arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[tuple(slice(size) for size in array.shape)] = array
    return stacked
