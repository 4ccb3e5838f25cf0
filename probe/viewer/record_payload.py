"""From a record to what a page holds of it: texts, small pictures, and numbers as typed arrays.

    header, packed = payload([record], ["cat"])

By default maps are means over heads; `heads` adds single heads of the record's `maps` and
`received_head`, `top` keeps only the largest patches of those. What a page may hold is limited
(`page_size.py`), with an error that says how much was asked for.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from probe.errors import ProbeError, not_empty
from probe.plots.arguments import default_query, sample_index
from probe.plots.image_views import image_title
from probe.plots.patches import kept_images, small_image
from probe.plots.style import layer_label
from probe.viewer.attribution_payload import attribution_of
from probe.viewer.colour_tables import colour_tables
from probe.viewer.page_size import check_heads, check_packed, chosen_heads
from probe.viewer.patch_views import GRID, match, patches_of
from probe.viewer.token_text import readable
from probe.viewer.typed_arrays import ArrayStore

STATISTICS = ("mass", "lift", "share", "head_entropy", "contribution", "entropy")
SINKS_REMOVED = "no-sinks"  # a quantity by patch, for records that know their sinks


def payload(
    records: Sequence[xr.DataTree],
    labels: Sequence[str],
    *,
    sample: int | str = 0,
    heads: Sequence[int] | str | None = None,
    top: int | None = None,
    attributions: Mapping[str, xr.Dataset] | None = None,
    files: Sequence[str] = (),
) -> tuple[dict[str, Any], bytes]:
    """The header (JSON) and the compressed numbers of a page about one record, or about two.

    sample: index or id. heads: indices, or "all". top: patches of a single head's map that are
    kept. attributions: {label: dataset of `probe.attribute`} of the same sample.
    files: where the records lie, then the attributions, for the Python that the page gives.

    Raises ProbeError for a sample or heads that a record does not have, and for more than a page
    may hold.
    """
    not_empty("view", "record", records)
    if len(records) > 2:
        raise ProbeError("view", expected="one record or two", got=str(len(records)))
    check_heads(records, heads, top)
    store = ArrayStore()
    attributions = attributions or {}
    defaults = ["record.zarr.zip"] * len(records) + ["attribution.zarr.zip"] * len(attributions)
    names = list(files) or defaults
    entries = [
        _record(record, label, file, sample, heads, top, store)
        for record, label, file in zip(records, labels, names, strict=False)
    ]
    added = [
        {"label": label, "python": _opening(file), **attribution_of(dataset, records[0], store)}
        for (label, dataset), file in zip(attributions.items(), names[len(records) :], strict=True)
    ]
    header = {
        "records": entries,
        "attributions": added,
        "quantities": _quantities(entries, added),
        "colours": colour_tables(store),
        "toy": any(record.attrs.get("toy") for record in records),
    }
    if len(records) == 2:
        header["match"] = _matches(records, sample, store)
    packed = store.packed()
    check_packed(packed, heads)
    return header, packed


def _record(
    record: xr.DataTree,
    label: str,
    file: str,
    sample: int | str,
    heads: Sequence[int] | str | None,
    top: int | None,
    store: ArrayStore,
) -> dict[str, Any]:
    root = record.to_dataset()
    index = sample_index(root, sample, "view")
    stacks = {
        name: _stack(root, node.to_dataset(), str(name), index, heads, top, store)
        for name, node in record.children.items()
    }
    several = root.sizes["sample"] > 1
    only = f".sel(sample=[{str(root['sample'].values[index])!r}])" if several else ""
    texts = {
        name: str(root[name].values[index]) if name in root else ""
        for name in ("question", "response")
    }
    return {
        "label": label,
        "python": _opening(file) + only,
        "notes": _notes(record.attrs),
        "images": pictures(root, index),
        "stacks": stacks,
        **texts,
    }


def _opening(file: str) -> str:
    """The Python that opens a file."""
    return f"probe.open_record({file!r})"


def _notes(attrs: Mapping[Any, Any]) -> list[str]:
    """What a caption says of a record: what was changed in the model, how the image was fitted."""
    changes = [str(attrs[name]) for name in ("reducer", "intervention") if attrs.get(name)]
    fitted = f"image fitted by {attrs.get('aspect') or 'its processor'}"
    return [*changes, fitted, *(["toy model"] if attrs.get("toy") else [])]


def _quantities(
    records: Sequence[Mapping[str, Any]], attributions: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """What can be shown by patch: (name, label)."""
    stacks = [stack for record in records for stack in record["stacks"].values()]
    know_sinks = any("sinks" in stack for stack in stacks)
    return [
        ("attention", "attention"),
        *([(SINKS_REMOVED, "attention, sinks removed")] if know_sinks else []),
        ("lift", "lift over an even spread"),
        *((f"effect-{i}", effect["label"]) for i, effect in enumerate(attributions)),
    ]


def _stack(
    root: xr.Dataset,
    measured: xr.Dataset,
    name: str,
    sample: int,
    heads: Sequence[int] | str | None,
    top: int | None,
    store: ArrayStore,
) -> dict[str, Any]:
    """What a page holds of one stack. Axes: layer [head] query|word key."""
    one = measured.isel(sample=sample)
    chosen = chosen_heads(measured, heads)
    entry: dict[str, Any] = {
        "label": layer_label(name),
        "short": layer_label(name).removesuffix(" layer"),
        "layers": measured.sizes["layer"],
        "heads": measured.sizes.get("head", 0),
        "queries": measured["query_type"].values.tolist(),
        "query": default_query(measured),
        "chosen": chosen,
        "statistics": (statistics := _statistics(one, store)),
        "by_head": [
            [name, of["label"]] for name, of in statistics.items() if "head" in one[name].dims
        ],
        "words": [],
    }
    keys = _real_keys(one)
    if "received" not in one or not keys.any():
        return entry
    entry["patches"] = patches = patches_of(_grid(measured, sample), store)
    patches["names"] = {str(i): image_title(one, i) for i in patches["images"]}
    received = one["received"].values[..., keys]
    entry["received"] = store.add_levels(received)
    if "key_sink" in one:
        entry["sinks"] = store.add((one["key_sink"].values[:, keys] > 0).astype(np.uint8))
    if _changed(root.attrs):
        entry["dropped"] = store.add(_dropped(received))
    if "patch_token" in one:
        went = np.flatnonzero(one["patch_token"].values >= 0)
        names = ("token", "box", "image")
        entry["merged"] = {name: store.add(one[f"patch_{name}"].values[went]) for name in names}
    if chosen and "received_head" in one:
        by_head = one["received_head"].values[:, chosen][..., keys]
        entry["received_head"] = store.add_levels(by_head, top)
    if "maps" in one:
        tokens = one["map_position"].values >= 0
        entry["words"] = _words(root if name == "llm" else xr.Dataset(), one, sample, tokens)
        maps = one["maps"].isel(token=np.flatnonzero(tokens), key=np.flatnonzero(keys))
        mean = maps.mean("head") if "head" in maps.dims else maps
        entry["maps"] = store.add_levels(mean.values)
        entry["word_mass"] = store.add(np.nansum(mean.values, -1))
        if chosen and "head" in maps.dims:
            entry["maps_head"] = store.add_levels(maps.values[:, chosen], top)
    return entry


def _matches(
    records: Sequence[xr.DataTree], sample: int | str, store: ArrayStore
) -> dict[str, Any]:
    """By stack, for each patch of the first record, the second one's in the same place."""
    grids = [
        {str(name): _grid(node.to_dataset(), sample) for name, node in record.children.items()}
        for record in records
    ]
    first, second = grids
    shared = [name for name in first if first[name] and second.get(name)]
    return {name: store.add(match(first[name], second[name])) for name in shared}


