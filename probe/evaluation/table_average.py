"""The average over benchmarks, as the LLaVA-Mini paper prints it and as it was meant.

Table 1 averages eleven numbers. Ten are percentages; MME, a score out of 2000, enters as a fraction
of one, so that it hardly counts:  (sum of ten percentages + MME / 2000) / 11.  Scaled like the
others it is MME / 20.

>>> llava = dict(vqav2=78.5, gqa=62.0, vizwiz=50.0, scienceqa=66.8, textvqa=58.2, pope=85.9,
...              mme=1510.7, mmbench=64.3, seed=58.6, llava_w=63.4, mm_vet=30.5)
>>> average(llava)
Average(as_printed=56.27, rescaled=63.07, missing=())
"""

from collections.abc import Mapping
from dataclasses import dataclass

# the benchmark, and the entry of its `summarise` that the paper's table prints
COLUMNS = {
    "vqav2": "accuracy",
    "gqa": "accuracy",
    "vizwiz": "accuracy",
    "scienceqa": "image_accuracy",
    "textvqa": "accuracy",
    "pope": "f1",
    "mme": "perception",
    "mmbench": "circular",
    "seed": "accuracy",
    "llava_w": "relative",
    "mm_vet": "total",
}
MME_TOP = 2000  # ten perception categories, 200 points each


@dataclass(frozen=True)
class Average:
    """Both averages, in percent and NaN unless all eleven numbers are there; `missing` names those
    that are not.
    """

    as_printed: float
    rescaled: float
    missing: tuple[str, ...]


def average(numbers: Mapping[str, float]) -> Average:
    """`numbers`: benchmark -> headline, in percent except for MME, which is in points of 2000."""
    missing = tuple(
        name for name in COLUMNS if numbers.get(name) is None or numbers[name] != numbers[name]
    )
    if missing:
        return Average(float("nan"), float("nan"), missing)
    percentages = sum(numbers[name] for name in COLUMNS if name != "mme")
    share = numbers["mme"] / MME_TOP
    printed = (percentages + share) / len(COLUMNS)
    rescaled = (percentages + 100 * share) / len(COLUMNS)
    return Average(round(printed, 2), round(rescaled, 2), ())
