"""The `hf-finetune` command: one function a subcommand, no logic of its own."""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hf_finetune import __version__
from hf_finetune.config.sections import AdapterConfig, FreezeConfig
from hf_finetune.config.tasks import TASKS
from hf_finetune.config.values import convert
from hf_finetune.recipe import EXIT_INPUT, report_errors, run_recipe_file, run_settings
from hf_finetune.system.errors import InputError

if TYPE_CHECKING:
    from hf_finetune.cache import listing
    from hf_finetune.export.predict import Predictor


class Parser(argparse.ArgumentParser):
    """argparse with this package's wording of errors."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_INPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"] and len(words) >= 2 and words[1:] not in (["--help"], ["-h"]):
        return run_train(words[1:])
    if words[:1] == ["verify-resume"] and len(words) >= 2 and not words[1].startswith("-"):
        return run_verify_resume(words[1], words[2:])
    options = build_parser().parse_args(words)
    return report_errors(lambda: options.function(options), debug=options.debug)


def build_parser() -> Parser:
    """The parser of all subcommands."""
    parser = Parser(prog="hf-finetune", description="Fine-tune pretrained language models on your own text.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    train = commands.add_parser(
        "train",
        help="run a recipe: hf-finetune train classify [settings]",
        usage="hf-finetune train RECIPE [settings], or hf-finetune train --config FILE.yaml [settings]",
        epilog="The settings of a recipe: hf-finetune train RECIPE --help",
    )
    train.add_argument("recipe", metavar="RECIPE", choices=tuple(TASKS), help=f"one of {', '.join(TASKS)}")

    verify = commands.add_parser(
        "verify-resume",
        help="prove on this machine that a killed run ends as one that is not: hf-finetune verify-resume classify [settings]",
    )
    verify.add_argument("recipe", help="such as classify; its settings follow")
    add_verify_options(verify)
    verify.set_defaults(function=lambda options: run_verify_resume(options.recipe, []))

    inspect = commands.add_parser("inspect", help="list every tensor of a model, and what a freeze plan makes of it")
    inspect.add_argument("model", help="run folder, model folder, package://NAME/path, or Hub id")
    inspect.add_argument("--format", choices=("table", "json", "csv"), default="table", help="of the list")
    inspect.add_argument("--freeze.embeddings", dest="embeddings", action="store_true", help="embeddings frozen")
    inspect.add_argument("--freeze.layers", dest="layers", default="0", help="as in the config")
    inspect.add_argument("--freeze.patterns", dest="patterns", nargs="+", default=[], help="as in the config")
    inspect.add_argument(
        "--adapter.kind", dest="kind", choices=("none", "lora"), default="none", help="as in the config"
    )
    inspect.add_argument("--adapter.rank", dest="rank", type=int, default=AdapterConfig().rank, help="as in the config")
    inspect.add_argument("--adapter.targets", dest="targets", nargs="+", default=[], help="as in the config")
    inspect.set_defaults(function=run_inspect)

    evaluate = commands.add_parser("evaluate", help="loss and metrics of a model on a labelled file")
    predict = commands.add_parser("predict", help="what a model says of texts: labels, tags, answers, text, vectors")
    for command in (evaluate, predict):
        command.add_argument("model", help="run folder, model folder, or Hub id")
        command.add_argument(
            "--text-columns", nargs="+", default=(), help="columns of the file; those of the training if not given"
        )
        command.add_argument(
            "--choice-columns",
            nargs="+",
            default=(),
            help="columns of the choices, for multiple choice; those of the training if not given",
        )
    evaluate.add_argument(
        "--data", required=True, nargs="+", help="csv, tsv, json, jsonl, parquet (.gz), or what else the recipe takes"
    )
    evaluate.add_argument("--label-column", help="that of the training if not given")
    evaluate.add_argument("--metric", help="one more metric")
    evaluate.add_argument("--format", choices=("table", "json"), default="table", help="of the metrics")
    evaluate.set_defaults(function=run_evaluate)
    group = predict.add_mutually_exclusive_group(required=True)
    group.add_argument(
        "--text", nargs="+", help="the texts of one example, as the model was trained: one, two for a pair, ..."
    )
    group.add_argument("--data", help="csv, tsv, json, jsonl, parquet (.gz)")
    predict.add_argument("--out", help="JSON lines, or of a .json file one document; standard output if not given")
    predict.set_defaults(function=run_predict)

    checkpoints = commands.add_parser("checkpoints", help="list the checkpoints of a run")
    checkpoints.add_argument("run", help="run folder")
    checkpoints.add_argument("--verify", action="store_true", help="read them all and compare with their digests")
    checkpoints.set_defaults(function=run_checkpoints)
    materialize = commands.add_parser(
        "materialize", help="make a whole model of a checkpoint, as from_pretrained loads it"
    )
    materialize.add_argument("checkpoint", help="file of a checkpoint")
    materialize.add_argument("--out", required=True, help="folder to write, which must not exist")
    materialize.set_defaults(function=run_materialize)

    push = commands.add_parser("push", help="put the model, card and results of a run on the Hub, in one commit")
    push.add_argument("run", help="run folder")
    push.add_argument("--repo-id", required=True, help="user/name")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", help="branch")
    push.set_defaults(function=run_push)
    add_cache_commands(commands.add_parser("cache", help="what is kept of frozen prefixes: list, verify, prune"))
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """The options of verify-resume, beside the recipe's settings."""
    parser.add_argument("--updates", type=int, default=12, help="updates to train")
    parser.add_argument("--kills", type=int, default=3, help="times to kill the second run")
    parser.add_argument("--processes", type=int, default=1, help="processes, under torchrun")
    parser.add_argument("--kill-seed", type=int, default=0, help="of the moments of the kills")


