"""A record keeps its contract, comes back from its file as it was, and is refused when it is not
one.
"""

# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (xarray types tree["a"]["b"] as a tree or an array)

import json
import math
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from planted_records import planted_record

from probe import records
from probe.errors import ProbeError


def changed(record, stack, **variables):
    """A copy with other values in a stack: {variable: function of the old values}."""
    copy = record.copy(deep=True)
    for name, change in variables.items():
        copy[stack][name].values[:] = change(copy[stack][name].values)
    return copy


def with_attrs(record, **attrs):
    copy = record.copy(deep=True)
    copy.attrs.update(attrs)
    return copy


def one_line(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.fixture(scope="module")
def record():
    return planted_record(2, optional=True)


# contract


def test_every_variable_has_its_dims_dtype_and_units(record):
    for table, node in [
        (records.ROOT, record),
        *((records.STACK, node) for node in record.children.values()),
    ]:
        for name, array in node.data_vars.items():
            assert array.dims == table[name].dims_of(array.ndim)
            assert array.dtype == table[name].dtype
            assert array.attrs["units"] == table[name].units
    assert record["llm"]["layer"].values.tolist() == [0, 1, 2, 3]
    assert record["llm"]["edge"].values.tolist() == list(records.EDGES)


@pytest.mark.parametrize(
    ("variable", "change", "complaint"),
    [
        ("mass", lambda old: old + 2, "llm/mass"),
        ("mass", lambda old: old * 0.9, "llm/mass·query_count"),
        ("share", lambda old: old * 0.9, "llm/share to sum to 1"),
        ("entropy", lambda old: -old, "llm/entropy"),
        ("lift", lambda old: np.full_like(old, np.inf), "llm/lift"),
        ("entropy_count", lambda old: old * 0, "llm/entropy to be NaN where entropy_count is 0"),
        ("key_count", lambda old: old - 100, "llm/key_count"),
    ],
)
def test_broken_numbers_are_named(record, variable, change, complaint):
    with pytest.raises(ProbeError) as error:
        records.validate(changed(record, "llm", **{variable: change}))
    assert complaint in str(error.value)
    assert one_line(error)


def test_wrong_dims_dtypes_attrs_and_missing_variables_are_named(record):
    llm = record["llm"].to_dataset(inherit=False)
    broken = {
        "llm/mass": llm.assign(mass=llm["mass"].transpose("sample", "head", "layer", ...)),
        "float32": llm.assign(mass=llm["mass"].astype("float64").assign_attrs(llm["mass"].attrs)),
        "llm/query_count": llm.drop_vars("query_count"),
        "llm/head": llm.drop_vars("head"),
        "units": llm.assign(mass=llm["mass"].assign_attrs(units="%")),
    }
    for complaint, node in broken.items():
        with pytest.raises(ProbeError, match=complaint):
            records.validate(xr.DataTree.from_dict({"/": record.to_dataset(), "llm": node}))


@pytest.mark.parametrize("thing", [None, "record.zarr.zip", xr.Dataset(), xr.DataTree()])
def test_what_is_no_record_is_told_in_a_line(thing):
    with pytest.raises(ProbeError, match=r"record\.validate: expected a record"):
        records.validate(thing)


def test_attrs_are_plain_and_samples_unique(record):
    with pytest.raises(ProbeError, match=r"attrs\['kept'\]"):
        records.validate(with_attrs(record, kept=[1, 2]))
    twice = record.to_dataset().assign_coords(sample=np.array(["a", "a"], object))
    with pytest.raises(ProbeError, match="'a' 2 times"):
        records.validate(
            xr.DataTree.from_dict({"/": twice, "llm": record["llm"].to_dataset(inherit=False)})
        )


def test_an_intervention_may_hide_attention_but_not_add_some(record):
    less = changed(record, "llm", mass=lambda old: old * 0.5, share=lambda old: old * 0.5)
    records.validate(with_attrs(less, intervention="drop_vision"))
    more = changed(record, "vision", mass=lambda old: np.minimum(old * 1.5, 1))
    with pytest.raises(ProbeError, match="vision/mass"):
        records.validate(with_attrs(more, intervention="drop_vision"))


def test_rows_that_were_not_measured_are_nan_and_valid(record):
    def no_vision_rows(old):
        old[..., 1, :] = np.nan
        return old

    names = ("mass", "share", "lift", "entropy", "head_entropy")
    names += ("entropy_ratio", "head_entropy_ratio")
    records.validate(changed(record, "llm", **dict.fromkeys(names, no_vision_rows)))


def test_a_users_own_variable_passes():
    record = planted_record(1, stacks=["llm"])
    record["llm"]["mine"] = xr.DataArray(np.arange(4.0), dims="layer")
    records.validate(record)


@pytest.mark.parametrize(
    ("samples", "stacks", "complaint"),
    [
        ({"sample": ["a"], "qestion": ["?"]}, {}, "qestion"),
        ({"sample": ["a"]}, {"llm": {"mass": np.zeros((1, 2))}}, "llm/mass"),
        (
            {"sample": ["a"]},
            {"llm": {"key_count": [[1], [2]], "key_type": ["text"]}},
            "as many samples",
        ),
        ({"sample": ["a"], "tokens": [["x", None]]}, {"llm": {}}, "only strings in tokens"),
        ({"sample": ["a"], "tokens": [["x"]], "token_type": [["x", "y"]]}, {}, "equal sizes"),
    ],
)
def test_assemble_refuses_what_does_not_fit(samples, stacks, complaint):
    with pytest.raises(ProbeError, match=complaint) as error:
        records.assemble(samples, stacks, {})
    assert one_line(error)


# derived


def test_entropy_ratio_is_that_of_each_query(record):
    pooled, single = (records.entropy_ratio(record, value=v) for v in ("entropy", "head_entropy"))
    xr.testing.assert_equal(pooled, record["llm"]["entropy_ratio"])
    assert single.dims == ("sample", "layer", "head", "query_type", "key_type")
    seen = {"query_type": "response", "key_type": "vision"}  # every response token sees all patches
    keys = record["llm"]["key_count"].sel(key_type="vision")
    expected = record["llm"]["entropy"].sel(seen) / np.log(keys)
    np.testing.assert_allclose(pooled.sel(seen), expected, rtol=1e-6)
    causal = {"query_type": "vision", "key_type": "vision"}  # most of these see only some
    assert (pooled.sel(causal) > record["llm"]["entropy"].sel(causal) / np.log(keys)).all()


def test_a_record_without_the_ratio_opens_and_says_what_to_do(record, tmp_path):
    old = record.copy(deep=True)
    for name in ("entropy_ratio", "head_entropy_ratio"):
        del old["llm"][name]
    opened = records.open_record(records.save_record(old, tmp_path / "old.zarr.zip"))
    assert opened.probe.entropy("response", "vision").notnull().all()
    for ask in (
        lambda: records.entropy_ratio(opened),
        lambda: opened.probe.head_entropy(ratio=True),
        lambda: opened.probe.plot.entropy(ratio=True),
    ):
        with pytest.raises(ProbeError, match=r"earlier version of probe\); measure it again") as e:
            ask()
        assert one_line(e)


def test_entropy_ratio_of_a_stack_that_is_not_there(record):
    with pytest.raises(ProbeError, match="a stack of llm, vision, got 'lm'"):
        records.entropy_ratio(record, "lm")


def test_the_table_has_a_row_for_every_number(record):
    table = records.to_dataframe(record)
    assert [*table] == [
        "stack",
        "sample",
        "layer",
        "head",
        "query_type",
        "key_type",
        "variable",
        "value",
    ]
    assert set(table["variable"]) == set(records.MEASURED)
    assert table["value"].notna().all()
    numbers = sum(
        int(node[name].notnull().sum())
        for node in record.children.values()
        for name in records.MEASURED
    )
    assert len(table) == numbers
    row = table.query(
        "stack == 'llm' and variable == 'mass' and layer == 2 and head == 1 and sample == 's1'"
    )
    value = row.set_index(["query_type", "key_type"])["value"]["response", "vision"]
    place = {"sample": "s1", "layer": 2, "head": 1, "query_type": "response", "key_type": "vision"}
    assert value == float(record["llm"]["mass"].sel(place))
    assert table.query("variable == 'entropy'")["head"].isna().all()


def test_the_table_shows_other_variables_on_request(record):
    table = records.to_dataframe(record, variables=["received", "query_count"])
    assert {"key", "variable"} <= set(table)
    assert set(table["variable"]) == {"received", "query_count"}
    with pytest.raises(ProbeError, match="got attention"):
        records.to_dataframe(record, variables=["attention"])


def test_the_table_of_one_variable_is_asked_for_by_its_name(record):
    pd.testing.assert_frame_equal(
        records.to_dataframe(record, "mass"), records.to_dataframe(record, ["mass"])
    )
    with pytest.raises(ProbeError, match="got attention"):
        records.to_dataframe(record, "attention")


@pytest.mark.usefixtures("unchecked")
def test_a_table_of_what_is_no_record_is_refused_in_a_line(record):
    with pytest.raises(ProbeError, match=r"to_dataframe: expected a record .* got Dataset"):
        records.to_dataframe(record["llm"].to_dataset())


# merging


def test_merging_copies_every_number_and_pads_the_rest():
    short, long = (
        planted_record(1, grid=3, prefix="a"),
        planted_record(3, grid=4, prefix="b", seed=1),
    )
    merged = records.merge([short, long])
    assert merged["sample"].values.tolist() == ["a0", "b0", "b1", "b2"]
    for name, node in {"": merged, **merged.children}.items():
        for variable, array in node.data_vars.items():
            for part, rows in [(short, slice(0, 1)), (long, slice(1, 4))]:
                original = (part[name] if name else part)[variable].values
                inside = array.values[rows][tuple(slice(size) for size in original.shape)]
                np.testing.assert_array_equal(inside, original)
                assert array.dtype == original.dtype
    assert np.isnan(merged["llm"]["received"].values[0, ..., 9:]).all()
    assert (merged["llm"]["key_row"].values[0, 9:] == -1).all()
    assert merged["tokens"].values[0, -1] == ""


def test_merging_is_the_same_in_any_grouping():
    a, b, c = (
        planted_record(1, stacks=["llm"], prefix=name, images=1 + (name == "b"), note=name)
        for name in "abc"
    )
    assert records.merge([records.merge([a, b]), c]).identical(
        records.merge([a, records.merge([b, c])])
    )
    assert records.merge([a, b, c]).attrs["note"] == "a, b, c"
    assert records.merge([a]).identical(a)


def test_a_record_without_images_joins_one_with():
    text = planted_record(1, prefix="t")
    text = xr.DataTree.from_dict(
        {
            "/": text.to_dataset().drop_vars(["images", "image_size"]),
            **{name: node.to_dataset(inherit=False) for name, node in text.children.items()},
        }
    )
    merged = records.merge([text, planted_record(1)])
    assert merged["image_size"].values.tolist() == [[[0, 0]], [[48, 72]]]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"layers": 5}, "llm layer"),
        ({"heads": 2}, "llm head"),
        ({"stacks": ["llm"]}, "stacks"),
        ({"optional": True}, "llm variables"),
        ({"model": "llava-1.5"}, "attrs['model']"),
        ({"aspect": "crop"}, "attrs['aspect']"),
        ({"intervention": "drop_vision(8-32)"}, "attrs['intervention']"),
    ],
)
def test_different_measurements_are_not_merged(other, named):
    with pytest.raises(ProbeError) as error:
        records.merge([planted_record(1), planted_record(1, prefix="b", **other)])
    assert f"the same {named}" in str(error.value)
    assert one_line(error)


