"""HTML as a tree of elements, so that every text and attribute is escaped by construction."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element, tostring

Child = Element | str | None


def node(tag: str, *children: Child, **attributes: str) -> Element:
    """Make an element.

    Args:
        tag: Name of the element.
        children: Elements, texts, and None for nothing, in order.
        attributes: A trailing underscore is dropped and others become hyphens: ``class_``, ``aria_label``.
    """
    element = Element(tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif child is not None and len(element):
            element[-1].tail = (element[-1].tail or "") + child
        elif child is not None:
            element.text = (element.text or "") + child
    return element


def table(header: Iterable[Child], rows: Iterable[Iterable[Child]], **attributes: str) -> Element:
    """Make a table whose first column names its rows; it scrolls by itself on a narrow screen."""
    head = node("tr", *(node("th", cell, scope="col") for cell in header))
    body = []
    for row in rows:
        first, *others = row
        body.append(node("tr", node("th", first, scope="row"), *(node("td", cell) for cell in others)))
    return node("div", node("table", node("thead", head), node("tbody", *body), **attributes), class_="scroll")


def to_html(page: Element) -> str:
    """Write a whole page."""
    return "<!doctype html>\n" + tostring(page, encoding="unicode", method="html") + "\n"
