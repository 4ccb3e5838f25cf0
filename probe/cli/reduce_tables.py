"""The tables that `probe reduce` prints: scores of each method, and all beside their controls."""

from typing import TYPE_CHECKING, Any

from probe.cli.cost import time_and_memory, with_unit
from probe.cli.output import show_table

if TYPE_CHECKING:
    import pandas as pd

    from probe.evaluation.task import BenchmarkTask

SHORT = {"than random": "random", "than down-sampling": "smaller", "faster": "faster"}


def show_scores(table: "pd.DataFrame", task: "BenchmarkTask") -> None:
    headline = task.module.HEADLINE
    names = (headline, "95 % interval", "of all", "tokens", "operations", "formula", "ms", "peak")
    rows = []
    for row in table.to_dict("records"):
        rows.append(
            [
                row["method"],
                f"{row[headline]:.1f}",
                interval(row[f"{headline}_low"], row[f"{headline}_high"]),
                f"{row['of_first']:.0f} %" if row["of_first"] == row["of_first"] else "-",
                f"{row['vision_tokens']:.1f}",
                with_unit(1e12 * row["total (TFLOP)"], "FLOP"),
                with_unit(1e12 * row["formula (TFLOP)"], "FLOP"),
                *time_and_memory(row),
            ]
        )
    caption = (
        "tokens: vision tokens, mean over LLM layers; operations: counted, all components, to the "
        "first token; formula: of the reducers' papers, LLM only; ms: from pixels to the first "
        "token, mean ± standard deviation; -: no interval of one image, nothing "
        "right with all tokens, or not measured"
    )
    title = f"{task.benchmark.name}: {headline} with fewer vision tokens"
    show_table(title, {"method": "left"} | dict.fromkeys(names, "right"), rows, caption)


def show_benchmark(rows: "pd.DataFrame", task: "BenchmarkTask") -> None:
    """A row a method and budget: what it is worth beside its controls, and what it saves."""
    headline = task.module.HEADLINE
    names = (headline, "over random", "over smaller", "hard", "rest", "times faster", "counted")
    cells = []
    for row in rows.to_dict("records"):
        cells.append(
            [
                row["method"].replace(" tokens", ""),
                f"{row[headline]:.1f}",
                _with_interval(row, "over_random"),
                _with_interval(row, "over_smaller"),
                f"{row['hard']:.0f}" if row["hard"] == row["hard"] else "-",
                f"{row['rest']:.0f}" if row["rest"] == row["rest"] else "-",
                _with_interval(row, "speed_up", 2),
                f"{row['counted']:.2f}",
                ", ".join(word for words, word in SHORT.items() if words in row["verdict"]),
            ]
        )
    caption = (
        "in brackets 95 % intervals over images; over random, over smaller: to the mean of the "
        "random selections and to the down-sampled image of the same budget, paired; hard: mean "
        "score on what the down-sampled image gets wrong (itself 0 there), rest: on the others; "
        "times faster: to the first token, on this machine; counted: operations; not shown: what "
        "the intervals leave open or deny: better than random, than the smaller image, faster"
    )
    title = f"{task.benchmark.name}: reducers beside their controls"
    columns = {"method": "left"} | dict.fromkeys(names, "right") | {"not shown": "left"}
    show_table(title, columns, cells, caption)


def interval(low: float, high: float) -> str:
    """
    >>> interval(50, 75), interval(float("nan"), float("nan"))
    ('50.0 to 75.0', '-')
    """
    return f"{low:.1f} to {high:.1f}" if low == low else "-"


def _with_interval(row: "dict[Any, Any]", name: str, digits: int = 1) -> str:
    """
    >>> _with_interval({"a": 1.0, "a_low": -2.0, "a_high": 4.0}, "a"), _with_interval({}, "a")
    ('1.0 [-2.0, 4.0]', '-')
    """
    estimate = row.get(name, float("nan"))
    if estimate != estimate:
        return "-"
    low = row[f"{name}_low"]
    high = row[f"{name}_high"]
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
