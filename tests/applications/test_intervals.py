"""Wilson's intervals against SciPy, in records, tables and reports."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from adv_train.attacks import PGD
from adv_train.evaluate import evaluate
from adv_train.evaluation import headline, read_all, wilson, write
from adv_train.evaluation.record import Evaluation, Outcome
from adv_train.report import RunSummary, results_table
from adv_train.report.page import render
from adv_train.threat import Threat
from tests.applications.test_evaluate import linear_case


@settings(deadline=None, max_examples=200)
@given(data=st.data(), n=st.integers(1, 10_000), level=st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_the_interval_is_scipys(data: st.DataObject, n: int, level: float) -> None:
    k = data.draw(st.one_of(st.just(0), st.just(n), st.integers(0, n)))
    expected = binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    low, high = wilson(k, n, level)
    assert low == pytest.approx(expected.low, abs=1e-12) and high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= low <= k / n <= high <= 1


@pytest.fixture(scope="module")
def judged() -> Evaluation:
    model, x, y = linear_case()
    found = evaluate(model, x, y, eps=0.05, attacks=[PGD(steps=4, restarts=1)])
    about = {"checkpoint": "best.pt", "epoch": 3, "data": "digits"}
    return replace(found, about=about, of=360)


def test_a_record_holds_the_interval_of_each_accuracy_and_the_size_of_the_test_set(
    judged: Evaluation, tmp_path: Path
) -> None:
    write(judged, tmp_path)
    content = json.loads((tmp_path / "eval.json").read_text())
    pgd = judged.attacks["pgd"].robust
    for found in (content, content["records"][0]):
        for interval, k in ((found["intervals"]["sa"], 37), (found["intervals"]["ra"]["pgd"], int(pgd.sum()))):
            expected = binomtest(k, 40).proportion_ci(method="wilson")
            assert interval == pytest.approx([expected.low, expected.high])
        assert found["of"] == 360
    (back,) = read_all(tmp_path)
    assert back.summary() == judged.summary() and back.of == 360


def test_the_size_of_the_test_set_does_not_change_what_a_record_is_called(judged: Evaluation, tmp_path: Path) -> None:
    assert write(judged, tmp_path) == write(replace(judged, of=None), tmp_path)
    assert read_all(tmp_path)[0].of is None and "of" not in read_all(tmp_path)[0].summary()


def test_tables_and_the_report_show_the_intervals(judged: Evaluation) -> None:
    summary = judged.summary()
    run = RunSummary("r", {}, summary, (), records=[summary, summary])
    low, high = (f"{100 * end:.1f}" for end in summary["intervals"]["sa"])
    told = f"92.5 % [{low}, {high}]"
    page = render([run], title="t")
    text = re.sub("<[^>]+>", "", page)  # without the tags at which a line may break before the interval
    assert told in results_table([run]) and told in page and told in results_table([run], "latex").replace("\\", "")
    assert (
        page.count(told) == 1  # the figure in words
        and text.count(told) == 3  # the results and both records
        and "95 % Wilson interval" in page
        and "40 images, linf, ε = 0.05; the test set has 360" in page
    )
    assert f",{judged.sa}," in results_table([run], "csv")
    old = {key: value for key, value in summary.items() if key not in ("intervals", "of")}
    assert "92.5 % |" in results_table([RunSummary("r", {}, old, ())])


def test_verdicts_after_rounding_survive_the_disk(judged: Evaluation, tmp_path: Path) -> None:
    robust = judged.attacks["pgd"].robust
    after = np.where(np.arange(40) < 20, robust, True) & judged.clean
    pgd = replace(judged.attacks["pgd"], rounded=after)
    write(replace(judged, attacks={"pgd": pgd}), tmp_path)
    (back,) = read_all(tmp_path)
    assert np.array_equal(back.attacks["pgd"].rounded, after)
    broken = judged.clean & ~robust
    expected = {"ra": after.mean(), "broken": broken.sum(), "stay": broken[:20].sum(), "more": (robust & ~after).sum()}
    assert back.summary()["rounded"]["pgd"] == expected
    assert broken[:20].any() and broken[20:].any()


def test_the_new_attacks_stand_behind_pgd_and_autoattack() -> None:
    flags = np.ones(10, np.bool_)
    records = [
        Evaluation(Threat("linf", 0.1), 0, flags, {name: Outcome(flags, None, {})})
        for name in ("autoattack-plus", "cascade", "pgd", "autoattack", "apgd")
    ]
    assert headline(records) is records[3]
