"""Training in less than single precision: what keeps its resolution, and that switches are put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adv_train import data, methods, models
from adv_train.config import RunConfig
from adv_train.precision import PRECISIONS, at_full_resolution, computed_in
from adv_train.records import RunFolder
from adv_train.threat import Threat
from adv_train.train import fit

CPU = torch.device("cpu")
DESCRIBED: dict[str, Any] = {"channels": 3, "classes": 10, "image_size": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3}


def flags() -> tuple[bool, bool, bool]:
    cuda = torch.backends.cuda.matmul.allow_tf32
    return torch.backends.cudnn.allow_tf32, cuda, torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_switches_are_put_back(precision: str) -> None:
    before = flags()
    with pytest.raises(KeyError), computed_in(precision, CPU):
        assert flags() == (precision != "fp32", precision != "fp32", precision == "bf16")
        raise KeyError
    assert flags() == before


@pytest.mark.parametrize("name", ["small-cnn", "preact-resnet-18", "resnet-18", "wrn-16-8"])
def test_the_perturbation_the_first_layer_and_the_logits_keep_single_precision_in_bf16(name: str) -> None:
    model = models.create(name, **DESCRIBED, seed=0).eval()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    seen: dict[str, Tensor] = {}
    convolutions[0].register_forward_hook(lambda _, inputs, output: seen.update(image=inputs[0], first=output))
    convolutions[1].register_forward_hook(lambda _, inputs, output: seen.update(second=output))
    # A bright pixel: bfloat16 has a step of 1/256 there, and this perturbation is a tenth of that.
    x, delta = torch.full((2, 3, 16, 16), 0.9), 4e-4
    with computed_in("bf16", CPU):
        logits = model(x + delta)
    expected = (x + delta - 0.5) / 0.25
    torch.testing.assert_close(seen["image"], expected, rtol=1e-6, atol=0)
    assert (seen["first"].dtype, seen["second"].dtype, logits.dtype) == (torch.float32, torch.bfloat16, torch.float32)


def test_a_layer_outside_autocast_is_applied_as_it_is() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    layer = nn.Linear(4, 2).double()
    assert torch.equal(at_full_resolution(layer, x), layer(x))


@pytest.mark.parametrize("method", methods.METHODS.names())
def test_bf16_gives_nearly_the_gradient_of_fp32_from_one_start(method: str) -> None:
    torch.manual_seed(0)
    model = models.create("small-cnn", **DESCRIBED, seed=0)
    x, y = torch.rand(32, 3, 16, 16), torch.randint(10, (32,))
    start = ((torch.rand_like(x) * 2 - 1) * 8 / 255).clamp(-x, 1 - x)
    batch = data.Batch(x, y, torch.arange(len(y)))
    found = {}
    for precision in ("fp32", "bf16"):
        chosen, generator = methods.METHODS.create(method), torch.Generator().manual_seed(0)
        with computed_in(precision, CPU):
            step = chosen(
                model, dict(model.named_parameters()), batch, Threat("linf", 8 / 255), start=start, generator=generator
            )
        assert {grad.dtype for grad in step.grads.values()} == {torch.float32}
        found[precision] = torch.cat([grad.flatten() for grad in step.grads.values()])
    # bfloat16 has eight bits; a wrong gradient is far below this. A nuclear norm, in which small singular values of the
    # difference of two outputs count as much as large ones, stays at 0.989 however it is computed.
    assert float(torch.nn.functional.cosine_similarity(found["fp32"], found["bf16"], dim=0)) > 0.98


def test_a_run_says_its_precision_and_resumes_with_it(tmp_path: Path) -> None:
    words: dict[str, Any] = {"data": "digits", "method": "fast-bat", "model": "small-cnn", "eps": 0.2, "batch_size": 64,
                             "lr": 0.1, "train_limit": 128, "precision": "bf16", "channels_last": True}  # fmt: skip
    whole = fit(RunConfig.of({**words, "epochs": 2}), tmp_path / "whole", progress=False)
    config = RunFolder(tmp_path / "whole").config()
    assert (config.compute.precision, config.compute.channels_last) == ("bf16", True)
    assert config.differences(RunConfig.of({**words, "precision": "fp32", "epochs": 2})) == (
        "precision (bf16, not fp32)",
    )
    weights = torch.load(whole.run.last, weights_only=True)["model"]
    single = fit(RunConfig.of({**words, "precision": "fp32", "epochs": 2}), tmp_path / "single", progress=False)
    other = torch.load(single.run.last, weights_only=True)["model"]
    assert any(not torch.equal(weights[name], other[name]) for name in weights)
