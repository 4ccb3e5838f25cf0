"""Figures of what is kept and merged, and of how the encoder's attention gathers on few patches."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from models import llava15, llava_next_vicuna, picture

import probe
from probe.measures.encoder_concentration import concentration
from probe.reducers import PruMerge, Random, VisionZip, encode


def reduced_picture(make, reducer):
    ours = probe.load(*make())
    inputs = ours.encode(picture(0, 60, 40), "is it red ?")
    with torch.no_grad():
        return encode(ours.model.model.vision_tower, inputs["pixel_values"], reducer), inputs


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes]


def test_kept_patches_and_groups_are_counted_and_placed():
    reduction, inputs = reduced_picture(llava15, VisionZip(5, 3))
    figure = probe.plots.kept(reduction, picture(0, 60, 40), inputs.encoder_grid[0])
    assert titles(figure) == [
        "the image: 8 tokens\n4 of 16 patches kept",
        "12 patches merged\ninto 3 tokens",
    ]
    kept, merged = figure.axes
    veiled, framed = kept.collections
    assert (len(veiled.get_paths()), len(framed.get_paths())) == (12, 4)
    dots = np.concatenate([line.get_xydata() for line in merged.lines])
    boxes = inputs.encoder_grid[0].box[reduction.source[0, 5:].numpy() - 1] * [60, 40, 60, 40]
    np.testing.assert_allclose(dots, (boxes[:, :2] + boxes[:, 2:]) / 2)


def test_tiles_have_a_row_of_their_own_and_need_their_grid():
    reduction, inputs = reduced_picture(llava_next_vicuna, PruMerge(0.25))
    figure = probe.plots.kept(reduction, picture(0, 60, 40), inputs.encoder_grid[0])
    assert len(figure.axes) == 2 * 2
    assert f"its {len(reduction.count) - 1} tiles" in titles(figure)[2]
    with pytest.raises(probe.ProbeError, match=r"the grid of . views of 16 patches, got none"):
        probe.plots.kept(reduction, picture(0, 60, 40))


def test_nothing_merged_is_one_panel_and_a_view_needs_no_grid():
    reduction, _ = reduced_picture(llava15, Random(4))
    figure = probe.plots.kept(reduction, picture(0, 40, 40))
    assert titles(figure) == ["the image: 4 tokens\n4 of 16 patches kept"]
    mine, axis = plt.subplots()
    assert probe.plots.kept(reduction, picture(0, 40, 40), ax=axis) is mine
    assert titles(mine) == titles(figure)


def test_concentration_is_what_whole_maps_say():
    ours = probe.load(*llava15(attn="eager"))
    found = concentration(ours, [picture(0), picture(1)], top=(1, 4, 16))
    tower = ours.model.model.vision_tower
    with torch.no_grad():
        for view in (0, 1):
            pixels = ours.encode(picture(view), "?")["pixel_values"]
            maps = tower(pixels, output_attentions=True).attentions
            for layer, weights in enumerate(maps):
                row = weights[0, :, 0].double().numpy()
                heads = row[:, 1:] / row[:, 1:].sum(-1, keepdims=True)
                pooled = heads.mean(0)
                got = found.isel(view=view, layer=layer)
                np.testing.assert_allclose(got["received"], pooled, atol=1e-6)
                np.testing.assert_allclose(
                    got["top_share"], [pooled.max(), np.sort(pooled)[-4:].sum(), 1], atol=1e-6
                )
                np.testing.assert_allclose(
                    got["entropy"], -(pooled * np.log(pooled)).sum(), atol=1e-5
                )
                np.testing.assert_allclose(got["class_share"], row[:, 0].mean(), atol=1e-6)
                differences = np.abs(pooled[:, None] - pooled[None]).mean()  # Gini's own definition
                np.testing.assert_allclose(
                    got["gini"], differences / (2 * pooled.mean()), atol=1e-6
                )
    assert (found["kept_from_last"].sel(layer=found.attrs["read_layer"]) == 1).all()


def test_figures_of_concentration():
    ours = probe.load(*llava15())
    found = concentration(ours, [picture(0), picture(1)], top=(1, 4))
    axes = probe.plots.concentration(found).axes
    assert len(axes) == 3
    top = axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(top, found["top_share"].sel(k=1).mean("view"))
    curve = probe.plots.softmax_gradient(found).axes[0].lines[0].get_xydata()
    score = torch.tensor(1.3, requires_grad=True)
    weight = torch.softmax(torch.stack([score, torch.tensor(0.2)]), 0)[0]
    weight.backward()
    place = np.abs(curve[:, 0] - weight.item()).argmin()
    np.testing.assert_allclose(curve[place, 1], score.grad, atol=0.01)


def test_mistakes_are_one_line(unchecked):
    ours = probe.load(*llava15())
    with pytest.raises(probe.ProbeError, match=r"top of 1 to 16, the patches of a view, got 17"):
        concentration(ours, picture(), top=(17,))
    with pytest.raises(
        probe.ProbeError,
        match=r"what probe.measures.encoder_concentration.concentration returns, got str",
    ):
        probe.plots.concentration("x")
    found = concentration(ours, picture(), top=(1,))
    with pytest.raises(probe.ProbeError, match="layers from 0 to 2, got 3"):
        probe.plots.softmax_gradient(found, layers=[3])
