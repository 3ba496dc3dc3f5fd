"""fastgen.accelerate for scikit-learn's BernoulliRBM: meaning, shapes and dtypes are scikit-learn's."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse, special, stats
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

from fastgen import accelerate, data

DIGITS = (data.digits().train.flatten(1) > 127).numpy().astype(np.float64)


@pytest.fixture
def plain():
    """A fitted machine of 6 x 5 units with strong weights."""
    rng = np.random.RandomState(0)
    model = BernoulliRBM(n_components=5, random_state=7, n_iter=1).fit(rng.rand(30, 6) < 0.5)
    model.components_ = np.asarray(rng.normal(0, 0.7, (5, 6)), order="F")
    model.intercept_hidden_, model.intercept_visible_ = rng.normal(0, 0.5, 5), rng.normal(0, 0.5, 6)
    return model


def all_states(units):
    return (np.arange(2**units)[:, None] >> np.arange(units) & 1).astype(np.float64)


def after_one_step(model, v):
    """The exact distribution over all v' of one step of Gibbs sampling from each row of v."""
    h, new = all_states(len(model.intercept_hidden_)), all_states(v.shape[1])
    p_h = special.expit(v @ model.components_.T + model.intercept_hidden_)
    to_h = np.exp(np.log(p_h) @ h.T + np.log1p(-p_h) @ (1 - h).T)
    p_v = special.expit(h @ model.components_ + model.intercept_visible_)
    return to_h @ np.exp(np.log(p_v) @ new.T + np.log1p(-p_v) @ (1 - new).T)


def p_value(samples, probability):
    seen = np.bincount(samples.astype(int) @ (1 << np.arange(samples.shape[1])), minlength=len(probability))
    expected = probability * len(samples)
    rare = expected < 8
    if rare.any():
        seen, expected = (np.append(x[~rare], x[rare].sum()) for x in (seen, expected))
    return stats.chisquare(seen, expected).pvalue


# gibbs


