"""What MVBench and MLVU have in common in LLaVA-Mini's scripts: the prompt, the frames and the
rules that read a letter from an answer.

    Question: What colour is the car?
    Options:
    (A) red car
    (B) blue car
    Answer with one letter.

Three rules give three scores of one answer. `before_bracket` is what LLaVA-Mini's script prints,
`first_letter` the `acc` that it writes to its .jsonl, `notebook_rule` that of MVBench's notebook.
The paper does not state which of the first two it prints. None reads an answer as a person would:

    answer              before_bracket    first_letter    notebook_rule       gold: (B) blue car
    B.                  wrong             B               right
    Answer: B           wrong             A               wrong
    N/A, None           wrong             A               wrong
    (empty)             wrong             A               right

Source: llavamini/eval/video/mvbench_mc.py, mlvu_mc.py; Ask-Anything, video_chat2/mvbench.ipynb.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probe.data.files import DataFolder, json_list
from probe.data.image import Video
from probe.data.rows import Benchmark, RowError, RowReader, entry, question_text
from probe.data.sample import Sample
from probe.errors import ProbeError, one_of, shown
from probe.evaluation.benchmarks.answer_files import (
    Answers,
    Predictions,
    Rows,
    official_answers,
    weighted_percent,
    write_lines,
)

MOST_FRAMES = 1000  # of a file; a folder of frames has no cap
NO_LETTER = "@"  # of an answer that is not among the candidates: never right
Rule = Callable[[str, Sample], float]


def letters(count: int) -> str:
    """The letters of this number of options.

    >>> letters(4)
    'ABCD'
    """
    return "".join(chr(ord("A") + place) for place in range(count))


def options_prompt(question: str, candidates: Sequence[str]) -> str:
    """The question as LLaVA-Mini asks it."""
    listed = zip(letters(len(candidates)), candidates, strict=True)
    options = "".join(f"({letter}) {candidate}\n" for letter, candidate in listed)
    return f"Question: {question}\nOptions:\n{options}".rstrip() + "\nAnswer with one letter."


def video_of(path: Path) -> Video:
    """One frame a second, at most `MOST_FRAMES`; all frames of a folder."""
    return Video(path) if path.is_dir() else Video(path, max_frames=MOST_FRAMES)


def candidates_of(row: object) -> tuple[str, ...]:
    """The texts of the options. Raises RowError."""
    candidates = entry(row, "candidates", list)
    if not candidates or not all(isinstance(text, str) for text in candidates):
        raise RowError("'candidates': a list of texts", shown(candidates))
    return tuple(candidates)


def gold_letter(sample: Sample) -> str:
    """The letter of the last candidate that is the answer (given as its text, or as a letter)."""
    places = [place for place, text in enumerate(sample.choices) if text == sample.answer]
    known = letters(len(sample.choices))
    if places:
        return known[places[-1]]
    answer = str(sample.answer)
    return answer if len(answer) == 1 and answer in known else NO_LETTER


def before_bracket(prediction: str, sample: Sample) -> float:
    """1 where the character before the first ")", or without one the whole answer, is the letter.

    >>> sample = Sample("1", None, "?", ("red car", "blue car"), "blue car")
    >>> [before_bracket(text, sample) for text in ("B", "I see a man (B)", "B.")]
    [1.0, 1.0, 0.0]
    """
    text = prediction.strip()
    before, bracket, _ = text.partition(")")
    return float((before[-1:] if bracket else text) == gold_letter(sample))


def letter_read(prediction: str, options: str, otherwise: str) -> str:
    """The first character of the answer that is the letter of an option.

    >>> letter_read("The answer is B", "ABCD", otherwise="A"), letter_read("None", "ABCD", "A")
    ('B', 'A')
    """
    return next((character for character in prediction if character in options), otherwise)


def first_letter(prediction: str, sample: Sample) -> float:
    """1 where the first character that is an option's letter is the right one; A is read where
    there is none.
    """
    read = letter_read(prediction, letters(len(sample.choices)), otherwise="A")
    return float(read == gold_letter(sample))


def notebook_rule(prediction: str, sample: Sample) -> float:
    """1 where the first word of "(" and the answer's first line contains "(b)", or is contained in
    it: an empty answer is always right.
    """
    line = prediction.strip().split("\n")[0]
    word = ("(" + line).split(" ")[0].lower().replace(".", "")
    gold = f"({gold_letter(sample).lower()})"
    return float(word in gold or gold in word)


def summary(rows: Rows, predictions: Predictions) -> dict[str, float]:
    """In percent: the mean over tasks by LLaVA-Mini's printed rule, by the rule of its .jsonl (also
    with missing answers read as "N/A", which is A, as its script answers an unreadable video), and
    over all questions by the notebook's rule; then each task by the first two.
    """
    printed = Answers(rows, predictions, before_bracket)
    in_file = Answers(rows, predictions, first_letter)
    by_task = printed.by("task"), in_file.by("first_letter")
    everything = {sample.id: "N/A" for sample in printed.samples} | dict(predictions)
    as_in_file = Answers(rows, everything, first_letter).by("task")
    return {
        "accuracy": _mean(by_task[0]),
        "first_letter": _mean(by_task[1]),
        "first_letter_missing_as_a": _mean(as_in_file),
        "notebook": Answers(rows, predictions, notebook_rule).percent(),
        "accuracy_over_questions": printed.percent(),
        "accuracy_missing_as_wrong": printed.missing_as_wrong(),
        **by_task[0],
        **by_task[1],
        **printed.counts(),
    }


def _mean(by_task: Mapping[str, float]) -> float:
    """The mean over tasks that have an answer."""
    values = np.array(list(by_task.values()), dtype=float)
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")


def mean_over_tasks(
    about: Mapping[str, np.ndarray],
    correct: Float[np.ndarray, "sample case"],
    times: Int[np.ndarray, " sample"],
) -> Float[np.ndarray, " case"]:
    """The headline of each case when each sample counts `times` times."""
    kinds = np.unique(about["kind"])
    of_tasks = [
        weighted_percent(correct[about["kind"] == kind], times[about["kind"] == kind])
        for kind in kinds
    ]
    known = ~np.isnan(of_tasks)
    sums = np.nan_to_num(of_tasks).sum(0)
    nothing = np.full(sums.shape, np.nan)
    return np.divide(sums, known.sum(0), out=nothing, where=known.any(0))


@dataclass(frozen=True)
class Task:
    """The name of a task's file, without its ending, and the folders that its videos may be in."""

    file: str
    folders: tuple[str, ...]


