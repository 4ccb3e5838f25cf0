"""A model that answers multiple choice in a paragraph scores 0: how many answers had no readable letter must be told, else a format fault looks like a bad model."""

from common import Path, verdict
import json
import tempfile
from probe.evaluation.benchmarks import scienceqa

root = Path(tempfile.mkdtemp())
n = 4
(root / "problems.json").write_text(
    json.dumps(
        {
            str(i): {
                "question": "What is 1+1?",
                "choices": ["2", "3"],
                "answer": 0,
                "hint": "",
                "image": None,
                "split": "test",
                "subject": "x",
            }
            for i in range(n)
        }
    )
)
(root / "pid_splits.json").write_text(json.dumps({"test": [str(i) for i in range(n)]}))
benchmark = scienceqa.read(root)
texts = [
    "(A) two",
    "A\nExplanation: the passage says so",
    "The sum is 2, so option A fits best.",
    "A",
]
numbers = scienceqa.summarise(
    benchmark.samples, {s.id: t for s, t in zip(benchmark.samples, texts, strict=False)}
)
told = [name for name, value in numbers.items() if value in (3.0, 75.0)]
verdict(bool(told), numbers=numbers, readable=[scienceqa.letter_of(t) for t in texts], told_by=told)
