"""Modules as pure functions of their parameters."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from blo import tree
from blo._autodiff import plain, transforms_active
from blo._buffers import Buffers
from blo._checkpoints import sound_checkpoints
from blo._exchange import call_with
from blo._layers import Layers
from blo._replay import Replay
from blo._stale import Stale, unseen
from blo._swaps import swapped
from blo._torch import attention_kernels, backward_hooks, versions
from blo._transforms import lanes_of, outside_transforms
from blo._watch import Inspection, refuse_reentrant, write_message
from blo.errors import BloWarning, StructureError

#: Whether evaluations update buffers such as running statistics.
BufferPolicy: TypeAlias = Literal["freeze", "update-once"]
_POLICIES = ("freeze", "update-once")
_CHECKPOINTED = (
    "`functionalize` cannot evaluate a module that sets saved-tensor hooks, as activation checkpointing does: the "
    "recomputation in the backward pass would use the module's own parameters. Switch checkpointing off in the module, "
    "and checkpoint the call of the functional instead."
)


@final
class Functional:
    """A module and a loss as one function of the module's parameters, from `functionalize`.

    Until `reseed`, every evaluation computes the same function: with the same dropout masks, the same buffers, and in
    training mode the singular vectors of spectral norms from the first evaluation. Each evaluation reads the module
    (frozen parameters, buffers, training flags) and does not write to it, except that it updates buffers according to
    the policy.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[..., Any] | None,
        buffers: BufferPolicy,
        seed: int | torch.Generator,
        fused_attention: bool,
    ) -> None:
        self._module, self._loss, self._fused = module, loss, fused_attention
        self._names = _names(module)
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self._trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._devices = {t.device for t in (*module.parameters(), *module.buffers())}
        self._buffers, self._layers, self._replay = Buffers(module), Layers(module), Replay(module)
        #: The singular vectors of spectral norms since `reseed`; the keys are the names of their buffers.
        self._held: dict[str, Tensor] = {}
        #: The modes in which an evaluation has been watched: training or not, inside transforms or not, and which
        #: tensors require grad.
        self._watched: set[tuple[bool, bool, tuple[bool, ...]]] = set()
        self._copies_inputs = False
        self._updates = self._pending = buffers == "update-once"
        self.reseed(seed)

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters, with their names as keys: copies from the first access, leaves that require grad.

        Tied parameters appear once, frozen ones do not appear. Optimise these copies instead of the module's own
        parameters, and write them back with `module.load_state_dict(parameters, strict=False)`.
        """
        own = self._own()
        with outside_transforms():
            return {name: own[name].detach().clone().requires_grad_() for name in self._trainable}

    def __call__(self, parameters: Mapping[str, Tensor], inputs: Any = (), *targets: Any, **keywords: Any) -> Any:
        """Return `loss(module(inputs), *targets)`, or the module's output if there is no loss.

        Args:
            parameters: a tensor for each name in `.parameters`; frozen parameters may be added.
            inputs: the module's argument, or a tuple of its arguments.
            targets: further arguments of the loss.
            keywords: keyword arguments of the module.

        Raises:
            StructureError: if parameters or arguments do not fit the module; if the module writes to its parameters or
                creates a buffer that was None; if the first evaluation of a spectral norm in training mode is inside
                `torch.vmap`, or with `"update-once"` the evaluation that updates the buffers; inside a re-entrant
                checkpoint that is not part of an objective; while another thread evaluates the module, or one that
                shares parts with it.
            RuntimeError: if the module checkpoints activations with `use_reentrant=False`.
        """
        value, state = self._evaluate(parameters, inputs, keywords, targets)
        if self._pending:
            self._buffers.update(state, pin=True)
            self._pending = False
        return value

    def update_buffers(self, parameters: Mapping[str, Tensor], inputs: Any = (), **keywords: Any) -> None:
        """Update the module's buffers as one forward pass of the module would.

        Under `"update-once"` this is the only update of the step; the next evaluation makes none.
        """
        with torch.no_grad():
            _, state = self._run(parameters, inputs, keywords, None, iterate=True)
        self._buffers.update(state, pin=self._pending)
        self._pending = False

    def reseed(self, seed: int | torch.Generator | None = None) -> None:
        """Begin the next outer step: new dropout masks, and under `"update-once"` another update of the buffers.

        A generator of the module's own moves on as in one forward pass of the module, unless it has been moved since.

        Call this between steps, not between a solve and its backward pass, which must use the same function.

        Args:
            seed: the masks are those drawn after `torch.manual_seed(seed)`. A generator gives a seed now and in each
                later call without a seed. None draws the next seed from the sequence that the last seed began.
        """
        if isinstance(seed, torch.Generator):
            self._source = seed
        elif seed is not None:
            self._source = torch.Generator().manual_seed(seed)
        self._replay.reseed(seed if isinstance(seed, int) else _draw(self._source))
        self._pending = self._updates
        self._buffers.release()
        self._held.clear()

    def _evaluate(
        self, parameters: Mapping[str, Tensor], inputs: Any, keywords: dict[str, Any], targets: tuple[Any, ...]
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return the value and the state after the evaluation."""
        if targets and self._loss is None:
            raise StructureError(f"there is no loss for {len(targets)} targets. Use `functionalize(m, loss)`.")
        moving = [name for name in self._layers.moving() if name not in self._held]
        if moving:
            if transforms_active() and lanes_of(tree.tensors((parameters, inputs, keywords))):
                raise StructureError(
                    f"one evaluation must compute the singular vectors {moving} of spectral norms, but in `vmap` each "
                    "lane has its own. Evaluate once outside `vmap` first, or use the module in evaluation mode."
                )
            # The vectors are found once and then held: if each evaluation iterated again, no two would be the same
            # function.
            with torch.no_grad():
                _, state = self._run(parameters, inputs, keywords, None, iterate=True)
            # Taken out of the wrappers of transforms, whose levels end before the vectors are used again.
            self._held.update({name: plain(state[name]).clone() for name in moving})
        return self._run(parameters, inputs, keywords, targets, iterate=False)

    @sound_checkpoints
    def _run(
        self,
        parameters: Mapping[str, Tensor],
        inputs: Any,
        keywords: dict[str, Any],
        targets: tuple[Any, ...] | None,
        *,
        iterate: bool,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return the value, or the module's output when targets are None, and the state after the evaluation.

        Args:
            iterate: whether spectral norms make their power iterations; otherwise they use the stored vectors.
        """
        state = self._state(parameters)
        given = tree.tensors((inputs, keywords))
        # A re-entrant checkpoint runs its forward pass under `no_grad`; elsewhere the search of the stack is left out.
        if not torch.is_grad_enabled() and any(tensor.requires_grad for tensor in parameters.values()):
            refuse_reentrant()
        live = tuple(tensor.requires_grad for tensor in (*parameters.values(), *given))
        mode = (self._module.training, transforms_active(), live)
        before, first = versions(parameters.values()), mode not in self._watched
        # Torch's layers write to their buffers in training mode only, so only there do the copies need the lanes.
        lanes = lanes_of((*parameters.values(), *given)) if transforms_active() and self._buffers.training else []
        state.update(self._buffers.copies(lanes))
        if not iterate:
            # These replace the copies of the module's own vectors, which have not been iterated for these weights.
            state.update(self._held)
        watch: Inspection | contextlib.nullcontext[None] = contextlib.nullcontext()
        # The first evaluation in each mode runs on copies inside an `Inspection`, which detects modules that write
        # to their inputs or parameters. Later evaluations save this work.
        if first or self._copies_inputs:
            inputs, keywords = tree.map(_copy, (inputs, keywords))
        if first:
            copies = {name: _copy(tensor) for name, tensor in {**self._own(), **parameters}.items()}
            state.update(self._state(copies))
            moving = (*parameters, *(name for name in copies if copies[name].requires_grad))
            inner = tree.tensors((inputs, keywords))
            live_inputs = [tensor for tensor in inner if tensor.requires_grad]
            stale = Stale(
                [*(copies[name] for name in moving), *live_inputs], {k: state[k] for k in self._buffers.names}
            )
            watch = Inspection(copies, inner, stale)
        devices = self._devices.union(tensor.device for tensor in given)
        with (
            self._replay(devices),
            _differentiable(self._fused),
            self._buffers.none_made(),
            self._layers.replaced(iterate=iterate),
            watch,
        ):
            # The state already contains tied names. After the call it contains the tensors that the module assigned to
            # its buffers.
            arguments = inputs if isinstance(inputs, tuple) else (inputs,)
            try:
                value = call_with(self._module, state, arguments, keywords)
            except TypeError as error:
                _require_fit(self._module, arguments, keywords, error)
                raise
            if self._loss is not None and targets is not None:
                value = self._loss(value, *targets)
        if isinstance(watch, Inspection):
            self._watched.add(mode)
            self._copies_inputs |= watch.writes
            stale.put(state)
            if stale.found:
                warnings.warn(unseen(stale.found), BloWarning, stacklevel=3)
        # A write that depends on a condition in Python may first happen after the evaluations that are inspected.
        for name, old, new in zip(parameters, before, versions(parameters.values()), strict=True):
            if old != new:
                raise StructureError(write_message(name, "in place"))
        if self._replay.again:
            return self._run(parameters, inputs, keywords, targets, iterate=iterate)
        return value, state

    def _own(self) -> dict[str, Tensor]:
        """Return the module's own parameters."""
        return dict(self._module.named_parameters())

    def _state(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters under all their names: a tied parameter has several.

        Raises:
            StructureError: if names or shapes do not fit the module.
        """
        if not isinstance(parameters, Mapping):
            raise StructureError(
                f"`parameters` must be a dict of tensors like `.parameters`, but is {type(parameters).__name__}."
            )
        missing = [name for name in self._trainable if name not in parameters]
        unknown = [name for name in parameters if name not in self._names]
        if missing or unknown:
            raise StructureError(
                f"`parameters` must have the names in `.parameters`, but lacks {missing} and has unknown {unknown}. "
                "A tied parameter has its first name here; buffers are not parameters."
            )
        for name, tensor in parameters.items():
            if tensor.shape != self._shapes[name]:
                raise StructureError(
                    f"`parameters[{name!r}]` must have shape {tuple(self._shapes[name])}, but has "
                    f"{tuple(tensor.shape)}. For a batch of parameters use torch.vmap."
                )
        return {alias: tensor for name, tensor in parameters.items() for alias in self._names[name]}


def functionalize(
    module: nn.Module,
    loss: Callable[..., Any] | Literal["loss"] | None = None,
    *,
    buffers: BufferPolicy = "freeze",
    seed: int | torch.Generator = 0,
    fused_attention: bool = False,
) -> Functional:
    """Return a module as a function of its parameters that can be evaluated and differentiated any number of times.

    `f(parameters, inputs, *targets)` is `loss(module(inputs), *targets)`. Lower and upper objectives may use it, with
    the parameters as theta or as z, and so may every `torch.func` transform. The module's parameters, `.grad`,
    `requires_grad` and training flags do not change, and neither does the global random state. Threads may evaluate
    different modules at the same time, but not the same one. Autocast acts as on the module. The backward pass of
    `argmin` runs under the autocast state of the forward pass.

    Args:
        module: any module, in training or evaluation mode; move it to its device first.
        loss: `loss(output, *targets)`, or `"loss"` for a module that computes its own loss, as Hugging Face's models do
            if they get labels: the value is then the attribute or entry `loss` of the output. Without a loss the value
            is the module's output.
        buffers: `"freeze"`: no evaluation changes a buffer. `"update-once"`: only the first evaluation after
            `functionalize` or `reseed` updates the buffers, as a forward pass of the module does.
        seed: every evaluation draws the random numbers that follow `torch.manual_seed(seed)`, so dropout always has the
            same mask; with a generator, the seed is drawn from it. A generator that the module owns gives each
            evaluation the numbers of the module's next forward pass.
        fused_attention: whether `scaled_dot_product_attention` may choose fused kernels, which have no second
            derivatives. Set it for first-order strategies and for products by finite differences. By default attention
            uses operations that have second derivatives.

    Raises:
        StructureError: if `module` is not a module, has parameters without a shape, is wrapped in
            `DistributedDataParallel`, contains `DataParallel` or a module of `torch.jit`, is sharded by FSDP, has
            backward hooks, or contains a layer for which torch computes a wrong gradient.
        ValueError: if `buffers` is not a policy, or `loss` is another string.
    """
    if not isinstance(module, nn.Module):
        raise StructureError(f"`module` must be a torch.nn.Module, but is {type(module).__name__}.")
    if isinstance(module, DistributedDataParallel):
        raise StructureError(
            "`module` must not be wrapped in DistributedDataParallel, which does not support second derivatives. "
            "Pass its `.module`, and wrap the objectives in blo.distributed.mean: the mean of the ranks' "
            "hypergradients is not the hypergradient."
        )
    if any(isinstance(part, nn.DataParallel) for part in module.modules()):
        raise StructureError(
            "`module` must not hold nn.DataParallel, whose copies would use the module's own parameters. Pass its "
            "`.module`; for several devices see blo.distributed.mean."
        )
    if any(_sharded(part) for part in (*module.modules(), *module.parameters())):
        raise StructureError(
            "`module` must not be sharded by FSDP, whose hooks would evaluate the module's own shards. Pass a copy of "
            "the module from before `fully_shard`, and the gathered parameters (`.full_tensor()` of each)."
        )
    hooked = [name or type(module).__name__ for name, part in module.named_modules() if backward_hooks(part)]
    if hooked:
        raise StructureError(
            f"`module` must have no backward hooks, but {hooked} have some: hooks that change gradients make a "
            "hypergradient that is not that of the value. Remove the hooks; to change the gradients that a solver "
            "follows, use its `transform`."
        )
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise StructureError(
            "`module` must not be compiled by torch.jit, because its parameters cannot be replaced. Pass the original "
            "module."
        )
    lazy = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise StructureError(f"`module` must know its shapes, but {lazy} are lazy. Call it once on a batch first.")
    if buffers not in _POLICIES:
        raise ValueError(f"`buffers` must be one of {_POLICIES}, but is {buffers!r}.")
    if isinstance(loss, str):
        if loss != "loss":
            raise ValueError(f'`loss` must be a function, "loss" or None, but is {loss!r}.')
        loss = _own_loss
    return Functional(module, loss, buffers, seed, fused_attention)


def _sharded(part: object) -> bool:
    """Return whether a module has been through FSDP, or a parameter is a DTensor."""
    # By the module of the class: to import these classes takes as long as to import the rest of blo.
    return any(
        base.__module__.startswith(("torch.distributed.fsdp", "torch.distributed.tensor"))
        for base in type(part).__mro__
    )


def _own_loss(output: Any, *targets: Any) -> Tensor:
    """Return the loss that the module itself has computed.

    Raises:
        StructureError: if the output has no loss, or there are targets: the module gets these as keyword arguments.
    """
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if targets or not isinstance(found, Tensor):
        reason = f"there are {len(targets)} targets" if targets else f"`loss` is {type(found).__name__}"
        raise StructureError(
            f'with loss="loss" the module\'s output, here {type(output).__name__}, must hold its own loss as a tensor, '
            f"and targets go to the module, but {reason}. Call f(parameters, input_ids=..., labels=...)."
        )
    return found


def _names(module: nn.Module) -> dict[str, list[str]]:
    """Return all names of each parameter; the key is its first name."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(first.setdefault(id(parameter), name), []).append(name)
    return names


@contextlib.contextmanager
def _differentiable(fused_attention: bool) -> Iterator[None]:
    """Compute attention by operations that can be differentiated any number of times, in reverse and forward mode."""
    with contextlib.ExitStack() as stack:
        if not fused_attention:
            # Fused attention has neither a second derivative nor forward mode.
            stack.enter_context(swapped([(attention_kernels, "enabled", {"math"})]))
        # Hooks of a checkpoint around the functional are correct. While these are set, torch raises an error here.
        with contextlib.suppress(RuntimeError):
            stack.enter_context(torch.autograd.graph.disable_saved_tensors_hooks(_CHECKPOINTED))
        yield


def _require_fit(module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], error: TypeError) -> None:
    """Explain a TypeError if the arguments do not fit the module's signature.

    Raises:
        StructureError: if they do not; the message gives the signature.
    """
    signature = inspect.signature(module.forward)
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as reason:
        raise StructureError(
            f"`inputs` must be what {type(module).__name__}.forward{signature} takes, but {len(arguments)} arguments "
            f"and the keywords {list(keywords)} do not fit: {reason}. Pass several arguments as a tuple, and keyword "
            "arguments as f(parameters, name=value)."
        ) from error


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _draw(generator: torch.Generator) -> int:
    """Draw a seed."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
