# SPDX-License-Identifier: Apache-2.0
"""A checkpoint folder: which tensors it has, whether they fit the model, and their values. numpy only.

Only safetensors files are opened. Nothing is unpickled or executed, and no data is read before the headers of all
shards have been checked.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.errors import CheckpointError
from ascend_dsv4.model.names import DRAFT_PREFIX, Layout, detect_layout, released_view, scale_name_candidates
from ascend_dsv4.model.safetensors_file import SafetensorsFile, TensorEntry, load_json
from ascend_dsv4.quant import fp4, fp8_blockwise

if TYPE_CHECKING:
    from ascend_dsv4.model.tensor_spec import TensorSpec

INDEX_NAME: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 100_000_000  # the largest release (150,000 tensors) needs 15 MB
MAX_LISTED: Final = 20  # names printed per kind of problem

# Spec dtype -> dtype of older writers, which had no name for these bytes.
_SAME_BYTES: Final[Mapping[str, str]] = {"I8": "U8", "F8_E8M0": "U8"}
_PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NUMBERED_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_COMPARE_BYTES: Final = 1 << 24

AliasStatus = Literal["absent", "identical", "different"]
Problems = dict[str, list[str]]  # kind -> what was found, one line each


@dataclass(frozen=True, slots=True)
class InventoryDifferences:
    """How a checkpoint differs from the tensors its model needs. One text per tensor; all empty if it fits."""

    missing: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    wrong_dtype: tuple[str, ...] = ()

    def as_problems(self) -> Problems:
        """Kind -> texts, the non-empty kinds only."""
        kinds = {
            "missing": self.missing,
            "surplus": self.surplus,
            "wrong shape": self.misshapen,
            "wrong dtype": self.wrong_dtype,
        }
        return {kind: list(texts) for kind, texts in kinds.items() if texts}

_SCALE_DTYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "F8_E4M3": ("F8_E8M0", "U8", "F32"), "I8": ("F8_E8M0", "U8"), "U8": ("F8_E8M0", "U8"),
}  # fmt: skip
"""Dtype of a quantised matrix → dtypes that its scales may have."""



class Checkpoint:
    """The tensors of a checkpoint folder under their released names. Make one with `Checkpoint.open`.

    folder       the folder
    shards       names of the safetensors files, sorted
    layout       "released" or "transformers": how the names are stored
    total_bytes  bytes of all tensors, headers not counted; what the index calls total_size
    """

    def __init__(self, folder: Path, files: Mapping[str, SafetensorsFile]) -> None:
        self.folder = folder
        self.shards = tuple(sorted(files))
        self.layout: Layout = detect_layout(name for file in files.values() for name in file.tensors)
        self.total_bytes = sum(entry.num_bytes for file in files.values() for entry in file.tensors.values())
        self._tensors: dict[str, tuple[SafetensorsFile, TensorEntry]] = {}
        problems: Problems = {}
        for shard in self.shards:
            for name, entry in released_view(files[shard].tensors, self.layout).items():
                if name in self._tensors:
                    other = self._tensors[name][0].path.name
                    problems.setdefault("stored twice", []).append(f"{name} (in {other} and {shard})")
                self._tensors[name] = (files[shard], entry)
        _raise_problems(
            problems,
            f"{folder}: shards contradict each other",
            "A tensor must be stored once, or its value is ambiguous. Remove the files that do not belong here.",
        )

    @classmethod
    def open(cls, folder: Path | str) -> Checkpoint:
        """Read and check all headers of a checkpoint folder; no tensor data is touched.

        raises  CheckpointError that lists every damaged, missing or contradicting file and tensor at once
        """
        folder = Path(folder)
        problems: Problems = {}
        weight_map = _read_index(folder, problems)
        shards = _list_shards(folder) if weight_map is None else sorted(set(weight_map.values()))
        _check_shard_names(folder, shards, problems)
        files: dict[str, SafetensorsFile] = {}
        for shard in shards:
            if not (folder / shard).exists():
                count = sum(1 for place in (weight_map or {}).values() if place == shard)
                problems.setdefault("shards missing on disk", []).append(f"{shard} ({count} tensors)")
                continue
            try:
                files[shard] = SafetensorsFile(folder / shard)
            except CheckpointError as error:
                problems.setdefault("damaged shards", []).append(str(error))
        if weight_map is not None:
            _compare_with_index(weight_map, files, problems)
        _raise_problems(problems, f"{folder}: incomplete or damaged checkpoint", _DOWNLOAD_AGAIN)
        return cls(folder, files)

    @property
    def has_draft(self) -> bool:
        """Whether draft stages are stored: `mtp.*`, or the layer that V3.2 appends to draft with."""
        return any(name.startswith(DRAFT_PREFIX) or name.endswith(".eh_proj.weight") for name in self._tensors)

    def names(self) -> tuple[str, ...]:
        """All released names, sorted."""
        return tuple(sorted(self._tensors))

    def entry(self, name: str) -> TensorEntry:
        """Stored dtype, shape and place of a tensor. raises CheckpointError for a name that is not stored."""
        return self._locate(name)[1]

    def array(self, name: str) -> NDArray[Any]:
        """Stored values without a copy: BF16 as uint16 bits, F8_* as uint8, packed FP4 as int8. raises as `entry`."""
        file, entry = self._locate(name)
        return file.read(entry)

    def bytes(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes without a copy; uint8 [num_bytes]. raises as `entry`."""
        file, entry = self._locate(name)
        return file.read_bytes(entry)

    def place(self, name: str) -> tuple[Path, TensorEntry]:
        """File that stores a tensor, and where in it: for readers that map it in their own way. raises as `entry`."""
        file, entry = self._locate(name)
        return file.path, entry

    def scale_name(self, name: str) -> str | None:
        """Name of the scales stored for a quantised weight, or None."""
        return next((scale for scale in scale_name_candidates(name) if scale in self._tensors), None)

    def read_float32(
        self, name: str, block: fp8_blockwise.Block | None = None, rows: tuple[int, int] | None = None
    ) -> NDArray[np.float32]:
        """Values of a tensor: F32 as stored (no copy), BF16 widened, FP8 and packed FP4 decoded with their scales.

        block   (rows, columns) per FP8 scale, `weight_block_size` of the model; only FP8 needs it
        rows    (start, stop) on the first axis, start on a block border for FP8; data outside is not touched. None: all
        returns float32, shape as stored, except that packed FP4 [out, in / 2] gives [out, in]
        raises  CheckpointError for other dtypes, missing scales, or a block or start that does not fit them
        """
        file, entry = self._locate(name)
        part = slice(*rows) if rows is not None else slice(None)
        if entry.dtype == "F32":
            return file.read(entry)[part]
        if entry.dtype == "BF16":
            widened: NDArray[np.float32] = (file.read(entry)[part].astype(np.uint32) << 16).view(np.float32)
            return widened
        scale = self.quantized_scale(name)
        if entry.dtype != "F8_E4M3":
            return fp4.decode_numpy(file.read(entry)[part], self.array(scale)[part])
        if block is None:
            raise CheckpointError(
                f"tensor {name!r}: FP8 without a block size, expected (rows, columns), because its scales cover "
                "blocks. Pass the model's weight_block_size."
            )
        start, stop, _ = part.indices(entry.shape[0])
        if start % block[0]:
            raise CheckpointError(
                f"tensor {name!r}: got rows from {start}, expected a multiple of {block[0]}, because its scales cover "
                f"blocks of {block[0]} rows. Start on a block border."
            )
        covering = slice(start // block[0], -(-stop // block[0]))
        return fp8_blockwise.decode_numpy(file.read(entry)[part], self.array(scale)[covering], block)

    def quantized_scale(self, name: str) -> str:
        """Name of the scales of an FP8 or packed FP4 matrix. Raises CheckpointError for what no decoder reads."""
        entry, scale = self.entry(name), self.scale_name(name)
        found = None if scale is None else self.entry(scale)
        fits = found is not None and found.dtype in _SCALE_DTYPES.get(entry.dtype, ())
        if scale is None or found is None or not fits or (len(entry.shape), len(found.shape)) != (2, 2):
            scales = "no scales" if found is None else f"scales of dtype {found.dtype} {list(found.shape)}"
            raise CheckpointError(
                f"tensor {name!r}: got dtype {entry.dtype} {list(entry.shape)} with {scales}, expected F32, BF16, or an "
                "F8_E4M3 or I8 matrix with a matrix of F8_E8M0 scales, for only these stand for real numbers. Use array()."
            )
        return scale

    def differences(self, inventory: Iterable[TensorSpec], aliases: Mapping[str, str]) -> InventoryDifferences:
        """Compare the headers with the tensors a model needs. Reads no data.

        inventory  every tensor of the model
        aliases    optional name -> name of the tensor it repeats
        Draft stages may be absent as a whole from a transformers checkpoint, and its BF16 tensors may be stored as F32
        (transformers keeps norms in float32; the values are the same).
        """
        specs = {spec.name: spec for spec in inventory}
        specs |= {alias: specs[target] for alias, target in aliases.items() if alias in self._tensors and target in specs}
        if self.layout == "transformers" and not self.has_draft:
            specs = {name: spec for name, spec in specs.items() if not name.startswith(DRAFT_PREFIX)}
        common = sorted(specs.keys() & self._tensors.keys())
        found = {name: self._tensors[name][1] for name in common}
        return InventoryDifferences(
            missing=tuple(sorted(specs.keys() - self._tensors.keys())),
            surplus=tuple(sorted(self._tensors.keys() - specs.keys())),
            misshapen=tuple(
                f"{name} (got {list(found[name].shape)}, expected {list(specs[name].shape)})"
                for name in common
                if tuple(found[name].shape) != tuple(specs[name].shape)
            ),
            wrong_dtype=tuple(
                f"{name} (got {found[name].dtype}, expected {specs[name].dtype})"
                for name in common
                if found[name].dtype not in specs[name].also and not self._is_dtype(found[name].dtype, specs[name].dtype)
            ),
        )

    def alias_status(self, aliases: Mapping[str, str]) -> dict[str, AliasStatus]:
        """Whether each alias is stored, and if so whether its bytes equal its target's. Reads both in that case."""
        status: dict[str, AliasStatus] = {}
        for alias, target in aliases.items():
            if alias not in self._tensors:
                status[alias] = "absent"
            else:
                status[alias] = "identical" if self._is_identical(alias, target) else "different"
        return status

    def validate(self, inventory: Iterable[TensorSpec], aliases: Mapping[str, str]) -> None:
        """Accept the checkpoint for a model, or name everything that does not fit.

        The headers are compared with `inventory` first (see `differences`); only then the bytes of stored aliases with
        their targets.
        raises  CheckpointError listing all missing, surplus, misshapen and wrongly typed tensors, or the differing
                aliases
        """
        spelling = " (names in the released spelling)" if self.layout == "transformers" else ""
        _raise_problems(
            self.differences(inventory, aliases).as_problems(),
            f"{self.folder}: the checkpoint does not fit its config.json{spelling}",
            "Every tensor of the model must be there with the shape that the configuration gives. "
            "Check that config.json and all shards belong to the same release.",
        )
        different = [
            f"{alias} (of {aliases[alias]})" for alias, status in self.alias_status(aliases).items() if status == "different"
        ]
        _raise_problems(
            {"repeated tensors that differ from their original": different} if different else {},
            f"{self.folder}: the checkpoint contradicts itself",
            "Draft stages share the embedding and the head of the main model, so a repetition must be byte-identical. "
            "Remove the repetition or download the release again.",
        )

    def _locate(self, name: str) -> tuple[SafetensorsFile, TensorEntry]:
        try:
            return self._tensors[name]
        except KeyError:
            close = difflib.get_close_matches(name, self._tensors, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise CheckpointError(
                f"{self.folder}: no tensor {name!r} among the {len(self._tensors)} stored ones.{hint} "
                "Validate the checkpoint against the model first."
            ) from None

    def _is_dtype(self, found: str, expected: str) -> bool:
        if found == expected or _SAME_BYTES.get(expected) == found:
            return True
        return self.layout == "transformers" and (expected, found) == ("BF16", "F32")

    def _is_identical(self, name: str, other: str) -> bool:
        mine, theirs = self.entry(name), self.entry(other)
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            return False
        left, right = self.bytes(name), self.bytes(other)
        starts = range(0, len(left), _COMPARE_BYTES)
        return all(np.array_equal(left[i : i + _COMPARE_BYTES], right[i : i + _COMPARE_BYTES]) for i in starts)


_DOWNLOAD_AGAIN: Final = (
    f"{INDEX_NAME} and the headers of its shards must name the same tensors. Download the named files again."
)


def _raise_problems(problems: Problems, where: str, advice: str) -> None:
    """Raise one CheckpointError with at most MAX_LISTED lines per kind; return if there is no problem."""
    if not problems:
        return
    counts = ", ".join(f"{len(found)} {kind}" for kind, found in problems.items())
    lines = [f"{where}: {counts}."]
    for kind, found in problems.items():
        lines.append(f"  {kind}:")
        lines += [f"    {text}" for text in found[:MAX_LISTED]]
        if len(found) > MAX_LISTED:
            lines.append(f"    ... and {len(found) - MAX_LISTED} more")
    raise CheckpointError("\n".join([*lines, advice]))


def _read_index(folder: Path, problems: Problems) -> dict[str, str] | None:
    """The index's map from tensor to shard with unsafe shard names taken out, or None if there is no index."""
    path = folder / INDEX_NAME
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            text = file.read(MAX_INDEX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}), expected the index. Check its permissions."
        ) from error
    if len(text) > MAX_INDEX_BYTES:
        raise CheckpointError(
            f"{path}: more than {MAX_INDEX_BYTES:,} bytes, expected less, because the largest release needs 15 MB. "
            "Check that the file is the index of the release."
        )
    index = load_json(text, str(path))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path}: no weight_map, expected a map from tensor name to shard name. Download the index again."
        )
    safe = {name: shard for name, shard in weight_map.items() if _is_safe_shard(shard)}
    for shard in sorted({str(weight_map[name]) for name in weight_map.keys() - safe.keys()}):
        problems.setdefault("unusable shard names in the index", []).append(
            f"{shard[:200]!r}: "
            f"{'pickle files are never opened' if shard.endswith(_PICKLE_SUFFIXES) else 'not a plain file name'}, "
            "expected a *.safetensors file of this folder"
        )
    return safe


