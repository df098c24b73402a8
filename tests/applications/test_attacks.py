"""The judging attacks, against closed forms and hand-written loops; and that they leave everything as it was."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack import AutoAttack
from torch import Tensor, nn

from adv_train import attacks
from adv_train.attacks import ATTACKS, autoattack, pgd
from adv_train.attacks.judging import Judging, suitable_threads
from adv_train.attacks.masking import Progress
from adv_train.errors import UserError
from adv_train.evaluate import evaluate
from adv_train.threat import Threat


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_case(seed: int, classes: int, n: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier with some images, labelled at random among its two best classes."""
    generator = random(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, classes, dtype=dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    x = torch.rand(n, 1, 3, 4, generator=generator, dtype=dtype)
    top = model(x).detach().topk(2).indices
    first = torch.rand(n, generator=generator) < 0.8
    return model, x, torch.where(first, top[:, 0], top[:, 1])


def worst_margins(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The exact worst case: a linear function of an image is least at a corner of the box, coordinate by coordinate.

    Returns the smallest value over the box of logit y minus the best other logit, in float64.
    """
    layer = model[1]  # type: ignore[index]
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    low, high = (x.double() - eps).clamp(min=0).flatten(1), (x.double() + eps).clamp(max=1).flatten(1)
    worst = []
    for other in range(len(bias)):
        difference = weight[y] - weight[other]
        corner = torch.where(difference > 0, low, high)
        worst.append((difference * corner).sum(1) + bias[y] - bias[other])
    margins = torch.stack(worst, 1)
    return margins.scatter(1, y[:, None], torch.inf).amin(1)


class Network(nn.Module):
    """BatchNorm and a curved non-linearity, with its running statistics set, in train mode."""

    def __init__(self, seed: int = 0, classes: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.norm = nn.BatchNorm2d(1)
            self.first = nn.Linear(12, 16)
            self.second = nn.Linear(16, classes)
        self.double()
        self.seen: list[bool] = []
        self.norm.running_mean = torch.full((1,), 0.4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.training or self.norm.training)
        logits: Tensor = self.second(torch.tanh(3 * self.first(self.norm(x).flatten(1))))
        return 4 * logits


def network_case(n: int = 40, seed: int = 0) -> tuple[Network, Tensor, Tensor]:
    model = Network(seed)
    x = torch.rand(n, 1, 3, 4, generator=random(seed), dtype=torch.float64)
    with torch.no_grad():
        y = copy.deepcopy(model).eval()(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # One sample that is wrong before any attack.
    return model, x, y


# --- PGD -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 0.4))
def test_pgd_finds_the_exact_robust_accuracy_of_a_two_class_linear_model(seed: int, eps: float) -> None:
    model, x, y = linear_case(seed, classes=2, n=30, dtype=torch.float64)
    margins = worst_margins(model, x, y, eps)
    robust, _ = pgd(model, x, y, eps=eps, steps=10, restarts=1, generator=random(seed))
    clear = margins.abs() > 1e-9
    assert torch.equal(robust[clear], margins[clear] > 0)


def test_a_sample_is_broken_when_any_restart_breaks_it_as_in_a_loop_that_drops_nothing() -> None:
    model, x, y = network_case()
    eps, steps, restarts = 0.1, 3, 5
    sizes: list[int] = []
    counted = model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    robust, _ = pgd(model, x, y, eps=eps, steps=steps, restarts=restarts, generator=random(1))
    counted.remove()

    judge = copy.deepcopy(model).eval()
    generator = random(1)
    survived = [judge(x).argmax(1) == y]
    for _ in range(restarts):
        delta = (torch.rand(x.shape, dtype=x.dtype, generator=generator) * 2 - 1) * eps
        delta = torch.min(torch.max(delta, -x), 1 - x)
        for _ in range(steps):
            delta.requires_grad_()
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(judge(x + delta), y), delta)
            delta = (delta.detach() + eps / 4 * gradient.sign()).clamp(-eps, eps)
            delta = torch.min(torch.max(delta, -x), 1 - x)
        survived.append(judge(x + delta).argmax(1) == y)

    assert torch.equal(robust, torch.stack(survived).all(0))
    # A restart shows the model what survived the earlier ones, and nothing else: the steps, and the last iterate.
    left = [int(torch.stack(survived[: number + 1]).all(0).sum()) for number in range(restarts)]
    assert sum(sizes) == len(x) + (steps + 1) * sum(left)
    # The case tells the rules apart: some sample falls to one restart and withstands the last, and some remains.
    assert (survived[-1] & ~robust & survived[0]).any()
    assert robust.any()


def test_broken_samples_leave_the_batch() -> None:
    model, x, y = network_case()
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    robust, _ = pgd(model, x, y, eps=0.1, steps=3, restarts=5, generator=random(1))
    assert sizes[0] == len(x)
    assert sizes == sorted(sizes, reverse=True)
    assert int(robust.sum()) <= sizes[-1] < sizes[1] < len(x)


def test_pgd_does_not_depend_on_the_batch_size() -> None:
    model, x, y = network_case()
    whole = pgd(model, x, y, eps=0.1, steps=3, restarts=4, generator=random(2))
    pieces = pgd(model, x, y, eps=0.1, steps=3, restarts=4, generator=random(2), batch_size=7)
    assert torch.equal(whole[0], pieces[0])
    assert torch.allclose(whole[1], pieces[1], atol=1e-12)


def test_what_pgd_returns_is_in_the_budget_and_breaks_what_it_says() -> None:
    model, x, y = network_case()
    x[:5] = 0.0
    x[5:10] = 1.0
    robust, adversarial = pgd(model, x, y, eps=0.1, steps=3, restarts=4, generator=random(2))
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert (adversarial - x).abs().max() <= 0.1 + 1e-12
    judge = copy.deepcopy(model).eval()
    assert torch.equal(judge(adversarial).argmax(1) == y, robust)
    wrong = judge(x).argmax(1) != y
    assert wrong.any() and torch.equal(adversarial[wrong], x[wrong])


def test_without_a_budget_only_the_wrong_samples_are_broken() -> None:
    model, x, y = network_case()
    robust, adversarial = pgd(model, x, y, eps=0.0, steps=2, restarts=1, generator=random(0))
    assert torch.equal(robust, torch.arange(len(x)) > 0)
    assert torch.equal(adversarial, x)


def test_a_logit_that_is_not_a_number_is_no_correct_answer() -> None:
    class Poisoned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1)
            return logits + torch.where(x[:, :1, 0, 0] > 0.5, torch.nan, 0.0)

    x = torch.full((2, 1, 3, 4), 0.2)
    x[1, 0, 0, 0] = 0.9
    robust, _ = pgd(Poisoned(), x, torch.tensor([0, 0]), eps=0.1, steps=1, restarts=1, generator=random(0))
    assert robust.tolist() == [True, False]


def test_a_gradient_that_is_not_a_number_stops_the_judge() -> None:
    class Kinked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([total + (total * 0).sqrt(), -total], 1)

    x = torch.full((2, 1, 3, 4), 0.5)
    with pytest.raises(RuntimeError, match="not finite"):
        pgd(Kinked(), x, torch.tensor([0, 0]), eps=0.1, steps=1, restarts=1, generator=random(0))


class Hidden(nn.Module):
    """A linear model behind something that hides its gradient."""

    def __init__(self, how: str, model: nn.Module) -> None:
        super().__init__()
        self.how, self.model = how, model

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "rounding":
            return self.model((x * 15).round() / 15)
        if self.how == "rounding all but a pixel":
            return self.model(torch.cat([x[..., :1], (x[..., 1:] * 15).round() / 15], -1))
        if self.how == "detach":
            return self.model(x.detach())
        if self.how == "no_grad":
            with torch.no_grad():
                return self.model(x)
        if self.how == "saturation":
            return 1e5 * self.model(x)
        if self.how == "decision":
            return nn.functional.one_hot(self.model(x).argmax(1), 4).float()
        if self.how == "reversal":
            return self.model(2 * x.detach() - x)
        return self.model(x)


def wide_case(how: str) -> tuple[nn.Module, Tensor, Tensor]:
    generator = random(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.rand(40, 1, 2, 128, generator=generator)
    return Hidden(how, model), x, model(x).argmax(1)


@pytest.mark.parametrize(
    "how", ["rounding", "rounding all but a pixel", "detach", "no_grad", "saturation", "decision", "reversal"]
)
def test_a_model_that_hides_its_gradient_is_not_called_robust_without_a_word(how: str) -> None:
    model, x, y = wide_case(how)
    with pytest.warns(RuntimeWarning, match="Masked gradients"):
        robust, _ = pgd(model, x, y, eps=0.03, steps=5, restarts=1, generator=random(0))
    bare, _ = pgd(model.model, x, y, eps=0.03, steps=5, restarts=1, generator=random(0))  # type: ignore[arg-type]
    assert robust.sum() > bare.sum() + 10


@pytest.mark.parametrize(("rest", "warned"), [(-0.01, False), (-3.0, True)])
def test_a_loss_that_rises_is_progress_though_the_margin_does_not_fall(rest: float, warned: bool) -> None:
    """In a barely trained model: the label's logit rises by 0.01, and so do those of seven classes far behind."""
    before = torch.tensor([0.2, 0.0] + 7 * [-3.0]).repeat(40, 1)
    after = torch.tensor([0.21, 0.0] + 7 * [rest]).repeat(40, 1)
    y, watch = torch.zeros(40, dtype=torch.int64), Progress()
    watch.begin(before, y, torch.ones(40, 1, 2, 2))
    watch.end(after, y)
    with pytest.warns(RuntimeWarning, match="nor raised the loss of 100%") if warned else nullcontext():
        watch.warn()


def test_a_gradient_that_is_there_raises_no_alarm() -> None:
    for eps in (0.0, 1e-12, 1e-4, 0.03, 0.5):
        pgd(*wide_case("nothing"), eps=eps, steps=5, restarts=1, generator=random(0))
        pgd(*network_case(), eps=eps, steps=1, restarts=1, generator=random(0))


@pytest.mark.parametrize(("dtype", "classes"), [(torch.float16, 2), (torch.bfloat16, 2), (torch.bfloat16, 4)])
def test_a_model_in_half_precision_has_the_exact_robust_accuracy_of_its_weights(
    dtype: torch.dtype, classes: int
) -> None:
    eps = 0.1
    model, x, y = linear_case(0, classes=classes, n=60 if classes == 2 else 16, dtype=torch.float32)
    half = model.to(dtype)
    x = x.to(dtype).float()
    margins = worst_margins(half, x, y, eps)
    clear = margins.abs() > 0.2  # Wider than the rounding of images and logits in bfloat16.
    for images in (x, x.to(dtype)) if classes == 2 else (x.to(dtype),):
        if classes == 2:
            robust, adversarial = pgd(half, images, y, eps=eps, steps=10, restarts=1, generator=random(0))
        else:
            robust, adversarial = autoattack(half, images, y, eps=eps, seed=0)
        assert adversarial.dtype == torch.float32 and (adversarial - x).abs().max() <= eps + 1e-6
        assert torch.equal(robust[clear], margins[clear] > 0)
        assert robust[clear].any() and not robust[clear].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sure_model_in_half_precision_is_attacked_although_its_loss_underflows(dtype: torch.dtype) -> None:
    model, x, y = linear_case(1, classes=3, n=30, dtype=torch.float32)
    y = model(x).argmax(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(64)  # A power of two: the same decisions, with margins of 100.
    robust, _ = pgd(model.to(dtype), x, y, eps=1.0, steps=10, restarts=1, generator=random(0))
    assert not robust[worst_margins(model, x, y, 1.0) < -20].any()


def test_a_model_that_converts_images_itself_gets_them_at_full_resolution() -> None:
    class Converts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 4, dtype=torch.bfloat16)
            self.seen: set[torch.dtype] = set()

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add(x.dtype)
            return self.linear(x.flatten(1).to(torch.bfloat16))

    model = Converts()
    pgd(model, torch.rand(3, 1, 3, 4), torch.zeros(3, dtype=torch.int64), eps=0.1, steps=1, generator=random(0))
    assert model.seen == {torch.float32}


# --- the registry ----------------------------------------------------------------------------------------------------


def test_every_attack_is_made_by_its_name_and_says_what_it_is() -> None:
    assert {"pgd", "autoattack"} <= set(ATTACKS.names())
    for name in ATTACKS.names():
        assert ATTACKS.describe(name) and ATTACKS.name_of(ATTACKS.create(name)) == name
    defaults = {name: leaf.default for name, leaf in ATTACKS.options("pgd").items()}
    assert defaults == {"steps": 50, "restarts": 10, "step": None}
    assert ATTACKS.create("pgd", steps=3) == attacks.PGD(steps=3)
    with pytest.raises(UserError, match="'pgd' has no option `step_s`; it has steps, restarts, step"):
        ATTACKS.create("pgd", step_s=3)


def test_a_new_attack_is_a_class_with_a_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ATTACKS, "_makers", {name: ATTACKS.find(name) for name in ATTACKS.names()})

    @ATTACKS.register("grey")
    @dataclass(frozen=True)
    class Grey(attacks.Attack):
        def judge(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, judging: Judging) -> attacks.Verdicts:
            grey = threat.eps * (0.5 - x).sign() + x
            predicted = model(grey).argmax(1)
            return attacks.Verdicts(predicted == y, grey, predicted, {"level": 0.5})

    model, x, y = linear_case(0, classes=4, n=20, dtype=torch.float32)
    found = evaluate(model, x, y, Threat("linf", 0.01), attacks=["grey", "pgd"])
    assert list(found.attacks) == ["grey", "pgd"] and found.attacks["grey"].settings == {"level": 0.5}
    assert found.summary()["ra"]["grey"] == found.attacks["grey"].accuracy
    with pytest.raises(ValueError, match="Two are called attack 'pgd'"):
        ATTACKS.register("pgd")(Grey)


# --- both attacks ----------------------------------------------------------------------------------------------------


def run_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float = 0.1) -> tuple[Tensor, Tensor]:
    return pgd(model, x, y, eps=eps, steps=2, restarts=2, generator=random(0))


