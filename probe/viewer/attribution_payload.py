"""What a page holds of an attribution: the effect of each region, on every patch in it."""

from typing import Any

import numpy as np
import xarray as xr

from probe.errors import ProbeError
from probe.viewer.patch_views import GRID, patches_of
from probe.viewer.token_text import readable
from probe.viewer.typed_arrays import ArrayStore

NAT = "nat"  # the units of `probe.attribute`; those of `probe.flow` are others


def attribution_of(dataset: xr.Dataset, record: xr.DataTree, store: ArrayStore) -> dict[str, Any]:
    """Values over the encoder's patches, of the answer as a whole and of each of its tokens.

    Raises ProbeError for an attribution without regions, or of another model than the record.
    """
    if "patch_feature" not in dataset or not (dataset["feature_kind"] == "region").any():
        raise ProbeError(
            "view",
            expected="an attribution to regions of the image",
            got=f"one to {', '.join(sorted(set(dataset['feature_kind'].values.tolist())))}",
            fix="give an attribution over 'patches' or 'grid'",
        )
    models = str(record.attrs.get("model")), str(dataset.attrs.get("model"))
    if models[0] != models[1]:
        raise ProbeError("view", expected=f"an attribution of {models[0]}", got=f"of {models[1]}")
    feature = dataset["patch_feature"].values
    placed = (feature >= 0) & ~np.isnan(dataset["patch_box"].values).any(-1)
    grid = {name: dataset[f"patch_{name}"].values[placed] for name in GRID}
    values = dataset["attribution"].values[feature[placed]].astype(np.float32)
    units = str(dataset["attribution"].attrs.get("units", NAT))
    entry: dict[str, Any] = {
        "method": str(dataset.attrs.get("method", "attribution")).replace("_", " "),
        "units": "nat of the answer's log-probability" if units == NAT else units,
        "patches": patches_of(grid, store),
        "values": store.add(values),
    }
    if "token_attribution" in dataset:
        by_token = dataset["token_attribution"].values[:, feature[placed]]
        entry["tokens"] = [readable(text) for text in dataset["token_text"].values]
        entry["by_token"] = store.add(by_token.astype(np.float32))
    return entry