def _is_safe_shard(shard: Any) -> bool:
    """A bare `*.safetensors` name: an index must not reach outside its folder."""
    return (
        isinstance(shard, str)
        and shard.endswith(".safetensors")
        and len(shard.encode("utf-8", "replace")) <= 255
        and not re.search(r"[/\\\x00]", shard)
    )


def _list_shards(folder: Path) -> list[str]:
    """Shards of a folder without an index. raises CheckpointError if there are none."""
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: not a folder, expected a checkpoint folder with config.json and *.safetensors. Check the path."
        )
    files = sorted(path.name for path in folder.iterdir())
    if "model.safetensors" in files:
        return ["model.safetensors"]
    shards = [name for name in files if name.endswith(".safetensors")]
    if shards:
        return shards
    pickles = [name for name in files if name.endswith((*_PICKLE_SUFFIXES, *(f"{s}.index.json" for s in _PICKLE_SUFFIXES)))]
    if pickles:
        raise CheckpointError(
            f"{folder}: got only pickle files ({', '.join(pickles[:3])}), expected *.safetensors, because unpickling "
            "runs code from the file. Convert the checkpoint to safetensors where you trust it, or download the "
            "safetensors release."
        )
    raise CheckpointError(
        f"{folder}: no *.safetensors file, expected at least one, because they hold the weights. Check the path or "
        "download them."
    )


