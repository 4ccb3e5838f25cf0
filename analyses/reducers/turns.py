"""A later question with the first one's cache: text-agnostic VisionZip beside text-guided FastV, on
tiny-llava.

    python analyses/reducers/turns.py          # 16 images, 30 pairs of questions each; some minutes

Each of an image's six questions is the first one once, and then come the other five, each as a new
conversation: with everything computed anew, and with the cache that the first question left
(`subject.chat(keep="always")`). turns.csv goes beside this file.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import probe
from probe.data.sample import Sample
from probe.evaluation.benchmarks import named
from probe.records.bootstrap import bootstrap, paired
from probe.reducers import FastV, VisionZip
from probe.subject.subject import Subject

HERE = Path(__file__).parent
REDUCERS = {
    "VisionZip, 9 tokens": VisionZip(7, 2),
    "FastV, 9 tokens from layer 3": FastV(2, 0.25),
    "FastV, 4 tokens from layer 3": FastV(2, 4 / 36),
}


def pairs(subject: Subject, asked: list[Sample]) -> Iterator[tuple[Sample, str, str]]:
    """Every question behind every other one about an image, with its answers: computed anew, and
    with the cache.
    """
    anew = {sample.id: subject.answer(sample.image, sample.question) for sample in asked}
    for first in asked:
        chat = subject.chat(first.image, keep="always")
        chat.ask(str(first.question))
        for sample in asked:
            if sample is not first:
                chat.restart()
                yield sample, anew[sample.id], chat.ask(str(sample.question))
                assert chat.reused > 0


def measured(images: int) -> pd.DataFrame:
    """A row a reducer: accuracy of later questions in percent, anew and with the cache, with 95 %
    intervals.
    """
    shapes, subject, rows = named("shapes"), probe.load("tiny-llava"), []
    by_image: dict[str, list[Sample]] = defaultdict(list)
    for sample in shapes.read(questions=6 * images).samples:
        by_image[sample.meta["image"]].append(sample)
    for name, reducer in REDUCERS.items():
        scored, names, differ = [], [], []
        with probe.reduced(subject, reducer):
            for picture, asked in by_image.items():
                for sample, *answers in pairs(subject, asked):
                    scored.append([shapes.score(answer, sample) for answer in answers])
                    differ.append(answers[0] != answers[1])
                    names.append(picture)
        anew, cached = np.array(scored, float).T
        row: dict[str, Any] = {
            "reducer": name,
            "questions": len(scored),
            "answers_changed": 100 * np.mean(differ),
        }
        for column, found in {
            "anew": bootstrap(anew, names, seed=0),
            "cached": bootstrap(cached, names, seed=0),
            "difference": paired(cached, anew, names, seed=0),
        }.items():
            row |= {
                column: 100 * found.estimate,
                f"{column}_low": 100 * found.low,
                f"{column}_high": 100 * found.high,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = measured(options.images)
    table.to_csv(HERE / "turns.csv", index=False, float_format="%.4g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
