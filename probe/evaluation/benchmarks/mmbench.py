"""MMBench: multiple choice, each question asked once for every rotation of its options.

A tab separated table, `mmbench_dev_20230712.tsv`, here with the image cut short:

    index   question            hint  A      B      C    D    answer  category          image
    241     Which is the dog?   nan   left   right  nan  nan  B       object_location   /9j/4AAQ...
    1000241 Which is the dog?   nan   right  left   nan  nan  A       object_location   241

`image` is base64, or (64 characters or fewer) the index of the row that has it. The first option
that is empty, nan or none ends the list. Rows with equal `index % 1,000,000` are one question.

Rule, circular: a question counts as right only if every rotation is; one with a rotation that was
not answered, or could not be read, is left out. Vanilla: the unrotated rows alone. The letter is
read as VLMEvalKit does without a language model (`mmbench_letter.py`), by the rule of 2024-03 or,
by name, of 2026-06. LLaVA itself only writes the table for the server
(llava/eval/model_vqa_mmbench.py, scripts/convert_mmbench_for_submission.py).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probe.data.files import DataFolder, table, whole_row
from probe.data.rows import Benchmark, RowError, RowReader, question_text
from probe.data.sample import Sample
from probe.errors import ProbeError, shown
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    official_answers,
    percent,
    weighted_percent,
    write_llava,
)
from probe.evaluation.benchmarks.mmbench_images import COLUMNS, TableImages
from probe.evaluation.benchmarks.mmbench_letter import LETTERS, RULES, letter_of
from probe.evaluation.benchmarks.prompts import OPTION_LETTER, OPTION_LETTER_CN, multiple_choice

HEADLINE = "circular"
LABEL = "circular accuracy (%)"
FILES = "mmbench_dev_20230712.tsv"
SPLITS = (
    "mmbench_dev_20230712",
    "mmbench_dev_cn_20231003",
    "mmbench_dev_en",
    "MMBench_DEV_EN",
    "MMBench_DEV_CN",
)
ROTATION = 1_000_000  # added to the index for each rotation
# what pandas, with which LLaVA reads the table, takes for "no value"; LLaVA adds nan and none in
# any case
MISSING = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "n/a", "null"}
)


def read(folder: str | Path, split: str = SPLITS[0]) -> Benchmark:
    """Reads `<split>.tsv`. Chinese instructions where the split's name has "cn". Raises
    ProbeError.
    """
    data = DataFolder("mmbench", folder)
    reader = RowReader("mmbench", split)
    file = data.find(f"{split}.tsv")
    images = TableImages(file)
    suffix = OPTION_LETTER_CN if "_cn" in split.lower() else OPTION_LETTER
    for number, cells, row in table("mmbench", file, COLUMNS):
        with reader.row(file, number) as official:
            official.update(question_id=row.get("index", f"row {number}"), question="", unit="")
            row = whole_row(cells, row)
            index = _index(row["index"])
            official.update(_official(index, row))
            reader.add(_sample(index, row, images.find(index, row["image"]), suffix))
    return _with_rotations(reader.finish([file]))


def _official(index: int, row: Mapping[str, str]) -> dict[str, Any]:
    """What the official file says of a row, whether or not it can be used."""
    answer = row.get("answer", "").strip()
    return {
        "question_id": index,
        "unit": str(index % ROTATION),
        "question": row["question"],
        "choices": options_of(row),
        "answer": None if missing(answer) else answer,
    }


def _with_rotations(benchmark: Benchmark) -> Benchmark:
    """Each sample with the number of rotations that its question has in the file, as text in
    `meta["rotations"]`: rows that could not be read count.
    """
    fields = [
        row.meta if isinstance(row, Sample) else row.official for row in benchmark.official_rows
    ]
    counts = Counter(row["unit"] for row in fields)

    def counted(sample: Sample) -> Sample:
        rotations = str(counts[sample.meta["unit"]])
        return replace(sample, meta={**sample.meta, "rotations": rotations})

    rows = [counted(row) if isinstance(row, Sample) else row for row in benchmark.official_rows]
    samples = tuple(row for row in rows if isinstance(row, Sample))
    return replace(benchmark, samples=samples, rows=tuple(rows))


def _index(cell: str) -> int:
    if not cell.strip().isdecimal():
        raise RowError("'index': a whole number", shown(cell))
    return int(cell)


def _sample(index: int, row: dict[str, str], image: Path, suffix: str) -> Sample:
    options = options_of(row)
    if len(options) < 2:
        raise RowError("at least the options A and B", f"{len(options)}")
    answer = row.get("answer", "").strip()
    if missing(answer):  # test splits come without
        answer = ""
    elif answer not in LETTERS[: len(options)]:
        raise RowError(f"'answer': one of {', '.join(LETTERS[: len(options)])}", shown(answer))
    hint = row.get("hint", "")
    question = question_text(row) if missing(hint) else f"{hint}\n{question_text(row)}"
    meta = {
        "question_id": index,
        "unit": str(index % ROTATION),
        "image": image.name,
        "base": index < ROTATION,
        "kind": row.get("category", ""),
        "l2-category": row.get("l2-category", ""),
        "split": row.get("split", ""),
        "question": row["question"],
    }
    return Sample(
        str(index), image, multiple_choice(question, options, suffix), options, answer or None, meta
    )


def missing(cell: str) -> bool:
    """Whether a cell stands for no value."""
    return cell in MISSING or cell.lower() in ("nan", "none")


def options_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """The options A, B, ... up to the first that is missing.

    >>> options_of({"A": "left", "B": "right", "C": "nan", "D": "below"})
    ('left', 'right')
    """
    given = [row.get(letter, "") for letter in LETTERS]
    end = next((at for at, option in enumerate(given) if missing(option)), len(given))
    return tuple(given[:end])


def score(prediction: str, sample: Sample, rule: str = RULES[0]) -> float:
    """1 where the chosen letter is the answer, of this rotation alone; NaN where the file has no
    answers.
    """
    if sample.answer is None:
        return float("nan")
    return float(letter_of(prediction, sample.choices, rule) == sample.answer)


def circular(rows: Rows, predictions: Predictions, rule: str = RULES[0]) -> dict[str, float]:
    """For each question (its base index): 1 if all its rotations are right, else 0.

    A question with a rotation that was not answered, or could not be read, is left out.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    rotations: dict[str, int] = {}
    for sample in rows:
        if isinstance(sample, Sample):
            unit = sample.meta["unit"]
            text = predictions.get(sample.id)
            scores[unit].append(float("nan") if text is None else score(text, sample, rule))
            rotations[unit] = int(sample.meta.get("rotations", 0))
    return {
        unit: float(min(hits))
        for unit, hits in scores.items()
        if len(hits) >= rotations[unit] and not np.isnan(hits).any()
    }


