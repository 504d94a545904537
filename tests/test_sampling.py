"""Drawing a token from logits."""

import numpy as np
import pytest

from pygpt.errors import UserError
from pygpt.generation.sampling import Sampling, log_probability, penalised, sample
from pygpt.generation.sampling import candidates as candidates_of

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2]))


def candidates(logits, **settings):
    return candidates_of(logits, Sampling(**settings))


def frequencies(logits, draws=2000, allowed=None, text=(), **settings):
    """How often each token is drawn for equally spaced uniform numbers: its probability, to 1 / draws."""
    sampling = Sampling(**settings)
    tokens = [sample(logits, (draw + 0.5) / draws, sampling, allowed, text) for draw in range(draws)]
    return np.bincount(tokens, minlength=len(logits)) / draws


def test_tokens_are_drawn_with_their_probabilities():
    np.testing.assert_allclose(frequencies(LOGITS), [0.1, 0.4, 0.05, 0.25, 0.2], atol=1e-3)


def test_temperature_sharpens_and_flattens():
    p = np.exp(LOGITS)
    np.testing.assert_allclose(frequencies(LOGITS, temperature=0.5), p**2 / (p**2).sum(), atol=1e-3)
    np.testing.assert_allclose(frequencies(LOGITS, temperature=1e6), [0.2] * 5, atol=1e-3)


@pytest.mark.parametrize("temperature", [0, 1e-9, 1e-320])
def test_the_likeliest_token_at_temperature_zero_and_near_it(temperature):
    assert {sample(LOGITS, u, Sampling(temperature)) for u in (0.0, 0.5, 1 - 2**-53)} == {1}


def test_greedy_takes_the_first_of_equal_tokens():
    assert sample([1.0, 3.0, 3.0], 0.9, Sampling(temperature=0)) == 1


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
    "settings", [{"top_k": 0}, {"top_p": 0}, {"min_p": 0}, {"top_p": 1}, {"repetition_penalty": 1}]
)
def test_zero_leaves_a_limit_out(settings):
    assert sample(LOGITS, 0.999, Sampling(**settings)) == 4
    np.testing.assert_array_equal(candidates(LOGITS, **settings)[1], candidates(LOGITS)[1])


@pytest.mark.parametrize(
    ("min_p", "kept"), [(1, [1]), (0.63, [1]), (0.62, [1, 3]), (0.49, [1, 3, 4]), (0.124, [0, 1, 2, 3, 4])]
)
def test_min_p_keeps_what_is_nearly_as_likely_as_the_likeliest(min_p, kept):
    tokens, p = candidates(LOGITS, min_p=min_p)
    assert tokens.tolist() == kept
    np.testing.assert_allclose(p, np.exp(LOGITS)[kept] / np.exp(LOGITS)[kept].sum(), rtol=1e-12)


def test_min_p_is_measured_after_the_temperature():
    # squared, 0.25 of 0.4 has 0.39 of its probability
    assert candidates(LOGITS, temperature=0.5, min_p=0.38)[0].tolist() == [1, 3]
    assert candidates(LOGITS, temperature=0.5, min_p=0.40)[0].tolist() == [1]


def test_repetition_makes_tokens_of_the_text_less_likely():
    logits = np.array([2.0, -1.0, 0.5, 0.0])
    np.testing.assert_array_equal(penalised(logits, [0, 1, 1, 3], 2.0), [1.0, -2.0, 0.5, 0.0])
    np.testing.assert_array_equal(logits, [2.0, -1.0, 0.5, 0.0])
    p = np.exp([1.0, -2.0, 0.5, 0.0])
    found = frequencies(logits, text=[0, 1, 1, 3], repetition_penalty=2.0)
    np.testing.assert_allclose(found, p / p.sum(), atol=1e-3)
    assert sample([2.0, 1.9], 0.5, Sampling(temperature=0, repetition_penalty=1.1), text=[0]) == 1


def test_among_allowed_tokens_probabilities_keep_their_ratios():
    np.testing.assert_allclose(
        frequencies(LOGITS, allowed=np.array([0, 1, 3])), [2 / 15, 8 / 15, 0, 5 / 15, 0], atol=1e-3
    )
    # a token of the text counts by its own number, not by its place among the allowed
    penalty = {"text": [3], "repetition_penalty": 2.0, "temperature": 0}
    assert frequencies(np.array([0.0, 1.0, 9.0, 1.5]), allowed=np.array([1, 3]), **penalty).argmax() == 1


def test_log_probability_is_the_model_s_own():
    assert log_probability(LOGITS + 1000, 3) == pytest.approx(np.log(0.25), rel=1e-12)
    assert log_probability([0.0, -2000.0], 1) == -2000.0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": True}, "temperature is True"),
        ({"top_k": -1}, "top-k is -1, expected an integer of at least 0"),
        ({"top_p": -0.1}, "top-p is -0.1"),
        ({"top_p": 1.5}, "top-p is 1.5"),
        ({"top_p": float("nan")}, "top-p is nan"),
        ({"min_p": 1.5}, "min-p is 1.5"),
        ({"min_p": "a"}, "min-p is 'a'"),
        ({"repetition_penalty": 0}, "repetition-penalty is 0, expected a number above 0"),
        ({"repetition_penalty": float("inf")}, "repetition-penalty is inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Sampling(**settings)
