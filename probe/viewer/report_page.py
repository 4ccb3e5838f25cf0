"""A report as one HTML page, or as Markdown with its figures beside it."""

import base64
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from probe.errors import one_of
from probe.viewer.report import ReportFigure, ReportPart

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: light-dark(#f1f0ec, #262a33); }
body { background: light-dark(#fff, #15171c); color: light-dark(#1d1f24, #eceae4);
       font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { border-top: 1px solid var(--line); padding-top: 1.2rem; }
figure { margin: 1.5rem 0; } figcaption { font-size: .9rem; margin-top: .4rem; }
img { max-width: 100%; background: #fff; padding: .5rem; border: 1px solid var(--line);
      border-radius: .3rem; box-sizing: border-box; }
pre { background: var(--soft); padding: .7rem; border-radius: .3rem; white-space: pre-wrap;
      overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0;
         overflow-wrap: anywhere; }
th { font-weight: 600; white-space: nowrap; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def as_html(parts: Sequence[ReportPart], title: str = "probe report") -> str:
    """One page with its figures inside: nothing is loaded from anywhere. Every text is escaped."""
    body = "\n".join(_part(part) for part in parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _part(part: ReportPart) -> str:
    figures = "\n".join(_figure(figure) for figure in part.figures)
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(text)}</td></tr>'
        for label, text in part.made.items()
    )
    commands = escape("\n".join(part.commands))
    return (
        f"<section>\n<h2>{escape(part.title)}</h2>\n{figures}\n"
        f"<h3>How it was made</h3>\n<table>{rows}</table>\n"
        f"<h3>Make it again</h3>\n<pre>{commands}</pre>\n"
        f"<h3>Methods</h3>\n<p>{escape(part.methods)}</p>\n</section>"
    )


def _figure(figure: ReportFigure) -> str:
    data = base64.b64encode(figure.png).decode()
    name = escape(figure.name)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{name}: '
        f'{escape(figure.definition)}">\n<figcaption><strong>{name}</strong> '
        f"{escape(figure.definition)}</figcaption></figure>"
    )


def as_markdown(
    parts: Sequence[ReportPart], title: str = "probe report"
) -> tuple[str, dict[str, bytes]]:
    """The page as Markdown, and the figures that lie beside it as {file name: PNG}."""
    files: dict[str, bytes] = {}
    blocks = [f"# {_plain(title)}"]
    for number, part in enumerate(parts, 1):
        blocks.append(f"## {_plain(part.title)}")
        for figure in part.figures:
            name = f"{number}-{figure.name}.png"
            files[name] = figure.png
            blocks.append(f"![{_plain(figure.name)}]({quote(name)})")
            blocks.append(f"**{_plain(figure.name)}** {_plain(figure.definition)}")
        rows = [f"| {_plain(label)} | {_plain(text)} |" for label, text in part.made.items()]
        blocks.append("\n".join(["| made with | |", "|---|---|", *rows]))
        commands = "\n".join(f"    {line}" for text in part.commands for line in text.splitlines())
        blocks += ["Make it again:", commands, _plain(part.methods)]
    return "\n\n".join(blocks) + "\n", files


def _plain(text: str) -> str:
    """Text that Markdown takes for nothing else: on one line, its signs escaped."""
    line = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\`*_[]<>#|" else char for char in line)


def report_files(parts: Sequence[ReportPart], form: str = "html") -> dict[str, bytes]:
    """The files of a report as {name: content}: `report.html`, or `report.md` and its figures.
    Raises ProbeError for another form.
    """
    one_of("report", "a form among", form, ("html", "markdown"))
    if form == "html":
        return {"report.html": as_html(parts).encode()}
    text, figures = as_markdown(parts)
    return {"report.md": text.encode(), **figures}
