"""A long video is encoded a few frames at a time: answer and attention are those of all frames at
once.
"""

import numpy as np
import pytest
import torch
from models import llava_mini

import probe
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
