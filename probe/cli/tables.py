"""What `probe attention` says in rows: on the terminal, and where many samples were measured, in
attention.csv.
"""

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from pandas import DataFrame
    from xarray import DataTree


def layer_table(record: "DataTree") -> Table:
    """A row a layer of the LLM: where the answer's tokens look, and how spread out; heads averaged.

    Rows are those of response tokens; without a response, of the prompt's last token or the
    instruction.
    """
    llm = record["llm"].to_dataset()
    names = [str(name) for name in llm.query_type.values]
    asked = [name for name in ("response", "last", "instruction") if name in names] or names
    query = next(
        (name for name in asked if llm.query_count.sel(query_type=name).sum() > 0), asked[0]
    )
    rows = llm.sel(query_type=query).mean([dim for dim in ("sample", "head") if dim in llm.dims])
    vision = rows.sel(key_type="vision") if "vision" in names else None
    table = Table(
        title=f"Attention of {query} tokens, layer by layer", box=box.SIMPLE_HEAD, pad_edge=False
    )
    spread = ("share", "entropy", "head entropy") if vision is not None else ()
    for heading in ("layer", *(f"→ {name}" for name in names), *spread):
        table.add_column(heading, justify="right", overflow="fold", min_width=5)
    for at, layer in enumerate(llm.layer.values):
        cells = [f"{value:.3f}" for value in rows.mass.isel(layer=at).values]
        if vision is not None:
            cells += [
                f"{float(vision[name][at]):.3f}" for name in ("share", "entropy", "head_entropy")
            ]
        table.add_row(str(int(layer) + 1), *("-" if cell == "nan" else cell for cell in cells))
    table.caption = (
        "→ B: attention on tokens of type B (mass). Of vision: share, and entropy in nats."
    )
    return table


def mean_table(record: "DataTree") -> "DataFrame":
    """A row a number: means over samples and heads with 95 % intervals, images redrawn."""
    import pandas as pd
    import xarray as xr

    from probe.plots.sample_mean import average
    from probe.records.schema import MEASURED

    frames = []
    for stack, node in record.children.items():
        for value in (name for name in MEASURED if name in node):
            found = average(record, stack, value)
            parts = xr.Dataset({"mean": found.mean, "low": found.low, "high": found.high})
            frames.append(parts.to_dataframe().reset_index().assign(stack=stack, value=value))
    first = ["stack", "value", "layer", "query_type", "key_type"]
    table = pd.concat(frames)[[*first, "mean", "low", "high"]]
    return table.query("mean == mean")  # without those of nothing