def _check_shard_names(folder: Path, shards: list[str], problems: Problems) -> None:
    """Note members of a numbered series that are not in `shards`: not on disk, or on disk but not in the index."""
    known = set(shards)
    numbered = {(match[1], match[3]) for match in map(_NUMBERED_SHARD.fullmatch, shards) if match}
    for stem, total in sorted(numbered):
        count = min(int(total), 10 * len(shards) + MAX_LISTED)  # a name may claim any count
        series = {f"{stem}-{i:05d}-of-{total}.safetensors" for i in range(1, count + 1)}
        for shard in sorted(series - known):
            place = "on disk, but not in the index" if (folder / shard).exists() else "not on disk"
            problems.setdefault("shards missing from the series", []).append(f"{shard} ({place})")


def _compare_with_index(weight_map: Mapping[str, str], files: Mapping[str, SafetensorsFile], problems: Problems) -> None:
    """Note tensors that a shard lacks although the index places them there, and the reverse."""
    for name, shard in sorted(weight_map.items()):
        if shard in files and name not in files[shard].tensors:
            problems.setdefault("in the index, but not in the shard", []).append(f"{name} ({shard})")
    for shard, file in sorted(files.items()):
        for name in sorted(file.tensors):
            if weight_map.get(name) != shard:
                problems.setdefault("in a shard, but not in the index", []).append(f"{name} ({shard})")
