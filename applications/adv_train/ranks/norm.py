"""BatchNorm over the samples of all ranks.

`torch.nn.SyncBatchNorm` runs on GPUs only, and its backward pass cannot be differentiated, which gradient alignment and
implicit gradients need. The layer here uses a sum over ranks that can be differentiated any number of times.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adv_train.ranks.group import current

M = TypeVar("M", bound=nn.Module)


class _Sum(torch.autograd.Function):
    """The sum over ranks. Each rank has its own cotangent of the sum, so the adjoint sums the cotangents over ranks."""

    @staticmethod
    def forward(found: Tensor) -> Tensor:
        return current().add(found.clone())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        found: Tensor = _Sum.apply(cotangents[0])
        return found


class RanksBatchNorm(_BatchNorm):
    """BatchNorm that in training uses the statistics of the batches of all ranks together."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(batch, channels, ...)`."""
        ranks = current()
        if not self.training or ranks.size == 1:
            return super().forward(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        own = x.to(torch.promote_types(x.dtype, torch.float32))
        here = own.mean(axes)
        # Each rank fills its own row with count, mean and variance, the other rows with zeros: the sum over the ranks
        # then gathers all rows.
        row = torch.stack([torch.full_like(here, x.numel() / len(here)), here, own.var(axes, correction=0)])
        before, after = ranks.rank, ranks.size - ranks.rank - 1
        zeros = torch.zeros_like(row)
        counts, means, spreads = _Sum.apply(torch.stack([zeros] * before + [row] + [zeros] * after)).unbind(1)
        shares = counts / counts.sum(0)
        mean = (shares * means).sum(0)
        # The law of total variance; a mean of squares minus the square of the mean would cancel.
        variance = (shares * (spreads + (means - mean).square())).sum(0)
        self._follow(mean.detach(), variance.detach(), counts.detach()[:, 0].sum())
        shape = [1, -1] + [1] * (x.ndim - 2)
        normed = (own - mean.view(shape)) * (variance.view(shape) + self.eps).rsqrt()
        if self.weight is not None:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        found: Tensor = normed.to(x.dtype)
        return found

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1))  # as in torch, running_var follows the unbiased variance
        for running, latest in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.add_(share * (latest.to(running.dtype) - running))


def synchronised(model: M) -> M:
    """Turn the BatchNorm layers of a model, in place, into `RanksBatchNorm`; parameters keep their names and values."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, RanksBatchNorm):
            module.__class__ = RanksBatchNorm
    return model
