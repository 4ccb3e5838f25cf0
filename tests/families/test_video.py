"""Videos: every family that reads them is exact, unchanged and blind without them; each token knows
its frame and time."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import probe
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.evaluation.drop_effects import dropped_layers, parts_of_cases
from probe.interventions.sweep import VisionPart
from probe.measures.attention.reference import largest_difference
from probe.subject.inputs import with_response
from tests.families.checks import (
    CHECKS,
    EXACT,
    QUESTION,
    RESPONSE,
    SAME,
    Case,
    picture,
    results,
)
from tests.families.models import FAMILIES
from tests.families.processors import VIDEO
from tests.families.table import PAGE, row, video_row
from tests.families.video_models import FRAMES, VIDEO_FAMILIES, VideoCase, clip

ALL = {**dict.fromkeys(CHECKS, "yes"), "compressor, cross": "no: it has none"}
EXPECTED = {
    "qwen3_vl": {"sweep": "yes, each case alone"},
    "video_llava": {
        "encoder measured": "no: no call of vision"
    },  # the frames' tower is another one
}


def families(kinds=("qwen3_vl", "video_llava", "internvl")):
    """Those of each kind; the others are left to the wide run."""
    return [
        pytest.param(name, marks=[] if name in kinds else pytest.mark.wide)
        for name in VIDEO_FAMILIES
    ]


@pytest.mark.parametrize("name", families())
def test_a_family_is_exact_unchanged_and_blind_without_its_video(name):
    model, processor = VIDEO_FAMILIES[name]()
    case = VideoCase(probe.load(model, processor=processor))
    found = results(case)
    assert found == {**ALL, **EXPECTED.get(name, {})}
    page = PAGE.read_text()  # python -m tests.families.table > docs/families.md
    if f"transformers {transformers.__version__})" in page:
        assert row(video_row(name), model, found) in page.splitlines()
    (grid,) = case.prompts[0].grid
    seen = grid.frame >= 0
    spans = set(zip(grid.frame[seen], grid.last_frame[seen], grid.time[seen], strict=True))
    pairs = {(0, 1, 0.25), (2, 2, 1.0)}  # an odd last frame is paired with itself
    each = {(0, 0, 0.0), (1, 1, 0.5), (2, 2, 1.0)}
    assert spans == (pairs if name.startswith(("qwen", "glm")) else each)


def test_the_tower_of_frames_equals_whole_maps():
    model, processor = VIDEO_FAMILIES["video_llava"]()
    subject = probe.load(model, processor=processor)
    inputs = subject.encode(clip(0), QUESTION)
    assert largest_difference(subject, inputs, "vision_video") < EXACT
    record = probe.measure(subject, clip(0), QUESTION, RESPONSE, stacks=["vision_video"])
    mass = record["vision_video"]["mass"]
    assert mass.sizes["layer"] == 2 and mass.notnull().all()
    np.testing.assert_allclose(mass.sum("key_type"), 1, atol=1e-5)


@pytest.mark.parametrize("mode", ["mask", "remove"])
@pytest.mark.parametrize("name", families(("internvl",)))
def test_some_frames_are_dropped(name, mode):
    """Then the last frame has no influence, and the others have theirs."""
    model, processor = VIDEO_FAMILIES[name]()
    subject = probe.load(model, processor=processor)
    first, other = (
        with_response(subject.encode(clip(0, last=seed), QUESTION), RESPONSE) for seed in (1, 2)
    )
    case = Case(subject)
    frames = first.vision_of(frames=[2])
    assert frames.any() and (first.vision_of(seconds=(1, 2)) == frames).all()
    assert (first.vision_of(images=2) == frames).all()
    apart = float((case.logits(first) - case.logits(other)).abs().max())
    assert apart > 1e-3
    with probe.drop_vision(model, case.layers, mode, tokens=frames):
        torch.testing.assert_close(case.logits(first), case.logits(other), atol=SAME, rtol=0)
        elsewhere = with_response(subject.encode(clip(5, last=1), QUESTION), RESPONSE)
        assert float((case.logits(first) - case.logits(elsewhere)).abs().max()) > 1e-3
    with pytest.raises(ProbeError, match="frames=7, seconds=None, which no token shows"):
        first.vision_of(frames=7)
    with pytest.raises(ProbeError, match="images 0 to 2, frames 0 to 2, up to 1 s"):
        first.vision_of(frames=-1)
    with pytest.raises(ProbeError, match="whole numbers of images and frames, from 0, got True"):
        first.vision_of(frames=[True, False, True])
    with pytest.raises(ProbeError, match="a mask of booleans"):
        probe.drop_vision(model, 0, tokens=[1, 2]).__enter__()


def test_a_sweep_drops_parts_of_a_video_beside_layers():
    """Each part as alone under drop_vision; a part that the video does not have is empty."""
    model, processor = VIDEO_FAMILIES["internvl"]()
    subject = probe.load(model, processor=processor)
    sample = Sample("clip", clip(0), QUESTION, answer="red blue")
    cases = [{0}, probe.frame_windows(2, 4), probe.frame_parts(3)]
    cases += [
        {"early": probe.VisionPart(layers=[0], seconds=(0, 0.6)), "none": VisionPart(frames=7)}
    ]
    with pytest.warns(UserWarning, match="no sample shows 'none': the case is empty"):
        table = probe.drop_sweep(subject, sample, cases, "remove", max_new_tokens=2, progress=False)
    one = table.isel(sample=0)
    kl = one["kl"].to_series()
    assert list(kl.index)[3:] == [
        "1",
        "frames 1-2",
        "frames 3-4",
        *(f"part {part} of 3" for part in (1, 2, 3)),
        "early",
        "none",
    ]
    assert one["part"].values.tolist()[3:6] == ["", "frames 1-2", "frames 3-4"]
    assert np.isnan(kl["none"]) and kl.drop(["none", "another image"]).notna().all()
    assert kl["frames 3-4"] == pytest.approx(kl["part 3 of 3"], abs=1e-6)  # 3 frames
    inputs = subject.encode(sample.image, QUESTION)
    early = inputs.vision_of(frames=[0, 1])
    with probe.drop_vision(model, [0], "remove", tokens=early), torch.no_grad():
        logits = torch.log_softmax(model(**inputs, use_cache=False).logits[0, -1].double(), -1)
        said = subject.generate_ids(inputs, 2)
    with torch.no_grad():
        plain = torch.log_softmax(model(**inputs, use_cache=False).logits[0, -1].double(), -1)
    assert kl["early"] == pytest.approx(float((plain.exp() * (plain - logits)).sum()), abs=1e-6)
    assert one["answer"].sel(case="early").item() == subject.vocabulary.words(said[0])
    assert dropped_layers(table).keys() == {"1"}  # figures over layers know nothing of parts
    assert parts_of_cases(table)["early"] == "0-0.6 s"
    axis = probe.plots.dropped_parts(table, value="kl")
    drawn = np.concatenate([np.atleast_1d(line.get_ydata()) for line in axis.lines])
    assert set(kl.dropna().drop(["1", "untouched"]).values) <= {*drawn}
    plt.close("all")
    with pytest.raises(ProbeError, match="all vision with mode='swap', got a part of it"):
        probe.drop_sweep(subject, sample, cases, "swap")


def test_pairs_of_frames_are_in_one_part_and_images_can_be_dropped():
    model, processor = VIDEO_FAMILIES["qwen2_vl"]()
    subject = probe.load(model, processor=processor)
    inputs = subject.encode([picture(0), clip(0, frames=6)], QUESTION)
    *parts, last = (VisionPart(share=(part, 4)).tokens(inputs) for part in range(4))
    frames = inputs.grid[0].frame
    assert last is None  # a pair is in the part of its first frame
    assert [set(frames[part[inputs.types.vision]]) for part in parts] == [{0}, {2}, {4}]
    image = VisionPart(images=0).tokens(inputs)
    assert (frames[image[inputs.types.vision]] == -1).all()


def test_an_image_beside_a_video_keeps_its_place():
    model, processor = VIDEO_FAMILIES["qwen3_vl"]()
    subject = probe.load(model, processor=processor)
    image = picture(0)
    inputs = subject.encode([image, clip(0)], QUESTION)
    (grid,) = inputs.grid
    assert len(grid) == inputs.types.vision.sum() and inputs.shown == [(1, 3)]
    alone = subject.encode(image, QUESTION).grid[0]
    still = grid.frame < 0
    assert (grid.box[still] == alone.box).all() and set(grid.image[still]) == {0}
    assert set(grid.image[~still]) == {1, 3}  # the first frames of both pairs
    other_way = subject.encode([clip(0), image], QUESTION)
    assert set(other_way.grid[0].image[other_way.grid[0].frame < 0]) == {3}
    assert not np.isnan(other_way.grid[0].box).any()


def test_records_of_a_video_are_drawn(tmp_path):
    model, processor = VIDEO_FAMILIES["internvl"]()
    subject = probe.load(model, processor=processor)
    record = probe.measure(subject, clip(0, frames=18), QUESTION, RESPONSE, stacks=["llm"])
    on_frames = record.probe.frames("response")
    assert on_frames["time"].values.tolist() == [number / 2 for number in range(18)]
    total = record.probe.mass("response", "vision")[0]
    np.testing.assert_allclose(on_frames.sum("frame"), total, atol=1e-5)
    assert record["image_number"].values[0].tolist()[::15] == [0, 17]  # 16 are kept
    figure = record.probe.plot.frames(layers=0)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), on_frames[0])
    assert len(figure.axes[1].child_axes) == 8  # the strip
    titles = [axis.get_title() for axis in record.probe.plot.heatmaps(layers=0).axes]
    assert "frame 18, 8.5 s" in titles and "frame 1, 0.0 s" in titles
    assert "llm-frames" in record.probe.plot.figures()
    plt.close("all")


def test_an_animated_picture_and_records_beside_images(tmp_path):
    model, processor = VIDEO_FAMILIES["internvl"]()
    subject = probe.load(model, processor=processor)
    asked = [Sample("video", clip(0), QUESTION), Sample("image", picture(0), QUESTION)]
    record = probe.measure_samples(subject, asked, [RESPONSE] * 2, stacks=["llm"], progress=False)
    assert (record["llm"]["key_frame"].values[1] == -1).all()
    with Image.open(record.probe.plot.animation(tmp_path / "clip.gif")) as gif:
        assert gif.n_frames == FRAMES
    with pytest.raises(ProbeError, match="a number below 0, as many videos as the sample has"):
        record.probe.plot.frames(sample="image")
    with pytest.raises(ProbeError, match=r"ends in \.gif"):
        record.probe.plot.animation(tmp_path / "clip.mp4")
    alone = probe.measure(subject, picture(0), QUESTION, RESPONSE, stacks=["llm"])
    with pytest.raises(ProbeError, match="expected a record of a video"):
        alone.probe.frames()


@pytest.mark.parametrize(
    ("response", "line"),
    [
        ([14, VIDEO], f"response: expected ids without the video token, got {VIDEO}"),
        ("a <video>", "response: expected words without <video>"),
    ],
)
def test_a_response_with_a_video_token_is_refused(response, line):
    """A drop would take it for vision in a forward, and for a word while decoding."""
    subject = probe.load(*FAMILIES["qwen2_vl"]())
    with pytest.raises(ProbeError, match=line):
        subject.encode(picture(0), QUESTION, response)


def test_videos_of_unequal_length_that_a_processor_refuses():
    """Its own words are of tensors."""

    def refuses(frames):
        raise ValueError("Unable to convert output to tensor.\nYou can try: padding=True")

    model, processor = VIDEO_FAMILIES["internvl"]()
    processor.video_processor = replace(processor.video_processor, pixels=refuses)
    subject = probe.load(model, processor=processor)
    with pytest.raises(ProbeError, match=r"videos of equally many frames.*got 3 and 4 frames"):
        subject.encode([clip(0, frames=3), clip(1, frames=4)], QUESTION)
    with pytest.raises(ProbeError, match=r"a video that it takes, got Unable .* tensor. You can"):
        subject.encode(clip(0), QUESTION)
