"""Random numbers for one evaluation of a module, which do not come from the generators of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor

from blo._torch import (
    DispatchMode,
    argument_of,
    attention_choice,
    default_generator,
    generator_key,
    with_generator,
    writes,
)

_aten, _CPU = torch.ops.aten, torch.device("cpu")
#: Operations of these draw only if they are tagged. Those of other libraries may draw without a tag.
_TAGGED = ("aten", "prims", "prim", "inductor", "higher_order", "c10d", "_c10d_functional")
#: Whether an operation may draw, by its `id`: torch keeps its operations, and computes their hashes slowly.
_MAY_DRAW: dict[int, bool] = {}
#: Held while a default generator of the process has a state that is not its own.
_LOCK = threading.RLock()  # such an operation may itself evaluate a functional


class Streams(DispatchMode):
    """Gives each random operation a generator, one for each device, with the numbers after `torch.manual_seed(seed)`.

    The default generators are left to other threads, which may draw from them at the same time. An operation that
    takes no generator (fused attention with dropout, an operation of another library) runs on the default generator in
    the state of the stream, and other threads may see this state meanwhile.

    A generator of the module's own is read and put back: each evaluation begins with the same state of it.

    Torch fills a tensor in the order of its memory, and its fused dropout on accelerators draws another stream under
    `vmap`. So draws fill contiguous tensors, and dropout is computed from a mask.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed = seed
        self._streams: dict[torch.device, torch.Generator] = {}
        #: The generators of the module's own that it has drawn from, and their states before.
        self.own: dict[int, tuple[torch.Generator, Tensor]] = {}
        #: Whether anything was drawn.
        self.drew = False

    def __enter__(self) -> Streams:
        self._token: Token[Streams | None] = _INNERMOST.set(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _INNERMOST.reset(self._token)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        may_draw = _MAY_DRAW.get(id(function))
        if may_draw is None:
            may_draw = torch.Tag.nondeterministic_seeded in function.tags or function.namespace not in _TAGGED
            _MAY_DRAW[id(function)] = may_draw
        # A functional inside another one draws by its own seed.
        if not may_draw or _INNERMOST.get() not in (self, None):
            return function(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded not in function.tags:
            return self._drawn(function, args, kwargs)
        if function is _aten.native_dropout.default:
            return self._dropout(*args, **kwargs)
        straight = tuple(_contiguous(argument) for argument in args)
        result = self._drawn(function, straight, kwargs)
        if writes(function) and args and straight[0] is not args[0]:
            return args[0].copy_(straight[0])  # the operation filled the copy
        return result

    def _dropout(self, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
        """Return dropout by the operations into which `vmap` decomposes `native_dropout`: the same everywhere."""
        if train is False:
            return _aten.native_dropout.default(x, p, train)  # type: ignore[no-any-return]
        empty = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        mask = self._drawn(_aten.bernoulli_.float, (empty, 1 - p), {})
        # For p = 1 the scale 1 / (1 - p) is infinite, and its product with a mask of zeros NaN.
        return x * mask * (0.0 if p == 1 else 1 / (1 - p)), mask.bool()

    def _drawn(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of an operation that may draw."""
        default = default_generator(_device(args, kwargs))
        if default is None or _never_draws(function, args, kwargs):
            return function(*args, **kwargs)
        given = argument_of(function, "generator", args, kwargs)
        if given is not None and generator_key(given) != generator_key(default):
            self.drew = True
            self.own.setdefault(generator_key(given), (given, given.get_state()))
            return function(*args, **kwargs)
        stream, found = self.stream(default), with_generator(function)
        if found is None:
            return self._lent(default, stream, lambda: function(*args, **kwargs))
        self.drew = True
        operator, position = found
        if position < len(args):
            return operator(*args[:position], stream, *args[position + 1 :], **kwargs)
        return operator(*args, **{**kwargs, "generator": stream})

    def stream(self, default: torch.Generator) -> torch.Generator:
        """Return the generator that takes the place of a default generator."""
        if default.device not in self._streams:
            self._streams[default.device] = torch.Generator(default.device).manual_seed(self._seed)
        return self._streams[default.device]

    def _lent(self, default: torch.Generator, stream: torch.Generator, call: Callable[[], Any]) -> Any:
        """Call an operation while the default generator has the state of the stream."""
        with _LOCK:
            kept, state = default.get_state(), stream.get_state()
            default.set_state(state)
            try:
                return call()
            finally:
                stream.set_state(default.get_state())
                default.set_state(kept)
                self.drew |= not torch.equal(stream.get_state(), state)


_INNERMOST: ContextVar[Streams | None] = ContextVar("_INNERMOST", default=None)


def innermost() -> Streams | None:
    """Return the streams of the evaluation that the caller is inside of."""
    return _INNERMOST.get()


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Return the device on which an operation draws."""
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    devices = [value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return next((device for device in devices if device.type != "cpu"), _CPU)


def _never_draws(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation only chooses a kernel, or is an attention without dropout."""
    return function is attention_choice or argument_of(function, "dropout_p", args, kwargs) == 0


def _contiguous(argument: Any) -> Any:
    return argument.contiguous() if isinstance(argument, Tensor) else argument
