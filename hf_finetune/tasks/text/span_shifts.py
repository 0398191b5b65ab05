"""Spans of characters that cut words because all their offsets are shifted, or because their ends are inclusive."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_finetune.tasks.text.spans import Span

FEWEST_CUT, SMALLEST_SHARE = 5, 0.2  # of spans that cut words; fewer are single mistakes
LARGEST_SHIFT = 10  # characters

# What is added to start and end: the same number to both; 1 to inclusive ends; -1 to starts that are counted from 1
SHIFTS = sorted(
    [(0, 1), (-1, 0), *((size, size) for size in range(-LARGEST_SHIFT, LARGEST_SHIFT + 1) if size)],
    key=lambda shift: abs(shift[0]) + abs(shift[1]),
)


@dataclass(kw_only=True)
class SpanShifts:
    """Counts spans, those that cut words, and how many of the latter each shift makes fit."""

    num_spans: int = 0
    num_cut: int = 0
    fits: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, spans: Sequence[Span], words: Sequence[tuple[int, int]]) -> None:
        """Counts the spans of a text. words: Where its words begin and end."""
        begins, ends = {begin for begin, _ in words}, {end for _, end in words}
        self.num_spans += len(spans)
        for span in spans:
            if span.begin in begins and span.end in ends:
                continue
            self.num_cut += 1
            begin, end = span.given
            self.fits.update(shift for shift in SHIFTS if begin + shift[0] in begins and end + shift[1] in ends)

    def describe(self) -> str:
        """Returns that the offsets look shifted, and by how much if one shift makes all fit; "" if few spans cut words."""
        if self.num_cut < FEWEST_CUT or self.num_cut <= SMALLEST_SHARE * self.num_spans:
            return ""
        found = f"{self.num_cut:,} of {self.num_spans:,} entities cut words: their offsets look shifted"
        for shift in SHIFTS:
            if self.fits[shift] == self.num_cut:
                return f"{found}, for {shift[0]:+d} at each start and {shift[1]:+d} at each end makes all of these fit words"
        return f"{found}, or counted in another text than this one"
