"""The processes, device, precision and seed of a run."""

import atexit
import contextlib
import gc
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
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
)
from torch.nn.parallel import DistributedDataParallel

from hf_finetune.system.console import configure_logging, print_message
from hf_finetune.system.errors import InputError, StoppedError
from hf_finetune.system.files import disk_error
from hf_finetune.system.locks import Lock
from hf_finetune.system.output import OutputError
from hf_finetune.system.process_watch import watch_processes
from hf_finetune.system.signals import StopSignals

T = TypeVar("T")

SUPPORTED_TYPES = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
    DistributedType.MULTI_MLU,
)

LAUNCHER_VARIABLES = {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}  # set by launchers, together with WORLD_SIZE


class Processes(Protocol):
    """The processes that work together on a run or on predictions, as one of them sees them."""

    @property
    def device(self) -> torch.device:
        """The device of this process."""

    @property
    def process(self) -> int:
        """The rank of this process, from 0."""

    @property
    def num_processes(self) -> int:
        """The number of processes."""

    def is_asked_to_stop(self) -> bool:
        """True if this process, or one that polled before it, received a stop signal.

        Processes may get different answers: they act on it only after agree().
        """

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Returns for each flag whether any process has set it. All processes must call it."""

    def gather(self, value: T) -> list[T]:
        """Returns the (picklable) values of all processes, by rank. All processes must call it."""

    def stopped_error(self) -> StoppedError:
        """Returns the error to raise after all processes have agreed to stop."""


@dataclass(frozen=True, kw_only=True)
class SingleProcess:
    """Processes of a single process that is never asked to stop."""

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
    """The processes, device and precision of a run: the Processes of training.

    Attributes:
        accelerator: The Accelerator of this process.
        run_dir: The folder of the run, and its name among the processes.
        precision: fp32, bf16 or fp16.
        precision_reason: Why this precision was chosen, for the start-up report.
        notes: Further lines for the start-up report.
        signals: The stop signals of this process.
        lock: That of the run folder, on the main process.
    """

    accelerator: Accelerator
    run_dir: Path
    precision: str
    precision_reason: str
    notes: tuple[str, ...] = ()
    signals: StopSignals = field(default_factory=StopSignals)
    lock: Lock | None = None

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def precise(self) -> torch.dtype:
        """The type in which losses are summed: float64, which Apple's GPUs do not have."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def num_processes(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def process(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def say(self, text: str = "", *, level: int | None = None, **event: Any) -> None:
        """Prints a line on the main process, through the logger "hf_finetune". event: As that of console.print_message()."""
        if self.is_main:
            print_message(text, level=level, **event)

    def on_main(self, function: Callable[[], T]) -> T:
        """Runs `function` on the main process only, and returns its (picklable) result on all processes.

        If it raises InputError or StoppedError, all processes raise it. An OSError, of a disk that fails, is an InputError then:
        the others would wait. All processes must call on_main().
        """
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except (InputError, StoppedError) as error:
                outcome[1] = (type(error), error.args)
            except OutputError:
                raise
            except OSError as error:
                outcome[1] = (InputError, disk_error(self.run_dir, error).args)
        if self.num_processes > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            kind, parts = outcome[1]
            raise kind(*parts)
        return outcome[0]

    def check_lock(self) -> None:
        """Raises InputError if another run has taken the run folder over. For the main process, before it writes there."""
        if self.lock is not None:
            self.lock.check()

    def is_asked_to_stop(self) -> bool:
        """True if this process, or one that polled before it, received a stop signal.

        Processes may get different answers: they act on it only after agree(). Unlike agree(), it is not a collective, so
        that any process may call it at any time.
        """
        if self.num_processes == 1:
            return bool(self.signals.received)
        # Private in torch (looked at in 2.13): the only key-value store that all processes of the group already share
        store = torch.distributed.distributed_c10d._get_default_store()
        key = f"hf_finetune/stop/{self.run_dir}"
        if self.signals.received:
            store.set(key, self.signals.received)
        return bool(self.signals.received) or bool(store.check([key]))

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Returns for each flag whether any process has set it. All processes must call it."""
        if self.num_processes == 1:
            return flags
        values = torch.tensor([int(flag) for flag in flags], device=self.device)
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
        return tuple(bool(value) for value in values.tolist())

    def sum(self, value: float) -> float:
        """Returns the sum of the values of all processes. All processes must call it."""
        if self.num_processes == 1:
            return value
        return float(self.sum_tensor(torch.tensor(value, dtype=self.precise, device=self.device)))

    def sum_tensor(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the sum of the tensors of all processes, which takes the place of `value`. All processes must call it."""
        if self.num_processes > 1:
            torch.distributed.all_reduce(value)
        return value

    def stopped_error(self) -> StoppedError:
        """Returns the error to raise after all processes have agreed to stop. It names the signal; finetune() adds the rest."""
        return StoppedError(self.signals.received or "another process's signal")

    def gather(self, value: T) -> list[T]:
        """Returns the (picklable) values of all processes, by rank. All processes must call it."""
        if self.num_processes == 1:
            return [value]
        values: list[Any] = [None] * self.num_processes
        torch.distributed.all_gather_object(values, value)
        return values


