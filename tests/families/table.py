"""Writes docs/families.md: what the checks of this folder say of every family.

python -m tests.families.table > docs/families.md          (from the repository's root)
"""

import sys
from pathlib import Path

import transformers

import probe
from tests.families.checks import CHECKS, Case, results
from tests.families.models import FAMILIES

HEAD = """# Families and what works on each

Tiny random models of the real classes (`tests/families`, transformers {version}), made by
`python -m tests.families.table`. "places": each vision token has a rectangle in the image.
"measured": equal to whole maps to 1e-5, logits bit-identical. "drop": dropped in all layers, the
image has no influence. `tests/golden/pixels` has the places for real processors. "no" is followed
by the reason with which the package refuses.
"""


def cell(text: str) -> str:
    return text.removesuffix(": ").replace("|", "/")


def main() -> None:
    sys.path.append(str(Path(__file__).parents[1]))  # as pytest has it: `models`
    columns = list(CHECKS)
    print(HEAD.format(version=transformers.__version__))
    print("| family | class |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 2) + "|")
    for name, make in FAMILIES.items():
        model, processor = make()
        kind = type(model).__name__
        try:
            found = results(Case(probe.load(model, processor=processor)))
        except AttributeError as error:  # raised by the model's own forward
            found = dict.fromkeys(columns, f"no: transformers: {error}")
        print(f"| {name} | {kind} |", " | ".join(cell(found[each]) for each in columns), "|")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
