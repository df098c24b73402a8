"""AutoAttack's versions and parts against the package itself, the cascade, and going on after an interruption."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

import adv_train
from adv_train import data
from adv_train.attacks import APGD, ATTACKS, Attack, Cascade, PlusAutoAttack, RandAutoAttack, Square, StandardAutoAttack
from adv_train.attacks.judging import Judging, suitable_threads
from adv_train.cli import main
from adv_train.data.stratified import stratified_head
from adv_train.errors import UserError
from adv_train.evaluate import evaluate
from adv_train.evaluation import read_all
from adv_train.threat import Norm, Threat

RADII: dict[Norm, float] = {"linf": 0.12, "l2": 0.9, "l1": 1.5}
VERSIONS = {"autoattack": "standard", "autoattack-plus": "plus", "autoattack-rand": "rand"}
PARTS = [APGDAttack, APGDAttack_targeted, FABAttack_PT, SquareAttack]
Case = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "run"
    chosen = {"data": "digits", "method": "fast-at", "model": "small-cnn", "epochs": 6, "device": "cpu", "lr": 0.1}
    adv_train.fit(None, out=out, progress=False, eps=0.1, **chosen)
    return out


@pytest.fixture(scope="module")
def trained(run: Path) -> Case:
    """A model of the digits with some robustness, and a few of their test images."""
    test = data.load("digits", root="").test
    return adv_train.load_model(run), test.images[:24], test.labels[:24]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package, whoever calls it, try less in every part."""
    whole = AutoAttack._set_version

    def less(attack: AutoAttack, version: str) -> None:
        whole(attack, version)
        attack.apgd.n_restarts, attack.apgd.eot_iter = min(attack.apgd.n_restarts, 2), min(attack.apgd.eot_iter, 3)
        attack.fab.n_restarts, attack.fab.n_iter = min(attack.fab.n_restarts, 2), 4
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 3
        for part in (attack.apgd, attack.apgd_targeted):
            part.n_iter = part.n_iter_orig = 8
        attack.square.n_queries = 60

    monkeypatch.setattr(AutoAttack, "_set_version", less)


def theirs(case: Case, norm: Norm, version: str, eps: float | None = None) -> tuple[Tensor, Tensor]:
    """The package, run directly: images and verdicts."""
    model, x, y = case
    with torch.random.fork_rng(devices=[]), suitable_threads(model, x):
        torch.manual_seed(3)
        attack = AutoAttack(model, eps=eps or RADII[norm], norm=norm.capitalize(), seed=3, version=version)
        images, predicted = attack.run_standard_evaluation(x, y, batch_size=10)
    return images, predicted == y


@pytest.mark.parametrize("norm", list(RADII))
@pytest.mark.parametrize("name", list(VERSIONS))
def test_each_version_is_the_packages_bit_for_bit(trained: Case, brief: None, name: str, norm: Norm) -> None:
    images, robust = theirs(trained, norm, VERSIONS[name])
    found = ATTACKS.create(name)(*trained, Threat(norm, RADII[norm]), seed=3, batch_size=10)
    assert torch.equal(found.robust, robust) and torch.equal(found.images, images)
    assert robust.any() and not robust.all()
    assert found.settings["version"] == VERSIONS[name]


@pytest.mark.parametrize("norm", list(RADII))
def test_the_command_agrees_with_the_package_sample_by_sample(run: Path, brief: None, norm: Norm) -> None:
    words = ["--norm", norm, "--eps", str(RADII[norm]), "--seed", "3", "--batch-size", "10", "--limit", "24"]
    words += ["--attacks", ",".join(VERSIONS), "--device", "cpu", "--quiet", "--again"]
    assert main(["eval", str(run), *words]) == 0
    (record,) = (found for found in read_all(run) if found.threat.norm == norm)
    test = data.load("digits", root="").test
    test = test.subset(stratified_head(test.labels, 24))
    for name, version in VERSIONS.items():
        _, robust = theirs((adv_train.load_model(run), test.images, test.labels), norm, version)
        assert record.attacks[name].robust.tolist() == robust.tolist()
        assert robust.any() and not robust.all()


