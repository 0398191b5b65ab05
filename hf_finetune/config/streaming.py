"""What data.streaming needs, and what it does not go together with."""

from typing import TYPE_CHECKING

from hf_finetune.config.checks import require

if TYPE_CHECKING:
    from hf_finetune.config.sections import RunConfig


def check_streaming(config: "RunConfig") -> None:
    """Raises InputError if a setting does not fit data.streaming."""
    data, train = config.data, config.train
    if not data.streaming:
        return
    require(
        train.max_updates is not None,
        "train.max_updates",
        train.max_updates,
        "must be given with data.streaming: how many rows a stream has is not known before it ends",
    )
    require(
        bool(data.validation) or data.dataset is not None,
        "data.validation",
        list(data.validation),
        "must be given with data.streaming: no rows are split off from a stream",
    )
    unknown = "must not be used with data.streaming"
    require(
        data.max_train_examples is None,
        "data.max_train_examples",
        data.max_train_examples,
        f"{unknown}: train.max_updates says how much is read",
    )
    require(
        not config.freeze.unfreeze,
        "freeze.unfreeze",
        list(config.freeze.unfreeze),
        f"{unknown}: when an epoch of a stream ends is not known before",
    )
    require(
        train.augment is None, "train.augment", train.augment, f"{unknown}: a generator function can change its rows"
    )
    require(
        config.cache.activations != "on",
        "cache.activations",
        config.cache.activations,
        f"{unknown}, which keeps nothing of what it has read",
    )