def test_other_types_and_repeated_samples_are_not_merged():
    first = planted_record(1, stacks=["llm"])
    names = np.array(["bos", "vision", "response"], object)
    renamed = first["llm"].to_dataset(inherit=False).assign_coords(query_type=names)
    other = xr.DataTree.from_dict({"/": first.to_dataset(), "llm": renamed})
    with pytest.raises(ProbeError, match="the same llm query_type"):
        records.merge([first, other])
    with pytest.raises(ProbeError, match="'s0' 2 times"):
        records.merge([first, first])
    with pytest.raises(ProbeError, match="at least one"):
        records.merge([])


# files


def test_a_file_gives_back_the_same_record_without_a_warning(record, tmp_path):
    odd = with_attrs(record, seed=3, threshold=0.25)
    odd["question"].values[:] = ["", "¿qué hay? 日本 🦙\n\x00"]
    odd["llm"]["mine"] = xr.DataArray(np.array(["a", "", "ü", "d"], object), dims="layer")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = records.save_record(odd, tmp_path / "new" / "record")
        back = records.open_record(path)
    assert path.name == "record.zarr.zip"
    assert back.identical(odd)
    assert list(back["llm"].data_vars) == list(odd["llm"].data_vars)
    for node, old in zip(back.subtree, odd.subtree, strict=True):
        assert {name: array.dtype for name, array in node.variables.items()} == {
            name: array.dtype for name, array in old.variables.items()
        }
    assert all(type(text) is str for text in back["tokens"].values.flat)
    assert records.open_record(tmp_path / "new" / "record").identical(odd)
    path.unlink()  # it is in memory
    assert back["llm"]["mass"].notnull().any()


