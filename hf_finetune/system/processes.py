"""Where a run runs: processes, device, precision, seeds, its locked folder, and the record of the environment."""

import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list

from hf_finetune.system.errors import InputError, StoppedError
from hf_finetune.system.signals import StopSignals

T = TypeVar("T")

SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
    DistributedType.MULTI_MLU,
)

LAUNCHER_VARIABLES = {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}  # besides WORLD_SIZE


class Processes(Protocol):
    """The processes that share a piece of work."""

    @property
    def device(self) -> torch.device:
        """The device of this process."""

    @property
    def process(self) -> int:
        """The number of this process, from 0."""

    @property
    def num_processes(self) -> int:
        """How many processes there are."""

    def is_asked_to_stop(self) -> bool:
        """True if a stop signal was received."""

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, True if any process has it set. On all processes."""

    def gather(self, value: T) -> list[T]:
        """The value of every process, in their order, on every process."""

    def stopped_error(self) -> StoppedError:
        """The error to raise once all have agreed to stop."""


@dataclass(frozen=True, kw_only=True)
class SingleProcess:
    """One process that works alone and is never asked to stop (a Processes)."""

    device: torch.device
    process: int = 0
    num_processes: int = 1

    def is_asked_to_stop(self) -> bool:
        return False

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        return flags

    def gather(self, value: T) -> list[T]:
        return [value]

    def stopped_error(self) -> StoppedError:
        return StoppedError("stopped")


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The machine side of a run."""

    accelerator: Accelerator
    run_dir: Path
    precision: str  # fp32, bf16 or fp16
    precision_reason: str
    notes: tuple[str, ...] = ()
    signals: StopSignals = field(default_factory=StopSignals)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def num_processes(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def process(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def say(self, text: str = "") -> None:
        """Prints on the main process."""
        if self.is_main:
            print(text, flush=True)

    def on_main(self, function: Callable[[], T]) -> T:
        """Runs `function` on the main process; all processes get its (picklable) result, or raise its InputError or
        StoppedError."""
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except (InputError, StoppedError) as error:
                outcome[1] = (type(error), str(error))
        if self.num_processes > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            kind, message = outcome[1]
            raise kind(message)
        return outcome[0]

    def is_asked_to_stop(self) -> bool:
        """Whether a signal has reached this process, or another that has come by here. Not yet agreed on."""
        if self.num_processes == 1:
            return bool(self.signals.received)
        store = torch.distributed.distributed_c10d._get_default_store()  # looked at between collectives
        key = f"hf_finetune/stop/{self.run_dir}"
        if self.signals.received:
            store.set(key, self.signals.received)
        return bool(self.signals.received) or bool(store.check([key]))

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any process has it set. On all processes."""
        if self.num_processes == 1:
            return flags
        values = torch.tensor([int(flag) for flag in flags], device=self.device)
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
        return tuple(bool(value) for value in values.tolist())

    def stopped_error(self) -> StoppedError:
        """The error to raise where all have agreed to stop."""
        return StoppedError(self.signals.received or "another process's signal")

    def gather(self, value: T) -> list[T]:
        """The value of every process, in their order, on every process."""
        if self.num_processes == 1:
            return [value]
        values: list[Any] = [None] * self.num_processes
        torch.distributed.all_gather_object(values, value)
        return values


def choose_precision(requested: str) -> tuple[str, str]:
    """fp32, bf16 or fp16, and why."""
    reason = "as train.precision says"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if requested == "auto" and launched in ("bf16", "fp16"):
        requested, reason = launched, "as accelerate's mixed_precision says"
    if torch.cuda.is_available() and not is_cpu_requested():
        if requested != "auto":
            return requested, reason
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes in bf16"
        return "fp32", "this GPU does not compute in bf16"
    if requested == "fp16":
        raise InputError("train.precision (fp16): needs a GPU; a CPU takes fp32 or bf16")
    if requested != "auto":
        return requested, reason
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    avx = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    if amx or avx:
        return "bf16", f"this CPU has {'AMX' if amx else 'AVX512-BF16'}"
    return "fp32", "this CPU has neither AMX nor AVX512-BF16, and bf16 would be slower"


def is_cpu_requested() -> bool:
    """Whether `accelerate launch --cpu` started this."""
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")


def make_accelerator(precision: str) -> Accelerator:
    """An Accelerator that sees as many processes as the launcher started, on CPUs too."""
    # `accelerate launch --multi_gpu` on a machine without a GPU would make processes that each believe to be alone,
    # unless the Accelerator is told to use CPUs. A fresh state each run lets one process make several runs.
    has_accelerator = torch.accelerator.is_available() and not is_cpu_requested()
    if PartialState._shared_state and not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    launched = world_size == 1 or os.environ.keys() >= LAUNCHER_VARIABLES
    mixed_precision = "no" if precision == "fp32" else precision
    # While the main process encodes, exports or pushes, the others wait for it
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
    accelerator = (
        Accelerator(cpu=not has_accelerator, mixed_precision=mixed_precision, kwargs_handlers=[patience])
        if launched
        else None
    )
    if accelerator is None or accelerator.num_processes != world_size:
        raise InputError(
            f"WORLD_SIZE says {world_size} processes, and this one does not know of the others; start them with "
            "torchrun --nproc_per_node N, or accelerate launch --multi_gpu --num_processes N"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise InputError(
            f"accelerate's gradient_accumulation_steps ({accelerator.gradient_accumulation_steps}): leave it at 1; "
            "train.micro_batch_size accumulates"
        )
    if accelerator.distributed_type not in SUPPORTED:
        raise InputError(
            f"accelerate's {accelerator.distributed_type.value} is not supported; "
            "choose no distributed type or multi-GPU/CPU in `accelerate config`"
        )
    if accelerator.num_processes > 1:
        atexit.register(leave_process_group)
    return accelerator


def leave_process_group() -> None:
    """Ends the process group with the process: several runs in one process share it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def use_all_cores(accelerator: Accelerator) -> tuple[str, ...]:
    """On a CPU, undoes the one thread that `accelerate launch` and torchrun set where nobody chose a number."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if accelerator.device.type != "cpu" or not launched or os.environ.get("OMP_NUM_THREADS") != "1":
        return ()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return (f"the launcher's OMP_NUM_THREADS=1 raised to {threads}: {cores} cores",) if threads > 1 else ()


@contextlib.contextmanager
def start(seed: int, precision: str, run_dir: Path) -> Iterator[Runtime]:
    """Seeds torch, makes the Accelerator, and notices stop signals until the block ends.

    `precision` is train.precision. `run_dir` names the run to the other processes.
    """
    chosen, reason = choose_precision(precision)
    accelerator = make_accelerator(chosen)
    torch.manual_seed(seed)
    runtime = Runtime(
        accelerator=accelerator,
        run_dir=run_dir,
        precision=chosen,
        precision_reason=reason,
        notes=use_all_cores(accelerator),
    )
    with runtime.signals.install():
        yield runtime


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
