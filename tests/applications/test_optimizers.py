"""Any optimiser of torch by name: its steps, its options, its resumption, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adv_train import checkpoint, data, models, optimizers
from adv_train.cli import main
from adv_train.config import RunConfig, read_yaml, resolve, to_yaml
from adv_train.errors import UserError
from adv_train.train import fit
from adv_train.trainer import Trainer
from tests.applications.test_resume import Stopped, stop_at_write
from tests.applications.test_train import Handed, config, hand_over  # noqa: F401  # a fixture

#: They do not train networks from dense gradients; torch says why.
UNFIT = {"lbfgs", "sparseadam", "muon"}
#: They have no weight decay.
BARE = {"rprop"}


def slope(index: int, name: str, value: Tensor) -> Tensor:
    return torch.sin(torch.arange(value.numel()) + index).view_as(value)


def fresh() -> dict[str, Tensor]:
    model = models.create("small-cnn", **data.load("digits", root="", limit=96).model_arguments(), seed=0)
    return {name: value.detach().requires_grad_() for name, value in model.named_parameters()}


def assert_equal(found: Any, expected: Any) -> None:
    """Equal tensors at all depths."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("clip", [None, 0.5])
def test_steps_are_those_of_torch_with_a_clipped_gradient(
    tmp_path: Path,
    hand_over: Callable[[Handed], Handed],  # noqa: F811
    clip: float | None,
) -> None:
    hand_over(Handed(slope))
    chosen = config(
        optimizer="adamw", optimizer_options={"betas": [0.8, 0.95]}, lr=0.05, schedule="constant", clip=clip
    )
    fit(chosen, tmp_path / "run", progress=False)
    weights = fresh()
    oracle = torch.optim.AdamW(weights.values(), lr=0.05, betas=(0.8, 0.95), weight_decay=5e-4)
    for index in range(6):
        grads = {name: slope(index, name, value) for name, value in weights.items()}
        norm = torch.sqrt(sum((value**2).sum() for value in grads.values()))
        assert norm > 0.5
        for name, value in weights.items():
            value.grad = grads[name] if clip is None else grads[name] * clip / norm
        oracle.step()
    found = checkpoint.load(tmp_path / "run" / "last.pt").model
    assert all((found[name] - value).abs().max() < 1e-5 for name, value in weights.items())


def test_a_gradient_within_the_bound_is_not_clipped(tmp_path: Path, hand_over: Callable[[Handed], Handed]) -> None:  # noqa: F811
    found = []
    for clip in (None, 1e6):
        hand_over(Handed(slope))
        run = fit(config(clip=clip, epochs=1), tmp_path / str(clip), progress=False).run
        found.append(checkpoint.load(run.last).model)
    assert_equal(*found)


