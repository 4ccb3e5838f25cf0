"""A long video is encoded a few frames at a time: answer and attention are those of all frames at
once.
"""

import weakref

import numpy as np
import pytest
import torch
from models import llava_mini

import probe
from probe.data.lazy_frames import LONG_VIDEO, ArrayFrames
from probe.errors import ProbeError
from probe.subject import prompt_processing

QUESTION = "what is in the picture?"


@pytest.fixture
def clip():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    return probe.Video(pixels.repeat(4, 1).repeat(4, 2))


def test_a_long_video_is_measured_as_all_its_frames_at_once(clip, monkeypatch):
    model, processor = llava_mini()
    subject = probe.load(model, processor=processor)
    plain = subject.encode(clip, QUESTION, "a red circle")
    record = probe.measure(subject, clip, QUESTION, "a red circle", stacks=["llm"])
    answer = subject.answer(clip, QUESTION, max_new_tokens=4)
    monkeypatch.setattr(prompt_processing, "LONG_VIDEO", 3)
    streamed = subject.encode(clip, QUESTION, "a red circle")
    assert "pixel_values_videos" not in streamed and streamed.types.vision.sum() > 0
    with torch.no_grad():
        logits = [model(**inputs).logits for inputs in (plain, streamed)]
    torch.testing.assert_close(*logits, atol=2e-5, rtol=0)
    again = probe.measure(subject, clip, QUESTION, "a red circle")
    assert list(again.children) == ["llm"]
    for name in ("mass", "received", "key_frame", "key_time", "key_box"):
        np.testing.assert_allclose(again["llm"][name], record["llm"][name], atol=1e-5)
    assert subject.answer(clip, QUESTION, max_new_tokens=4) == answer
    with pytest.raises(ProbeError, match="leave 'vision' out of stacks"):
        probe.measure(subject, clip, QUESTION, "a red circle", stacks=["llm", "vision"])


def test_the_shipped_model_measures_hundreds_of_frames_and_has_room_for_thousands():
    """Each frame is a vision token with its second."""
    subject = probe.load("tiny-llava-mini")
    assert subject.model.config.get_text_config().max_position_embeddings > 10_000
    grey = np.arange(600) % 256
    frames = grey.astype(np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    record = probe.measure(subject, probe.Video(frames), QUESTION, "red")
    assert record["llm"]["key_time"].values[0].tolist() == list(range(600))
    assert record["image_number"].values[0].tolist()[::15] == [0, 599]
    assert record["images"].values[0, -1].max() == 599 % 256


def test_frames_of_a_long_video_are_opened_one_at_a_time(monkeypatch):
    alive, most = set(), 0
    own = ArrayFrames.frame

    def counted(self, number):
        nonlocal most
        image = own(self, number)
        alive.add(number)
        most = max(most, len(alive))
        weakref.finalize(image, alive.discard, number)
        return image

    monkeypatch.setattr(ArrayFrames, "frame", counted)
    subject = probe.load("tiny-llava-mini")
    frames = np.zeros((LONG_VIDEO + 8, 8, 8, 3), np.uint8)
    inputs = subject.encode(probe.Video(frames), QUESTION)
    assert len(inputs.images[0]) == LONG_VIDEO + 8
    assert 0 < most < 4
