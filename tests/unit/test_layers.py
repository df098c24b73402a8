"""Every layer, loss and parametrization of torch.nn: derivatives along a direction against differences of the value.

First derivatives are those of the value. Second ones are right, or raise an error that names the layer. The differences
share nothing with autograd beyond the gradient, which is itself compared with differences of the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import blo
from blo._formulas import Formulas
from blo._norms import NORMS

Make = Callable[[], nn.Module]
#: First derivatives alone: the second ones are refused.
ONCE = {"EmbeddingBag", "EmbeddingBag max_norm", "EmbeddingBag counted", "EmbeddingBag sparse", "EmbeddingBag max"}
ONCE |= {"MultiLabelMarginLoss", "MultiMarginLoss", "CTCLoss", "LinearCrossEntropyLoss chunked"}
norm_deprecated = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")


def r(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(*shape: int, high: int = 5) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1))


class Held(nn.Module):
    """A layer whose input, where it is real, is a parameter."""

    def __init__(self, layer: nn.Module, x: Tensor, *more: Any) -> None:
        super().__init__()
        self.layer, self.more = layer, more
        if x.is_floating_point():
            self.x = nn.Parameter(x)
        else:
            self.register_buffer("x", x)

    def forward(self) -> Any:
        return self.layer(self.x, *self.more)


class Unpooled(nn.Module):
    def __init__(self, axes: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{axes}d")(2, return_indices=True)
        self.back = getattr(nn, f"MaxUnpool{axes}d")(2)

    def forward(self, x: Tensor) -> Any:
        return self.back(*self.pool(x))


class Itself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x)


def table() -> dict[str, tuple[Any, ...]]:
    """Return a layer, its input and its further arguments by name; the first word is the class."""
    flat, wide = r(5, 6), r(2, 3, 4)
    found: dict[str, tuple[Any, ...]] = {}
    for name in (
        "ELU",
        "Hardshrink",
        "Hardsigmoid",
        "Hardtanh",
        "Hardswish",
        "LeakyReLU",
        "LogSigmoid",
        "PReLU",
        "ReLU",
        "ReLU6",
        "RReLU",
        "SELU",
        "CELU",
        "GELU",
        "Sigmoid",
        "SiLU",
        "Mish",
        "Softplus",
        "Softshrink",
        "Softsign",
        "Tanh",
        "Tanhshrink",
        "GLU",
        "Dropout",
        "AlphaDropout",
        "FeatureAlphaDropout",
        "Identity",
        "Flatten",
    ):
        found[name] = (getattr(nn, name), flat)
    for name in ("Softmin", "Softmax", "LogSoftmax"):
        found[name] = (lambda name=name: getattr(nn, name)(1), flat)
    for axes in (1, 2, 3):
        x, even = r(2, 4, *(7, 5, 4)[:axes]), r(2, 4, *(4,) * axes)
        options: dict[str, tuple[Any, ...]] = {
            "Conv": (4, 2, 3, 2, 1),
            "ConvTranspose": (4, 2, 3, 2, 1),
            "BatchNorm": (4,),
            "InstanceNorm": (4, 1e-5, 0.1, True, True),
            "MaxPool": (2,),
            "AvgPool": (2,),
            "AdaptiveMaxPool": (2,),
            "AdaptiveAvgPool": (2,),
            "ReflectionPad": (1,),
            "ReplicationPad": (1,),
            "ZeroPad": (1,),
            "CircularPad": (1,),
            "ConstantPad": (1, 0.5),
            "Dropout": (),
        }
        for name, given in options.items():
            full = f"{name}{axes}d"
            found[full] = (lambda full=full, given=given: getattr(nn, full)(*given), x)
        found[f"LPPool{axes}d"] = (lambda axes=axes: getattr(nn, f"LPPool{axes}d")(3, 2), x.abs())
        found[f"MaxUnpool{axes}d"] = (lambda axes=axes: Unpooled(axes), even)
    for name in ("RNN", "LSTM", "GRU"):
        found[name] = (lambda name=name: getattr(nn, name)(4, 3, 2, dropout=0.3, bidirectional=True), r(5, 2, 4))
        found[f"{name}Cell"] = (lambda name=name: getattr(nn, f"{name}Cell")(4, 3), r(5, 4))
    for name, axes in (("nearest", 2), ("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3)):
        found[f"Upsample {name}"] = (lambda name=name: nn.Upsample(scale_factor=2, mode=name), r(1, 2, *(3,) * axes))
    bags = {"": {}, " max_norm": {"max_norm": 1.0}, " counted": {"scale_grad_by_freq": True}}
    rows = bags | {
        " sparse": {"sparse": True},
        " padded": {"padding_idx": 1},
        " p": {"max_norm": 1.0, "norm_type": 3.0},
    }
    for name, keywords in rows.items():
        found[f"Embedding{name}"] = (lambda keywords=keywords: nn.Embedding(5, 3, **keywords), whole(4, 3))
    found["Embedding under spectral_norm"] = (
        lambda: parametrizations.spectral_norm(nn.Embedding(5, 3, padding_idx=1)),
        whole(4, 3),
    )
    for name, keywords in (bags | {" sparse": {"sparse": True}, " max": {"mode": "max"}}).items():
        found[f"EmbeddingBag{name}"] = (lambda keywords=keywords: nn.EmbeddingBag(5, 3, **keywords), whole(4, 3))
    for name, keywords in {"": {}, " dim 1": {"dim": 1}, " whole": {"dim": None}}.items():
        for kind, make in (("weight_norm", parametrizations.weight_norm), ("old weight_norm", nn.utils.weight_norm)):
            found[kind + name] = (lambda make=make, keywords=keywords: make(nn.Linear(4, 3), **keywords), r(5, 4))
    for kind, norm in (
        ("spectral_norm", parametrizations.spectral_norm),
        ("old spectral_norm", nn.utils.spectral_norm),
    ):
        found[kind] = (lambda norm=norm: norm(nn.Linear(4, 3)), r(5, 4))
        found[f"{kind} in evaluation mode"] = (lambda norm=norm: norm(nn.Linear(4, 3)).eval(), r(5, 4))
        found[f"{kind} twice"] = (
            lambda norm=norm: (lambda layer: nn.Sequential(layer, layer))(norm(nn.Linear(4, 4), n_power_iterations=3)),
            r(5, 4),
        )
    for name in ("matrix_exp", "cayley", "householder"):
        found[f"orthogonal {name}"] = (
            lambda name=name: parametrizations.orthogonal(nn.Linear(4, 3), orthogonal_map=name),
            r(5, 4),
        )
    found |= {
        "prune": (lambda: prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.3), r(5, 4)),
        "Linear": (lambda: nn.Linear(6, 3), flat),
        "Bilinear": (lambda: nn.Bilinear(6, 4, 3), flat, r(5, 4, seed=3)),
        "Threshold": (lambda: nn.Threshold(0.1, 0.3), flat),
        "Unflatten": (lambda: nn.Unflatten(1, (2, 3)), flat),
        "Softmax2d": (nn.Softmax2d, r(2, 3, 2, 2)),
        "FractionalMaxPool2d": (lambda: nn.FractionalMaxPool2d(2, output_ratio=0.6), r(2, 3, 6, 6)),
        "FractionalMaxPool3d": (lambda: nn.FractionalMaxPool3d(2, output_ratio=0.6), r(1, 2, 5, 5, 5)),
        "SyncBatchNorm": (lambda: nn.SyncBatchNorm(6), flat),
        "LayerNorm": (lambda: nn.LayerNorm(6), flat),
        "RMSNorm": (lambda: nn.RMSNorm(6), flat),
        "GroupNorm": (lambda: nn.GroupNorm(2, 4), r(3, 4, 5)),
        "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), r(2, 4, 3, 3)),
        "MultiheadAttention": (Itself, wide),
        "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), wide),
        "TransformerEncoder": (
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), 1),
            wide,
        ),
        "TransformerDecoder": (
            lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 5, batch_first=True), 1),
            wide,
            r(2, 3, 4, seed=4),
        ),
        "Transformer": (lambda: nn.Transformer(4, 2, 1, 1, 5, batch_first=True), wide, r(2, 3, 4, seed=4)),
        "Fold": (lambda: nn.Fold((4, 4), 2), r(2, 8, 9)),
        "Unfold": (lambda: nn.Unfold(2), r(2, 3, 4, 4)),
        "PixelShuffle": (lambda: nn.PixelShuffle(2), r(2, 4, 3, 3)),
        "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), r(2, 1, 4, 4)),
        "ChannelShuffle": (lambda: nn.ChannelShuffle(2), r(2, 4, 3, 3)),
        "CosineSimilarity": (nn.CosineSimilarity, flat, r(5, 6, seed=2)),
        "PairwiseDistance": (nn.PairwiseDistance, flat, r(5, 6, seed=2)),
        "AdaptiveLogSoftmaxWithLoss": (
            lambda: nn.AdaptiveLogSoftmaxWithLoss(6, 8, [3, 5], div_value=2.0),
            r(8, 6),
            torch.arange(8),
        ),
    }
    share, sign, label = torch.sigmoid(r(5, 6, seed=2)), torch.sign(r(5, 6, seed=3)), whole(5, high=6)
    for name in ("L1", "MSE", "SmoothL1", "Huber", "PoissonNLL", "BCEWithLogits", "MultiLabelSoftMargin"):
        found[f"{name}Loss"] = (getattr(nn, f"{name}Loss"), flat, share.round() if "Soft" in name else share)
    found |= {
        "CrossEntropyLoss": (lambda: nn.CrossEntropyLoss(label_smoothing=0.1), flat, label),
        "NLLLoss": (nn.NLLLoss, flat, label),
        "GaussianNLLLoss": (nn.GaussianNLLLoss, flat, share, share + 0.2),
        "BCELoss": (nn.BCELoss, 0.4 + 0.2 * share, share.round()),
        "KLDivLoss": (lambda: nn.KLDivLoss(reduction="batchmean"), flat, share),
        "MarginRankingLoss": (nn.MarginRankingLoss, flat, share, sign),
        "HingeEmbeddingLoss": (nn.HingeEmbeddingLoss, flat, sign),
        "MultiLabelMarginLoss": (nn.MultiLabelMarginLoss, flat, torch.arange(6).repeat(5, 1) - 1),
        "SoftMarginLoss": (nn.SoftMarginLoss, flat, sign),
        "CosineEmbeddingLoss": (nn.CosineEmbeddingLoss, flat, share, sign[:, 0]),
        "MultiMarginLoss": (nn.MultiMarginLoss, flat, label),
        "TripletMarginLoss": (nn.TripletMarginLoss, flat, share, r(5, 6, seed=7)),
        "TripletMarginWithDistanceLoss": (nn.TripletMarginWithDistanceLoss, flat, share, r(5, 6, seed=7)),
        "CTCLoss": (CTC, r(8, 2, 5), whole(2, 3, high=4) + 1, torch.tensor([8, 8]), torch.tensor([3, 2])),
    }
    if hasattr(nn, "LinearCrossEntropyLoss"):  # in newer torch
        found["LinearCrossEntropyLoss"] = (lambda: nn.LinearCrossEntropyLoss(6, 6, label_smoothing=0.1), flat, label)
        for kept in (True, False):
            found[f"LinearCrossEntropyLoss chunked{' and kept' if kept else ''}"] = (
                lambda kept=kept: nn.LinearCrossEntropyLoss(
                    6, 6, options=nn.LinearCrossEntropyOptions(allow_retain_graph=kept)
                ),
                flat,
                label,
            )
    return found


class CTC(nn.Module):
    """Torch's gradient is that of the value for logarithms of probabilities only."""

    def forward(self, x: Tensor, *more: Any) -> Any:
        return F.ctc_loss(x.log_softmax(-1), *more)


