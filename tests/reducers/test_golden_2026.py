"""The authors' own functions on random tensors, for the reducers of 2025 and 2026."""

import golden_cases
import numpy as np
import pytest
import torch
from golden_cases import COPIES

from probe.reducers import cdpruner, dart, hiprune, holov, vispruner, vscan


def cases(name):
    folders = (golden_cases.SHARED / "reducers_2026", COPIES / "reducers_2026")
    paths = {path.stem: path for folder in folders for path in folder.glob(f"{name}_*.npz")}
    return [pytest.param(path, id=stem) for stem, path in sorted(paths.items())]


def opened(path):
    with np.load(path, allow_pickle=False) as file:
        return {
            name: torch.from_numpy(file[name]) if file[name].ndim else file[name].item()
            for name in file.files
        }


@pytest.mark.parametrize("path", cases("vispruner"))
def test_vispruner(path):
    case = opened(path)
    mask = vispruner.select(
        case["features"], case["cls_attention"], case["tokens"], case["important_ratio"]
    )
    assert torch.equal(mask, case["mask"])


@pytest.mark.parametrize("path", cases("cdpruner"))
def test_cdpruner(path):
    case = opened(path)
    mask = cdpruner.select(
        case["features"], case["image_embeds"], case["text_embeds"], case["tokens"]
    )
    assert torch.equal(mask, case["mask"])


@pytest.mark.parametrize("path", cases("holov"))
def test_holov(path):
    case = opened(path)
    kept = holov.select(case["features"], case["attention"], case["crops"], case["tokens"])
    chosen = case["features"].gather(1, kept[..., None].expand(-1, -1, case["out"].shape[-1]))
    assert torch.equal(chosen, case["out"])


@pytest.mark.parametrize("path", cases("vscan"))
def test_vscan(path):
    case = opened(path)
    attention = case["cls_attention"].mean(2)
    mask = vscan.select(attention[5], attention[-2], case["tokens"])
    assert torch.equal(mask, case["mask"])
    torch.testing.assert_close(vscan.merge(case["features"], mask), case["out"])


@pytest.mark.parametrize("path", cases("hiprune"))
def test_hiprune(path):
    case = opened(path)
    mask = hiprune.select(
        case["object_layer_received"], case["deep_received"], case["tokens"], case["alpha"]
    )
    assert torch.equal(mask, case["mask"])


@pytest.mark.parametrize("path", cases("dart"))
def test_dart(path):
    case = opened(path)
    kept = dart.select(
        case["normed_hidden"],
        case["keys_after_rope"],
        case["start"],
        case["length"],
        case["pivot_image"],
        case["pivot_text"],
        case["reduction_ratio"],
    )
    assert torch.equal(kept, case["kept_sorted"])
