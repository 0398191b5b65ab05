"""What the columns mean, one file a task. TASKS is the whole list."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hf_finetune.config.sections import RunConfig, TaskConfig
from hf_finetune.data.table import ColumnSpec, Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.answer import Answering
from hf_finetune.tasks.base import Kept, Task
from hf_finetune.tasks.choose import Choice
from hf_finetune.tasks.classify import Classification
from hf_finetune.tasks.embed import Embedding
from hf_finetune.tasks.instruct import Instruction
from hf_finetune.tasks.model_language import CausalLanguageModel, LanguageModelling, MaskedLanguageModel
from hf_finetune.tasks.summarize import Summarization
from hf_finetune.tasks.tag import Tagging
from hf_finetune.tasks.translate import Translation

__all__ = ["TASKS", "Kept", "Task", "build", "form_of"]

TASKS: Mapping[str, Any] = {  # of classes; mypy takes type[Protocol] for concrete ones only
    "answering": Answering,
    "choice": Choice,
    "classification": Classification,
    "embedding": Embedding,
    "language_modelling": LanguageModelling,  # one of the next two, as backbone and settings say
    "causal_language_modelling": CausalLanguageModel,
    "masked_language_modelling": MaskedLanguageModel,
    "instruction": Instruction,  # behind what a causal model of unknown origin is
    "summarization": Summarization,
    "tagging": Tagging,
    "translation": Translation,
}


def form_of(name: str, config: RunConfig) -> ColumnSpec:
    """The columns that the task `name` reads. InputError for a setting of task.* that it does not."""
    task = TASKS[name]
    for field in fields(TaskConfig):
        value = getattr(config.task, field.name)
        if value != field.default and field.name not in task.settings:
            own = f"it has task.{', task.'.join(sorted(task.settings))}" if task.settings else "it has none"
            shown = list(value) if isinstance(value, tuple) else value
            raise InputError(f"task.{field.name} ({shown}): {name.replace('_', ' ')} has no such setting; {own}")
    return task.form(config)


def build(name: str, config: RunConfig, train: Table) -> Task:
    """The task `name` with what the training table says about labels."""
    task: Task = TASKS[name].from_table(config, train)
    form_of(task.name, config)  # which reads fewer settings where it is one of several
    return task