def reals(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output.reshape(-1)] if output.is_floating_point() else []
    return [part for piece in output for part in reals(piece)]


def measure(output: Any) -> Tensor:
    entries = torch.cat(reals(output))
    return (torch.linspace(1, 2, len(entries), dtype=entries.dtype) * (entries.square() + (1.3 * entries).sin())).mean()


CASES = table()


@norm_deprecated
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_the_value(name: str) -> None:
    make, x, *more = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Held(make().double(), x.clone(), *more)
    f = blo.functionalize(module, measure)
    names = list(f.parameters)
    start = [p.detach() + 0.1 * r(*p.shape, seed=i) for i, p in enumerate(f.parameters.values())]
    if any(name.endswith("_v") or name.endswith("original1") for name in names):
        start = [p.detach() for p in f.parameters.values()]  # the norm of v, which torch takes for a constant
    along = [r(*p.shape, seed=20 + i) for i, p in enumerate(start)]

    def gradient(t: float, graph: bool = False) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        at = [(p + t * e).requires_grad_() for p, e in zip(start, along, strict=True)]
        value = f(dict(zip(names, at, strict=True)))
        slopes = torch.autograd.grad(value, at, create_graph=graph, materialize_grads=True)
        return value.detach(), list(slopes), at

    h, weights = 1e-5, ((8, 1), (-8, -1), (-1, 2), (1, -2))
    sides = [(weight / (12 * h), gradient(place * h)) for weight, place in weights]
    _, slopes, at = gradient(0.0, graph=True)
    slope = sum((a * e).sum() for a, e in zip(slopes, along, strict=True))
    truth = sum(weight * value for weight, (value, *_) in sides)
    assert abs(slope - truth) <= 1e-7 * (1 + abs(truth))
    truths = [sum(weight * side[1][i] for weight, side in sides) for i in range(len(names))]
    if name in ONCE:
        return
    second = (
        torch.autograd.grad(slope, at, materialize_grads=True) if slope.requires_grad else map(torch.zeros_like, at)
    )
    for product, exact in zip(second, truths, strict=True):
        assert (product - exact).abs().max() <= 1e-7 * (1 + exact.abs().max())


