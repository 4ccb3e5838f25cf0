"""The statistic of one stack over a batch, and what belongs to each sample of it."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from probe.data.patch_grid import PatchGrid
from probe.hooks.layer_stack import LayerStack
from probe.hooks.model_structure import output_projection, projection_in
from probe.measures.attention.statistic import AttentionStatistic


@dataclass(frozen=True)
class MapQueries:
    """The queries of one sample whose attention is kept one by one (`maps`)."""

    positions: list[int]  # without padding
    tokens: list[str]


@dataclass(frozen=True)
class StackStatistic:
    """The statistic of one stack over a batch, and which part of it belongs to each sample."""

    statistic: AttentionStatistic
    rows: list[list[int]]  # for each sample: its rows of the statistic
    grids: list[PatchGrid]  # for each sample: where its vision keys lie
    query_types: tuple[str, ...]
    key_types: tuple[str, ...]
    map_queries: list[MapQueries] | None = None


@dataclass(frozen=True)
class MeasureOptions:
    """What is counted only on request (see `measure_samples`)."""

    rows: str = "all"
    maps: bool | str = False
    contribution: bool = False
    received_head: bool = False

    @property
    def of_statistic(self) -> dict[str, Any]:
        """The keyword arguments of `AttentionStatistic`."""
        return {
            "received_head": self.received_head,
            "contribution": output_projection if self.contribution else None,
            "map_heads": self.maps == "heads",
        }

    def of_stack(self, stack: LayerStack) -> dict[str, Any]:
        """The same for a stack whose modules may reach the residual stream in their own ways."""
        projection = partial(projection_in, stack) if self.contribution else None
        return self.of_statistic | {"contribution": projection}


DEFAULT_OPTIONS = MeasureOptions()
