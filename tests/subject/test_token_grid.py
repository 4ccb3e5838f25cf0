"""Where patches are: by painting the original image, and by following features through the
model.
"""

import models
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from probe.data.image_views import aspect_of, padded_to_square, views
from probe.data.patch_grid import PatchGrid
from probe.subject.token_grid import encoder_grid, vision_grid

SIZES = [(320, 200), (200, 330), (256, 256), (640, 120), (97, 401)]  # width, height
INSIDE = 1e-9


def pixels(processor, pictures, aspect) -> torch.Tensor:
    """What the encoder is shown: (view, 3, height, width), empty tiles left out."""
    if aspect == "pad" and aspect_of(processor.image_processor) != "pad":
        pictures = [padded_to_square(image, processor.image_processor) for image in pictures]
    shown = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return shown if shown.ndim == 4 else shown.flatten(0, 1)


def area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def brightest_patch(difference: torch.Tensor, side: int) -> tuple[int, int]:
    """Row and column of the patch that changed most."""
    patch = difference.shape[-1] // side
    changed = difference.abs().sum(0).unfold(0, patch, patch).unfold(1, patch, patch).sum((-1, -2))
    row, col = np.unravel_index(int(changed.argmax()), (side, side))
    return int(row), int(col)


def squash(processor):
    processor.image_processor.size = {"height": 32, "width": 32}
    return processor


CASES = [
    ("crop", lambda: models.llava15()),
    ("pad", lambda: models.llava15()),
    ("squash", lambda: (models.llava15()[0], squash(models.llava15()[1]))),
    ("anyres", models.llava_next_vicuna),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("aspect", "factory"), CASES, ids=[aspect for aspect, _ in CASES])
def test_painting_inside_a_box_changes_that_patch_most(aspect, factory, size):
    model, processor = factory()
    grid = encoder_grid(model, processor, [size], aspect)
    blank = Image.new("RGB", size, "black")
    before = pixels(processor, [blank], aspect)
    seen = grid.box.clip(0, 1)  # of a patch at the edge only a part shows the image
    visible = np.flatnonzero((area(seen) > 0.3 * area(grid.box)) & (area(seen) > 0))
    assert len(visible) >= 8
    for key in np.random.default_rng(0).permutation(visible)[:12]:
        left, top, right, bottom = np.round(seen[key] * [*size, *size]).astype(int)
        painted = blank.copy()
        painted.paste(
            "white", (int(left), int(top), max(int(right), left + 1), max(int(bottom), top + 1))
        )
        after = pixels(processor, [painted], aspect)
        tile = int(grid.tile[key])
        assert brightest_patch(after[tile] - before[tile], 4) == (grid.row[key], grid.col[key])


@pytest.mark.parametrize("size", [(320, 200), (200, 330)])
def test_padding_is_outside_the_image_and_of_the_processors_mean_colour(size):
    model, processor = models.llava15()
    grid = encoder_grid(model, processor, [size], "pad")
    shown = pixels(processor, [Image.new("RGB", size, "white")], "pad")[0]
    outside = (grid.box[:, 2:] <= INSIDE).any(axis=1) | (grid.box[:, :2] >= 1 - INSIDE).any(axis=1)
    for row, col in zip(grid.row[~outside], grid.col[~outside], strict=True):
        assert shown[:, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8].max() > 1
    mean = shown[:, 0, 0]
    assert (
        mean.abs().max() < 0.02
    )  # a whole number of 255 near the mean, which the processor takes away


def test_the_processor_that_pads_by_itself_does_what_we_do():
    _, processor = models.llava15()
    own = processor.image_processor
    theirs = LlavaImageProcessorPil(size=own.size, crop_size=own.crop_size, do_pad=True)
    assert (aspect_of(own), aspect_of(theirs)) == ("crop", "pad")
    image = models.picture(0, 70, 30)
    ours = own(padded_to_square(image, own), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(theirs(image, return_tensors="pt")["pixel_values"], ours)
    np.testing.assert_array_equal(views(theirs, (70, 30), "pad"), views(own, (70, 30), "pad"))


def test_llava15_has_a_square_of_24_by_24():
    model, processor = models.llava15(side=336, patch=14)
    grid = vision_grid(model, processor, [(640, 480)], "crop")
    assert len(grid) == 576
    assert [grid.row[0], grid.col[1], grid.row[24], grid.col[24], grid.row[575], grid.col[575]] == [
        0,
        1,
        1,
        0,
        23,
        23,
    ]
    np.testing.assert_allclose(
        grid.box[0, :2], [80 / 640, 0], atol=2e-3
    )  # the middle 480 of 640 columns
    np.testing.assert_allclose(grid.box[575, 2:], [560 / 640, 1], atol=2e-3)


@pytest.mark.parametrize("factory", [models.llava_next_vicuna, models.llava_next_mistral])
@pytest.mark.parametrize(
    "sizes", [[(40, 30)], [(90, 20), (20, 100)], [(33, 32)], [(1, 1), (200, 60)], [(31, 95)]]
)
def test_next_tokens_are_where_the_model_put_their_features(factory, sizes):
    model, processor = factory()
    pictures = [models.picture(seed, *size) for seed, size in enumerate(sizes)]
    inputs = processor(text=["<image>" * len(sizes) + " a"], images=pictures, return_tensors="pt")
    caught = {}
    base = model.model
    base.multi_modal_projector.register_forward_hook(
        lambda m, args, out: caught.update(features=out)
    )
    base.language_model.register_forward_pre_hook(
        lambda m, args, kwargs: caught.update(embeds=kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    embeds = caught["embeds"][0][inputs["input_ids"][0] == model.config.image_token_id]
    grid = vision_grid(model, processor, sizes, "anyres")
    assert len(grid) == len(embeds)
    patches = encoder_grid(model, processor, sizes, "anyres")
    places = zip(patches.image, patches.tile, patches.row, patches.col, strict=True)
    of_patch = {place: index for index, place in enumerate(places)}
    features = caught["features"].flatten(0, 1)
    assert len(features) == len(patches)
    for key, place in enumerate(zip(grid.image, grid.tile, grid.row, grid.col, strict=True)):
        expected = base.image_newline if grid.row[key] < 0 else features[of_patch[place]]
        assert torch.equal(embeds[key], expected)
        if grid.row[key] >= 0:
            np.testing.assert_array_equal(grid.box[key], patches.box[of_patch[place]])
    assert np.isnan(grid.box[grid.row < 0]).all()


def test_the_feature_strategy_full_starts_with_a_cls_token():
    model, processor = models.llava15()
    model.config.vision_feature_select_strategy = "full"
    grid = vision_grid(model, processor, [(40, 30), (40, 30)], "crop")
    assert np.flatnonzero(grid.row < 0).tolist() == [0, 17]
    assert grid.image.tolist() == [0] * 17 + [1] * 17


def test_tiles_of_next_cover_the_image_once():
    model, processor = models.llava_next_vicuna(side=64, patch=4)
    for width, height in SIZES:
        grid = vision_grid(model, processor, [(width, height)], "anyres")
        assert area(grid.box[grid.tile > 0].clip(0, 1)).sum() == pytest.approx(
            1, abs=0.15
        )  # in whole patches
        assert area(grid.box[grid.tile == 0]).sum() == pytest.approx(1)


def test_no_images_have_an_empty_grid():
    model, processor = models.llava15()
    assert isinstance(vision_grid(model, processor, [], "crop"), PatchGrid)
    assert len(vision_grid(model, processor, [], "crop")) == 0
