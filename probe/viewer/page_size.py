"""How much a page may hold: which single heads were asked for, and whether they fit.

What is far too much is told before any work, the rest when the numbers are compressed.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from probe.errors import ProbeError

LIMIT = 20 * 10**6  # characters of a page's numbers
RAW_LIMIT = 2.5 * LIMIT  # bytes before they are compressed
COMPRESSED = 0.6  # characters of a byte, about


def chosen_heads(measured: xr.Dataset, heads: Sequence[int] | str | None) -> list[int]:
    """The heads asked for, by their index in the stack; another stack may have fewer."""
    count = measured.sizes.get("head", 0)
    if heads is None:
        return []
    asked = range(count) if isinstance(heads, str) else heads
    return [int(head) for head in asked if 0 <= head < count]


def check_heads(
    records: Sequence[xr.DataTree], heads: Sequence[int] | str | None, top: int | None
) -> None:
    """Raises ProbeError for heads that no stack has, or of which none holds maps, and for maps far
    above the limit.
    """
    bytes_asked = 0
    most_heads = 0
    is_held = False
    for record in records:
        for node in record.children.values():
            measured = node.to_dataset()
            most_heads = max(most_heads, measured.sizes.get("head", 0))
            chosen = len(chosen_heads(measured, heads))
            for name in ("maps", "received_head"):
                if name in measured and "head" in measured[name].dims:
                    is_held = True
                    sizes = dict(measured[name].isel(sample=0).sizes)
                    sizes["head"] = chosen
                    sizes["key"] = min(sizes["key"], 3 * (top or sizes["key"]))
                    bytes_asked += int(np.prod(list(sizes.values())))
    if isinstance(heads, str) and heads != "all":
        raise ProbeError("view", expected='heads as numbers, or "all"', got=repr(heads))
    wrong = [head for head in heads or () if not isinstance(head, str) and head >= most_heads]
    if wrong:
        raise ProbeError("view", expected=f"heads from 0 to {most_heads - 1}", got=str(wrong[0]))
    if heads is not None and not is_held:
        fix = 'measure with --heads, or received_head=True and maps="heads"'
        raise ProbeError("view", expected="a record with single heads", got="means only", fix=fix)
    if bytes_asked > RAW_LIMIT:
        raise _too_large(bytes_asked * COMPRESSED, heads)


def check_packed(packed: bytes, heads: Sequence[int] | str | None) -> None:
    """Raises ProbeError for numbers that are more than `LIMIT` as text."""
    size = len(packed) * 4 / 3
    if size > LIMIT:
        raise _too_large(size, heads)


def _too_large(size: float, heads: Sequence[int] | str | None) -> ProbeError:
    return ProbeError(
        "view",
        expected=f"a page of at most {LIMIT / 1e6:.0f} MB",
        got=f"about {size / 1e6:.0f} MB",
        fix="take fewer heads (--heads 0,5,9) or only the largest patches of each (--top-k 16)"
        if heads is not None
        else "measure a shorter answer, or an image with fewer patches",
    )