def run_autoattack(model: nn.Module, x: Tensor, y: Tensor, eps: float = 0.4) -> tuple[Tensor, Tensor]:
    return autoattack(model, x, y, eps=eps, seed=0)


BOTH = pytest.mark.parametrize("attack", [run_pgd, run_autoattack])
Attack = Callable[..., tuple[Tensor, Tensor]]


@BOTH
def test_the_model_is_judged_in_eval_mode_and_comes_back_as_it_was(attack: Attack) -> None:
    model, x, y = network_case()
    model.train()
    model.first.eval()  # A mixture that `model.train()` would not bring back.
    model.first.weight.requires_grad_(False)
    model.second.weight.grad = torch.ones_like(model.second.weight)
    before = copy.deepcopy(model.state_dict())
    attack(model, x, y)
    assert model.seen and not any(model.seen)
    assert [module.training for module in (model, model.norm, model.first, model.second)] == [True, True, False, True]
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert [name for name, flag in flags.items() if not flag] == ["first.weight"]
    gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients == {"second.weight"} and (model.second.weight.grad == 1).all()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@BOTH
def test_the_model_comes_back_as_it_was_from_an_attack_that_fails(attack: Attack) -> None:
    class Fragile(Network):
        def forward(self, x: Tensor) -> Tensor:
            if len(self.seen) == 3:
                raise ValueError("out of memory")
            return super().forward(x)

    model, x, y = Fragile(), *network_case()[1:]
    model.first.eval()
    with pytest.raises(ValueError, match="out of memory"):
        attack(model, x, y, eps=0.01)
    assert model.training and not model.first.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@BOTH
