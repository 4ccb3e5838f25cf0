#!/usr/bin/env bash
# accelerate 1.15.0: `accelerate launch --cpu --num_processes 2` starts one process, and no line says so: a script that
# splits its samples between processes then does all of them in one.
#   bash findings/launch_on_cpu_is_one_process.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 accelerate==1.15.0

cat > "$work/samples.py" <<'PY'
import accelerate
from accelerate import PartialState

state = PartialState()
with state.split_between_processes(list(range(6))) as mine:
    print(f"accelerate {accelerate.__version__}: process {state.process_index} of {state.num_processes} does {mine}")
PY

export HF_HOME="$work"
said=$("$work/venv/bin/accelerate" launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no \
    --dynamo_backend no "$work/samples.py" 2>&1)
echo "$said"
[ "$said" = "accelerate 1.15.0: process 0 of 1 does [0, 1, 2, 3, 4, 5]" ]
echo "as found on 2026-11-29"
