"""A clean prompt and its corrupted counterpart, of the same length: what a patch sweep compares.

given      the sample's own `corrupted`: images, or a sample with another question
image      the images of the next sample with others
blank      grey images of the same size
noise      noise on the vision embeddings, `NOISE` of their standard deviations
question   the next sample's question that is as long, about the same image
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from probe.data.clip import Clip
from probe.data.donors import is_video, opened_clip
from probe.data.image import ImageSource, open_image
from probe.data.sample import Sample
from probe.errors import ProbeError, one_of
from probe.interventions.sweep.sample_prompts import SamplePrompts, with_as_many_frames
from probe.interventions.sweep.schedule import schedule
from probe.subject.image_prefix import EmbeddedPrompt
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject

CORRUPTIONS = ("given", "image", "blank", "noise", "question")
NOISE = 3.0  # standard deviations of the vision embeddings, as Meng et al. 2022 have it for words
GREY = (127, 127, 127)


@dataclass(frozen=True)
class Pair:
    """`gold`: the tokens of the sample's own gold answer, which both runs are asked for.
    `noise_seed`: of the noise on the corrupted prompt's vision embeddings, None for none.
    """

    sample: Sample
    clean: Inputs
    corrupted: Inputs
    gold: Int[Tensor, " token"]
    noise_seed: int | None = None

    @property
    def prompt_length(self) -> int:
        return self.clean["input_ids"].shape[1]

    @property
    def kept(self) -> int:
        """Logits that are needed, counted from the last."""
        return max(len(self.gold), 1)

    @property
    def vision(self) -> Bool[np.ndarray, "position"]:
        return self.clean.types.vision[0]


def default_corruption(samples: Sequence[Sample]) -> str:
    """ "given" where every sample has a corrupted counterpart, else "image"."""
    return "given" if all(sample.corrupted is not None for sample in samples) else "image"


def counterparts(subject: Subject, samples: Sequence[Sample], corruption: str) -> dict[str, Sample]:
    """By sample id: the sample that is its corrupted run (for "noise", itself). Raises ProbeError
    for a sample that has none.
    """
    one_of("patch_sweep", "a corruption of", corruption, CORRUPTIONS)
    if corruption == "noise":
        return {sample.id: sample for sample in samples}
    if corruption == "image":
        donors = schedule(samples)[1]
        return {sample.id: _with_images(subject, sample, donors[sample.id]) for sample in samples}
    make = {
        "given": lambda s: _given(subject, s),
        "blank": lambda s: _blank(subject, s),
        "question": lambda s: _asked_else(subject, s, samples),
    }
    return {sample.id: make[corruption](sample) for sample in samples}


def _given(subject: Subject, sample: Sample) -> Sample:
    if isinstance(sample.corrupted, Sample):
        return sample.corrupted
    return _with_images(subject, sample, sample.corrupted)


def _with_images(subject: Subject, sample: Sample, images: Any) -> Sample:
    """The sample with other images, of whose videos as many frames are taken as of its own."""
    if images is None:
        raise ProbeError(
            "patch_sweep",
            expected="a corrupted counterpart of every sample",
            got=f"none of {sample.id!r}",
            fix="pass Sample(corrupted=image), or corruption='blank' or 'noise'",
        )
    return replace(sample, image=with_as_many_frames(images, sample, subject))


def _blank(subject: Subject, sample: Sample) -> Sample:
    images = tuple(_grey(image, subject.exif) for image in sample.images)
    return replace(sample, image=images)


def _grey(image: ImageSource, exif: str) -> Image.Image | Clip:
    """A grey image of the same size, or a video of as many grey frames."""
    if not is_video(image):
        return Image.new("RGB", open_image(image, exif).size, GREY)
    clip = opened_clip(image, exif)
    frame = Image.new("RGB", clip.frames[0].size, GREY)
    return replace(clip, frames=(frame,) * len(clip.frames))


def _asked_else(subject: Subject, sample: Sample, samples: Sequence[Sample]) -> Sample:
    """The sample with the next other question of as many tokens."""
    place = [other.id for other in samples].index(sample.id)
    own = _tokens(subject, sample)
    for other in (*samples[place + 1 :], *samples[:place]):
        if other.question != sample.question and _tokens(subject, other) == own:
            return replace(sample, question=other.question)
    raise ProbeError(
        "patch_sweep",
        expected="another question of the same length for every sample",
        got=f"none for {sample.id!r}",
        fix="pass Sample(corrupted=Sample(...)) with one",
    )


def _tokens(subject: Subject, sample: Sample) -> int:
    """The tokens of a question in its prompt, without any image."""
    return subject.encode(None, sample.question)["input_ids"].shape[1]


def pair_of(subject: Subject, sample: Sample, other: Sample, noise_seed: int | None) -> Pair:
    """Raises ProbeError where the two prompts have another length, or vision tokens elsewhere, and
    for a sample without a gold answer.
    """
    prompts = SamplePrompts.of(subject, sample, None)
    if not len(prompts.gold):
        got = f"{sample.id!r} without"
        raise ProbeError("patch_sweep", expected="samples with a gold answer", got=got)
    corrupted = SamplePrompts.of(subject, replace(other, answer=None), None).inputs
    clean = prompts.inputs
    same_length = clean["input_ids"].shape == corrupted["input_ids"].shape
    if not same_length or (clean.types.vision != corrupted.types.vision).any():
        raise ProbeError(
            "patch_sweep",
            expected=f"a counterpart of {sample.id!r} with its tokens in the same places "
            f"({clean['input_ids'].shape[1]}, {int(clean.types.vision.sum())} of vision)",
            got=f"{corrupted['input_ids'].shape[1]}, {int(corrupted.types.vision.sum())} of vision",
            fix="take images of the same size, and questions of the same length",
        )
    return Pair(sample, clean, corrupted, prompts.gold, noise_seed)


def noised(prompt: EmbeddedPrompt, seed: int) -> EmbeddedPrompt:
    """The prompt with Gaussian noise on its vision embeddings."""
    embeddings = prompt.embeddings.clone()
    vision = embeddings[:, prompt.vision]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(vision.shape, generator=generator).to(vision)
    embeddings[:, prompt.vision] = vision + NOISE * vision.float().std().to(vision) * noise
    return replace(prompt, embeddings=embeddings)