def test_the_arguments_and_the_global_random_state_are_left_alone(attack: Attack) -> None:
    model, x, y = network_case()
    x_before, y_before = x.clone(), y.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20250101)  # A state that no attack leaves behind.
        state = torch.random.get_rng_state()
        attack(model, x, y)
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(x, x_before) and torch.equal(y, y_before) and not x.requires_grad


@BOTH
def test_a_small_model_is_attacked_on_one_thread(attack: Attack) -> None:
    model, x, y = network_case()
    threads: set[int] = set()
    model.register_forward_pre_hook(lambda *_: threads.add(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        attack(model, x[:4], y[:4])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert 1 in threads


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:0], y[:0]), "N >= 1"),
        (lambda x, y: ((x * 255).byte(), y), "Divide uint8"),
        (lambda x, y: (x[:, 0], y), "shape"),
        (lambda x, y: (x * 2 - 0.5, y), "Normalise inside the model"),
        (lambda x, y: (x * torch.nan, y), r"in \[0, 1\]"),
        (lambda x, y: (x, y[1:]), "one int64 label"),
        (lambda x, y: (x, y.float()), "one int64 label"),
    ],
)
def test_samples_that_cannot_be_attacked_are_refused(
    attack: Attack, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], message: str
) -> None:
    model, x, y = network_case()
    with pytest.raises(UserError, match=message):
        attack(model, *change(x, y))


