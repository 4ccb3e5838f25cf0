"""An option that is the word None makes one rotation of an MMBench question unreadable. Its circular score must not be that of the other rotation alone."""

from common import Path, picture, verdict
import tempfile
import base64
import io
from probe.evaluation.benchmarks import mmbench


def b64(i):
    file = io.BytesIO()
    picture(seed=i).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


root = Path(tempfile.mkdtemp())
rows = [
    ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"],
    ["1", "Which?", "nan", "left", "right", "up", "None", "D", "loc", b64(1)],
    ["1000001", "Which?", "nan", "None of them", "left", "right", "up", "A", "loc", "1"],
    ["2", "Where?", "nan", "left", "right", "nan", "nan", "A", "loc", b64(2)],
]
(root / "mmbench_dev_20230712.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
benchmark = mmbench.read(root)
said = {"1": "D", "1000001": "A", "2": "B"}  # question 2 is wrong; question 1 can't be known whole
numbers = mmbench.summarise(benchmark.samples, {s.id: said[s.id] for s in benchmark.samples})
verdict(
    numbers["circular"] == 0.0,
    problems=[str(p) for p in benchmark.problems],
    circular=numbers["circular"],
    right="0.0: question 1 left out as an unanswered one is, or wrong",
)
