"""Calls of a model with other parameters agree with `torch.func.functional_call`."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from adv_train.errors import UserError
from adv_train.methods.weights import Weights


class Tied(nn.Module):
    """A network that uses one layer twice and shares a tensor between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.alias = self.first
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.alias(self.second(self.first(x)).tanh())) * self.scale


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tied().double()


def test_values_gradients_and_buffers_are_those_of_torch(model: nn.Module) -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    given = {name: torch.randn_like(value).requires_grad_() for name, value in model.named_parameters()}
    copy = deepcopy(model)  # The function of torch leaves its tensors in modules that have two names.
    expected = torch.func.functional_call(copy, given, (x,))
    found = Weights(model)(given, x)
    assert torch.equal(found, expected)
    values = list(given.values())
    slopes = [torch.autograd.grad(out.square().sum(), values) for out in (found, expected)]
    assert all(map(torch.equal, *slopes))
    assert all(map(torch.equal, model.buffers(), copy.buffers()))


def test_only_the_given_parameters_are_exchanged(model: nn.Module) -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    given = {"scale": torch.full((4,), 2.0, dtype=torch.float64)}
    assert torch.equal(Weights(model)(given, x), 2 * model.train()(x))


def test_the_model_has_its_own_parameters_again_also_after_an_error(model: nn.Module) -> None:
    own = dict(model.named_parameters(remove_duplicate=False))
    weights = Weights(model)
    given = {name: value.detach() + 1 for name, value in model.named_parameters()}
    weights(given, torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        weights(given, torch.zeros(2, 7, dtype=torch.float64))
    with pytest.raises(KeyError):
        weights({**given, "unknown": torch.zeros(1)}, torch.zeros(2, 4, dtype=torch.float64))
    assert all(value is own[name] for name, value in model.named_parameters(remove_duplicate=False))


def test_modules_whose_parameters_cannot_be_exchanged_are_refused() -> None:
    with pytest.raises(UserError, match=r"`0` is a DataParallel.*Pass the module that it was made from"):
        Weights(nn.Sequential(nn.DataParallel(nn.Linear(2, 2))))
