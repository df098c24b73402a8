"""Published seconds of an epoch, beside which `adv-train bench` shows its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adv_train.reproduction.published import PublishedTable

#: Table, its network, and the name of a method's preset, for CIFAR-10 at 8/255 with the method's default options.
_SOURCES: Final = (
    ("table-1", "PreActResNet-18", "cifar10-8-{}"),
    ("benchmark-8", "ResNet-18", "cifar10-8-{}-benchmark"),
)
#: Their forward passes take equally many floating-point operations.
_NETWORKS: Final = ("preact-resnet-18", "resnet-18")


def published_seconds(titles: Sequence[str], model: str, image_size: int, eps: float) -> dict[str, dict[str, float]]:
    """Return published seconds of an epoch by title, for each table that has some.

    The keys name the table, its network and the hardware. There are none for other settings than those of the tables:
    CIFAR-10 at 8/255 with a residual network of 18 layers.

    Args:
        titles: Names of rows of the benchmark. A variant of a method is in no table.
        model: Network of the benchmark.
        image_size: Side of its images.
        eps: Radius of its attack.
    """
    if model not in _NETWORKS or image_size != 32 or abs(eps - 8 / 255) > 1e-9:
        return {}
    found = {}
    for table, network, preset in _SOURCES:
        cells = PublishedTable.find(table).cells
        names = {title: preset.format(title) for title in titles}
        seconds = {
            title: cells[name]["seconds"].mean for title, name in names.items() if "seconds" in cells.get(name, ())
        }
        if seconds:
            found[f"published, {table}: {network}, authors' GPU"] = seconds
    return found
