import numpy as np
import pytest

from compmem_research.metrics import (
    bootstrap_interval,
    calibration_error,
    exact_match,
    f1,
    recall_at,
    string_match,
    sub_em,
    sub_em_two_way,
)


def test_exact_match_ignores_case_articles_and_punctuation():
    assert exact_match("The Cork.", ["cork"]) == 1.0
    assert exact_match("Cork city", ["cork"]) == 0.0


def test_f1_takes_the_best_answer():
    assert f1("Detroit Michigan", ["Chicago", "Detroit"]) == pytest.approx(2 / 3)
    assert f1("", ["Detroit"]) == 0.0


def test_sub_em_is_one_way_and_whole_words():
    assert sub_em("He was buried in Cork.", ["Cork"]) == 1.0
    assert sub_em("He was buried in Corkscrew.", ["Cork"]) == 0.0
    assert sub_em("Cork", ["County Cork"]) == 0.0
    assert sub_em("the", ["the"]) == 0.0


def test_the_published_sub_em_counts_an_empty_prediction():
    assert sub_em_two_way("the", ["Cork"]) == 1.0
    assert sub_em_two_way("Dublin", ["Cork"]) == 0.0


def test_string_match_is_a_share():
    assert string_match("8091 and 77", ["8091", "12"]) == 0.5


def test_recall_at_counts_gold_items_once():
    assert recall_at([1, 2, 2, 3], [2, 3, 9], 3) == pytest.approx(1 / 3)


def test_calibration_error_of_right_and_wrong_probabilities():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    y = (rng.random(20_000) < p).astype(float)
    assert calibration_error(p, y) < 0.02
    assert calibration_error(np.full(100, 0.9), np.zeros(100)) == pytest.approx(0.9)


def test_bootstrap_interval_holds_the_mean_and_narrows():
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 1000
    low, high = bootstrap_interval(few)
    assert low <= 0.5 <= high
    assert bootstrap_interval(many)[1] - bootstrap_interval(many)[0] < high - low
