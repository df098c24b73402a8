"""The recipes of the presets against the settings that the authors' public code uses on CIFAR-10 at 8/255."""

from __future__ import annotations

from typing import Any

import pytest

from adv_train.config import resolve

#: Epochs, batch size, largest learning rate, schedule, whether the momentum moves with it, and weight decay. Torch's
#: CyclicLR and OneCycleLR move the momentum unless `cycle_momentum` is off; a learning rate set by hand leaves it.
CYCLIC, BY_HAND = ("triangular", True), ("triangular", False)
STEPS = ("multistep", False)
Recipe = tuple[int, int, float, tuple[str, bool], float]
PUBLISHED: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "n-fgsm": ((30, 128, 0.2, CYCLIC, 5e-4), {"width": 2, "step": None}),
    "n-fgsm-qub": ((30, 128, 0.2, CYCLIC, 5e-4), {"train_loss": "qub", "width": 2}),
    "free-at": ((26, 128, 0.1, STEPS, 2e-4), {"repeats": 8}),
    "trades": ((76, 128, 0.1, STEPS, 2e-4), {"train_loss": "trades", "steps": 10, "start": "gaussian"}),
    "mart": ((120, 128, 0.01, STEPS, 3.5e-3), {"train_loss": "mart", "steps": 10}),
    "trades-awp": ((200, 128, 0.1, STEPS, 5e-4), {"train_loss": "trades", "steps": 10}),
    "gat": ((100, 64, 0.1, STEPS, 5e-4), {"coefficient": 10, "late_factor": 4, "attack_mode": "eval"}),
    "nuat": ((100, 64, 0.1, CYCLIC, 5e-4), {"coefficient": 4, "attack_mode": "eval"}),
    "fgsm-pgi": (
        (110, 128, 0.1, STEPS, 5e-4),
        {"memory": "mep", "memory_decay": 0.3, "coefficient": 10, "reset_epochs": 40},
    ),
    "liet": ((100, 128, 0.1, ("one-cycle", True), 5e-4), {"refresh": 20, "coefficient": None, "smoothing": None}),
    "sora": ((30, 128, 0.2, CYCLIC, 5e-4), {"alignment": 0.99, "alignment_rate": 0.05}),
    "zerograd": ((30, 128, 0.2, BY_HAND, 5e-4), {"quantile": 0.35}),
    "multigrad": ((30, 128, 0.2, BY_HAND, 5e-4), {"points": 3}),
    "aaer": ((30, 128, 0.2, CYCLIC, 5e-4), {"penalty": 1, "fall": None, "variation": None}),
    "elle": ((30, 128, 0.2, CYCLIC, 5e-4), {"coefficient": None, "start": "zero"}),
    "atas": ((30, 128, 0.1, STEPS, 5e-4), {"warmup_epochs": 5, "memory_decay": 0.5, "attack_mode": "eval"}),
    "fast-bat": ((20, 128, 0.2, CYCLIC, 5e-4), {"steps": 2, "curvature": 10, "ig_weight": 1}),
}
#: What some recipes have besides.
BESIDES: dict[str, dict[str, Any]] = {
    "nuat": {"optimizer.peak_at": 0.25, "training.ema": 0.9998},
    "liet": {"training.ema": 0.9995, "optimizer.momentum": 0.95},
    "trades-awp": {"training.weight_perturbation": 0.005},
    "gat": {"optimizer.milestones": (71, 86)},  # the code divides after epochs that it numbers 70 and 85, from 0
    "fgsm-pgi": {"optimizer.milestones": (100, 105)},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_recipe(name: str) -> None:
    config = resolve({}, preset=f"cifar10-8-{name}")
    (epochs, batch, rate, (schedule, cycles), decay), options = PUBLISHED[name]
    assert config.threat.eps == 8 / 255 and config.threat.norm == "linf"
    assert (config.training.epochs, config.training.batch_size) == (epochs, batch)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("sgd", rate, decay)
    assert (config.optimizer.schedule, config.optimizer.momentum_cycling) == (schedule, cycles)
    assert config.data.mixup == 0
    for option, value in options.items():
        found = getattr(config.method, option)
        assert (str(found) if isinstance(value, str) else found) == value, option
    for key, value in BESIDES.get(name, {}).items():
        section, field = key.split(".")
        assert getattr(getattr(config, section), field) == value, key


@pytest.mark.parametrize("levels", [8, 16])
def test_labels_of_fgsm_pgi_keep_six_tenths(levels: int) -> None:
    loss: Any = resolve({}, preset="cifar10-8-fgsm-pgi").changed({"eps": f"{levels}/255"}).method
    for objective in (loss.train_loss, loss.attack_loss):
        assert 1 - objective.smoothing + objective.smoothing / 10 == pytest.approx(0.6)
