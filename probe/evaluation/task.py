"""A benchmark task: the questions to ask, with their scorer, and another image for each.

task = BenchmarkTask.read("gqa", "data/gqa", limit=500)
task.samples                                # questions about one image together
task.donor(task.samples[0])                 # the images that replace its own
task.score("Yes.", task.samples[0])
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from probe.data.clip import Clip
from probe.data.donors import replacement
from probe.data.rows import Benchmark
from probe.data.sample import Sample
from probe.errors import ProbeError, at_least
from probe.evaluation.benchmarks import BenchmarkModule, named, shapes
from probe.evaluation.benchmarks.answer_files import missing_answers

WITHOUT_DATA = "shapes"  # drawn, not read
POOL = 1200  # drawn questions that donors are taken from, so that they don't depend on the limit
TRIES = 20  # images that are tried, one after the other, before there is no donor


@dataclass(frozen=True)
class BenchmarkTask:
    """`benchmark` is the whole split; `limit` of its questions are asked (None: all). `folder` is
    where its files were read, "" for a drawn one.
    """

    module: BenchmarkModule
    benchmark: Benchmark
    limit: int | None = None
    folder: str = ""

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
        if limit is not None:
            at_least("limit", "a number of questions", limit, 1)
        options: dict[str, Any] = {} if split is None else {"split": split}
        if name == WITHOUT_DATA and data is not None:
            fix = "leave --data out"
            raise ProbeError(name, expected="no files: it is drawn", got=str(data), fix=fix)
        if name == WITHOUT_DATA:
            return cls(module, shapes.read(None, questions=max(limit or 0, POOL), **options), limit)
        if data is None:
            raise ProbeError(
                name,
                expected=f"the folder with the official files ({module.FILES})",
                got="none",
                fix="pass --data FOLDER",
            )
        benchmark = module.read(data, **options)
        if not benchmark.samples:
            got = f"{len(benchmark.problems)} bad ones; the first: {benchmark.problems[0]}"
            raise ProbeError(name, expected="at least one row that can be used", got=got)
        return cls(module, benchmark, limit, os.path.abspath(data))

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

    def donor(
        self, sample: Sample, same_size: bool = False, exif: str = "upright"
    ) -> tuple[Image.Image | Clip, ...] | None:
        """Another sample's images (or videos), equally many: the next one's in the split that can
        be opened. None if there is none. See `replacement` for `same_size` and `exif`.
        """
        names = list(self._images)
        start = names.index(sample.meta["image"])
        others = [*names[start + 1 :], *names[:start]]
        for name in others[:TRIES]:
            candidate = self._images[name].images
            if len(candidate) != len(sample.images):
                continue
            pairs = zip(sample.images, candidate, strict=True)
            try:
                return tuple(
                    replacement(own, other, same_size=same_size, exif=exif) for own, other in pairs
                )
            except ProbeError:
                continue
        return None

    @property
    def has_donors(self) -> bool:
        """Whether there is more than one image, so that one can replace another."""
        return len(self._images) > 1

    def summarise(self, predictions: Mapping[str, str]) -> dict[str, float]:
        """The official numbers over the questions that were asked (sample id -> text)."""
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
        """The first sample of each image, by the image's name in the benchmark."""
        first: dict[str, Sample] = {}
        for sample in self.benchmark.samples:
            if sample.images:
                first.setdefault(sample.meta["image"], sample)
        return first
