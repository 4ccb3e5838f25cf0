"""Writes docs/families.md: what the checks of this folder say of every family.

python -m tests.families.table > docs/families.md          (from the repository's root)
"""

import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers

import probe
from tests.families.checks import CHECKS, Case, results
from tests.families.document_models import DOCUMENT_FAMILIES
from tests.families.further_models import FURTHER_FAMILIES
from tests.families.layer_models import LAYER_FAMILIES
from tests.families.models import FAMILIES
from tests.families.patch_models import PATCH_FAMILIES
from tests.families.picture_models import PICTURE_FAMILIES
from tests.families.refused_models import REFUSED, refusal
from tests.families.score_models import BIASED_FAMILIES, SCORE_FAMILIES
from tests.families.uses import USES, Use, uses
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

USES_HEAD = """
## What can be asked of each

The same models through the verbs, from Python and (the last four) on the command line with the
model saved to a folder: `pytest -m wide tests/families/test_uses.py`. "attribution: pixels" ablates
regions of the image and words, "tokens" the LLM's vision tokens (replaced, hidden, by gradient, by
layer). "by its processor": the config does not say what becomes of an image.
"""

REFUSED_HEAD = """
## Refused when they are loaded

What `probe.load` expects of a model, and what these are.

| family | class | expected | got |
|---|---|---|---|"""

NEWER = {
    **PATCH_FAMILIES,
    **PICTURE_FAMILIES,
    **DOCUMENT_FAMILIES,
    **FURTHER_FAMILIES,
    **LAYER_FAMILIES,
}
ALL_FAMILIES = {**FAMILIES, **NEWER, **SCORE_FAMILIES, **BIASED_FAMILIES}
# Newer ones of each kind through all verbs: patches in a strip, several streams, features between
# layers, tokens between markers, a norm of another name, convolutions beside attention
ASKED = ("minicpmv4_6", "lfm2_vl", "hunyuan_vl", "llava_gemma3n", "molmo2")
USED_FAMILIES = {**FAMILIES, **{name: ALL_FAMILIES[name] for name in ASKED}}
PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def row(name: str, model: Any, found: Mapping[str, str]) -> str:
    """The line of the page about one family."""
    cells = [cell.removesuffix(": ").replace("|", "/") for cell in found.values()]
    return " | ".join([f"| {name}", type(model).__name__, *cells]) + " |"


def refused_row(name: str, model: Any, expected: str, got: str) -> str:
    """The line of the page about a model that is refused."""
    return f"| {name} | {type(model).__name__} | {expected} | {got} |"


def head(columns: Iterable[str]) -> str:
    """The first two lines of a table."""
    names = ["family", "class", *columns]
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def video_row(name: str) -> str:
    """What the page calls a family that is asked about a video."""
    return f"{name}, video"


def main() -> None:
    sys.path.append(str(Path(__file__).parents[1]))  # as pytest has it: `models`
    print(HEAD.format(version=transformers.__version__))
    print(head(CHECKS))
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
    print(USES_HEAD)
    print(head(USES))
    for name, make in USED_FAMILIES.items():
        subject = probe.load(*make())
        try:
            with TemporaryDirectory() as out, redirect_stdout(sys.stderr):
                found = uses(Use(name, Case(subject), Path(out)))
        except AttributeError as error:
            found = dict.fromkeys(USES, f"no: transformers: {error}")
        print(row(name, subject.model, found), flush=True)
    print(REFUSED_HEAD)
    for name, make_refused in REFUSED.items():
        model = make_refused()
        print(refused_row(name, model, *refusal(model)), flush=True)


if __name__ == "__main__":
    main()
