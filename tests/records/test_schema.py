"""A dataset is what its schema says, and what does not fit is named."""

import numpy as np
import pytest

from probe.errors import ProbeError
from probe.records.provenance import content_hash, hash_files, provenance
from probe.records.schema import Variable, dataset

SCHEMA = {
    "gini": Variable("view layer", "1", "Gini coefficient"),
    "count": Variable("view [layer]", "patches", "patches", dtype="int32"),
    "word": Variable("view", "text", "the word", dtype="object"),
    "exact": Variable("view", "FLOP", "operations", dtype=None),
    "device": Variable("view", "text", "where it ran", dtype="object"),
    "box": Variable("view edge", "fraction", "edges"),
}


def test_dims_dtypes_units_and_labels_come_from_the_schema():
    values = {
        "word": np.array(["a", "b"]),
        "gini": np.ones((2, 3)),
        "count": [[1, 2, 3], [4, 5, 6]],
        "exact": [2**60, 1],
        "box": np.zeros((2, 4)),
    }
    coords = {"view": ["x", "y"], "device": ["cpu", "cuda"]}
    made = dataset("here", values, SCHEMA, coords, {"seed": np.int64(3), "toy": np.bool_(True)})
    assert list(made.data_vars) == ["gini", "count", "word", "exact", "box"]
    assert made["gini"].dims == ("view", "layer")
    assert made["gini"].attrs == {"long_name": "Gini coefficient", "units": "1"}
    assert [made[name].dtype for name in ("gini", "count", "word")] == ["float32", "int32", object]
    assert int(made["exact"][0]) == 2**60
    assert type(made["word"].values[0]) is str
    assert made["layer"].values.tolist() == [0, 1, 2]
    assert made["edge"].values.tolist() == ["left", "top", "right", "bottom"]
    assert made["device"].dims == ("view",) and made["device"].attrs["units"] == "text"
    assert made.attrs == {"seed": 3, "toy": True} and made.attrs["toy"] is True


def test_a_dimension_in_brackets_may_be_left_out():
    assert dataset("here", {"count": [1, 2]}, SCHEMA)["count"].dims == ("view",)
    labels = dataset("here", {"gini": np.ones((1, 2))}, SCHEMA, {"layer": [4, 7]})["layer"]
    assert labels.values.tolist() == [4, 7]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"ginny": [1]}, "here: expected variables of gini, count, word, .* got ginny"),
        ({"gini": [1.0]}, r"here: expected gini \(view layer\) float32 in '1', got shape \(1,\)"),
        ({"gini": np.ones((2, 3)), "word": ["a"]}, "here: expected equal sizes on shared dims"),
    ],
)
def test_what_does_not_fit_is_named(values, complaint):
    with pytest.raises(ProbeError, match=complaint):
        dataset("here", values, SCHEMA)


class Subject:
    def provenance(self):
        return {"model": "none", "toy": np.bool_(False)}


def test_provenance_has_the_version_and_plain_values():
    attrs = provenance(Subject(), kind="sinks", seed=np.int64(1))
    assert attrs.pop("probe_version")
    assert attrs == {"model": "none", "toy": False, "kind": "sinks", "seed": 1}
    assert attrs["toy"] is False and type(attrs["seed"]) is int


def test_a_content_hash_depends_on_content_and_not_on_how_it_comes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"content" * 300_000)
    whole = path.read_bytes()
    assert content_hash(path) == content_hash(whole) == hash_files([path])["a.txt"]
    assert content_hash(iter([whole[:5], whole[5:]])) == content_hash(whole.decode())
    assert content_hash("abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, B.1
    )
    assert content_hash("abc", length=16) == content_hash("abc")[:16] != content_hash("abd")[:16]
