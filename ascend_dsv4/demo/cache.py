# SPDX-License-Identifier: Apache-2.0
"""The demo's files on disk: written once, checked by hash on every use, repaired where they are damaged.

Two processes may write at the same time: a folder appears whole or not at all, a repair replaces single files, and both
write the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from ascend_dsv4.demo import families
from ascend_dsv4.demo.checkpoint import CONFIG, write_checkpoint
from ascend_dsv4.errors import ConfigError
from ascend_dsv4.user_cache import user_cache_folder

MANIFEST: Final = "demo.json"
"""Name of the file that lists the others with their hashes."""
_FOLDER_IS_THERE: Final = (errno.EEXIST, errno.ENOTEMPTY)


Family = Literal["v4", "v41", "v32"]


def demo_model(folder: Path | None = None, family: Family = "v4") -> Path:
    """Folder of the demo checkpoint of a family, complete and undamaged.

    folder  where to keep it; None: the user's cache, `$XDG_CACHE_HOME/ascend-dsv4/demo-<family>-<hash of the generator>`
    raises  ConfigError if `folder` holds something else, or cannot be written
    """
    try:
        target = cache_folder(family) if folder is None else Path(folder)
        if is_intact(target, family):
            return target
        if folder is not None:
            _check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            fresh = Path(scratch) / "model"
            fresh.mkdir()
            write_checkpoint(fresh, _configuration(family))
            _write_manifest(fresh, family)
            _publish(fresh, target)
        return target
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: the demo model cannot be written ({error.strerror}); expected a folder with "
            "20 MB of room. Set XDG_CACHE_HOME or --keep-dir to a folder that can be written."
        ) from error


def _configuration(family: Family) -> Mapping[str, Any]:
    """Contents of config.json."""
    if family == "v41":
        return families.v41()
    return CONFIG if family == "v4" else families.V32


def cache_folder(family: Family = "v4") -> Path:
    """Where the demo is kept if nobody names a folder. Another version of the generator has another folder."""
    return user_cache_folder() / f"demo-{family}-{_generator_hash()[:12]}"


def is_intact(folder: Path, family: Family = "v4") -> bool:
    """Whether the folder holds every file of this version's demo of the family as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        is_current = (manifest["generator"], manifest["family"]) == (_generator_hash(), family) and bool(files)
        return is_current and all(_hash(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever damage does to a small JSON file
        return False


def _generator_hash() -> str:
    """Changes with any source file of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_manifest(folder: Path, family: Family) -> None:
    files = {path.name: _hash(path) for path in sorted(folder.iterdir())}
    content: dict[str, Any] = {"generator": _generator_hash(), "family": family, "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _check_replaceable(folder: Path) -> None:
    """A folder the user named is written to only if it is new, empty, or an earlier demo and nothing else."""
    if not folder.exists():
        return
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if held - {MANIFEST} - _listed(folder):
        raise ConfigError(
            f"{folder}: holds something else; expected a new or empty folder, or an earlier demo (its files would be "
            "overwritten). Name another folder."
        )


def _listed(folder: Path) -> set[str]:
    """The files that the folder's manifest names; none if there is no manifest of a demo."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return set(manifest["files"]) if isinstance(manifest["generator"], str) else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _publish(fresh: Path, target: Path) -> None:
    """Move the folder to its place; where one is already, replace the files that differ, the manifest last."""
    try:
        os.rename(fresh, target)  # also onto an empty folder
    except OSError as error:
        if error.errno not in _FOLDER_IS_THERE:
            raise
        stale = _listed(target) - {path.name for path in fresh.iterdir()}  # of another family, whose shards have other names
        for path in [path for path in target.iterdir() if path.name in stale]:
            path.unlink(missing_ok=True)
        for path in sorted(fresh.iterdir(), key=lambda path: path.name == MANIFEST):
            kept = target / path.name
            if not (kept.is_file() and _hash(kept) == _hash(path)):
                os.replace(path, kept)