def weighted(
    about: Mapping[str, np.ndarray],
    correct: Float[np.ndarray, "sample case"],
    times: Int[np.ndarray, " sample"],
) -> Float[np.ndarray, " case"]:
    """`HEADLINE` of each case when each question counts `times` times: its rotations show one
    image.
    """
    _, first, unit, size = np.unique(
        about["unit"], return_index=True, return_inverse=True, return_counts=True
    )
    right = np.ones((len(first), correct.shape[1]))
    np.minimum.at(right, unit, correct)  # with a rotation that has no score, NaN: left out
    if "rotations" in about:
        expected = about["rotations"][first].astype(int)
        right[size < expected] = np.nan
    return weighted_percent(right, times[first])


def summarise(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Circular and vanilla accuracy in percent, circular accuracy by category and by the newer
    rule, and how many answers choose no option.
    """
    answers = Answers(rows, predictions, score)
    hits = circular(rows, predictions)
    newer = circular(rows, predictions, RULES[1])
    kinds: dict[str, list[float]] = defaultdict(list)
    for unit, kind in {s.meta["unit"]: s.meta["kind"] for s in answers.samples}.items():
        kinds[f"circular/{kind}"] += [hits[unit]] if unit in hits else []
    return {
        "circular": percent(hits.values()),
        "vanilla": answers.percent(lambda sample: sample.meta["base"]),
        f"circular_by_rule_{RULES[1]}": percent(newer.values()),
        **{kind: percent(kinds[kind]) for kind in sorted(kinds)},
        **answers.counts(),
        "no_letter": answers.count(lambda text, s: letter_of(text, s.choices) is None),
    }


def check_export() -> None:
    """Raises ProbeError without openpyxl, which the server's table is written with."""
    try:
        import openpyxl  # noqa: F401  # pyright: ignore
    except ImportError:
        raise ProbeError(
            "mmbench.export",
            expected="openpyxl, to write the server's .xlsx",
            got="no such package",
            fix="pip install openpyxl",
        ) from None


def export(rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
    """Writes the server's `mmbench.xlsx`, and LLaVA's answer file. Raises ProbeError without
    openpyxl.
    """
    answer_file = write_llava(rows, predictions, Path(folder) / "mmbench.jsonl")
    check_export()
    from openpyxl import Workbook  # pyright: ignore

    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(["index", "question", *LETTERS, "prediction", "answer"])
    for row, text in official_answers(rows, predictions):
        missing_options = len(LETTERS) - len(row["choices"])
        options = [*row["choices"], *[None] * missing_options]
        values = [row["question_id"], row["question"], *options, text, row["answer"]]
        sheet.append([_cell(sheet, value) for value in values])
    book.save(answer_file.with_suffix(".xlsx"))
    return answer_file.with_suffix(".xlsx")


def _cell(sheet: Any, value: Any) -> Any:
    """A cell of the table. Text stays text ("=1" would be a formula, which readers find empty),
    without the control characters and half characters that a sheet can't hold.
    """
    from openpyxl.cell import WriteOnlyCell  # pyright: ignore

    if not isinstance(value, str):
        return WriteOnlyCell(sheet, value=value)
    whole = value.encode(errors="replace").decode()
    cell = WriteOnlyCell(sheet, value=re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", whole))
    cell.data_type = "s"
    return cell
