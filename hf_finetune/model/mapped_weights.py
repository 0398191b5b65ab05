"""Gives back the memory of weights that are not read for a while.

On a CPU, the weights of a safetensors file in fp32 are not copied: transformers maps the file, and a page that nobody has written
is the file's. It can be given back to the operating system at any time, and is read from the file when it is needed. On a GPU,
weights are moved to the CPU until a module that owns them runs.
"""

import ctypes
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

MAPS = Path("/proc/self/maps")  # Linux has it
BYTES_AT_ONCE = 2**22

Range = tuple[int, int]  # first address, and the one after the last


@dataclass(frozen=True, kw_only=True)
class MappedFile:
    """A file that is mapped into memory, privately: what is written there does not reach the file."""

    start: int
    end: int
    offset: int  # in the file
    inode: int
    path: str


def read_mappings() -> list[MappedFile]:
    """Returns the private maps of files of this process. None where the operating system does not list them."""
    try:
        lines = os.fsdecode(MAPS.read_bytes()).splitlines()
    except OSError:
        return []
    pattern = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ..[-x]p ([0-9a-f]+) \S+ (\d+) +(/.*)")
    found = [match for line in lines if (match := pattern.fullmatch(line))]
    return [
        MappedFile(
            start=int(match[1], 16), end=int(match[2], 16), offset=int(match[3], 16), inode=int(match[4]), path=match[5]
        )
        for match in found
    ]


def find_unchanged_ranges(tensors: Iterable[torch.Tensor]) -> list[Range]:
    """Returns the pages of those tensors on the CPU that lie in a mapped safetensors file and hold its bytes."""
    mappings = read_mappings()
    ranges: list[Range] = []
    for tensor in tensors:
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        inside = [mapping for mapping in mappings if mapping.start <= start and end <= mapping.end]
        if tensor.device.type == "cpu" and tensor.is_contiguous() and inside and holds_file(tensor, inside[0]):
            ranges.append((start, end))
    page = mmap.PAGESIZE
    inner = [(-(-start // page) * page, end // page * page) for start, end in merge(ranges)]
    return [(start, end) for start, end in inner if start < end]


def holds_file(tensor: torch.Tensor, mapping: MappedFile) -> bool:
    """True if a tensor in a map has the bytes that the file has there."""
    values = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    offset = mapping.offset + tensor.data_ptr() - mapping.start
    try:
        descriptor = os.open(mapping.path, os.O_RDONLY)
    except OSError:
        return False
    try:
        if os.fstat(descriptor).st_ino != mapping.inode:  # another file has its name by now
            return False
        return all(
            os.pread(descriptor, len(part), offset + begin) == part.tobytes() for begin, part in iterate_parts(values)
        )
    except OSError:
        return False
    finally:
        os.close(descriptor)


def iterate_parts(values: "np.ndarray[Any, Any]") -> Iterator[tuple[int, "np.ndarray[Any, Any]"]]:
    """Yields the place of each part of some bytes, and the part."""
    for begin in range(0, len(values), BYTES_AT_ONCE):
        yield begin, values[begin : begin + BYTES_AT_ONCE]


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Returns the ranges in order, with those that touch each other as one."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def give_back(ranges: Iterable[Range]) -> None:
    """Gives pages back to the operating system. They must be as find_unchanged_ranges() found them."""
    for start, end in ranges:
        libc = ctypes.CDLL(None)  # which Windows does not have; nor does it list the ranges
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


# --- from a GPU -----------------------------------------------------------------------------------------------------


def move_to_cpu(parameters: Iterable[nn.Parameter], idle: Iterable[nn.Module]) -> None:
    """Moves parameters of idle modules to the CPU. They come back when an idle module runs, or a module inside it, unless its
    forward is replaced (forward/cached.replace_forwards) and so reads no weights."""
    devices = {parameter: parameter.device for parameter in parameters}
    for module in {inner for root in idle for inner in root.modules()}:
        inside = {each: devices[each] for each in module.parameters() if each in devices}
        if inside:
            take_back_when_called(module, inside)
    for parameter in devices:
        parameter.data = parameter.data.cpu()


def take_back_when_called(module: nn.Module, devices: Mapping[nn.Parameter, torch.device]) -> None:
    """Has a module move parameters to their devices when it runs."""

    def take_back(_: nn.Module, __: Any) -> None:
        if "forward" in vars(module):
            return
        handle.remove()
        with torch.inference_mode(mode=False):  # else evaluation would leave tensors that no backward pass can save
            for parameter, device in devices.items():
                parameter.data = parameter.data.to(device)

    handle = module.register_forward_pre_hook(take_back)


# --- either ---------------------------------------------------------------------------------------------------------


def find_idle_parameters(model: nn.Module, idle: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Returns the parameters that only idle modules, or modules inside them, own. One that is tied to another module is read
    there."""
    inside = {inner for module in idle for inner in module.modules()}
    others = (module for module in model.modules() if module not in inside)
    read = {id(each) for module in others for each in module.parameters(recurse=False)}
    return [parameter for parameter in model.parameters() if id(parameter) not in read]
