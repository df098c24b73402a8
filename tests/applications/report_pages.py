"""Runs to report on, and what a reader makes of the page."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any

import matplotlib.image
import numpy as np

from adv_train.evaluation import Examples
from adv_train.report import RunSummary

EVALUATION = {
    "sa": 0.975,
    "ra_pgd": 0.686,
    "ra_aa": 0.658,
    "n": 360,
    "eps": 0.2,
    "attacks": {"pgd": {"steps": 50, "restarts": 10}},
}
METRICS = [
    {"epoch": e, "lr": 0.1, "loss": 2.0 / e, "val_sa": 0.9, "val_ra": ra, "implicit_share": 0.01 * e}
    for e, ra in enumerate([0.1, 0.5, 0.3, 0.65], start=1)
]
HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&amp;$\\frac"


class Page(HTMLParser):
    """What a browser would make of the page: its tags, and the text outside of tags and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def examples(channels: int = 1, k: int = 3) -> Examples:
    generator = np.random.default_rng(0)
    clean = generator.random((k, channels, 4, 4), dtype=np.float32)
    adversarial = (clean + generator.uniform(-0.2, 0.2, clean.shape).astype(np.float32)).clip(0, 1)
    return Examples(clean, adversarial, np.arange(k), np.arange(k), np.resize([0, 2, -1], k))


def run(name: str = "fast-bat", **changes: Any) -> RunSummary:
    fields: dict[str, Any] = {
        "config": {"method": name, "eps": 0.2, "options": {"step": 5.0}},
        "evaluation": EVALUATION,
        "metrics": METRICS,
        "seconds_per_epoch": 0.347,
        "forward_equivalents": 10.94,
        "implicit_share": 0.0068,
        "examples": examples(),
    }
    return RunSummary(name, **(fields | changes))


def per_class(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "n": 10, "sa": 0.9, "ra": {"pgd": 0.1 * i}} for i, name in enumerate(names)]


def sections(html: str) -> dict[str, str]:
    return dict(re.findall(r"<section><h2>(.*?)</h2>(.*?)(?=<section><h2>|</main>)", html, flags=re.DOTALL))


def pictures(html: str) -> list[np.ndarray[Any, Any]]:
    encoded = [image["src"].removeprefix("data:image/png;base64,") for image in Page(html).all("img")]
    return [matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="png") for data in encoded]
