"""`hf-finetune evaluate` and `hf-finetune predict`: their options and their calls."""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_finetune.config.sections import require
from hf_finetune.system.errors import InputError
from hf_finetune.system.json_text import replace_nan
from hf_finetune.system.output import STDOUT, open_standard_output

if TYPE_CHECKING:
    from hf_finetune.export.predict import Predictor
    from hf_finetune.export.prediction_files import Job
    from hf_finetune.export.prediction_rows import PredictionOptions


# Settings that say how files are read and which labels are left out, by their names in training
READING_OPTIONS = {
    "data.encoding": "encodings of the files, such as utf-8 cp1252",
    "data.delimiter": "delimiter of csv files; null to recognise it",
    "data.quoting": "auto, quoted or none",
    "data.header": "false if the first line of csv files is a row",
    "data.max_expansion": "how many times its size a .gz file may be unpacked to",
}
IGNORE_LABELS = "task.ignore_labels"


def add_model_options(command: argparse.ArgumentParser) -> None:
    """The options that evaluate and predict share."""
    command.add_argument("model", help="run folder, model folder, or Hub id")
    command.add_argument(
        "--text-columns",
        "--data.text_columns",
        nargs="+",
        default=(),
        help="text columns of the file (default: those of the training data)",
    )
    for key, explanation in READING_OPTIONS.items():
        command.add_argument(f"--{key}", nargs="+", help=f"{explanation} (default: as in training)")
    command.add_argument(
        "--choice-columns",
        "--task.choice_columns",
        nargs="+",
        default=(),
        help="columns of the choices, for multiple choice (default: those of the training data)",
    )
    command.add_argument("--task", help="import path of the task if it is your own class: my_package.tasks:MyTask")
    add_trust(command, "model.trust_remote_code", "run Python code that the model's files name (default: false)")
    command.add_argument("--batch-size", type=int, default=64, help="examples a forward (default: 64)")
    command.add_argument("--device", help="such as cpu or cuda:1 (default: the accelerator, if there is one)")


def add_trust(command: argparse.ArgumentParser, key: str, explanation: str) -> None:
    """Adds an option that allows code to run, called as the setting of a run: KEY alone, or KEY true."""
    command.add_argument(
        f"--{key}",
        dest=key.partition(".")[2],
        nargs="?",
        const=True,
        default=False,
        type=read_switch,
        metavar="true",
        help=explanation,
    )


