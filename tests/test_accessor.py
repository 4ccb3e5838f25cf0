"""`record.probe`: available once a record was made or opened; equal to the functions it calls."""

import importlib
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from planted_records import planted_record

import probe
from probe.errors import ProbeError

accessor = importlib.import_module("probe.accessor")


@pytest.fixture(scope="module")
def record():
    return planted_record(3, optional=True)


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-W", "error::xarray.core.extensions.AccessorRegistrationWarning"]
    done = subprocess.run([*command, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_probe_registers_nothing():
    assert fresh("import probe, xarray; print(hasattr(xarray.DataTree, 'probe'))") == "False"
    modules = "import probe, probe.records, xarray, sys; print(hasattr(xarray.DataTree, 'probe'))"
    assert fresh(modules) == "False"


def test_an_opened_record_has_it_and_needs_no_torch_or_matplotlib(record, tmp_path):
    path = record.probe.save(tmp_path / "record")
    code = f"""
import sys, probe
record = probe.open_record({str(path)!r})
print(record.probe.mass("response", "vision").dims)
print({{"torch", "matplotlib"}} & set(sys.modules))
"""
    assert fresh(code).splitlines() == ["('sample', 'layer')", "set()"]


def test_a_measured_record_has_it():
    code = """
import probe
subject = probe.load("tiny-llava")
from probe.models.tiny.questions import sample_image
image, question, _ = sample_image(seed=0)
record = probe.measure(subject, image, question, "a")
print(record.probe.mass("response", "vision").sizes["sample"], record.probe.plot.mass() is not None)
"""
    assert fresh(code).endswith("1 True")


def test_registering_again_gives_no_warning(record):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accessor.register()
        importlib.reload(accessor)
    assert record.probe.mass().dims


@pytest.mark.parametrize("name", ["mass", "share", "lift", "head_entropy", "entropy"])
def test_numbers_are_head_means_by_sample_and_layer(record, name):
    array = record["llm"][name].sel(query_type="response", key_type="vision")
    expected = array.mean("head") if "head" in array.dims else array
    numbers = getattr(record.probe, name)("response", "vision")
    assert numbers.dims == ("sample", "layer")
    xr.testing.assert_equal(numbers.drop_attrs(), expected.drop_attrs())
    assert numbers.attrs["units"] == record["llm"][name].attrs["units"]
    every = getattr(record.probe, name)()
    assert set(every.dims) == {"sample", "layer", "query_type", "key_type"}


def test_entropy_ratio_and_received(record):
    ratio = record.probe.entropy("vision", "vision", ratio=True)
    expected = record["llm"]["entropy_ratio"].sel(query_type="vision", key_type="vision")
    xr.testing.assert_equal(ratio, expected)
    assert record.probe.head_entropy(ratio=True).dims[-2:] == ("query_type", "key_type")
    received = record.probe.received("response")
    assert received.dims == ("sample", "layer", "key")
    xr.testing.assert_equal(received, record["llm"]["received"].sel(query_type="response"))
    assert record.probe.mass("cls", "vision", "vision").dims == ("sample", "layer")


def test_plots_are_those_of_probe_plots(record):
    assert isinstance(record.probe.plot.mass(), Axes)
    assert isinstance(record.probe.plot.heads("response", "vision"), Axes)
    for figure in (
        record.probe.plot.entropy(),
        record.probe.plot.heatmaps(layers=[0]),
        record.probe.plot.conventions(),
    ):
        assert isinstance(figure, Figure)
    assert set(record.probe.plot.figures()) == set(probe.plots.figures(record))
    axis = plt.subplots()[1]
    assert record.probe.plot.mass(value="share", ax=axis) is axis
    assert "mass" in dir(record.probe.plot)
    assert record.probe.plot.mass.__doc__ == probe.plots.mass.__doc__


def test_table_and_file(record, tmp_path):
    assert record.probe.to_dataframe().equals(probe.to_dataframe(record))
    opened = probe.open_record(record.probe.save(tmp_path / "a"))
    xr.testing.assert_equal(opened, record)
    xr.testing.assert_identical(probe.open_record(opened.probe.save(tmp_path / "b")), opened)


def test_mistakes_are_one_line(record):
    for call, complaint in [
        (lambda: record.probe.mass("dog"), "types of instruction, vision, response, got 'dog'"),
        (lambda: record.probe.mass(stack="encoder"), "a stack of llm, vision, got 'encoder'"),
        (lambda: record.isel(sample=[0]).probe.plot.mass("encoder"), "got 'encoder'"),
    ]:
        with pytest.raises(ProbeError, match=complaint):
            call()
    less = record.copy()
    less["llm"] = less["llm"].to_dataset().drop_vars("received")
    with pytest.raises(ProbeError, match=r"probe\.received: expected a record with mass"):
        less.probe.received()
    with pytest.raises(AttributeError, match=r"record.probe.plot has mass, .* not 'pie'"):
        record.probe.plot.pie()
