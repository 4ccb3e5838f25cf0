"""Single answers, and the score that the official scorer gives them (tests/golden/scorers)."""

import json

import pytest
from golden_cases import COPIES, SHARED

from probe.data.sample import Sample
from probe.evaluation.benchmarks import named


def answers():
    """The copy, or with it all that the shared folder has."""
    files = [folder / "scorers" / "answers.json" for folder in (SHARED, COPIES)]
    file = next(file for file in files if file.exists())
    return json.loads(file.read_text())["answers"]


def judged(row):
    truth = tuple(row["truth"]) if isinstance(row["truth"], list) else row["truth"]
    sample = Sample("1", None, "?", tuple(row.get("choices", ())), truth, {})
    return named(row["benchmark"]).score(row["answer"], sample)


def test_there_are_all_of_them():
    assert len(answers()) >= 40


@pytest.mark.parametrize("row", answers(), ids=lambda row: f"{row['benchmark']}-{row['answer']}")
def test_a_single_answer_scores_as_officially(row):
    assert judged(row) == pytest.approx(row["official"])