def choose_precision(requested: str) -> tuple[str, str]:
    """Returns the precision (fp32, bf16 or fp16) and the reason for it.

    `requested` is train.precision. `auto` follows `accelerate launch --mixed_precision`, else takes bf16 if the processor is
    fast at it. Raises InputError for fp16 on a CPU.
    """
    reason = "set by train.precision"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if requested == "auto" and launched in ("bf16", "fp16"):
        requested, reason = launched, "set by accelerate's mixed_precision"
    if torch.cuda.is_available() and not is_cpu_requested():
        if requested != "auto":
            return requested, reason
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes in bf16"
        return "fp32", "this GPU does not compute in bf16"
    if requested == "fp16":
        raise InputError("train.precision (fp16): needs a GPU; on a CPU choose fp32 or bf16")
    if requested != "auto":
        return requested, reason
    if units := find_bf16_units():
        return "bf16", f"this CPU has {units}"
    return "fp32", "this CPU has neither AMX nor AVX512-BF16: bf16 would be slower"


def find_bf16_units() -> str:
    """Returns the name of the CPU's units that compute fast in bf16, "" if it has none."""
    # Private in torch (looked at in 2.13), which has no public name for them. Some versions and builds lack them
    if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return "AMX"
    if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return "AVX512-BF16"
    return ""


def is_cpu_requested() -> bool:
    """True if `accelerate launch --cpu` started this process."""
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")


def make_accelerator(precision: str) -> Accelerator:
    """Returns an Accelerator that spans all processes that the launcher started, on CPUs too.

    Raises InputError if the processes do not know of each other, or for a configuration of Accelerate that is not supported.
    """
    reset_accelerate()
    # `accelerate launch --multi_gpu` on a machine without a GPU would make processes that each believe to be the only one,
    # unless the Accelerator is told to use CPUs
    has_accelerator = torch.accelerator.is_available() and not is_cpu_requested()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = None
    if world_size == 1 or os.environ.keys() >= LAUNCHER_VARIABLES:
        accelerator = Accelerator(
            cpu=not has_accelerator,
            mixed_precision="no" if precision == "fp32" else precision,
            kwargs_handlers=[
                # Other processes wait that long for the main process to encode, export or push
                InitProcessGroupKwargs(timeout=timedelta(hours=6)),
                # The gradients lie in the buffers that are exchanged, not next to them: 4 bytes less for each parameter
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            ],
        )
    if accelerator is None or accelerator.num_processes != world_size:
        raise InputError(
            f"WORLD_SIZE is {world_size}, but this process is not connected to the others; start them with torchrun "
            "--nproc_per_node N, or accelerate launch --multi_gpu --num_processes N"
        )
    check_accelerator(accelerator)
    if accelerator.num_processes > 1:
        atexit.register(leave_process_group)
    return accelerator


def reset_accelerate() -> None:
    """Clears Accelerate's global state, so that one process can make several runs with different precisions."""
    # Private in Accelerate (looked at in 1.15), whose own tests reset it in this way
    if PartialState._shared_state and not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def check_accelerator(accelerator: Accelerator) -> None:
    """Raises InputError for settings of `accelerate config` that the training loop does not support."""
    if accelerator.gradient_accumulation_steps != 1:
        raise InputError(
            f"accelerate's gradient_accumulation_steps ({accelerator.gradient_accumulation_steps}): must be 1; gradients are "
            "accumulated by train.micro_batch_size"
        )
    if accelerator.distributed_type not in SUPPORTED_TYPES:
        raise InputError(
            f"accelerate's {accelerator.distributed_type.value} is not supported; "
            "choose no distributed type or multi-GPU/CPU in `accelerate config`"
        )


def leave_process_group() -> None:
    """Destroys the process group when the process ends. It cannot end earlier: all runs of a process share it.

    The threads of the group live as long as it does, and the distributed wrapper of a model holds it. A thread that still runs
    when the interpreter is gone aborts the process ("terminate called without an active exception"). The wrapper of a finished
    run is freed; but an exception that ends the program holds the frames of the run that it stopped, and they the wrapper.
    """
    if not torch.distributed.is_initialized():
        return
    for wrapper in [value for value in gc.get_objects() if type(value) is DistributedDataParallel]:
        for name in ("reducer", "logger", "process_group"):  # what of it holds the group (looked at in torch 2.13)
            wrapper.__dict__.pop(name, None)
    torch.distributed.destroy_process_group()


def use_all_cores(accelerator: Accelerator) -> tuple[str, ...]:
    """On a CPU, raises the one thread that `accelerate launch` and torchrun set by default to this process' share of the cores.

    Returns a note for the start-up report if it did.
    """
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if accelerator.device.type != "cpu" or not is_launched or os.environ.get("OMP_NUM_THREADS") != "1":
        return ()
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_threads = max(1, num_cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(num_threads)
    if num_threads == 1:
        return ()
    return (f"the launcher's OMP_NUM_THREADS=1 raised to {num_threads}: {num_cores} cores",)


@contextlib.contextmanager
def start(seed: int, precision: str, run_dir: Path, patience_minutes: float) -> Iterator[Runtime]:
    """Seeds torch, creates the Accelerator, receives stop signals and watches the other processes until the block ends.

    Args:
        seed: The seed of torch.
        precision: train.precision.
        run_dir: The folder of the run, and its name among the processes.
        patience_minutes: run.patience_minutes.
    """
    configure_logging()
    chosen_precision, reason = choose_precision(precision)
    accelerator = make_accelerator(chosen_precision)
    torch.manual_seed(seed)
    runtime = Runtime(
        accelerator=accelerator,
        run_dir=run_dir,
        precision=chosen_precision,
        precision_reason=reason,
        notes=use_all_cores(accelerator),
    )
    watch = watch_processes(runtime.process, runtime.num_processes, patience_minutes)
    with watch, runtime.signals.install():
        yield runtime


def peak_memory_mb(device: torch.device) -> float:
    """Returns the peak memory in MB (2**20 bytes): allocated on the GPU if `device` is one, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
