"""The terminal.

    say("answer", text)
    with stage("drawing"): ...                     # named on stderr where it takes seconds

What users typed, and what files or models say, is printed as it is: never read as markup, and
control characters are shown instead of obeyed.
"""

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from probe.errors import printable

console = Console(width=None if sys.stdout.isatty() else 120)  # a file has room for every column

PATIENCE = 3.0  # seconds until a stage that still runs is named


def say(label: str, text: object = "") -> None:
    """One paragraph: a label in bold and a text, which is printed as it is."""
    paragraph = Text(label, "bold")
    paragraph.append(f" {printable(str(text))}" if str(text) else "", "not bold")
    console.print(paragraph, soft_wrap=True)


def show_table(
    title: str, headings: Mapping[str, str], rows: Sequence[Sequence[object]], caption: str = ""
) -> None:
    """A table: `headings` maps each column to "left" or "right". Cells are printed as they are."""
    table = Table(
        title=Text(printable(title)),
        min_width=min(len(title), 100),
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for heading, justify in headings.items():
        table.add_column(Text(heading), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(
            *(cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in row)
        )
    table.caption = Text(printable(caption)) if caption else None
    console.print(table)


def number(value: float, digits: int = 3) -> str:
    """A number of fixed decimals, "-" for one that there is not.

    >>> number(0.12345), number(float("nan"))
    ('0.123', '-')
    """
    return "-" if value != value else f"{value:.{digits}f}"


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Names what is going on, on stderr, once it takes more than a few seconds."""
    timer = threading.Timer(PATIENCE, lambda: print(f"probe: {name} ...", file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def quieten_libraries(debug: bool) -> None:
    """Leave the terminal to the results: transformers' warnings are for its own users, progress
    bars for terminals. Figures go to files: no window, whatever the display.
    """
    import matplotlib
    from transformers.utils import logging

    matplotlib.use("Agg")
    if not debug:
        logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
