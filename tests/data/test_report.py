"""The report on tables: what is worth a warning, and what data.json says."""

import json
from typing import Any

import pytest

from hf_finetune.data.report import DataReport, report_on_tables
from hf_finetune.data.table import ColumnSpec, Table, text_and_label_spec
from hf_finetune.system.errors import InputError

SPEC = text_and_label_spec(("text",), "label")


def make_table(file: str, *rows: tuple[Any, Any], **options: Any) -> Table:
    texts, labels = zip(*rows, strict=True)
    return Table(
        columns={"text": list(texts), "label": list(labels)},
        files=[file] * len(rows),
        lines=list(range(2, len(rows) + 2)),
        **options,
    )


def make_rows(number: int, start: int = 0) -> list[tuple[str, str]]:
    return [(f"a good text with the number {start + row}", "pos" if row % 2 else "neg") for row in range(number)]


def make_report(train: Table, **options: Any) -> DataReport:
    tables = {"train": train, **{split: options.pop(split) for split in ("validation", "test") if split in options}}
    counts: dict[str, dict[str, int]] = {}
    for split, table in tables.items():
        labels = table.columns["label"]
        counts[split] = {label: labels.count(label) for label in sorted(set(labels))}
    return report_on_tables(tables, options.pop("spec", SPEC), ["text"], labels=counts, **options)


def list_kinds(report: DataReport) -> list[tuple[str, str, int, bool]]:
    return [(finding.kind, finding.split, finding.count, finding.is_warning) for finding in report.findings]


def test_sound_data_have_no_findings() -> None:
    report = make_report(make_table("a.csv", *make_rows(40)), test=make_table("t.csv", *make_rows(20, 100)))
    assert report.findings == ()
    assert report.warnings == []
    assert report.rows == {"train": 40, "test": 20}
    assert report.labels["test"] == {"neg": 10, "pos": 10}
    assert report.texts["train"]["text"] == {"mean": 29.8, "longest": 30}


def test_a_test_text_that_training_has_is_a_warning() -> None:
    rows = make_rows(400)
    report = make_report(make_table("a.csv", *rows), test=make_table("t.csv", *make_rows(300, 500), rows[7]))
    assert list_kinds(report) == [("shared_rows", "test", 1, True)]
    assert (
        "test: 1 of 301 rows (0.3 %) have the text of a row of train, such as t.csv:302 (a.csv:9)" in report.warnings[0]
    )


def test_validation_and_test_are_compared_too() -> None:
    rows = make_rows(30, 100)
    tables = {"validation": make_table("v.csv", *rows), "test": make_table("t.csv", *rows)}
    report = make_report(make_table("a.csv", *make_rows(40)), **tables)
    assert list_kinds(report) == [("shared_rows", "test", 30, True)]
    assert report.findings[0].details["other"] == "validation"


def test_splits_that_were_drawn_are_not_compared() -> None:
    rows = make_rows(40)
    report = make_report(make_table("a.csv", *rows), test=make_table("a.csv", *rows), drawn=["test"])
    assert report.findings == ()


def test_copies_are_a_warning_if_there_are_many() -> None:
    rows = make_rows(1000)
    assert list_kinds(make_report(make_table("a.csv", *rows, *rows[:9]))) == [("duplicates", "train", 9, False)]
    report = make_report(make_table("a.csv", *rows, *rows[:20]))
    assert list_kinds(report) == [("duplicates", "train", 20, True)]
    assert "20 of 1,020 rows (2.0 %) repeat an earlier row, such as a.csv:1002 (as a.csv:2)" in report.warnings[0]


def test_one_text_with_two_labels_is_a_conflict() -> None:
    rows = make_rows(20)
    table = make_table("a.csv", *rows, (rows[1][0], "neg"), (rows[2][0], "pos"))
    report = make_report(table)
    assert list_kinds(report) == [("conflicts", "train", 2, True)]
    assert (
        "2 texts have different labels in different rows, such as a.csv:22 ('neg') but a.csv:3 ('pos')"
        in report.warnings[0]
    )
    numbers = report_on_tables(
        {"train": table}, SPEC, ["text"]
    )  # no names of labels: two measured values are no conflict
    assert numbers.findings == ()


