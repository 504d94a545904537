"""The learning rate of each step."""

import itertools
import math

import pytest

from pygpt.training.schedule import SCHEDULES, learning_rate

SETTINGS = {"peak": 1e-3, "floor": 1e-4, "warmup_iters": 100, "max_iters": 2000, "decay_iters": 400}


def rate(step, schedule, **changes):
    return learning_rate(step, schedule=schedule, **{**SETTINGS, **changes})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_and_ends_at_the_peak(schedule):
    assert rate(0, schedule) == pytest.approx(1e-3 / 101)
    assert rate(49, schedule) == pytest.approx(1e-3 * 50 / 101)
    assert rate(100, schedule) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("cosine", 1050, 5.5e-4),
        ("cosine", 575, 1e-4 + 9e-4 * (1 + math.sqrt(0.5)) / 2),
        ("cosine", 2000, 1e-4),
        ("linear", 1050, 5.5e-4),
        ("linear", 575, 7.75e-4),
        ("linear", 2000, 1e-4),
        ("constant", 1999, 1e-3),
        ("wsd", 1600, 1e-3),
        ("wsd", 1800, 5.5e-4),
        ("wsd", 1999, 1e-3 - 9e-4 * 399 / 400),
    ],
)
def test_values(schedule, step, expected):
    assert rate(step, schedule) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_never_rises_after_the_warm_up_nor_leaves_its_range(schedule):
    rates = [rate(step, schedule) for step in range(100, 2100)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))
    assert max(rates) == 1e-3
    assert min(rates) >= 1e-4 * (1 - 1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("changes", [{"warmup_iters": 0}, {"warmup_iters": 1, "max_iters": 1, "decay_iters": 1}])
def test_runs_without_warm_up_or_with_nothing_else(schedule, changes):
    assert 0 < rate(0, schedule, **changes) <= 1e-3


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="'cosin'"):
        rate(0, "cosin")
