"""Writes docs/families.md: what the checks of this folder say of every family.

python -m tests.families.table > docs/families.md          (from the repository's root)
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

import probe
from tests.families.checks import CHECKS, Case, results
from tests.families.models import FAMILIES
from tests.families.patch_models import PATCH_FAMILIES
from tests.families.picture_models import PICTURE_FAMILIES
from tests.families.video_models import VIDEO_FAMILIES, VideoCase

HEAD = """# Families and what works on each

Tiny random models of the real classes (`tests/families`, transformers {version}), made by
`python -m tests.families.table`. "places": each vision token has a rectangle in the image.
"measured": equal to whole maps to 1e-5, logits bit-identical. "drop": dropped in all layers, the
image has no influence. "compressor, cross": what reads the image outside of encoder and LLM, equal
to whole maps. "knockout": no word sees vision tokens, the image has no influence. "sweep": cases
equal each case alone. "FastV": half of the tokens leave. `tests/golden/pixels` has the places for
real processors. "no" is followed by the reason with which the package refuses. Rows ", video": the
same questions about a video of three frames.
"""


NEWER = {**PATCH_FAMILIES, **PICTURE_FAMILIES}
ALL_FAMILIES = {**FAMILIES, **NEWER}
PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def row(name: str, model: Any, found: Mapping[str, str]) -> str:
    """The line of the page about one family."""
    cells = [found[column].removesuffix(": ").replace("|", "/") for column in CHECKS]
    return " | ".join([f"| {name}", type(model).__name__, *cells]) + " |"


def video_row(name: str) -> str:
    """What the page calls a family that is asked about a video."""
    return f"{name}, video"


def main() -> None:
    sys.path.append(str(Path(__file__).parents[1]))  # as pytest has it: `models`
    print(HEAD.format(version=transformers.__version__))
    print("| family | class |", " | ".join(CHECKS), "|")
    print("|---" * (len(CHECKS) + 2) + "|")
    for name, make in ALL_FAMILIES.items():
        model, processor = make()
        try:
            found = results(Case(probe.load(model, processor=processor)))
        except AttributeError as error:  # raised by the model's own forward
            found = dict.fromkeys(CHECKS, f"no: transformers: {error}")
        print(row(name, model, found), flush=True)
    for name, make in VIDEO_FAMILIES.items():
        model, processor = make()
        found = results(VideoCase(probe.load(model, processor=processor)))
        print(row(video_row(name), model, found), flush=True)


if __name__ == "__main__":
    main()
