"""Images that a table carries in base64: written to files once, so that samples hold a path and not
the pixels.

The files lie in the cache folder ($PROBE_CACHE, else ~/.cache/probe), named by the hash of their
content. An image is decoded completely before it gets its name, so that a truncated cell is found
here and not in the middle of a run.
"""

import base64
import binascii
import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from probe.data.image import open_image
from probe.data.rows import RowError
from probe.errors import ProbeError


def cache_folder() -> Path:
    """The folder of images; created. Falls back to the temporary folder where home cannot be
    written.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("PROBE_CACHE") or Path(cache, "probe")
    fallback = Path(tempfile.gettempdir(), "probe-pictures")
    for folder in (Path(home).expanduser() / "pictures", fallback):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    raise ProbeError(
        "images", expected="a folder that can be written", got=str(home), fix="set PROBE_CACHE"
    )


def stored_image(cell: str, folder: Path) -> Path:
    """The file with the image of a base64 cell. Raises RowError unless the image is complete."""
    try:
        content = base64.b64decode("".join(cell.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError("an image in base64", f"{len(cell)} characters: {error}") from None
    path = folder / hashlib.sha256(content).hexdigest()
    if path.exists():
        return path
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as file:
        file.write(content)
    try:
        open_image(file.name)
    except ProbeError:
        os.unlink(file.name)
        raise RowError(
            "a whole image in base64", f"{len(content)} bytes that do not decode"
        ) from None
    os.replace(file.name, path)
    return path
