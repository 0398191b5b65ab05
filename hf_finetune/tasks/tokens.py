"""What tasks share whose model says something of every token: loss, perplexity, token accuracy; and how a causal model writes.

B features, T tokens, V entries of the vocabulary.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_finetune.config.sections import RunConfig, check
from hf_finetune.data.features import IGNORED, Batch, Features
from hf_finetune.data.table import Table
from hf_finetune.system.errors import InputError
from hf_finetune.tasks.base import Kept, Task

if TYPE_CHECKING:
    import torch

LARGEST_EXPONENT = 700.0  # exp of more is no float64

NO_LABELS = (None, "label")  # data.label_column where it was not set


@dataclass(frozen=True, kw_only=True)
class TokenTask(Task):
    """Tokens are predicted over the whole vocabulary. `tokenizer`: where for_predictions() gave it."""

    label_smoothing: float = 0.0
    tokenizer: Any = None

    @property
    def asks(self) -> bool:
        """Whether rows are what is asked of the model, not what it is trained or measured on."""
        return self.tokenizer is not None

    def for_predictions(self, tokenizer: Any) -> "TokenTask":
        return replace(self, tokenizer=tokenizer)

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("perplexity", "token_accuracy")

    def targets(self, batch: Batch) -> "torch.Tensor":
        """[B, T] what the model should say at each token, IGNORED where nothing."""
        assert batch.labels is not None
        return batch.labels.long()

    def loss(self, outputs: "torch.Tensor", batch: Batch) -> "tuple[torch.Tensor, float]":
        """Sum of the cross entropy over all targets, and their number."""
        from hf_finetune.tasks.losses import token_entropy

        return token_entropy(outputs, self.targets(batch), self.label_smoothing)

    def keep(self, outputs: "torch.Tensor", batch: Batch) -> "list[np.ndarray[Any, Any]]":
        """Of each feature [3]: the summed cross entropy, not smoothed, how many targets are right, and their number."""
        from hf_finetune.tasks.losses import token_sums

        rows = zip(outputs, self.targets(batch), strict=True)
        return [np.array(token_sums(logits, labels)) for logits, labels in rows]

    def metrics(
        self, metric: str, kept: Kept, features: Features, table: Table, rows: "np.ndarray[Any, Any]"
    ) -> dict[str, float]:
        """Perplexity, exp of the mean cross entropy of all targets, and the share of them that are right; nan of none."""
        total, right, count = np.stack(kept).sum(0).tolist()
        if not count:
            return dict.fromkeys(self.metric_names, math.nan)
        mean = total / count
        perplexity = math.inf if mean > LARGEST_EXPONENT else math.exp(mean)
        return {"perplexity": perplexity, "token_accuracy": right / count}


@dataclass(frozen=True, kw_only=True)
class CausalTask(TokenTask):
    """Each token is predicted from those before it; text is written greedily, at most max_target_length tokens."""

    max_target_length: int

    auto_class = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"

    def targets(self, batch: Batch) -> "torch.Tensor":
        """The labels, each one token earlier: T - 1 of a block."""
        assert batch.labels is not None
        from torch.nn import functional as F

        return F.pad(batch.labels[:, 1:].long(), (0, 1), value=IGNORED)

    def prepare_model(self, model: Any, tokenizer: Any) -> None:
        """Sets how the model writes, here and in the exported folder: greedily. InputError where it sees later tokens."""
        import transformers

        before = model.generation_config
        kept = {
            name: value for name in ("bos_token_id", "eos_token_id") if (value := getattr(before, name)) is not None
        }
        ends = kept.setdefault("eos_token_id", tokenizer.eos_token_id)
        model.generation_config = transformers.GenerationConfig(
            **{**kept, "eos_token_id": self.end_ids(ends, tokenizer)},
            pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=self.max_target_length,
            do_sample=False,
        )
        check(not sees_later_tokens(model), "model.backbone", getattr(model.config, "_name_or_path", ""),
              "this backbone reads in both directions, so it cannot be trained to say what comes next")  # fmt: skip

    def end_ids(self, ends: Any, tokenizer: Any) -> Any:
        """The ids that end a text."""
        return ends

    def generate(self, model: Any, batch: Batch) -> "list[np.ndarray[Any, Any]]":
        """What the model writes behind each row, greedily. Prompts are cut at their beginning where it has no positions left
        for them."""
        ids, mask = left_padded(batch.inputs["input_ids"], batch.inputs["attention_mask"])
        limit, new = getattr(model.config, "max_position_embeddings", None), self.max_target_length
        if isinstance(limit, int) and limit > 0:
            most = max(1, limit - self.max_target_length)
            ids, mask = ids[:, -most:], mask[:, -most:]
            new = min(self.max_target_length, limit - ids.shape[1])
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        written = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, num_beams=1,
            pad_token_id=end if pad is None else pad,
        )  # fmt: skip
        return list(written[:, ids.shape[1] :].cpu().numpy())

    @property
    def predicts_by_generating(self) -> bool:
        return True


def left_padded(ids: "torch.Tensor", mask: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Ids and mask [B, T] with each row's padding moved from its end to its beginning: a causal model writes on from the last
    column."""
    import torch

    shift = ids.shape[1] - mask.sum(1, keepdim=True)
    columns = (torch.arange(ids.shape[1], device=ids.device)[None, :] - shift) % ids.shape[1]
    return ids.gather(1, columns), mask.gather(1, columns)


def sees_later_tokens(model: Any) -> bool:
    """Whether what a model says of a token depends on a later one."""
    import torch

    from hf_finetune.model import heads

    device = next(model.parameters()).device
    ids = torch.tensor([[3, 4, 3, 4], [3, 4, 3, 5]], device=device) % model.config.vocab_size
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = heads.run_model(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    finally:
        model.train(training)
    return not torch.allclose(logits[0, :3], logits[1, :3], atol=1e-5 * float(logits.abs().max()))


def check_columns(config: RunConfig, name: str, most: int, takes: str) -> None:
    """Raises InputError where the columns are not those of a task without labels."""
    columns = config.data.text_columns
    check(1 <= len(columns) <= most, "data.text_columns", list(columns), takes)
    if config.data.label_column not in NO_LABELS:
        raise InputError(f"data.label_column ({config.data.label_column}): {name} has no labels; takes null")
