"""Parts for tasks that predict tokens: the loss, perplexity and token accuracy, and greedy generation by a causal model.

B features, T tokens, V entries of the vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hf_finetune.config.sections import RunConfig, require
from hf_finetune.data.features import IGNORED, Array, Batch, Features
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import CountedObjective, GeneratingScoring, Outputs
from hf_finetune.tasks.example_scores import ExampleScores, group_by_row, sum_by_row
from hf_finetune.tasks.scoring import KeptOutputs

if TYPE_CHECKING:
    import torch

METRIC_NAMES = ("perplexity", "token_accuracy")

LARGEST_EXPONENT = 700.0  # exp() of a larger number overflows float64

DEFAULT_LABEL_COLUMNS = (None, "label")  # values of data.label_column if the user did not set it


def check_columns(config: RunConfig, *, task_name: str, most: int, takes: str) -> None:
    """Raises InputError if the settings name no text column, more than `most`, or a label column."""
    columns, label = config.data.text_columns, config.data.label_column
    require(1 <= len(columns) <= most, "data.text_columns", list(columns), takes)
    require(label in DEFAULT_LABEL_COLUMNS, "data.label_column", label, f"must be null: {task_name} has no labels")


# --- loss and metrics -----------------------------------------------------------------------------------------------


def get_targets(batch: Batch, *, is_causal: bool) -> "torch.Tensor":
    """Returns the token to predict at each position, or IGNORED [B, T].

    They are the batch's labels. For a causal model each label is moved one position to the left, and the last position has no
    target.
    """
    assert batch.labels is not None
    if not is_causal:
        return batch.labels.long()
    from torch.nn import functional as F

    return F.pad(batch.labels[:, 1:].long(), (0, 1), value=IGNORED)


@dataclass(frozen=True, kw_only=True)
class TokenObjective(CountedObjective):
    """Cross entropy over the vocabulary.

    Args:
        is_causal: Each position predicts the next token, not its own.
        label_smoothing: Share of each target that is spread evenly over the vocabulary.
    """

    is_causal: bool
    label_smoothing: float = 0.0

    @property
    def reads_some_tokens(self) -> bool:
        return True

    @property
    def why_rows_are_not_shared(self) -> str:
        return "" if self.is_causal else super().why_rows_are_not_shared

    def find_targets(self, batch: Batch) -> "torch.Tensor":
        return get_targets(batch, is_causal=self.is_causal)

    @property
    def project(self) -> Callable[..., Any]:
        return project_with(self.label_smoothing)

    def count(self, batch: Batch) -> float:
        """The number of targets."""
        return float((get_targets(batch, is_causal=self.is_causal) != IGNORED).sum())

    def sum_loss(self, outputs: "torch.Tensor", batch: Batch) -> "torch.Tensor":
        """Cross entropy of logits [B, T, V], summed over all targets."""
        return sum_entropy(outputs, batch, self.find_targets, self.label_smoothing)


def project_with(label_smoothing: float) -> Callable[..., Any]:
    """Returns the function that takes the place of a vocabulary projection (TokenReading.project)."""
    from hf_finetune.tasks.projected_loss import score_projected

    return partial(score_projected, label_smoothing=label_smoothing)


def sum_entropy(
    outputs: Any, batch: Batch, find_targets: "Callable[[Batch], torch.Tensor]", label_smoothing: float
) -> "torch.Tensor":
    """Returns the cross entropy summed over all targets. outputs: Logits of all tokens, those of the tokens that are read, or
    TokenScores."""
    from hf_finetune.tasks.losses import sum_token_entropy
    from hf_finetune.tasks.projected_loss import TokenScores

    if isinstance(outputs, TokenScores):
        return outputs.total
    targets = find_targets(batch) if batch.reading is None else batch.reading.targets
    assert targets is not None
    return sum_token_entropy(outputs, targets, label_smoothing)


def score_batch(outputs: Any, batch: Batch, *, is_causal: bool) -> list[Array]:
    """Scores what a model returned as score_sequences() does. outputs: As in sum_entropy()."""
    from hf_finetune.tasks.projected_loss import TokenScores, iterate_parts, score_logits

    reading = batch.reading
    if reading is None:
        return score_sequences(outputs, get_targets(batch, is_causal=is_causal))
    assert reading.targets is not None
    targets = reading.targets[0]
    scores = outputs if isinstance(outputs, TokenScores) else score_logits(iterate_parts(outputs[0]), targets)
    assert scores.entropies is not None
    assert scores.is_correct is not None
    sums = [reading.sum_by_sequence(each) for each in (scores.entropies, scores.is_correct, targets != IGNORED)]
    return list(np.stack(sums, -1))


def score_sequences(outputs: "torch.Tensor", targets: "torch.Tensor") -> list[Array]:
    """Scores logits [B, T, V] against targets [B, T].

    Returns for each sequence the summed cross entropy without smoothing, the number of correct tokens, and the number of targets
    [3].
    """
    from hf_finetune.tasks.losses import score_tokens

    return [np.array(score_tokens(logits, labels)) for logits, labels in zip(outputs, targets, strict=True)]


def compute_token_metrics(scores: Outputs) -> dict[str, float]:
    """Returns perplexity, exp(mean cross entropy), and the share of correct tokens, over all targets; nan without any.

    scores: of each feature, as score_sequences() returns them.
    """
    total, num_correct, count = np.asarray(scores).sum(0).tolist()
    if not count:
        return dict.fromkeys(METRIC_NAMES, math.nan)
    mean = total / count
    perplexity = math.inf if mean > LARGEST_EXPONENT else math.exp(mean)
    return {"perplexity": perplexity, "token_accuracy": num_correct / count}


def describe_token_scores(scores: Outputs, features: Features, indices: Array) -> ExampleScores:
    """Returns the scores of the rows that features were made of. scores: as compute_token_metrics() takes them."""
    rows, places = group_by_row(features, indices)
    numbers = sum_by_row(np.asarray(scores), places, len(rows))
    with np.errstate(invalid="ignore"):
        losses = numbers[:, 0] / numbers[:, 2]
    return ExampleScores(
        rows=rows,
        metrics={
            "loss": ("ratio", "entropy", "tokens"),
            "perplexity": ("perplexity", "entropy", "tokens"),
            "token_accuracy": ("ratio", "correct", "tokens"),
        },
        columns=("entropy", "correct", "tokens"),
        numbers=numbers,
        losses=losses,
    )


# --- generation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CausalScoring(GeneratingScoring):
    """Scoring of a causal model: token metrics for evaluation, greedily generated text for predictions.

    Args:
        max_target_length: Most tokens that are generated.
        pad_token_id: What the prompts of a batch are padded with. for_inference() sets it.
    """

    max_target_length: int
    pad_token_id: int | None = None

    @property
    def reads_some_tokens(self) -> bool:
        return True

    @property
    def metric_names(self) -> tuple[str, ...]:
        return METRIC_NAMES

    def reduce(self, outputs: "torch.Tensor", batch: Batch) -> list[Array]:
        """Sums over the targets of a feature, as score_sequences() returns them [3]."""
        return score_batch(outputs, batch, is_causal=True)

    def compute_metrics(
        self, metric: str, outputs: Outputs, features: Features, table: Table, indices: Array
    ) -> dict[str, float]:
        return compute_token_metrics(outputs)

    def describe_examples(
        self, kept: KeptOutputs, features: Features, table: Table, names: Sequence[str]
    ) -> ExampleScores:
        return describe_token_scores(kept.outputs, features, kept.indices)

    def for_inference(self, tokenizer: Any) -> Self:
        pad = tokenizer.pad_token_id
        return replace(self, pad_token_id=tokenizer.eos_token_id if pad is None else pad)

    def generate(self, model: Any, batch: Batch) -> list[Array]:
        """Continues each sequence greedily. A prompt loses its beginning if the model has too few positions for it and the
        generated tokens."""
        ids, mask = pad_left(batch.inputs["input_ids"], batch.inputs["attention_mask"])
        num_positions, num_new = getattr(model.config, "max_position_embeddings", None), self.max_target_length
        if isinstance(num_positions, int) and num_positions > 0:
            longest_prompt = max(1, num_positions - self.max_target_length)
            ids, mask = ids[:, -longest_prompt:], mask[:, -longest_prompt:]
            num_new = min(self.max_target_length, num_positions - ids.shape[1])
        generated = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=num_new,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad_token_id,
        )
        return list(generated[:, ids.shape[1] :].cpu().numpy())


def pad_left(ids: "torch.Tensor", mask: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Moves the padding of each row of ids and mask [B, T] from its end to its beginning: a causal model continues from the last
    column."""
    import torch

    shift = ids.shape[1] - mask.sum(1, keepdim=True)
    columns = (torch.arange(ids.shape[1], device=ids.device)[None, :] - shift) % ids.shape[1]
    return ids.gather(1, columns), mask.gather(1, columns)


