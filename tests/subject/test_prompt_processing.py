"""What a processor is given, and what is done where it takes another thing."""

import pytest
from transformers import ProcessorMixin

import probe
from probe.errors import ProbeError
from tests.families.checks import QUESTION, picture
from tests.families.models import FAMILIES
from tests.families.video_models import VIDEO_FAMILIES, clip


class Real(ProcessorMixin):
    """A processor as transformers' own, which passes its work on to a tiny one."""

    image_token = "<image>"

    def __init__(self, tiny, accepts):
        vars(self).update(vars(tiny), tiny=tiny, accepts=accepts, calls=[])

    def apply_chat_template(self, conversation, **options):
        return self.tiny.apply_chat_template(conversation, **options)

    def __call__(self, text, images=None, **options):
        self.calls.append(options)
        nested = bool(images) and isinstance(images[0], list)
        if images and nested not in self.accepts:
            raise ValueError("lists are pages" if nested else "no image is wanted")
        made = self.tiny(text=text, images=images[0] if nested else images)
        if not options.get("return_mm_token_type_ids"):
            made.pop("mm_token_type_ids", None)
        return made


def subject_of(family, accepts):
    model, tiny = FAMILIES[family]()
    return probe.load(model, processor=Real(tiny, accepts))


def test_a_processor_that_takes_lists_of_images_for_pages_gets_one_list():
    nested = subject_of("llava", accepts=(True,)).encode(picture(0), QUESTION)
    flat = subject_of("llava", accepts=(False,)).encode(picture(0), QUESTION)
    assert (flat["input_ids"] == nested["input_ids"]).all()
    assert (flat["pixel_values"] == nested["pixel_values"]).all()
    with pytest.raises(ProbeError, match="got lists are pages"):
        subject_of("llava", accepts=()).encode(picture(0), QUESTION)


def test_kinds_of_tokens_are_asked_for_where_the_model_takes_them():
    """Cosmos 3 Edge's positions need them, and its processor returns them on demand."""
    inputs = subject_of("qwen2_vl", accepts=(True,)).encode(picture(0), QUESTION)
    assert "mm_token_type_ids" in inputs
    other = subject_of("llava", accepts=(True,))
    other.encode(picture(0), QUESTION)
    assert not any("return_mm_token_type_ids" in options for options in other.processor.calls)


def test_an_image_processor_that_can_not_be_written_as_a_file():
    """ERNIE's without its font: its `repr` is that of the file."""

    class Incomplete:
        def __init__(self):
            self.size = {"height": 32, "width": 32}
            self.font = "none"

        def to_dict(self):
            raise ValueError("an invalid path to its font")

        def __repr__(self):
            return str(self.to_dict())

    model, tiny = FAMILIES["qwen2_vl"]()
    tiny.image_processor = Incomplete()
    (grid,) = probe.load(model, processor=tiny).encode(picture(0), QUESTION).grid
    (expected,) = probe.load(*FAMILIES["qwen2_vl"]()).encode(picture(0), QUESTION).grid
    assert (grid.box == expected.box).all()


class Timed(Real):
    """Writes the time of frames, which it reads from what its video processor returns on demand."""

    def __call__(self, text, images=None, videos=None, **options):
        if videos and not options.get("return_metadata"):
            raise KeyError("video_metadata")
        made = self.tiny(text=text, images=images, videos=videos)
        return {**made, "video_metadata": options["video_metadata"]}


def test_a_processor_that_writes_times_gets_them():
    """Cosmos 3 Edge and Muse."""
    model, tiny = VIDEO_FAMILIES["qwen3_vl"]()
    inputs = probe.load(model, processor=Timed(tiny, ())).encode(clip(0), QUESTION)
    assert "video_metadata" not in inputs and (inputs.grid[0].frame >= 0).all()
