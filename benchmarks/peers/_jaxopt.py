"""jaxopt: a custom root with its conjugate gradients, compiled."""

from __future__ import annotations

import functools
import os

# One thread, as for torch; jax reads this when it starts.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import torch

from benchmarks.boxed import Boxed
from benchmarks.peers._base import Prepared, Unsupported
from benchmarks.smooth import Smooth

jax.config.update("jax_enable_x64", True)

NAME = "jaxopt"
DISTRIBUTION = "jaxopt"
METHOD = "custom_root, solve_cg, jit"
ITERATES = True


def prepare(problem: Smooth, products: int, damping: float = 0.0) -> Prepared:
    """Return the compiled gradient through `custom_root`."""
    if problem.z.is_cuda:
        raise Unsupported("jax runs on the CPU here")
    data, theta, known = (
        jax.tree.map(lambda tensor: jnp.asarray(tensor.numpy()), tree)
        for tree in (problem.data, problem.theta, problem.z)
    )

    def lower(z: Any, theta: Any, data: Any) -> Any:
        return problem.lower(jnp, data, theta, z)

    linear = functools.partial(jaxopt.linear_solve.solve_cg, maxiter=products, tol=0.0, ridge=damping or None)

    @jaxopt.implicit_diff.custom_root(jax.grad(lower), solve=linear)  # type: ignore[untyped-decorator]
    def solve(z: Any, theta: Any, data: Any) -> Any:
        return known

    @jax.jit  # type: ignore[untyped-decorator]
    @jax.grad  # type: ignore[untyped-decorator]
    def gradient(theta: Any, data: Any) -> Any:
        return problem.upper(jnp, data, theta, solve(jnp.zeros_like(known), theta, data))

    return Prepared(lambda: gradient(theta, data).block_until_ready(), lambda found: torch.from_numpy(np.array(found)))


def prepare_boxed(problem: Boxed, products: int) -> Prepared:
    """Return the compiled hypergradient of the box problems, by `vmap` over the function of one lane."""
    if problem.z.is_cuda:
        raise Unsupported("jax runs on the CPU here")
    tensors = (problem.matrix, problem.scale, problem.target, problem.theta, problem.z)
    matrix, scale, target, theta, known = (jnp.asarray(tensor.numpy()) for tensor in tensors)

    def lower(z: Any, theta: Any, matrix: Any, scale: Any) -> Any:
        return z @ (0.5 * (matrix @ z) - theta * scale)

    def optimality(z: Any, theta: Any, matrix: Any, scale: Any, known: Any) -> Any:
        slope = jax.grad(lower)(z, theta, matrix, scale)
        return z - jaxopt.projection.projection_box(z - slope, (-1.0, 1.0))

    linear = functools.partial(jaxopt.linear_solve.solve_normal_cg, maxiter=products, tol=0.0)

    @jaxopt.implicit_diff.custom_root(optimality, solve=linear)  # type: ignore[untyped-decorator]
    def solve(z: Any, theta: Any, matrix: Any, scale: Any, known: Any) -> Any:
        return known

    @jax.jit  # type: ignore[untyped-decorator]
    @jax.grad  # type: ignore[untyped-decorator]
    def gradient(theta: Any, matrix: Any, scale: Any, known: Any) -> Any:
        lanes = jax.vmap(solve, in_axes=(0, None, 0, 0, 0))
        return 0.5 * ((lanes(jnp.zeros_like(known), theta, matrix, scale, known) - target) ** 2).sum()

    return Prepared(
        lambda: gradient(theta, matrix, scale, known).block_until_ready(),
        lambda found: torch.from_numpy(np.array(found)),
    )
