"""The committee: its parts against independent ones, and nothing of a test cell but its composition."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run
from sklearn.base import clone
from sklearn.linear_model import Ridge

import common
import generate
import main_committee

SHORT = ((2, 0.001), (2, 0.0003), 16)  # (epochs, rate) on samples and on rows; alloys in a batch
CLUSTERS = ["points", "pairs", "triplets"]


@pytest.fixture(scope="module")
def data(small_data):
    return common.load_data(small_data, small_data, "Ef", cells="lattice")


@pytest.fixture(scope="module")
def split(data):
    return common.split_rows(data.table, "4+5", 100, 0)


@pytest.fixture(scope="module")
def samples(small_data, data):
    return generate.make_samples(small_data, data, "4+5", CLUSTERS)


@pytest.fixture(scope="module")
def fitted(data, split, samples):
    """Teachers and networks: two seeds of two networks."""
    return main_committee.fit_split(data, samples, split.train, [3, 5], 2, CLUSTERS, None, *SHORT)


def test_random_alloys():
    """Blocks sum to one; pairs of a random FeNi0.6Co0.4 by hand."""
    system = common.System(("Fe", "Ni", "Co"), ())
    found = main_committee.at_random(system, np.array([[0.5, 0.3, 0.2], [1, 0, 0]]), CLUSTERS)
    columns = generate.ce_columns(system, CLUSTERS)
    first = dict(zip(columns, found[0]))
    assert found.sum(1) == pytest.approx([3, 3])
    assert (first["pair Fe-Fe"], first["pair Fe-Ni"]) == pytest.approx((0.25, 0.3))
    assert first["triplet Fe-Ni-Co"] == pytest.approx(6 * 0.03)


def test_teachers_label_as_what_they_are(data, split, samples, fitted):
    teachers, _ = fitted
    columns = generate.ce_columns(data.system, CLUSTERS)
    for phase in common.PHASES:
        rows = split.train[data.table.phase.to_numpy()[split.train] == phase]
        plain = Ridge(1e-4).fit(data.clusters[columns].to_numpy()[rows], data.targets[rows])
        process, expansion = teachers.label(samples.inputs[phase], phase, samples.occupation[phase])
        np.testing.assert_allclose(expansion, plain.predict(samples.occupation[phase]), atol=1e-9)
        # the process is a fit to the training rows: by its kernel, written out
        inputs, targets = (
            teachers.scalers.inputs.transform(data.inputs[split.train]),
            teachers.scalers.target.transform(data.targets[split.train][:, None])[:, 0],
        )
        new = teachers.scalers.inputs.transform(samples.inputs[phase][:5])
        kernel = teachers.process.kernel_
        weights = np.linalg.solve(kernel(inputs) + 1e-10 * np.eye(len(inputs)), targets)
        mean = (
            kernel(new, inputs) @ weights * data.targets[split.train].std() + data.targets[split.train].mean()
        )
        np.testing.assert_allclose(process[:5], mean, atol=1e-6)


def test_row_weights_are_by_leaving_one_out(data, split, fitted):
    process = fitted[0].process
    many = data.table.n_components.to_numpy()[split.train] >= 4
    errors = []
    for left in range(len(many)):
        rest = np.delete(np.arange(len(many)), left)
        one = clone(process).set_params(kernel=process.kernel_, optimizer=None)
        one.fit(process.X_train_[rest], process.y_train_[rest])
        errors.append(process.y_train_[left] - one.predict(process.X_train_[[left]])[0])
    square = np.square(errors)
    weights = main_committee.row_weights(data, split.train, process)
    assert weights.mean() == pytest.approx(1)
    expected = min(square[many].mean() / square[~many].mean(), 1)
    np.testing.assert_allclose(weights[~many] / weights[many][0], expected, rtol=1e-4)
    assert expected < 1 and np.ptp(weights[many]) == 0


def test_prediction_put_together_anew(data, fitted):
    """Mean of process, CE on a random alloy, and each seed's own networks; 1.645 deviations beside it."""
    teachers, trained = fitted
    fractions, phases = np.full((2, 5), 0.2), ["bcc", "fcc"]
    predicted, half_width = main_committee.predict(*fitted, 2, data.system, fractions, phases, CLUSTERS)
    inputs = common.network_inputs(fractions, common.one_hot(phases, data.phases), data.system.elements)
    occupation = main_committee.at_random(data.system, fractions, CLUSTERS)
    networks = common.predict(trained, inputs)[0]  # (4, 2)
    scale = teachers.scalers.target.scale_[0]
    for i, phase in enumerate(phases):
        process, expansion = teachers.label(inputs[[i]], phase, occupation[[i]])
        for seed in (0, 1):
            own = networks[2 * seed : 2 * seed + 2, i].mean()
            assert predicted[seed, i] == pytest.approx((process[0] + expansion[0] + own) / 3)
        scaled = teachers.scalers.inputs.transform(inputs[[i]])
        deviation = teachers.process.predict(scaled, return_std=True)[1][0] * scale
        assert half_width[i] == pytest.approx(1.645 * deviation)
    assert len(set(networks[:, 0])) == 4


def test_networks_learn_from_both_teachers(data, split, samples, monkeypatch):
    """With one teacher's labels moved, every other network moves, and only these."""
    found = []
    for shift in (0, 1):
        label = main_committee.Teachers.label

        def moved(self, *alloys, label=label, shift=shift):
            process, expansion = label(self, *alloys)
            return process, -expansion if shift else expansion

        with monkeypatch.context() as patch:
            patch.setattr(main_committee.Teachers, "label", moved)
            _, trained = main_committee.fit_split(
                data, samples, split.train, [0], 4, CLUSTERS, None, (2, 0.001), (1, 0.0), 16
            )
        found.append(trained.network.state_dict()["layers.4.weight"])
    assert [torch.equal(one, other) for one, other in zip(*found)] == [True, False, True, False]


def test_as_a_script(small_data, tmp_path):
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, "--source-epochs", "2", "--splits", "0,1"]
    printed = run("main_committee.py", *flags, "--predict", "FeNiCoCr").out
    name = tmp_path / "committee_Ef_4+5_100_fixed"
    predictions = pd.read_csv(f"{name}_predictions.csv")
    test = predictions[predictions.set == "test"]
    held = ((test["mean"] - test.true).abs() <= test.half_width_90).mean()
    assert f"interval holds {held:.0%} of" in printed
    # a checkpoint predicts what the run did
    rows = predictions[predictions.split == 0][["structure"]].head(6)
    rows.to_csv(tmp_path / "alloys.csv", index=False)
    run("main_committee.py", *flags, "--checkpoint", f"{name}.pt", "--predict", tmp_path / "alloys.csv")
    found = pd.read_csv(f"{name}_predicted_2.csv")
    whole = predictions[predictions.structure.isin(rows.structure)].groupby("structure")["mean"].mean()
    np.testing.assert_allclose(found["mean"], whole[rows.structure], atol=1e-6)
