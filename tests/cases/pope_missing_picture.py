"""A picture of POPE is not on disk: the exported answers still have to fit the official scorer, which goes by place."""

from common import Path, picture, verdict
import json
import tempfile
from probe.evaluation.benchmarks import pope
from probe.evaluation.task import BenchmarkTask

root = Path(tempfile.mkdtemp())
(root / "coco").mkdir()
(root / "val2014").mkdir()
labels = ["yes", "no", "no", "yes", "no", "yes"]
for i in range(6):
    if i != 1:
        picture(seed=i).save(root / f"val2014/COCO_val2014_{i:012d}.jpg")
for name in pope.SETS:
    lines = [
        {
            "question_id": i + 1,
            "image": f"COCO_val2014_{i:012d}.jpg",
            "text": "Is there a cat in the image?",
            "label": labels[i],
        }
        for i in range(6)
    ]
    (root / f"coco/coco_pope_{name}.json").write_text("\n".join(map(json.dumps, lines)))
benchmark = pope.read(root)
said = {s.id: s.answer for s in benchmark.samples}  # every answer is right
try:
    BenchmarkTask(pope, benchmark).export(said, root / "out")
except Exception as error:
    verdict("ProbeError" in type(error).__name__, refused=error)
rows = [json.loads(line) for line in open(root / "out/pope.jsonl")]
asked = {q["question_id"]: q for q in map(json.loads, open(root / "out/pope_questions.jsonl"))}
right = []
for name in pope.SETS:  # the official rule: the k-th answer of a set has the k-th label
    mine = [r for r in rows if asked[r["question_id"]]["category"] == name]
    right += [pope.reading_of(r["text"]) == labels[k] for k, r in enumerate(mine)]
ours, theirs = pope.summarise(benchmark.samples, said)["accuracy"], 100 * sum(right) / len(right)
verdict(
    abs(ours - theirs) < 1e-6 or len(rows) == 18,
    problems=len(benchmark.problems),
    product_accuracy=ours,
    official_accuracy_of_the_export=theirs,
)