def _grid(measured: xr.Dataset, sample: int | str) -> dict[str, np.ndarray]:
    """Where the sample's patches lie; {} for a stack without any."""
    one = measured.isel(sample=sample_index(measured, sample, "view"))
    keys = _real_keys(one)
    return {name: one[f"key_{name}"].values[keys] for name in GRID} if keys.any() else {}


def _real_keys(one: xr.Dataset) -> np.ndarray:
    """Which keys of a padded axis belong to the sample: those that any query could see."""
    if "received" not in one:
        return np.zeros(0, bool)
    is_placed = ~np.isnan(one["key_box"].values).any(-1)
    is_seen = ~np.isnan(one["received"].values).all((0, 1))
    return np.asarray(is_placed | is_seen)


def _changed(attrs: Mapping[str, Any]) -> bool:
    return bool(attrs.get("reducer") or attrs.get("intervention"))


def _dropped(received: np.ndarray) -> np.ndarray:
    """Of each layer, which patches no query could see any more: what is hidden counts as 0."""
    return (np.nan_to_num(received).max(1) == 0).astype(np.uint8)


def _statistics(one: xr.Dataset, store: ArrayStore) -> dict[str, Any]:
    """Of attention on vision, with the record's own names and units; the rest has no picture."""
    if "vision" not in one["key_type"].values.tolist():
        return {}
    on_vision = one.sel(key_type="vision")
    return {
        name: {
            "label": on_vision[name].attrs.get("long_name", name),
            "units": on_vision[name].attrs.get("units", ""),
            "values": store.add(on_vision[name].values),
        }
        for name in STATISTICS
        if name in on_vision
    }


def _words(root: xr.Dataset, one: xr.Dataset, sample: int, tokens: np.ndarray) -> list[dict]:
    """The words of the answer: each with the token whose row predicts it, which is the query.
    Without the prompt's tokens, as in other stacks than the LLM, the queries themselves.
    """
    positions = one["map_position"].values[tokens].tolist()
    queries = one["map_token"].values[tokens].tolist()
    texts = root["tokens"].values[sample].tolist() if "tokens" in root else []
    return [
        {
            "text": readable(texts[position + 1] if position + 1 < len(texts) else query),
            "query": readable(query),
        }
        for position, query in zip(positions, queries, strict=True)
    ]


def pictures(root: xr.Dataset, sample: int) -> dict[str, str]:
    """The sample's images, or frames, as data URLs by their number; only those that were kept."""
    return {
        str(image): data_url(small_image(root, sample, image))
        for image in kept_images(root, sample)
    }


def data_url(pixels: np.ndarray) -> str:
    """An image as JPEG in a URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
