"""Parts read without zarr are what zarr reads; what the decoder does not know is left to zarr."""

# pyright: reportAttributeAccessIssue=false

import numpy as np
import pytest
import xarray as xr

from probe.records.archive import read_archive, write_archive
from probe.records.concat import Node
from probe.records.part_decoder import UndecodableError, decoded
from probe.records.part_files import KIND, read_part, write_part
from probe.records.zarr_store import chunks_of, from_zarr, store_of


def tree() -> xr.DataTree:
    ids = {"sample": np.array(["a", "é"], dtype=object)}
    llm = xr.Dataset(
        {
            "mass": (("sample", "layer"), np.array([[1, np.nan], [np.inf, -0.0]], np.float32)),
            "all_nan": (("sample", "layer"), np.full((2, 2), np.nan, np.float32)),
            "zeros": (("sample", "layer"), np.zeros((2, 2), np.int64)),
            "counts": ("sample", np.array([-1, 2**40]), {"units": "1", "long_name": "counts"}),
            "small": ("layer", np.array([0, 255], np.uint8)),
            "flags": (("layer", "sample"), np.array([[True, False], [False, False]])),
            "texts": (("sample", "word"), np.array([["", "x"], ["é\n", ""]], dtype=object)),
            "nothing": (("sample", "none"), np.zeros((2, 0))),
            "single": ((), np.float64(0.1)),
        },
        {"layer": [0, 1], "name": ("layer", np.array(["p", "q"], dtype=object)), "version": 3},
        {"model": "tiny", "share": 0.5, "toy": True},
    )
    root = xr.Dataset({"answer": ("sample", np.array(["", ""], dtype=object))}, ids)
    return xr.DataTree.from_dict({"/": root, "/llm": llm, "/empty": xr.Dataset(attrs={"a": 1})})


def by_zarr(path) -> dict[str, Node]:
    datasets = from_zarr(store_of(read_archive(path)))
    return {name: Node.of(dataset) for name, dataset in datasets.items()}


@pytest.mark.parametrize("data", [tree(), tree()["llm"].to_dataset()], ids=["tree", "dataset"])
def test_what_is_decoded_is_what_zarr_reads(tmp_path, data):
    if isinstance(data, xr.Dataset):
        data = data.assign_coords(sample=np.array(["a", "é"], dtype=object))
    path = write_part(data, tmp_path, run={"fingerprint": {"model": "tiny"}})
    found, expected = decoded(read_archive(path)), by_zarr(path)
    assert found.keys() == expected.keys()
    for where, node in expected.items():
        assert found[where].dataset().identical(node.dataset())
        assert found[where].coords == node.coords
        for name, variable in node.variables.items():
            assert found[where].variables[name].dtype == variable.dtype
    assert read_part(path).identical(data)


def test_an_array_of_several_chunks_is_left_to_zarr(tmp_path):
    data = xr.Dataset({"x": ("sample", np.arange(4.0))}, {"sample": np.array(list("abcd"), object)})
    data["x"].encoding["chunks"] = (2,)
    chunks = chunks_of({"/": data.assign_attrs({KIND: "dataset"})})
    path = tmp_path / "part-0-1-x.zarr.zip"
    write_archive(path, chunks)
    with pytest.raises(UndecodableError, match="chunks"):
        decoded(read_archive(path))
    assert read_part(path)["x"].values.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_what_was_read_can_be_changed_and_read_again(tmp_path):
    path = write_part(tree(), tmp_path)
    for _ in range(2):
        llm = read_part(path)["llm"]
        assert llm["small"].values.tolist() == [0, 255]
        llm["small"].values[:] = 7
        llm["mass"].values[:] = 7