def add_cache_commands(cache: argparse.ArgumentParser) -> None:
    """The parsers of hf-finetune cache."""
    commands = cache.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    listed = commands.add_parser("list", help="the entries, the most recently used last, and their size")
    verified = commands.add_parser("verify", help="read every entry and compare with its digests")
    pruned = commands.add_parser("prune", help="remove entries not used for long, and the oldest until the rest fits")
    pruned.add_argument("--max-size", type=size_in_bytes, help="such as 20GB: what may stay")
    pruned.add_argument("--older-than", type=age_in_seconds, help="such as 30d or 12h: not used for so long")
    for command, function in ((listed, run_cache_list), (verified, run_cache_verify), (pruned, run_cache_prune)):
        command.add_argument("--dir", help="as cache.dir; its default if not given")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(function=function)


def size_in_bytes(text: str) -> int:
    """Bytes of "20GB", "500MB" or a plain number; 1 GB is 10**9 bytes."""
    return int(quantity(text, {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}))


def age_in_seconds(text: str) -> float:
    """Seconds of "30d", "12h", "90m" or "45s"."""
    return quantity(text, {"s": 1, "m": 60, "h": 3600, "d": 86400})


def quantity(text: str, units: dict[str, int]) -> float:
    """A number with one of these units; argparse turns the error into its own."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2] not in units:
        raise argparse.ArgumentTypeError(f"{text!r} is no number with one of {', '.join(filter(None, units))}")
    return float(found[1]) * units[found[2]]


def run_train(words: Sequence[str]) -> int:
    """hf-finetune train. Without the name of a recipe, task.kind in the settings chooses it."""
    code = 0

    def train() -> None:
        nonlocal code
        code = run_settings(words) if words[0].startswith("-") else run_recipe_file(words[0], words[1:])

    return report_errors(train, debug="--debug" in words) or code


def run_verify_resume(recipe: str, words: Sequence[str]) -> int:
    """hf-finetune verify-resume. Exit code 1 where the runs differ."""
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
    """hf-finetune inspect."""
    config = FreezeConfig(
        embeddings=options.embeddings,
        patterns=tuple(options.patterns),
        layers=convert("freeze.layers", int | str, options.layers),
    )
    wanted = AdapterConfig(kind=options.kind, rank=options.rank, targets=tuple(options.targets))
    from hf_finetune.model import freezing, lora, parameter_table

    loaded = lora.load_any_model(options.model)
    if wanted.kind != "none" and loaded.adapter is not None:
        raise InputError(f"--adapter.kind ({wanted.kind}): {options.model} has an adapter already")
    loaded = lora.add_adapters(loaded, wanted, config, seed=0)
    model = loaded.model
    plan = freezing.apply_freezing(model, config, adapters=loaded.adapter_parameters, new=loaded.new_parameters)
    print(parameter_table.format_rows(parameter_table.make_rows(model, plan), plan, options.format))


def run_evaluate(options: argparse.Namespace) -> None:
    """hf-finetune evaluate."""
    from hf_finetune.export.predict import evaluate_file

    values = evaluate_file(load_predictor(options), options.data, metric=options.metric)
    width = max(20, *map(len, values))
    print(
        json.dumps(values)
        if options.format == "json"
        else "\n".join(f"{key:<{width}} {value:.4f}" for key, value in values.items())
    )


def run_predict(options: argparse.Namespace) -> None:
    """hf-finetune predict."""
    from hf_finetune.export.predict import predict_file, predict_texts

    if options.out and not options.data:
        raise InputError("--out: goes with --data")
    predictor = load_predictor(options)
    if not options.data:
        rows = [predict_texts(predictor, options.text)]
    else:
        rows = predict_file(predictor, options.data, options.out)
        if options.out:
            print(f"{len(rows)} rows written to {options.out}")
            return
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


def load_predictor(options: argparse.Namespace) -> "Predictor":
    """The model, with the columns that the options name."""
    from hf_finetune.export.predict import Predictor

    return Predictor.from_pretrained(
        options.model,
        text_columns=tuple(options.text_columns),
        choice_columns=tuple(options.choice_columns),
        label_column=getattr(options, "label_column", None),
    )


def run_checkpoints(options: argparse.Namespace) -> None:
    """hf-finetune checkpoints."""
    from hf_finetune.run import checkpoint

    folder = Path(options.run) / "checkpoints"
    if not os.path.isdir(folder):  # false for a name too long for a path, too
        raise InputError(f"{options.run}: is no run folder with checkpoints")
    rows = checkpoint.list_checkpoints(folder, verify=options.verify)
    for row in rows:
        marks = " ".join(mark for mark, holds in (("best", row.is_best), ("last", row.is_last)) if holds)
        told = ""
        if (manifest := row.manifest) is not None:
            value = "" if manifest.value is None else f"{manifest.metric} {manifest.value:.4f}"
            told = f"epoch {manifest.epoch:>3}  update {manifest.update:>6}  loss {manifest.loss:.4f}  {value:<18}"
        print(f"{told}  {row.size / 1e6:>9,.1f} MB  {row.state}  {marks:<9}  {row.file}".strip())
    print(f"{len(rows)} checkpoints, {sum(row.size for row in rows) / 1e6:,.1f} MB in {folder}")
    if damaged := [row.file for row in rows if row.state not in ("intact", "not read")]:
        raise InputError(
            f"{folder}: damaged: {', '.join(damaged)}; a run that goes on passes them over, and removes them in time"
        )


def run_materialize(options: argparse.Namespace) -> None:
    """hf-finetune materialize."""
    from hf_finetune.export.materialize import materialize

    print(f"{materialize(Path(options.checkpoint), Path(options.out))}  (from_pretrained)")


def run_push(options: argparse.Namespace) -> None:
    """hf-finetune push."""
    from hf_finetune.export import hub

    if not Path(options.run).is_dir():
        raise InputError(f"{options.run}: no such run folder")
    hub.check_access(options.repo_id, "--repo-id")
    print(
        f"pushed to {hub.push(Path(options.run), options.repo_id, private=options.private, revision=options.revision)}"
    )


def run_cache_list(options: argparse.Namespace) -> None:
    """hf-finetune cache list."""
    from hf_finetune.cache import listing

    root = cache_root(options)
    found = listing.list_entries(root)
    for entry in found:
        print(describe_entry(entry))
    print(f"{len(found)} entries, {sum(entry.size for entry in found) / 1e6:,.1f} MB in {root}")


def run_cache_verify(options: argparse.Namespace) -> None:
    """hf-finetune cache verify."""
    from hf_finetune.cache import listing

    root, num_damaged = cache_root(options), 0
    for entry in listing.list_entries(root):
        fault = listing.find_damage(entry)
        num_damaged += fault is not None and not entry.is_partial
        print(f"{entry.folder.name}  {fault or 'is intact'}", flush=True)
    if num_damaged:
        raise InputError(
            f"{root}: {num_damaged} entries are damaged; the next run that needs one computes again what is missing"
        )


def run_cache_prune(options: argparse.Namespace) -> None:
    """hf-finetune cache prune."""
    from hf_finetune.cache import listing

    if options.max_size is None and options.older_than is None:
        raise InputError("cache prune: say what to remove: --max-size 20GB, --older-than 30d, or both")
    removed = listing.prune_entries(
        cache_root(options), max_bytes=options.max_size, older_than_seconds=options.older_than
    )
    for entry in removed:
        print(f"removed {describe_entry(entry)}")
    print(f"{sum(entry.size for entry in removed) / 1e6:,.1f} MB freed")


def cache_root(options: argparse.Namespace) -> Path:
    """The folder of the cache."""
    from hf_finetune.cache import store

    return store.activations_dir(options.dir)


def describe_entry(entry: "listing.EntryListing") -> str:
    """One line: key, size, last use, and what the states are of."""
    of, used = entry.manifest, time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    told = "not finished" if entry.is_partial else "no readable manifest"
    if of:
        made = of["description"]
        told = (
            f"{made.get('architecture')}, {made.get('blocks')} blocks, {of.get('num_tokens')} tokens, {of.get('dtype')}"
        )
    return f"{entry.folder.name}  {entry.size / 1e6:>10,.1f} MB  used {used}  {told}"
