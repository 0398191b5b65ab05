"""Where the time of an update goes, with the prefix cached: torch's profiler over one epoch's updates.

    python benchmarks/profile_update.py [settings as for the classify recipe]

Writes the operators that take most as the table in docs/performance.md.
"""

import sys
import tempfile

import torch
from against_trainer import ROOT
from measure import rewrite

from hf_finetune.cache import capture, decision
from hf_finetune.config.loading import load_config
from hf_finetune.recipe import recipe_path
from hf_finetune.run import report, setup
from hf_finetune.run.folder import open_run
from hf_finetune.run.training_run import Clock
from hf_finetune.training.loop import train_steps
from hf_finetune.training.progress import Progress


def main() -> None:
    """Sets a run up, warms up, and profiles."""
    names: dict[str, object] = {}
    exec(compile(recipe_path("classify").read_text(), "classify.py", "exec"), {"__name__": "recipe"}, names)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*sys.argv[1:], "--output_dir", folder, "--tracking.trackers", "[]"]
        config = load_config(names["DEFAULTS"], arguments, demo=names["DEMO"])  # type: ignore[arg-type]
        assert config is not None
        with open_run(config) as run:
            job = setup.set_up(config, "classification", run, Clock())
            progress = Progress()
            choice = decision.decide(job, progress)
            report.announce(job, [], choice)
            job = capture.attach_activations(job, choice)
            steps = train_steps(job.train_state, job.features["train"], job.task, config, run)
            for _ in range(10):
                next(steps)
            measured = [next(steps) for _ in range(min(40, job.schedule.total_updates - 20))]
            tokens = sum(update.num_tokens for update in measured)
            seconds = sum(update.seconds for update in measured)
            with torch.profiler.profile() as profile:
                num_profiled = sum(1 for _ in zip(steps, range(10), strict=False))
    lines = [f"{len(measured)} updates: {1e3 * seconds / len(measured):.1f} ms each, {tokens / seconds:,.0f} tokens/s."]
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    lines += ["", "| operator | share of the time | ms an update | calls an update |", "|---|---|---|---|"]
    for row in rows[:14]:
        milliseconds = row.self_cpu_time_total / 1e3 / num_profiled
        lines.append(
            f"| `{row.key}` | {row.self_cpu_time_total / total:.1%} | {milliseconds:.2f} | {row.count / num_profiled:.0f} |"
        )
    print("\n".join(lines))
    rewrite(ROOT / "docs" / "performance.md", "\n".join(lines), "profile")


if __name__ == "__main__":
    main()
