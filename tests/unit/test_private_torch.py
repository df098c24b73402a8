"""The private parts of torch that `blo` uses work as `blo` expects, each by itself: a release may change them."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

from blo import _torch
from blo._torch import functorch

X = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)


def inside(transform: str, look: Callable[[Tensor], Any]) -> list[Any]:
    """Return what `look` returns inside a transform, for its tensor."""
    seen: list[Any] = []

    def function(x: Tensor) -> Tensor:
        seen.append(look(x))
        return x.square().sum()

    {"vmap": torch.vmap, "grad": torch.func.grad}[transform](function)(X)
    return seen


def test_every_name_has_a_test_on_this_page() -> None:
    page = Path(__file__).read_text(encoding="utf-8")
    files = [path.read_text(encoding="utf-8") for path in Path(_torch.__file__).parent.rglob("*.py")]
    functions = {name for text in files for name in re.findall(r"\bfunctorch\.(\w+)\(", text)}
    assert {"get_unwrapped", "unwrap_if_dead"} <= functions
    names = {f"_torch.{name}" for name in _torch.__all__ if name != "functorch"} | {f"functorch.{n}" for n in functions}
    assert sorted(name for name in names if name not in page) == []


def test_active_transforms_are_seen() -> None:
    def active(x: Tensor) -> bool:
        return bool(_torch.transforms_active())

    assert not active(X)
    assert inside("vmap", active) == inside("grad", active) == [True]


def test_wrapped_tensors_are_recognised_and_unwrapped() -> None:
    def look(x: Tensor) -> tuple[bool, bool, tuple[int, ...]]:
        plain = functorch.get_unwrapped(x)
        return functorch.is_functorch_wrapped_tensor(x), functorch.is_batchedtensor(x), tuple(plain.shape)

    assert inside("vmap", look) == [(True, True, (2, 2))]
    assert inside("grad", look) == [(True, False, (2, 2))]
    assert not functorch.is_functorch_wrapped_tensor(X)


def test_a_tensor_that_outlives_its_transform_is_unwrapped() -> None:
    (kept,) = inside("grad", lambda x: x)
    assert not functorch.is_functorch_wrapped_tensor(functorch.unwrap_if_dead(kept))
    assert torch.equal(functorch.unwrap_if_dead(kept), X)


def test_the_older_vmap_is_recognised() -> None:
    """`torch.autograd.grad(..., is_grads_batched=True)` still uses it."""
    seen = []

    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            seen.append(functorch.is_legacy_batchedtensor(cotangent))
            return cotangent

    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad(Same.apply(x), x, torch.eye(2), is_grads_batched=True)
    torch.autograd.grad(Same.apply(x), x, torch.ones(2))
    assert seen == [True, False]


def test_the_stack_of_transforms_tells_kind_level_size_and_randomness() -> None:
    def look(x: Tensor) -> tuple[bool, bool, int, bool]:
        (level,) = functorch.get_interpreter_stack()
        lane = functorch.CVmapInterpreterPtr(level)
        refuses = lane.randomness() == functorch.RandomnessType.Error
        same = level.level() == functorch.maybe_get_level(x)
        return level.key() == functorch.TransformType.Vmap, same, lane.batchSize(), refuses

    assert inside("vmap", look) == [(True, True, 2, True)]

    def kind(x: Tensor) -> bool:
        (level,) = functorch.get_interpreter_stack()
        return bool(level.key() == functorch.TransformType.Vmap)

    assert inside("grad", kind) == [False]
    assert not functorch.get_interpreter_stack()


def test_a_level_can_be_taken_off_the_stack_and_replaced() -> None:
    def look(x: Tensor) -> tuple[int, bool]:
        layer = functorch.pop_dynamic_layer_stack()
        functorch._vmap_increment_nesting(2, "same")
        try:
            drawn = torch.rand_like(x)  # an error in the level that was taken off
            rows = functorch.get_unwrapped(drawn) if functorch.is_batchedtensor(drawn) else drawn
        finally:
            functorch._vmap_decrement_nesting()
            functorch.push_dynamic_layer_stack(layer)
        return rows.numel(), bool(_torch.transforms_active())

    ((number, active),) = inside("vmap", look)
    assert active and number in (2, 4)  # one draw for both lanes, of the shape of a lane or of both
    assert not _torch.transforms_active()


def test_a_mapped_axis_can_be_added() -> None:
    def look(x: Tensor) -> Tensor:
        (level,) = functorch.get_interpreter_stack()
        wide = functorch._add_batch_dim(torch.arange(6.0).reshape(2, 3), 0, level.level())
        assert wide.shape == (3,)
        return functorch.get_unwrapped(wide.clone())

    (found,) = inside("vmap", look)
    assert isinstance(found, Tensor) and found.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_transforms_can_be_suspended() -> None:
    def look(x: Tensor) -> bool:
        with _torch.temporarily_clear_interpreter_stack():
            return bool(_torch.transforms_active())

    assert inside("vmap", look) == inside("grad", look) == [False]


def test_autocast_is_seen() -> None:
    assert not _torch.any_autocast()
    with torch.autocast("cpu", torch.bfloat16):
        assert _torch.any_autocast()
    assert not _torch.any_autocast()


@pytest.mark.parametrize("dim", [0, 1])
def test_the_fused_weight_norm_scales_rows_or_columns(dim: int) -> None:
    g = torch.tensor([2.0, 3.0], dtype=torch.float64).reshape((2, 1) if dim == 0 else (1, 2))
    expected = g * X / X.norm(dim=1 - dim, keepdim=True)
    assert torch.allclose(_torch.fused_weight_norm(X, g, dim), expected, atol=1e-12)


def test_rules_of_parametrized_layers_have_their_attributes() -> None:
    spectral = parametrizations.spectral_norm(torch.nn.Linear(3, 2)).parametrizations.weight[0]
    assert type(spectral) is _torch.SpectralNormRule
    assert {"_u", "_v"} <= set(dict(spectral.named_buffers())) and spectral.n_power_iterations == 1
    weight = parametrizations.weight_norm(torch.nn.Linear(3, 2)).parametrizations.weight[0]
    assert type(weight) is _torch.WeightNormRule and weight.dim == 0


def test_forward_mode_is_seen() -> None:
    assert not _torch.forward_mode()
    with torch.autograd.forward_ad.dual_level():
        assert _torch.forward_mode()
    assert not _torch.forward_mode()


def test_forward_mode_loads_its_derivatives_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _torch.load_forward_mode()
        slope = torch.func.jvp(torch.nn.functional.logsigmoid, (X,), (torch.ones_like(X),))[1]
    assert torch.allclose(slope, torch.sigmoid(-X), atol=1e-12)


def test_a_dispatch_mode_sees_operations_and_does_not_load_the_compiler() -> None:
    code = """
