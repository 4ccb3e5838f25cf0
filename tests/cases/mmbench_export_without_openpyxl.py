"""probe drop --benchmark mmbench --export without openpyxl: said before the run, or at least table and figures are kept."""

from common import Path, REPO, os, picture, sys, verdict
import subprocess
import tempfile
import base64
import io


def b64(i):
    file = io.BytesIO()
    picture(seed=i).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


root = Path(tempfile.mkdtemp())
(root / "d").mkdir()
rows = [
    ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"],
    ["2", "Where?", "nan", "left", "right", "nan", "nan", "A", "loc", b64(2)],
]
(root / "d/mmbench_dev_20230712.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
# openpyxl is hidden, wherever it is
(root / "openpyxl.py").write_text("raise ImportError('hidden')\n")
found = subprocess.run(
    [
        sys.executable,
        "-m",
        "probe",
        "drop",
        "--benchmark",
        "mmbench",
        "--data",
        str(root / "d"),
        "--mode",
        "mask",
        "--windows",
        "8",
        "--no-depth",
        "--no-attention",
        "--max-new-tokens",
        "2",
        "--export",
        "--out",
        str(root / "out"),
    ],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": f"{root}:{REPO}", "COLUMNS": "200"},
)
computed, table = any((root / "out").glob("**/*.zarr")), (root / "out/accuracy.csv").exists()
last = [line for line in (found.stdout + found.stderr).splitlines() if line.strip()][-1]
verdict(
    table or not computed,
    code=found.returncode,
    computed_before_it_failed=computed,
    accuracy_csv=table,
    last_line=last,
)
