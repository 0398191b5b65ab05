"""Class weights against scikit-learn's; how labels are printed."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from hf_finetune.system.errors import InputError
from hf_finetune.tasks.labels import compute_class_weights, describe_class_weights, format_counts


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


def test_counts_are_printed_with_the_most_frequent_first() -> None:
    assert format_counts({"a": 1, "b": 2000}) == "b 2,000, a 1"
    assert format_counts(dict.fromkeys("abcdefghij", 1)).endswith("h 1, and 2 more")
