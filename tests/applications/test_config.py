"""Configurations: numbers as people write them, YAML, and which of flag, file, preset and recipe wins."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from adv_train import data
from adv_train.config import PRESETS, RECIPES, SECTIONS, RunConfig, fields, read_yaml, resolve, short, to_yaml
from adv_train.config.optimizer import OptimizerConfig
from adv_train.errors import UserError
from adv_train.methods import METHODS
from adv_train.methods.fast_at import FastAT
from adv_train.methods.fast_bat import FastBAT
from adv_train.models import MODELS
from adv_train.objectives.cross_entropy import CrossEntropy
from adv_train.schedules import cycled_momentum, learning_rate, warmed_up
from adv_train.threat import Threat
from adv_train.values import format_fraction, parse_fraction

CONFIG = RunConfig.of(
    {
        "data": "digits",
        "method": {"name": "fast-bat", "step": 5.0},
        "model": "small-cnn",
        "eps": 0.2,
        "epochs": 3,
        "batch_size": 64,
        "lr": 0.1,
    }
)


# --- numbers ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 255), st.integers(255, 10**6))
def test_a_fraction_is_the_nearest_float_to_the_exact_quotient(top: int, bottom: int) -> None:
    assert parse_fraction(f"{top}/{bottom}") == float(Fraction(top, bottom))


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 1))
def test_a_number_written_and_read_again_is_the_same_number(number: float) -> None:
    assert parse_fraction(format_fraction(number)) == number


def test_budgets_are_written_as_people_write_them() -> None:
    assert [format_fraction(number) for number in (0.2, 8 / 255, 0.0, 1.0)] == [0.2, "8/255", 0.0, 1.0]


@pytest.mark.parametrize("found", ["8/255", 8 / 255, " 8 / 255 ", "0.03137254901960784"])
def test_every_spelling_of_a_budget_is_understood(found: object) -> None:
    assert parse_fraction(found) == 8 / 255


REFUSED = ["nan", "inf", "-inf", "1e999", "-0.1", "1.5", "300/255", "8/0", "8/", "/8", "8/2/2", "", "eps", "0x8"]
REFUSED_VALUES = [math.nan, math.inf, -1, 2, 10**400, None, True, [8, 255]]


@pytest.mark.parametrize("found", [*REFUSED, *REFUSED_VALUES])
def test_anything_else_is_refused_in_one_line_that_says_what_is_allowed(found: object) -> None:
    with pytest.raises(UserError, match=r"`eps` must be a number between 0 and 1, written like 8/255 or 0.03") as error:
        parse_fraction(found)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("key", "found", "says"),
    [
        ("seed", 2**64, "`seed` must be a whole number of at most 18446744073709551615"),
        ("seed", "1e308", "`seed` must be a whole number of at most"),
        ("epochs", "1e308", "`epochs` must be a whole number of at most 1000000000"),
        ("validation_steps", 10**10, "`validation_steps` must be a whole number of at most"),
        ("weight_perturbation", "1e308", "`weight_perturbation` must be at most 3.4e+38 in size"),
        ("lr", 1e39, "`lr` must be at most 3.4e"),
        ("ig_weight", -1e39, "`ig_weight` must be at most 3.4e"),
    ],
)
def test_numbers_that_would_overflow_are_refused(key: str, found: object, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as error:
        CONFIG.changed({key: found})
    assert "\n" not in str(error.value)
    assert CONFIG.changed({"seed": 2**64 - 1}).training.seed == 2**64 - 1


# --- one configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", "many"),
        ("batch_size", -1),
        ("lr", "fast"),
        ("lr", -0.1),
        ("momentum", 1),
        ("schedule", "linear"),
        ("select", "test"),
        ("seed", -1),
        ("seed", True),
        ("momentum_cycling", "maybe"),
        ("data", ""),
        ("data", "two\nlines"),
        ("train_limit", 0),
        ("step", math.nan),
        ("step", -1),
        ("steps", 1.5),
        ("steps", "two"),
        ("start", 1),
        ("curvature", "flat"),
        ("direction", "up"),
        ("threat", [1]),
        ("threat", {"eps": 7}),
        ("activation", 3),
    ],
)
def test_a_value_that_breaks_its_rule_is_named(key: str, value: object) -> None:
    with pytest.raises(UserError, match="eps" if isinstance(value, dict) else key) as error:
        CONFIG.changed({key: value})
    assert "\n" not in str(error.value)


def test_cycling_needs_momentum_to_take_from() -> None:
    with pytest.raises(UserError, match="momentum_cycling"):
        CONFIG.changed({"momentum_cycling": True, "momentum": 0.05})


@pytest.mark.parametrize(
    ("factor", "epochs", "milestones", "warmup", "average"), [(1.4, 28, (7, 25), 4, 14), (0.1, 2, (1, 2), 0, 1)]
)
def test_a_run_is_stretched_with_all_that_is_counted_in_epochs(
    factor: float, epochs: int, milestones: tuple[int, ...], warmup: int, average: int
) -> None:
    said = {"schedule": "multistep", "milestones": "5,18", "eps_warmup": 3, "average_from": 10}
    config = CONFIG.changed({**said, "epochs": 20})
    longer = config.stretched(factor)
    assert (longer.training.epochs, longer.optimizer.milestones) == (epochs, milestones)
    assert (longer.training.eps_warmup, longer.training.average_from) == (warmup, average)
    changed = {"epochs", "milestones", "eps_warmup", "average_from"}
    assert {text.split()[0] for text in longer.differences(config)} == changed
    assert not config.stretched(1).differences(config)


def test_a_run_without_an_epoch_is_refused() -> None:
    with pytest.raises(UserError, match="`epochs`"):
        CONFIG.stretched(0.1)


def test_no_two_sections_have_a_key_of_one_name() -> None:
    named = {"method": METHODS.names(), "model": MODELS.names()}
    keys = {
        section: {
            short(section, leaf.field) for choice in named.get(section, [None]) for leaf in fields(section, choice)
        }
        for section in SECTIONS
    }
    assert sum(map(len, keys.values())) == len(set().union(*keys.values()))


def test_a_large_seed_keeps_all_its_digits() -> None:
    assert CONFIG.changed({"seed": 2**63 + 1}).training.seed == 2**63 + 1


def test_differences_name_the_keys_but_not_where_the_data_lie() -> None:
    other = CONFIG.changed({"eps": "16/255", "epochs": 4, "data_root": "elsewhere", "curvature": 1})
    differences = CONFIG.differences(other)
    assert {text.split()[0] for text in differences} == {"eps", "epochs", "curvature"}
    assert "eps (0.2, not 16/255)" in differences
    assert CONFIG.differences(CONFIG) == ()


# --- YAML -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    eps=st.floats(1e-9, 1),
    lr=st.floats(0, 1e6),
    seed=st.integers(0, 2**64 - 1),
    limit=st.none() | st.integers(2, 10**6),
    weight=st.floats(-1e9, 1e9),
    smoothing=st.floats(0, 1),
    start=st.sampled_from(["uniform", "zero"]),
)
def test_yaml_gives_back_the_configuration_it_was_written_from(
    tmp_path_factory: pytest.TempPathFactory,
    eps: float,
    lr: float,
    seed: int,
    limit: int | None,
    weight: float,
    smoothing: float,
    start: str,
) -> None:
    method = {"ig_weight": weight, "start": start, "train_loss": CrossEntropy(smoothing=smoothing)}
    config = CONFIG.changed({"eps": eps, "lr": lr, "seed": seed, "train_limit": limit, **method})
    file = tmp_path_factory.mktemp("yaml") / "config.yaml"
    file.write_text(to_yaml(config))
    assert RunConfig.of(read_yaml(file)) == config
    assert yaml.safe_load(file.read_text())["training"]["seed"] == seed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"- 1\n- 2\n", "must hold lines such as `epochs: 20`"),
        (b"epochs: [1, 2", "not valid YAML"),
        (b"\xff\xfe\x00nonsense", "not valid YAML"),
        (b"epoch: 3\n", "Did you mean `epochs`"),
        (b"3: 3\n", "configuration key `3`"),
        (b"epochs: three\n", "`epochs` must be a whole number"),
        (b"eps: -8/255\n", "`eps` must be a number of at least 0"),
        (b"eps: 2\n", "`eps` must not exceed the range of the images"),
        (b"threat: fast\n", "`threat` must hold lines such as `norm: ...`"),
        (b"curvature: 3\n", "method 'fast-at' has no option `curvature` (but fast-bat has)"),
        (b"!!python/object/apply:os.system ['touch hacked']\n", "not valid YAML"),
        (b"a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b]\nlr: [*c,*c,*c,*c]\n", "key `a`"),
    ],
)
def test_a_malformed_file_is_told_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        resolve({"data": "digits", "method": "fast-at"}, file=file)
    assert says in str(error.value) and "bad.yaml" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500  # it names every key


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no configuration file `.*none\.yaml`"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        read_yaml(tmp_path)


# --- which value wins -------------------------------------------------------------------------------------------------


def test_flags_beat_the_file_which_beats_the_preset_which_beats_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 7\noptimizer: {lr: 0.05}\neps: 16/255\nmethod: {curvature: 3, steps: 1}\n")
    config = resolve({"lr": "0.01", "steps": "4"}, preset="cifar10-8-fast-bat", file=file)
    assert config.optimizer.lr == 0.01  # flag over file
    assert config.training.epochs == 7  # file over recipe
    assert config.threat == Threat("linf", 16 / 255)  # file over preset
    assert config.data.name == "cifar10"  # preset
    assert config.training.batch_size == 128  # recipe
    assert config.method == FastBAT(curvature=3, steps=4)  # each option by itself


def test_the_recipe_follows_the_data_and_method_that_won() -> None:
    assert resolve({}, preset="digits-fast-bat").method == FastBAT(step=5000 / 255)
    assert resolve({"method": "fast-at"}, preset="digits-fast-bat").method == FastAT()
    assert resolve({"data": "cifar10"}, preset="digits-fast-bat").method == FastBAT()


@pytest.mark.parametrize("flags", [{}, {"data": "digits"}, {"method": "fast-at"}])
def test_data_and_method_have_no_default(flags: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"give --(data|method) NAME or --preset NAME"):
        resolve(flags)


@pytest.mark.parametrize(
    ("flags", "preset", "says"),
    [
        ({}, "cifar10-8-fastbat", "Did you mean `cifar10-8-fast-bat`"),
        ({"data": "cifar", "method": "fast-at"}, None, "Did you mean `cifar10`"),
        ({"data": "digits", "method": "fast-at", "device": "gpu"}, None, "Unknown device `gpu`"),
        ({"data": "digits", "method": "fast-at", "device": "cuda:97"}, None, "no device `cuda:97`"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(flags: dict[str, str], preset: str | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve(flags, preset=preset)


def test_the_record_names_the_device_that_was_chosen() -> None:
    config = resolve({"data": "digits", "method": "fast-at"})
    assert torch.device(config.compute.device).type in ("cpu", "cuda", "mps")


# --- published values, from ADVERSARIAL tables ------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_a_complete_configuration(name: str) -> None:
    config = resolve({}, preset=name)
    # What follows the method names a variant: `n-fgsm-qub`.
    assert name.startswith(config.data.name) and f"-{config.method_name}-" in f"{name}-"


def test_every_data_set_has_a_recipe() -> None:
    assert {name.partition(":")[0] for name in data.names()} == set(RECIPES)


@pytest.mark.parametrize("levels", [8, 16])
@pytest.mark.parametrize("data_name", ["cifar10", "cifar100"])
def test_published_cells_are_trained_as_published(data_name: str, levels: int) -> None:
    config = resolve({}, preset=f"{data_name}-{levels}-fast-bat")
    assert (config.model.name, config.threat) == ("preact-resnet-18", Threat("linf", levels / 255))
    assert (config.training.epochs, config.training.batch_size) == (20, 128)
    published = OptimizerConfig(lr=0.2, schedule="triangular", weight_decay=5e-4, momentum=0.9, momentum_cycling=True)
    assert config.optimizer == published


# --- schedules, against PyTorch's own ---------------------------------------------------------------------------------


def _torch_rates(
    make: type[torch.optim.lr_scheduler.LRScheduler], steps: int, **arguments: float | bool
) -> list[tuple[float, float]]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2, momentum=0.9)
    scheduler = make(optimizer, **arguments)
    rates = []
    for _ in range(steps):
        rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("steps", [2, 10, 7040])
def test_triangular_schedule_and_cycled_momentum_are_the_published_cyclic_scheduler(steps: int) -> None:
    expected = _torch_rates(
        torch.optim.lr_scheduler.CyclicLR,
        steps,
        base_lr=0.0,
        max_lr=0.2,
        step_size_up=steps / 2,
        step_size_down=steps / 2,
    )
    for step, (rate, momentum) in enumerate(expected):
        assert learning_rate(step, steps, peak=0.2, schedule="triangular") == pytest.approx(rate, abs=1e-12)
        assert cycled_momentum(step, steps, momentum=0.9) == pytest.approx(momentum, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 10, 300])
def test_cosine_schedule_is_that_of_pytorch(steps: int) -> None:
    expected = _torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR, steps, T_max=steps)
    for step, (rate, _) in enumerate(expected):
        assert learning_rate(step, steps, peak=0.2, schedule="cosine") == pytest.approx(rate, abs=1e-9)


def test_a_constant_schedule_stays_and_an_unknown_one_is_refused() -> None:
    assert {learning_rate(step, 9, peak=0.3, schedule="constant") for step in range(9)} == {0.3}
    with pytest.raises(ValueError, match="multistep, cosine or constant"):
        learning_rate(0, 9, peak=0.3, schedule="linear")


def test_a_triangle_may_peak_anywhere() -> None:
    for top in (0.0, 0.25, 0.4, 0.99):
        for step in range(200):
            expected = np.interp(step / 200, [0, top, 1], [0, 1, 0]) if top else 1 - step / 200
            rate = learning_rate(step, 200, peak=0.1, schedule="triangular", peak_at=top)
            assert rate == pytest.approx(0.1 * expected, abs=1e-12)


@pytest.mark.parametrize("steps", [2, 5, 10, 301])
@pytest.mark.parametrize("peak_at", [None, 0.45])
def test_one_cycle_and_its_momentum_are_those_of_pytorch(steps: int, peak_at: float | None) -> None:
    expected = _torch_rates(
        torch.optim.lr_scheduler.OneCycleLR,
        steps - 1,  # its last step comes from the scheduler's last move, which `_torch_rates` makes beyond the end
        max_lr=0.2,
        total_steps=steps,
        max_momentum=0.9,
        base_momentum=0.8,
        **({} if peak_at is None else {"pct_start": peak_at}),
    )
    for step, (rate, momentum) in enumerate(expected):
        found = learning_rate(step, steps, peak=0.2, schedule="one-cycle", peak_at=peak_at)
        assert found == pytest.approx(rate, abs=1e-12)
        found = cycled_momentum(step, steps, momentum=0.9, schedule="one-cycle", peak_at=peak_at)
        assert found == pytest.approx(momentum, abs=1e-12)
    assert learning_rate(steps - 1, steps, peak=0.2, schedule="one-cycle") == pytest.approx(0.2 / 25e4, abs=1e-12)


@pytest.mark.parametrize("decay", [None, 0.3])
def test_multistep_is_that_of_pytorch(decay: float | None) -> None:
    gamma = 0.1 if decay is None else decay
    expected = _torch_rates(torch.optim.lr_scheduler.MultiStepLR, 60, milestones=[20, 45], gamma=gamma)
    for step, (rate, _) in enumerate(expected):
        found = learning_rate(step, 60, peak=0.2, schedule="multistep", milestones=[20, 45], decay=decay)
        assert found == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_each_epoch_of_a_warm_up_has_the_mean_of_its_stretch_of_the_line(epochs: int) -> None:
    for epoch in range(8):
        line = np.interp(np.linspace(epoch, epoch + 1, 10_001), [0, epochs], [0, 0.2])
        mean = np.trapezoid(line, dx=1e-4)
        assert warmed_up(0.2, epoch, epochs) == pytest.approx(mean, abs=1e-9)
    assert warmed_up(0.2, 0, 0) == warmed_up(0.2, 9, epochs) == 0.2


def test_no_option_of_a_method_or_model_takes_the_name_of_a_field() -> None:
    taken = {short(section, leaf.field) for section in SECTIONS for leaf in fields(section)}
    for registry in (METHODS, MODELS):
        for name in registry.names():
            assert not taken & registry.options(name).keys(), name
