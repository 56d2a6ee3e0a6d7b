import numpy as np
import pandas as pd
import pytest

from thyroid_lib.evaluate.scores import BINS, count_logits, fit_temperature, score_map, score_maps

HOW = {"resize": "square"}


def drawn_case(seed, shape=(20, 30)):
    rng = np.random.default_rng(seed)
    return rng.random((16, 16), dtype=np.float32), rng.random(shape) > 0.6


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(temperature):
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, (4, 50, 50))
    ref = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
    prob = 1 / (1 + np.exp(-logit * temperature))  # too sure above 1
    counts = sum(count_logits(p, r) for p, r in zip(prob, ref, strict=True))
    assert counts.sum() == ref.size
    assert fit_temperature(counts) == pytest.approx(temperature, rel=0.05)


@pytest.mark.study
def test_counted_logits_fit_as_the_pixels_themselves():
    rng = np.random.default_rng(1)
    prob = (1 / (1 + np.exp(-rng.normal(0, 4, 20_000)))).astype(np.float32)
    ref = rng.random(prob.shape) < np.clip(prob, 0.2, 0.8)
    sure = np.clip(prob.astype(float), 1e-6, 1 - 1e-6)
    wrong = np.where(ref, -1, 1) * np.log(sure / (1 - sure))
    each = np.linspace(0.5, 9.5, 9001)
    best = each[np.argmin([np.logaddexp(0, wrong / t).mean() for t in each])]
    assert fit_temperature(count_logits(prob, ref)) == pytest.approx(best, abs=2e-3)


def test_bins_count_every_pixel_once():
    prob, ref = drawn_case(0, (16, 16))
    counts = score_map(prob, ref, **HOW)[2]
    assert counts.shape == (3, BINS)
    sums = ref.size, prob.sum(dtype=float), ref.sum()
    assert counts.sum(axis=1).tolist() == pytest.approx(sums)
    full = score_map(np.ones((16, 16), np.float32), ref, **HOW)[2]
    assert full[0, -1] == ref.size  # probability 1 belongs to the last bin


def test_workers_change_nothing():
    cases = [drawn_case(i, (20 + i, 30)) for i in range(12)]
    rows = pd.DataFrame({"case_id": map(str, range(12)), "dataset": "d", "group": [*"ab"] * 6})

    def batches():
        for start in range(0, 12, 5):
            probs, refs = zip(*cases[start : start + 5], strict=True)
            yield np.stack(probs), list(refs)

    one, three = (score_maps(rows, batches(), **HOW, workers=count) for count in (1, 3))
    for table in ("cases", "thresholds", "calibration"):
        assert getattr(one, table).equals(getattr(three, table))
    assert one.cases.case_id.tolist() == [str(i) for i in range(12)]
