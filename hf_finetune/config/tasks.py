"""The tasks by name. A task's name is its recipe's; a task of your own is named by its import path, `my_package.tasks:MyTask`."""

from collections.abc import Mapping
from typing import Any

from hf_finetune.config.references import load_reference
from hf_finetune.system.errors import InputError

TASKS: Mapping[str, str] = {
    "classify": "hf_finetune.tasks.classify:Classification",
    "tag": "hf_finetune.tasks.tag:Tagging",
    "answer": "hf_finetune.tasks.answer:Answering",
    "choose": "hf_finetune.tasks.choose:Choice",
    "model_language": "hf_finetune.tasks.model_language:LanguageModelling",
    "instruct": "hf_finetune.tasks.instruct:Instruction",
    "summarize": "hf_finetune.tasks.summarize:Summarization",
    "translate": "hf_finetune.tasks.translate:Translation",
    "embed": "hf_finetune.tasks.embed:Embedding",
    "rerank": "hf_finetune.tasks.rerank:Reranking",
}


def check_is_named(kind: Any, own_task: str | None, place: str) -> None:
    """Raises InputError if a file that came from elsewhere names a class as its task that the user has not named.

    Importing a class runs its module's code. own_task: The import path that the user gave. place: The file, for the error.
    """
    if kind not in TASKS and kind != own_task:
        raise InputError(f"{place}: its task is the class {kind}, which is imported only if you name it: --task {kind}")


def load_task(kind: str) -> Any:
    """The class of a task: by its recipe's name, or by its import path. InputError if there is none."""
    path = TASKS.get(kind, kind)
    if ":" not in path:
        raise InputError(
            f"task.kind ({kind}): must be one of {', '.join(TASKS)}, or a class as my_package.tasks:MyTask"
        )
    task = load_reference("task.kind", path)
    if not isinstance(getattr(task, "Settings", None), type):
        raise InputError(f"task.kind ({kind}): is not a task: it has no Settings; see hf_finetune.tasks.base.Task")
    return task