def test_a_folder_of_results_is_told_which_files_it_holds(record, tmp_path):
    records.save_record(record, tmp_path / "ablation")
    with pytest.raises(ProbeError, match=r"pass a file in it: ablation\.zarr\.zip"):
        records.open_record(tmp_path)


def test_what_was_opened_can_be_saved_and_merged_again(tmp_path):
    record = planted_record(1, stacks=["llm"])
    path = records.save_record(record, tmp_path / "a.zarr.zip")
    again = records.save_record(records.open_record(path), tmp_path / "b.anything")
    assert again.name == "b.anything"
    assert again.read_bytes() == path.read_bytes()
    other = records.open_record(
        records.save_record(planted_record(1, stacks=["llm"], prefix="x"), tmp_path / "c")
    )
    merged = records.merge([records.open_record(path), other])
    assert records.open_record(records.save_record(merged, tmp_path / "d")).identical(merged)


def test_booleans_come_back_as_booleans(record, tmp_path):
    for toy in (True, False):
        path = records.save_record(with_attrs(record, toy=toy), tmp_path / "record")
        assert records.open_record(path).attrs["toy"] is toy


def test_files_with_the_old_names_of_images_open(record, tmp_path):
    old = record.copy()
    names = {"images": "picture", "image_size": "picture_size"}
    old.dataset = old.to_dataset().rename(names)
    back = records.open_record(records.save_record(old, tmp_path / "old"))
    assert back.identical(record)