@pytest.mark.parametrize("v", [[1, 0, 1, 1, 0, 0], [0.2, 0.9, 0.5, 0, 1, 0.3], [-1, 2, 0, 0.5, 0, 3]])
@pytest.mark.parametrize("rows", [50, 1000])
def test_one_step_has_scikit_learns_exact_distribution(plain, v, rows):
    fast, _ = accelerate(plain)
    batch = np.tile(np.array(v, dtype=np.float64), (rows, 1))
    samples = np.concatenate([fast.gibbs(batch) for _ in range(40_000 // rows)])
    exact = after_one_step(plain, batch[:1])[0]
    assert p_value(samples, exact) > 1e-4  # false alarms: 6 in 10,000
    if rows == 1000:  # scikit-learn passes the test, a machine of other weights does not
        assert p_value(np.concatenate([plain.gibbs(batch) for _ in range(40)]), exact) > 1e-4
        plain.components_ = plain.components_ * 1.1
        assert p_value(samples, after_one_step(plain, batch[:1])[0]) < 1e-4


@pytest.mark.parametrize("rows", [5, 200])
@pytest.mark.parametrize(
    "kind", [np.asarray, lambda v: v.astype(bool), lambda v: v.astype(np.float32), sparse.csr_matrix]
)
def test_gibbs_takes_and_gives_what_scikit_learns_does(plain, rows, kind):
    fast, _ = accelerate(plain)
    v = kind(all_states(6)[np.arange(rows) % 64])
    got, wanted = fast.gibbs(v), plain.gibbs(v)
    assert type(got) is type(wanted) and got.shape == wanted.shape and got.dtype == wanted.dtype


def test_a_chain_of_gibbs_steps_agrees_in_its_means():
    plain = BernoulliRBM(n_components=32, learning_rate=0.05, n_iter=5, random_state=0).fit(DIGITS)
    fast, _ = accelerate(plain)
    means = []
    for model in (plain, fast):
        v = DIGITS[np.arange(4000) % len(DIGITS)]
        for _ in range(30):
            v = model.gibbs(v)
        means.append(v.mean(0))
    pooled = (means[0] + means[1]) / 2
    z = (means[0] - means[1]) / np.sqrt(pooled * (1 - pooled) * 2 / 4000 + 1e-12)
    assert np.abs(z).max() < 5  # false alarms: 64 x 6e-7
    assert 0.5 < np.sqrt((z**2).mean()) < 1.5


@pytest.mark.parametrize("state", [3, np.random.RandomState(3)])
@pytest.mark.parametrize("rows", [5, 200])
def test_the_random_state_governs(plain, state, rows):
    v = all_states(6)[np.arange(rows) % 64]
    runs = []
    for _ in range(2):
        fast, _ = accelerate(clone(plain).set_params(random_state=pickle.loads(pickle.dumps(state))).fit(v))
        runs.append([fast.gibbs(v), fast.gibbs(v), fast.components_])
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    assert not np.array_equal(runs[0][0], runs[0][1])  # the state moves on


def test_numpys_seed_governs_where_there_is_no_random_state(plain):
    fast, _ = accelerate(plain.set_params(random_state=None))
    v, runs = all_states(6), []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        runs.append(fast.gibbs(v))
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


# fit


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_fit_gives_the_attributes_of_scikit_learns(dtype, kind):
    arguments = dict(n_components=9, batch_size=17, n_iter=2, random_state=0)
    plain = BernoulliRBM(**arguments).fit(kind(DIGITS[:100].astype(dtype)))
    fast, _ = accelerate(BernoulliRBM(**arguments))
    assert fast.fit(kind(DIGITS[:100].astype(dtype))) is fast
    assert vars(fast).keys() == vars(plain).keys()
    for name, value in vars(plain).items():
        if isinstance(value, np.ndarray):
            got = getattr(fast, name)
            assert got.dtype == value.dtype and got.shape == value.shape, name
            assert got.flags.f_contiguous == value.flags.f_contiguous, name
            assert np.isfinite(got).all(), name
    assert set(np.unique(fast.h_samples_)) <= {0, 1}
    assert list(fast.get_feature_names_out()) == list(plain.get_feature_names_out())


def test_an_array_that_is_turned_over_is_fitted_as_its_copy():
    model = accelerate(BernoulliRBM(n_components=1100, n_iter=1, batch_size=64, random_state=0))[0]
    turned = DIGITS[:128, ::-1]  # of 64 columns, so that the weights are many enough for fastgen
    fitted = [model.fit(x).components_ for x in (turned, turned.copy())]
    assert np.array_equal(*fitted)


def test_one_update_is_scikit_learns_in_the_mean():
    """The same start and data: over many random states the updates have one mean, element by element."""
    rng = np.random.RandomState(0)
    start = BernoulliRBM(n_components=4, batch_size=6, learning_rate=0.5, random_state=0).fit(
        DIGITS[:6, 10:18]
    )
    start.components_ = np.asarray(rng.normal(0, 1, (4, 8)), order="F")
    start.h_samples_ = (rng.rand(6, 4) < 0.5).astype(np.float64)
    names = ("components_", "intercept_hidden_", "intercept_visible_", "h_samples_")
    sums = {}
    for kind in ("plain", "fast"):
        runs = []
        for seed in range(2000):
            model = pickle.loads(pickle.dumps(start))
            model.random_state_ = np.random.RandomState(seed)
            model = model if kind == "plain" else accelerate(model)[0]
            model.partial_fit(DIGITS[6:10, 10:18])
            runs.append(np.concatenate([getattr(model, name).ravel() for name in names]))
        sums[kind] = np.array(runs)
    difference = sums["plain"].mean(0) - sums["fast"].mean(0)
    error = np.sqrt((sums["plain"].var(0) + sums["fast"].var(0)) / 2000) + 1e-9
    assert np.abs(difference / error).max() < 5  # false alarms: 68 x 6e-7
    assert np.allclose(sums["plain"].std(0), sums["fast"].std(0), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("partial", [False, True])
def test_training_reaches_the_score_of_scikit_learns(partial):
    scores = []
    for seed in range(3):
        arguments = dict(n_components=40, learning_rate=0.05, n_iter=10, batch_size=20, random_state=seed)
        for model in (BernoulliRBM(**arguments), accelerate(BernoulliRBM(**arguments))[0]):
            if partial:
                for _ in range(10):
                    for first in range(0, len(DIGITS), 20):
                        model.partial_fit(DIGITS[first : first + 20])
            else:
                model.fit(DIGITS)
            scores.append(
                np.mean([model.set_params(random_state=s).score_samples(DIGITS).mean() for s in range(10)])
            )
    plain, fast = np.array(scores[::2]), np.array(scores[1::2])
    assert plain.min() > -30 and abs(plain.mean() - fast.mean()) < 1.0


# What is kept


def test_transform_and_score_are_equal(plain):
    fast, _ = accelerate(plain)
    for v in (all_states(6), sparse.csr_matrix(all_states(6)), all_states(6).astype(np.float32)):
        assert np.array_equal(fast.transform(v), plain.transform(v))
        assert np.array_equal(fast.score_samples(v), plain.score_samples(v))


def test_it_keeps_scikit_learns_protocol(plain):
    fast, _ = accelerate(plain)
    assert isinstance(fast, BernoulliRBM) and fast.get_params() == plain.get_params()
    assert repr(fast) == repr(plain)
    again = pickle.loads(pickle.dumps(fast))
    assert np.array_equal(again.gibbs(all_states(6)), fast.gibbs(all_states(6)))
    assert type(clone(fast)) is type(fast) and not hasattr(clone(fast), "components_")
    assert not hasattr(accelerate(BernoulliRBM())[0], "components_")
    assert type(plain) is BernoulliRBM and vars(plain).keys() >= {"components_"}


def test_scikit_learns_own_checks_pass():
    drawn = "score_samples draws a unit for each row; scikit-learn's own fails it too"
    check_estimator(
        accelerate(BernoulliRBM(n_components=4, n_iter=2, random_state=0))[0],
        expected_failed_checks={
            "check_methods_subset_invariance": drawn,
            "check_methods_sample_order_invariance": drawn,
        },
        on_skip=None,
    )


def test_training_the_copy_leaves_the_original_alone(plain):
    before = plain.components_.copy()
    fast, _ = accelerate(plain)
    fast.fit(all_states(6))
    assert np.array_equal(plain.components_, before) and not np.array_equal(fast.components_, before)
    fast, _ = accelerate(plain)
    fast.partial_fit(all_states(6)[:10])
    assert np.array_equal(plain.components_, before)


def test_a_pipeline_is_accelerated_where_it_can_be():
    labels = data.digits().train_labels.numpy()[:400]
    pipeline = make_pipeline(
        MinMaxScaler(),
        BernoulliRBM(n_components=60, n_iter=10, random_state=0),
        LogisticRegression(max_iter=500),
    )
    fast, report = accelerate(pipeline)
    assert isinstance(fast, Pipeline) and type(pipeline.steps[1][1]) is BernoulliRBM
    scores = [model.fit(DIGITS[:400], labels).score(DIGITS[:400], labels) for model in (pipeline, fast)]
    assert min(scores) > 0.8 and abs(scores[0] - scores[1]) < 0.05  # chance is 0.1
    assert report.replaced[0].name == "bernoullirbm: BernoulliRBM.gibbs"
    assert {part.name for part in report.kept} >= {
        "minmaxscaler: MinMaxScaler",
        "logisticregression: LogisticRegression",
    }


def test_fitting_an_accelerated_pipeline_fits_no_step_of_the_original():
    pipeline = make_pipeline(MinMaxScaler(), BernoulliRBM(n_components=3, n_iter=1, random_state=0))
    pipeline.fit(DIGITS[:50])
    before = pipeline[0].data_max_.copy()
    fast, _ = accelerate(pipeline)
    fast.fit(5 * DIGITS[:50])
    assert np.array_equal(pipeline[0].data_max_, before)
    assert not np.array_equal(fast[0].data_max_, before)


@pytest.mark.filterwarnings("error")
def test_training_leaves_arrays_that_are_read_only_as_they_are(plain):
    fast, _ = accelerate(plain)
    held = fast.components_
    before = held.copy()
    held.flags.writeable = False
    fast.partial_fit(all_states(6)[:10])
    assert np.array_equal(held, before) and not np.array_equal(fast.components_, before)


def test_the_report_says_what_was_done(plain):
    fast, report = accelerate(plain)
    text = str(report)
    lines = text.splitlines()
    assert lines[0] == "replaced:" and "kept:" in lines
    for method in ("gibbs", "fit", "partial_fit", "transform", "score_samples"):
        assert sum(f"BernoulliRBM.{method} " in line for line in lines) == 1
    with pytest.raises(TypeError, match="is accelerated already"):
        accelerate(fast)


# Bad input


@pytest.mark.parametrize("model", [LogisticRegression(), object(), None, make_pipeline(MinMaxScaler())])
def test_other_models_are_refused(model):
    with pytest.raises(
        TypeError, match=r"model is .*\.\w+, in which fastgen knows .*; it takes scikit-learn's BernoulliRBM"
    ):
        accelerate(model)


def test_a_fit_that_fails_leaves_what_was_fitted(plain):
    fast, _ = accelerate(plain)
    with pytest.raises(ValueError, match="contains NaN"):
        fast.fit(np.full((3, 6), np.nan))
    assert fast.components_.dtype == np.float64 and np.array_equal(fast.components_, plain.components_)
    assert fast.gibbs(all_states(6)).shape == (64, 6)


def test_an_unfitted_machine_says_so():
    from sklearn.exceptions import NotFittedError  # noqa: PLC0415

    with pytest.raises(NotFittedError):
        accelerate(BernoulliRBM())[0].gibbs(np.zeros((2, 3)))


def test_importing_the_integrations_imports_no_library():
    code = "import sys, fastgen.integrations; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
