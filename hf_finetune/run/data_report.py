"""The report on a run's data: first what can be found without a model, then what its tokenizer loses."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from hf_finetune.config.sections import RunConfig, require
from hf_finetune.config.tasks import load_task
from hf_finetune.data.encoding import encode
from hf_finetune.data.features import Features
from hf_finetune.data.findings import Finding, cut
from hf_finetune.data.report import DataReport, report_on_tables
from hf_finetune.data.splits import read_given_splits
from hf_finetune.data.table import Table
from hf_finetune.data.token_loss import find_cut_texts, find_unknown_characters
from hf_finetune.system.files import cache_root
from hf_finetune.system.markdown import unescape_markdown
from hf_finetune.tasks.base import Task

LONGEST_CARD = 160  # characters of the task's sentence, which may name thousands of labels


def report_on_rows(
    tables: Mapping[str, Table], task: Task, drawn: Collection[str] = (), *, is_sample: bool = False
) -> DataReport:
    """Returns the report on the rows of all splits.

    drawn: The splits that were drawn from training. is_sample: The training rows are a few of a stream, whose labels say little.
    """
    spec, encoding = task.columns.spec, task.encoding
    task_warnings = [*encoding.find_warnings(tables)]
    for split, table in tables.items():
        task_warnings += [f"{split}: {warning}" for warning in encoding.find_row_warnings(table)]
    counted = {split: table for split, table in tables.items() if split != "train" or not is_sample}
    return report_on_tables(
        tables,
        spec,
        list_inputs(task),
        drawn=drawn,
        labels={split: encoding.count_labels(table) for split, table in counted.items()},
        task_warnings=task_warnings,
        unify_labels=encoding.unify_labels,
        advise=encoding.advise_on_rare_labels,
    )


def list_inputs(task: Task) -> tuple[str, ...]:
    """Returns the columns that the model sees."""
    spec = task.columns.spec
    return tuple(name for name in task.encoding.encoded_columns() if name not in spec.labels) or spec.inputs


def list_compared_columns(task: Task) -> tuple[str, ...]:
    """Returns the columns whose values no two splits should share in a row."""
    return task.columns.spec.together or list_inputs(task)


def report_on_features(
    report: DataReport,
    tables: Mapping[str, Table],
    features: Mapping[str, Features],
    task: Task,
    *,
    tokenizer: Any,
    max_length: int,
) -> DataReport:
    """Returns the report with what the task recognised, the texts that were cut, and the characters that the tokenizer does not
    know."""
    findings: list[Finding] = []
    for split, part in features.items():
        found = find_cut_texts(split, tables[split], part, task.encoding, tokenizer, max_length)
        found += find_unknown_characters(split, tables[split], part, task.encoding, tokenizer)
        known = {
            finding.kind for finding in findings if finding.is_warning
        }  # of training: its warning stands for all splits
        findings += [replace(finding, is_warning=finding.is_warning and finding.kind not in known) for finding in found]
    return report.add(findings, task.encoding.describe(features["train"], tables["train"], max_length))


def make_report(config: RunConfig, *, has_backbone: bool, asks_tokenizer: bool) -> DataReport:
    """Returns the report on data of which no split is drawn, without loading a model.

    has_backbone: The config names the backbone. If not, a task that needs it reports the rows alone.
    asks_tokenizer: Loads the backbone's tokenizer, and reports what it loses.
    """
    require(
        not config.data.streaming,
        "data.streaming",
        True,
        "is for training, which reports on the first rows of the stream; leave it out to read all rows",
    )
    task_class, root = load_task(config.task.kind), cache_root(config.cache.dir)
    spec = task_class.make_columns(config).spec
    tables = read_given_splits(config.data, spec, {}, root)
    if task_class.needs_backbone and not has_backbone:
        return report_on_tables(tables, spec, spec.inputs)
    tables["train"] = task_class.extend_training(config, tables["train"])
    task: Task = task_class.from_table(config, tables["train"])
    report = report_on_rows(tables, task)
    if not asks_tokenizer:
        for table in tables.values():
            task.encoding.check_rows(table)
        card = cut(unescape_markdown(task.describe_for_card().partition("\n\n")[0]), LONGEST_CARD)
        return report.add([], [("task", card), *task.encoding.describe_problem(tables["train"])])
    from hf_finetune.model.backbone import LONGEST_DEFAULT, load_tokenizer

    tokenizer = load_tokenizer(config.model, config.cache)
    task.prepare_tokenizer(tokenizer)
    max_length = config.data.max_length or min(int(tokenizer.model_max_length), LONGEST_DEFAULT)
    features = {
        split: encode(task.encoding, table, tokenizer, max_length, root=root, workers=config.data.workers)
        for split, table in tables.items()
    }
    return report_on_features(report, tables, features, task, tokenizer=tokenizer, max_length=max_length)
