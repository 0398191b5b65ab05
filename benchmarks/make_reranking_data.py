"""Makes a reranking data set of questions and the sentences that answer them.

    python benchmarks/make_reranking_data.py FOLDER OUT

FOLDER has train.jsonl and validation.jsonl with rows of a question, its context and the answers in it, as in SQuAD. The
documents of a question are the sentence with the answer, and the other sentences of the same split that TF-IDF finds most
similar to the question. validation.jsonl becomes the test; a tenth of the training contexts, with their questions, becomes
the validation. Writes train.jsonl, validation.jsonl and test.jsonl to OUT, and prints one JSON line: how well TF-IDF itself
ranks the documents.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from hf_finetune.tasks.ranking import compute_metric


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, the text that answers it, and the sentence of that text with the answer."""

    text: str
    context: str
    sentence: str


def split_sentences(context: str) -> list[str]:
    """Returns the sentences of a text in which spaces surround punctuation marks."""
    return re.split(r"(?<= [.?!]) ", context)


def read_questions(path: Path) -> list[Question]:
    """Returns the questions of a file. Of equal questions, the first."""
    questions: dict[str, Question] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        remaining = row["answers"]["answer_start"][0]
        for sentence in split_sentences(row["context"]):
            if remaining < len(sentence):
                questions.setdefault(
                    row["question"], Question(text=row["question"], context=row["context"], sentence=sentence)
                )
                break
            remaining -= len(sentence) + 1
    return list(questions.values())


def split_by_context(questions: list[Question], share: float, seed: int) -> list[list[Question]]:
    """Splits questions in two, with all questions of a context in one part. share: of the contexts, for the second part."""
    contexts = sorted({question.context for question in questions})
    drawn = np.random.default_rng(seed).permutation(len(contexts))[: round(share * len(contexts))]
    second = {contexts[index] for index in drawn}
    return [
        [question for question in questions if (question.context in second) == is_second] for is_second in (False, True)
    ]


def make_rows(
    questions: list[Question], count: int, num_documents: int, seed: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Returns `count` questions, drawn with the seed, with `num_documents` sentences in random order; and metrics of TF-IDF."""
    sentences = sorted({sentence for question in questions for sentence in split_sentences(question.context)})
    positions = {sentence: position for position, sentence in enumerate(sentences)}
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    vectors = vectorizer.fit_transform(sentences)
    generator = np.random.default_rng(seed)
    rows, rankings = [], []
    for index in generator.permutation(len(questions))[:count]:
        question = questions[index]
        similarities = (vectors @ vectorizer.transform([question.text]).T).toarray()[:, 0]
        right = positions[question.sentence]
        others = [other for other in np.argsort(-similarities, kind="stable") if other != right][: num_documents - 1]
        chosen = generator.permutation([right, *others])
        labels = (chosen == right).astype(int)
        rows.append(
            {"query": question.text, "documents": [sentences[other] for other in chosen], "labels": labels.tolist()}
        )
        rankings.append((similarities[chosen], labels))
    metrics = ("ndcg_at_10", "mrr_at_10", "map")
    means = {name: float(np.mean([compute_metric(name, *ranking) for ranking in rankings])) for name in metrics}
    return rows, {name: round(value, 4) for name, value in means.items()}


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--queries", type=int, nargs=3, default=(1300, 60, 300), help="of train, validation and test")
    parser.add_argument("--documents", type=int, nargs=3, default=(5, 20, 20), help="of each query in these splits")
    options = parser.parse_args()
    train, validation = split_by_context(read_questions(options.folder / "train.jsonl"), 0.1, seed=0)
    parts = {"train": train, "validation": validation, "test": read_questions(options.folder / "validation.jsonl")}
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    sizes = zip(options.queries, options.documents, strict=True)
    for seed, ((split, questions), size) in enumerate(zip(parts.items(), sizes, strict=True)):
        rows, found[split] = make_rows(questions, *size, seed)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (options.out / f"{split}.jsonl").write_text(text, encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
