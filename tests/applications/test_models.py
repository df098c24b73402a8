"""The models, against architectures written out by hand and counts done by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import adv_train
from adv_train import models
from adv_train.cli import main
from adv_train.errors import UserError
from adv_train.models import size as model_size
from adv_train.models.wide_resnet import WideResNet

GREY: dict[str, Any] = {"channels": 1, "classes": 10, "image_size": 8, "mean": [0.3], "std": [0.4]}
CIFAR: dict[str, Any] = {
    "channels": 3,
    "classes": 10,
    "image_size": 32,
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2471, 0.2435, 0.2616],
}
STAGES = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def create(name: str, arguments: dict[str, Any] = CIFAR, **options: Any) -> nn.Module:
    """A model in float64 whose BatchNorm has seen nothing, so every buffer and weight must be used as it is."""
    model = models.create(name, **arguments, seed=0, **options).double()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model


# --- preact-resnet-18: the published details ---


def preact_resnet_by_hand(model: nn.Module, x: Tensor, train: bool) -> Tensor:
    """The network as the papers draw it, over the weights of ``model`` in the order they are declared."""
    weights = iter([p.detach() for p in model.parameters()])
    state = model.state_dict()
    statistics = iter([state[k] for k in state if k.endswith(("running_mean", "running_var"))])

    def bn_relu(v: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if train:
            mean, var = v.mean((0, 2, 3)), v.var((0, 2, 3), correction=0)
        shape = (1, -1, 1, 1)
        v = (v - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * gamma.view(shape) + beta.view(shape)
        return v.clamp(min=0)

    mean, std = torch.tensor(CIFAR["mean"]), torch.tensor(CIFAR["std"])
    x = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    x = F.conv2d(x, next(weights), padding=1)
    first_width = width_before = x.shape[1]
    for width, stride in ((width * first_width // 64, stride) for width, stride in STAGES):
        first, conv1 = (next(weights), next(weights)), next(weights)
        second, conv2 = (next(weights), next(weights)), next(weights)
        shortcut = x if width == width_before else F.conv2d(x, next(weights), stride=stride)
        y = F.conv2d(bn_relu(x, *first, next(statistics), next(statistics)), conv1, stride=stride, padding=1)
        y = F.conv2d(bn_relu(y, *second, next(statistics), next(statistics)), conv2, padding=1)
        x, width_before = y + shortcut, width
    x = bn_relu(x, next(weights), next(weights), next(statistics), next(statistics))
    return x.mean((2, 3)) @ next(weights).T + next(weights)


@pytest.mark.parametrize(("train", "options"), [(False, {}), (True, {}), (True, {"base_width": 6})])
def test_preact_resnet_is_the_published_network_or_a_narrow_one(train: bool, options: dict[str, int]) -> None:
    model = create("preact-resnet-18", **options).train(train)
    assert model.get_submodule("stem").out_channels == options.get("base_width", 64)
    x = images(3, 3, 16, 16)
    expected = preact_resnet_by_hand(model, x, train)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


# --- what is published of each network on CIFAR-10 ---

#: Parameters, and millions of multiplications and additions where a figure is published: by `thop` for the networks of
#: kuangliu/pytorch-cifar, whose pre-activation ResNets lack the last BatchNorm, and by osmr/imgclsmob for WRN-28-10.
PUBLISHED: dict[str, tuple[int, float | None]] = {
    "preact-resnet-18": (11_171_146 + 2 * 512, 556.52),
    "preact-resnet-34": (21_279_306 + 2 * 512, 1161.32),
    "preact-resnet-50": (23_509_066 + 2 * 2048, 1303.66),
    "resnet-18": (11_173_962, 556.65),
    "resnet-34": (21_282_122, 1161.45),
    "resnet-50": (23_520_842, 1304.71),
    "wrn-16-8": (10_961_370, None),
    "wrn-22-8": (17_158_106, None),
    "wrn-28-10": (36_479_194, 5246.98),
    "wrn-34-10": (46_160_474, None),
    "wrn-70-16": (266_796_506, None),
}


def on_meta(name: str, size: int = 32) -> tuple[int, int, int]:
    """Count parameters, operations of a forward pass of one image, and numbers that BatchNorm within blocks gives."""
    normalised: list[int] = []
    with torch.device("meta"):
        model = models.MODELS.create(name, 3, 10, size, CIFAR["mean"], CIFAR["std"])
        for part, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d) and not (name.startswith("preact") and part == "bn"):
                module.register_forward_hook(lambda _, inputs, output: normalised.append(output.numel()))
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops(), sum(normalised)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_operations_are_the_published_ones(name: str) -> None:
    parameters, operations, normalised = on_meta(name)
    published, macs = PUBLISHED[name]
    assert parameters == published
    if name == "wrn-28-10":
        assert operations / 2e6 == pytest.approx(macs, rel=1e-3)
    elif macs is not None:  # `thop` counts two operations for each number that BatchNorm gives
        assert (operations / 2 + 2 * normalised) / 1e6 == pytest.approx(macs, abs=0.02)


def test_every_network_but_the_one_of_our_own_has_published_figures() -> None:
    assert set(models.MODELS.names()) - set(PUBLISHED) == {"small-cnn"}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("wrn")])
def test_wide_resnets_cost_what_their_drawing_says(name: str) -> None:
    depth, factor = (int(part) for part in name.split("-")[1:])
    macs, width_in, side = 32**2 * 27 * 16, 16, 32
    for stage in range(3):
        width = 16 * factor * 2**stage
        side = 32 // 2**stage
        macs += side**2 * (width_in * width + 9 * width_in * width + 9 * width * width)
        macs += ((depth - 4) // 6 - 1) * side**2 * 18 * width * width
        width_in = width
    assert on_meta(name)[1] == 2 * (macs + width_in * 10)


@pytest.mark.parametrize(("name", "width"), [("preact-resnet-18", 512), ("resnet-50", 2048), ("wrn-16-8", 512)])
def test_the_stem_has_stride_one_at_any_size(name: str, width: int) -> None:
    """Four times the pixels cost four times the operations, but for the last layer."""
    head = 2 * width * 10
    small, large = (on_meta(name, size)[1] - head for size in (32, 64))
    assert large == 4 * small


# --- wide ResNets ---


class Narrow(WideResNet):
    depth, factor = 10, 1


def test_wide_resnets_start_from_the_published_distribution() -> None:
    model = models.create("wrn-16-8", **CIFAR, seed=0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach()
            deviation = (2 / (weight[0, 0].numel() * len(weight))) ** 0.5
            error = deviation / weight.numel() ** 0.5  # of the mean of so many normal numbers
            assert abs(float(weight.mean())) < 5 * error
            assert abs(float(weight.std()) - deviation) < 5 * error / 2**0.5
    assert not model.get_parameter("head.bias").any()


def test_dropout_zeroes_between_the_convolutions_of_a_block_in_train_mode() -> None:
    torch.manual_seed(0)
    model, plain = Narrow(**CIFAR, dropout=0.25), Narrow(**CIFAR)
    x = images(8, 3, 32, 32, dtype=torch.float32)
    entered: list[Tensor] = []
    left: list[Tensor] = []
    used: list[Tensor] = []
    for block in model.blocks.children():
        block.get_submodule("drop").register_forward_hook(lambda _, inputs, output: entered.append(inputs[0]))
        block.get_submodule("drop").register_forward_hook(lambda _, inputs, output: left.append(output))
        block.get_submodule("conv2").register_forward_hook(lambda _, inputs, output: used.append(inputs[0]))
    assert not torch.equal(model(x), model(x))
    for before, after, convolved in zip(entered, left, used, strict=True):
        assert convolved is after
        kept = after[before > 0] != 0
        assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.01)
        torch.testing.assert_close(after[after != 0], before[after != 0] / 0.75)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_padding_at_the_end_needs_sides_that_halve_twice() -> None:
    with pytest.raises(UserError, match="divisible by 4, but it is 30"):
        models.create("wrn-16-8", **CIFAR | {"image_size": 30}, padding="end")
    assert Narrow(**CIFAR | {"image_size": 30})(images(2, 3, 30, 30, dtype=torch.float32)).shape == (2, 10)


# --- small-cnn ---


@pytest.mark.parametrize(("size", "side"), [(8, 2), (28, 7), (32, 8), (5, 2), (1, 1)])
def test_small_cnn_is_three_convolutions_and_a_linear_layer(size: int, side: int) -> None:
    model = create("small-cnn", GREY | {"image_size": size})
    w1, b1, w2, b2, w3, b3, w4, b4 = [p.detach() for p in model.parameters()]
    x = images(4, 1, size, size)
    h = F.conv2d((x - torch.tensor(0.3)) / torch.tensor(0.4), w1, b1, padding=1).clamp(min=0)
    h = F.conv2d(h, w2, b2, stride=2, padding=1).clamp(min=0)
    h = F.conv2d(h, w3, b3, stride=2, padding=1).clamp(min=0)
    assert h.shape == (4, 64, side, side)
    torch.testing.assert_close(model(x), h.reshape(4, -1) @ w4.T + b4, rtol=1e-10, atol=1e-10)


# --- what holds for every model, computed with one of each kind ---

OF_EACH_KIND = ("small-cnn", "preact-resnet-18", "resnet-18", "wrn-16-8")


@pytest.mark.parametrize("name", models.MODELS.names())
def test_logits_have_a_row_a_sample_and_a_column_a_class(name: str) -> None:
    for size in (8, 32, 64):
        with torch.device("meta"):
            model = models.MODELS.create(name, 1, 7, size, [0.5], [0.2])
            assert model(torch.empty(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_normalisation_is_inside_and_saved(name: str) -> None:
    model = create(name).eval()
    plain = create(name, CIFAR | {"mean": [0.0] * 3, "std": [1.0] * 3}).eval()
    x = images(2, 3, 32, 32)
    mean, std = (torch.tensor(CIFAR[key]).double().view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(model(x), plain((x - mean) / std), rtol=1e-9, atol=1e-9)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(x), model(x))


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_a_sample_in_eval_mode_does_not_depend_on_its_batch(name: str) -> None:
    model = create(name).eval()
    x = images(4, 3, 32, 32)
    one_by_one = torch.cat([model(sample[None]) for sample in x])
    torch.testing.assert_close(model(x), one_by_one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_the_seed_alone_decides_the_weights_and_leaves_the_global_state(name: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = models.create(name, **CIFAR, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = (models.create(name, **CIFAR, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_without_a_seed_the_global_one_decides(name: str) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(models.create(name, **CIFAR).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("name", models.MODELS.names())
def test_silu_makes_the_network_smooth(name: str) -> None:
    with torch.device("meta"):
        rectified, smooth = (
            models.MODELS.create(name, *CIFAR.values(), activation=activation) for activation in ("relu", "silu")
        )
    kinds = [{type(module) for module in model.modules()} for model in (rectified, smooth)]
    assert nn.ReLU in kinds[0] and nn.SiLU not in kinds[0]
    assert nn.SiLU in kinds[1] and nn.ReLU not in kinds[1]


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_second_derivatives_exist(name: str) -> None:
    model = create(name, activation="silu").eval()
    x = images(1, 3, 32, 32).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0


@pytest.mark.parametrize("name", OF_EACH_KIND)
@pytest.mark.parametrize("seed", [None, 3])
def test_the_count_before_building_draws_nothing(name: str, seed: int | None) -> None:
    """The weights are those of the class itself, called right after the seed."""
    torch.manual_seed(3)
    expected = models.MODELS.find(name)(**CIFAR).state_dict()
    after = torch.get_rng_state()
    torch.manual_seed(3)
    found = models.create(name, **CIFAR, seed=seed).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(value.device.type == "cpu" for value in found.values())
    assert seed is not None or torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(("size", "classes"), [(3_000, 2), (3_000, 10), (3_000, 1_000), (100_000, 10)])
def test_a_dense_layer_on_large_images_is_refused_before_it_is_allocated(
    size: int, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_size, "available_memory", lambda: 2**30)
    side = size // 4
    count = sum((27 * 16 + 16, 9 * 16 * 32 + 32, 9 * 32 * 64 + 64, 64 * side * side * classes + classes))
    with pytest.raises(UserError, match="small-cnn") as error:
        models.create("small-cnn", **CIFAR | {"image_size": size, "classes": classes})
    message = str(error.value)
    assert f"{count:,} parameters" in message and f"{size}x{size}" in message and "`size`" in message
    assert f"{16 * count / 2**30:,.1f} GiB for them, but 1.0 GiB" in message and "\n" not in message
    assert sum(p.numel() for p in models.create("preact-resnet-18", **CIFAR | {"image_size": size}).parameters()) < 2e7


@pytest.mark.parametrize(("gib", "fits"), [(3.9, False), (4.1, True)])
def test_four_times_the_weights_must_fit_into_memory(gib: float, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_size, "available_memory", lambda: int(gib * 2**30))
    parameters = 266_796_506  # of WRN-70-16: 3.98 GiB
    if fits:
        model_size.check_size("wrn-70-16", parameters, 32)
    else:
        with pytest.raises(UserError, match=r"266,796,506 parameters .* 4\.0 GiB for them, but 3\.9 GiB"):
            model_size.check_size("wrn-70-16", parameters, 32)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * 2**30),
        ({"meminfo": "MemTotal: 9 kB\nMemAvailable:   5 kB\n"}, 5 * 1024),
        ({"meminfo": "MemAvailable: 5 kB\n", "memory.max": "4096\n"}, 4096),
        ({"meminfo": "MemAvailable: 5 kB\n", "memory.max": "max\n"}, 5 * 1024),
        ({"meminfo": "MemAvailable: 5 kB\n", "memory.limit_in_bytes": "9223372036854771712\n"}, 5 * 1024),
    ],
)
def test_memory_is_what_the_machine_and_the_container_leave(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    moved = [(str(tmp_path / Path(path).name), pattern, unit) for path, pattern, unit in model_size._SOURCES]
    monkeypatch.setattr(model_size, "_SOURCES", moved)
    assert model_size.available_memory() == expected


def test_options_of_a_model_reach_it_through_the_command_line(tmp_path: Path) -> None:
    words = ["--data", "digits", "--method", "fast-at", "--model", "wrn-16-8"]
    chosen = ["--dropout", "0.1", "--activation", "silu"]
    small = ["--train-limit", "16", "--epochs", "1", "--validation-steps", "1", "--device", "cpu", "--quiet"]
    assert main(["fit", *words, *chosen, *small, "--out", str(tmp_path / "run")]) == 0
    found = adv_train.load_model(tmp_path / "run")
    assert {module.p for module in found.modules() if isinstance(module, nn.Dropout)} == {0.1}
    assert any(isinstance(module, nn.SiLU) for module in found.modules())


# --- bad input ---


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("smal-cnn", {}, r"Unknown model `smal-cnn`. Did you mean `small-cnn`"),
        ("preact-resnet-18", {"activation": "gelu"}, "Unknown activation `gelu`.* relu, silu"),
        ("small-cnn", {"activatoin": "silu"}, "model 'small-cnn' has no option `activatoin`; it has activation"),
        ("wrn-16-8", {"dropout": 1}, "`dropout` must be a number between 0 and 0.99"),
        ("wrn-16-8", {"padding": "same"}, "Unknown padding `same`.* end, even"),
        ("preact-resnet-50", {"shortcut": "rwa"}, "Unknown shortcut `rwa`. Did you mean `raw`"),
        ("wrn-28-8", {}, "Unknown model `wrn-28-8`"),
        ("small-cnn", {"classes": 1}, "at least 2 classes"),
        ("small-cnn", {"image_size": 0}, "3 x 0 x 0"),
        ("small-cnn", {"mean": [0.5]}, "each of the 3 channels.*1 and 3"),
        ("small-cnn", {"std": [0.2, 0.0, 0.2]}, "above zero"),
    ],
)
def test_bad_input_is_named_in_one_line(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        models.create(name, **CIFAR | change)
    assert "\n" not in str(error.value)
