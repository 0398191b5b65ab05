"""The `hf-finetune` command: two functions for each subcommand, its options and its call. No logic of its own."""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hf_finetune import __version__
from hf_finetune.cli_choosing import (
    REPEATS_EPILOG,
    add_advise,
    add_label_errors,
    add_learning_curve,
    add_sweep,
    asks_for_repeats,
    run_advise,
    run_learning_curve,
    run_repeats,
    run_sweep,
)
from hf_finetune.cli_data import add_data, run_data
from hf_finetune.cli_predict import add_evaluate, add_predict, add_trust
from hf_finetune.cli_push import add_push
from hf_finetune.cli_runs import add_compare, add_report
from hf_finetune.config.sections import AdapterConfig, FreezeConfig
from hf_finetune.config.tasks import TASKS
from hf_finetune.config.values import convert
from hf_finetune.recipe import EXIT_INPUT, report_errors, run_recipe_file, run_settings
from hf_finetune.system.errors import InputError
from hf_finetune.system.output import guard_output

if TYPE_CHECKING:
    from hf_finetune.cache import listing


class Parser(argparse.ArgumentParser):
    """argparse with this package's wording of errors."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_INPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit code."""
    with guard_output():  # the help of argparse, too
        return run_command(list(sys.argv[1:] if arguments is None else arguments))