@pytest.mark.parametrize("text", ["-", "...", "N/A", "ab", "7", "- a -", "\u00a0x\u00a0"])
def test_almost_empty_texts_are_found(text: str) -> None:
    report = make_report(make_table("a.csv", *make_rows(30), (text, "pos")))
    assert list_kinds(report) == [("near_empty", "train", 1, True)]
    assert "1 of 31 rows (3.2 %) have fewer than 3 letters or digits in text, such as a.csv:32" in report.warnings[0]


@pytest.mark.parametrize("text", ["bad", "1 2 3", "\u597d", "\U0001f44d", "\u00e9t\u00e9", "\u043d\u0435\u0442"])
def test_short_texts_that_say_something_are_not(text: str) -> None:
    assert make_report(make_table("a.csv", *make_rows(30), (text, "pos"))).findings == ()


def test_lines_of_a_text_may_repeat() -> None:
    spec = ColumnSpec(inputs=("text",), in_order=True)
    rows = [("line", ""), ("line", ""), ("", ""), ("", "")]
    in_file = report_on_tables({"train": make_table("a.txt", *rows)}, spec, ["text"])
    assert in_file.findings == ()
    in_table = report_on_tables({"train": make_table("a.csv", *rows)}, spec, ["text"])
    assert list_kinds(in_table) == [("duplicates", "train", 2, True)]


def test_leakage_is_that_of_the_columns_that_stay_together() -> None:
    spec = ColumnSpec(inputs=("text", "label"), together=("label",))
    tables = {"train": make_table("a.csv", ("q1", "context")), "test": make_table("t.csv", ("q2", "context"))}
    report = report_on_tables(tables, spec, ["text", "label"])
    assert list_kinds(report) == [("shared_rows", "test", 1, True)]
    assert "have the label of a row of train" in report.warnings[0]


def test_shifted_and_rare_labels_and_the_tasks_warnings_are_listed() -> None:
    train = make_table("a.csv", *make_rows(200), ("a text of its own", "rare"))
    test = make_table("t.csv", *[(text, "pos") for text, _ in make_rows(100, 500)])
    report = make_report(train, test=test, task_warnings=["the labels Pos and pos look alike"])
    assert [finding.kind for finding in report.findings] == ["task", "rare_labels", "label_shift"]


def test_rows_of_a_program_are_located_as_they_are_elsewhere() -> None:
    rows = make_rows(10)
    table = make_table("train", *rows, rows[0], is_in_memory=True, index=[f"i{row}" for row in range(11)])
    assert "train[12] (index i10) (as train[2] (index i0))" in make_report(table).warnings[0]


def test_long_paths_are_shortened() -> None:
    rows = make_rows(10)
    folder = "/a/very/long/path/of/folders/that/nobody/wants/to/read"
    assert "such as .../pos/1.txt:12 (as .../pos/1.txt:2)" in make_report(
        make_table(f"{folder}/pos/1.txt", *rows, rows[0])
    ).warnings[0]  # fmt: skip


def test_the_report_is_plain_json_and_names_what_was_recognised() -> None:
    rows = make_rows(10)
    table = make_table("a.csv", *rows, rows[0], notes=("a.csv: the delimiter is ;",))
    content = json.loads(make_report(table, test=make_table("b.csv", *make_rows(9, 50))).to_json())
    assert list(content) == ["rows", "labels", "texts", "recognised", "findings"]
    assert content["recognised"] == [{"name": "files", "text": "a.csv: the delimiter is ;"}]
    assert content["findings"][0]["kind"] == "duplicates"
    assert content["findings"][0]["count"] == 1


def test_strict_raises_all_warnings_at_once() -> None:
    rows = make_rows(20)
    report = make_report(make_table("a.csv", *rows, rows[0]), test=make_table("t.csv", rows[3], *make_rows(9, 50)))
    assert report.check_strict(False) is report
    with pytest.raises(InputError) as caught:
        report.check_strict(True)
    first, *lines = str(caught.value).splitlines()
    assert first == "data.strict: the data have 2 warnings:"
    assert [line.partition(":")[0] for line in lines] == ["  (1) test", "  (2) train"]
    make_report(make_table("a.csv", *rows)).check_strict(True)