import torch
from blo import _torch

class Mode(_torch.DispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        seen.append(str(function))
        return function(*args, **(kwargs or {}))

seen, loaded = [], _torch.compiler_loaded()
with Mode():
    torch.ones(2) + 1
print(loaded, _torch.compiler_loaded(), any("add" in name for name in seen))
import torch._dynamo
print(_torch.compiler_loaded())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "True", "True"]


def test_apple_s_generator_is_found_where_there_is_such_a_device() -> None:
    """Its private name is used only there; elsewhere the name must exist in torch."""
    if torch.backends.mps.is_available():
        assert len(list(_torch.generators([torch.device("mps")]))) == 2
    else:
        assert callable(torch.mps._get_default_mps_generator)


def test_the_generator_of_the_cpu_is_always_among_those_of_some_devices() -> None:
    assert list(_torch.generators([])) == list(_torch.generators([torch.device("cpu")])) == [torch.default_generator]


def test_a_device_without_random_numbers_has_no_default_generator() -> None:
    assert _torch.default_generator(torch.device("cpu")) is torch.default_generator
    assert _torch.default_generator(torch.device("meta")) is None
    assert list(_torch.generators([torch.device("meta")])) == [torch.default_generator]


def test_a_dispatch_mode_sees_the_key_of_a_generator() -> None:
    seen: list[int] = []

    class Keys(_torch.DispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = _torch.argument_of(function, "generator", args, kwargs or {})
            seen.extend([] if given is None else [_torch.generator_key(given)])
            return function(*args, **kwargs or {})

    own = torch.Generator()
    with Keys():  # type: ignore[no-untyped-call]
        torch.rand(2, generator=own)
        torch.poisson(torch.ones(2), generator=own)  # not a keyword of the operator
        torch.bernoulli(torch.ones(2), generator=torch.default_generator)
    assert seen == [_torch.generator_key(own)] * 2 + [_torch.generator_key(torch.default_generator)]


def test_operators_that_draw_have_a_twin_that_takes_a_generator() -> None:
    aten = torch.ops.aten
    assert _torch.with_generator(aten.rand.default) == (aten.rand.generator, 1)
    assert _torch.with_generator(aten.randint.low_out) == (aten.randint.low_generator_out, 3)
    assert _torch.with_generator(aten.poisson.default) == (aten.poisson.default, 1)
    assert _torch.with_generator(aten.native_dropout.default) is None


def test_arguments_of_operators_are_found_by_name() -> None:
    aten, x = torch.ops.aten, torch.ones(2)
    assert _torch.argument_of(aten.native_dropout.default, "p", (x, 0.3, True), {}) == 0.3
    assert _torch.argument_of(aten.native_dropout.default, "p", (x,), {"p": 0.3}) == 0.3
    assert _torch.argument_of(aten.add.Tensor, "alpha", (x, x), {}) == 1
    assert _torch.argument_of(aten.add.Tensor, "generator", (x, x), {}) is None


def test_a_backward_pass_is_recognised() -> None:
    seen: list[bool] = []
    x = X.clone().requires_grad_()
    x.register_hook(lambda gradient: seen.append(_torch.in_backward()))
    x.sum().backward()
    assert seen == [True]
    assert not _torch.in_backward()


def test_the_kernels_of_attention_are_those_that_torch_switches() -> None:
    before = _torch.attention_kernels.get("enabled")
    assert {"cudnn", "flash", "mem_efficient", "math"} <= before
    with sdpa_kernel(SDPBackend.MATH):
        # Older releases leave one switch alone there.
        assert _torch.attention_kernels.get("enabled") - {"overrideable"} == {"math"}
    try:
        _torch.attention_kernels["enabled"] = {"math"}
        assert torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
    finally:
        _torch.attention_kernels["enabled"] = before
    assert torch.backends.cuda.flash_sdp_enabled()


def test_attention_chooses_its_kernel_by_an_operator_that_is_tagged_as_random() -> None:
    assert torch.Tag.nondeterministic_seeded in _torch.attention_choice.tags
    state = torch.get_rng_state()
    _torch.attention_choice(X[None, None], X[None, None], X[None, None], None, 0.5)
    assert torch.equal(torch.get_rng_state(), state)


def test_tensors_that_share_memory_have_one_key() -> None:
    x, y = torch.ones(2, 3), torch.ones(2, 3)
    assert _torch.storage_key(x) == _torch.storage_key(x[1:].T) == _torch.storage_key(x.detach())
    assert _torch.storage_key(x) != _torch.storage_key(y)


def test_operators_tell_to_which_arguments_they_write() -> None:
    aten = torch.ops.aten
    found = {op: _torch.written_arguments(op) for op in (aten.add.Tensor, aten.add_.Tensor, aten.add.out)}
    assert list(found.values()) == [[], [(0, "self")], [(3, "out")]]
    assert [_torch.writes(op) for op in found] == [False, True, True]


def test_operators_of_embeddings_and_of_the_fused_weight_norm_are_those_that_run() -> None:
    seen = []

    class Mode(_torch.DispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(function)
            return function(*args, **(kwargs or {}))

    index, bag = torch.tensor([0, 1]), torch.nn.functional.embedding_bag
    with Mode():  # type: ignore[no-untyped-call]
        torch.nn.functional.embedding(index, X)
        bag(index, X.clone().requires_grad_(), torch.tensor([0]))
        bag(index, X, torch.tensor([0]))
        _torch.fused_weight_norm(X, X[:, :1], 0)
    assert {*_torch.embedding_operators, _torch.weight_norm_operator} <= set(seen)


def test_hooks_before_a_forward_pass_are_found() -> None:
    layer = torch.nn.Linear(2, 2)
    assert not list(_torch.forward_pre_hooks(layer))
    layer.register_forward_pre_hook(print)
    assert list(_torch.forward_pre_hooks(layer)) == [print]


def test_a_module_keeps_its_tensors_in_two_dicts() -> None:
    layer = torch.nn.BatchNorm1d(2, affine=False)
    parameters, buffers = _torch.tensor_dicts(layer)
    assert parameters == {"weight": None, "bias": None}
    buffers["running_mean"] = torch.full((2,), 5.0)
    assert layer.running_mean is buffers["running_mean"]  # the dicts themselves, not copies


def test_writes_to_tensors_are_counted() -> None:
    x = torch.ones(2)
    before = _torch.versions([x, x + 1])
    x.add_(1)
    assert [new - old for new, old in zip(_torch.versions([x, x]), before, strict=True)] == [1, 1]
    with torch.inference_mode():
        assert _torch.versions([torch.ones(2).add_(1)]) == [0]


def test_backward_hooks_of_tensors_and_modules_are_counted() -> None:
    x, layer = X.clone().requires_grad_(), torch.nn.Linear(2, 1)
    assert _torch.backward_hooks(x) == _torch.backward_hooks(layer) == 0
    x.register_hook(lambda gradient: None)
    layer.register_full_backward_hook(lambda *given: None)
    assert _torch.backward_hooks(x) == _torch.backward_hooks(layer) == 1
    layer.register_full_backward_pre_hook(lambda *given: None)
    layer.register_forward_hook(lambda *given: None)
    assert _torch.backward_hooks(layer) == 2


def test_a_tensor_is_the_same_object_inside_the_wrappers_of_transforms() -> None:
    x, seen = X.clone(), []

    def look(row: Tensor) -> Tensor:
        seen.append((functorch.get_unwrapped(row) is x, functorch.maybe_get_level(row)))
        return row.sum()

    torch.func.grad(look)(x)
    torch.vmap(look, in_dims=1)(x)
    assert seen == [(True, 1), (True, 1)]
    assert inside("vmap", functorch.maybe_get_bdim) == [0]


def test_a_mode_sees_calls_of_autograd_functions_inside_transforms_alone() -> None:
    class Same(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return cotangent

    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is _torch.custom_function_call:
                seen.append(args[1])
            return function(*args, **(kwargs or {}))

    with Mode():
        Same.apply(X)
        assert not seen
        (given,) = inside("grad", lambda x: (Same.apply(x), x)[1])
    assert len(seen) == 1 and seen[0] is given
