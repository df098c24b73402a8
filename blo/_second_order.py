"""Products with the Hessian of an objective, and with the Gauss-Newton approximation of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from blo._autodiff import differentiated_twice, jvp, transforms_active

__all__ = ["gauss_newton_products", "hessian_products"]


def hessian_products(gradient: Callable[[Tensor], Tensor], z: Tensor, *, recorded: bool) -> Callable[[Tensor], Tensor]:
    """Return v -> H v with the Jacobian H of the gradient at z; one graph of the gradient serves all products.

    Args:
        gradient: returns the gradient at a point, with its graph.
        z: shape `(*lanes, n)`.
        recorded: the products can be differentiated.
    """
    if transforms_active():
        # The pullback multiplies with the transpose, as the backward passes below do; H is symmetric.
        pullback = torch.func.vjp(gradient, z)[1]
        return lambda v: pullback(v)[0]
    with torch.enable_grad():
        point = z if z.requires_grad else z.detach().requires_grad_()
        slope = gradient(point)
    # The gradient of an objective that is linear in z may have no graph: H is zero.
    if not slope.requires_grad:
        return torch.zeros_like

    def product(v: Tensor) -> Tensor:
        # If the gradient depends on theta alone, H v is zero, for which torch returns None by default.
        options = {"retain_graph": True, "create_graph": recorded, "materialize_grads": True}
        found = torch.autograd.grad(slope, point, v, **options)[0]
        return found if recorded else found.detach()  # in torch 2.7 zeros of `materialize_grads` require grad

    return product


def gauss_newton_products(
    residuals: Callable[[Tensor], Tensor], z: Tensor, products: Literal["reverse", "forward"], *, recorded: bool
) -> Callable[[Tensor], Tensor]:
    """Return v -> J' J v with the Jacobian J of the residuals at z; one graph of them serves all products.

    Args:
        residuals: returns the vector of residuals at a point, shape `(*lanes, m)`.
        z: shape `(*lanes, n)`.
        products: how J v is computed: by a second backward pass, or in forward mode.
        recorded: the products can be differentiated.
    """
    if transforms_active():
        pull = torch.func.vjp(residuals, z)[1]
        return lambda v: pull(jvp(residuals, z, v))[0]
    options: dict[str, Any] = {"retain_graph": True, "create_graph": recorded, "materialize_grads": True}
    with torch.enable_grad():
        point = z if z.requires_grad else z.detach().requires_grad_()
        found = residuals(point)
        # Residuals without a graph do not depend on z, so J is zero.
        if not found.requires_grad:
            return torch.zeros_like
        if products == "reverse":
            probe = torch.zeros_like(found, requires_grad=True)
            # The pullback v -> J' v is linear in v, so its own pullback is the product with J.
            pulled = torch.autograd.grad(found, point, probe, **{**options, "create_graph": True})[0]

    def product(v: Tensor) -> Tensor:
        with torch.set_grad_enabled(recorded):
            if products == "forward":
                along = jvp(residuals, z, v)
            else:
                with differentiated_twice():
                    along = torch.autograd.grad(pulled, probe, v, **options)[0]
            image: Tensor = torch.autograd.grad(found, point, along, **options)[0]
        return image if recorded else image.detach()

    return product