def test_no_images_and_no_tokens_survive_a_file(tmp_path):
    node = {"query_type": ["text"], "key_type": ["text"], "mass": np.ones((1, 2, 4, 1, 1))}
    node |= {
        "query_count": [[[3]]],
        "key_count": [[3]],
        "received": np.zeros((1, 2, 1, 0)),
        "key_box": np.zeros((1, 0, 4)),
    }
    root = {
        "sample": ["a"],
        "tokens": np.empty((1, 0), object),
        "images": np.zeros((1, 0, 0, 0, 3)),
    }
    record = records.assemble(root, {"llm": node}, {})
    back = records.open_record(records.save_record(record, tmp_path / "empty"))
    assert back.identical(record)
    assert back["tokens"].dtype == object


def test_images_are_compressed(tmp_path):
    record = planted_record(1, stacks=["llm"])
    grown = record.to_dataset().drop_vars(["images"])
    flat = xr.Variable(
        ("sample", "image", "y", "x", "channel"), np.full((1, 1, 672, 672, 3), 9, "uint8")
    )
    flat.attrs = record["images"].attrs
    tree = xr.DataTree.from_dict(
        {"/": grown.assign(image=flat), "llm": record["llm"].to_dataset(inherit=False)}
    )
    assert records.save_record(tree, tmp_path / "flat").stat().st_size < 100_000