@dataclass(frozen=True)
class VideoChoices:
    """MVBench or MLVU. Rule: LLaVA-Mini's, see above; the headline is the mean over tasks of what
    its script prints.
    """

    name: str
    tasks: Mapping[str, Task]
    LABEL: str = "mean accuracy over tasks (%)"

    HEADLINE = "accuracy"
    FILES = "json/<task>.json, video/<folder of the task>/"

    @property
    def SPLITS(self) -> tuple[str, ...]:  # noqa: N802  # as in the other benchmarks
        return "all", *self.tasks

    def read(self, folder: str | Path, split: str = "all") -> Benchmark:
        """Reads all tasks whose file is there, or one. Raises ProbeError."""
        one_of(self.name, "a split among", split, self.SPLITS)
        data = DataFolder(self.name, folder)
        reader = RowReader(self.name, split)
        tasks = [*self.tasks] if split == "all" else [split]
        found = {}
        for task in tasks:
            name = f"{self.tasks[task].file}.json"
            file = data.look(f"json/{name}", name)
            if file is not None:
                found[task] = file
        if not found:
            raise ProbeError(self.name, expected=self.FILES, got=f"no task's file in {data.root}")
        for task, file in found.items():
            for number, row in enumerate(json_list(self.name, file)):
                with reader.row(file, number + 1) as official:
                    official.update(question_id=f"{task}/{number}", kind=task)
                    reader.add(self._sample(data, row, task, number))
        missing = [task for task in tasks if task not in found]
        note = f"{len(missing)} of {len(tasks)} tasks have no file: {', '.join(missing)}"
        return reader.finish([*found.values()], note=note if missing else "")

    def _sample(self, data: DataFolder, row: Any, task: str, number: int) -> Sample:
        """The sample of one row; its number is part of its id, for a video may be asked the same
        twice.
        """
        video = entry(row, "video")
        candidates = candidates_of(row)
        question = question_text(row)
        folders = self.tasks[task].folders
        path = data.video(*(f"video/{folder}/{video}" for folder in folders))
        key = f"{task}/{number}"
        meta = {"question_id": key, "unit": key, "image": f"{task}/{video}", "kind": task}
        for name in ("start", "end", "duration"):
            if name in row:
                meta[name] = row[name]
        prompt = options_prompt(question, candidates)
        return Sample(key, video_of(path), prompt, candidates, entry(row, "answer"), meta)

    def score(self, prediction: str, sample: Sample) -> float:
        """1 where LLaVA-Mini's printed rule reads the right letter."""
        return before_bracket(prediction, sample)

    def summarise(self, rows: Rows, predictions: Predictions) -> dict[str, float]:
        """See `summary`."""
        return summary(rows, predictions)

    def weighted(
        self,
        about: Mapping[str, np.ndarray],
        correct: Float[np.ndarray, "sample case"],
        times: Int[np.ndarray, " sample"],
    ) -> Float[np.ndarray, " case"]:
        """`HEADLINE` of each case when each sample counts `times` times."""
        return mean_over_tasks(about, correct, times)

    def export(self, rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
        """Writes `<name>.jsonl`: task, question, right answer and the model's, with
        LLaVA-Mini's `acc` beside it.
        """
        samples = {row.id: row for row in rows if isinstance(row, Sample)}
        lines = []
        for row, text in official_answers(rows, predictions):
            sample = samples.get(row["answer_id"])
            line = {"question_id": row["question_id"], "task": row.get("kind", "")}
            line |= {"question": row["prompt"], "answer": row["answer"], "pred": text}
            lines.append(line | {"acc": bool(sample and first_letter(text, sample))})
        return write_lines(lines, Path(folder) / f"{self.name}.jsonl")
