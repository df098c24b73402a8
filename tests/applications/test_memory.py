"""What a method remembers from step to step is saved and resumed with the run, and follows each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adv_train import checkpoint, data
from adv_train.errors import UserError
from adv_train.methods import METHODS, Moment, Sizes, State, Step
from adv_train.methods.fast_at import FastAT
from adv_train.methods.losses import Losses
from adv_train.threat import Threat
from adv_train.train import fit
from tests.applications.test_resume import Stopped, assert_same_run, config, stop_at_write

MOMENTS: list[tuple[int, ...]] = []


@dataclass(frozen=True, kw_only=True)
class Remembering(FastAT):
    """Fast-AT that starts where it ended on an image the last time."""

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        assert sizes == ((96, 1, 8, 8), 10, 32)
        return {"delta": torch.zeros(sizes.images), "seen": torch.zeros(sizes.images[0], dtype=torch.int64)}

    def __call__(
        self,
        model: nn.Module,
        params: dict[str, Tensor],
        batch: data.Batch,
        threat: Threat,
        *,
        moment: Moment | None = None,
        state: State | None = None,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Step:
        assert state is not None and moment is not None
        MOMENTS.append(tuple(int(value) for value in moment))
        # Augmentation moves the images, so what is remembered is moved back inside their range.
        start = threat.set(batch.x).project(state["delta"][batch.index])
        step = super().__call__(model, params, batch, threat, start=start, generator=generator)
        kept = {
            "delta": state["delta"].index_copy(0, batch.index, step.delta),
            "seen": state["seen"].index_add(0, batch.index, torch.ones_like(batch.index)),
        }
        return replace(step, state=kept)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    METHODS.register("remembering")(Remembering)
    yield
    del METHODS._makers["remembering"]  # what other tests list are the methods of the package


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    MOMENTS.clear()
    fit(config(method="remembering"), run, progress=False)
    return run


def test_each_image_has_its_own_memory_and_each_step_its_moment(whole: Path) -> None:
    saved = checkpoint.load(whole / "last.pt")
    assert saved.memory["seen"].tolist() == [saved.epoch] * 96
    assert saved.memory["delta"].flatten(1).any(1).all() and saved.memory["delta"].abs().max() <= 0.2
    assert [(step, 12, step // 3) for step in range(12)] == MOMENTS
    assert not checkpoint.load(whole / "best.pt").memory  # which is for evaluation alone


@pytest.mark.parametrize("write", [4, 7])
def test_a_run_that_was_stopped_remembers_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at_write(patch, write, after=True)
        with pytest.raises(Stopped):
            fit(config(method="remembering"), run, progress=False)
    fit(config(method="remembering"), run, progress=False)
    assert_same_run(run, whole)
    found, expected = checkpoint.load(run / "last.pt").memory, checkpoint.load(whole / "last.pt").memory
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_memory_that_does_not_fit_is_refused(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at_write(patch, 4, after=True)
        with pytest.raises(Stopped):
            fit(config(method="remembering"), run, progress=False)

    def other(self: Any, model: nn.Module, sizes: Sizes) -> State:
        return {"delta": torch.zeros(sizes.images[0], 3)}

    monkeypatch.setattr(Remembering, "remember", other)
    with pytest.raises(UserError, match="the memory of the method belongs to another method or data set"):
        fit(config(method="remembering"), run, progress=False)


def test_a_method_may_make_several_steps_on_one_batch(tmp_path: Path) -> None:
    @METHODS.register("replaying")
    @dataclass(frozen=True, kw_only=True)
    class Replaying(Remembering):
        def replays(self) -> int:
            return 3

    try:
        MOMENTS.clear()
        saved = checkpoint.load(fit(config(method="replaying", epochs=1), tmp_path / "run", progress=False).run.last)
        assert [moment[:2] for moment in MOMENTS] == [(step, 9) for step in range(9)]
        assert (saved.memory["seen"] == 3).all()
        assert saved.optimizer["param_groups"][0]["lr"] > 0
    finally:
        del METHODS._makers["replaying"]


@pytest.mark.parametrize("method", ["atas", "fgsm-pgi"])
def test_the_noise_of_a_first_start_is_clipped_where_its_pixel_is_now(method: str) -> None:
    images = torch.zeros(8, 1, 16, 16)
    images[..., 8:] = 1  # black on the left and white on the right, and the other way round after the flip
    motion = data.Motion(torch.zeros(8, 2, dtype=torch.int64), torch.ones(8, dtype=torch.bool))
    batch = data.Batch(motion.apply(images), torch.zeros(8, dtype=torch.int64), torch.arange(8), motion)
    chosen: Any = METHODS.create(method, start="gaussian")
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    memory = chosen.remember(model, Sizes(images.shape, 2, 8))
    losses = Losses(model, batch, attack=chosen.attack_loss, train=chosen.train_loss, state=memory)
    losses.generator = torch.Generator().manual_seed(0)
    start = chosen.draw(losses, Threat("linf", 0.1))
    white, black = start[..., :8], start[..., 8:]
    assert (white <= 0).all() and (black >= 0).all()
    for half in (white, black):  # clipping takes half of the noise
        assert 0.4 < (half != 0).double().mean() < 0.6
