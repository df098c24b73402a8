"""Data spread over processes: `blo.distributed.mean` is the objective on all the data, or says why not."""

from __future__ import annotations

import copy
import datetime
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import grad, hessian, jacrev, vmap

import blo
from blo.distributed import mean
from tests.integration.problems import assert_near

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 18
#: Where the shares of the ranks begin and end.
CUTS = {2: (0, 9, 18), 3: (0, 3, 9, 18)}
THETA = torch.tensor([-1.0, -0.5, -2.0], dtype=torch.float64)
Z0 = torch.zeros(3, dtype=torch.float64)
STEPS = blo.ProjectedGradient(step=0.3, max_steps=4, tol=None)
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def data() -> tuple[Tensor, Tensor]:
    """Return inputs and targets, halves of which are for training and for validation."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, SAMPLES, 3), (2, SAMPLES))]
    return draw[0], draw[1]


def findings(share: slice, wrap: Wrap, regular: Callable[[Tensor], Tensor | float]) -> dict[str, Tensor]:
    """Return what the library says of a problem whose data is this share, with its objectives wrapped.

    Args:
        share: which samples.
        wrap: what makes objectives over all data.
        regular: what stands for a term without data, of which one rank may carry the whole.
    """
    (x, x_val), (y, y_val) = (part[:, share] for part in data())
    found: dict[str, Tensor] = {}

    def put(name: str, out: blo.Hypergradient) -> None:
        found.update({name: out.grad, f"{name}, z": out.z, f"{name}, value": out.value})

    @wrap
    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return (x_val @ z - y_val).square().mean() + 0.1 * theta.square().sum()

    @wrap
    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return (-(x @ z) * y.sign()).exp().log1p().mean() + (theta.exp() * z.square()).sum()

    lower = blo.LowerProblem(objective)

    def solved(theta: Tensor, **options: Any) -> Tensor:
        value: Tensor = upper(theta, blo.argmin(lower, theta, Z0, **options))
        return value

    for products in ("reverse", "forward", "finite-difference"):
        put(products, blo.value_and_hypergrad(upper, lower, THETA, Z0, gradient=blo.Implicit(products=products)))
    put("CG", blo.value_and_hypergrad(upper, lower, THETA, Z0, gradient=blo.Implicit(blo.CG())))
    box = blo.LowerProblem(objective, lambda theta: blo.Box(-0.1 * theta.exp(), 0.05))
    put("box", blo.value_and_hypergrad(upper, box, THETA, Z0))
    for mode in ("reverse", "forward"):
        unrolled = blo.Unrolled(mode=mode)
        put(f"unrolled {mode}", blo.value_and_hypergrad(upper, lower, THETA, Z0, solver=STEPS, gradient=unrolled))

    theta = THETA.clone().requires_grad_()
    solved(theta).backward()
    assert theta.grad is not None
    found["argmin and backward"] = theta.grad
    found["torch.func.grad"] = grad(solved)(THETA)
    found["vmap of grad"] = vmap(grad(solved))(torch.stack([THETA, THETA + 0.1]))
    found["second order"] = jacrev(jacrev(solved))(THETA)
    found["hessian, unrolled"] = hessian(lambda theta: solved(theta, solver=STEPS, gradient=blo.Unrolled()))(THETA)
    found["hessian of the objective"] = hessian(objective, argnums=1)(THETA, Z0)
    (slope,) = torch.autograd.grad(solved(theta), theta, create_graph=True)
    (found["double backward"],) = torch.autograd.grad(slope.square().sum(), theta)
    fitted = blo.fit(
        upper, lower, THETA, Z0, optimizer=lambda leaves: torch.optim.Adam(leaves, lr=0.1), steps=2, on_failure="raise"
    )
    found["fit"] = fitted.theta

    for lanes in (3, 6):  # few values travel with the row, more in a reduction of their own

        @wrap
        def batched(theta: Tensor, z: Tensor) -> Tensor:
            return (z @ x.mT - y).square().mean(1) + (theta.exp() * z.square()).sum(1)

        @wrap
        def over_lanes(theta: Tensor, z: Tensor) -> Tensor:
            return (z.square() @ x_val.mT - y_val).square().mean()

        problem = blo.LowerProblem(batched, batched=True)
        start = torch.arange(3.0 * lanes, dtype=torch.float64).reshape(lanes, 3)
        put(f"{lanes} lanes", blo.value_and_hypergrad(over_lanes, problem, THETA, start))

    @wrap
    def own_problems(theta: Tensor, _: Any) -> Tensor:
        each = blo.LowerProblem(
            lambda theta, z: ((z - x).square() * theta.exp()).sum(1) + z.pow(4).sum(1), batched=True
        )
        return (blo.argmin(each, theta, torch.zeros_like(x)) * x_val).sum(1).mean()

    found["problems of each rank's own"] = grad(lambda theta: own_problems(theta, ()))(THETA)

    # Theta enters through one rank alone, and one of its leaves nowhere.
    @wrap
    def ridge_on_one_rank(theta: tuple[Tensor, ...], z: Tensor) -> Tensor:
        return (x @ z - y).square().mean() + regular((theta[0].exp() * z.square()).sum())

    put_apart = blo.value_and_hypergrad(
        wrap(lambda theta, z: (x_val @ z - y_val).square().mean()),
        blo.LowerProblem(ridge_on_one_rank),
        (THETA, torch.ones(2, dtype=torch.float64), torch.tensor(3)),
        Z0,
    )
    found["theta on one rank"] = put_apart.grad[0]

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    f = blo.functionalize(net, lambda output, y: (output.squeeze(-1) - y).square().mean())
    network = blo.LowerProblem(
        wrap(lambda t, z: f(z, x, y) + sum(t[name].exp() * z[name].square().sum() for name in z))
    )
    decay = {name: torch.tensor(-1.0, dtype=torch.float64) for name in f.parameters}
    trained = blo.value_and_hypergrad(wrap(lambda t, z: f(z, x_val, y_val)), network, decay, f.parameters)
    found["network"] = torch.stack(list(trained.grad.values()))
    return found


def start(rank: int, size: int, folder: str, seconds: float) -> None:
    """Join the process group."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    wait = datetime.timedelta(seconds=seconds)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=wait
    )


