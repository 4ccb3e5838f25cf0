"""What has to be known to make a result again: the attrs of a dataset, hashes of contents, and what
makes two runs the same run.

    attrs = provenance(subject, kind="sinks", rule=RULE)
    fingerprint = RunFingerprint(
        model="tiny-llava", revision="1", dtype="float32", kernel="sdpa", prompt="vicuna",
        plan={"mode": "mask", "layers": [[0, 1], [2, 3]]}, data=hash_files(benchmark.files),
    )

A run may only be resumed with an equal fingerprint; the first entry that differs is named.
"""

import hashlib
import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from probe import __version__
from probe.errors import ProbeError
from probe.records.schema import plain_attrs

Content = bytes | str | Path


def provenance(subject: Any, **more: Any) -> dict[str, Any]:
    """The attrs of a dataset that was measured on `subject`: what `subject.provenance()`
    returns (model, revision, dtype, kernel, versions ...), the version of this package, and `more`.
    """
    return plain_attrs(subject.provenance() | {"probe_version": __version__} | more)


def content_hash(content: Content | Iterable[Content], length: int = 64) -> str:
    """SHA-256 of bytes, of text (as UTF-8), of a file, or of several of them one after the other.

    `length`: hexadecimal digits that are kept. A file is read in pieces.

    >>> content_hash("abc", length=16)
    'ba7816bf8f01cfea'
    >>> content_hash(["a", b"bc"]) == content_hash("abc")
    True
    """
    digest = hashlib.sha256()
    for part in [content] if isinstance(content, Content) else content:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
        else:
            digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:length]


SCHEMA = 1  # of the run directory; a change of it makes old runs incompatible


@dataclass(frozen=True)
class RunFingerprint:
    """What makes two runs the same run. Every field must be equal for a run to be resumed."""

    model: str
    revision: str
    dtype: str
    kernel: str  # the attention implementation
    prompt: str  # the prompt template, or its hash
    plan: Any  # what is done: verb, interventions, layers, ...; plain values
    data: Mapping[str, str]  # file -> hash: see `hash_files`
    generation: Mapping[str, Any] = field(default_factory=dict)  # arguments of generate
    schema: int = SCHEMA

    def plain(self) -> dict[str, Any]:
        """JSON-compatible copy. Raises ProbeError for values that JSON cannot represent."""
        try:
            return json.loads(json.dumps(asdict(self), default=_as_json))
        except TypeError as error:
            raise ProbeError(
                "run", expected="a fingerprint of plain values", got=str(error)
            ) from None


def hash_files(files: Iterable[Path]) -> dict[str, str]:
    """Name and SHA-256 of each file, for `RunFingerprint.data`."""
    return {path.name: content_hash(path) for path in files}


def first_difference(old: Any, new: Any, name: str = "") -> tuple[str, str, str] | None:
    """The first entry in which two values differ: its dotted name, and both values shortened for a
    message.
    """
    if old == new:
        return None
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return name, reprlib.repr(old), reprlib.repr(new)
    keys = dict.fromkeys([*old, *new])
    key = next(key for key in keys if old.get(key) != new.get(key))
    dotted = f"{name}.{key}" if name else str(key)
    return first_difference(old.get(key), new.get(key), dotted)


def _as_json(value: Any) -> Any:
    if isinstance(value, range | set | frozenset):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # one of numpy's numbers
        return value.item()
    raise TypeError(f"{type(value).__name__} {reprlib.repr(value)}")
