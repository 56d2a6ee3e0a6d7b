import numpy as np
import pytest

from thyroid_lib.data.frames import restore_prob, threshold_prob
from thyroid_lib.evaluate import predict
from thyroid_lib.evaluate.metrics import dice, score_case
from thyroid_lib.train.run import score_run, train_model


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory):
    return train_model(
        tiny_store, out=tmp_path_factory.mktemp("runs") / "run", model="unet", width=4, folds=4,
        epochs=15, batch_size=6, lr=1e-3, threads=1, device="cpu", precision="fp32",
    )  # fmt: skip


def test_batches_do_not_change_probabilities(run, tiny_store):
    images = tiny_store.images[:7]
    together, apart = (predict.predict_prob(run.model, images, batch_size=n) for n in (7, 2))
    assert (together.shape, together.dtype) == (images.shape, np.float32)
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_scores_are_those_of_each_case_at_native_size(run, tiny_store):
    rows = np.array([0, 9, 20])
    scores = predict.score_rows(run.model, tiny_store, rows, threshold=0.4)
    tables = zip(rows, scores.cases.itertuples(), scores.thresholds.iterrows(), strict=True)
    for row, scored, (_, sweep) in tables:
        ref = tiny_store.reference(row)
        [prob] = predict.predict_prob(run.model, tiny_store.images[[row]])
        prob = restore_prob(prob, *ref.shape, tiny_store.settings["resize"])
        assert prob.shape == ref.shape
        alone = score_case(pred=threshold_prob(prob, 0.4), ref=ref)
        assert scored.case_id == tiny_store.index.case_id[row]
        assert scored.dice == pytest.approx(alone["dice"], abs=1e-6)
        assert scored.ref_px == ref.sum()
        assert scored.brier == pytest.approx(np.square(prob - ref).mean(), abs=1e-6)
        assert scored.case_id == sweep["case_id"]
        for threshold in (0.3, 0.5, 0.7):
            assert sweep[f"{threshold:.2f}"] == dice(threshold_prob(prob, threshold), ref)


def test_segment_case_is_what_was_scored(run, tiny_store):
    first = score_run(run, tiny_store).iloc[0]
    pred = predict.segment_case(run.out, tiny_store, first.case_id)
    assert pred.sum() == first.pred_px
