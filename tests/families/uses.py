"""What can be asked of every family, beside what `checks.py` says is exact: measures, figures and
the command line. One function a column; each returns "yes", or "no" and why.
"""

from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import probe
from probe.cli import main
from probe.errors import ProbeError
from tests.families.checks import CHECKS, QUESTION, Case, picture
from tests.families.saved import save

RESPONSE = (14, 16)
ASKED = ("--question", QUESTION, "--max-new-tokens", "2")
QUICK = ("--limit", "2", "--windows", "1", "--no-depth", "--no-attention", *ASKED[2:])
TRIED = {  # a feature of `describe`, and the check that says whether it works
    "drop_vision mask, llm": "drop: mask",
    "drop_vision remove, llm": "drop: remove",
    "knockout, llm": "knockout",
}


@dataclass(frozen=True, eq=False)
class Use:
    """A family, in memory and (`folder`) on the disk; results go to `out`."""

    name: str
    case: Case
    out: Path

    @property
    def subject(self) -> Any:
        return self.case.subject

    @cached_property
    def folder(self) -> Path:
        return save(self.name, self.out / "model")

    @cached_property
    def record(self) -> Any:
        options = {"maps": "heads", "received_head": True}
        return probe.measure(self.subject, picture(0), QUESTION, [*RESPONSE], **options)

    def attributed(self, **options: Any) -> Any:
        options = {"over": "grid", "progress": False, "steps": 2, **options}
        found = probe.attribute(self.subject, picture(0), QUESTION, [*RESPONSE], **options)
        assert np.isfinite(found["attribution"]).all() and np.abs(found["attribution"]).max() > 0
        return found

    def command(self, *words: str) -> str:
        """Runs `probe WORDS` in this process: "yes", or the one line that it ended with."""
        said, failed, code = StringIO(), StringIO(), None
        try:
            with redirect_stdout(said), redirect_stderr(failed):
                main(list(words))
        except SystemExit as end:
            code = end.code
        if not code:
            return "yes"
        lines = [line for line in failed.getvalue().splitlines() if line.startswith("probe: ")]
        assert code == 2 and len(lines) == 1, said.getvalue() + failed.getvalue()
        return f"no: {lines[0].partition(', got ')[2].partition('; ')[0]}"


def lens(use: Use) -> str:
    """The last layer's lens gives the model's own logits."""
    found = probe.logit_lens(use.subject, picture(0), QUESTION, [*RESPONSE])
    assert found.attrs["last_layer_difference"] < 1e-4
    probe.plots.lens_curves(found)
    if np.isnan(use.case.prompts[0].grid[0].box).all():
        return "yes, without a place in the image"
    probe.plots.lens(found)
    return "yes"


def by_pixels(use: Use) -> str:
    """What the answer owes to regions and words, by ablated pixels and along a straight line."""
    found = use.attributed()
    use.attributed(method="integrated_gradients", attention=False)
    use.attributed(method="shapley", over="words", samples=1, attention=False)
    probe.plots.attribution(found)
    probe.plots.agreement(found)
    return "yes"


def by_tokens(use: Use) -> str:
    """The same by vision tokens: replaced, hidden from words, and by gradient."""
    use.attributed(baseline="rows", attention=False)
    use.attributed(baseline="hidden", attention=False)
    use.attributed(method="gradient_x_attention", attention=False)
    use.attributed(over="layers", attention=False)
    return "yes"


def flow(use: Use) -> str:
    """Flow maps from the answer back to regions."""
    for method in ("grad_cam", "contribution", "rollout"):
        found = probe.flow(use.subject, picture(0), QUESTION, [*RESPONSE], method, "grid")
        assert float(found["attribution"].min()) >= 0
    assert float(found["attribution"].max()) > 0  # Grad-CAM may have nothing that speaks for it
    return "yes"


def cost(use: Use) -> str:
    """Operations by component; from the config alone, or with what the processor makes."""
    counted = probe.cost(use.subject, text_tokens=20)
    assert (counted["flops"].sel(component="llm").sum() > 0) and counted["kv_cache"].sum() > 0
    try:
        probe.cost(use.subject.model.config)
    except ProbeError:
        return "yes, by its processor"
    return "yes"


def figures(use: Use) -> str:
    """Every figure of a record, that of masses for each stack of several layers, and its page."""
    drawn = probe.plots.figures(use.record)
    plt.close("all")
    page = use.record.probe.view()
    layers = {name: node.sizes["layer"] for name, node in use.record.children.items()}
    several = {f"{name}-mass" for name, count in layers.items() if count > 1}
    assert "llm-mass" in several and several <= drawn.keys() and page is not None
    return "yes"


def attention(use: Use) -> str:
    words = ["attention", "--model", str(use.folder), *ASKED, "--figures", "none"]
    said = use.command(*words, "--out", str(use.out / "attention"))
    assert said != "yes" or (use.out / "attention" / "record.zarr.zip").is_file()
    return said


def drop(use: Use) -> str:
    """In the first mode that the model has."""
    said = ""
    for mode in ("mask", "remove"):
        out = use.out / f"drop-{mode}"
        words = ["drop", "--model", str(use.folder), "--mode", mode, *QUICK, "--out", str(out)]
        said = use.command(*words)
        if said == "yes":
            assert (out / "accuracy.csv").is_file()
            return "yes" if mode == "mask" else f"yes, --mode {mode}"
    return said


def describe(use: Use) -> str:
    """What it offers does run, and what it misses is refused by the reason that it gives."""
    listed = use.out / "described.csv"
    said = use.command("describe", str(use.folder), "--csv", str(listed))
    if said == "yes":
        table = pd.read_csv(listed, keep_default_na=False).set_index("name")
        assert not table["note"].str.match(r"\w*(Error|Exception): ").any(), "no reason of ours"
        for feature, column in TRIED.items():
            result = CHECKS[column](use.case)
            assert table["available"][feature] == (result == "yes"), (feature, result)
            assert result == "yes" or result.removeprefix("no: ") in table["note"][feature]
    return said


def verify(use: Use) -> str:
    return use.command("verify", "--model", str(use.folder))


USES: dict[str, Callable[[Use], str]] = {
    "lens": lens,
    "attribution: pixels": by_pixels,
    "attribution: tokens": by_tokens,
    "flow maps": flow,
    "cost": cost,
    "figures and page": figures,
    "`probe attention`": attention,
    "`probe drop`": drop,
    "`probe describe`": describe,
    "`probe verify`": verify,
}


def uses(use: Use) -> dict[str, str]:
    """What each function says of a family: "yes", or the reason of a refusal."""
    found = {}
    for name, check in USES.items():
        try:
            found[name] = check(use)
        except ProbeError as error:
            found[name] = f"no: {error.got or error}"
        plt.close("all")
    return found
