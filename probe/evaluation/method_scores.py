"""How right each method of a comparison was: from answers to a table. Needs no torch.

method_scores(comparison.results(run))       # the others are compared with the first method
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from probe.errors import ProbeError
from probe.evaluation.headline import Headline
from probe.records.schema import as_text


def method_scores(answers: xr.Dataset, *, seed: int = 0) -> pd.DataFrame:
    """A row a method: the benchmark's official number, its difference to the first method's
    (paired), both with 95 % intervals over images; the share of the first's, in percent; the vision
    tokens that were asked for (0: none) and the mean of an LLM layer.

    Raises ProbeError for anything else than the answers of a comparison.
    """
    needed = {"correct", "vision_tokens", "family"}
    if not isinstance(answers, xr.Dataset) or not needed <= {*map(str, answers.variables)}:
        got = f"a {type(answers).__name__}"
        raise ProbeError("method_scores", expected="the answers of a comparison", got=got)
    headline = Headline(answers)
    official = headline.interval(seed)
    first = float(official.estimate[0])
    columns: dict[str, Any] = {
        "method": answers["case"].values,
        "family": answers["family"].values,
        "budget": answers.coords["budget"].values if "budget" in answers.coords else 0,
        "vision_tokens": answers["vision_tokens"].mean(["sample", "layer"]).values,
        **official.columns(headline.name),
        **headline.difference(seed).columns("difference"),
        "of_first": 100 * official.estimate / first if first > 0 else np.nan,
        "questions": answers.sizes["sample"],
        "images": len(np.unique(as_text(answers["image"].values))),
    }
    return pd.DataFrame(columns)
