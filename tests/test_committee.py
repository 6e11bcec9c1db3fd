"""The committee of cluster expansions: its parts against independent ones, and no look at the test set."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from sklearn.linear_model import Ridge
from test_method import small_settings

import committee
import common


@pytest.fixture(scope="module")
def alloys(small_data):
    """(Alloys, targets) of the small data."""
    data = common.load_data(small_settings(small_data))
    fractions = common.mole_fractions(data.table.formula, data.system.elements)
    return committee.Alloys(data.system, fractions, data.table.phase, data.table), data.targets


@pytest.fixture
def short(monkeypatch):
    """Few source alloys and epochs, for speed."""
    monkeypatch.setattr(committee, "SOURCE_ALLOYS", 80)
    monkeypatch.setattr(committee, "SOURCE_EPOCHS", 2)
    monkeypatch.setattr(committee, "EPOCHS", 2)


def test_random_alloy_sums_to_one_and_has_the_pairs_of_a_random_alloy():
    system = common.System(("Fe", "Ni", "Co"), ())
    fractions = np.array([[0.5, 0.3, 0.2], [1, 0, 0]])
    for block in ("pairs", "triplets", "quadruplets"):
        np.testing.assert_allclose(committee.random_alloy(system, fractions, block).sum(1), 1)
    pairs = dict(
        zip(common.cluster_columns(system, "pairs"), committee.random_alloy(system, fractions, "pairs")[0])
    )
    assert pairs["pair Fe-Fe"] == pytest.approx(0.25) and pairs["pair Fe-Ni"] == pytest.approx(0.3)


def test_gaussian_process_against_scikit_learn(alloys):
    """Without short-range order, one phase and equal noise, it is scikit-learn's."""
    alloys, targets = alloys
    alloys = alloys.take(np.arange(22))
    targets = targets[:22]
    scale = committee.Scale(alloys)
    process = committee.GaussianProcessCE(scale, alloys, targets)
    n = alloys.inputs.shape[1]
    theta = torch.tensor([0.3, *np.linspace(0.2, 1.5, n), -50, 0, -2, -2], dtype=torch.float64)
    process.settle(theta)
    mean, deviation = process.predict(alloys)
    kernel = ConstantKernel(np.exp(0.3)) * Matern(np.exp(np.linspace(0.2, 1.5, n)), nu=1.5)
    inputs, _ = scale(alloys)
    noise = np.exp(-2) + 1e-5 + 1e-8 * np.exp(0.3)
    plain = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
    plain.fit(inputs, (targets - targets.mean()) / targets.std())
    expected, expected_deviation = plain.predict(inputs, return_std=True)
    np.testing.assert_allclose(mean, expected * targets.std() + targets.mean(), atol=1e-6 * targets.std())
    expected_deviation = np.sqrt(expected_deviation**2 + np.exp(-2)) * targets.std()
    np.testing.assert_allclose(deviation, expected_deviation, rtol=1e-5)


def test_short_range_order_of_the_phases_is_coupled(alloys):
    """Linear in short-range order within a phase, sigmoid(rho) of that across phases."""
    alloys, targets = alloys
    process = committee.GaussianProcessCE(committee.Scale(alloys), alloys, targets)
    n = alloys.inputs.shape[1]
    theta = torch.tensor([-50, *[0] * n, np.log(2), np.log(3), 0, 0], dtype=torch.float64)
    found = process.kernel(theta, process.rows, process.rows).numpy()
    _, order = process.scale(alloys)
    expected = 2 * order @ order.T * np.where(alloys.phase[:, None] == alloys.phase, 1, 0.75)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_leave_one_out_is_leaving_one_out(alloys):
    alloys, targets = alloys
    process = committee.GaussianProcessCE(committee.Scale(alloys), alloys, targets).fit()
    errors = process.leave_one_out()
    for left in (0, 13, 40):
        rest = np.delete(np.arange(len(targets)), left)
        one = committee.GaussianProcessCE(process.scale, alloys.take(rest), targets[rest])
        one.mean, one.std = process.mean, process.std
        one.targets = (torch.tensor(targets[rest]) - process.mean) / process.std
        predicted, _ = one.settle(process.theta).predict(alloys.take([left]))
        assert targets[left] - predicted[0] == pytest.approx(errors[left], abs=1e-6)


def test_ridge_errors_are_leave_one_out(alloys):
    alloys, targets = alloys
    models, errors = committee.fit_ridge(alloys, targets)
    rows = np.flatnonzero(alloys.phase == 0)
    penalties = []
    for alpha in committee.ALPHAS:
        fitted = Ridge(alpha).fit(alloys.ridge[rows], targets[rows])
        if np.allclose(fitted.coef_, models[0][0], atol=1e-8):
            penalties.append(alpha)
    assert len(penalties) == 1
    rest = rows[1:]
    left_out = Ridge(penalties[0]).fit(alloys.ridge[rest], targets[rest]).predict(alloys.ridge[rows[:1]])
    assert abs(targets[rows[0]] - left_out[0]) == pytest.approx(errors[rows[0]], rel=1e-4, abs=1e-8)


def test_student_noise_distrusts_an_outlier(alloys):
    alloys, targets = alloys
    process = committee.GaussianProcessCE(committee.Scale(alloys), alloys, targets)
    theta = process.theta.clone()
    theta[1:-4], theta[-4] = 2.0, -8.0  # smooth in composition: nothing else can explain the outlier
    process.targets[25] += 5
    process.settle(theta).weigh_outliers()
    assert process.factor.argmax() == 25 and process.factor[25] > 2


def test_checkpoint_gives_the_same_predictions(small_data, alloys, short):
    alloys, targets = alloys
    data = common.load_data(small_settings(small_data))
    source = committee.source_alloys(small_settings(small_data), data.table, data.system)
    np.testing.assert_allclose(source.ridge[:, : len(data.system.elements)].sum(1), 1)
    fitted = committee.Committee(alloys, targets, source, [0, 1])
    again = committee.restored({"committees": [fitted.state()]})[0]
    for one, other in zip(fitted.predict(alloys), again.predict(alloys)):
        np.testing.assert_allclose(other, one, atol=1e-9)


def test_no_test_label_is_read(small_data, short):
    settings = small_settings(small_data)
    data = common.load_data(settings)
    splits = [common.split_rows(data.table, "4+5", 100, 0)]
    before = committee.fit(settings, data, splits)
    targets = data.targets.copy()
    targets[splits[0].test] += 100
    table = data.table.assign(**{common.TARGETS["Ef"]: targets})
    after = committee.fit(settings, data._replace(targets=targets, table=table), splits)
    np.testing.assert_array_equal(after.predicted, before.predicted)
    np.testing.assert_array_equal(after.half_widths, before.half_widths)


def test_as_a_script(small_data, tmp_path):
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, "--method", "tl_committee"]
    printed = run("main_transfer.py", *flags, "--predict", "FeNiCoCr").out
    assert "90 % interval" in printed
    predictions = pd.read_csv(tmp_path / "tl_committee_Ef_predictions.csv")
    assert (predictions.half_width_90 > 0).all()
    assert pd.read_csv(tmp_path / "tl_committee_Ef_predicted.csv")["mean"].notna().all()
