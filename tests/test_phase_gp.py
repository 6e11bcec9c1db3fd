"""The Gaussian process that knows the phase: against plain formulas, rows left out, alloys made up."""

import pickle
import runpy

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ELEMENTS, ROOT, ideal, run
from pymatgen.io.vasp.inputs import Poscar
from scipy.optimize import approx_fprime, minimize
from scipy.stats import multivariate_normal
from sklearn.gaussian_process.kernels import RBF, Matern

import common
import settings
from beyond import phase_gp as gp

NOISE, EFFECT, SHARES = 0.05, np.array([3.0, -2.0] + [0] * 28), ["p_fcc", "p_bcc", "p_hcp"]


def made_up(n=60, seed=0):
    """Rows as `fit` takes them, and inputs in the phase; bcc alloys of many electrons became fcc."""
    generator = np.random.default_rng(seed)
    fractions, bcc = generator.multinomial(9, [0.2] * 5, n) / 9, generator.integers(0, 2, n)
    valence, order = fractions @ [8, 10, 9, 6, 7], generator.normal(0, 0.03, (n, 30)) * (np.arange(30) < 2)
    lattice, phases = np.eye(2)[bcc], np.eye(3)[bcc * (valence < 8.2)]
    smooth = fractions @ [1, -1, 0.5, 0, 0.3] + 3 * fractions[:, 0] * fractions[:, 1] + 0.3 * phases[:, 1]
    targets = smooth + order @ EFFECT + generator.normal(0, NOISE, n)
    return (fractions, valence, lattice, phases, order, targets), gp.inputs_of(fractions, valence, phases)


def prior_covariance(theta, inputs, order):
    lengths = np.exp(-theta[1:10] / 2)
    smooth = np.exp(theta[0]) * (Matern(lengths, nu=2.5)(inputs) + RBF(lengths)(inputs)) / 2
    return smooth + np.exp(theta[10]) * order @ order.T


def plain_loss(theta, process):
    """Minus the logarithm of the posterior density, the recipe's priors written a second time."""
    mean = [0, *[-2 * np.log(5)] * 9, np.log(10), np.log(0.05), *[0] * 10]
    off = (theta - mean) / [3, *[2] * 9, 1.5, 2, 1, *[0.4] * 9]
    noise = np.exp(process.noise_inputs @ theta[11:]) * process.doubt + 1e-6
    covariance = prior_covariance(theta, process.inputs, process.order) + np.diag(noise)
    density = multivariate_normal.logpdf(process.targets, cov=covariance)
    return off @ off / 2 - density - len(noise) / 2 * np.log(2 * np.pi)


def posterior(process, inputs, order):
    """Mean, covariance and variances of the noise of alloys, in the target's unit."""
    theta, n, unit = process.theta, len(process.targets), process.scales[3]
    scaled, few = (inputs - process.scales[0]) / process.scales[1], (inputs[:, :5] > 0).sum(1) < 4
    all_inputs, orders = np.vstack([process.inputs, scaled]), np.vstack([process.order, order])
    prior = prior_covariance(theta, all_inputs, orders)
    noise_inputs = np.column_stack([np.ones(len(few)), few, scaled])
    noise = np.exp(process.noise_inputs @ theta[11:]) * process.doubt + gp.JITTER
    gain = np.linalg.solve(prior[:n, :n] + np.diag(noise), prior[:n, n:]).T
    covariance, noise = prior[n:, n:] - gain @ prior[:n, n:], np.exp(noise_inputs @ theta[11:])
    return process.scales[2] + unit * gain @ process.targets, unit**2 * covariance, unit**2 * noise


@pytest.fixture(scope="module")
def model():
    return gp.fit(*made_up()[0])


def test_gradient_of_the_loss(monkeypatch):
    losses, ((*_, order, targets), inputs) = [], made_up(40)
    monkeypatch.setattr(gp, "minimize", lambda loss, *a, **k: losses.append(loss) or minimize(loss, *a, **k))
    process = gp.fit_process(inputs, targets, order, np.linspace(0.5, 3, 40))
    theta = process.theta
    for at in theta + np.random.default_rng(0).normal(0, 0.5, (3, len(theta))):
        by_steps = approx_fprime(at, lambda x: losses[0](x)[0], 1e-6)
        assert losses[0](at)[1] == pytest.approx(by_steps, abs=1e-3, rel=1e-4)
        assert losses[0](at)[0] == pytest.approx(plain_loss(at, process), rel=1e-6)
    monkeypatch.setattr(gp, "LENGTHS_FROM", 25)  # of many rows some settle the lengths, and all predict
    process, some = gp.fit_process(inputs, targets, order), gp.rows_for_lengths(40)
    assert len({*some}) == 25 and len(process.targets) == 40
    np.testing.assert_allclose(process.theta, gp.fit_theta(*(part[some] for part in process[1:6])))


