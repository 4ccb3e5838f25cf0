"""The cases are scripts: `test_cases.py` runs each in a process of its own, and nothing imports them."""

from pathlib import Path

collect_ignore = [
    path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")
]
