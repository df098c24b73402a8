"""Layers whose derivatives in torch are not those of their values, and formulas that replace them in an evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from blo._swaps import swapped
from blo._torch import SpectralNormRule, WeightNormRule, forward_pre_hooks, tensor_dicts
from blo._uncached import uncached
from blo.errors import StructureError


@dataclass(frozen=True)
class _Spectral:
    """A spectral norm: its rule, the module whose mode decides about power iterations, and the names of u and v."""

    rule: Any
    owner: nn.Module
    vectors: tuple[str, str]


class Layers:
    """The layers of a module that are evaluated by formulas with the same values and the right derivatives.

    Raises:
        StructureError: if the module has a layer whose gradient is wrong in torch and for which there is no formula.
    """

    def __init__(self, module: nn.Module) -> None:
        self._fixed: list[tuple[Any, str, Any]] = []
        self._embeddings: list[nn.Embedding] = []
        self._spectral: list[_Spectral] = []
        self._parametrized = False
        for path, layer in module.named_modules(remove_duplicate=False):
            self._add(layer)
            prefix = f"{path}." if path else ""
            if isinstance(layer, nn.CrossMapLRN2d):
                raise StructureError(
                    f"`module` must have the gradients of its values, but torch's gradient of {path!r}, a "
                    "CrossMapLRN2d, is wrong. Use nn.LocalResponseNorm."
                )
            # The spectral norm of a vector is its length, for which torch stores no u and v.
            if isinstance(layer, SpectralNormRule) and "_u" in tensor_dicts(layer)[1]:
                self._spectral.append(_Spectral(layer, layer, (f"{prefix}_u", f"{prefix}_v")))
            for hook in forward_pre_hooks(layer):
                if isinstance(hook, WeightNorm):
                    self._fixed.append((hook, "compute_weight", partial(_weight_norm_of, hook)))
                if isinstance(hook, SpectralNorm):
                    names = (f"{prefix}{hook.name}_u", f"{prefix}{hook.name}_v")
                    self._spectral.append(_Spectral(hook, layer, names))

    def _add(self, layer: nn.Module) -> None:
        forward = type(layer).forward
        # A subclass with a forward pass of its own is evaluated by that.
        if forward is nn.Embedding.forward:
            if layer.padding_idx is not None or layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
                self._embeddings.append(layer)  # type: ignore[arg-type]
        elif forward is nn.EmbeddingBag.forward:
            if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
                self._fixed.append((layer, "forward", partial(_bag, layer)))  # type: ignore[arg-type]
        elif forward is nn.Hardsigmoid.forward:
            self._fixed.append((layer, "forward", _hardsigmoid))
        elif getattr(getattr(layer, "options", None), "allow_retain_graph", False):
            self._fixed.append((layer, "options", None))  # a LinearCrossEntropyLoss in chunks, of newer torch
        elif isinstance(layer, WeightNormRule):
            self._fixed.append((layer, "forward", partial(weight_norm, layer.dim)))
        elif isinstance(layer, parametrize.ParametrizationList):
            self._parametrized = True

    def moving(self) -> list[str]:
        """Return the names of the buffers that power iterations of a forward pass would change."""
        return [name for part in self._spectral if part.owner.training for name in part.vectors]

    @contextlib.contextmanager
    def replaced(self, *, iterate: bool) -> Iterator[None]:
        """Evaluate the module inside.

        Args:
            iterate: let spectral norms in training mode make their power iterations. Torch treats u and v as constants
                although they change with the weights, so the gradient of an evaluation with iterations is not that of
                its value.
        """
        swaps = list(self._fixed)
        # The module's own weights, before those of the evaluation take their place.
        swaps += [
            (layer, "forward", partial(_look_up, layer, tensor_dicts(layer)[0].get("weight")))
            for layer in self._embeddings
        ]
        if not iterate:
            swaps += [(part.rule, "n_power_iterations", 0) for part in self._spectral]
        cache = uncached() if self._parametrized else contextlib.nullcontext()
        with cache, swapped((vars(owner), name, value) for owner, name, value in swaps):
            yield


def _look_up(layer: nn.Embedding, own: Tensor | None, indices: Tensor) -> Tensor:
    """Return rows of an embedding, with the derivative of what is computed.

    Torch scales rows to `max_norm` in place without recording it, divides gradients by counts, and leaves out that of
    the padding row. Here the padding row is the module's own: a constant, as in torch. If a parametrization computes
    the weight, the module has no such row, and the row is differentiated like the others.
    """
    rows = F.embedding(indices, layer.weight)
    if layer.padding_idx is not None and own is not None:
        constant = own.detach()[layer.padding_idx].to(rows.dtype)
        rows = torch.where((indices == layer.padding_idx).unsqueeze(-1), constant, rows)
    return rows if layer.max_norm is None else shortened(rows, layer.max_norm, layer.norm_type)


def _bag(
    layer: nn.EmbeddingBag, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
) -> Tensor:
    """Return reduced rows of an embedding; see `_look_up`. Torch does not count the padding row."""
    weight = layer.weight
    if layer.max_norm is not None:
        weight = shortened(weight, layer.max_norm, layer.norm_type)
    return F.embedding_bag(
        input,
        weight,
        offsets,
        mode=layer.mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=layer.include_last_offset,
        padding_idx=layer.padding_idx,
    )


def shortened(rows: Tensor, longest: float, p: float) -> Tensor:
    """Return rows scaled to a norm of at most about `longest`, with the constant 1e-7 that torch has there."""
    long = torch.linalg.vector_norm(rows.detach(), p, -1, keepdim=True) > longest
    norm = torch.linalg.vector_norm(torch.where(long, rows, 1.0), p, -1, keepdim=True)  # no kink at rows of zeros
    return torch.where(long, rows * (longest / (norm + 1e-7)), rows)


def _hardsigmoid(x: Tensor) -> Tensor:
    return F.relu6(x + 3) / 6  # torch has no second derivative of its own


def weight_norm(dim: int, g: Tensor, v: Tensor) -> Tensor:
    """Return `g v / |v|`. The second derivative of torch's fused operation treats the norm as a constant."""
    normed: Tensor = v * (g / torch.norm_except_dim(v, 2, dim))
    return normed


def _weight_norm_of(hook: WeightNorm, module: nn.Module) -> Tensor:
    return weight_norm(hook.dim, getattr(module, f"{hook.name}_g"), getattr(module, f"{hook.name}_v"))
