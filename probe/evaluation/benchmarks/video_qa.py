"""MSVD-QA, MSRVTT-QA and ActivityNet-QA: open questions about videos, scored by a language model.

`test_q.json` and `test_a.json`, videos in `videos/`; one entry of each, of ActivityNet-QA:

    {"video_name": "1QIUV7WYKXg", "question": "is the athlete wearing trousers",
     "question_id": "v_1QIUV7WYKXg_3"}
    {"answer": "yes", "type": 3, "question_id": "v_1QIUV7WYKXg_3"}

Rule: Video-ChatGPT's protocol (`video_judge.py`): the judge reads question, answer and what the
model said, and gives yes or no and a mark of 0 to 5. Answers are joined to questions by position,
as in LLaVA-Mini; the note of the benchmark says where their ids differ. A question without a video
is left out of the exported file.

LLaVA-Mini asks with an instruction and eight worked examples, which its number depends on. Put them
into `prompt.txt` beside the questions (from run_inference_video_qa.py, or ..._act.py for
ActivityNet): its text comes before each question. Without that file the instruction alone is used.

Source: llavamini/eval/video/run_inference_video_qa.py; Video-ChatGPT,
quantitative_evaluation/evaluate_activitynet_qa.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from probe.data.files import DataFolder, json_list
from probe.data.image import Video
from probe.data.rows import Benchmark, RowError, RowReader, entry, identifier, question_text
from probe.data.sample import Sample
from probe.errors import one_of
from probe.evaluation.benchmarks.answer_files import Answers, Predictions, Rows, write_lines
from probe.evaluation.benchmarks.video_judge import Verdict, accuracy, mean_mark, verdicts

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")
FOLDERS = ("videos/", "video/", "Test_Videos/", "")
PROMPT = "Answer the question with one complete sentence:\n"
Verdicts = Mapping[str, Verdict]  # by question id


@dataclass(frozen=True)
class OpenVideoQuestions:
    """One of the three. Rule: the share of "yes" of a judge, and its mean mark of 0 to 5.

    prefix: what stands before a video's name in the name of its file.
    """

    name: str
    prefix: str = ""

    HEADLINE = "accuracy"
    LABEL = 'judge\'s "yes" (%)'
    FILES = "test_q.json, test_a.json, videos/; prompt.txt if there"
    SPLITS = ("test",)

    def read(self, folder: str | Path, split: str = "test") -> Benchmark:
        """Reads `test_q.json` and `test_a.json`. Raises ProbeError."""
        one_of(self.name, "a split among", split, self.SPLITS)
        data = DataFolder(self.name, folder)
        reader = RowReader(self.name, split)
        files = [data.find("test_q.json"), data.find("test_a.json")]
        prompt = PROMPT
        prompt_file = data.look("prompt.txt")
        if prompt_file is not None:
            prompt = prompt_file.read_text("utf-8")
            files.append(prompt_file)
        questions = json_list(self.name, files[0])
        answers = json_list(self.name, files[1])
        apart = 0
        for number, (row, answer) in enumerate(zip_longest(questions, answers), 1):
            with reader.row(files[0], number) as official:
                key = identifier(row, "question_id")
                official.update(question_id=key)
                apart += key != identifier(answer, "question_id")
                reader.add(self._sample(data, row, answer, prompt))
        note = f"{apart} answers have another id than the question at their place" if apart else ""
        return reader.finish(files, note=note)

    def _sample(self, data: DataFolder, row: Any, answer: Any, prompt: str) -> Sample:
        key = identifier(row, "question_id")
        name = identifier(row, "video_name")
        question = question_text(row)
        files = [self.prefix + name]
        if self.prefix and name.startswith(
            self.prefix
        ):  # in the name already, unless it is its own
            files.append(name)
        kind = str(answer["type"]) if "type" in answer else ""
        more = {"question_id": key, "unit": key, "image": name, "kind": kind, "asked": question}
        known = str(entry(answer, "answer"))
        return Sample(key, Video(video_path(data, *files)), prompt + question, (), known, more)

    def score(self, prediction: str, sample: Sample) -> float:
        """NaN: only a judge can score an open answer. See `judged`."""
        return float("nan")

    def judged(self, file: str | Path) -> dict[str, float]:
        """1 for the judge's "yes" and 0 for its "no", by question id."""
        found = self.verdicts(file)
        known = {key: verdict.is_right for key, verdict in found.items()}
        return {key: float(is_right) for key, is_right in known.items() if is_right is not None}

    def verdicts(self, file: str | Path) -> dict[str, Verdict]:
        """The judge's words, for `summarise`. Raises ProbeError naming the question."""
        return verdicts(f"{self.name}.judged", file)

    def summarise(
        self, rows: Rows, predictions: Predictions, scores: Verdicts | None = None
    ) -> dict[str, float]:
        """Accuracy in percent and the mean mark of 0 to 5, all and by type of question; NaN without
        the judge's `scores` (`verdicts`).
        """
        answers = Answers(rows, predictions, self.score)
        scores = scores or {}
        scored = [sample for sample, _ in answers.pairs if sample.id in scores]
        verdicts = [scores[sample.id] for sample in scored]
        numbers = {"accuracy": accuracy(verdicts), "score": mean_mark(verdicts)}
        kinds = {str(sample.meta["kind"]) for sample in answers.samples} - {""}
        for kind in sorted(kinds):
            of_kind = [scores[sample.id] for sample in scored if sample.meta["kind"] == kind]
            numbers[f"type/{kind}"] = accuracy(of_kind)
            numbers[f"score/{kind}"] = mean_mark(of_kind)
        unscored = float(len(answers.pairs) - len(scored))
        return numbers | answers.counts() | {"unscored": unscored}

    def export(self, rows: Rows, predictions: Predictions, folder: str | Path) -> Path:
        """Writes `<name>.jsonl` for the judge: id, question, answer, pred. Questions whose video is
        missing are left out, as LLaVA-Mini does.
        """
        lines = [
            {
                "id": row.id,
                "question": row.meta["asked"],
                "answer": row.answer,
                "pred": predictions.get(row.id, ""),
            }
            for row in rows
            if isinstance(row, Sample)
        ]
        return write_lines(lines, Path(folder) / f"{self.name}.jsonl")


def video_path(data: DataFolder, *names: str) -> Path:
    """A video's file, or the folder of its frames, under the first of the names that is there.
    Raises RowError.
    """
    places = [at + name for name in names for at in FOLDERS]
    try:
        return data.video(*(place + suffix for place in places for suffix in SUFFIXES))
    except RowError as missing:
        folders = [place for place in places if (data.root / place).is_dir()]
        if not folders:
            raise RowError(f"the video {names[0]!r} in videos/", missing.got) from None
        return data.video(*folders)


MSVD_QA = OpenVideoQuestions("msvd_qa")
MSRVTT_QA = OpenVideoQuestions("msrvtt_qa")
ACTIVITYNET_QA = OpenVideoQuestions("activitynet_qa", prefix="v_")
