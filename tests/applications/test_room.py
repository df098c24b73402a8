"""Batches as large as memory holds: models that run out of memory, against whole batches of the same model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adv_train.attacks import PGD, Attack, Square, TargetedPGD, Transfer
from adv_train.attacks.cascade import Cascade
from adv_train.attacks.room import ON_CPU, Room, is_out_of_memory
from adv_train.attacks.transfer import Source
from adv_train.cli.evaluation import read
from adv_train.doctor import doctor
from adv_train.errors import UserError
from adv_train.evaluate import evaluate
from adv_train.threat import Threat

THREAT = Threat("linf", 0.1)
FULL = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
}


class Limited(nn.Module):
    """Takes no more than so many images, and counts those that it was given at once."""

    def __init__(self, body: nn.Module, most: int, error: Callable[[], Exception] = FULL["CUDA"]) -> None:
        super().__init__()
        self.body, self.most, self.error, self.sizes = body, most, error, list[int]()

    def forward(self, z: Tensor) -> Tensor:
        self.sizes.append(len(z))
        if len(z) > self.most:
            raise self.error()
        logits: Tensor = self.body(z)
        return logits


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(6 * 25, 5)
        ).double()


def case(n: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    model = network()
    x = torch.rand(n, 1, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    return model, x, y


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=4, restarts=3),
        TargetedPGD(targets=3, steps=4),
        Transfer(Source("other", network(7)), steps=4, restarts=2),
        Square(queries=30),
        Cascade(steps=3),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_a_model_that_runs_out_of_memory_has_the_verdicts_of_one_that_does_not(attack: Attack, error: str) -> None:
    model, x, y = case(12 if isinstance(attack, Cascade) else 40)
    wanted = attack(model, x, y, THREAT, seed=0)
    limited = Limited(model, 5, FULL[error])
    found = attack(limited, x, y, THREAT, seed=0, batch_size="auto")
    assert torch.equal(found.robust, wanted.robust) and 0 < int(wanted.robust.sum()) < len(x)
    assert torch.equal(found.predicted, wanted.predicted)
    assert torch.allclose(found.images, wanted.images, atol=1e-12 if isinstance(attack, PGD) else 1e-6)
    assert found.settings == wanted.settings
    # What worked is remembered: 40, 20 and 10 are tried once each, and never again.
    assert len([size for size in limited.sizes if size > limited.most]) <= 3


def test_the_whole_evaluation_shares_what_it_found() -> None:
    model, x, y = case()
    attacks: list[Attack] = [PGD(steps=2, restarts=2), TargetedPGD(targets=2, steps=2)]
    wanted = evaluate(model, x, y, THREAT, attacks=attacks)
    limited = Limited(model, 9)
    found = evaluate(limited, x, y, THREAT, attacks=attacks, batch_size="auto")
    for name, outcome in wanted.attacks.items():
        assert (found.attacks[name].robust == outcome.robust).all()
    assert (found.clean == wanted.clean).all()
    assert [size for size in limited.sizes if size > limited.most] == [40, 20, 10]


def test_without_a_limit_every_image_is_shown_at_once_and_as_often_as_in_fixed_batches() -> None:
    model, x, y = case()
    free = Limited(model, 10**6)
    PGD(steps=3, restarts=1)(free, x, y, THREAT, seed=0, batch_size="auto")
    assert free.sizes == [40] * 5  # the clean images, three steps, the last iterate


def test_on_the_cpu_a_pass_has_at_most_512_images() -> None:
    model, x, y = case(700)
    free = Limited(model, 10**6)
    PGD(steps=1, restarts=1)(free, x, y, THREAT, seed=0, batch_size="auto")
    assert max(free.sizes) == ON_CPU == 512


def test_gradients_of_parts_are_those_of_the_whole_as_often_as_they_are_asked_for() -> None:
    model, x, _ = case()
    room = Room()
    z, w = x.clone().requires_grad_(), x.clone().requires_grad_()
    parts, whole = room.fitted(Limited(model, 6), x)(z), model(w)
    assert room.size == 5
    for column in range(parts.shape[1]):
        found = torch.autograd.grad(parts[:, column].square().sum(), z, retain_graph=True)[0]
        wanted = torch.autograd.grad(whole[:, column].square().sum(), w, retain_graph=True)[0]
        assert torch.allclose(found, wanted, rtol=0, atol=1e-14)


def test_the_gradient_of_a_part_belongs_to_the_random_numbers_of_its_logits() -> None:
    model, x, _ = case()
    model.train()  # dropout

    def logits(z: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Room().fitted(Limited(model, 6), x)(z)

    z = x.clone().requires_grad_()
    before = torch.get_rng_state()
    first = logits(z).sum()
    (slope,) = torch.autograd.grad(first, z)
    assert torch.equal(torch.get_rng_state(), before)
    step = 1e-6 * slope
    # The model is piecewise linear, but with other units dropped its slope is another one.
    assert (logits(x + step).sum() - first).item() == pytest.approx((slope * step).sum().item(), rel=1e-6)


class _Backward(torch.autograd.Function):
    """Runs out of memory on the way back alone."""

    @staticmethod
    def forward(ctx: object, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        if len(gradient) > 6:
            raise FULL["CUDA"]()
        return gradient


def test_a_trial_goes_forward_and_back_and_leaves_the_random_state_alone() -> None:
    model, x, _ = case()
    room = Room()
    before = torch.get_rng_state()
    room.try_out(lambda z: model(_Backward.apply(z)) + torch.rand(5), x)
    assert room.size == 5
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("message", ["mat1 and mat2 shapes cannot be multiplied", "memory format"])
def test_other_errors_are_not_taken_for_it(message: str) -> None:
    model, x, y = case()
    with pytest.raises(RuntimeError, match=message):
        PGD(steps=1)(Limited(model, 5, lambda: RuntimeError(message)), x, y, THREAT, seed=0, batch_size="auto")


def test_where_one_image_is_too_much_the_error_is_passed_on() -> None:
    model, x, y = case()
    with pytest.raises(torch.OutOfMemoryError):
        PGD(steps=1)(Limited(model, 0), x, y, THREAT, seed=0, batch_size="auto")


def test_the_allocator_of_this_machine_is_understood() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(10**16)
    assert is_out_of_memory(found.value)


def test_the_doctor_fits_its_batches_too() -> None:
    model, x, y = case(60)
    limited = Limited(model.float(), 10**6)
    x = x.float()
    wanted = doctor(limited, x, y, THREAT, only=["gradients", "smoothing"])
    limited.most = 25
    found = doctor(limited, x, y, THREAT, only=["gradients", "smoothing"], batch_size="auto")
    assert str(found) == str(wanted)


def test_the_flag_takes_a_number_or_auto() -> None:
    assert read(["runs/a"]).batch_size == "auto"
    assert read(["runs/a", "--batch-size", "7"]).batch_size == 7
    assert read(["runs/a", "--batch-size", "auto"]).batch_size == "auto"
    for wrong in ("0", "aut", "1.5"):
        with pytest.raises(UserError, match=r"whole number of at least 1, but is .* Or write auto"):
            read(["runs/a", "--batch-size", wrong])
