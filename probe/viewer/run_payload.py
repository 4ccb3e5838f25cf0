"""From the results of a run to what its page holds: a row a sample, with its answers in every case.

    header, packed = run_payload(RunDirectory(folder).load())

Results are a table with cases (`probe reduce`), a tree with such a table for each mode of dropping
(`probe drop`), or a record (`probe attention`), whose one case is the answer as measured. Texts are
kept once each, since most answers are repeated in many cases.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from probe.errors import ProbeError
from probe.evaluation.drop_effects import ATTENTION, tables_of
from probe.plots.arguments import default_query
from probe.viewer.typed_arrays import ArrayStore

ANSWER = "answer"  # the one case of a record
CURVES = {"mass": "attention on vision (fraction)", "entropy": "entropy on vision (nat)"}


class TextTable:
    """Texts by number; equal texts have one number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def numbers(self, texts: Iterable[Any]) -> np.ndarray:
        found = [self._numbers.setdefault(str(text), len(self._numbers)) for text in texts]
        return np.array(found, np.int32)

    @property
    def texts(self) -> list[str]:
        return list(self._numbers)


def run_payload(
    results: xr.Dataset | xr.DataTree,
    *,
    gold: Mapping[str, str] | None = None,
    correct: Mapping[str, float] | None = None,
    places: Mapping[str, int] | None = None,
    sheets: Sequence[str] = (),
    note: str = "",
) -> tuple[dict[str, Any], bytes]:
    """The header (JSON) and the compressed numbers.

    gold, correct: by sample id, where the results don't have them. places: which small picture
    belongs to a sample. sheets: files that hold those (`picture_sheets.py`). note: what the page
    says of itself.

    Raises ProbeError for results that hold no answers.
    """
    require_answers(results)
    store, texts = ArrayStore(), TextTable()
    root = results.to_dataset() if isinstance(results, xr.DataTree) else results
    ids = [str(name) for name in root["sample"].values]
    cases = [
        {
            "name": name,
            "answer": store.add(texts.numbers(answers)),
            "correct": store.add(np.asarray(scores, np.float32)),
        }
        for name, answers, scores in _cases(results, ids, correct or {})
    ]
    given = {"gold": gold or {}, "question": {}, "kind": {}}
    columns = {
        name: texts.numbers(
            root[name].values if name in root else [known.get(id_, "") for id_ in ids]
        )
        for name, known in given.items()
    }
    by_layer = {
        name: {"label": CURVES[name], "values": store.add(values)}
        for name, values in _attention(results).items()
    }
    header = {
        "ids": ids,
        "cases": cases,
        "columns": {name: store.add(numbers) for name, numbers in columns.items()},
        "curves": by_layer,
        "texts": texts.texts,
        "place": store.add(np.array([(places or {}).get(id_, -1) for id_ in ids], np.int32)),
        "sheets": list(sheets),
        "note": note,
        "model": str(root.attrs.get("model", "")),
        "benchmark": str(root.attrs.get("benchmark", "")),
        "toy": str(root.attrs.get("toy", "")),
    }
    return header, store.packed()


def require_answers(results: xr.Dataset | xr.DataTree) -> None:
    """Raises ProbeError for results of a run that kept no answers, as sweeps over heads do."""
    if isinstance(results, xr.DataTree) or "answer" in results:
        return
    kind = str(results.attrs.get("kind", "results without"))
    raise ProbeError(
        "view",
        expected="a run with answers, of probe attention, drop or reduce",
        got=f"one of {kind.replace('_', ' ')}",
        fix="look at the figures and tables in its folder, or make a page of them: probe report",
    )


def _cases(
    results: xr.Dataset | xr.DataTree, ids: Sequence[str], correct: Mapping[str, float]
) -> list[tuple[str, Any, Any]]:
    """(name, answers, scores) of each case; the untouched model of several modes comes once."""
    if isinstance(results, xr.DataTree) and "response" in results:
        scores = [correct.get(id_, np.nan) for id_ in ids]
        return [(ANSWER, results["response"].values, scores)]
    is_plain = isinstance(results, xr.Dataset)
    tables = {"": results} if is_plain else tables_of(results)
    found: dict[str, tuple[str, Any, Any]] = {}
    for mode, table in tables.items():
        for case in map(str, table["case"].values):
            is_own = len(tables) > 1 and case != str(table["case"].values[0])
            name = f"{mode} {case}" if is_own else case
            one = table.sel(case=case)
            found.setdefault(name, (name, one["answer"].values, one["correct"].values))
    return list(found.values())


def _attention(
    results: xr.Dataset | xr.DataTree,
) -> dict[str, Float[np.ndarray, "sample layer"]]:
    """Mass on vision, and entropy, of the response's rows by layer, where they were measured."""
    if not isinstance(results, xr.DataTree):
        return {}
    name = next((name for name in ("llm", ATTENTION) if name in results.children), None)
    if name is None:
        return {}
    measured = results[name].to_dataset()
    query = "response" if "query_count" not in measured else default_query(measured)
    found = {}
    for value in CURVES:
        if value not in measured or query not in measured["query_type"].values.tolist():
            continue
        numbers = measured[value].sel(query_type=query)
        if "key_type" in numbers.dims:
            numbers = numbers.sel(key_type="vision")
        numbers = numbers.mean("head") if "head" in numbers.dims else numbers
        found[value] = numbers.transpose("sample", "layer").values
    return found
