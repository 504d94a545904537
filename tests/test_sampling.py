"""Drawing a token from logits."""

import numpy as np
import pytest

from pygpt.errors import UserError
from pygpt.generation.sampling import candidates, check_sampling, sample

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2]))


def frequencies(logits, draws=2000, **settings):
    """How often each token is drawn for equally spaced uniform numbers: its probability, to 1 / draws."""
    tokens = [sample(logits, (draw + 0.5) / draws, **settings) for draw in range(draws)]
    return np.bincount(tokens, minlength=len(logits)) / draws


def test_tokens_are_drawn_with_their_probabilities():
    np.testing.assert_allclose(frequencies(LOGITS), [0.1, 0.4, 0.05, 0.25, 0.2], atol=1e-3)


def test_temperature_sharpens_and_flattens():
    p = np.exp(LOGITS)
    np.testing.assert_allclose(frequencies(LOGITS, temperature=0.5), p**2 / (p**2).sum(), atol=1e-3)
    np.testing.assert_allclose(frequencies(LOGITS, temperature=1e6), [0.2] * 5, atol=1e-3)


@pytest.mark.parametrize("temperature", [0, 1e-9, 1e-320])
def test_the_likeliest_token_at_temperature_zero_and_near_it(temperature):
    assert {sample(LOGITS, u, temperature) for u in (0.0, 0.5, 1 - 2**-53)} == {1}


def test_greedy_takes_the_first_of_equal_tokens():
    assert sample([1.0, 3.0, 3.0], 0.9, temperature=0) == 1


def test_top_k():
    np.testing.assert_allclose(frequencies(LOGITS, top_k=2), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=1e-3)
    np.testing.assert_allclose(frequencies(LOGITS, top_k=1), [0, 1, 0, 0, 0])
    np.testing.assert_allclose(frequencies(LOGITS, top_k=100), frequencies(LOGITS))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [1]), (0.4 - 1e-9, [1]), (0.41, [1, 3]), (0.84, [1, 3, 4]), (0.94, [0, 1, 3, 4]), (1.0, [0, 1, 2, 3, 4])],
)
def test_top_p_keeps_the_fewest_tokens_with_that_probability(top_p, kept):
    tokens, p = candidates(LOGITS, top_p=top_p)
    assert tokens.tolist() == kept
    np.testing.assert_allclose(p, np.exp(LOGITS)[kept] / np.exp(LOGITS)[kept].sum(), rtol=1e-12)


def test_top_k_comes_before_top_p():
    # among the two likeliest, 0.4 and 0.25, the first alone has 0.615
    assert candidates(LOGITS, top_k=2, top_p=0.6)[0].tolist() == [1]
    assert candidates(LOGITS, top_k=2, top_p=0.63)[0].tolist() == [1, 3]


@pytest.mark.parametrize("V", [6, 1000])  # an unstable sort leaves a few numbers in their order, but not many
def test_of_equal_tokens_at_a_limit_the_first_stay(V):
    likely = np.arange(V) % 3 == 1
    expected = np.flatnonzero(likely)[:2].tolist()
    assert candidates(5.0 * likely, top_k=2)[0].tolist() == expected
    assert candidates(500.0 * likely, top_p=1.5 / likely.sum())[0].tolist() == expected
    assert candidates(np.zeros(V), top_p=1.5 / V)[0].tolist() == [0, 1]


@pytest.mark.parametrize(("top_p", "count"), [(0.25, 1), (0.25 + 1e-12, 2), (0.5, 2), (0.75 - 1e-12, 3), (0.75, 3)])
def test_top_p_that_is_reached_exactly_is_enough(top_p, count):
    assert candidates(np.zeros(4), top_p=top_p)[0].size == count


def test_a_token_of_probability_zero_is_never_drawn():
    logits = np.array([-2000.0, 0.0, -2000.0, 0.0, -2000.0])
    assert {sample(logits, u) for u in (0.0, 0.25, 0.5, 0.75, 1 - 2**-53)} == {1, 3}


def test_noise_of_rounding_moves_no_draw_by_more_than_itself():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=1000)
    noisy = logits + 1e-7 * rng.normal(size=1000)
    uniforms = rng.random(2000)
    different = sum(sample(logits, u) != sample(noisy, u) for u in uniforms)
    assert different <= 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value):
    with pytest.raises(UserError, match="not finite"):
        sample([0.0, value], 0.5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ((-1, None, None), "temperature is -1"),
        ((float("nan"), None, None), "temperature is nan"),
        ((1.0, 0, None), "top-k is 0"),
        ((1.0, None, 0.0), "top-p is 0.0"),
        ((1.0, None, 1.5), "top-p is 1.5"),
        ((1.0, None, float("nan")), "top-p is nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        check_sampling(*settings)