EndIds = int | Sequence[int] | None  # as GenerationConfig.eos_token_id takes them


def get_end_ids(model: Any, tokenizer: Any) -> EndIds:
    """Returns the token ids that end a generated text: the model's own, else the tokenizer's eos token."""
    own = model.generation_config.eos_token_id
    return tokenizer.eos_token_id if own is None else own


def set_greedy_generation(model: Any, tokenizer: Any, *, end_ids: EndIds, max_new_tokens: int) -> None:
    """Replaces the model's generation settings, which the exported folder carries, by greedy search.

    The first token (bos) stays the model's own.
    """
    import transformers

    bos = model.generation_config.bos_token_id
    kept = {} if bos is None else {"bos_token_id": bos}
    model.generation_config = transformers.GenerationConfig(
        **kept,
        eos_token_id=end_ids,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )


def check_is_causal(model: Any) -> None:
    """Raises InputError if the model's output for a token depends on a later token."""
    import torch

    from hf_finetune.model import heads
    from hf_finetune.model.structure import eval_mode

    device = next(model.parameters()).device
    ids = torch.tensor([[3, 4, 3, 4], [3, 4, 3, 5]], device=device) % model.config.vocab_size
    with eval_mode(model), torch.no_grad():
        logits = heads.run_model(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    if not torch.allclose(logits[0, :3], logits[1, :3], atol=1e-5 * float(logits.abs().max())):
        name = getattr(model.config, "_name_or_path", "")
        raise InputError(
            f"model.backbone ({name}): must be a causal model; this one reads in both directions, so it cannot be trained to "
            "predict the next token"
        )
