"""A sample: images, a question, and the right answer where one is known.

    Sample("cat-1", image="cat.jpg", question="What is on the mat?", answer="a cat")

Images stay paths until they are opened, so that a hundred thousand samples take little memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from probe.data.image import ImageSource, as_images
from probe.data.messages import Conversation


@dataclass(frozen=True)
class Sample:
    """One question about one image, several, or none.

    `question` is the user's words, or a whole conversation in Hugging Face's chat format; `meta`
    holds what else a benchmark needs (group, question type) as plain values. `corrupted`: what a
    patch sweep puts beside it, other images, or a sample with another question.

    >>> Sample("1", image=None, question="What is on the mat?", answer="a cat").images
    ()
    """

    id: str
    image: ImageSource | tuple[ImageSource, ...] | None
    question: str | Conversation
    choices: tuple[str, ...] = ()
    answer: str | tuple[str, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    corrupted: "ImageSource | tuple[ImageSource, ...] | Sample | None" = None

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The images, in the order in which the conversation refers to them."""
        return as_images(self.image)