def test_answers_by_plain_formulas(model):
    """Of labels, differences and covariances; of rows left out, whose phase numbers teach the lattice's."""
    (*alloys, _, order, _), _ = made_up(20, 1)
    pure, step = [np.eye(3)[[k] * 20] for k in (0, 1)], np.hstack([np.eye(20), -np.eye(20)])
    both, orders = np.vstack([gp.inputs_of(*alloys[:2], one) for one in pure]), np.vstack([order] * 2)
    given, on_lattice = model.processes[3:]
    mean, covariance, noise = posterior(given, both, orders)
    expected = mean, np.sqrt(covariance.diagonal() + noise)
    np.testing.assert_allclose(gp.predict(given, both, orders), expected, rtol=1e-5, atol=1e-6)
    half = model.ratios[0] * np.sqrt((step @ (covariance + np.diag(noise)) @ step.T).diagonal())
    np.testing.assert_allclose(gp.difference_of_phases(model, *alloys[:2], *pure, order), half, rtol=1e-5)
    expected = posterior(on_lattice, gp.with_numbers(model, *alloys), order)[1:]
    for part, plain in zip(gp.covariance_on_lattice(model, *alloys, order), expected):
        np.testing.assert_allclose(part, plain, atol=1e-7)
    np.testing.assert_array_equal(given.noise_inputs[:, 1], (model.rows[0] > 0).sum(1) < 4)
    for i, *found in zip(range(60), *gp.left_out(given)):
        less = gp.condition(given.theta, *(np.delete(part, i, 0) for part in given[1:6]), given.scales)
        mean, deviation = gp.predict(less, made_up()[1][[i]], given.order[[i]])
        assert found == pytest.approx([mean[0], deviation[0] ** 2], rel=1e-4, abs=1e-6)
    taught = on_lattice.scales[0] + on_lattice.scales[1] * on_lattice.inputs
    np.testing.assert_allclose(taught[:, -3:].T, [gp.left_out(one)[0] for one in model.processes[:3]])


def test_further_permuted_and_saved_rows(model, tmp_path):
    more, new, turned = made_up(9, 2)[0], made_up(20, 1)[0], np.random.default_rng(0).permutation(69)
    wider = gp.with_rows(model, *more)
    rows = [np.concatenate(pair)[turned] for pair in zip(made_up()[0], more)]
    doubts = [np.append(one.doubt, np.ones(9))[turned] for one in model.processes[3:]]
    whole = model._replace(rows=rows, processes=gp.learn(rows, gp.thetas_of(model), doubts))
    torch.save(gp.to_plain(wider), tmp_path / "model.pt")
    saved = gp.from_plain(torch.load(tmp_path / "model.pt", weights_only=True))
    for ask, alloys in ((gp.predict_in_phase, [0, 1, 3, 4]), (gp.predict_on_lattice, [0, 1, 2, 4])):
        asked = [ask(one, *(new[k] for k in alloys))[:2] for one in (wider, whole, saved)]
        np.testing.assert_allclose(asked[1], asked[0], atol=1e-6)
        np.testing.assert_allclose(asked[2], asked[0], atol=1e-9)


def test_order_of_species_and_a_wrong_label():
    """Quasirandom rows leave the order's prior; a row 100 deviations off moves others little."""
    (*_, order, targets), inputs = made_up()
    new, step, wrong = made_up(30, 5)[1], 0.05 * np.eye(30), targets + 100 * NOISE * (np.arange(60) == 5)
    random = gp.fit_process(inputs, targets - order @ EFFECT, 0 * order)
    mean, deviation = gp.predict(random, new, 0 * step)
    wider = np.sqrt(deviation**2 + gp.ORDER_EFFECT * 0.05**2 * random.scales[3] ** 2)
    np.testing.assert_allclose(gp.predict(random, new, step), [mean, wider])
    fits = [fit(inputs, y, order) for fit in (gp.fit_process, gp.robust_process) for y in (targets, wrong)]
    means = [gp.predict(one, new, 0 * step)[0] for one in fits]
    np.testing.assert_allclose(gp.predict(fits[0], new, step)[0] - means[0], step @ EFFECT, atol=0.03)
    plain, robust = (np.sqrt(np.mean((means[k] - means[k + 1]) ** 2)) for k in (0, 2))
    assert robust < 0.5 * NOISE < plain