@BOTH
@pytest.mark.parametrize("eps", [-0.1, 1.5, float("nan")])
def test_a_budget_outside_the_unit_range_is_refused(attack: Attack, eps: float) -> None:
    with pytest.raises(UserError, match="eps"):
        attack(*network_case(), eps=eps)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"restarts": 0}, {"step": 0.0}, {"step": float("nan")}])
def test_pgd_refuses_settings_that_are_no_attack(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(bad))}` must be a .*number"):
        pgd(*network_case(), eps=0.1, generator=random(0), **bad)  # type: ignore[arg-type]


# --- AutoAttack ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "classes"), [(0, 4), (1, 6)])
def test_autoattack_finds_the_exact_robust_accuracy_of_a_linear_model(seed: int, classes: int) -> None:
    eps = 0.06
    model, x, y = linear_case(seed, classes=classes, n=60, dtype=torch.float32)
    robust, adversarial = autoattack(model, x, y, eps=eps, seed=3)
    margins = worst_margins(model, x, y, eps)
    clear = margins.abs() > 1e-3  # In the logits' units, which are near 1: float32 decides nothing closer.
    assert torch.equal(robust[clear], margins[clear] > 0)
    correct = model(x).argmax(1) == y
    assert correct.any() and not correct.all() and robust.any() and not robust.all()
    assert not (robust & ~correct).any()
    assert (adversarial - x).abs().max() <= eps + 1e-6
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert torch.equal(adversarial[robust], x[robust])
    # FAB calls `.backward()`, and it ran, since some samples survived.
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_it_is_the_authors_attack_bit_for_bit() -> None:
    # Every image falls, the last of them only to the targeted APGD; so this is quick and each image returned counts.
    model = Network(3, classes=10).float().eval()
    x = torch.rand(12, 1, 3, 4, generator=random(3))
    y = model(x).argmax(1)
    robust, adversarial = autoattack(model, x, y, eps=0.16, seed=0, batch_size=8)
    assert not robust.any()
    with torch.random.fork_rng(devices=[]), suitable_threads(model, x):
        theirs, _ = AutoAttack(model, eps=0.16, seed=0).run_standard_evaluation(x, y, batch_size=8)
    assert torch.equal(adversarial, theirs)


@pytest.mark.parametrize(("classes", "targets"), [(4, 3), (10, 9), (12, 9)])
def test_no_more_classes_are_targeted_than_there_are(
    classes: int, targets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def spy(attack: AutoAttack, x: Tensor, y: Tensor, *, batch_size: int) -> tuple[Tensor, Tensor]:
        seen.append((attack.apgd_targeted.n_target_classes, attack.fab.n_target_classes))
        return x, y

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", spy)
    autoattack(*linear_case(0, classes=classes, n=20, dtype=torch.float32), eps=0.1, seed=0)
    assert seen == [(targets, targets)]


def test_autoattack_takes_a_sample_of_one_and_a_sample_without_survivors() -> None:
    model, x, y = linear_case(2, classes=4, n=20, dtype=torch.float32)
    correct = model(x).argmax(1) == y
    assert not autoattack(model, x, y, eps=1.0, seed=0)[0].any()
    one = correct.nonzero()[0]
    assert not autoattack(model, x[one], y[one], eps=1.0, seed=0)[0].any()
    robust, adversarial = autoattack(model, x[~correct], y[~correct], eps=0.1, seed=0)
    assert not robust.any() and torch.equal(adversarial, x[~correct])


def test_without_a_budget_autoattack_breaks_only_the_wrong_samples() -> None:
    model, x, y = network_case()
    assert torch.equal(autoattack(model, x, y, eps=0.0, seed=0)[0], torch.arange(len(x)) > 0)


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes_for_the_targeted_loss_are_refused(classes: int) -> None:
    model, x, y = linear_case(0, classes=classes, n=5, dtype=torch.float32)
    with pytest.raises(UserError, match=f"{classes} classes"):
        autoattack(model, x, y, eps=0.1, seed=0)


def test_an_attack_that_leaves_its_budget_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = linear_case(0, classes=4, n=5, dtype=torch.float32)
    for left in (0.2, torch.nan):
        monkeypatch.setattr(
            AutoAttack, "run_standard_evaluation", lambda *_, left=left, **__: ((x + left).clamp(0, 1), y)
        )
        with pytest.raises(RuntimeError, match="left its budget"):
            autoattack(model, x, y, eps=0.1, seed=0)


def test_an_image_that_our_own_forward_pass_gets_right_is_robust(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = linear_case(0, classes=4, n=20, dtype=torch.float32)
    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", lambda *_, **__: (x.clone(), (y + 1) % 4))
    assert torch.equal(autoattack(model, x, y, eps=0.1, seed=0)[0], model(x).argmax(1) == y)


def test_autoattack_is_quiet_and_hands_on_the_warnings_of_its_checks(capfd: pytest.CaptureFixture[str]) -> None:
    class Flat(nn.Module):
        """Steps of height 1: right until moved a little, and without a gradient anywhere."""

        def forward(self, x: Tensor) -> Tensor:
            total = (x.mean((1, 2, 3)) * 50).floor() + 0 * x.sum((1, 2, 3))
            return torch.stack([total * scale for scale in (0.0, 0.1, -0.1, 0.2)], 1) + torch.arange(4) * -1.0

    logger = logging.getLogger("auto-attack")
    before = (logger.level, logger.propagate, list(logger.handlers))
    x = torch.full((2, 1, 4, 4), 0.3)
    with pytest.warns(RuntimeWarning, match="^AutoAttack: ") as caught:
        autoattack(Flat(), x, torch.tensor([1, 3]), eps=0.3, seed=0)
    messages = [str(warning.message) for warning in caught]
    assert len(set(messages)) == len(messages)
    assert any("zero gradient" in message for message in messages)
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
    assert capfd.readouterr() == ("", "")


def test_progress_reaches_the_end_of_the_bar(capfd: pytest.CaptureFixture[str]) -> None:
    model, x, y = linear_case(2, classes=4, n=20, dtype=torch.float32)
    autoattack(model, x, y, eps=1.0, seed=0, progress=True)
    pgd(model, x, y, eps=0.1, steps=1, restarts=2, generator=random(0), progress=True)
    shown = capfd.readouterr().err
    assert "AutoAttack apgd-ce" in shown and "PGD" in shown and "40/40" in shown
