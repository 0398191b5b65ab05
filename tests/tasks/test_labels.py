"""The canonical form of labels; class weights against scikit-learn's."""

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from hf_finetune.system.errors import InputError
from hf_finetune.tasks.labels import (
    LabelForm,
    canonical_label,
    compute_class_weights,
    describe_class_weights,
)


@pytest.mark.parametrize("seed", range(5))
def test_balanced_weights_are_scikit_learns(seed: int) -> None:
    labels = np.random.default_rng(seed).choice(["a", "b", "c", "d"], size=200, p=[0.7, 0.2, 0.07, 0.03])
    names, counts = np.unique(labels, return_counts=True)
    ours = compute_class_weights(["balanced"], names.tolist(), dict(zip(names.tolist(), counts.tolist(), strict=True)))
    assert ours == pytest.approx(compute_class_weight("balanced", classes=names, y=labels).tolist())


def test_a_label_that_training_lacks_weighs_one() -> None:
    assert compute_class_weights(["balanced"], ["a", "b", "c"], {"a": 3, "c": 1}) == pytest.approx((4 / 6, 1.0, 2.0))


def test_weights_are_set_by_name_and_the_others_weigh_one() -> None:
    assert compute_class_weights([], ["a", "b"], {}) == ()
    assert compute_class_weights(["b=2.5", "x=y=3"], ["a", "b", "x=y"], {}) == (1.0, 2.5, 3.0)
    assert describe_class_weights(["a", "b"], (1.0, 2.5)) == [("weights", "a 1, b 2.5")]
    assert describe_class_weights(["a", "b"], ()) == []


@pytest.mark.parametrize("entry", ["b", "b=", "b=heavy", "b=0", "b=-1", "b=inf", "b=nan", "z=2", "=2"])
def test_an_entry_that_is_not_a_label_with_a_weight_is_refused(entry: str) -> None:
    with pytest.raises(InputError, match=r"task\.class_weights"):
        compute_class_weights([entry], ["a", "b"], {"a": 1, "b": 1})


# --- the canonical form ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ((11, 11.0, "11", " 11 ", "11.0", "11.", Decimal("11.00"), b"11"), "11"),
        ((-1, "-1.0", -1.0), "-1"),
        ((0, "-0", -0.0), "0"),
        ((True, "true"), "true"),
        (("True",), "True"),
        (("pos", "pos ", "\tpos", "\xa0pos", b"pos"), "pos"),
        (("caf\u00e9", "cafe\u0301", "caf\u00e9".encode()), "caf\u00e9"),
        ((None, math.nan, "", "  ", b" ", Decimal("nan")), None),
        (("007",), "007"),
        (("1.10",), "1.10"),
        (("11,0",), "11,0"),
        ((0.5, Decimal("0.5"), "0.5"), "0.5"),
        (("nan",), "nan"),
        ((b"\xff",), "\\xff"),
        ((str(2**60 + 1), 2**60 + 1), str(2**60 + 1)),
    ],
)
def test_a_label_has_one_form_whatever_the_type_of_file(values: tuple[Any, ...], form: str | None) -> None:
    assert {canonical_label(value) for value in values} == {form}


@pytest.mark.parametrize(
    ("values", "kind", "forms"),
    [
        (["0.0", "11.0", " 3.0"], "integer", ["0", "11", "3"]),
        (["0,0", "11,0"], "integer", ["0", "11"]),
        ([0, 1, math.nan, "NA", "None", "<NA>"], "integer", ["0", "1", None, None, None, None]),
        (["True", "FALSE", True], "boolean", ["true", "false", "true"]),
        (["true", "nan", None], "boolean", ["true", None, None]),
        (["True", "Mixed"], "text", ["True", "Mixed"]),
        (["2.0", "1.5", "NA"], "decimal", ["2.0", "1.5", None]),
        (["007", "1.0"], "decimal", ["007", "1.0"]),
        (["yes", "NA"], "text", ["yes", "NA"]),
        (["1", "two", "3.0"], "text", ["1", "two", "3.0"]),
        ([1, "two", 3.0], "text", ["1", "two", "3"]),
        ([], "text", []),
    ],
)
def test_the_form_of_a_column_is_found_from_all_its_values(
    values: list[Any], kind: str, forms: list[str | None]
) -> None:
    form = LabelForm.find(values)
    assert form.kind == kind
    assert [form.read(value) for value in values] == forms


@pytest.mark.parametrize("values", [["0.0", "11.0"], ["True", "false"], ["2.0", "1.5"], ["007", "1.0"], ["a", " b"]])
def test_the_names_of_labels_have_the_form_of_the_column(values: list[str]) -> None:
    form = LabelForm.find(values)
    names = [form.read(value) for value in values]
    assert LabelForm.find(names) == form
    assert [form.read(name) for name in names] == names


def test_values_of_another_column_are_read_in_the_same_form() -> None:
    integer, boolean = LabelForm(kind="integer"), LabelForm(kind="boolean")
    assert [integer.read(value) for value in ("3", 3.0, "x", True)] == ["3", "3", "x", "true"]
    assert [boolean.read(value) for value in (True, "FALSE", "1")] == ["true", "false", "1"]
