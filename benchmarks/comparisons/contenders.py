"""A contender of benchmarks/time_to_accuracy.py: trains a text classifier on JSON lines as one would without hf_finetune.

    python benchmarks/comparisons/contenders.py JOB

    trainer   transformers.Trainer, nothing frozen: bf16 if the processor is fast at it, batches grouped by length, evaluated and
              saved every half epoch; stops once a saved model reaches the target
    setfit    SetFit: sentence-transformers, contrastive pairs (two for each row), then logistic regression on all rows
    probe     a linear model on sentence-transformers' vectors: logistic regression, or ridge regression of numbers

JOB is JSON. Prints the events that `hf-finetune train --json` prints: an evaluation with its metrics, and a save of that model.
It imports nothing of hf_finetune.
"""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def emit(event: str, **values: Any) -> None:
    """Prints an event as a JSON line on the standard output of the process, which nothing else prints to."""
    print(json.dumps({"event": event, **values}), file=sys.__stdout__, flush=True)


def read_rows(path: str, job: Mapping[str, Any]) -> tuple[list[tuple[str, ...]], list[Any]]:
    """Returns the texts of each row, and the labels as they are."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    texts = [tuple(row[column] for column in job["text_columns"]) for row in rows]
    return texts, [row[job["label_column"]] for row in rows]


def encode_labels(job: Mapping[str, Any], names: Sequence[str], labels: Sequence[Any]) -> Array:
    """Returns the targets: numbers, a number of a class for each row, or 0 and 1 for each row and class."""
    if job["problem"] == "regression":
        return np.array(labels, np.float32)
    if job["problem"] == "single_label":
        return np.array([names.index(label) for label in labels])
    return np.array([[float(name in label) for name in names] for label in labels], np.float32)


def list_names(job: Mapping[str, Any], labels: Sequence[Any]) -> list[str]:
    """Returns the names of the labels in order; none of numbers."""
    if job["problem"] == "regression":
        return []
    return sorted({*labels} if job["problem"] == "single_label" else {name for label in labels for name in label})


def compute_metric(job: Mapping[str, Any], predicted: Array, targets: Array) -> float:
    """Returns the metric of the job. predicted: classes, 0 and 1, or numbers."""
    if job["problem"] == "regression":
        return float(np.corrcoef(predicted.reshape(-1), targets)[0, 1])
    if job["problem"] == "single_label":
        return float(np.mean(predicted == targets))
    return float(2 * (predicted * targets).sum() / max(1.0, predicted.sum() + targets.sum()))


def report(job: Mapping[str, Any], predicted: Array, targets: Array) -> None:
    """Prints the evaluation of a model on validation."""
    emit("evaluation", update=0, metrics={job["metric"]: compute_metric(job, predicted, targets)})


# --- transformers.Trainer -------------------------------------------------------------------------------------------


def run_trainer(job: Mapping[str, Any], splits: Mapping[str, tuple[Any, Array]], num_labels: int) -> None:
    """Fine-tunes all weights with Trainer."""
    import datasets
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(job["source"], trust_remote_code=False)
    problem = {"multi_label": "multi_label_classification", "regression": "regression"}.get(job["problem"])
    transformers.set_seed(job["seed"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        job["source"], trust_remote_code=False, num_labels=num_labels, problem_type=problem, dtype="float32"
    )

    def encode(texts: Sequence[tuple[str, ...]], targets: Array) -> Any:
        columns = map(list, zip(*texts, strict=True))
        encoded = tokenizer(*columns, truncation=True, max_length=job["max_length"])
        return datasets.Dataset.from_dict({**encoded, "labels": targets.tolist()})

    def compute_metrics(output: Any) -> dict[str, float]:
        logits = output.predictions
        predicted = {"single_label": logits.argmax(-1), "multi_label": logits > 0}.get(job["problem"], logits)
        return {"value": compute_metric(job, predicted, output.label_ids)}

    class Follower(transformers.TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
            self.value = metrics["eval_value"]
            emit("evaluation", update=state.global_step, metrics={job["metric"]: self.value})

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            emit("save", update=state.global_step)
            control.should_training_stop = control.should_training_stop or self.value >= job["target"]

    units = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # without either, bf16 is slower than fp32 on a CPU
    has_bf16 = torch.cuda.is_available() or any(getattr(torch.cpu, name, bool)() for name in units)
    period = max(1, -(-len(splits["train"][1]) // job["batch_size"]) // 2)
    arguments = transformers.TrainingArguments(
        output_dir=job["folder"],
        per_device_train_batch_size=job["batch_size"],
        per_device_eval_batch_size=64,
        learning_rate=job["learning_rate"],
        num_train_epochs=job["epochs"],
        warmup_steps=0.1,  # a share of all updates, because it is below 1
        weight_decay=0.01,
        eval_strategy="steps",
        eval_steps=period,
        save_strategy="steps",
        save_steps=period,
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
        bf16=has_bf16,
        use_cpu=not torch.accelerator.is_available(),
        train_sampling_strategy="group_by_length",
    )
    transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=encode(*splits["train"]),
        eval_dataset=encode(*splits["validation"]),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=[Follower()],
    ).train()


# --- sentence-transformers ------------------------------------------------------------------------------------------


def load_encoder(job: Mapping[str, Any]) -> Any:
    """Returns the backbone as a model of sentence-transformers, with the mean of its tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(job["source"], max_seq_length=job["max_length"])
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], trust_remote_code=False)