def test_where_nothing_can_be_written_is_told_in_a_line(record, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for path in (
        tmp_path,
        tmp_path / "file" / "record",
        tmp_path / "file" / "deep" / "record",
        "/proc/record",
    ):
        with pytest.raises(ProbeError, match=r"record\.save") as error:
            records.save_record(record, path)
        assert one_line(error)
        assert repr(str(path))[:-1] in str(error.value)


@pytest.mark.parametrize("path", ["a" * 300, "a" * 300 + ".zip"])
def test_a_name_that_is_too_long_is_told_in_a_line(record, path):
    for use in (lambda: records.save_record(record, path), lambda: records.open_record(path)):
        with pytest.raises(ProbeError, match="File name too long") as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("path", ["a\0b", "a\0b/c.zip", None, 5, b"record"])
def test_what_is_no_path_is_told_in_a_line(record, path):
    with pytest.raises(ProbeError, match=r"record\.save") as error:
        records.save_record(record, path)
    assert one_line(error)
    with pytest.raises(ProbeError, match=r"record\.open") as error:
        records.open_record(path)
    assert one_line(error)


def test_a_failed_write_leaves_nothing_and_the_old_file(record, tmp_path, monkeypatch):
    path = records.save_record(record, tmp_path / "record")
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "writestr", interrupted)
    with pytest.raises(KeyboardInterrupt):
        records.save_record(planted_record(1), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["record.zarr.zip"]


def test_a_record_that_breaks_its_contract_is_not_saved(record, tmp_path):
    with pytest.raises(ProbeError, match="llm/mass"):
        records.save_record(changed(record, "llm", mass=lambda old: old + 2), tmp_path / "bad")
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_cannot_hold_is_told_in_a_line(tmp_path):
    record = planted_record(1, stacks=["llm"])
    record["llm"]["mine"] = xr.DataArray(np.array([{}, 1, "a", None], object), dims="layer")
    with pytest.raises(ProbeError, match="mine") as error:
        records.save_record(record, tmp_path / "bad")
    assert one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_record_file_is_told_in_a_line(record, tmp_path):
    whole = records.save_record(record, tmp_path / "record").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    files = {
        "text.txt": b"hello",
        "empty.zip": b"",
        "short.zarr.zip": whole[: len(whole) // 2],
        "flipped.zip": flipped,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "not zarr")
    for name in [*files, "other.zip", "missing.zarr.zip", "."]:
        with pytest.raises(ProbeError, match=r"record\.open: expected a record") as error:
            records.open_record(tmp_path / name)
        assert one_line(error)
        assert str(tmp_path / name) in str(error.value)


def test_the_planted_numbers_are_what_they_claim(record):
    """The factory is an oracle for others, so bounds that any attention keeps are checked on it."""
    pooled, single = record["llm"]["entropy"], record["llm"]["head_entropy"].mean("head")
    assert float(pooled.sel(query_type="response", key_type="instruction").max()) <= math.log(5)
    assert bool(
        (single <= pooled + 1e-5).where(pooled.notnull(), True).mean() > 0.9
    )  # pooling spreads


# damaged files, and files that declare too much


def rewritten(path, change):
    """The file again by another program, with members changed: {name: content} -> the same."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in change(members).items():
            archive.writestr(name, content)


def test_a_record_without_one_of_its_chunks_is_refused(record, tmp_path):
    path = records.save_record(record, tmp_path / "record")
    whole = path.read_bytes()
    names = zipfile.ZipFile(path).namelist()
    for lost in names:
        path.write_bytes(whole)
        rewritten(path, lambda members, lost=lost: {k: v for k, v in members.items() if k != lost})
        with pytest.raises(ProbeError, match=r"record\.open") as error:
            records.open_record(path)
        assert one_line(error)
    path.write_bytes(whole)
    rewritten(path, lambda members: members)  # only packed again
    assert records.open_record(path).identical(record)


def test_a_flipped_bit_is_found_or_changes_nothing(record, tmp_path):
    path = records.save_record(record, tmp_path / "record")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    central = whole.index(b"PK\x01\x02")
    places = [*rng.integers(0, len(whole), 60), *rng.integers(central, len(whole), 60)]
    found = 0
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            assert records.open_record(path).identical(record)
        except ProbeError:
            found += 1
    assert found > len(places) / 2


def test_files_from_before_there_were_checksums_open(record, tmp_path):
    path = records.save_record(record, tmp_path / "record")

    def without_checksum(members):
        root = json.loads(members["zarr.json"])
        assert len(root["attributes"].pop("probe_sha256")) == 64
        return members | {"zarr.json": json.dumps(root).encode()}

    rewritten(path, without_checksum)
    back = records.open_record(path)
    assert back.identical(record)
    assert "probe_sha256" not in back.attrs


def test_a_file_that_declares_too_much_is_refused_before_it_is_read(tmp_path):
    zeros = xr.Dataset({"x": ("a", np.zeros(40_000_000, np.float32))}, attrs={"kind": "zeros"})
    path = records.save_record(zeros, tmp_path / "zeros")  # 160 MB in a few KB
    with pytest.raises(ProbeError, match=r"declare 1\.6e\+08 bytes, more than 1e\+08.*largest="):
        records.open_record(path, largest=1e8)
    assert records.open_record(path, largest=2e8)["x"].size == 40_000_000
    for key, value in (("shape", [10**12]), ("chunk_grid", None)):

        def claim(members, key=key, value=value):
            node = json.loads(members["x/zarr.json"])
            grid = {"name": "regular", "configuration": {"chunk_shape": [10**12]}}
            node[key] = value or grid
            root = json.loads(members["zarr.json"])
            root["attributes"].pop("probe_sha256")
            changed_nodes = {"x/zarr.json": node, "zarr.json": root}
            return members | {k: json.dumps(v).encode() for k, v in changed_nodes.items()}

        path = records.save_record(zeros.isel(a=slice(8)), tmp_path / "claims")
        rewritten(path, claim)
        with pytest.raises(ProbeError, match=r"declare 4e\+12 bytes"):
            records.open_record(path)


def test_a_chunk_or_member_that_unpacks_to_too_much_is_refused(tmp_path):
    big = xr.Dataset({"x": ("a", np.zeros(40_000_000, np.float32))}, attrs={"kind": "zeros"})
    with zipfile.ZipFile(records.save_record(big, tmp_path / "big")) as archive:
        chunk = max((archive.read(n) for n in archive.namelist() if "/c/" in n), key=len)
    path = records.save_record(big.isel(a=slice(8)), tmp_path / "small")

    def swapped(members):
        root = json.loads(members["zarr.json"])
        root["attributes"].pop("probe_sha256")
        return members | {"x/c/0": chunk, "zarr.json": json.dumps(root).encode()}

    rewritten(path, swapped)
    with pytest.raises(ProbeError, match="its chunks declare"):
        records.open_record(path, largest=1e6)
    rewritten(path, lambda members: members | {"y": bytes(20_000_000)})
    assert path.stat().st_size < 1e6
    with pytest.raises(ProbeError, match=r"its members declare 2e\+07 bytes"):
        records.open_record(path, largest=1e7)


@pytest.mark.parametrize("number", ["1" * 5_000_000, "[" * 100_000])
def test_metadata_that_json_refuses_is_told_in_a_line(record, tmp_path, number):
    path = records.save_record(record, tmp_path / "record")
    rewritten(path, lambda members: members | {"zarr.json": number.encode()})
    with pytest.raises(ProbeError, match=r"record\.open") as error:
        records.open_record(path)
    assert one_line(error)