@norm_deprecated
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@pytest.mark.parametrize("name", sorted(CASES.keys() - ONCE))
def test_third_derivatives_with_the_formulas_of_a_second_differentiation(name: str) -> None:
    make, x, *more = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f = blo.functionalize(Held(make().double(), x.clone(), *more), measure)
    start = {k: p.detach() + 0.1 * r(*p.shape, seed=i) for i, (k, p) in enumerate(f.parameters.items())}
    along = {k: r(*p.shape, seed=20 + i) for i, (k, p) in enumerate(start.items())}

    def derivative(order: int, t: float) -> Tensor:
        at = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        with Formulas(NORMS if order == 3 else {}):
            found = f({k: start[k] + at * along[k] for k in start})
        for _ in range(order):
            if not found.requires_grad:
                return torch.zeros_like(at)
            (found,) = torch.autograd.grad(found, at, create_graph=True, materialize_grads=True)
        return found.detach()

    h = 1e-4
    near, far = (derivative(2, k * h) - derivative(2, -k * h) for k in (1, 2))
    truth = (8 * near - far) / (12 * h)
    assert abs(derivative(3, 0.0) - truth) <= 1e-6 * (1 + abs(truth))


def test_the_table_has_every_layer_of_torch() -> None:
    containers = {"Container", "Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"}
    bases = {"RNNBase", "RNNCellBase", "DataParallel", "Buffer", "Parameter", "UninitializedBuffer"}
    same = {"UninitializedParameter", "NLLLoss2d", "UpsamplingBilinear2d", "UpsamplingNearest2d", "CrossMapLRN2d"}
    same |= {"TransformerDecoderLayer", "LinearCrossEntropyOptions"}
    classes = {name for name in dir(nn) if isinstance(getattr(nn, name), type) and not name.startswith("Lazy")}
    assert classes - {name.split()[0] for name in CASES} <= containers | bases | same | {"Upsample"}


