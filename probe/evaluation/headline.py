"""The number that papers print of a benchmark, for every case of a sweep, with its interval.

Mostly that is the mean of the scores. F1 (POPE), circular accuracy (MMBench), points (MME) and a
ratio (LLaVA-Bench) are not: for them images are drawn again and the number is computed anew, in all
cases from the same draws, so that differences to the untouched model are paired.

    headline = Headline(table)             # of `drop_effects.tables_of`
    headline.curve([0, 3, 4], seed=0).estimate   # these cases, with a band over all of them at once
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from probe.evaluation.benchmarks import named
from probe.evaluation.benchmarks.answer_files import weighted_percent
from probe.evaluation.drop_effects import OF_SAMPLES, values_of
from probe.records.bootstrap import (
    Interval,
    band,
    band_statistic,
    bootstrap,
    bootstrap_statistic,
    paired,
)
from probe.records.schema import as_text

REFERENCE = "reference"  # the variable with GPT-4's scores, where a judge gives two


@dataclass(frozen=True, eq=False)
class Headline:
    """The official number of each case of a table, whose first case is the untouched model."""

    table: xr.Dataset

    @cached_property
    def module(self) -> Any:
        """The benchmark, None where the table does not name one."""
        name = self.table.attrs.get("benchmark")
        return named(name) if name else None

    @property
    def name(self) -> str:
        return "accuracy" if self.module is None else self.module.HEADLINE

    @property
    def label(self) -> str:
        """The label of an axis."""
        return getattr(self.module, "LABEL", "accuracy (%)")

    @property
    def top(self) -> float:
        """The best possible value."""
        return getattr(self.module, "TOP", 100)

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean of the scores, in percent."""
        return not hasattr(self.module, "weighted")

    def __call__(self, times: Int[np.ndarray, "sample"]) -> Float[np.ndarray, "case"]:
        """The number of each case when each sample counts so often."""
        if self.is_mean:
            return weighted_percent(self._scores, times)
        return self.module.weighted(self._about, self._scores, times)

    def interval(self, seed: int) -> Interval:
        """Every case by itself."""
        if self.is_mean:
            return bootstrap(100 * self._scores, self._images, seed=seed)
        return bootstrap_statistic(self, self._images, seed=seed)

    def difference(self, seed: int) -> Interval:
        """To the untouched model, paired, every case by itself."""
        if self.is_mean:
            return paired(100 * self._scores, 100 * self._scores[:, 0], self._images, seed=seed)
        return bootstrap_statistic(self._differences, self._images, seed=seed)

    def contrasts(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], seed: int
    ) -> Interval:
        """For each pair the mean number of its first cases minus that of its second ones (0 where
        there are none), paired.
        """
        if self.is_mean:
            return bootstrap(_contrasts(100 * self._scores, pairs), self._images, seed=seed)
        return bootstrap_statistic(
            lambda times: _contrasts(self(times), pairs), self._images, seed=seed
        )

    def _differences(self, times: Int[np.ndarray, " sample"]) -> Float[np.ndarray, " case"]:
        numbers = self(times)
        return numbers - numbers[0]

    def curve(self, cases: Sequence[int], seed: int, paired: bool = False) -> Interval:
        """A band over these cases at once; `paired`: of their differences to the untouched
        model.
        """
        at = list(cases)
        if self.is_mean:
            base = 100 * self._scores[:, :1] if paired else 0.0
            return band(100 * self._scores[:, at] - base, self._images, seed=seed)
        numbers = self._differences if paired else self
        return band_statistic(lambda times: numbers(times)[at], self._images, seed=seed)

    @cached_property
    def _scores(self) -> Float[np.ndarray, "sample case"]:
        return values_of(self.table)

    @cached_property
    def _about(self) -> dict[str, np.ndarray]:
        names = [name for name in OF_SAMPLES if name in self.table]
        about = {name: as_text(self.table[name].values) for name in names}
        if REFERENCE in self.table:
            scores = self.table[REFERENCE].transpose("sample", "case")
            about[REFERENCE] = scores.values.astype(float)
        return about

    @property
    def _images(self) -> np.ndarray:
        return self.table["image"].values


def _contrasts(
    numbers: Float[np.ndarray, "*sample case"], pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Float[np.ndarray, "*sample pair"]:
    def mean(cases: Sequence[int]) -> Any:
        return numbers[..., list(cases)].mean(-1) if len(cases) else 0.0

    return np.stack([mean(first) - mean(second) for first, second in pairs], -1)


def columns(table: xr.Dataset, seed: int) -> dict[str, np.ndarray]:
    """Columns of a table of effects: the official number of each case and its difference to the
    untouched model.
    """
    headline = Headline(table)
    official = headline.interval(seed).columns(f"official_{headline.name}")
    return official | headline.difference(seed).columns("official_difference")
