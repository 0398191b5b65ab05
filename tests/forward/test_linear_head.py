"""The last linear layer of a model is found without knowing its family."""

import pytest
import torch
import transformers
from support import tiny

from hf_finetune.forward.linear_head import find_linear_head, returning_inputs
from hf_finetune.model import heads

LAYERS = {
    "bert": "classifier",
    "roberta": "classifier.out_proj",
    "distilbert": "classifier",
    "electra": "classifier.out_proj",
    "deberta-v2": "classifier",
    "modernbert": "classifier",
    "albert": "classifier",
    "gpt2": "score",
    "llama": "score",
    "t5": "classification_head.out_proj",
    "bart": "classification_head.out_proj",
}


@pytest.mark.parametrize(("family", "layer"), LAYERS.items())
def test_the_layer_of_a_classifier_is_found(family: str, layer: str) -> None:
    model = tiny.make_model(family)
    found = find_linear_head(model)
    assert found is not None
    assert found == (layer, model.get_submodule(layer))
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0]])}
    inputs["attention_mask"] = (inputs["input_ids"] > 0).long()
    if family == "bart":  # takes the last end token of each, of which there must be as many
        inputs["attention_mask"][:] = 1
        inputs["input_ids"][1] = inputs["input_ids"][0].flip(0).roll(-1)
    with torch.no_grad():
        logits = heads.run_model(model, inputs)
        with returning_inputs(found[1]):
            features = heads.run_model(model, inputs)
        torch.testing.assert_close(found[1](features), logits)
        torch.testing.assert_close(heads.run_model(model, inputs), logits, rtol=0, atol=0)


def test_the_layer_of_a_token_classifier_is_found() -> None:
    model = transformers.AutoModelForTokenClassification.from_config(tiny.make_config("bert", num_labels=5))
    found = find_linear_head(model)
    assert found == ("classifier", model.classifier)


def test_a_head_that_does_more_than_a_linear_layer_has_none() -> None:
    model = tiny.make_model("bert")
    model.classifier = torch.nn.Sequential(model.classifier, torch.nn.Tanh())
    assert find_linear_head(model) is None