@pytest.mark.parametrize("name", [name for name in optimizers.names() if name not in UNFIT])
def test_every_optimiser_trains_and_goes_on_exactly(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decay = {"weight_decay": 0} if name in BARE else {}
    chosen = config(optimizer=name, lr=1e-3, schedule="constant", **decay)
    fit(chosen, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at_write(patch, 3, after=True)  # config.yaml, then timing.jsonl and last.pt of the first epoch
        fit(chosen, tmp_path / "run", progress=False)
    assert fit(chosen, tmp_path / "run", progress=False).resumed_after == 1
    found, expected = (checkpoint.load(tmp_path / run / "last.pt") for run in ("run", "whole"))
    assert_equal(found.model, expected.model)
    assert_equal(found.optimizer, expected.optimizer)
    assert not torch.equal(found.model["head.weight"], fresh()["head.weight"])


@pytest.mark.parametrize("name", sorted(UNFIT & {*optimizers.names()}))
def test_an_optimiser_that_cannot_train_a_network_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match=f"The optimizer `{name}` cannot train with these options: ") as error:
        fit(config(optimizer=name, weight_decay=0), tmp_path / "run", progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_step_with_all_options_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(batch_size: int) -> int:
        count = 0
        chosen = config(
            batch_size=batch_size, ema=0.9, clip=0.1, schedule="one-cycle", momentum_cycling=True, eps_warmup=1
        )
        trainer = Trainer(chosen, data.load("digits", root="", limit=96), torch.device("cpu"))
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
                original = getattr(Tensor, name)

                def counting(*arguments: Any, _original: Any = original, **keywords: Any) -> Any:
                    nonlocal count
                    count += 1
                    return _original(*arguments, **keywords)

                patch.setattr(Tensor, name, counting)
            trainer.train_epoch(0, lambda: None)
        return count

    assert reads(16) == reads(48) > 0


# --- the configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"optimizer": "adamm"}, "Did you mean `adam`"),
        ({"optimizer": "Adam"}, "Did you mean `adam`"),
        ({"optimizer": "adam", "momentum": 0.9}, "`momentum` belongs to sgd, but the optimizer is adam"),
        ({"optimizer": "adam", "momentum": 0}, "`momentum` belongs to sgd"),
        ({"optimizer": "adam", "momentum_cycling": True}, "`momentum_cycling` belongs to sgd"),
        ({"optimizer": "adam", "optimizer_options": "beta=3"}, "`adam` has no option `beta`; adam has betas, eps, "),
        ({"optimizer_options": {"momentum": 0.9}}, "`momentum` has a key of its own"),
        ({"optimizer_options": {"weight_decay": 0.9}}, "`weight_decay` has a key of its own"),
        ({"optimizer_options": "nesterov"}, "`optimizer_options` must be a mapping"),
        ({"optimizer_options": "nesterov=maybe"}, "`nesterov` must be true or false, but is 'maybe'"),
        ({"optimizer_options": "foreach=3"}, "`foreach` must be true or false, but is 3"),
        ({"optimizer": "adam", "optimizer_options": {"amsgrad": 1}}, "`amsgrad` must be true or false, but is 1"),
        ({"optimizer_options": "nesterov=[1"}, "`optimizer_options` must be a mapping"),
        ({"optimizer_options": [1]}, "`optimizer_options` must be a mapping"),
        ({"optimizer_options": "dampening=.nan"}, "`dampening` must be a number"),
        ({"optimizer_options": {"dampening": {"a": 1}}}, "`dampening` must be a number"),
        ({"optimizer": "rprop"}, "`rprop` has no weight decay: set `weight_decay` to 0"),
        ({"milestones": [3]}, "`milestones` belongs to multistep, but the schedule is triangular"),
        ({"decay": 0.5}, "`decay` belongs to multistep, but the schedule is triangular"),
        ({"schedule": "cosine", "peak_at": 0.5}, "`peak_at` belongs to triangular and one-cycle"),
        ({"schedule": "multistep"}, "`milestones` must be epochs such as 70,85"),
        ({"schedule": "multistep", "milestones": "7;8"}, "`milestones` must be a whole number"),
        ({"schedule": "multistep", "milestones": [0]}, "`milestones` must be a whole number of at least 1"),
        ({"schedule": "multistep", "milestones": 7}, "`milestones` must be a list, written like 70,85"),
        ({"peak_at": 1}, "`peak_at` must be a number between 0 and 0.99"),
        ({"clip": 0}, "`clip` must be a number above 0"),
        ({"eps_warmup": 2}, "`eps_warmup` must be below `epochs`, which is 2, but is 2"),
        ({"eps_warmup": -1}, "`eps_warmup` must be a whole number"),
    ],
)
def test_what_does_not_go_together_is_told_in_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        config(**values)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("options", ["betas=[0.9,2]", "eps=small", "betas=0.9", "capturable=true"])
def test_a_value_that_torch_refuses_is_told_in_one_line(tmp_path: Path, options: str) -> None:
    with pytest.raises(UserError, match="The optimizer `adam` cannot train with these options: ") as error:
        fit(config(optimizer="adam", optimizer_options=options), tmp_path / "run", progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_flags_beat_the_file_which_beats_the_preset_and_a_choice_drops_what_belonged_to_another(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "optimizer: {name: adamw, schedule: multistep, milestones: [7, 9], decay: 0.2, options: {eps: 1e-6}}\n"
        "training: {ema: 0.999, eps_warmup: 5}\nclip: 1\n"
    )
    config = resolve({"clip": "0.5", "ema": "none"}, preset="cifar10-8-fast-bat", file=file).optimizer
    assert (config.name, config.options, config.momentum) == ("adamw", {"eps": 1e-6}, None)
    assert (config.schedule, config.milestones, config.decay) == ("multistep", (7, 9), 0.2)
    assert (config.clip, config.lr, config.weight_decay, config.momentum_cycling) == (0.5, 0.2, 5e-4, False)
    assert resolve({"ema": "none"}, file=file, preset="cifar10-8-fast-bat").training.ema is None
    assert resolve({}, file=file, preset="cifar10-8-fast-bat").training.eps_warmup == 5
    again = resolve({"optimizer": "sgd", "schedule": "one-cycle"}, preset="cifar10-8-fast-bat", file=file).optimizer
    assert (again.name, again.options, again.momentum, again.milestones) == ("sgd", {}, 0.9, ())
    assert (again.peak_at, again.decay) == (0.3, None)
    unchanged = resolve({}, preset="cifar10-8-fast-bat").optimizer
    assert unchanged.momentum_cycling and unchanged.peak_at == 0.5


def test_yaml_and_checkpoints_give_the_options_back(tmp_path: Path) -> None:
    flags = {"milestones": "1", "schedule": "multistep", "eps_warmup": 1, "clip": 2, "ema": 0.5}
    chosen = config(optimizer="adamw", optimizer_options="betas=[0.8, 0.9], eps=1e-6, amsgrad=true", **flags)
    assert chosen.optimizer.options == {"betas": (0.8, 0.9), "eps": 1e-6, "amsgrad": True}
    (tmp_path / "config.yaml").write_text(to_yaml(chosen))
    assert RunConfig.of(read_yaml(tmp_path / "config.yaml")) == chosen
    run = fit(chosen, tmp_path / "run", progress=False).run
    assert run.config() == chosen == checkpoint.load(run.last).config
    assert fit(chosen, run.path, progress=False).resumed_after == 2


def test_differences_name_the_options(tmp_path: Path) -> None:
    first = config(optimizer="adamw", schedule="multistep", milestones="1")
    second = config(optimizer="adamw", schedule="multistep", milestones="1,2", clip=1, optimizer_options="eps=1e-6")
    told = "; ".join(first.differences(second))
    assert "milestones ((1,), not (1, 2))" in told and "clip (None, not 1.0)" in told
    assert "optimizer_options ({}, not {'eps': 1e-06})" in told
    assert config().differences(config(optimizer="adamw"))[0] == "optimizer (sgd, not adamw)"


def test_the_command_line_takes_and_explains_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["fit", "--data", "digits", "--method", "fast-at"]
    small = "--train-limit 60 --batch-size 30 --epochs 3 --validation-steps 1 --device cpu --quiet"
    chosen = "--optimizer adamw --lr 0.001 --schedule multistep --milestones 1,2 --decay 0.5 --clip 1 --ema 0.9"
    options = ["--optimizer-options", "betas=[0.8,0.9],eps=1e-6", "--eps-warmup", "1", "--out", "run"]
    assert main([*asked, *small.split(), *chosen.split(), *options]) == 0
    assert re.search(r"best\.pt is epoch \d \(averaged weights, ema 0\.9\)", capsys.readouterr().out)
    assert main(["fit", "--out", "run", "--epochs", "4", "--quiet"]) == 0
    found = checkpoint.load(Path("run/last.pt"))
    assert found.config.optimizer.milestones == (1, 2) and found.config.optimizer.options["eps"] == 1e-6
    assert [record["lr"] for record in found.history] == pytest.approx([1e-3, 5e-4, 2.5e-4, 2.5e-4])
    capsys.readouterr()
    assert main([*asked, "--optimizer", "adamw", "--momentum", "0.9", "--out", "other"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not Path("other").exists()
    with pytest.raises(SystemExit):
        main([*asked, "--help"])
    told = capsys.readouterr().out
    for flag in ("optimizer", "optimizer-options", "clip", "peak-at", "milestones", "decay", "ema", "eps-warmup"):
        assert f"--{flag} " in told
    assert main(["list", "optimizers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == optimizers.names()
    assert "betas, eps, amsgrad" in next(line for line in lines if line.split()[0] == "adamw")
    assert "momentum" not in next(line for line in lines if line.split()[0] == "sgd")
