# SPDX-License-Identifier: GPL-2.0-or-later
"""Pieces of pages as trees, which are no text yet: ``report`` writes them as HTML, and the page of
``sparsebak ui`` makes the same elements of them. Whatever a tree says is text: nothing in it can
become markup.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from common.text import printable

Tree = list[Any]
"""A tag, its attributes by name, and then the children: texts and trees."""


def node(tag: str, attributes: dict[str, Any] | None = None, /, *children: Any) -> Tree:
    """An element. Attributes and children that are None are left out."""
    given = {name: str(value) for name, value in (attributes or {}).items() if value is not None}
    return [tag, given, *(child for child in children if child is not None)]


def html(tree: Tree | str) -> str:
    """A tree as HTML; a text of hostile names as text that can be seen whole."""
    if isinstance(tree, str):
        return escape(printable(tree))
    tag, attributes, *children = tree
    given = "".join(f' {name}="{escape(printable(text))}"' for name, text in attributes.items())
    return f"<{tag}{given}>{''.join(map(html, children))}</{tag}>"


def cards(figures: Iterable[tuple[str, str]]) -> Tree:
    """Figures, and what each is."""
    boxes = [
        node("div", {"class": "card"}, node("b", {}, figure), node("span", {}, what))
        for figure, what in figures
    ]
    return node("div", {"class": "cards"}, *boxes)


def scrolling(tree: Tree, label: str) -> Tree:
    """What keeps its size, and scrolls in itself on a narrow screen, also by keys."""
    return node(
        "div", {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": label}, tree
    )


def table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[Any]],
    numbers: frozenset[int] = frozenset(),
) -> Tree:
    """A table that scrolls in itself on a narrow screen; ``numbers``: columns of figures."""

    def kind(at: int) -> str | None:
        return "number" if at in numbers else None

    head = [node("th", {"scope": "col", "class": kind(at)}, text) for at, text in enumerate(heads)]
    body = [
        node(
            "tr",
            {},
            node("th", {"scope": "row"}, row[0]),
            *(node("td", {"class": kind(at)}, cell) for at, cell in enumerate(row[1:], 1)),
        )
        for row in rows
    ]
    whole = node(
        "table",
        {},
        node("caption", {"class": "hidden"}, caption),
        node("thead", {}, node("tr", {}, *head)),
        node("tbody", {}, *body),
    )
    return scrolling(whole, caption)


WORDS = {"bad": "Bad: ", "warn": "Note: ", "ok": ""}


def findings(label: str, items: Iterable[tuple[str, str]]) -> Tree:
    """What was looked at, the worst first: ``bad``, ``warn`` or ``ok``, and the words."""
    order = tuple(WORDS)
    found = sorted(items, key=lambda item: order.index(item[0]))
    return node(
        "ul",
        {"class": "findings", "aria-label": label},
        *(
            node("li", {"class": kind}, node("span", {"class": "hidden"}, WORDS[kind]), text)
            for kind, text in found
        ),
    )