def compare(rank: int, folder: str) -> None:
    """Save what three ranks find, and what two of them find in a group of their own."""
    start(rank, 3, folder, 120)
    pair = distributed.new_group([0, 1])
    for size, group in ((3, None), (2, pair)):
        if rank < size:
            share = slice(*CUTS[size][rank : rank + 2])
            weight = share.stop - share.start

            def wrap(f: Callable[..., Any], weight: float = weight, group: Any = group) -> Callable[..., Any]:
                return mean(f, weight, group)

            def regular(term: Tensor, weight: float = weight) -> Tensor | float:
                return SAMPLES / weight * term if rank == 0 else 0.0

            torch.save(findings(share, wrap, regular), f"{folder}/{size}-{rank}.pt")
        else:
            with pytest.raises(blo.StructureError, match="is not in it"):
                mean(lambda theta, z: theta, group=group)(THETA, Z0)
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_and_three_processes_find_what_one_finds_on_all_the_data(tmp_path: Path) -> None:
    context = mp.spawn(compare, (str(tmp_path),), nprocs=3, join=False)
    truth = findings(slice(None), lambda f: f, lambda term: term)
    while not context.join():
        pass
    for size in (2, 3):
        first, *others = (torch.load(tmp_path / f"{size}-{rank}.pt") for rank in range(size))
        assert first.keys() == truth.keys()
        for name, value in truth.items():
            # Differences divide the rounding of a sum, which its order changes, by a step of 1e-5.
            tolerance = 1e-9 if name.startswith("finite-difference") else 1e-12
            assert_near(first[name], value, tolerance)
            for other in others:
                assert torch.equal(other[name], first[name]), name
        assert_near(first["theta on one rank"], ridge_hypergradient(), 1e-12)


def leave(rank: int, folder: str) -> None:
    """Destroy the process group while objectives and a result that were made in it are kept."""
    start(rank, 2, folder, 60)
    kept = mean(by_hand), mean(lambda theta, z: z.square().sum())
    out = blo.value_and_hypergrad(kept[1], blo.LowerProblem(kept[0]), THETA, Z0)
    late = kept[0](THETA.clone().requires_grad_(), out.z)
    group = weakref.ref(distributed.group.WORLD)
    distributed.barrier()
    time.sleep(1)  # torch 2.7 hangs where a group is destroyed while its thread frees the last tensors
    distributed.destroy_process_group()
    assert group() is None  # its threads would abort the process at exit
    with pytest.raises(blo.distributed.RankError, match="has been destroyed"):
        late.backward()


def test_a_process_group_that_is_destroyed_is_kept_alive_by_nothing(tmp_path: Path) -> None:
    mp.spawn(leave, (str(tmp_path),), nprocs=2)