@pytest.mark.parametrize("name", sorted(ONCE & CASES.keys()))
def test_missing_second_derivatives_name_the_products_that_work(name: str) -> None:
    make, x, *more = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f = blo.functionalize(Held(make().double(), x.clone(), *more), measure)
    start = {name: p.detach() for name, p in f.parameters.items()}
    lower = blo.LowerProblem(lambda t, z: f(z) + t.exp() * sum((z[k] - start[k] + 1).square().sum() for k in z))
    theta = torch.tensor(2.0, dtype=torch.float64)

    def solve(products: Any) -> blo.Hypergradient:
        gradient = blo.Implicit(blo.CG(), products=products)
        return blo.value_and_hypergrad(
            lambda t, z: sum(p.square().sum() for p in z.values()), lower, theta, start, gradient=gradient
        )

    with pytest.raises(blo.DerivativeError, match="products='finite-difference'"):
        solve("reverse")
    assert torch.isfinite(solve("finite-difference").grad)


def test_a_cache_of_parametrizations_does_not_make_evaluations_stale() -> None:
    f = blo.functionalize(parametrizations.weight_norm(nn.Linear(4, 3)).double(), measure)
    twice = {name: 2 * p.detach() for name, p in f.parameters.items()}
    truth = f(twice, r(5, 4))
    with parametrize.cached():
        f(f.parameters, r(5, 4))
        assert torch.equal(f(twice, r(5, 4)), truth)


