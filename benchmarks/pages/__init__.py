"""The pages of the documentation that are made from records: a changed record changes the page."""

from __future__ import annotations

from benchmarks.pages.choose import choose
from benchmarks.pages.implicit import implicit
from benchmarks.pages.records import Compared, Entry, compared, comparisons
from benchmarks.pages.reproduce import reproduce

__all__ = ["Compared", "Entry", "choose", "compared", "comparisons", "implicit", "reproduce"]
