"""The loss of an evaluation is a mean over batches of means over their tokens: it depends on the size of the batches."""

from pathlib import Path

from silent_faults import parts


def find(losses: list[float]) -> parts.Finding:
    """Compares the losses of the same model and rows with batches of 1 and of 8."""
    detail = f"{losses[0]:.5f} with batches of 1, {losses[1]:.5f} with batches of 8"
    return parts.Finding(verdict="right" if abs(losses[0] - losses[1]) < 2e-6 else "silently wrong", detail=detail)


def trainer(folder: Path) -> parts.Finding:
    """transformers.Trainer."""
    rows, losses = parts.encode_tags(24, seed=1), []
    for size in (1, 8):
        model = parts.make_tagger()
        training = parts.make_trainer(
            model, rows, folder, tags=True, eval_dataset=rows, per_device_eval_batch_size=size
        )
        losses.append(training.evaluate()["eval_loss"])
    return find(losses)


def sentence_transformers(folder: Path) -> parts.Finding:
    """sentence-transformers has no task with several targets a row."""
    return parts.DOES_NOT_APPLY


def ours(folder: Path) -> parts.Finding:
    """hf_finetune."""
    losses = []
    for size in (1, 8):
        settings = {"name": f"size-{size}", "train.max_updates": 2, "evaluation.batch_size": size}
        losses.append(parts.train_ours(folder, "tag", settings=settings).results["validation"]["loss"])
    return find(losses)