class Writes(nn.Module):
    """Writes to its weight, or to its input, by one of the ways there are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(4, 2).double(), how

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight
        if self.how == "data":
            weight.data.clamp_(-9, 9)
        elif self.how == "detach":
            weight.detach().view(-1).mul_(0.5)
        elif self.how == "no_grad":
            with torch.no_grad():
                weight.copy_(weight / weight.norm())
        elif self.how == "evaluation" and not self.training:
            weight.data.clamp_(-0.1, 0.1)
        elif self.how == "input":
            x.clamp_(-1, 1)
        y: Tensor = self.linear(x)
        return y


@pytest.mark.parametrize("how", ["data", "detach", "no_grad", "evaluation"])
def test_writes_to_parameters_are_refused_before_they_are_made(how: str) -> None:
    module = Writes(how)
    f = blo.functionalize(module, measure)
    parameters = {name: p.detach() for name, p in f.parameters.items()}
    before = {name: p.clone() for name, p in parameters.items()}
    if how == "evaluation":
        f(parameters, r(5, 4))
        module.eval()
    with pytest.raises(blo.StructureError, match=r"writes to 'linear\.weight'"):
        f(parameters, r(5, 4))
    assert all(torch.equal(parameters[name], before[name]) for name in before)


def test_inputs_that_a_module_writes_to_are_copied() -> None:
    f, x = blo.functionalize(Writes("input"), measure), 3 * r(5, 4)
    before = x.clone()
    values = [f(f.parameters, x).item() for _ in range(3)]
    assert values == [f(f.parameters, before.clamp(-1, 1)).item()] * 3
    assert torch.equal(x, before)


def test_embeddings_that_shorten_rows_leave_what_they_are_given() -> None:
    f = blo.functionalize(nn.Embedding(4, 3, max_norm=0.8), measure)
    weight = torch.full((4, 3), 2.0, requires_grad=True)
    value = f({"weight": weight}, torch.tensor([0, 1]))
    assert weight.min() == 2.0
    (slope,) = torch.autograd.grad(value, weight)
    assert slope.sum(1).abs().max() <= 1e-6  # along the row nothing changes


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.body, x, use_reentrant=True)
        return y


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_are_refused_around_the_call_and_left_out_inside_the_module() -> None:
    x = r(5, 4)
    f = blo.functionalize(nn.Linear(4, 3).double(), measure)
    for call in (
        lambda: checkpoint(f, f.parameters, x, use_reentrant=True),
        lambda: checkpoint(lambda x: f(f.parameters, x), x.clone().requires_grad_(), use_reentrant=True),
    ):
        with pytest.raises(blo.StructureError, match="use_reentrant=False"):
            call()
    with torch.no_grad():
        f(f.parameters, x)  # no checkpoint, no error
    module = Checkpointed()
    inside, plain = blo.functionalize(module, measure), blo.functionalize(module.body, measure)
    for _ in range(2):  # the first evaluation is watched, and the others are not
        found = torch.autograd.grad(inside(inside.parameters, x), list(inside.parameters.values()))
        wanted = torch.autograd.grad(plain(plain.parameters, x), list(plain.parameters.values()))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2).double()

    def forward(self, *, x: Tensor, scale: float = 1.0) -> Tensor:
        y: Tensor = scale * self.linear(x)
        return y


def test_arguments_by_keyword_reach_the_module() -> None:
    module, x = Keyword(), r(5, 4)
    assert torch.equal(blo.functionalize(module)(dict(module.named_parameters()), x=x), module(x=x))
    f = blo.functionalize(module, F.cross_entropy)
    y = torch.arange(5) % 2
    assert torch.equal(f(f.parameters, (), y, x=x, scale=2.0), F.cross_entropy(module(x=x, scale=2.0), y))


def test_arguments_that_a_module_does_not_take_are_named() -> None:
    f = blo.functionalize(Keyword(), F.cross_entropy)
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = ((((r(5, 4)),), {}), (((),), {"y": r(5, 4)}), ((), {}))
    for arguments, keywords in calls:
        with pytest.raises(blo.StructureError, match=r"Keyword.forward\(\*, x"):
            f(f.parameters, *arguments, **keywords)

    def fails(output: Tensor) -> Tensor:
        raise TypeError("of its own")

    with pytest.raises(TypeError, match="of its own"):
        blo.functionalize(nn.Linear(4, 3).double(), fails)(dict(nn.Linear(4, 3).double().named_parameters()), r(5, 4))


def test_layers_of_ones_own_that_torch_differentiates_by_convention_are_named() -> None:
    class Embeds(nn.Module):
        def __init__(self, options: dict[str, Any]) -> None:
            super().__init__()
            self.rows, self.options = nn.Parameter(r(5, 3)), options

        def forward(self, x: Tensor) -> Tensor:
            return F.embedding(x, self.rows, **self.options)

    f = blo.functionalize(Embeds({"scale_grad_by_freq": True}), measure)
    with pytest.raises(blo.StructureError, match="scale_grad_by_freq"):
        f(f.parameters, whole(4))
    padded = blo.functionalize(Embeds({"padding_idx": 1}), measure)
    with pytest.warns(blo.BloWarning, match="padding row"):
        padded(padded.parameters, whole(4))
    with pytest.raises(blo.StructureError, match="LocalResponseNorm"):
        blo.functionalize(nn.CrossMapLRN2d(2))


class Averages(nn.Module):
    """Keeps a running mean of its activations, and computes with it in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.linear, self.norm = how, nn.Linear(4, 2), nn.BatchNorm1d(2)
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("count", torch.ones(()))
        self.mean: Tensor
        self.count: Tensor
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.linear(x)
        if self.how == "inputs":
            with torch.no_grad():
                self.mean.lerp_(x.mean(0)[:2], 0.5)
        elif self.how == "counts":
            self.count += 1
            return h / self.count
        elif self.how == "recorded":
            self.mean = 0.5 * self.mean + 0.5 * h.mean(0)
        elif self.how == "recorded, kept detached":
            mean = 0.5 * self.mean + 0.5 * h.mean(0)
            self.mean = mean.detach()
            return h - mean
        elif self.how == "assigned":
            self.mean = (0.5 * self.mean + 0.5 * h.mean(0)).detach()
        elif self.how == "batch norm":
            return self.norm(self.norm(h))  # type: ignore[no-any-return]
        elif self.how == "before":
            with torch.no_grad():
                self.mean.mul_(0.5).add_(0.5 * h.mean(0))
        elif self.how == "data":
            self.mean.data.lerp_(h.data.square().mean(0), 0.5)
            return h / self.mean.sqrt()
        elif self.how == "after":
            y = h - self.mean
            self.mean.data.add_(h.detach().mean(0))
            self.count.data.add_(self.mean.sum())
            self.mean.data.div_(self.count)
            return y
        return h - self.mean


