"""The command `hf-finetune push`: its options and its call."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_finetune.system.errors import InputError

if TYPE_CHECKING:
    from hf_finetune.export.pending_pushes import Target


def add_push(commands: Any) -> None:
    """Adds the parser of hf-finetune push."""
    push = commands.add_parser(
        "push", help="upload the model, model card and results of a run to the Hub, in one commit"
    )
    push.add_argument("runs", metavar="RUN", nargs="*", help="run folder; several with --pending")
    push.add_argument("--repo-id", help="user/name")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", help="branch (default: the main one)")
    push.add_argument(
        "--pending",
        action="store_true",
        help="make the pushes of these runs that have failed; without RUN, those of all runs in outputs/",
    )
    push.add_argument(
        "--dry-run", action="store_true", help="list the files and their sizes, print the card, and send nothing"
    )
    push.set_defaults(function=run_push)


def run_push(options: argparse.Namespace) -> None:
    """Runs hf-finetune push."""
    if options.pending:
        push_pending(options)
        return
    missing = [name for name, value in (("RUN", options.runs), ("--repo-id", options.repo_id)) if not value]
    if missing:
        options.parser.error(f"the following arguments are required: {', '.join(missing)}")
    if len(options.runs) > 1:
        options.parser.error("several runs go with --pending")
    run_dir = find_run(options.runs[0])
    from hf_finetune.export import hub
    from hf_finetune.export.pending_pushes import Target

    target = Target(repo_id=options.repo_id, private=options.private, revision=options.revision)
    if options.dry_run:
        hub.check_name(target.repo_id, "--repo-id")
        print_files(run_dir, target)
        return
    hub.check_access(target.repo_id, "--repo-id")
    if (reason := make_push(run_dir, target)) is not None:
        raise InputError(reason)


def find_run(folder: str) -> Path:
    """Returns the path of a run folder. Raises InputError if there is none."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such run folder")
    return Path(folder)


def push_pending(options: argparse.Namespace) -> None:
    """Makes the pushes that have failed. Raises InputError with those that fail again, after all others are made."""
    if options.repo_id or options.private or options.revision:
        raise InputError(
            "--pending: pushes to where the runs were to be pushed; leave out --repo-id, --private and --revision"
        )
    from hf_finetune.export.pending_pushes import PENDING, list_pending

    folders = [find_run(folder) for folder in options.runs] or sorted(
        path.parent for path in Path("outputs").glob(f"*/{PENDING}")
    )
    pushes = [(folder, target) for folder in folders for target in list_pending(folder)]
    if not pushes:
        print(f"no push is pending in {', '.join(map(str, folders)) or 'outputs'}")
    reasons: list[str] = []
    for folder, target in pushes:
        if options.dry_run:
            print_files(folder, target)
        elif (reason := make_push(folder, target)) is not None:
            reasons.append(f"{folder}: {reason}")
    if reasons:
        raise InputError(f"{len(reasons)} of {len(pushes)} pushes failed, and are still pending", *reasons)


def make_push(run_dir: Path, target: "Target") -> str | None:
    """Pushes a run, and prints where it is. Returns the reason if that fails."""
    from hf_finetune.export.pending_pushes import push_run

    outcome = push_run(run_dir, target)
    if outcome.commit is not None:
        print(f"{run_dir} is pushed to {outcome.commit}")
    return outcome.reason


def print_files(run_dir: Path, target: "Target") -> None:
    """Prints the files that a push would send, their sizes, and the card."""
    from hf_finetune.export import hub
    from hf_finetune.system.console import align_columns

    files = hub.collect_files(run_dir, target.repo_id)
    sizes = {
        name: content.stat().st_size if isinstance(content, Path) else len(content) for name, content in files.items()
    }
    print(f"{run_dir} would be pushed to {target.repo_id}, branch {target.revision or 'main'}. Nothing is sent.")
    print(align_columns([[name, f"{size:,} bytes"] for name, size in sizes.items()], left=True))
    print(f"{len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB")
    card = files.get("README.md")
    if card is not None:
        print(f"\nREADME.md:\n{(card.read_bytes() if isinstance(card, Path) else card).decode('utf-8')}")
