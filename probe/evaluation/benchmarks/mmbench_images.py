"""The images in MMBench's table: base64 in the cell of a row, which others refer to by its index.

images = TableImages(Path("mmbench_dev_20230712.tsv"))
images.find(241, "/9j/4AAQ...")       # stored as a file, whose path is returned
images.find(1000241, "241")           # the same path
"""

from collections.abc import Iterator
from pathlib import Path

from probe.data.files import table
from probe.data.image_cache import cache_folder, stored_image
from probe.data.rows import RowError
from probe.errors import shown

COLUMNS = ("index", "question", "A", "B", "image")
LONGEST_REFERENCE = 64  # characters; an image cell that is longer is an image


class TableImages:
    """Where the image of each row is kept. A row may refer to another's, also to one further
    down.
    """

    def __init__(self, file: Path):
        self.file = file
        self.folder = cache_folder()
        self.stored: dict[int, Path] = {}
        self.ahead: dict[int, str] | None = None

    def find(self, index: int, cell: str) -> Path:
        """Raises RowError when the cell is neither an image nor the index of a row with one."""
        if len(cell) > LONGEST_REFERENCE:
            self.stored[index] = stored_image(cell, self.folder)
            return self.stored[index]
        reference = f"(at most {LONGEST_REFERENCE} characters) the index of its row"
        expected = f"'image': an image in base64, or {reference}"
        if not cell.strip().isdecimal():
            raise RowError(expected, shown(cell))
        owner = int(cell)
        if owner not in self.stored:
            self.ahead = self.ahead if self.ahead is not None else dict(_embedded(self.file))
            if owner not in self.ahead:
                raise RowError(expected, f"{owner}, a row without an image")
            self.stored[owner] = stored_image(self.ahead[owner], self.folder)
        return self.stored[owner]


def _embedded(file: Path) -> Iterator[tuple[int, str]]:
    for _, _, row in table("mmbench", file, COLUMNS):
        if row and row["index"].strip().isdecimal() and len(row["image"]) > LONGEST_REFERENCE:
            yield int(row["index"]), row["image"]