@pytest.mark.parametrize("how", ["before", "data", "assigned"])
def test_a_buffer_that_takes_a_derivative_along_is_named(how: str) -> None:
    f, x = blo.functionalize(Averages(how), measure), r(5, 4)
    frozen = {name: p.detach() for name, p in f.parameters.items()}
    with pytest.warns(blo.BloWarning, match=r"buffers \['mean'\]"):
        f(f.parameters, x)
    with torch.no_grad():
        f(frozen, x)
    with pytest.warns(blo.BloWarning, match=r"buffers \['mean'\]"):
        f({**frozen, "linear.bias": f.parameters["linear.bias"]}, x)


@pytest.mark.parametrize("how", ["inputs", "counts", "recorded", "recorded, kept detached", "batch norm", "after"])
def test_buffers_without_a_share_in_the_derivative_are_not(how: str) -> None:
    f, x = blo.functionalize(Averages(how), measure), r(5, 4)
    f(f.parameters, x)
    start = {name: p.detach() for name, p in f.parameters.items()}
    slope = torch.autograd.grad(f(f.parameters, x), f.parameters["linear.weight"])[0]
    h, along = 1e-6, r(2, 4, seed=5)
    ahead, behind = (f({**start, "linear.weight": start["linear.weight"] + s * along}, x) for s in (h, -h))
    assert abs((slope * along).sum() - (ahead - behind) / (2 * h)) <= 1e-8
    if how == "inputs":
        with pytest.warns(blo.BloWarning, match=r"buffers \['mean'\]"):
            f(start, x.clone().requires_grad_())


def test_spectral_norms_are_evaluated_once_before_vmap() -> None:
    f, x = blo.functionalize(parametrizations.spectral_norm(nn.Linear(4, 3)).double(), measure), r(5, 4)
    lanes = {name: torch.stack([p, p + 0.1]).detach() for name, p in f.parameters.items()}
    with pytest.raises(blo.StructureError, match="outside `vmap`"):
        torch.vmap(lambda p: f(p, x))(lanes)
    f(f.parameters, x)
    found = torch.vmap(lambda p: f(p, x))(lanes)
    assert abs(found[1] - f({name: p[1] for name, p in lanes.items()}, x)) <= 1e-14
