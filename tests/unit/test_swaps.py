"""What evaluations replace for their time is there again when the last of them ends, in whatever order they end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

import blo
from blo._swaps import swapped
from blo._torch import attention_kernels
from blo._uncached import uncached
from blo.errors import StructureError

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


class Double(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Hold an evaluation of a module in another thread."""
    begun, end = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        begun.set()
        assert end.wait(20)

    handle = module.register_forward_hook(hold)
    f = blo.functionalize(module)
    with ThreadPoolExecutor(1) as pool:
        parameters = f.parameters
        held = pool.submit(lambda: f(parameters, X))
        assert begun.wait(20)
        try:
            yield
        finally:
            end.set()
        held.result()
    handle.remove()


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=6), st.randoms())
def test_blocks_that_end_in_any_order_leave_what_was_there(names: list[str], random: Any) -> None:
    place = {"a": -1}
    open_blocks: list[tuple[int, str, ExitStack]] = []
    waiting = list(range(len(names)))
    while waiting or open_blocks:
        if waiting and (not open_blocks or random.random() < 0.5):
            number = waiting.pop(0)
            stack = ExitStack()
            stack.enter_context(swapped([(place, names[number], number)]))
            open_blocks.append((number, names[number], stack))
        else:
            open_blocks.pop(random.randrange(len(open_blocks)))[2].close()
        for name, original in (("a", -1), ("b", None)):
            # The block that began last has its value there.
            values = [number for number, key, _ in open_blocks if key == name]
            assert place.get(name) == (values[-1] if values else original)
    assert place == {"a": -1}


def test_a_place_that_is_swapped_twice_in_one_block_gets_its_first_value_back() -> None:
    place = {"a": 0}
    with swapped([(place, "a", 1), (place, "a", 2)]):
        assert place["a"] == 2
    assert place == {"a": 0}


def test_overlapping_evaluations_leave_the_kernels_of_attention_as_they_were() -> None:
    before = attention_kernels.get("enabled")
    first, second = evaluating(nn.Linear(4, 1).double()), evaluating(nn.Linear(4, 1).double())
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert attention_kernels.get("enabled") == {"math"}  # the second still needs its derivatives
    second.__exit__(None, None, None)
    assert attention_kernels.get("enabled") == before
    assert "flash" in before


def shared(module: nn.Sequential) -> list[nn.Module]:
    return [module, module[1], nn.Sequential(module[1], nn.Tanh())]


@pytest.mark.parametrize("index", range(3))
def test_a_module_in_two_threads_is_refused_and_stays_as_it_was(index: int) -> None:
    module = nn.Sequential(nn.Hardsigmoid(), nn.Linear(4, 4).double())
    other = blo.functionalize(shared(module)[index])
    parameters, alone = other.parameters, other(other.parameters, X)
    before = {name: id(tensor) for name, tensor in module.named_parameters()}
    keys = [list(vars(part)) for part in module.modules()]
    with evaluating(module):
        calls = [lambda: other(parameters, X), lambda: torch.func.grad(lambda p: other(p, X).sum())(parameters)]
        for call in calls:
            with pytest.raises(StructureError, match=r"one thread at a time.*deepcopy"):
                call()
    assert {name: id(tensor) for name, tensor in module.named_parameters()} == before
    assert [list(vars(part)) for part in module.modules()] == keys
    assert torch.equal(other(parameters, X), alone)


def test_a_module_may_evaluate_itself_inside_its_own_evaluation() -> None:
    module = nn.Linear(4, 4).double()
    inner = blo.functionalize(module)
    doubled = {name: 2 * tensor.detach() for name, tensor in module.named_parameters()}
    outer = blo.functionalize(module, lambda output: output + inner(doubled, X))
    assert torch.allclose(outer(outer.parameters, X), 3 * module(X), rtol=1e-14)


@pytest.mark.parametrize("kinds", ["cu", "uc", "uu", "cuu", "ucu", "uuc"])
def test_the_cache_of_parametrizations_is_off_after_blocks_that_overlap(kinds: str) -> None:
    blocks = [{"c": parametrize.cached, "u": uncached}[kind]() for kind in kinds]
    for block in blocks:
        block.__enter__()
    for block in blocks:  # the first to begin is the first to end
        block.__exit__(None, None, None)
    assert parametrize._cache_enabled == 0
    assert parametrize._cache == {}


def test_a_cache_around_evaluations_is_not_used_by_them_and_stays_on() -> None:
    module = nn.Linear(4, 4).double()
    parametrize.register_parametrization(module, "weight", Double())
    f = blo.functionalize(module)
    tripled = {name: 3 * tensor.detach() for name, tensor in f.parameters.items()}
    with parametrize.cached():
        own = module(X)
        assert torch.allclose(f(tripled, X), 3 * own, rtol=1e-14)
        assert parametrize._cache_enabled == 1
        assert torch.equal(module(X), own)
    assert parametrize._cache_enabled == 0
