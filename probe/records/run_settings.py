"""With what a run was started: its fingerprint and the versions of the libraries, in `run.json` and
in each of its parts.

A run goes on only with an equal fingerprint. Other versions are reported in a line, or refused.
"""

import contextlib
import json
import os
import secrets
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from probe import __version__
from probe.errors import ProbeError, RunWarning, reason_of
from probe.records.archive import flush_folder
from probe.records.provenance import RunFingerprint, content_hash, first_difference

LIBRARIES = ("torch", "transformers")


def report(line: str) -> None:
    """One line about a run that goes on."""
    warnings.warn(RunWarning(" ".join(f"run: {line}".split())), stacklevel=3)


def settings_of(fingerprint: RunFingerprint) -> dict[str, Any]:
    """What `run.json` and each part keep of a run."""
    return {"fingerprint": fingerprint.plain(), "versions": library_versions()}


def library_versions() -> dict[str, str]:
    """The versions that numbers may depend on; nothing is imported for it.

    >>> sorted(library_versions())
    ['probe', 'torch', 'transformers']
    """
    versions = {"probe": __version__}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "none"
    return versions


def token_of(settings: Mapping[str, Any]) -> str:
    """Part of the names of a run's temporary files: no other run's, and none that a user chose."""
    return content_hash(json.dumps(settings["fingerprint"], sort_keys=True), length=16)


def read_settings(folder: Path) -> dict[str, Any]:
    """What `run.json` holds. Raises ProbeError when it is missing or damaged."""
    expected = f"a run directory with run.json in {str(folder)!r}"
    path = folder / "run.json"
    if not path.exists():
        got = "none" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
        fix = "pass the --out of a run over a benchmark"
        raise ProbeError("run", expected=expected, got=got, fix=fix)
    fix = "restore it, or delete it: the parts of the run carry its settings too"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        got = f"a damaged one ({reason_of(error)})"
        raise ProbeError("run", expected=expected, got=got, fix=fix) from None
    if not isinstance(settings, dict) or not isinstance(settings.get("fingerprint"), dict):
        got = "a damaged one (it holds no fingerprint)"
        raise ProbeError("run", expected=expected, got=got, fix=fix)
    return settings


def refuse_another_run(
    place: Path, old: Mapping[str, Any], new: Mapping[str, Any], verb: str = "started"
) -> None:
    """Raises ProbeError naming the first setting of the fingerprints that differs."""
    difference = first_difference(old.get("fingerprint"), new["fingerprint"])
    if difference:
        name, before, now = difference
        raise ProbeError(
            "run",
            expected=f"{name} = {before}, with which {place} was {verb}",
            got=now,
            fix="use another --out, or the same settings",
        )


def compare_versions(
    place: Path, before: Iterable[Mapping[str, Any]], now: Mapping[str, str], *, strict: bool
) -> None:
    """Reports, or where `strict` refuses, libraries of other versions than now among what was
    written before. Settings from before versions were kept count as equal.
    """
    differing = {
        f"{library} {version}"
        for settings in before
        for library, version in (settings.get("versions") or {}).items()
        if library in now and version != now[library]
    }
    if not differing:
        return
    old = ", ".join(sorted(differing))
    new = ", ".join(f"{library} {version}" for library, version in now.items())
    if strict:
        fix = "install those, or leave strict_versions out"
        expected = f"the versions with which {place} was made: {old}"
        raise ProbeError("run", expected=expected, got=new, fix=fix)
    report(f"{place} was made with {old}, and goes on with {new}; numbers may differ")


def write_once(path: Path, value: Any) -> None:
    """Creates a JSON file with all its content, unless it exists: of two workers that start, one
    wins.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # unlike a rename this fails when the name is taken
    except OSError:  # a file system without hard links
        _copy_once(temporary, path)
    finally:
        temporary.unlink()
    flush_folder(path.parent)


def _copy_once(source: Path, path: Path) -> None:
    with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
        file.write(source.read_text(encoding="utf-8"))
