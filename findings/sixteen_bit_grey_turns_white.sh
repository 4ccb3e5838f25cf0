#!/usr/bin/env bash
# Pillow 13.0.0: convert("RGB"), which image processors call on every picture, clips 16-bit grey at 255 in place of
# scaling it: an X-ray or depth map in PNG becomes a white picture, without a warning.
#   bash findings/sixteen_bit_grey_turns_white.sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6

cat > "$work/grey.py" <<'PY'
import sys
import warnings

import numpy as np
import PIL
from PIL import Image

warnings.simplefilter("error")
grey = np.array([[1_000, 20_000, 40_000, 60_000]], dtype=np.uint16)  # of 65,535
Image.fromarray(grey).save(sys.argv[1])
opened = Image.open(sys.argv[1])
seen = np.asarray(opened.convert("RGB"))[0, :, 0].tolist()
print(f"Pillow {PIL.__version__}: {opened.mode} {grey[0].tolist()} of 65535 becomes RGB {seen} of 255")
sys.exit(opened.mode != "I;16" or seen != [255, 255, 255, 255])
PY

"$work/venv/bin/python" "$work/grey.py" "$work/grey.png"
echo "as found on 2026-11-29"