def make_head(job: Mapping[str, Any]) -> Any:
    """Returns scikit-learn's linear model for the labels."""
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.multiclass import OneVsRestClassifier

    if job["problem"] == "regression":
        return RidgeCV(np.logspace(-3, 3, 7))
    head = LogisticRegression(max_iter=1000)
    return head if job["problem"] == "single_label" else OneVsRestClassifier(head)


def run_probe(job: Mapping[str, Any], splits: Mapping[str, tuple[Any, Array]], num_labels: int) -> None:
    """Fits a linear model to vectors of texts; of pairs, to the products and the distances of their entries."""
    import joblib

    encoder, head = load_encoder(job), make_head(job)

    def make_features(texts: Sequence[tuple[str, ...]]) -> Array:
        columns = [encoder.encode(list(column), batch_size=64) for column in zip(*texts, strict=True)]
        return columns[0] if len(columns) == 1 else np.hstack([columns[0] * columns[1], abs(columns[0] - columns[1])])

    head.fit(make_features(splits["train"][0]), splits["train"][1])
    texts, targets = splits["validation"]
    report(job, head.predict(make_features(texts)), targets)
    encoder.save(f"{job['folder']}/model")
    joblib.dump(head, f"{job['folder']}/head.joblib")
    emit("save", update=0)


def run_setfit(job: Mapping[str, Any], splits: Mapping[str, tuple[Any, Array]], num_labels: int) -> None:
    """Trains the encoder on pairs of rows with the same and with other labels, then logistic regression on its vectors."""
    import datasets
    import setfit

    strategy = None if job["problem"] == "single_label" else "one-vs-rest"
    model = setfit.SetFitModel(model_body=load_encoder(job), model_head=make_head(job), multi_target_strategy=strategy)
    texts, targets = ([text for (text,) in splits["train"][0]], splits["train"][1])
    arguments = setfit.TrainingArguments(
        output_dir=job["folder"],
        batch_size=job["batch_size"],
        num_epochs=1,
        num_iterations=1,
        save_strategy="no",
        report_to="none",
        show_progress_bar=False,
        seed=job["seed"],
    )
    data = datasets.Dataset.from_dict({"text": texts, "label": targets.astype(int).tolist()})
    setfit.Trainer(model=model, args=arguments, train_dataset=data).train()
    texts, targets = ([text for (text,) in splits["validation"][0]], splits["validation"][1])
    report(job, np.asarray(model.predict(texts)), targets)
    model.save_pretrained(f"{job['folder']}/model")
    emit("save", update=0)


RUNNERS = {"trainer": run_trainer, "setfit": run_setfit, "probe": run_probe}


def main() -> None:
    """Runs the contender of the job that is the argument."""
    job = json.loads(sys.argv[1])
    rows = {split: read_rows(job[split], job) for split in ("train", "validation")}
    names = list_names(job, rows["train"][1])
    splits = {split: (texts, encode_labels(job, names, labels)) for split, (texts, labels) in rows.items()}
    with contextlib.redirect_stdout(sys.stderr):
        RUNNERS[job["contender"]](job, splits, len(names) or 1)


if __name__ == "__main__":
    main()