def ridge_hypergradient() -> np.ndarray:
    """Return the hypergradient of ridge regression from its normal equations, in NumPy."""
    (x, x_val), (y, y_val) = (part.numpy() for part in data())
    weights = np.exp(THETA.numpy())
    bend = x.T @ x / SAMPLES + np.diag(weights)
    z = np.linalg.solve(bend, x.T @ y / SAMPLES)
    v = 2 * x_val.T @ (x_val @ z - y_val) / SAMPLES
    return -weights * z * np.linalg.solve(bend, v)


def fall_out(rank: int, folder: str) -> None:
    """Save the error that each of two ranks gets when their calls differ; at the end kill the second rank."""
    start(rank, 2, folder, 60)
    told: dict[str, tuple[str, str]] = {}

    def case(name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            told[name] = type(error).__name__, str(error)
        else:
            told[name] = "no error", ""
        torch.save(told, f"{folder}/{rank}.pt")

    def solve(objective: Callable[..., Any], theta: Tensor = THETA, z0: Tensor = Z0) -> blo.Hypergradient:
        upper = mean(lambda theta, z: z.sum())
        return blo.value_and_hypergrad(upper, blo.LowerProblem(mean(objective)), theta, z0)

    def fine(theta: Tensor, z: Tensor) -> Tensor:
        return (z - theta).square().sum()

    calls = []

    def breaks(theta: Tensor, z: Tensor) -> Tensor:
        calls.append(z)
        if rank == 1 and len(calls) == 3:
            raise KeyError("sample 7 is missing")
        return fine(theta, z)

    second = rank == 1
    case("exception", lambda: solve(breaks))
    case("NaN", lambda: solve(lambda theta, z: fine(theta, z) * (torch.nan if second else 1.0)))
    case("another z0", lambda: solve(fine, z0=Z0 + rank))
    case("theta another by one bit", lambda: solve(fine, theta=THETA * (1 + 2.3e-16 * rank)))
    case("another shape", lambda: solve(fine, THETA[: 3 - rank], Z0[: 3 - rank]))
    case("another number of values", lambda: mean(lambda theta, z: z[: 2 + rank])(THETA, Z0))
    case("no gradient", lambda: mean(fine)(THETA.clone().requires_grad_(second), Z0))
    objective, logged = mean(fine), mean(fine)

    def log_on_the_first() -> None:
        objective(THETA, Z0), logged(THETA, Z0)  # at their first evaluation objectives are told apart
        if not second:
            logged(THETA, Z0)
        objective(THETA, Z0)

    case("an evaluation on one rank", log_on_the_first)
    case("the group is sound", lambda: solve(fine))

    impatient = distributed.new_group([0, 1], timeout=datetime.timedelta(seconds=2))
    late = mean(fine, group=impatient)
    case("agreed", lambda: late(THETA, Z0))
    case("no answer", lambda: None if second else late(THETA, Z0))
    distributed.barrier()

    def dies(theta: Tensor, z: Tensor) -> Tensor:
        if second:
            os.kill(os.getpid(), signal.SIGKILL)
        return fine(theta, z)

    case("killed", lambda: solve(dies))
    os._exit(0)  # taking down a group of which one member was killed aborts in gloo at times


def test_a_rank_that_fails_or_goes_its_own_way_is_an_error_on_all(tmp_path: Path) -> None:
    context = mp.spawn(fall_out, (str(tmp_path),), nprocs=2, join=False)
    try:
        for process in context.processes:
            process.join(120)
    finally:
        for process in context.processes:
            process.kill()  # none is left behind to wait for another
    assert [process.exitcode for process in context.processes] == [0, -signal.SIGKILL]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))

    def told(name: str, kind: str, pattern: str) -> None:
        for found in (first, second):
            assert found[name][0] == kind, (name, found[name])
            assert re.search(pattern, found[name][1]), (name, found[name])

    assert second["exception"] == ("KeyError", "'sample 7 is missing'")
    assert first["exception"][0] == "RankError"
    assert "failed on rank 1" in first["exception"][1] and "KeyError: 'sample 7 is missing'" in first["exception"][1]
    told("NaN", "NonFiniteError", "objective has no finite gradient")
    told("another z0", "StructureError", "must have the same z, bit for bit")
    told("theta another by one bit", "StructureError", "must have the same theta, bit for bit")
    told("another shape", "StructureError", r"same structure.*rank 0.*\(3,\).*rank 1.*\(2,\)")
    told("another number of values", "StructureError", "values of the same structure")
    told("no gradient", "StructureError", "require the same gradients")
    told("an evaluation on one rank", "StructureError", "must evaluate the same objective")
    for name in ("the group is sound", "agreed"):
        told(name, "no error", "")
    assert second["no answer"][0] == "no error"
    for name in ("no answer", "killed"):
        assert first[name][0] == "RankError" and "rank 0 of 2 got no answer" in first[name][1], first[name]


