from __future__ import annotations

import math

import pytest

from af.evaluation.comparison import Comparison, Setting, cell

BETTER = {"low": "lower", "high": "higher", "near": "true"}


def run(low, high, near):
    sides = {"near/true": 1.0, "low/true": 0.0, "low/null": 0.5}
    return {"low": low, "high": high, "near": near, **sides, "better": BETTER}


@pytest.fixture
def comparison():
    """a: low 1 ± 0, high 2, near 1.5 (0.5 off); b: low 3 ± 1, high 2, near 0.8 (0.2 off); c: nothing yet."""
    settings = [Setting("a", (run(1, 2, 1.5),)), Setting("b", (run(2, 2, 0.8), run(4, 2, 0.8))), Setting("c", ())]
    return Comparison.of(settings, ["low", "high", "near", "absent"])


def test_mean_and_standard_error_by_hand():
    """1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, standard error √(7/3)."""
    found = cell([1.0, None, 2.0, float("nan"), 6.0])
    assert (found.mean, found.runs) == (3.0, 3)
    assert found.standard_error == pytest.approx(math.sqrt(7 / 3))
    assert cell([2.0]).standard_error is None
    assert cell([]).text() == "–"


def test_the_best_is_the_lowest_the_highest_or_the_nearest_to_the_truth(comparison):
    assert comparison.best("low") == {"a"}
    assert comparison.best("high") == {"a", "b"}
    assert comparison.best("near") == {"b"}
    assert comparison.best("absent") == set()


def test_what_is_within_two_standard_errors_of_the_best_is_as_good():
    """0.1 apart with errors of 0.06 each: two errors of the difference are 0.17; with 0.03 each, 0.085."""
    for error, best in ((0.06, {"a", "b"}), (0.03, {"a"})):
        runs = [{"low": value, "low/se": error, "better": BETTER} for value in (1.0, 1.1)]
        found = Comparison.of([Setting(name, (run,)) for name, run in zip("ab", runs, strict=True)], ["low"])
        assert found.best("low") == best
        assert found.cell(found.settings[0], "low").text() == f"1 ± {error}"


def test_rows_end_with_ground_truth_and_null(comparison):
    rows = comparison.rows("*{}*")
    assert rows[0] == ["a", "1", "*1*", "*2*", "1.5", "–"]
    assert rows[1] == ["b", "2", "3 ± 1", "*2 ± 0*", "*0.8 ± 0*", "–"]
    assert rows[2] == ["c", "0", "–", "–", "–", "–"]
    assert rows[3:] == [["ground truth", "", "0", "–", "1", "–"], ["null", "", "0.5", "–", "–", "–"]]
    assert "**0.8 ± 0**" in comparison.markdown()


def test_records_and_pictures_cover_every_setting_and_metric(comparison):
    records = comparison.records()
    assert len(records) == 3 * 4
    assert [r["setting"] for r in records if r["best"] and r["metric"] == "near"] == ["b"]
    assert set(comparison.figures()) == {"low", "high", "near", "absent"}
