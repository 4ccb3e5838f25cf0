"""VQAv2's server refuses a file that lacks questions. The exporter's own text promises "" for those without an answer."""

from common import Path, picture, verdict
import json
import tempfile
from probe.evaluation.benchmarks import vqav2
from probe.evaluation.task import BenchmarkTask

root = Path(tempfile.mkdtemp())
(root / "test2015").mkdir()
for i in range(3):
    picture(seed=i).save(root / f"test2015/COCO_test2015_{i:012d}.jpg")
(root / "v2_OpenEnded_mscoco_test-dev2015_questions.json").write_text(
    json.dumps(
        {
            "questions": [
                {"image_id": i, "question": "What is it?", "question_id": i * 1000}
                for i in range(3)
            ]
        }
    )
)
benchmark = vqav2.read(root, "test-dev2015")
said = {benchmark.samples[0].id: "yes"}  # --limit 1, or two samples failed
rows = json.load(
    open(BenchmarkTask(vqav2, benchmark).export(said, root / "out"))
)  # what probe drop --export does
direct = json.load(open(vqav2.export(benchmark.samples, said, root / "direct")))
verdict(
    len(rows) == 3,
    questions=3,
    exported_by_the_command_line=len(rows),
    exported_by_the_module=len(direct),
)
