"""How right each method of a comparison was: from answers to a table.

scores(answers)                 # `answers`: what `comparison.compared` returns, the first method the one to beat
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from probe.errors import ProbeError
from probe.evaluation.headline import Headline


def scores(answers: xr.Dataset, *, seed: int = 0) -> pd.DataFrame:
    """A row a method: the benchmark's official number, its difference to the first method's
    (paired), both with 95 % intervals over images; what is kept of the first's, in percent; mean
    vision tokens of an LLM layer.

    Raises ProbeError for anything else than such answers.
    """
    wanted = {"correct", "vision_tokens", "family"}
    if not isinstance(answers, xr.Dataset) or not wanted <= {*map(str, answers.variables)}:
        raise ProbeError(
            "scores", expected="the answers of a comparison", got=f"a {type(answers).__name__}"
        )
    headline = Headline(answers)
    own, change = headline.interval(seed), headline.difference(seed)
    first = float(own.estimate[0])
    columns: dict[str, Any] = {
        "method": answers["case"].values,
        "family": answers["family"].values,
        "vision_tokens": answers["vision_tokens"].mean(["sample", "layer"]).values,
    }
    for name, found in ((headline.name, own), ("difference", change)):
        columns |= {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
    columns["of_first"] = 100 * own.estimate / first if first > 0 else np.nan
    columns |= {
        "questions": answers.sizes["sample"],
        "images": len(np.unique(answers["image"].values.astype(str))),
    }
    return pd.DataFrame(columns)
