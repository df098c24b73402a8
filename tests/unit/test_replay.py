"""The random numbers of an evaluation: those after `torch.manual_seed(seed)`, without touching those of anyone else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blo
from blo import _random_state

SEED = 3
X = torch.linspace(0.1, 0.9, 24, dtype=torch.float64).reshape(6, 4)


class Calls(nn.Module):
    """Calls a function, which may be changed, of its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.calls = function, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.function(x)


class Masked(nn.Module):
    """Draws a mask from a generator of its own, in training mode."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generators = [generator]

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full_like(x, 0.5), generator=self.generators[0]) if self.training else x


def after(seed: int, call: Callable[[], Tensor]) -> Tensor:
    """Return what a call gives after `torch.manual_seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return call()


def elsewhere(call: Callable[[], Any]) -> Any:
    """Return what a call gives in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


DRAWS: dict[str, Callable[[Tensor], Any]] = {
    "rand": lambda x: torch.rand(5, dtype=x.dtype),
    "randn": lambda x: torch.randn(17),
    "randint": lambda x: torch.randint(9, (5,)),
    "randint between": lambda x: torch.randint(3, 9, (5,)),
    "randperm": lambda x: torch.randperm(7),
    "rand into": lambda x: torch.rand(5, out=torch.empty(5)),
    "randint into": lambda x: torch.randint(2, 9, (5,), out=torch.empty(5, dtype=torch.int64)),
    "rand_like": lambda x: torch.rand_like(x),
    "randn_like": lambda x: torch.randn_like(x, dtype=torch.float32),
    "randint_like": lambda x: torch.randint_like(x, 9),
    "randint_like between": lambda x: torch.randint_like(x, 2, 9),
    "bernoulli": torch.bernoulli,
    "bernoulli of a default generator": lambda x: torch.bernoulli(x, generator=torch.default_generator),
    "multinomial": lambda x: torch.multinomial(x, 2),
    "normal": lambda x: torch.normal(x, x),
    "normal of a number": lambda x: torch.normal(0.0, x),
    "normal of numbers": lambda x: torch.normal(0.0, 1.0, (4,)),
    "poisson": lambda x: torch.poisson(x),
    "poisson without keyword": lambda x: torch.ops.aten.poisson.default(x, None),
    "binomial": lambda x: torch.binomial(torch.full_like(x, 9.0), x),
    "gamma": lambda x: torch._standard_gamma(x),
    "dirichlet": lambda x: torch._sample_dirichlet(x),
    "in place": lambda x: (
        x.clone().uniform_() + x.clone().normal_() + x.clone().exponential_() + x.clone().geometric_(0.4)
    ),
    "in place too": lambda x: (
        x.clone().log_normal_() + x.clone().cauchy_() + x.clone().random_(9) + x.clone().bernoulli_(0.3)
    ),
    "dropout": lambda x: F.dropout(F.alpha_dropout(x, 0.3, True), 0.3),
    "dropout of channels": lambda x: (
        F.dropout2d(x.reshape(2, 3, 2, 2)) + F.feature_alpha_dropout(x.reshape(2, 3, 2, 2), 0.4, True)
    ),
    "rrelu": lambda x: F.rrelu(-x, training=True),
    "gumbel": lambda x: F.gumbel_softmax(x),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", DRAWS)
def test_each_operation_draws_what_it_draws_after_the_seed(name: str, inference: bool) -> None:
    draw = DRAWS[name]
    f = blo.functionalize(Calls(lambda x: (draw(x), draw(x))), seed=SEED)  # type: ignore[arg-type, return-value]
    truth: Any = after(SEED, lambda: (draw(X), draw(X)))  # type: ignore[arg-type, return-value]
    state = torch.get_rng_state()
    with torch.inference_mode(inference):
        for _ in range(3):
            found = f({}, X)
            assert all(torch.equal(one, other) for one, other in zip(found, truth, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@torch.library.custom_op("blo_tests::noise", mutates_args=())
def noise(x: Tensor) -> Tensor:
    """Draws without the tag that torch gives to its own operations."""
    return torch.rand_like(x)


@noise.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_operations_of_other_libraries_draw_by_the_seed_too() -> None:
    f = blo.functionalize(Calls(lambda x: torch.rand_like(x) + noise(x) * torch.rand_like(x)), seed=SEED)
    truth = after(SEED, lambda: torch.rand_like(X) + noise(X) * torch.rand_like(X))
    state = torch.get_rng_state()
    assert all(torch.equal(f({}, X), truth) for _ in range(3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.Dropout(0.5)])
def test_numbers_of_another_thread_go_on_as_without_the_evaluations(layer: nn.Module) -> None:
    drawn: list[float] = []

    def loss(output: Tensor) -> Tensor:
        drawn.append(elsewhere(lambda: torch.rand(()).item()))
        return output.sum()

    f = blo.functionalize(layer, loss)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        values = {f({}, X).item() for _ in range(9)}
    assert len(values) == 1
    # No evaluation is repeated because of them, except for the one that first saw them.
    assert 9 <= len(drawn) <= 10
    assert drawn == after(0, lambda: torch.stack([torch.rand(()) for _ in drawn])).tolist()


def test_an_evaluation_that_saw_the_draws_of_another_thread_is_repeated_and_puts_nothing_back() -> None:
    module = Calls(torch.tanh)
    f = blo.functionalize(module)
    f({}, X)
    module.function = lambda x: x * elsewhere(lambda: torch.rand(())).sign()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f({}, X)
        left = torch.get_rng_state()
    assert module.calls == 3
    truth = torch.Generator().manual_seed(0)
    torch.rand(2, generator=truth)
    assert torch.equal(left, truth.get_state())


def test_two_threads_with_dropout_get_the_masks_of_their_seeds() -> None:
    meet = threading.Barrier(2)

    def twice(x: Tensor) -> Tensor:
        first = F.dropout(x, 0.5)
        meet.wait(20)  # the other thread is between its two masks as well
        return torch.cat([first, F.dropout(x, 0.5)])

    functionals = [blo.functionalize(Calls(twice), seed=seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda f: f({}, X), functionals))
    for seed, masks in zip((1, 2), found, strict=True):
        assert torch.equal(masks, after(seed, lambda: torch.cat([F.dropout(X, 0.5), F.dropout(X, 0.5)])))


def test_a_functional_inside_another_draws_by_its_own_seed() -> None:
    inner = blo.functionalize(nn.Dropout(0.5), seed=2)
    inner_of_another = blo.functionalize(Calls(noise), seed=2)
    inner_of_eval = blo.functionalize(nn.Dropout(0.5).eval(), seed=2)
    inner_of_eval({}, X)
    inner_of_eval._module.train()

    def both(x: Tensor) -> Tensor:
        return torch.stack([F.dropout(x, 0.5), inner({}, x), inner_of_eval({}, x), inner_of_another({}, x), noise(x)])

    def truth() -> Tensor:
        mask = F.dropout(X, 0.5)
        other = after(2, lambda: F.dropout(X, 0.5))
        return torch.stack([mask, other, other, after(2, lambda: noise(X)), noise(X)])

    outer = blo.functionalize(Calls(both), seed=1)
    assert all(torch.equal(outer({}, X), after(1, truth)) for _ in range(2))


def again(x: Tensor) -> Tensor:
    state = torch.get_rng_state()
    first = F.dropout(x, 0.5)
    torch.set_rng_state(state)
    return torch.cat([first, F.dropout(x, 0.5)])


def forked(x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        features = torch.randn(4, 4, dtype=x.dtype)
    return F.dropout(x @ features, 0.5)


def seeded(x: Tensor) -> Tensor:
    torch.manual_seed(9)
    return F.dropout(x, 0.5)


@pytest.mark.parametrize("function", [again, forked, seeded])
def test_a_module_that_sets_the_random_state_sets_its_own(function: Callable[[Tensor], Tensor]) -> None:
    f = blo.functionalize(Calls(lambda x: torch.cat([F.dropout(x, 0.5), function(x)])), seed=SEED)
    truth = after(SEED, lambda: torch.cat([F.dropout(X, 0.5), function(X)]))
    state = torch.get_rng_state()
    assert all(torch.equal(f({}, X), truth) for _ in range(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_functions_of_accelerators_act_on_streams_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # No machine of the tests need have one: the generator of the CPU stands for that of each device.
    monkeypatch.setattr(_random_state, "default_generator", lambda device: torch.default_generator)
    functions = _random_state._functions("cuda")

    def draw(x: Tensor) -> Tensor:
        state = functions["get_rng_state"]()
        first = torch.rand_like(x)
        functions["set_rng_state"](state, "cuda")
        second = torch.rand_like(x)
        functions["manual_seed"](9)
        return torch.stack([first, second, torch.rand_like(x)])

    state = torch.get_rng_state()
    first, second, third = blo.functionalize(Calls(draw), seed=SEED)({}, X)
    assert torch.equal(first, second) and torch.equal(first, after(SEED, lambda: torch.rand_like(X)))
    assert torch.equal(third, after(9, lambda: torch.rand_like(X)))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_of_the_module_is_read_and_moves_on_with_the_next_step() -> None:
    generator, twin = (torch.Generator().manual_seed(5) for _ in range(2))
    f = blo.functionalize(Masked(generator))
    module = Masked(twin)
    for _ in range(3):
        before = generator.get_state()
        truth = module(X)
        assert all(torch.equal(f({}, X), truth) for _ in range(3))
        assert torch.equal(generator.get_state(), before)
        f.reseed()
        assert torch.equal(generator.get_state(), twin.get_state())


def test_a_generator_that_its_owner_moves_is_left_there() -> None:
    generator = torch.Generator().manual_seed(5)
    f = blo.functionalize(Masked(generator))
    f({}, X)
    generator.manual_seed(6)
    f.reseed()
    assert generator.initial_seed() == 6
    assert torch.equal(f({}, X), Masked(torch.Generator().manual_seed(6))(X))


def test_draws_by_a_generator_are_seen_after_evaluations_without_them() -> None:
    generator = torch.Generator().manual_seed(5)
    module = Masked(generator).eval()
    hidden = Calls(torch.tanh)
    f, g = blo.functionalize(module), blo.functionalize(hidden)
    f({}, X), g({}, X)
    module.train()
    # The module does not show this generator, but its training flags change.
    hidden.train(False).function = lambda x: torch.bernoulli(x, generator=generator)
    for functional in (f, g):
        first = functional({}, X)
        assert all(torch.equal(functional({}, X), first) for _ in range(3))
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(5).get_state())


def test_a_generator_that_the_module_makes_gives_the_numbers_of_the_module() -> None:
    def features(x: Tensor) -> Tensor:
        return x @ torch.randn(4, 4, dtype=x.dtype, generator=torch.Generator().manual_seed(1))

    f = blo.functionalize(Calls(features))
    for _ in range(3):
        assert torch.equal(f({}, X), features(X))
        f.reseed()


def test_switching_the_mode_needs_no_second_evaluation() -> None:
    module = Calls(lambda x: F.dropout(x, 0.5, module.training))
    f = blo.functionalize(module.eval(), seed=SEED)
    f({}, X), f({}, X)
    module.train()
    assert torch.equal(f({}, X), after(SEED, lambda: F.dropout(X, 0.5)))
    assert module.calls == 3


def test_the_global_state_is_put_back_when_a_module_draws_without_notice() -> None:
    module = Calls(torch.tanh)
    f = blo.functionalize(module, seed=SEED)
    f({}, X)
    module.function = lambda x: F.dropout(x, 0.5)
    state = torch.get_rng_state()
    assert torch.equal(f({}, X), after(SEED, lambda: F.dropout(X, 0.5)))
    assert torch.equal(torch.get_rng_state(), state)