class Noisy(nn.Module):
    """A model that answers anew each time."""

    def __init__(self, model: nn.Module, noise: float = 0.3) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.noise * torch.randn_like(x))


def test_a_randomised_model_has_the_verdict_of_the_package(trained: Case, brief: None) -> None:
    case = (Noisy(trained[0]), *trained[1:])
    images, robust = theirs(case, "linf", "rand")
    verdicts = set()
    for state in (1, 2):  # The global random state plays no part, and is left alone.
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        found = RandAutoAttack()(*case, Threat("linf", RADII["linf"]), seed=3, batch_size=10)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(found.robust, robust) and torch.equal(found.images, images)
        verdicts.add(tuple(found.robust.tolist()))
    assert robust.any() and not robust.all()
    other = RandAutoAttack()(*case, Threat("linf", RADII["linf"]), seed=4, batch_size=10)
    assert tuple(other.robust.tolist()) not in verdicts or not torch.equal(other.images, images)


def test_the_clean_pass_of_a_randomised_model_is_the_packages(trained: Case, brief: None) -> None:
    """With hardly any budget the noise decides, and our own pass over the clean images draws other noise."""
    case = (Noisy(trained[0], noise=0.8), *trained[1:])
    images, robust = theirs(case, "linf", "rand", eps=1e-6)
    found = RandAutoAttack()(*case, Threat("linf", 1e-6), seed=3, batch_size=10)
    assert torch.equal(found.robust, robust) and torch.equal(found.images, images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        case[0](case[1][:1])
        ours = torch.cat([case[0](batch).argmax(1) for batch in case[1].split(10)]) == case[2]
    assert (robust & ~ours).any()


def test_a_randomised_model_is_warned_of_by_the_standard_version_and_not_by_rand(trained: Case, brief: None) -> None:
    case = (Noisy(trained[0]), *trained[1:])
    found = {}
    for name in ("autoattack", "autoattack-rand"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ATTACKS.create(name)(*case, Threat("linf", 0.05), seed=0)
        found[name] = any("randomized defense" in str(warning.message) for warning in caught)
    assert found == {"autoattack": True, "autoattack-rand": False}
    judged = evaluate(*case, eps=0.05, attacks=["autoattack-rand"])
    assert 0 < judged.attacks["autoattack-rand"].accuracy < 1 and judged.warnings == ()


# --- the parts -------------------------------------------------------------------------------------------------------


def test_apgd_is_autoattack_stopped_after_two_parts(trained: Case, brief: None) -> None:
    model, x, y = trained
    with torch.random.fork_rng(devices=[]), suitable_threads(model, x):
        attack = AutoAttack(model, eps=0.12, seed=3)
        attack.attacks_to_run = ["apgd-ce", "apgd-t"]
        images = attack.run_standard_evaluation(x, y, batch_size=10)[0]
    found = APGD()(model, x, y, Threat("linf", 0.12), seed=3, batch_size=10)
    whole = StandardAutoAttack()(model, x, y, Threat("linf", 0.12), seed=3, batch_size=10)
    assert torch.equal(found.images, images)
    assert (found.robust | ~whole.robust).all()
    assert torch.equal(found.images[~found.robust], whole.images[~found.robust])


@pytest.mark.parametrize("norm", list(RADII))
def test_square_is_the_packages_with_as_many_queries_and_asks_for_no_gradient(trained: Case, norm: Norm) -> None:
    model, x, y = trained
    with torch.random.fork_rng(devices=[]), suitable_threads(model, x):
        attack = AutoAttack(model, eps=RADII[norm], norm=norm.capitalize(), seed=3)
        attack.attacks_to_run, attack.square.n_queries = ["square"], 80
        images = attack.run_standard_evaluation(x, y, batch_size=10)[0]
    asked: list[bool] = []
    handle = model.register_forward_hook(lambda *found: asked.append(found[-1].requires_grad))
    found = Square(queries=80)(model, x, y, Threat(norm, RADII[norm]), seed=3, batch_size=10)
    handle.remove()
    assert torch.equal(found.images, images) and found.settings["queries"] == 80
    assert not any(asked) and 80 <= len(asked) <= 3 * (80 + 4) + 30
    assert found.robust.any() and not found.robust.all()


def test_square_finds_what_a_masked_gradient_hides(trained: Case) -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return trained[0]((x * 64).round() / 64)

    _, x, y = trained
    with pytest.warns(RuntimeWarning, match="Masked gradients"):
        found = evaluate(Rounded(), x, y, eps=0.2, attacks=["pgd(steps=5, restarts=1)", "square(queries=300)"])
    assert found.attacks["square"].accuracy < found.attacks["pgd"].accuracy - 0.2


def test_two_classes_are_enough_for_square_and_three_for_rand() -> None:
    x, y = torch.rand(6, 1, 5, 5), torch.zeros(6, dtype=torch.int64)
    for classes, attack in ((2, Square(queries=5)), (3, RandAutoAttack())):
        model = nn.Sequential(nn.Flatten(), nn.Linear(25, classes))
        with warnings.catch_warnings():  # The package warns of a targeted loss that rand does not have.
            warnings.simplefilter("ignore")
            attack(model, x, y, Threat("linf", 0.01), seed=0)
        for other in (StandardAutoAttack(), PlusAutoAttack(), APGD(), Cascade(), RandAutoAttack()):
            if classes < other.least_classes:
                with pytest.raises(UserError, match=f"{other.least_classes} logits, but the model has {classes}"):
                    evaluate(model, x, y, eps=0.1, attacks=["pgd", other])


# --- the cascade -----------------------------------------------------------------------------------------------------


def test_the_cascade_breaks_in_short_and_gives_survivors_the_official_verdict(
    trained: Case, brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = trained
    threat = Threat("linf", 0.12)
    runs: list[tuple[Tensor, list[str], int, int]] = []
    standard = AutoAttack.run_standard_evaluation

    def noted(attack: AutoAttack, x: Tensor, y: Tensor, *, batch_size: int) -> tuple[Tensor, Tensor]:
        runs.append((x, attack.attacks_to_run, attack.apgd.n_iter, attack.apgd_targeted.n_target_classes))
        found: tuple[Tensor, Tensor] = standard(attack, x, y, batch_size=batch_size)
        return found

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", noted)
    found = Cascade(steps=5, targets=2)(model, x, y, threat, seed=3, batch_size=10)
    (_, parts, steps, targets), (left, whole, iterations, _) = runs
    assert (parts, steps, targets) == (["apgd-ce", "apgd-t"], 5, 2)
    assert whole == ["apgd-ce", "apgd-t", "fab-t", "square"] and iterations == 8
    assert 0 < len(left) < int((model(x).argmax(1) == y).sum())
    survived = torch.stack([(x == image).flatten(1).all(1) for image in left]).any(0)
    official = StandardAutoAttack()(model, x[survived], y[survived], threat, seed=3, batch_size=10)
    assert torch.equal(found.robust[survived], official.robust) and not found.robust[~survived].any()
    # Every image that is said to break a sample does, in the ball.
    assert threat.contains(x, found.images - x, 1e-6).all()
    assert torch.equal(model(found.images).argmax(1) == y, found.robust)
    assert torch.equal(found.predicted, model(found.images).argmax(1))


def test_what_autoattack_breaks_with_room_to_spare_the_cascade_breaks(trained: Case) -> None:
    """At the very budget at which a sample falls, random numbers decide."""
    model, x, y = trained
    broken = ~APGD()(model, x, y, Threat("linf", 0.13), seed=0).robust
    assert broken.sum() > 5
    assert not Cascade()(model, x[broken], y[broken], Threat("linf", 0.18), seed=0).robust.any()


@pytest.mark.parametrize("norm", list(RADII))
def test_the_short_part_has_the_schedule_that_apgd_has_when_it_is_made_so_long(norm: Norm) -> None:
    attack = AutoAttack(nn.Identity(), eps=0.1, norm=norm.capitalize(), seed=0)
    Cascade(steps=30, targets=4)._shorten(attack)
    made = APGDAttack(nn.Identity(), n_iter=30, eps=0.1)
    for part in (attack.apgd, attack.apgd_targeted):
        for name in ("n_iter", "n_iter_orig", "n_iter_2", "n_iter_min", "size_decr"):
            assert getattr(part, name) == getattr(made, name), name


@pytest.mark.parametrize("steps", [3, 4])
def test_the_shortest_cascade_runs_in_l1(trained: Case, brief: None, steps: int) -> None:
    Cascade(steps=steps, targets=1)(*trained, Threat("l1", 1.5), seed=0)
    with pytest.raises(UserError, match="`steps` must be a whole number of at least 3"):
        Cascade(steps=2)


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The batches that parts work on; a call beyond `stop` is interrupted."""
    made: list[str] = []
    for kind in PARTS:
        monkeypatch.setattr(kind, "perturb", counted(kind.perturb, kind.__name__, made))
    yield made


STOP: list[int] = [10**6]


def counted(perturb: Callable[..., Tensor], name: str, made: list[str]) -> Callable[..., Tensor]:
    def call(attack: object, x: Tensor, y: Tensor) -> Tensor:
        if len(made) == STOP[0]:
            raise KeyboardInterrupt
        made.append(name)
        return perturb(attack, x, y)

    return call


@pytest.mark.parametrize("attack", [StandardAutoAttack(), PlusAutoAttack(), Cascade(steps=5)], ids=ATTACKS.name_of)
def test_an_interrupted_attack_goes_on_batch_by_batch_with_the_same_verdicts(
    trained: Case, brief: None, calls: list[str], attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threat = Threat("linf", 0.12)
    whole = attack(*trained, threat, seed=3, batch_size=10)
    batches = list(calls)
    assert len(batches) > 6
    again: list[str] = []
    for stop in (2, 3, 10**6):  # Stopped in the third batch, and then three batches later.
        calls.clear()
        monkeypatch.setitem(globals(), "STOP", [stop])
        if stop < 10**6:
            with pytest.raises(KeyboardInterrupt):
                attack.resume(*trained, threat, Judging(3, 10), tmp_path / "memory")
        else:
            found = attack.resume(*trained, threat, Judging(3, 10), tmp_path / "memory")
        again += calls
    assert again == batches  # Nothing is done twice.
    assert torch.equal(found.robust, whole.robust) and torch.equal(found.images, whole.images)
    assert torch.equal(found.predicted, whole.predicted)


def test_a_damaged_memory_is_done_again(trained: Case, brief: None, calls: list[str], tmp_path: Path) -> None:
    threat, attack = Threat("linf", 0.12), APGD()
    whole = attack.resume(*trained, threat, Judging(3, 10), tmp_path)
    first = len(calls)
    files = sorted((tmp_path / "whole").iterdir())
    assert len(files) == first
    files[0].write_bytes(b"PK")
    files[1].write_bytes(files[1].read_bytes()[:50])
    assert torch.equal(attack.resume(*trained, threat, Judging(3, 10), tmp_path).images, whole.images)
    assert len(calls) == first + 2


def test_a_memory_belongs_to_the_images(trained: Case, brief: None, calls: list[str], tmp_path: Path) -> None:
    model, x, y = trained
    right = model(x).argmax(1) == y
    x, y, threat = x[right], y[right], Threat("linf", 0.12)
    APGD().resume(model, x, y, threat, Judging(3), tmp_path)
    calls.clear()
    moved = (x * 0.99, y)  # The same labels, and so the same batches.
    found = APGD().resume(model, *moved, threat, Judging(3), tmp_path)
    assert len(calls) == 2
    assert torch.equal(found.images, APGD()(model, *moved, threat, seed=3).images)


def test_the_bar_is_as_long_as_each_version_is(trained: Case, brief: None, capfd: pytest.CaptureFixture[str]) -> None:
    for name in (*VERSIONS, "square(queries=50)", "cascade"):
        model, x, y = trained
        ATTACKS.read(name, "attack")(model, x[:6], y[:6], Threat("linf", 0.12), seed=0, progress=True)
    said = capfd.readouterr().err
    for part in ("AutoAttack plus fab", "AutoAttack rand apgd-dlr", "Square square", "cascade apgd-t"):
        assert part in said