def test_intervals_and_a_phase_that_no_training_cell_was_in(model):
    told = gp.inputs_of(np.ones((1, 2)), np.ones(1), np.array([[0.5, 0.3, 0.2]]))
    assert told.tolist() == [[1, 1, 1, 0.3, 0.2, 0.7]]
    assert model.n_left_out == ((model.rows[0] > 0).sum(1) >= 4).sum()
    few, many = np.split(np.argsort((model.rows[0] > 0).sum(1) >= 4, kind="stable"), [60 - model.n_left_out])
    for n, rests_on in ((20, 20), (19, 19 + len(few))):  # of four and more elements: enough of these alone
        some = [one[[*few, *many[:n]]] for one in model.rows]
        assert gp.fit(*some).n_left_out == rests_on
    (*alloys, phases, order, targets), _ = made_up(200, 4)
    given = gp.predict_in_phase(model, *alloys[:2], phases, order)
    for mean, half in (given, gp.predict_on_lattice(model, *alloys, order)[:2]):
        assert 0.8 <= (np.abs(mean - targets) <= half).mean() <= 0.97 and min(model.ratios) > 1.7
    one, system = [part[:1] for part in made_up(9, 2)[0]], common.System(tuple(ELEMENTS), ())
    for some, seen in ((model, False), (gp.with_rows(model, *one[:3], np.eye(3)[[2]], *one[4:]), True)):
        told = gp.predictor({"models": [gp.to_plain(some)]}, system)(np.full((1, 5), 0.2), ["fcc"])[1]
        said = [bool(np.nan_to_num(told[name][0])) for name in told if "hcp" in name]  # neither nan nor 0
        assert said == [seen] * 5 and np.isfinite(told["bcc - fcc"][0])


def test_no_label_and_no_relaxation_of_what_is_predicted_is_read(small_data, capsys):
    cfg = settings.read(vars(gp), ["--data-dir", str(small_data)], TARGET=tuple(common.TARGETS))
    data = common.load_data(cfg, "lattice")
    (split,) = common.splits_of(data, cfg)
    tested, turned = np.isin(np.arange(44), split.test), np.roll(data.phase_fractions, 1, 1)
    phases = np.where(tested[:, None], turned, data.phase_fractions)
    moved = data._replace(targets=data.targets - 7 * tested, phase_fractions=phases)
    was, now = (gp.fit_splits(one, [split], 1) for one in (data, moved))
    same = {name: now.columns[name] == value for name, value in was.columns.items()}
    assert (now.predicted == was.predicted).all() and all(same[n].all() for n in ("half_width_90", *SHARES))
    assert np.array_equal(same["mean_given_phase"][0], ~tested)  # that one is told the phase
    now.columns["mean_given_phase"][:] = moved.targets
    gp.say_how_it_did(moved, [split], now)
    printed = capsys.readouterr().out
    assert "lattice: the 90 % interval holds 0% of 6" in printed and "are in is told of 0%" in printed
    assert "in the phase that the cell has: the 90 % interval holds 100% of 6 test alloys" in printed


def test_as_a_script(small_data, tmp_path):
    """What beyond/predict.py says of the database is what the run wrote; of order, phases and hcp besides."""
    flags = ["beyond/phase_gp.py", "--data-dir", small_data, "--results-dir", tmp_path, "--jobs", 1]
    assert run(*flags, "--splits", "0,1").out.count("90 % interval holds") == 2
    script = runpy.run_path(str(ROOT / flags[0]))
    pickle.dumps(joblib.wrap_non_picklable_objects(script["fit"]))  # as it goes to several processes
    run(*flags, "--splits", "all")
    folder, table = tmp_path / "phase_gp_Ef_4+5_100_all", small_data / "Database.csv"
    (tmp_path / "B2_bcc").write_text(Poscar(ideal("bcc", ["Fe", "Ni"], 3, a=2.9)).get_str())
    flags = ["--results-dir", tmp_path, "--checkpoint", folder, "--predict", table]
    printed = run("beyond/predict.py", *flags, tmp_path / "B2_bcc", "FeNi", "FeAl").out
    paths = (f"{one}phase_gp_Ef_4+5_100_all/predictions.csv" for one in ("predicted_", ""))
    found, written = (pd.read_csv(tmp_path / path) for path in paths)
    ordered, at_random = (found[found.formula.isin([one])].iloc[-1] for one in ("Fe27Ni27", "FeNi"))
    assert "probability is 0.50 off random, 0." in ordered.outside and at_random.isna()["outside"]
    assert ordered["mean"] != at_random["mean"] and found.tail(2)["mean"].isna().all()
    assert "half width" in printed and at_random[SHARES].astype(float).idxmax() == "p_bcc"
    found, written = found[:44].sort_values("structure"), written.sort_values("structure")
    for name in ("mean", "half_width_90"):  # these cells stayed on their lattices
        found[f"{name}_given_phase"] = found[f"{name}_fcc"].where(found.phase == "fcc", found[f"{name}_bcc"])
    assert {"half_width_90", "half_width_90_given_phase", "found_hcp", *SHARES} <= {*written}
    for name in [one for one in written if one.startswith(("mean", "half_width_90", "p_"))]:
        np.testing.assert_allclose(found[name], written[name], atol=1e-6)
