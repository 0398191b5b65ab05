"""The curves of runs: losses, the metric, learning rates and more, from the rows of metrics.jsonl."""

from collections.abc import Sequence

from hf_finetune.analysis.charts import MOST_POINTS, Chart, Line, Point, merge_equal
from hf_finetune.analysis.run_files import RunFiles

RATE = "train/learning_rate/"
# Numbers of an update that have a chart of their own: its title
OTHERS = {"train/gradient_norm": "Gradient norm", "train/tokens_per_second": "Tokens a second"}


def make_charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """Returns the charts that have anything to show."""
    charts = [make_loss_chart(runs), *make_metric_charts(runs), make_rate_chart(runs)]
    charts += [make_chart(runs, name, title) for name, title in OTHERS.items()]
    return [chart for chart in charts if chart.lines]


def make_loss_chart(runs: Sequence[RunFiles]) -> Chart:
    """Returns the chart of the losses of training and validation."""
    lines = []
    for color, run in enumerate(runs):
        for split, style in (("train", "faint"), ("validation", "main")):
            points = run.get_curve(f"{split}/loss")
            lines += make_line(
                runs, run, points, name=split, style=style, color=color, is_decisive=run.metric == "loss"
            )
    return Chart(name="loss", title="Loss", lines=lines, note=describe_means(runs, "train/loss"))


def make_metric_charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """Returns a chart for each metric of the runs that chooses a best checkpoint. The loss has its chart."""
    charts: list[Chart] = []
    for metric in dict.fromkeys(run.metric for run in runs if run.metric not in (None, "loss")):
        lines: list[Line] = []
        for color, run in enumerate(runs):
            lines += make_line(
                runs, run, run.get_curve(f"validation/{metric}"), color=color, is_decisive=run.metric == metric
            )
        charts.append(Chart(name=f"metric-{len(charts)}", title=f"{metric} on validation", lines=lines))
    return charts


def make_rate_chart(runs: Sequence[RunFiles]) -> Chart:
    """Returns the chart of the learning rates. Groups of parameters with equal rates share a line."""
    lines: list[Line] = []
    for color, run in enumerate(runs):
        names = dict.fromkeys(name for row in run.rows for name in row if name.startswith(RATE))
        merged = merge_equal((name.removeprefix(RATE), run.get_curve(name)) for name in names)
        for number, (groups, points) in enumerate(merged):
            name = groups[0] if len(merged) > 1 else ""
            lines += make_line(runs, run, points, name=name, style="dashed" if number else "plain", color=color)
    return Chart(name="rate", title="Learning rate", lines=lines)


def make_chart(runs: Sequence[RunFiles], name: str, title: str) -> Chart:
    """Returns the chart of a logged number."""
    lines: list[Line] = []
    for color, run in enumerate(runs):
        lines += make_line(runs, run, run.get_curve(name), style="plain", color=color)
    return Chart(name=name.rpartition("/")[2], title=title, lines=lines, note=describe_means(runs, name))


def make_line(
    runs: Sequence[RunFiles],
    run: RunFiles,
    points: Sequence[Point],
    *,
    color: int,
    name: str = "",
    style: str = "main",
    is_decisive: bool = False,
) -> list[Line]:
    """Returns the line of a run; none if it has no points. is_decisive: The line's values choose the best checkpoint."""
    if not points:
        return []
    label = " ".join(filter(None, (run.label if len(runs) > 1 else "", name))) or run.label
    best = run.results.get("best", {}).get("update") if is_decisive and style == "main" else None
    return [Line(label=label, color=color, points=points, style=style, best=best)]


def describe_means(runs: Sequence[RunFiles], name: str) -> str:
    """Returns a sentence about averaged points if a line has more than are drawn."""
    longest = max((len(run.get_curve(name)) for run in runs), default=0)
    if longest <= MOST_POINTS:
        return ""
    return f"Each point is the mean of {-(-longest // MOST_POINTS)} logged values."
