"""A later question with the first one's cache: text-agnostic VisionZip beside text-guided FastV, on tiny-llava.

    python analyses/reducers/turns.py                 # 20 pictures, 5 later questions each; some minutes on one core

Each picture gets one first question and then five others, each as a new conversation: once with everything computed
anew, once with the cache that the first question left (`subject.chat(keep="always")`). turns.csv goes beside this file.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import probe
from probe.benchmarks import named
from probe.intervals import bootstrap, paired
from probe.reducers import FastV, VisionZip
from probe.samples import Sample
from probe.subject import Subject

HERE = Path(__file__).parent
REDUCERS = {
    "VisionZip, 9 tokens": VisionZip(7, 2),
    "VisionZip, 4 tokens": VisionZip(3, 1),
    "FastV, 9 tokens from layer 3": FastV(2, 0.25),
    "FastV, 4 tokens from layer 3": FastV(2, 4 / 36),
}


def asked_later(subject: Subject, questions: list[Sample]) -> list[tuple[str, str]]:
    """The answers to all questions but the first: computed anew, and with the first one's cache."""
    chat = subject.chat(questions[0].image, keep="always")
    chat.ask(str(questions[0].question))
    found = []
    for sample in questions[1:]:
        chat.restart()
        anew = subject.answer(sample.image, sample.question)
        found.append((anew, chat.ask(str(sample.question))))
        assert chat.reused > 0
    return found


def measured(pictures: int) -> pd.DataFrame:
    """A row a reducer: accuracy of later questions in percent, anew and with the cache, with 95 % intervals."""
    shapes, subject, rows = named("shapes"), probe.load("tiny-llava"), []
    by_picture: dict[str, list[Sample]] = defaultdict(list)
    for sample in shapes.read(questions=6 * pictures).samples:
        by_picture[sample.meta["image"]].append(sample)
    for name, reducer in REDUCERS.items():
        scored, names, differ = [], [], []
        with probe.reduced(subject, reducer):
            for number, (picture, samples) in enumerate(by_picture.items()):
                first = number % len(samples)  # every kind of question is the first one of some pictures
                turned = samples[first:] + samples[:first]
                for sample, answers in zip(turned[1:], asked_later(subject, turned), strict=True):
                    scored.append([shapes.score(answer, sample) for answer in answers])
                    differ.append(answers[0] != answers[1])
                    names.append(picture)
        anew, cached = np.array(scored, float).T
        row: dict[str, Any] = {"reducer": name, "questions": len(scored), "answers_changed": 100 * np.mean(differ)}
        for column, found in {
            "anew": bootstrap(anew, names, seed=0),
            "cached": bootstrap(cached, names, seed=0),
            "difference": paired(cached, anew, names, seed=0),
        }.items():
            row |= {column: 100 * found.estimate, f"{column}_low": 100 * found.low, f"{column}_high": 100 * found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = measured(options.pictures)
    table.to_csv(HERE / "turns.csv", index=False, float_format="%.4g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
