# SPDX-License-Identifier: Apache-2.0
"""The tensor files of a dump, read without running anything that is in them.

A .pt file is a pickle. torch's restricted unpickler builds tensors and nothing else; whatever else a file asks for is an
error. Tensors that were saved on an Ascend device ask for a function of torch_npu, which only puts a copy on the device again;
`_rebuild_tensor` takes its place, so that a dump can be read where there is no device.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ascend_dsv4.accuracy.msprobe.dump import Dump, Leaf
from ascend_dsv4.errors import DumpError

_DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, RuntimeError,
    ValueError, TypeError, KeyError, AttributeError, IndexError,
)  # fmt: skip
"""What reading a damaged file raises, all of it from torch and numpy."""


def load_tensor(dump: Dump, leaf: Leaf) -> Tensor | None:
    """The values of a leaf, on the CPU; None if there is no file of that name.

    Raises DumpError for a name that leads out of the dump's folder, and for a file that is damaged or asks for more than a
    tensor.
    """
    file = _file_of(dump, leaf)
    if file is None:
        return None
    try:
        return _load_npy(file) if file.suffix == ".npy" else _load_pt(file)
    except _DAMAGE as error:
        if isinstance(error, pickle.UnpicklingError) and (wish := _wish(error)):
            raise DumpError(
                f"{file}: refused: {wish}; expected a tensor and nothing else, because nothing of a dump is executed. msprobe "
                "saves plain tensors: do not open this file elsewhere either unless you wrote it."
            ) from None
        raise DumpError(
            f"{file}: cannot be read as a tensor: {_first_line(error)}. The file was cut off or damaged: copy it again, or "
            "record again."
        ) from None


def _file_of(dump: Dump, leaf: Leaf) -> Path | None:
    folder, name = dump.tensor_folder, leaf.data_name
    plain = name.isprintable() and name not in ("", ".", "..") and "/" not in name and "\\" not in name
    file = folder / name if plain else None
    if file is None or (file.is_symlink() and not file.resolve().is_relative_to(folder.resolve())):
        raise DumpError(
            f"{dump.file}: record {leaf.record}, {leaf.position}: data_name {name!r} leads out of {folder}, expected the plain "
            "name of a file in it, as msprobe writes. Refused: a dump must not point at other files."
        )
    try:
        return file if file.is_file() else None
    except (OSError, ValueError):
        return None


def same_tensor_file(dump: Dump, leaf: Leaf, other_dump: Dump, other: Leaf) -> bool:
    """Whether two leaves that were loaded have their values from one file."""
    files = _file_of(dump, leaf), _file_of(other_dump, other)
    return files[0] is not None and files[1] is not None and files[0].samefile(files[1])


def _load_npy(file: Path) -> Tensor:
    array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiubc":
        raise ValueError(f"holds {getattr(array, 'dtype', type(array).__name__)}, expected an array of numbers")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))


def _load_pt(file: Path) -> Tensor:
    _check_size(file)
    with torch.serialization.safe_globals(list(_STAND_INS)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch asks for reports of unusual pickles
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, Tensor):
        raise ValueError(f"holds a {type(content).__name__}, expected one tensor")
    if content.layout != torch.strided or content.is_meta or content.is_quantized:
        raise ValueError(f"holds a {content.layout} tensor of {content.dtype} on {content.device}, expected a plain one")
    if content.numel() * content.element_size() > file.stat().st_size:
        raise ValueError(f"holds a tensor of shape {list(content.shape)} in {file.stat().st_size} bytes")
    return content.detach().resolve_conj().resolve_neg()


def _check_size(file: Path) -> None:
    """Raise ValueError for an archive that unpacks to more than it is: torch.save compresses nothing."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > file.stat().st_size:
            raise ValueError(f"{file.stat().st_size} bytes unpack to {unpacked}")


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage, as torch_npu's own function makes it, without the way back to a device."""
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if offset < 0 or any(count < 0 for count in size) or any(step < 0 for step in stride):
        raise ValueError(f"tensor with offset {offset}, shape {list(size)}, strides {list(stride)}")
    available = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    if 0 not in size and last >= available:
        raise ValueError(f"tensor of shape {list(size)} in a storage of {available} elements")
    return torch.empty(0, dtype=storage.dtype).set_(storage, offset, tuple(size), tuple(stride))


def _storage_format(number: int) -> int:
    """The memory format a tensor had on the device, which does not matter here."""
    return number


_STAND_INS = (
    (_rebuild_tensor, "torch_npu.utils.storage._rebuild_npu_tensor"),
    (_storage_format, "torch_npu.npu._format.Format"),
)
"""Our function → the name in the file that it answers to."""


def values(tensor: Tensor) -> NDArray[Any]:
    """Real numbers as float64, integers and booleans as they are, complex numbers as pairs of float64."""
    if tensor.dtype.is_complex:
        return torch.view_as_real(tensor.to(torch.complex128).resolve_conj()).numpy()
    return (tensor.double() if tensor.dtype.is_floating_point else tensor).numpy()


def dtype_of(tensor: Tensor) -> str:
    """float32, bfloat16, …"""
    return str(tensor.dtype).removeprefix("torch.")


_WISHES = ("GLOBAL", "unrecognized function", "unsupported class")
"""Words by which the unpickler says that it was asked for something."""


def _wish(error: Exception) -> str:
    """What a pickle asked for besides a tensor, in the unpickler's words; empty if it is damaged instead."""
    lines = [line.strip() for line in str(error).splitlines()]
    wish = next((line for line in lines if any(word in line for word in _WISHES)), "")
    return wish.removeprefix("WeightsUnpickler error: ").split(" Please use ")[0][:200]


def _first_line(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # whose text is advice to switch the restriction off
        return "it is not what torch.save writes"
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
