"""Parts of a table are tokenized in threads, with a progress bar.

Threads, since the tokenizers' Rust releases Python's lock: benchmarks/comparisons/encode.py compares them with the processes of
datasets.map. Processes would each import transformers for seconds, hold a copy of it, and could not run what a notebook defines.
"""

import copy
import os
import pickle
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hf_finetune.data.features import Array
from hf_finetune.system.bars import LongTask


@dataclass(frozen=True, kw_only=True)
class PartsComputer:
    """Tokenizes parts of a table. The arrays do not depend on the number of workers.

    Attributes:
        spans: First and last row of each part.
        tokenize: Returns the arrays of the part with this number, made with this tokenizer.
        tokenizer: A tokenizer of transformers. Each thread gets a copy, as a call changes it.
        workers: The number of threads; None for one for each core.
        is_shown: Show how far it is.
    """

    spans: Sequence[tuple[int, int]]
    tokenize: Callable[[int, Any], dict[str, Array]]
    tokenizer: Any
    workers: int | None
    is_shown: bool

    def __call__(self, numbers: Sequence[int]) -> Generator[dict[str, Array]]:
        """Yields the arrays of these parts, in this order."""
        workers = min(self.workers or count_cores(), len(numbers)) if self.tokenizer.is_fast else 1
        total = self.spans[-1][1]
        rows = [self.spans[number][1] - self.spans[number][0] for number in numbers]
        progress = LongTask("encode", total, "rows", done=total - sum(rows), is_shown=self.is_shown)
        try:
            results = self.compute_in_threads(numbers, workers) if workers > 1 else self.compute_in_turn(numbers)
            for count, arrays in zip(rows, results, strict=True):
                progress.add(count)
                yield arrays
        finally:
            progress.close()

    def compute_in_turn(self, numbers: Sequence[int]) -> Iterator[dict[str, Array]]:
        """Yields the arrays of the parts."""
        for number in numbers:
            yield self.tokenize(number, self.tokenizer)

    def compute_in_threads(self, numbers: Sequence[int], workers: int) -> Iterator[dict[str, Array]]:
        """Yields the arrays of the parts, of which at most two for each thread are in memory."""
        free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for tokenizer in copy_tokenizer(self.tokenizer, workers):
            free.put(tokenizer)

        def compute(number: int) -> dict[str, Array]:
            tokenizer = free.get()
            try:
                return self.tokenize(number, tokenizer)
            finally:
                free.put(tokenizer)

        pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
        pending: deque[Future[dict[str, Array]]] = deque()
        try:
            for number in numbers:
                pending.append(pool.submit(compute, number))
                if len(pending) == 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def count_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def copy_tokenizer(tokenizer: Any, count: int) -> list[Any]:
    """Returns a tokenizer and copies of it, `count` in all; only itself if it cannot be copied."""
    try:
        return [tokenizer, *(copy.deepcopy(tokenizer) for _ in range(count - 1))]
    except (TypeError, pickle.PicklingError):
        return [tokenizer]
