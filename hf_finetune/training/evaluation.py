"""Running the model over a split. Evaluation changes nothing in training (law 4 of docs/design.md)."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from hf_finetune.data.batches import plan_evaluation
from hf_finetune.data.features import Array, Batch, Features, Padding, attach_activations, collate
from hf_finetune.forward.plan import FULL_FORWARD, ForwardPlan
from hf_finetune.model.backbone import decode_texts
from hf_finetune.model.structure import eval_mode
from hf_finetune.system.bars import LongTask
from hf_finetune.system.processes import Processes
from hf_finetune.tasks.base import EvaluationOutput, Task
from hf_finetune.tasks.objectives import reads_some_tokens
from hf_finetune.tasks.scoring import Reduce
from hf_finetune.training.outputs import Entries, join, pack
from hf_finetune.training.train_state import add_reading

BatchResult = tuple[float, float, list[Array]]  # sum of the loss, number of targets, an entry for each feature


@dataclass(frozen=True, kw_only=True)
class ModelRunner:
    """Runs the model over the features of one split (a tasks.base.Runner).

    Args:
        processes: The processes that share the work. All of them call the methods and get the results.
        batch_size: Features a forward.
        forward_plan: What a forward need not compute.
        autocast: Context in which texts are generated: generate() calls the encoder by itself, so that the wrapper of the
            model's own forward does not apply.
        task_name: Of the bar of an evaluation that takes long; "" for none.
    """

    model: Any
    tokenizer: Any
    task: Task
    features: Features
    processes: Processes
    padding: Padding
    batch_size: int
    forward_plan: ForwardPlan = FULL_FORWARD
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    task_name: str = ""

    def compute_outputs(self, indices: Array, reduce: Reduce | None = None) -> EvaluationOutput:
        """Loss and reduced outputs of the features at `indices`. reduce: In place of that of the task's scoring."""
        objective, scoring = self.task.objective, self.task.scoring
        reduce = reduce or scoring.reduce
        reads_all = reduce != scoring.reduce or not reads_some_tokens(scoring, "reduce")

        def run_batch(batch: Batch) -> BatchResult:
            batch = add_reading(batch, objective, self.forward_plan, reads_all=reads_all)
            outputs = self.forward_plan.run_model(self.model, batch.inputs, batch.activations, batch.reading)
            return *objective.evaluate(outputs, batch), reduce(outputs, batch)

        sums, outputs = self.run(run_batch, indices)
        return EvaluationOutput(loss=objective.mean(sums, outputs, self.features, indices), outputs=outputs)

    def generate_texts(self, generate: Callable[[Any, Batch], list[Array]], indices: Array) -> list[str]:
        """The texts that `generate` has the model write for the features at `indices`."""
        with self.autocast():
            _, ids = self.run(lambda batch: (0.0, 0.0, generate(self.model, batch)), indices)
        return decode_texts(self.tokenizer, ids)

    def run(
        self, run_batch: Callable[[Batch], BatchResult], indices: Array
    ) -> tuple[list[tuple[float, float]], Entries]:
        """Loss and number of targets of each batch, and an entry for each feature in the order of `indices`.

        Each feature is computed once, on any number of processes. The batches, and the order in which their sums are added, do
        not depend on the number of processes; so the numbers do not either. StoppedError if a signal asked the run to stop.
        """
        processes = self.processes
        counts = self.features.count_sequences(indices)
        planned = plan_evaluation(self.features.lengths[indices], self.batch_size, counts)
        batches = [indices[batch] for batch in planned]
        results = []
        stops = False
        numbers = range(processes.process, len(batches), processes.num_processes)
        is_shown = bool(self.task_name) and processes.process == 0
        shown = LongTask(self.task_name, len(numbers), "batches", is_shown=is_shown)
        with eval_mode(self.model), torch.inference_mode(), shown:
            for number in numbers:
                if stops := processes.is_asked_to_stop():
                    break
                batch = collate(self.features, batches[number], self.padding)
                batch = self.task.encoding.prepare(batch, self.features, self.model, 0)
                batch = attach_activations(batch, self.features).to(processes.device)
                loss, count, entries = run_batch(batch)
                results.append((number, loss, count, pack(entries)))
                shown.add(1)
        if any(processes.agree(stops)):
            raise processes.stopped_error()
        gathered = sorted((result for part in processes.gather(results) for result in part), key=lambda part: part[0])
        parts, places = [part for *_, part in gathered], [planned[number] for number, *_ in gathered]
        return [(loss, count) for _, loss, count, _ in gathered], join(parts, places)
