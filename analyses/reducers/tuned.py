"""What tuning the projector under VisionZip gains: tiny-llava with 4 and 9 of its 36 vision tokens,
before and after.

    python analyses/reducers/tuned.py      # 2 x 120 steps of 20 questions: some minutes on one core

Held out are images of another seed. A question is right where the model's first choice is the
answer's next token all the way, its end included: what greedy decoding says, from one forward.
tuned.csv goes beside this file.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

import probe
from probe.data.sample import Sample
from probe.evaluation.benchmarks import named
from probe.records.bootstrap import bootstrap, paired
from probe.reducers import VisionZip
from probe.reducers.projector_tuning import AnswerCollator, tune
from probe.subject.subject import Subject

HERE = Path(__file__).parent
BATCH = 20
REDUCERS = {4: VisionZip(3, 1), 9: VisionZip(7, 2)}


@torch.no_grad()
def right(subject: Subject, samples: tuple[Sample, ...]) -> np.ndarray:
    """1 for each question that is answered right, 0 for the others."""
    found = []
    for start in range(0, len(samples), 50):
        batch = AnswerCollator(subject)(samples[start : start + 50])
        labels = batch.pop("labels")[:, 1:]
        said = subject.model(**batch, use_cache=False).logits.argmax(-1)[:, :-1]
        found.append(((said == labels) | (labels < 0)).all(1))
    return torch.cat(found).float().numpy()


def gained(steps: int, held_out: int) -> pd.DataFrame:
    """A row a number of tokens: accuracy before and after, and the difference, in percent with 95 %
    intervals.
    """
    shapes = named("shapes")
    lessons, asked = (
        shapes.read(questions=n, seed=seed).samples
        for n, seed in ((steps * BATCH, 1), (held_out, 0))
    )
    images = [sample.meta["image"] for sample in asked]
    whole, rows = right(probe.load("tiny-llava"), asked), []
    for tokens, reducer in REDUCERS.items():
        subject = probe.load("tiny-llava")
        with probe.reduced(subject, reducer):
            before = right(subject, asked)
        with TemporaryDirectory() as folder:
            options: dict[str, Any] = {
                "learning_rate": 4e-3,
                "per_device_train_batch_size": BATCH,
                "report_to": "none",
            }
            tune(subject, lessons, folder, reducer, batch=BATCH, logging_steps=50, **options)
        with probe.reduced(subject, reducer):
            after = right(subject, asked)
        row: dict[str, Any] = {
            "tokens": tokens,
            "steps": steps,
            "questions": held_out,
            "all_tokens": 100 * whole.mean(),
        }
        intervals = {
            "before": bootstrap(before, images, seed=0),
            "after": bootstrap(after, images, seed=0),
            "gain": paired(after, before, images, seed=0),
            "with_all_tokens": paired(right(subject, asked), whole, images, seed=0),
        }
        for name, found in intervals.items():
            row |= {
                name: 100 * found.estimate,
                f"{name}_low": 100 * found.low,
                f"{name}_high": 100 * found.high,
            }
        rows.append(row)
    return pd.DataFrame(rows).astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--held-out", type=int, default=480, help="questions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = gained(options.steps, options.held_out)
    table.to_csv(HERE / "tuned.csv", index=False, float_format="%.4g")
    print(table.round(1).T.to_string(header=False))


if __name__ == "__main__":
    main()
