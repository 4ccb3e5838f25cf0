"""A task: the questions of a benchmark that are to be asked, with their scorer, and another image
for each.

task = Task.read("gqa", "data/gqa", limit=500)
task.samples                                # in an order in which every image comes once
task.donor(task.samples[0])                 # the images that stand in for its own
task.score("Yes.", task.samples[0])
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from probe.data.image import open_image
from probe.data.rows import Benchmark
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.evaluation.benchmarks import named
from probe.evaluation.benchmarks.answer_files import missing_answers

WITHOUT_DATA = "shapes"  # drawn, not read
POOL = 1200  # drawn questions that donors are taken from, so that they don't depend on the limit
TRIES = 20  # images that can't be opened, one after the other, before there is no donor


@dataclass(frozen=True)
class BenchmarkTask:
    """`benchmark` is the whole split; `limit` of its questions are asked (None: all)."""

    module: ModuleType
    benchmark: Benchmark
    limit: int | None = None

    @classmethod
    def read(
        cls,
        name: str,
        data: str | Path | None = None,
        limit: int | None = None,
        split: str | None = None,
    ) -> "BenchmarkTask":
        """Reads a benchmark's official files from the folder `data`; "shapes" needs none.

        Raises ProbeError for an unknown name or split, a missing folder, files that can't be read,
        no usable row and a limit below 1.
        """
        module = named(name)
        if limit is not None and limit < 1:
            raise ProbeError("limit", expected="at least one question", got=str(limit))
        options: dict[str, Any] = {} if split is None else {"split": split}
        if name == WITHOUT_DATA:
            return cls(module, module.read(None, questions=max(limit or 0, POOL), **options), limit)
        if data is None:
            raise ProbeError(
                name,
                expected="the folder with the official files",
                got="none",
                fix=f"pass --data; what is in it is said in probe/evaluation/benchmarks/{name}.py",
            )
        benchmark = module.read(data, **options)
        if not benchmark.samples:
            got = f"{len(benchmark.problems)} bad ones; the first: {benchmark.problems[0]}"
            raise ProbeError(name, expected="at least one row that can be used", got=got)
        return cls(module, benchmark, limit)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The questions that are asked, those about one image together."""
        asked = self.benchmark if self.limit is None else self.benchmark.limited(self.limit)
        places = {image: place for place, image in enumerate(self._images)}
        return tuple(sorted(asked.samples, key=lambda sample: places.get(sample.meta["image"], -1)))

    @property
    def with_images(self) -> tuple[Sample, ...]:
        """The questions that come with an image: without one there is no vision to drop."""
        return tuple(sample for sample in self.samples if sample.images)

    def score(self, prediction: str, sample: Sample) -> float:
        """The benchmark's own score of one answer, NaN where only a judge can tell."""
        return float(self.module.score(prediction, sample))

    def donor(self, sample: Sample, same_size: bool = False) -> tuple[Image.Image, ...] | None:
        """Another sample's images, as many: the next one's in the split that can be opened. None if
        there is none.

        same_size: resized to the sample's own, as a model whose vision tokens depend on the size
        needs it.
        """
        own, image_names = sample.meta["image"], list(self._images)
        start = image_names.index(own)
        for other in [*image_names[start + 1 :], *image_names[:start]][:TRIES]:
            found = self._images[other].images
            if len(found) == len(sample.images):
                try:
                    opened = [open_image(image) for image in found]
                    sizes = (
                        [open_image(image).size for image in sample.images] if same_size else None
                    )
                except ProbeError:
                    continue
                return tuple(opened if sizes is None else map(Image.Image.resize, opened, sizes))
        return None

    def summarise(self, predictions: Mapping[str, str]) -> dict[str, float]:
        """The benchmark's official numbers over the questions that were asked (sample id -> text)."""
        asked = self.benchmark if self.limit is None else self.benchmark.limited(self.limit)
        return self.module.summarise(asked.official_rows, predictions)

    def check_export(self) -> None:
        """Raises ProbeError where `export` would: before a long run and not after it."""
        check = getattr(self.module, "check_export", None)
        if check is not None:
            check()

    def export(self, predictions: Mapping[str, str], folder: str | Path) -> Path:
        """Writes what the official scorer reads: every official row in order, with an empty text
        where there is no answer.
        """
        return self.module.export(self.benchmark.official_rows, predictions, folder)

    def missing_answers(self, predictions: Mapping[str, str]) -> str:
        """One line on the official rows that an export leaves empty; "" where none is."""
        return missing_answers(self.benchmark.official_rows, predictions)

    @cached_property
    def _images(self) -> dict[str, Sample]:
        """What the benchmark calls each image -> its first sample."""
        first: dict[str, Sample] = {}
        for sample in self.benchmark.samples:
            if sample.images:
                first.setdefault(sample.meta["image"], sample)
        return first
