"""Summarization and translation, each by T5 and BART."""

from recipe_case import Case
from support.text_pairs import SETTINGS, make_summaries, make_translations

CASES = [
    Case(
        task=task,
        recipe=recipe,
        family=family,
        make_data=make_data,
        settings=SETTINGS,
        tiny_options={"layers": 1} if family == "t5" else {},  # a T5 is replayed from its whole encoder only
    )
    for task, recipe, make_data in (
        ("summarization", "summarize", make_summaries),
        ("translation", "translate", make_translations),
    )
    for family in ("t5", "bart")
]
