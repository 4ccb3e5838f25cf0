"""The documentation keeps its word: every Python example runs, every public name is on the page of
names, links lead to files, and the site can be built (where mkdocs is installed).
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import probe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WITH_EXAMPLES = [page for page in PAGES if "```python" in page.read_text()]


def examples(page: Path) -> list[str]:
    """The page's Python blocks, in order."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_in_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "example"}
    for number, example in enumerate(examples(page), 1):
        exec(compile(example, f"{page.name}, example {number}", "exec"), namespace)
        plt.close("all")


def test_the_page_of_names_has_every_public_name():
    text = (DOCS / "api.md").read_text()
    modules = {"models", "plots", "reducers"}  # the rest of their names is in the plots' section
    errors = {"ProbeError"}
    missing = [
        name
        for name in probe.__all__
        if name not in modules | errors and not re.search(rf"^::: \S+\.{name}$", text, re.MULTILINE)
    ]
    missing += [
        f"plots.{name}"
        for name in probe.plots.__all__
        if not re.search(rf"^::: probe\.plots\.\S+\.{name}$", text, re.MULTILINE)
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_images_lead_to_files(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert [target for target in targets if not (DOCS / target).exists()] == []


def test_the_menu_names_every_page():
    menu = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES if f": {page.name}" not in menu] == []


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (extra `docs`)"
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
