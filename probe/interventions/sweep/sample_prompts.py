"""One sample of a sweep as tokens: its prompt, the prompt about the donor's images, and its gold
answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from probe.data.donors import is_video, replacement
from probe.data.image import ImageSource, as_images
from probe.data.sample import Sample
from probe.interventions.sweep.layer_sets import ANOTHER_IMAGE
from probe.interventions.sweep.result_table import golden
from probe.subject.inputs import Inputs, with_response
from probe.subject.subject import Subject
from probe.subject.token_grid import depends_on_size

Images = ImageSource | Sequence[ImageSource]


@dataclass(frozen=True)
class SamplePrompts:
    """`other` is the prompt about another image, None without one. `gold`: the tokens of the
    sample's first answer, without the end of the turn; none where it has no answer."""

    inputs: Inputs
    other: Inputs | None
    gold: Int[Tensor, " token"]

    @classmethod
    def of(cls, subject: Subject, sample: Sample, donor: Images | None) -> "SamplePrompts":
        inputs = _encode(subject, sample.image, sample)
        other = None
        if donor is not None:
            other = _encode(subject, with_as_many_frames(donor, sample, subject), sample)
        return cls(inputs, other, _gold(subject, sample, inputs["input_ids"][0]))

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]

    @property
    def other_fits(self) -> bool:
        """Whether the other image's vision tokens are in the same places."""
        if self.other is None:
            return False
        return torch.equal(self.inputs["input_ids"], self.other["input_ids"])

    def of_case(self, name: str) -> Inputs:
        """The prompt of a case."""
        if name != ANOTHER_IMAGE:
            return self.inputs
        assert self.other is not None  # otherwise the sample does not have this case
        return self.other

    def with_gold(self, inputs: Inputs) -> Inputs:
        """The prompt, with the gold answer except its last token appended."""
        return with_response(inputs, self.gold[:-1]) if len(self.gold) > 1 else inputs


def with_as_many_frames(donor: Images, sample: Sample, subject: Subject) -> tuple[Any, ...]:
    """The donor, whose videos get as many frames as the sample's own, at the same times."""
    given: tuple[Any, ...] = as_images(donor)
    if len(given) != len(sample.images):
        return given
    options: dict[str, Any] = {"same_size": depends_on_size(subject), "exif": subject.exif}
    return tuple(
        replacement(own, other, **options) if is_video(own) and is_video(other) else other
        for own, other in zip(sample.images, given, strict=True)
    )


def _encode(
    subject: Subject, image: Images | None, sample: Sample, answer: str | None = None
) -> Inputs:
    return subject.encode(
        list(image) if isinstance(image, tuple) else image, sample.question, answer
    )


def _gold(
    subject: Subject, sample: Sample, prompt: Int[Tensor, " token"]
) -> Int[Tensor, " gold_token"]:
    answers = golden(sample)
    if not answers:
        return prompt[:0]
    answered = _encode(subject, sample.image, sample, answers[0])["input_ids"][0]
    if torch.equal(answered[: len(prompt)], prompt):
        answer_ids = answered[len(prompt) :]
    else:  # the tokenizer merged the answer's start into the prompt, which generation does not do
        ids = subject.processor.tokenizer(answers[0], add_special_tokens=False)["input_ids"]
        answer_ids = torch.tensor(ids, device=prompt.device)
    end_ids = torch.tensor(subject.vocabulary.end_ids, device=prompt.device)
    return answer_ids[~torch.isin(answer_ids, end_ids)]
