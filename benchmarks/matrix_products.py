"""Matrix products: the peak of the machine, and those of a part of a program, counted and timed alone."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

SIZE = 2048  # rows and columns of the products that measure the peak

Shape = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # sizes, strides


def time_median(function: Callable[[], Any], repetitions: int) -> float:
    """Returns the median seconds of a call, after one that is not counted."""
    function()
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def measure_peak(dtype: torch.dtype, size: int = SIZE, repetitions: int = 9) -> float:
    """Returns the FLOP a second of products of large square matrices, with all threads of torch."""
    first, second = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / time_median(lambda: first @ second, repetitions)


@contextmanager
def count_flops() -> Iterator[Callable[[], int]]:
    """Gives a function that returns the FLOPs of all matrix products in the block, backward included."""
    with FlopCounterMode(display=False) as counter:
        yield counter.get_total_flops


@dataclass(frozen=True)
class Product:
    """A product of matrices. shapes: of its tensors, by their place among its arguments."""

    name: str
    shapes: tuple[tuple[int, Shape], ...]

    def time(self, repetitions: int) -> tuple[float, int]:
        """Returns its median seconds, and its FLOPs."""
        operator, arguments = getattr(torch.ops.aten, self.name), []
        for _, (sizes, strides, dtype) in self.shapes:
            extent = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
            arguments.append(torch.randn(extent).to(dtype).as_strided(sizes, strides))
        with count_flops() as get_flops:
            operator(*arguments)
        return time_median(lambda: operator(*arguments), repetitions), get_flops()


class ProductRecorder(TorchDispatchMode):
    """While it is active, counts the matrix products: `counts` of each product."""

    NAMES = ("mm", "addmm", "bmm")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        name = func._overloadpacket.__name__
        if name in self.NAMES:
            shapes = tuple(
                (place, (tuple(each.shape), each.stride(), each.dtype))
                for place, each in enumerate(args)
                if isinstance(each, torch.Tensor)
            )
            self.counts[Product(name, shapes)] += 1
        return func(*args, **(kwargs or {}))


def time_products(counts: Mapping[Product, int], repetitions: int = 3) -> tuple[float, int]:
    """Returns the seconds that the products take alone, one after the other, with their own shapes; and their FLOPs."""
    seconds, flops = 0.0, 0
    for product, count in counts.items():
        each, each_flops = product.time(repetitions)
        seconds, flops = seconds + count * each, flops + count * each_flops
    return seconds, flops
