"""One HTML file that holds everything: the page, its style, its scripts and its numbers.

Nothing is loaded from elsewhere, and a content security policy forbids it: only the scripts and the
style of this folder run, known by their hashes. Texts of users and models travel as JSON and are
put into the page as text, never as HTML.
"""

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

STATIC = Path(__file__).with_name("static")
SHARED = ("page", "data", "chart")
RECORD = ("state", "values", "picture", "box", "words", "layers", "heads", "export", "python")
SCRIPTS = {"record.html": (*SHARED, *RECORD, "main"), "run.html": (*SHARED, "run")}
STYLES = {"record.html": ("page", "record"), "run.html": ("page", "run")}


def page(template: str, title: str, header: dict[str, Any], packed: bytes) -> str:
    """A file of `static/` with its style, scripts and data in their places."""
    scripts = SCRIPTS[template]
    style = "".join((STATIC / f"{name}.css").read_text("utf-8") for name in STYLES[template])
    sources = [(STATIC / f"{name}.js").read_text("utf-8") for name in scripts]
    policy = (
        "default-src 'none'; img-src data: blob: 'self'; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {' '.join(map(_hash, sources))}"
    )
    parts = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "header": json_in_html(header),
        "numbers": base64.b64encode(packed).decode(),
        "scripts": "\n".join(f"<script>{source}</script>" for source in sources),
    }
    text = (STATIC / template).read_text("utf-8")
    before, *sections = text.split("{{")
    filled_sections = [
        parts[name] + rest for name, rest in (section.split("}}", 1) for section in sections)
    ]
    return before + "".join(filled_sections)


def json_in_html(value: Any) -> str:
    r"""JSON that cannot end the element it is in, nor hold what only some parsers read.

    >>> json_in_html({"text": "</script>"})
    '{"text": "\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False)  # ASCII: other characters as \u...
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