def run_command(words: list[str]) -> int:
    """Runs the subcommand that the words name, and returns the exit code."""
    if words[:1] == ["train"] and len(words) >= 2 and words[1:] not in (["--help"], ["-h"]):
        return run_repeats(words[1:]) if asks_for_repeats(words) else run_train(words[1:])
    if words[:1] == ["sweep"] and len(words) >= 2 and not {"--help", "-h"} & {*words}:
        return run_sweep(words[1:])
    if words[:1] == ["advise"] and len(words) >= 2 and not {"--help", "-h"} & {*words}:
        return run_advise(words[1:])
    if words[:1] == ["learning-curve"] and len(words) >= 2 and not {"--help", "-h"} & {*words}:
        return run_learning_curve(words[1:])
    if words[:1] == ["verify-resume"] and len(words) >= 2 and not words[1].startswith("-"):
        return run_verify_resume(words[1], words[2:])
    if words[:1] == ["data"] and len(words) >= 2 and not {"--help", "-h"} & {*words}:
        return run_data(words[1:])
    options, unknown = build_parser().parse_known_args(words)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return report_errors(lambda: options.function(options), debug=options.debug)


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="hf-finetune", description="Fine-tune pretrained language models on your own text.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    add_train(commands)
    add_sweep(commands)
    add_learning_curve(commands)
    add_label_errors(commands)
    add_advise(commands)
    add_verify_resume(commands)
    add_data(commands)
    add_inspect(commands)
    add_evaluate(commands)
    add_predict(commands)
    add_report(commands)
    add_compare(commands)
    add_checkpoint_commands(commands)
    add_push(commands)
    add_cache_commands(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(parser=command)
    return parser


def add_train(commands: Any) -> None:
    """Adds the parser of hf-finetune train."""
    train = commands.add_parser(
        "train",
        help="fine-tune: hf-finetune train classify [settings]",
        usage="hf-finetune train RECIPE [settings], or hf-finetune train --config FILE.yaml [settings]",
        epilog=f"The settings of a recipe: hf-finetune train RECIPE --help\n\n{REPEATS_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("recipe", metavar="RECIPE", choices=tuple(TASKS), help=f"one of {', '.join(TASKS)}")


def add_verify_resume(commands: Any) -> None:
    """Adds the parser of hf-finetune verify-resume."""
    verify = commands.add_parser(
        "verify-resume",
        help="kill and resume a run on this machine, and compare its weights with those of an undisturbed run",
    )
    verify.add_argument("recipe", help="such as classify; its settings follow")
    add_verify_options(verify)
    verify.set_defaults(function=lambda options: run_verify_resume(options.recipe, []))


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """The options of verify-resume that are not settings of the recipe."""
    parser.add_argument("--updates", type=int, default=12, help="number of updates to train (default: 12)")
    parser.add_argument("--kills", type=int, default=3, help="how often to kill the run (default: 3)")
    parser.add_argument("--processes", type=int, default=1, help="number of processes, under torchrun (default: 1)")
    parser.add_argument("--kill-seed", type=int, default=0, help="random seed for the moments of the kills")


def add_inspect(commands: Any) -> None:
    """Adds the parser of hf-finetune inspect."""
    inspect = commands.add_parser(
        "inspect", help="list the parameters of a model, and which of them would train with the given --freeze options"
    )
    inspect.add_argument("model", help="run folder, model folder, package://NAME/path, or Hub id")
    inspect.add_argument("--format", choices=("table", "json", "csv"), default="table", help="format of the list")
    inspect.add_argument("--freeze.embeddings", dest="embeddings", action="store_true", help="freeze the embeddings")
    inspect.add_argument(
        "--freeze.layers", dest="layers", default="0", help="layers to freeze, as in a run's settings (default: 0)"
    )
    inspect.add_argument(
        "--freeze.patterns", dest="patterns", nargs="+", default=[], help="regular expressions for names to freeze"
    )
    inspect.add_argument(
        "--adapter.kind", dest="kind", choices=("none", "lora"), default="none", help="lora: with LoRA adapters"
    )
    inspect.add_argument("--adapter.rank", dest="rank", type=int, default=AdapterConfig().rank, help="their rank")
    inspect.add_argument(
        "--adapter.targets", dest="targets", nargs="+", default=[], help="the linear layers that get them"
    )
    add_trust(inspect, "model.trust_remote_code", "run Python code that the model's files name (default: false)")
    inspect.set_defaults(function=run_inspect)


def add_checkpoint_commands(commands: Any) -> None:
    """Adds the parser of hf-finetune checkpoints, hf-finetune materialize."""
    checkpoints = commands.add_parser("checkpoints", help="list the checkpoints of a run")
    checkpoints.add_argument("run", help="run folder")
    checkpoints.add_argument("--verify", action="store_true", help="read each and compare it with its digest")
    checkpoints.set_defaults(function=run_checkpoints)
    materialize = commands.add_parser(
        "materialize", help="make a complete model, as from_pretrained loads it, from a checkpoint"
    )
    materialize.add_argument("checkpoint", help="file of a checkpoint")
    materialize.add_argument("--out", required=True, help="folder to write; it must not exist")
    materialize.add_argument("--task", help="import path of the task if it is your own class: my_package.tasks:MyTask")
    add_trust(materialize, "model.trust_remote_code", "run Python code that the backbone's files name (default: false)")
    materialize.set_defaults(function=run_materialize)


def add_cache_commands(commands: Any) -> None:
    """Adds the parser of hf-finetune cache list, verify, prune."""
    cache = commands.add_parser("cache", help="list, verify or remove cached activations, encoded text and tables")
    actions = cache.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    listing = actions.add_parser("list", help="list the entries, the most recently used last")
    verification = actions.add_parser("verify", help="read every entry and compare it with its digests")
    removal = actions.add_parser("prune", help="remove entries that were not used for long, or until the rest fits")
    removal.add_argument(
        "--max-size", type=size_in_bytes, help="such as 20GB: remove the oldest entries until the rest fits"
    )
    removal.add_argument(
        "--older-than", type=age_in_seconds, help="such as 30d or 12h: remove entries not used since then"
    )
    for command, function in ((listing, run_cache_list), (verification, run_cache_verify), (removal, run_cache_prune)):
        command.add_argument("--dir", help="folder of the caches, as cache.dir")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(function=function)


def size_in_bytes(text: str) -> int:
    """Bytes of "20GB", "500MB" or a plain number; 1 GB is 10**9 bytes."""
    return int(parse_quantity(text, {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}))


def age_in_seconds(text: str) -> float:
    """Seconds of "30d", "12h", "90m" or "45s"."""
    return parse_quantity(text, {"s": 1, "m": 60, "h": 3600, "d": 86400})


def parse_quantity(text: str, units: dict[str, int]) -> float:
    """A number with one of these units. argparse turns the error into its own."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in units:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number with one of {', '.join(filter(None, units))}")
    return float(match[1]) * units[match[2]]


def run_train(words: Sequence[str]) -> int:
    """hf-finetune train. Without the name of a recipe, task.kind in the settings chooses it."""
    code = 0

    def train() -> None:
        nonlocal code
        code = run_settings(words) if words[0].startswith("-") else run_recipe_file(words[0], words[1:])

    return report_errors(train, debug="--debug" in words) or code


def run_verify_resume(recipe: str, words: Sequence[str]) -> int:
    """hf-finetune verify-resume. Exit code 1 if the runs differ."""
    parser = Parser(
        allow_abbrev=False,
        prog=f"hf-finetune verify-resume {recipe}",
        description="Other options are the recipe's settings.",
    )
    add_verify_options(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options, settings = parser.parse_known_args(words)
    is_equal = False

    def verify() -> None:
        nonlocal is_equal
        from hf_finetune.verify import verify_resume

        is_equal = verify_resume(
            recipe,
            settings,
            updates=options.updates,
            kills=options.kills,
            processes=options.processes,
            seed=options.kill_seed,
        )

    return report_errors(verify, debug=options.debug) or (0 if is_equal else 1)


def run_inspect(options: argparse.Namespace) -> None:
    """Runs hf-finetune inspect."""
    config = FreezeConfig(
        embeddings=options.embeddings,
        patterns=tuple(options.patterns),
        layers=convert("freeze.layers", int | str, options.layers),
    )
    adapter = AdapterConfig(kind=options.kind, rank=options.rank, targets=tuple(options.targets))
    from hf_finetune.model import freezing, lora, parameter_table

    loaded = lora.load_any_model(options.model, trust_code=options.trust_remote_code)
    if adapter.kind != "none" and loaded.adapter is not None:
        raise InputError(f"--adapter.kind ({adapter.kind}): {options.model} has an adapter already")
    loaded = lora.add_adapters(loaded, adapter, config, seed=0)
    model = loaded.model
    plan = freezing.apply_freezing(model, config, adapters=loaded.adapter_parameters, new=loaded.new_parameters)
    print(parameter_table.format_rows(parameter_table.make_rows(model, plan), plan, options.format))


def run_checkpoints(options: argparse.Namespace) -> None:
    """Runs hf-finetune checkpoints."""
    from hf_finetune.run import checkpoint

    folder = Path(options.run) / "checkpoints"
    if not os.path.isdir(folder):  # false for a name too long for a path, too
        raise InputError(f"{options.run}: is not a run folder with checkpoints")
    rows = checkpoint.list_checkpoints(folder, verify=options.verify)
    for row in rows:
        marks = " ".join(mark for mark, holds in (("best", row.is_best), ("last", row.is_last)) if holds)
        summary = ""
        if (manifest := row.manifest) is not None:
            value = "" if manifest.value is None else f"{manifest.metric} {manifest.value:.4f}"
            summary = f"epoch {manifest.epoch:>3}  update {manifest.update:>6}  loss {manifest.loss:.4f}  {value:<18}"
        print(f"{summary}  {row.size / 1e6:>9,.1f} MB  {row.state}  {marks:<9}  {row.file}".strip())
    print(f"{len(rows)} checkpoints, {sum(row.size for row in rows) / 1e6:,.1f} MB in {folder}")
    if damaged := [row.file for row in rows if row.state not in ("intact", "not read", checkpoint.NOT_COMPLETED)]:
        raise InputError(
            f"{folder}: damaged: {', '.join(damaged)}; a run that resumes ignores them, and removes them later"
        )


def run_materialize(options: argparse.Namespace) -> None:
    """Runs hf-finetune materialize."""
    from hf_finetune.export.materialize import materialize

    trust = options.trust_remote_code
    made = materialize(Path(options.checkpoint), Path(options.out), task=options.task, trust_remote_code=trust)
    print(f"{made}  (from_pretrained)")


def run_cache_list(options: argparse.Namespace) -> None:
    """Runs hf-finetune cache list."""
    from hf_finetune.cache import listing
    from hf_finetune.system.files import cache_root

    root = cache_root(options.dir)
    entries = listing.list_all_entries(root)
    for entry in entries:
        print(describe_entry(entry))
    print(f"{len(entries)} entries, {sum(entry.size for entry in entries) / 1e6:,.1f} MB in {root}")
    if leftovers := listing.find_leftovers(root):
        size = sum(listing.measure_folder(folder)[0] for folder in leftovers)
        print(f"{len(leftovers)} leftovers of killed runs, {size / 1e6:,.1f} MB, which cache prune removes")


def run_cache_verify(options: argparse.Namespace) -> None:
    """Runs hf-finetune cache verify."""
    from hf_finetune.cache import listing
    from hf_finetune.system.files import cache_root

    root, num_damaged = cache_root(options.dir), 0
    for entry in listing.list_all_entries(root):
        damage = listing.find_damage(entry)
        num_damaged += damage is not None and not (entry.is_partial or entry.is_old)
        print(f"{entry.folder.name}  {entry.kind:12}  {damage or 'is intact'}", flush=True)
    if num_damaged:
        raise InputError(
            f"{root}: {num_damaged} entries are damaged; the next run that needs one computes the missing part again"
        )


def run_cache_prune(options: argparse.Namespace) -> None:
    """Runs hf-finetune cache prune."""
    from hf_finetune.cache import listing
    from hf_finetune.system.files import cache_root

    if options.max_size is None and options.older_than is None:
        raise InputError("cache prune: give what to remove: --max-size 20GB, --older-than 30d, or both")
    removed = listing.prune_entries(
        cache_root(options.dir), max_bytes=options.max_size, older_than_seconds=options.older_than
    )
    for entry in removed:
        print(f"removed {describe_entry(entry)}")
    print(f"{sum(entry.size for entry in removed) / 1e6:,.1f} MB freed")


def describe_entry(entry: "listing.EntryListing") -> str:
    """One line: key, kind, size, last use, and what the entry holds."""
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    return f"{entry.folder.name}  {entry.kind:12}  {entry.size / 1e6:>10,.1f} MB  used {used}  {entry.content}"
