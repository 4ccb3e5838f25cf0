"""Results that a sweep could have made, of a model whose answers need vision in known layers.

>>> table = planted_sweep(needed=(1,))
>>> table["correct"].sel(case=["1", "2"]).mean("sample").values.tolist()
[1.0, 0.25]
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

ALWAYS = ("untouched", "no vision", "another image")
KINDS = ("colour", "count")


def planted_sweep(
    images: int = 8,
    *,
    layers: int = 4,
    needed: Sequence[int] = (1,),
    cases: Sequence[Sequence[int]] | None = None,
    mode: str = "mask",
    **attrs: str,
) -> xr.Dataset:
    """Two questions an image. Right unless a `needed` layer is dropped; then one image in four is
    still right.

    By default every layer alone, from every layer on, and up to every layer.
    """
    if cases is None:
        ends = [[*range(i, layers)] for i in range(layers)] + [
            [*range(i)] for i in range(2, layers)
        ]
        cases = [[i] for i in range(layers)] + ends
    named = {_name(case): set(case) for case in cases}
    dropped = [set(), set(range(layers)), set(), *named.values()]
    hurt = [False, True, True, *(bool(chosen & set(needed)) for chosen in named.values())]
    lucky = np.repeat(np.arange(images) % 4 == 0, len(KINDS))
    correct = np.array([[float(not h or luck) for h in hurt] for luck in lucky], np.float32)
    kl = np.where(np.array(hurt), 1.0, 0.01).astype(np.float32) * np.ones_like(correct)
    kl[:, 0] = 0
    table = {
        "answer": (("sample", "case"), np.where(correct > 0, "red", "blue").astype(object)),
        "correct": (("sample", "case"), correct),
        "gold_logprob": (("sample", "case"), -kl),
        "kl": (("sample", "case"), kl),
        "dropped": (
            ("case", "layer"),
            np.array([[i in chosen for i in range(layers)] for chosen in dropped]),
        ),
        "image": ("sample", np.array([f"p{i // len(KINDS)}" for i in range(len(correct))], object)),
        "kind": ("sample", np.array(KINDS * images, object)),
    }
    if mode == "swap":
        table["donor_answer_given"] = (("sample", "case"), 1 - correct)
    coords = {
        "case": np.array([*ALWAYS, *named], object),
        "layer": np.arange(layers),
        "sample": np.array([f"s{i}" for i in range(len(correct))], object),
    }
    return xr.Dataset(
        table,
        coords,
        {"model": "planted", "mode": mode} | attrs,
    )


def planted_run(**options) -> xr.DataTree:
    """Three modes and attention, as a run of `probe drop` has them."""
    tables = {mode: planted_sweep(mode=mode, **options) for mode in ("mask", "zero", "swap")}
    first = tables["mask"]
    shape = (first.sizes["sample"], first.sizes["layer"], 2)
    values = np.broadcast_to(np.linspace(0.6, 0.2, shape[1])[None, :, None], shape).astype(
        np.float32
    )
    attention = xr.Dataset(
        dict.fromkeys(("mass", "share", "lift"), (("sample", "layer", "query_type"), values)),
        {"layer": np.arange(shape[1]), "query_type": np.array(["instruction", "response"], object)},
    )
    nodes = {name: table.drop_vars(["image", "kind"]) for name, table in tables.items()}
    return xr.DataTree.from_dict({"/": first[["image", "kind"]], **nodes, "attention": attention})


def _name(layers: Sequence[int]) -> str:
    return str(layers[0] + 1) if len(layers) == 1 else f"{layers[0] + 1}-{layers[-1] + 1}"
