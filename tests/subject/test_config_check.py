"""A folder's config starts no download and builds no model without end."""

import json

import pytest

from probe.errors import ProbeError
from probe.models.tiny import FOLDERS
from probe.subject.config_check import check_config
from probe.subject.model_source import ModelSource


def folder_with(tmp_path, **entries):
    (tmp_path / "config.json").write_text(json.dumps(entries))
    return tmp_path


@pytest.mark.parametrize(
    "entries",
    [
        {"attn_implementation": "kernels-community/flash-attn2"},
        {"_attn_implementation": "someone/kernel@v1:forward"},
        {"text_config": {"attn_implementation": "someone/kernel"}},
        {"attn_implementation": {"text_config": "someone/kernel", "vision_config": "sdpa"}},
        {"attn_implementation": "paged|someone/kernel"},
        {"attn_implementation": "flash_attention_2/x"},
    ],
)
def test_a_kernel_of_the_hub_is_refused(tmp_path, entries, monkeypatch):
    monkeypatch.setattr("socket.socket", None)  # nothing may be looked up
    with pytest.raises(
        ProbeError, match=r"attn_implementation in config\.json to be one of"
    ) as error:
        ModelSource.of(folder_with(tmp_path, **entries))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "unknown"])
def test_a_kernel_that_is_not_installed_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.setattr("probe.subject.config_check.find_spec", lambda _: None)
    with pytest.raises(ProbeError, match=f"got '{name}', which is not installed"):
        check_config(folder_with(tmp_path, attn_implementation=name))


@pytest.mark.parametrize(
    "entries",
    [
        {"num_hidden_layers": 10**6},
        {"text_config": {"num_hidden_layers": 1001}},
        {"vision_config": {"depth": 10**6}},
        {"n_layer": 1e9},
    ],
)
def test_layers_without_end_are_refused(tmp_path, entries):
    with pytest.raises(ProbeError, match=r"at most 1000 .* in config\.json, got 1"):
        ModelSource.of(folder_with(tmp_path, **entries))


def test_ordinary_configs_pass(tmp_path):
    for folder in FOLDERS.values():
        check_config(folder)
    entries = {"attn_implementation": "sdpa", "_attn_implementation": None, "vision_layers": -2}
    check_config(folder_with(tmp_path, **entries, text_config={"num_hidden_layers": 126}))
    (tmp_path / "config.json").write_text("[" * 100_000)  # transformers says so
    check_config(tmp_path)
