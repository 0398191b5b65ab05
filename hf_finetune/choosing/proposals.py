"""The settings of the next trial: by Optuna, or at random."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from hf_finetune.choosing.search import Search, Values, draw

INSTALL = "pip install 'hf-finetune[sweep]'"


def describe_proposals() -> str:
    """Returns the line that says how settings are chosen."""
    if find_spec("optuna") is None:
        return f"at random; with Optuna ({INSTALL}) later trials learn from earlier ones"
    return "by Optuna (TPE); the first ones at random"


def propose(
    search: Search, seed: int, seen: Sequence[tuple[Mapping[str, Any], float | None]], *, greater_is_better: bool
) -> dict[str, Any]:
    """Returns the settings of the next trial. They depend on the arguments alone, so that a killed sweep continues alike.

    seen: Settings and value of each trial so far; None or nan if it has no value.
    """
    if find_spec("optuna") is None:
        return draw(search, [seed, len(seen)])
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A third of the trials at random, at least four: TPE needs something to learn from
    sampler = optuna.samplers.TPESampler(
        seed=int(np.random.SeedSequence([seed, len(seen)]).generate_state(1)[0]),
        n_startup_trials=max(4, search.trials // 3),
    )
    study = optuna.create_study(direction="maximize" if greater_is_better else "minimize", sampler=sampler)
    distributions = {key: make_distribution(values) for key, values in search.space.items()}
    for settings, reached in seen:
        value = None if reached is None or math.isnan(reached) else reached
        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        params = {key: encode(search.space[key], settings[key]) for key in distributions}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=value, state=state))
    params = study.ask(distributions).params
    return {key: decode(search.space[key], params[key]) for key in distributions}


def make_distribution(values: Values) -> Any:
    """Returns Optuna's distribution. A choice is one of numbers, since Optuna takes no lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if values.kind == "choice":
        return CategoricalDistribution(range(len(values.items)))
    low, high = values.items
    if values.kind == "int_uniform":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=values.kind == "log_uniform")


def encode(values: Values, value: Any) -> Any:
    """Returns a value as Optuna has it."""
    return values.items.index(value) if values.kind == "choice" else value


def decode(values: Values, value: Any) -> Any:
    """Returns the value of a setting that Optuna proposes."""
    if values.kind == "choice":
        return values.items[value]
    return value if values.kind == "int_uniform" else values.round(value)
