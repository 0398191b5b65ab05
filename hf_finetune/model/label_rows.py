"""Which rows of a pretrained head the labels of a new task take over: those of the labels with the same names.

A head has a row of weights for each label. What is meant by a label is its name, not its place: a row by place would answer a
question that nobody asked. C labels, H hidden.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_finetune.model.head_spec import HeadSpec
from hf_finetune.model.heads import find_head, get_architecture

MOST_NAMES = 5  # in the line that is printed


@dataclass(frozen=True, kw_only=True)
class LabelMatch:
    """How a pretrained head gives its rows to the labels of a task.

    Args:
        rows: For each label of the task, the row of the pretrained head; None for a label that gets a new row.
        num_pretrained: Number of rows of the pretrained head.
        line: What is printed about it before training.
    """

    rows: tuple[int | None, ...]
    num_pretrained: int
    line: str

    @property
    def keeps_all(self) -> bool:
        """True if the head stays as it is."""
        return self.rows == tuple(range(self.num_pretrained))


# --- names ----------------------------------------------------------------------------------------------------------


def match_labels(pretrained: Any, config: Any, head: HeadSpec) -> LabelMatch | None:
    """Returns how the head of a pretrained model gives its rows to a task; None if it has no head of this kind, or if the head
    has no labels.

    Args:
        pretrained: The transformers config of the pretrained model.
        config: The same with the entries of the task: its labels.
        head: The head that the task asks for.
    """
    if not head.has_labels or not has_head(pretrained, head):
        return None
    old, new = [head.spell_label(name) for name in list_labels(pretrained)], list_labels(config)
    no_rows: tuple[None, ...] = (None,) * len(new)
    if len(old) == len(new) == 1:
        return LabelMatch(rows=(0,), num_pretrained=1, line="reused: one number")
    if predicts_number(pretrained) != predicts_number(config):
        kind = "a number" if predicts_number(pretrained) else f"labels ({shorten(old)})"
        return LabelMatch(rows=no_rows, num_pretrained=len(old), line=f"new: the backbone's head predicts {kind}")
    rows = tuple(old.index(name) if old.count(name) == 1 else None for name in new)
    line = describe_rows(old, new, rows)
    before, now = name_problem(pretrained), name_problem(config)
    if before and now and before != now and any(row is not None for row in rows):
        line += f"; it was trained on {before} problems, and this one is {now}"
    return LabelMatch(rows=rows, num_pretrained=len(old), line=line)


def has_head(pretrained: Any, head: HeadSpec) -> bool:
    """False if a config names another model class than one with this kind of head."""
    found = find_head(pretrained)
    return not get_architecture(pretrained) or (found is not None and found.auto_class == head.auto_class)


def list_labels(config: Any) -> list[str]:
    """Returns the names of the C outputs of a head."""
    return [str(config.id2label.get(number, f"LABEL_{number}")) for number in range(config.num_labels)]


def predicts_number(config: Any) -> bool:
    """True if a head predicts a number instead of labels."""
    return config.num_labels == 1 or getattr(config, "problem_type", None) == "regression"


def name_problem(config: Any) -> str:
    """Returns single_label or multi_label, "" if the config does not say."""
    return (getattr(config, "problem_type", None) or "").removesuffix("_classification")


def describe_rows(old: Sequence[str], new: Sequence[str], rows: Sequence[int | None]) -> str:
    """Returns the line about a head: which labels keep their rows, which are new, which are dropped."""
    kept = [name for name, row in zip(new, rows, strict=True) if row is not None]
    if not kept:
        if all(re.fullmatch(r"LABEL_\d+", name) for name in old):
            return f"new: the labels of the backbone's head have no names ({shorten(old)})"
        return f"new: the backbone's head has other labels ({shorten(old)})"
    if list(old) == list(new):
        return f"reused: the backbone's labels are the same {len(new)}"
    added = [name for name, row in zip(new, rows, strict=True) if row is None]
    dropped = [name for name in old if name not in kept]
    line = f"{len(kept)} of {len(new)} labels reused by name"
    if added:
        line += f", {len(added)} new ({shorten(added)})"
    if dropped:
        line += f"; {len(dropped)} of the backbone's labels dropped ({shorten(dropped)})"
    return line if added or dropped else f"{line}, in another order"


def shorten(names: Sequence[str]) -> str:
    """Returns names as text, at most MOST_NAMES of them."""
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


# --- rows -----------------------------------------------------------------------------------------------------------


def find_label_parameters(model: Any) -> list[str]:
    """Returns the names of the parameters with a row for each label [C, ...]: those that have another shape in a model of the
    same class with one label more, which is built without memory for its weights."""
    config = set_num_labels(model.config, model.config.num_labels + 1)
    with torch.device("meta"):
        other = type(model)(config)
    shapes = {name: parameter.shape for name, parameter in other.named_parameters()}
    return [name for name, parameter in model.named_parameters() if shapes.get(name) != parameter.shape]


def set_num_labels(config: Any, count: int) -> Any:
    """Returns a copy of a config with this number of labels, which have no names."""
    changed = copy.deepcopy(config)
    changed.num_labels = count
    return changed


def fill_rows(model: nn.Module, names: Sequence[str], match: LabelMatch, load: Callable[[Any], nn.Module]) -> None:
    """Gives the labels of a model their rows: those of the pretrained head, or new ones, as transformers draws them.

    from_pretrained keeps a head with as many labels, and draws a new one if there are more or fewer. So the model has one kind
    of rows already, and a second one that is loaded with another number of labels has the other kind, if it is needed.

    Args:
        model: The model as from_pretrained loaded it for the labels of the task.
        names: The parameters with a row for each label.
        match: Where the rows come from.
        load: Loads the model with another config.
    """
    config: Any = model.config
    has_pretrained_rows = config.num_labels == match.num_pretrained
    needs_other = None in match.rows if has_pretrained_rows else any(row is not None for row in match.rows)
    own = copy_rows(model, names)
    other = own
    if needs_other:
        count = config.num_labels + 1 if has_pretrained_rows else match.num_pretrained
        with torch.random.fork_rng(devices=[]):
            other = copy_rows(load(set_num_labels(config, count)), names)
    pretrained, new = (own, other) if has_pretrained_rows else (other, own)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in names:
            for label, row in enumerate(match.rows):
                parameters[name][label] = new[name][label] if row is None else pretrained[name][row]


def copy_rows(model: nn.Module, names: Sequence[str]) -> Mapping[str, torch.Tensor]:
    """Returns copies of the named parameters of a model."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in names}
