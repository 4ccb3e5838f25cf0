"""Images that several questions are about, opened and prepared for the model once.

    known = ProcessedImages()
    rows = [subject.encode("street.jpg", question, known=known) for question in asked]

What the image processor returns, and what an active reducer leaves of it, is kept for the images
that were encoded last. While it is in use, files and images must not change. The rows share their
tensors of pixels.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from PIL import Image
from transformers import BatchFeature

Value = TypeVar("Value")


class ProcessedImages:
    """What is known of the images that were encoded last."""

    def __init__(self) -> None:
        self._sources: tuple[Any, ...] | None = None
        self._opened: Any = None
        self._fitted: list[tuple[Image.Image, Image.Image]] = []
        self._made: dict[str, Any] = {}

    def opened(self, sources: Sequence[Any], open_all: Callable[[], Value]) -> Value:
        """The sources, opened. Where they are not the last ones, what was known is forgotten."""
        if self._sources is None or not _all_same(self._sources, sources):
            self._opened = open_all()
            self._sources = tuple(sources)
            self._fitted = []
            self._made = {}
        return self._opened

    def fitted(self, image: Image.Image, fit: Callable[[Image.Image], Image.Image]) -> Image.Image:
        """An opened image as the processor gets it."""
        for known, fitted in self._fitted:
            if known is image:
                return fitted
        fitted = fit(image)
        self._fitted.append((image, fitted))
        return fitted

    def of(self, name: str, make: Callable[[], Value]) -> Value:
        """Something about these images, made where it is not known."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def processor(self, processor: Any) -> Any:
        """A copy of the processor, which prepares these images once and others as ever."""
        if getattr(processor, "image_processor", None) is None:
            return processor
        remembering = copy.copy(processor)
        remembering.image_processor = _ImageProcessor(processor.image_processor, self)
        return remembering

    def name_of(self, images: Any) -> str:
        """A name for these images as the processor gets them; "" for others, if equal ones."""
        numbers = {id(fitted): number for number, (_, fitted) in enumerate(self._fitted)}
        found = [numbers.get(id(image)) for image in _flat(images)]
        return "" if None in found else f"images {found}"


class _ImageProcessor:
    """In the place of an image processor: asks it only where its answer is not known."""

    def __init__(self, own: Any, known: ProcessedImages):
        self._own = own
        self._known = known

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_own" not in vars(self):  # while it is copied
            raise AttributeError(name)
        return getattr(self._own, name)

    def __call__(self, images: Any, **options: Any) -> Any:
        name = self._known.name_of(images)
        if not name:
            return self._own(images, **options)
        setting = f"{name} {sorted(options.items(), key=repr)!r}"
        made = self._known.of(setting, lambda: self._own(images, **options))
        if not isinstance(made, BatchFeature):  # Idefics' returns the pixels alone
            return made
        returned = copy.copy(made)
        returned.data = dict(made.data)  # from which processors take entries away
        return returned


def _flat(images: Any) -> Iterator[Any]:
    if isinstance(images, list | tuple):
        for part in images:
            yield from _flat(part)
    else:
        yield images


def _all_same(known: Sequence[Any], others: Sequence[Any]) -> bool:
    """The same objects, or equal paths."""
    if len(known) != len(others):
        return False
    pairs = zip(known, others, strict=True)
    return all(a is b or (isinstance(a, str) and a == b) for a, b in pairs)
