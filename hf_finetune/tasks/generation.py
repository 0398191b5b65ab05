"""How an encoder-decoder generates text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_finetune.config.sections import require

# The generation settings of a backbone that are kept: those that belong to its vocabulary, and those that keep it from repeating
# itself. The others (lengths, sampling) were chosen for other data.
KEPT_GENERATION_SETTINGS = (
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "no_repeat_ngram_size",
)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How text is generated, in a run and by the exported model.

    Args:
        max_length: Most tokens of a text.
        num_beams: Beams of the search; 1 is greedy.
        length_penalty: Exponent of the length by which the scores of beams are divided.
    """

    max_length: int
    num_beams: int
    length_penalty: float

    def describe(self) -> str:
        """Returns a few words for the start of a run."""
        if self.num_beams == 1:
            return "greedy"
        return f"{self.num_beams} beams, length penalty {self.length_penalty:g}"

    def configure(self, model: Any, tokenizer: Any) -> None:
        """Sets the generation settings of a model, which its folder keeps.

        InputError if the model cannot begin or end a text, or cannot generate max_length tokens.
        """
        import transformers

        config, before = model.config, model.generation_config
        kept = {name: value for name in KEPT_GENERATION_SETTINGS if (value := getattr(before, name, None)) is not None}
        if getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = kept.get("decoder_start_token_id")
        end = kept.setdefault("eos_token_id", tokenizer.eos_token_id)
        check_can_generate(config, tokenizer, end if isinstance(end, (list, tuple)) else [end], self.max_length)
        beams: dict[str, Any] = {}
        if self.num_beams > 1:
            beams = {"num_beams": self.num_beams, "length_penalty": self.length_penalty}
            if before.early_stopping is not None:
                beams["early_stopping"] = before.early_stopping
        model.generation_config = transformers.GenerationConfig(
            **{**kept, **beams, "decoder_start_token_id": config.decoder_start_token_id},
            pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=self.max_length,
        )


def check_can_generate(config: Any, tokenizer: Any, end_ids: Sequence[int | None], max_length: int) -> None:
    """Raises InputError if a model cannot begin or end a text, or cannot generate max_length tokens."""
    name = getattr(config, "_name_or_path", "")
    require(
        config.decoder_start_token_id is not None,
        "model.backbone",
        name,
        "its config has no decoder_start_token_id, the token that a generated text starts from",
    )
    target_ids = tokenizer(text_target="a")["input_ids"]
    require(
        list(end_ids) == [None] or not set(target_ids).isdisjoint(end_ids),
        "model.backbone",
        name,
        "its tokenizer does not end a target with the model's end token, so the model could not learn to stop",
    )
    limit = getattr(config, "max_decoder_position_embeddings", getattr(config, "max_position_embeddings", None))
    require(
        limit is None or max_length <= limit,
        "task.max_target_length",
        max_length,
        f"must be at most {limit}, the positions of this backbone's decoder",
    )