def by_hand(theta: Tensor, z: Tensor) -> Tensor:
    return (z - theta).square().sum()


def test_without_a_process_group_it_is_the_objective_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert torch.equal(mean(by_hand)(THETA, Z0), by_hand(THETA, Z0))
    assert mean(lambda theta, z, batch: batch)(THETA, Z0, "batch") == "batch"


def test_one_of_several_processes_without_a_process_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(blo.StructureError, match=r"init_process_group.*WORLD_SIZE=2"):
        mean(by_hand)(THETA, Z0)


def test_a_group_of_one_is_the_objective_itself(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert torch.equal(mean(by_hand, 3.0)(THETA, Z0), by_hand(THETA, Z0))
    finally:
        distributed.destroy_process_group()


def test_it_works_where_torch_was_built_without_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name in set(vars(distributed)) - {"is_available"}:
        if not name.startswith("__"):
            monkeypatch.delattr(distributed, name)
    monkeypatch.setattr(distributed, "is_available", lambda: False)
    file = Path(blo.distributed.__path__[0]) / "_ranks.py"
    spec = importlib.util.spec_from_file_location("ranks_alone", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ranks_alone", module)  # where dataclasses look for the module
    spec.loader.exec_module(module)  # the import itself needs none of the names
    assert module.Ranks.of(None) is None
    assert torch.equal(mean(by_hand)(THETA, Z0), by_hand(THETA, Z0))


@pytest.mark.parametrize("weight", [0.0, -1.0, torch.nan, torch.inf])
def test_a_weight_must_be_positive_and_finite(weight: float) -> None:
    with pytest.raises(ValueError, match="`weight` must be"):
        mean(by_hand, weight)


def test_a_lower_problem_is_no_objective() -> None:
    with pytest.raises(blo.StructureError, match=r"Wrap the objective before"):
        mean(blo.LowerProblem(by_hand))  # type: ignore[arg-type]


def test_the_example_of_the_page_prints_what_it_shows_when_torchrun_starts_two_processes(tmp_path: Path) -> None:
    page = (ROOT / "docs/distributed.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```$.*?^```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert found is not None
    source, shown = found.groups()
    (tmp_path / "train.py").write_text(source, encoding="utf-8")
    assert _torchrun(2, tmp_path / "train.py", tmp_path) == (0, shown)


def test_the_training_loop_of_the_page_prints_the_same_for_one_process_and_for_two(tmp_path: Path) -> None:
    # Not the exit status: torch may abort a process that has used `DistributedDataParallel` with gloo, at its exit.
    one, two = (_torchrun(processes, ROOT / "docs/examples/train_ddp.py", tmp_path)[1] for processes in (1, 2))
    assert one == two and "epoch 30" in one
    *good, first, second = (float(weight) for weight in one.splitlines()[-1].rpartition("sources ")[2].split(", "))
    assert min(good) > 0.9 > 0.1 > max(first, second)  # the labels of the last two sources are random


def _torchrun(processes: int, script: Path, folder: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    path = os.pathsep.join([str(Path(blo.__file__).parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return _run([*command, str(script)], cwd=folder, env=environment)


def _run(command: list[str], **options: Any) -> tuple[int, str]:
    """Run `torchrun`, up to three times.

    torch 2.7 may deadlock where it destroys a process group: it holds the lock of the interpreter while it waits for a
    thread that needs this lock to release the tensors of the last collective.
    """
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
            try:
                said, _ = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.terminate()  # torchrun then ends its processes
            else:
                return process.returncode, said
    raise AssertionError("torchrun has not ended in three runs of two minutes")


def shares_of_a_system(rank: int, folder: str) -> None:
    """Solve a system of which three ranks hold 2, 5 and 3 coordinates, by each solver that takes an inner product."""
    start(rank, 3, folder, 60)
    cuts = (0, 2, 7, 10)
    matrix, b = system()
    own, inner, products = slice(*cuts[rank : rank + 2]), blo.distributed.inner_product(), []

    class Rows(blo.operators.Operator):
        symmetric, positive = True, False

        def __call__(self, v: Tensor) -> Tensor:
            parts: list[Any] = [None] * 3
            distributed.all_gather_object(parts, v)
            products.append(v)
            return matrix[own] @ torch.cat(parts)

    solvers = (
        blo.CG(inner=inner),
        blo.MINRES(inner=inner),
        blo.GMRES(inner=inner),
        blo.Neumann(terms=3000, tol=1e-12, inner=inner),
        blo.Auto(inner=inner),
    )
    found = {type(solver).__name__: solver.solve(Rows(), b[own]) for solver in solvers}
    held = b[own].clone().requires_grad_()
    square = inner(held, held)
    (slope,) = torch.autograd.grad(square, held)
    rows = {name: (one.x, one.residual, one.iterations) for name, one in found.items()}
    page = (ROOT / "docs/distributed.md").read_text(encoding="utf-8").partition("## Vectors spread over processes")[2]
    names: dict[str, Any] = {"torch": torch, "distributed": distributed, "blo": blo, "rank": rank, "size": 3}
    torch.set_default_dtype(torch.float64)
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    torch.save((rows, square.detach(), slope, len(products), names["share"]), f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def system() -> tuple[Tensor, Tensor]:
    """Return a symmetric positive definite matrix with eigenvalues from 0.05 to 1, and a right-hand side."""
    generator = torch.Generator().manual_seed(4)
    vectors, _ = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64))
    matrix = vectors @ torch.diag(torch.linspace(0.05, 1.0, 10, dtype=torch.float64)) @ vectors.T
    return 0.5 * (matrix + matrix.T), torch.randn(10, generator=generator, dtype=torch.float64)


def test_a_linear_system_whose_coordinates_are_spread_over_processes_is_solved(tmp_path: Path) -> None:
    mp.spawn(shares_of_a_system, (str(tmp_path),), nprocs=3)
    matrix, b = system()
    truth = torch.as_tensor(np.linalg.solve(matrix.numpy(), b.numpy()))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    for name in ranks[0][0]:
        assert_near(torch.cat([rows[name][0] for rows, *_ in ranks]), truth, 1e-8)
        for rows, *_ in ranks[1:]:  # residuals and iterations are those of the whole system, on every rank
            assert torch.equal(rows[name][1], ranks[0][0][name][1]) and torch.equal(rows[name][2], ranks[0][0][name][2])
    for _, square, _, products, _ in ranks:
        assert_near(square, b.square().sum().reshape(1), 1e-12)
        assert products == ranks[0][3]
    assert_near(torch.cat([slope for _, _, slope, *_ in ranks]), 2 * b, 1e-12)
    line = 2.5 * np.eye(300) - np.eye(300, k=1) - np.eye(300, k=-1)
    assert_near(torch.cat([share for *_, share in ranks]), torch.as_tensor(np.linalg.solve(line, np.ones(300))), 1e-8)


def gathered_from_shards(rank: int, folder: str) -> None:
    """Train a module sharded over two ranks, and take hypergradients at its gathered parameters as the page does."""
    start(rank, 2, folder, 60)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x, y = torch.randn(2, 12, 4), torch.randn(2, 12, 2)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    f = blo.functionalize(net, nn.functional.mse_loss)
    sharded = fully_shard(copy.deepcopy(net), mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.Adam(sharded.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.mse_loss(sharded(x[0, rank::2]), y[0, rank::2]).backward()
        optimizer.step()
    with pytest.raises(blo.StructureError, match="sharded by FSDP"):  # its hooks would put the shards in place of z
        blo.functionalize(sharded, nn.functional.mse_loss)
    weights = {name: p.full_tensor().detach() for name, p in sharded.named_parameters()}

    def found(rows: slice, wrap: Wrap) -> blo.Hypergradient:
        def objective(theta: Tensor, z: dict[str, Tensor]) -> Tensor:
            return f(z, x[0, rows], y[0, rows]) + theta.exp() * sum(leaf.square().sum() for leaf in z.values())

        def upper(theta: Tensor, z: dict[str, Tensor]) -> Tensor:
            return f(z, x[1, rows], y[1, rows])

        strategy = blo.Implicit(blo.CG(max_iter=5, damping=0.1, tol=None))
        return blo.value_and_hypergrad(
            wrap(upper),
            blo.LowerProblem(wrap(objective)),
            torch.tensor(0.0),
            weights,
            solver=blo.Given(),
            gradient=strategy,
            on_failure="ignore",
        )

    shared, alone = found(slice(rank, None, 2), mean), found(slice(None), lambda objective: objective)
    torch.save(((shared.grad, shared.value), (alone.grad, alone.value), weights), f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def test_a_hypergradient_at_gathered_parameters_of_a_sharded_module_is_that_of_one_process(tmp_path: Path) -> None:
    mp.spawn(gathered_from_shards, (str(tmp_path),), nprocs=2)
    (shared, alone, weights), (again, *_) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(shared, again, strict=True))
    for mine, theirs in zip(shared, alone, strict=True):
        assert_near(mine, theirs, 1e-10)
    assert alone[0].abs() > 1e-3 and weights["0.weight"].shape == (3, 4)