def read_switch(text: str) -> bool:
    """True for "true", False for "false". argparse turns the error into its own."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} must be true or false")
    return text == "true"


def add_evaluate(commands: Any) -> None:
    """Adds the parser of hf-finetune evaluate."""
    evaluate = commands.add_parser("evaluate", help="loss and metrics of a model on a labelled file")
    add_model_options(evaluate)
    evaluate.add_argument(
        "--data",
        required=True,
        nargs="+",
        help="csv, tsv, json, jsonl, parquet (.gz too), or another kind of the recipe",
    )
    evaluate.add_argument(
        "--label-column",
        "--data.label_column",
        dest="label_column",
        help="label column of the file (default: that of the training data)",
    )
    evaluate.add_argument(
        f"--{IGNORE_LABELS}", nargs="+", help="labels of rows to leave out, such as null (default: as in training)"
    )
    evaluate.add_argument("--metric", help="an additional metric")
    add_trust(
        evaluate,
        "evaluation.trust_metric_code",
        "run the Python code of --metric, if it is one of the Hub or a file (default: false)",
    )
    evaluate.add_argument(
        "--metrics", nargs="+", default=(), help="import paths of your own metrics: my_module:kappa, name=my_module:f"
    )
    evaluate.add_argument("--loss", help="import path of your own loss, if it was trained with one: my_module:focal")
    evaluate.add_argument(
        "--slice",
        nargs="+",
        default=(),
        dest="slices",
        help="columns of the data: the metrics of the rows with each value; also length (in tokens) and file",
    )
    evaluate.add_argument(
        "--examples", type=int, default=5, help="number of worst and of least certain examples to show (default: 5)"
    )
    evaluate.add_argument("--scored", help="file for what is known of each example, .jsonl (docs/evaluation.md)")
    evaluate.add_argument("--format", choices=("table", "json"), default="table", help="format of the output")
    evaluate.set_defaults(function=run_evaluate)


def add_predict(commands: Any) -> None:
    """Adds the parser of hf-finetune predict."""
    predict = commands.add_parser("predict", help="predict labels, tags, answers, text or embeddings")
    add_model_options(predict)
    source = predict.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", nargs="+", help="the texts of one example: one text, two for a pair, ...")
    source.add_argument(
        "--data",
        nargs="+",
        help="csv, tsv, json, jsonl, parquet, txt with a text a line (.gz too); a pipe, or - for lines of standard input",
    )
    predict.add_argument(
        "--out",
        help="file for the predictions: .jsonl, .csv, .tsv, .parquet, .json (one document), .txt (the label alone); .gz may "
        "follow (default: lines of JSON on standard output)",
    )
    predict.add_argument("--top-k", type=int, help="list only this number of most probable labels")
    predict.add_argument("--threshold", type=float, help="probability of a label, if a text may have several (0.5)")
    predict.add_argument("--keep", nargs="+", default=(), help="columns of the data that each prediction repeats")
    predict.add_argument(
        "--strict", action="store_true", help="stop at a row that cannot be predicted (default: null, and a note)"
    )
    predict.add_argument(
        "--processes", type=int, default=1, help="processes that share the rows, each with the model (default: 1)"
    )
    predict.set_defaults(function=run_predict)


def run_evaluate(options: argparse.Namespace) -> None:
    """Runs hf-finetune evaluate. Notes go to standard error, so that standard output has the metrics alone."""
    from hf_finetune.export.evaluation import describe_evaluation
    from hf_finetune.export.evaluation_tables import format_evaluation
    from hf_finetune.export.predictor_calls import evaluate_file_examples
    from hf_finetune.run.scored import write_scored

    require(options.examples >= 0, "examples", options.examples, "must be 0 or more")
    with contextlib.redirect_stdout(sys.stderr):
        evaluation = evaluate_file_examples(
            load_predictor(options),
            options.data,
            slices=options.slices,
            metric=options.metric,
            trust_metric_code=options.trust_metric_code,
            batch_size=options.batch_size,
        )
        if options.slices:
            evaluation.get_scored("--slice")
        if options.scored:
            size = write_scored(Path(options.scored), evaluation.get_scored("--scored"))
            print(f"{options.scored}: {len(evaluation.get_scored('--scored')):,} examples, {size / 1e6:.1f} MB")
        details = describe_evaluation(evaluation, options.slices, options.examples)
    if options.format == "json":
        print(json.dumps(replace_nan(evaluation.values | ({"details": details} if details else {}))))
    else:
        print(format_evaluation(evaluation.values, details))


def run_predict(options: argparse.Namespace) -> None:
    """Runs hf-finetune predict."""
    from hf_finetune.export.prediction_files import check_out, write_predictions
    from hf_finetune.export.prediction_rows import PredictionOptions

    for name in ("out", "keep", "strict"):
        if getattr(options, name) and not options.data:
            raise InputError(f"--{name}: goes with --data")
    require(options.processes >= 1, "processes", options.processes, "must be 1 or more")
    if options.out:
        check_out(Path(options.out), options.keep)
    chosen = PredictionOptions(
        keep=tuple(options.keep),
        top_k=options.top_k,
        threshold=options.threshold,
        batch_size=options.batch_size,
        is_strict=options.strict,
    )
    if not options.data:
        print_text(options)
        return
    job = make_job(options, chosen)
    if options.out:
        progress = write_predictions(job, Path(options.out))
        print(f"{progress.num_lines} rows written to {options.out}")
    else:
        progress = print_rows(job)
    if progress.num_problems:
        count = f"{progress.num_problems:,} of {progress.num_rows:,} rows"
        print(f"{count} cannot be predicted and are null", file=sys.stderr)


def make_job(options: argparse.Namespace, chosen: "PredictionOptions") -> "Job":
    """Returns the predictions that the options ask for."""
    from hf_finetune.export import prediction_files

    predictor = load_predictor(options)
    if options.processes == 1:
        return prediction_files.make_job(predictor, options.data, chosen)
    from hf_finetune.export.prediction_processes import Workers

    workers = Workers(
        num_processes=options.processes,
        predictor=predictor,
        location=options.model,
        arguments=model_arguments(options),
        options=chosen,
    )
    return prediction_files.make_job(predictor, options.data, chosen, workers.predict)


def print_text(options: argparse.Namespace) -> None:
    """Prints the prediction of the texts of one example."""
    from hf_finetune.export.prediction_formats import format_json
    from hf_finetune.export.predictor_calls import predict_texts

    choices = {name: getattr(options, name) for name in ("top_k", "threshold", "batch_size")}
    print(format_json(predict_texts(load_predictor(options), options.text, **choices)), file=open_standard_output())


def print_rows(job: "Job") -> Any:
    """Prints predictions as they come, and returns what was done. Ends without an error if nobody reads on."""
    from hf_finetune.export.prediction_files import print_predictions

    try:
        return print_predictions(job, open_standard_output(), STDOUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def model_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of Predictor.from_pretrained() that the options name."""
    settings = {key: vars(options).get(key) for key in (*READING_OPTIONS, IGNORE_LABELS)}
    return {
        **{key.partition(".")[2]: words[0] if len(words) == 1 else words for key, words in settings.items() if words},
        "task": options.task,
        "text_columns": tuple(options.text_columns),
        "choice_columns": tuple(options.choice_columns),
        "label_column": getattr(options, "label_column", None),
        "loss": getattr(options, "loss", None),
        "metrics": tuple(getattr(options, "metrics", ())),
        "device": options.device,
        "trust_remote_code": options.trust_remote_code,
    }


def load_predictor(options: argparse.Namespace) -> "Predictor":
    """The model of the options, with the columns that they name."""
    from hf_finetune.export.predict import Predictor

    return Predictor.from_pretrained(options.model, **model_arguments(options))
