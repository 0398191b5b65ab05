"""The name of a run that was given none: that of an earlier run of the same settings, data and functions, else a new one."""

from dataclasses import replace
from itertools import count

from hf_finetune.config.changes import WITHOUT_EFFECT, list_changes
from hf_finetune.config.sections import RunConfig
from hf_finetune.run.checkpoint import read_manifests
from hf_finetune.run.finished import read_finished_results
from hf_finetune.run.folder import read_config_file
from hf_finetune.run.inputs import find_changed_inputs
from hf_finetune.run.parts import Parts
from hf_finetune.system import processes


def name_run(config: RunConfig, parts: Parts) -> RunConfig:
    """Returns the config with the name that the run gets, which is the same on all processes, and says if it is another one.

    The name is that of the config, unless that folder holds a run of other settings, data or functions; then it is the first of
    NAME-2, NAME-3, ... whose folder does not.
    """
    if config.checkpoint.resume != "auto":  # the user has said what becomes of an earlier run
        return config
    patience = config.run.patience_minutes
    with processes.start(config.seed, config.train.precision, config.run_dir, patience) as runtime:
        name, reason = runtime.on_main(lambda: choose_name(config, parts))
        if reason:
            runtime.say(
                f"{config.run_dir} holds another run ({reason}); this call's run is {replace(config, name=name).run_dir}\n"
            )
    return replace(config, name=name)


def choose_name(config: RunConfig, parts: Parts) -> tuple[str, str]:
    """Returns the name of the run, and, if it is not that of the config, how the run in the config's folder differs."""
    first_reason = describe_difference(config, parts)
    if not first_reason:
        return config.name, ""
    for number in count(2):
        named = replace(config, name=f"{config.name}-{number}")
        if not describe_difference(named, parts):
            break
    return named.name, first_reason


def describe_difference(config: RunConfig, parts: Parts) -> str:
    """Returns how the run in the config's folder differs from the one that is asked for.

    "" if there is none, or if it is the same. A run of another length is another run: the numbers of a call must not depend on
    the calls before it.
    """
    folder = config.run_dir
    if not (folder / "config.yaml").exists():
        is_taken = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
        return "files that do not belong to a run" if is_taken else ""
    if not read_manifests(folder / "checkpoints") and read_finished_results(config) is None:
        return ""  # nothing was trained yet
    changed = [
        f"{key} was {before}, now {now}"
        for key, before, now in list_changes(read_config_file(folder), config)
        if not key.startswith(("name", *WITHOUT_EFFECT))
    ]
    return "; ".join(changed or find_changed_inputs(config, parts))
