#!/usr/bin/env bash
# pandas 3.1.1 with openpyxl: to_excel writes a text that begins with "=" as a formula, and read_excel, which reads the
# value that Excel would have stored, finds it missing; where it is the last row, the table is a row shorter. A model's
# answer "= 2" is lost so on its way to a scorer that takes .xlsx (MMBench's does).
#   bash findings/answers_that_begin_with_equals.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pandas==3.1.1 numpy==2.4.6 openpyxl==3.1.5

cat > "$work/answers.py" <<'PY'
import sys
import warnings

import openpyxl
import pandas as pd

warnings.simplefilter("error")
answers = ["B", "= 2", "-1", "=B"]
pd.DataFrame({"prediction": answers}).to_excel(sys.argv[1], index=False)
found = pd.read_excel(sys.argv[1])["prediction"].tolist()
print(f"pandas {pd.__version__}, openpyxl {openpyxl.__version__}: {answers} is read back as {found}")
sys.exit(not (len(found) == 3 and found[0] == "B" and pd.isna(found[1]) and found[2] == "-1"))
PY

"$work/venv/bin/python" "$work/answers.py" "$work/answers.xlsx"
echo "as found on 2026-11-29"
