"""Memory-mapped files that hold the tensors of the units that are not training."""

import errno
import mmap
import os
import re
import shutil
import stat
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sidestep.errors import CheckpointError, InputError
from sidestep.tensorfile import layout, raw_bytes

__all__ = ["UnitFiles", "check_left_units", "remove_left_units"]

_NAME = "units"  # of the folder, in that of a run
_OURS = re.compile(r".*-\d+\.safetensors")
_ALIGN = 64  # as torch aligns its own memory: where a tensor begins may change how sums are rounded


class UnitFiles:
    """Safetensors files, mapped into memory as the system's page cache has them, of which a unit's tensors are views.

    A tensor is used and written as if it were in memory. What is released leaves the process, and stays in the page
    cache until the system needs the room and writes it to disk. The files are scratch: they are whole at no particular
    time, and `close` removes them. What is in them stays usable after that, for as long as the process lives.

    Args:
        folder: where they are, in a folder `units`; None for a temporary folder.
        units: unit name -> parameter names.

    Raises:
        InputError: if this system cannot release mapped pages.
        CheckpointError: if the folder cannot be made.
    """

    def __init__(self, folder: Path | None, units: Mapping[str, list[str]]) -> None:
        if not hasattr(mmap, "MADV_DONTNEED"):
            raise InputError(
                "units = one-resident needs memory-mapped files whose pages can be released (madvise), which this "
                "system does not have; use units = in-turn"
            )
        self.units = units
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="sidestep-units-")) if folder is None else folder / _NAME
            _remove(self._folder)  # what a killed run has left
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"no folder for the units' files can be made: {error}") from error
        self._maps: dict[str, list[mmap.mmap]] = {unit: [] for unit in units}
        self._moved: set[int] = set()  # addresses of the tensors that are in a file
        self._hooks: list[RemovableHandle] = []
        self.close = weakref.finalize(self, _remove, self._folder)

    def moved(self, unit: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Write those tensors of a unit that are in no file yet into a new one; return name -> view of the file.

        Raises:
            CheckpointError: if the file cannot be written, for instance because the disk is full.
        """
        fresh = {name: tensor for name, tensor in tensors.items() if tensor.data_ptr() not in self._moved}
        if not fresh:
            return {}
        fresh = {name: t if _dense(t) else t.contiguous() for name, t in fresh.items()}
        path = self._folder / f"{unit.replace(' ', '-')}-{len(self._maps[unit])}.safetensors"
        # a tensor is written as it lies in memory, which may be channels last: as one row
        rows = {name: tensor.as_strided((tensor.numel(),), (1,)) for name, tensor in fresh.items()}
        head, places = layout({name: (row.dtype, row.shape) for name, row in rows.items()}, {}, _ALIGN)
        mapped = _written(path, head, rows, places)
        self._maps[unit].append(mapped)
        views = {name: _view(mapped, places[name], tensor) for name, tensor in fresh.items()}
        self._moved.update(view.data_ptr() for view in views.values())
        return views

    def release(self, unit: str | None = None) -> None:
        """Let the system take back the pages of a unit, or of all units; their contents stay as they are."""
        for maps in self._maps.values() if unit is None else [self._maps[unit]]:
            for mapped in maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    def release_after_use(self, net: nn.Module) -> None:
        """Release a unit's pages after each layer's pass without gradients too: an evaluation visits all units."""
        owner = {name: unit for unit, names in self.units.items() for name in names}
        for path, module in net.named_modules():
            names = [f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
            for unit in sorted({owner[name] for name in names if name in owner}):
                self._hooks.append(module.register_forward_hook(self._hook(unit)))

    def leave(self) -> None:
        """Take from the net what releases pages, so that it can be copied and pickled like any other."""
        while self._hooks:
            self._hooks.pop().remove()

    def _hook(self, unit: str) -> Any:
        def release(*_: Any) -> None:
            if not torch.is_grad_enabled():
                self.release(unit)

        return release

    def passing(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the same tensors, for one look at each: all pages are released before the next is handed out."""
        return _Passing(self, tensors)


class _Passing(Mapping[str, Tensor]):
    def __init__(self, files: UnitFiles, tensors: Mapping[str, Tensor]) -> None:
        self._files, self._tensors = files, tensors

    def __getitem__(self, name: str) -> Tensor:
        self._files.release()
        return self._tensors[name]

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _dense(tensor: Tensor) -> bool:
    """Whether the elements lie side by side, in whatever order."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return last + 1 == tensor.numel()


def _written(path: Path, head: bytes, rows: Mapping[str, Tensor], places: Mapping[str, int]) -> mmap.mmap:
    """Write a file to its end, so that no page of it can be missing when the disk is full, and map it."""
    try:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), "w+b") as file:
            file.write(head)
            for name, place in places.items():
                file.write(bytes(place - file.tell()))  # padding
                file.write(raw_bytes(rows[name]))
            file.flush()
            return mmap.mmap(file.fileno(), 0)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        why = f"the disk is full ({shutil.disk_usage(path.parent).free} bytes are free)" if full else error.strerror
        raise CheckpointError(f"cannot write {path}, which holds a unit while others train: {why}") from error


def _view(mapped: mmap.mmap, place: int, like: Tensor) -> Tensor:
    row = torch.frombuffer(mapped, dtype=like.dtype, count=like.numel(), offset=place)
    return row.as_strided(like.shape, like.stride())


def check_left_units(folder: Path) -> None:
    """Raise CheckpointError if what stands in the place of the units' folder is none of ours, but a link, say."""
    place = folder / _NAME
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        what = "a link, which might lead anywhere" if stat.S_ISLNK(mode) else "no folder"
        raise CheckpointError(f"{place}, where units are while others train, is {what}: remove it")


def remove_left_units(folder: Path) -> None:
    """Remove the files of units that a killed run has left in its folder."""
    check_left_units(folder)
    _remove(folder / _NAME)


def _remove(folder: Path) -> None:
    """Remove the files of ours from a folder, and the folder if nothing else is in it; follow no link."""
    try:
        if folder.is_symlink():
            return
        for path in folder.iterdir():
            if _OURS.fullmatch(path.name) and not stat.S_ISDIR(path.lstat().st_mode):
                path.unlink(missing_ok=True)
        folder.rmdir()
    except OSError:  # not there, or something else is in it
        pass
