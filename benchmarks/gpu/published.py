"""Table 1 of Zhang et al. (ICML 2022), PreActResNet-18 on CIFAR-10: means and standard deviations in percent."""

from __future__ import annotations

from typing import Final, TypeAlias

#: Mean and standard deviation.
Figure: TypeAlias = tuple[float, float]

#: By cell: clean accuracy, accuracy under PGD-50-10, accuracy under AutoAttack (on all 10,000 images).
TABLE_1: Final[dict[str, tuple[Figure, Figure, Figure]]] = {
    "fast-at, 8/255": ((82.39, 0.14), (45.49, 0.21), (41.87, 0.15)),
    "fast-at-ga, 8/255": ((79.71, 0.24), (47.27, 0.22), (43.24, 0.27)),
    "fast-bat, 8/255": ((79.97, 0.12), (48.83, 0.17), (45.19, 0.12)),
    "fast-at, 16/255": ((44.15, 7.27), (21.83, 1.32), (12.49, 0.33)),
    "fast-at-ga, 16/255": ((58.29, 1.32), (26.01, 0.16), (17.97, 0.33)),
    "fast-bat, 16/255": ((68.16, 0.25), (27.69, 0.16), (18.79, 0.24)),
}
