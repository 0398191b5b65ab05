"""Cases of recipes/summarize.py and recipes/translate.py, each with T5 and BART."""

from recipe_case import Case
from support.text_pairs import SETTINGS, make_summaries, make_translations

CASES = [
    Case(
        recipe=recipe,
        family=family,
        make_data=make_data,
        settings=SETTINGS,
        # The activations of a T5 can be cached only if its entire encoder is frozen, which is one block here
        tiny_options={"layers": 1} if family == "t5" else {},
    )
    for recipe, make_data in (("summarize", make_summaries), ("translate", make_translations))
    for family in ("t5", "bart")
]
