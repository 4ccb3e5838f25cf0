"""What every test shares: shapes and types checked at run time, no window, no network, one thread.

`annotation_checks` makes annotations of `probe` checks (jaxtyping for shapes, beartype for the
rest). It must be installed before anything imports `probe`.
"""

import os

import annotation_checks
import hypothesis
import matplotlib
import matplotlib.pyplot as plt
import pytest
from jaxtyping import config

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is first imported
os.environ["HF_HUB_OFFLINE"] = "1"

annotation_checks.install("probe")
matplotlib.use("Agg")
hypothesis.settings.register_profile("probe", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("probe")


@pytest.fixture(autouse=True)
def closed_figures():
    """No test finds the figures of another."""
    yield
    plt.close("all")


@pytest.fixture
def unchecked(monkeypatch):
    """Annotations are not checked, as for users: what a test gives of another type reaches the
    code.
    """
    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs `probe <words>` in an empty folder; gives exit code, stdout and stderr."""
    from probe.cli import main

    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(list(words))
        said = capsys.readouterr()
        return int(exit_.value.code or 0), said.out, said.err

    return command
