"""The tables of documentation pages that are made from records: when a record changes, so does the page."""

from __future__ import annotations

from benchmarks.pages.cascade import cascade
from benchmarks.pages.choose import choose
from benchmarks.pages.implicit import implicit
from benchmarks.pages.records import Compared, Entry, compared, comparisons
from benchmarks.pages.reproduce import reproduce

__all__ = ["Compared", "Entry", "cascade", "choose", "compared", "comparisons", "implicit", "reproduce"]
