"""The arithmetic of jobs/theory.py on distributions whose answers are known."""

import numpy as np

from jobs.theory import OTHERS, ROWS, normalised, options, prediction, variation, words
from rayrec.driver.checks import resolve
from rayrec.methods import parse

P = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]])
REF = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])


def test_negatives_of_the_reference_with_beta_one_lead_to_the_truth() -> None:
    np.testing.assert_allclose(prediction(REF, P, REF, 1.0), P, atol=1e-15)


def test_uniform_negatives_with_beta_one_lead_to_the_product_of_truth_and_reference() -> None:
    wanted = P * REF / (P * REF).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(prediction(REF, P, np.ones_like(P), 1.0), wanted, atol=1e-15)


def test_a_small_beta_leads_to_one_title_and_a_large_one_to_the_reference() -> None:
    assert (prediction(REF, P, REF, 0.001).max(axis=1) > 0.999).all()
    seen = np.where(P > 0, REF, 0)
    np.testing.assert_allclose(prediction(REF, P, REF, 1e6), seen / seen.sum(axis=1, keepdims=True), atol=1e-5)


def test_distributions_and_their_distance() -> None:
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(normalised(np.log(3 * P)), P)
    assert variation(P, P) == 0 and variation(np.eye(4), np.eye(4)[::-1]) == 1
    np.testing.assert_allclose(variation(P, REF), (0.5 + 0.2) / 2)


def test_runs_tune_on_the_rows_that_the_table_names() -> None:
    args = options().parse_args([])
    settings = {name: (flags, 0.1) for name, (_, flags) in ROWS.items()} | {
        name: (f, None) for name, f in OTHERS.items()
    }
    found = {name: resolve(parse("", words(args, flags, beta))).train for name, (flags, beta) in settings.items()}
    rere = found.pop("ReRe")
    assert (rere.iterations, rere.rows_per_iteration, rere.sft) == (48, 32, False)
    assert {(one.iterations, one.rows_per_iteration, one.sft) for one in found.values()} == {(1, 4096, False)}
