"""The committee: its processes against scikit-learn's and rows really left out, its parts put together."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ideal, run
from pymatgen.io.vasp.inputs import Poscar
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

import common
import generate
import main_committee
import processes
import structure_stat

LOOPS = (True, (2, 0.001), (2, 0.0003), 16)  # source, (epochs, rate) on samples and on rows; batch size
SHORT = ["--source-epochs", "2", "--epochs", "2", "--networks", "2"]
CLUSTERS = ["points", "pairs", "triplets"]


def made_up(n=40, seed=0):
    """Inputs, targets, groups and an order of two pairs, (n, ...); the first group is noisier."""
    generator = np.random.default_rng(seed)
    inputs, groups = generator.normal(size=(n, 3)), np.arange(n) % 2
    order = 0.1 * generator.normal(size=(n, 2))
    targets = np.sin(inputs[:, 0]) + 0.5 * inputs[:, 1] + order @ [2.0, -1.0]
    return inputs, targets + generator.normal(size=n) * np.where(groups, 0.02, 0.4), groups, order


def test_a_process_is_scikit_learns_where_that_has_one():
    """One group, no order, nothing doubted: likelihood no less, and the same mean and deviation."""
    inputs, targets, groups, _ = made_up()
    none = np.zeros((40, 0))
    process = processes.fit_process(inputs, targets, 0 * groups, none)
    scaled = [(part - part.mean(0)) / part.std(0, ddof=1) for part in (inputs, targets)]
    kernel = ConstantKernel(1.0, (1e-4, 1e3)) * Matern(np.full(3, 3.0), (1e-1, 1e3), 2.5) + WhiteKernel(0.1)
    best = GaussianProcessRegressor(kernel).fit(*scaled)
    theta = process.theta.numpy()
    ours = best.kernel_.clone_with_theta(np.r_[theta[0], -theta[1:4] / 2, theta[4]])
    assert best.log_marginal_likelihood(ours.theta) > best.log_marginal_likelihood_value_ - 1e-3
    fixed = GaussianProcessRegressor(ours, optimizer=None).fit(*scaled)
    new = made_up(seed=1)[0]
    mean, deviation = fixed.predict((new - inputs.mean(0)) / inputs.std(0, ddof=1), return_std=True)
    found, variance = processes.of_process(process, new, none, 0 * groups)
    unit = targets.std(ddof=1)
    np.testing.assert_allclose(found, targets.mean() + unit * mean, atol=1e-5)
    np.testing.assert_allclose(np.sqrt(variance), unit * deviation, atol=1e-5)


def test_rows_left_out():
    """At their own and at other inputs: as a process without the row, of the same lengths, has it."""
    inputs, targets, groups, order = made_up()
    doubt = np.linspace(0.5, 3, 40)
    process = processes.fit_process(inputs, targets, groups, order, doubt)
    other = inputs[:, ::-1].copy()
    for at in (None, other):
        mean, variance = processes.left_out(process, at)
        for i in (0, 7, 39):
            rest = np.arange(40) != i
            parts = (process.inputs, process.targets, process.groups, process.doubt, process.order)
            one = processes.assembled(process.theta, *(part[rest] for part in parts), process.scales)
            row = (inputs if at is None else other)[[i]]
            expected = processes.of_process(one, row, order[[i]], groups[[i]])
            assert (mean[i], variance[i]) == pytest.approx((expected[0][0], expected[1][0]), rel=1e-4)


def test_noise_of_groups_outliers_and_order():
    inputs, targets, groups, order = made_up(120)
    targets[5] += 6
    process = processes.robust_process(inputs, targets, groups, order)
    noise = (process.theta[4:6].exp().sqrt() * process.scales[3]).tolist()
    assert noise[0] == pytest.approx(0.4, rel=0.5) and noise[1] == pytest.approx(0.02, rel=2)
    assert process.doubt[5] > 5 and np.median(process.doubt) < 1.3
    at, still = np.zeros((2, 3)), np.zeros((2, 2))
    step = np.array([[0.1, 0], [0, 0.1]])
    effect = processes.of_process(process, at, step)[0] - processes.of_process(process, at, still)[0]
    np.testing.assert_allclose(effect, [0.2, -0.1], atol=0.05)


def test_a_group_that_was_not_trained_on():
    """Alloys of many elements, where all of the training have few."""
    inputs, targets, groups, order = made_up()
    process = processes.fit_process(inputs, targets, 0 * groups, order)
    found = [processes.of_process(process, inputs, order, group + 0 * groups)[1] for group in (0, 1)]
    np.testing.assert_array_equal(*found)


def test_a_difference():
    """Of two inputs of each row: as the covariance of both together and their noise have it."""
    inputs, targets, groups, order = made_up()
    process = processes.fit_process(inputs, targets, groups, order)
    one, other = inputs[:5], inputs[5:10]
    found = processes.of_difference(process, one, other, order[:5], groups[:5])
    both = processes.covariance(process, np.vstack([one, other]), np.vstack([order[:5], order[:5]]))
    noise = processes.noise_in_units(process, groups[:5])
    for i in range(5):
        step = np.eye(10)[i] - np.eye(10)[5 + i]
        assert found[i] == pytest.approx(step @ both @ step + 2 * noise[i])


@pytest.fixture(scope="module")
def data(small_data):
    return common.load_data(small_data, small_data, "Ef", cells="lattice")


@pytest.fixture(scope="module")
def split(data):
    return common.split_rows(data.table, "4+5", 100, 0)


@pytest.fixture(scope="module")
def model(data, split):
    """Two seeds of two networks."""
    return main_committee.fit_split(data, split.train, [3, 5], "4+5", 2, *LOOPS)


def test_random_alloys():
    """Blocks sum to one; pairs of a random Fe0.5Ni0.3Co0.2 by hand."""
    system = common.System(("Fe", "Ni", "Co"), ())
    found = structure_stat.at_random(system, np.array([[0.5, 0.3, 0.2], [1, 0, 0]]), CLUSTERS)
    columns = generate.ce_columns(system, CLUSTERS)
    first = dict(zip(columns, found[0]))
    assert first["pair Fe-Fe"] == pytest.approx(0.25) and first["pair Fe-Ni"] == pytest.approx(0.3)
    assert first["triplet Fe-Ni-Co"] == pytest.approx(6 * 0.03)
    for block in CLUSTERS:
        members = [columns.index(column) for column in common.cluster_columns(system, block)]
        np.testing.assert_allclose(found[:, members].sum(1), 1)


def test_a_mixture_by_hand():
    """Half 1 ± 1, half 3 ± 0: mean 2, variance 1/2 + 1."""
    mean, variance = main_committee.mixture(
        *(np.array([one]) for one in ([0.5, 0.5], [1.0, 3.0], [1.0, 0.0]))
    )
    assert (mean[0], variance[0]) == pytest.approx((2, 1.5))


def test_a_rare_phase_counts_as_seen():
    """One training cell of fifty was in it; in the third phase none was."""
    shares = torch.zeros(50, 3)
    shares[1:, 0] = shares[0, 1] = 1
    scales = [shares.mean(0), shares.std(0).clamp(min=1e-12)]
    model = SimpleNamespace(given=SimpleNamespace(inputs=(shares - scales[0]) / scales[1], scales=scales))
    assert [main_committee.was_seen(model, k) for k in range(3)] == [True, True, False]


@pytest.mark.parametrize("source", [True, False])
def test_what_the_networks_are_taught(data, split, monkeypatch, source):
    """First samples, then the rows at a rate of their own; the rows alone at the rate of the samples."""
    calls = []
    monkeypatch.setattr(common, "train", lambda *given: calls.append((given[4].keywords["rate"], given[5])))
    main_committee.fit_split(data, split.train, [0], "4+5", 2, source, (3, 0.01), (5, 0.002), 16)
    assert calls == ([(0.01, 3), (0.002, 5)] if source else [(0.01, 5)])


def test_no_two_networks_begin_alike(data, split, monkeypatch):
    """Of three seeds of three: each has a seed of its own, or the seeds would share some."""
    numbers, plain = [], common.side_by_side
    monkeypatch.setattr(common, "side_by_side", lambda seeds, new: numbers.extend(seeds) or plain(seeds, new))
    monkeypatch.setattr(common, "train", lambda *given: None)
    main_committee.fit_split(data, split.train, [0, 1, 2], "4+5", 3, *LOOPS)
    assert len(numbers) == len(set(numbers)) == 9


def test_a_factor_holds_what_it_says():
    """Of 1 to 100, with a place for the next error; never less than the normal distribution's."""
    errors = np.arange(1, 101)
    assert main_committee.factor(errors, np.ones(100)) == pytest.approx(np.quantile(errors, 0.909))
    assert main_committee.factor(errors, 1e6 * errors) == 1.645


def test_put_together_anew(data, model):
    """Mean of process and networks in each phase, mixed by the chances, with the direct process."""
    descriptors, lattice = common.descriptors(np.full((2, 5), 0.2), data.system.elements), np.eye(2)
    order = np.zeros((2, model.given.order.shape[1]))
    model = model._replace(weight=0.6)  # 0 by these labels, and the mixture would not count
    means, half_width, chances = main_committee.predict(model, descriptors, lattice, order)
    assert chances.sum(1) == pytest.approx(1) and (chances[:, 2] == 0).all()  # no cell here is hcp
    phases = [main_committee.in_phase(descriptors, k) for k in range(3)]
    of_phases = np.array([processes.of_process(model.given, one, order, [1, 1]) for one in phases])
    networks = np.array([common.predict(model.networks, one)[0] for one in phases])  # (3, 4, 2)
    direct = processes.of_process(model.direct, np.hstack([descriptors, lattice]), order)[0]
    for seed in (0, 1):
        mean = (of_phases[:, 0] + networks[:, 2 * seed : 2 * seed + 2].mean(1)) / 2
        mixed = model.weight * (chances.T * mean).sum(0) + (1 - model.weight) * direct
        np.testing.assert_allclose(means[seed], mixed)
        given, width = main_committee.predict_given(model, descriptors, phases[1][:, -3:], order)
        np.testing.assert_allclose(given[seed], (mean[1] * 2 + of_phases[1, 0]) / 3)
        np.testing.assert_allclose(width, model.factors[1] * of_phases[1, 1] ** 0.5)
    assert (half_width >= 1.645 * of_phases[:, 1].min(0) ** 0.5).all()
    assert len(np.unique(networks[:, :, 0])) == 3 * 4


def test_weight_and_factors_by_rows_left_out(data, split, monkeypatch):
    """Written down anew: least squares for the weight, and what holds nine tenths of the errors."""
    monkeypatch.setattr(main_committee, "NORMAL_90", 0.1)  # or both factors are this least one here
    # bcc cells with much nickel became fcc, most of them: the phase tells much, and is not told by all
    generator, shares = np.random.default_rng(0), data.shares.copy()
    left = (data.table.phase == "bcc") & (data.inputs[:, 1] + generator.normal(0, 0.1, len(shares)) > 0.25)
    shares[left] = [1, 0, 0]
    targets = data.targets + 0.1 * shares[:, 1] + generator.normal(0, 0.03, len(shares))
    data = data._replace(shares=shares, targets=targets)
    model = main_committee.fit_split(data, split.train, [0], "4+5", 0, *LOOPS)
    descriptors, targets = data.inputs[split.train, :-2], data.targets[split.train]
    shares = np.column_stack([processes.left_out(one)[0] for one in model.shares]).clip(0.01, 1)
    shares[:, 2] = 0  # no cell is hcp
    chances = shares / shares.sum(1, keepdims=True)
    of_phases = [processes.left_out(model.given, main_committee.in_phase(descriptors, k)) for k in range(3)]
    means, variances = (np.column_stack(part) for part in zip(*of_phases))
    mixed, alone = (chances * means).sum(1), processes.left_out(model.direct)[0]
    solved = np.linalg.lstsq((mixed - alone)[:, None], targets - alone, rcond=None)[0][0]
    assert model.weight == pytest.approx(solved, abs=1e-6) and 0.05 < solved < 0.95
    spread = (chances * (variances + means**2)).sum(1) - mixed**2
    errors = targets - (model.weight * mixed + (1 - model.weight) * alone)
    many = (descriptors[:, :5] > 0).sum(1) >= 4
    assert model.factors[0] == pytest.approx(main_committee.factor(errors[many], spread[many] ** 0.5))
    mean, variance = processes.left_out(model.given)
    expected = main_committee.factor((targets - mean)[many], variance[many] ** 0.5)
    assert model.factors[1] == pytest.approx(expected) and min(model.factors) > 0.2


@pytest.mark.parametrize("teacher", [0, 1])
def test_networks_learn_from_both_teachers(data, split, monkeypatch, teacher):
    """With one teacher's labels moved, every other network moves, and only these."""
    rows, found = split.train, []
    given = main_committee.fit_split(data, rows, [0], "4+5", 0, *LOOPS).given
    plain = main_committee.taught_by
    for factor in (1, -1):

        def moved(*arguments, factor=factor):
            sets = list(plain(*arguments))
            sets[teacher] = sets[teacher][0], factor * sets[teacher][1]
            return sets

        monkeypatch.setattr(main_committee, "taught_by", moved)
        loops = (True, (2, 0.001), (1, 0.0), 16)
        trained = main_committee.fit_networks(data, rows, given, [0], "4+5", 4, *loops)
        found.append(trained.network.state_dict()["layers.4.weight"])
    same = [torch.equal(one, other) for one, other in zip(*found)]
    assert same == [bool(k % 2 != teacher) for k in range(4)]


def test_the_order_of_a_cell(data):
    """0 at random and where it is not known; of L1_2 FeNi3 by hand: no Fe beside Fe."""
    fractions = np.array([[0.25, 0.75, 0, 0, 0]] * 2)
    columns = generate.ce_columns(data.system, structure_stat.ORDER)
    clusters = pd.DataFrame(0.0, range(2), columns)
    clusters.loc[0, ["pair Fe-Ni", "pair Ni-Ni", "second pair Fe-Fe", "second pair Ni-Ni"]] = [
        0.5,
        0.5,
        0.25,
        0.75,
    ]
    clusters.loc[1] = np.nan
    order = pd.DataFrame(structure_stat.order_of(data.system, fractions, clusters), columns=columns)
    expected = {
        "pair Fe-Fe": -1 / 16,
        "pair Fe-Ni": 1 / 8,
        "pair Ni-Ni": -1 / 16,
        "second pair Fe-Ni": -3 / 8,
    }
    assert order.loc[0, list(expected)].to_dict() == pytest.approx(expected)
    assert (order.loc[1] == 0).all() and (structure_stat.order_of(data.system, fractions, None) == 0).all()


def test_half_width_of_a_difference_of_phases(data, model):
    """The factor that holds nine tenths of the rows left out, times the deviation of the difference."""
    fractions = np.array([[0.2, 0.2, 0.2, 0.2, 0.2], [0.4, 0.3, 0.3, 0, 0]])  # of many elements, and of few
    descriptors = common.descriptors(fractions, data.system.elements)
    order = np.zeros((2, model.given.order.shape[1]))
    theta = model.given.theta.clone()  # groups of unlike noise; these labels have none
    theta[-3:-1] = torch.tensor([0.3, 0.01]).log()
    model = model._replace(given=model.given._replace(theta=theta))
    bcc, fcc = (main_committee.in_phase(descriptors, k) for k in (1, 0))
    variance = processes.of_difference(model.given, bcc, fcc, order, np.array([1, 0]))
    found = main_committee.of_gap(model, descriptors, 1, order)
    np.testing.assert_allclose(found, model.factors[1] * variance**0.5)
    assert np.isnan(main_committee.of_gap(model, descriptors, 2, order)).all()  # no cell here is hcp


def test_samples_of_a_system_that_makes_too_many():
    """Of four and five elements in tenths, none excluded, and as many as drawn."""
    elements = ("Al", "Co", "Cr", "Cu", "Fe", "Hf", "Mn", "Mo", "Nb", "Ni", "Ta", "Ti", "V", "W", "Zr")
    system = common.System(elements, (frozenset(("Al", "Co")),))
    drawn = main_committee.sample_compositions(system, "4+5")
    assert len(drawn) == main_committee.SAMPLES and set((drawn > 0).sum(1)) == {4, 5}
    np.testing.assert_allclose(drawn.sum(1), 1)
    np.testing.assert_allclose(10 * drawn, np.rint(10 * drawn))
    assert not (drawn[:, 0] * drawn[:, 1]).any() and (drawn > 0).any(0).all()


def test_reliability(monkeypatch):
    """Errors that are a normal distribution's: as many are held as is stated, and the line says so."""
    from matplotlib.figure import Figure

    errors = np.abs(norm.ppf((np.arange(2000) + 0.5) / 2000)) / 1.645
    tested = pd.DataFrame({f"error{ending}": errors for ending in main_committee.QUESTIONS})
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    main_committee.plot_reliability(tested, "what", "no file")
    for line in figures[0].axes[0].lines[:2]:
        stated, held = line.get_data()
        np.testing.assert_allclose(held, stated, atol=2e-3)
        assert stated.min() < 0.05 and stated.max() > 0.95


def test_as_a_script(small_data, tmp_path):
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, *SHORT, "--splits", "0,1"]
    printed = run("main_committee.py", *flags, "--predict", "FeNiCoCr").out
    name = tmp_path / "committee_Ef_4+5_100_fixed"
    predictions = pd.read_csv(f"{name}_predictions.csv")
    test = predictions[predictions.set == "test"]
    for ending, question in main_committee.QUESTIONS.items():
        held = ((test[f"mean{ending}"] - test.true).abs() <= test[f"half_width_90{ending}"]).mean()
        assert f"{question}, the stated 90 % interval holds {held:.0%} of" in printed
    assert (tmp_path / f"{name.name}_reliability.png").stat().st_size > 5000
    chances = predictions[["p_fcc", "p_bcc", "p_hcp"]]
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    told = np.take(["fcc", "bcc", "hcp"], test[chances.columns].to_numpy().argmax(1)) == test.phase
    assert (
        f"phase: {told.mean():.0%} told, the name alone tells 100%" in printed
    )  # the small data stayed on its lattices

    # a checkpoint predicts what the run did, of the database with its arrangements
    more = ["--checkpoint", f"{name}.pt", "--predict", small_data / "Database.csv"]
    run("main_committee.py", *flags, *more, "--results-dir", tmp_path / "out")
    found = pd.read_csv(next((tmp_path / "out").glob("*.csv"))).set_index("structures")
    whole = predictions.groupby("structure").mean(numeric_only=True).loc[found.index]
    columns = ["mean", "half_width_90", "p_fcc", "p_bcc", "p_hcp"]
    np.testing.assert_allclose(found[columns], whole[columns], atol=1e-5)
    assert found.mean_hcp.isna().all()  # no cell here is hcp
    np.testing.assert_allclose(found["bcc - fcc"], found.mean_bcc - found.mean_fcc)
    own = np.where(found.phase == "fcc", found.mean_fcc, found.mean_bcc)
    np.testing.assert_allclose(own, whole.mean_given_phase, atol=1e-5)


def test_an_ordered_cell_is_not_its_random_alloy(small_data, tmp_path):
    """Taught that unlike neighbours lower the energy, it gives L1_2 less than the alloy at random."""
    data = shutil.copytree(small_data, tmp_path / "data")
    loaded = common.load_data(small_data, small_data, "Ef", cells="lattice")
    descriptors = loaded.inputs[:, :5]
    order = structure_stat.order_of(loaded.system, descriptors, loaded.clusters)
    columns = generate.ce_columns(loaded.system, structure_stat.ORDER)
    unlike = [i for i, c in enumerate(columns) if c.startswith("pair") and len(set(c[5:].split("-"))) == 2]
    energies = dict(zip(loaded.table.structure, -order[:, unlike].sum(1)))
    frame = pd.read_csv(data / "Database.csv", index_col=0)
    frame["Eform (eV/atom)"] = frame.structures.map(energies)
    frame.to_csv(data / "Database.csv")
    run("structure_stat.py", "--data-dir", data, "--cells", "lattice")
    (tmp_path / "l12_fcc").write_text(Poscar(ideal("fcc", ["Fe", "Ni", "Ni", "Ni"], 2)).get_str())
    flags = ["--data-dir", data, "--results-dir", tmp_path, "--splits", "all", "--networks", "0"]
    run("main_committee.py", *flags, "--predict", tmp_path / "l12_fcc", "FeNi3")
    found = pd.read_csv(tmp_path / "committee_Ef_4+5_100_fixed_all_predicted.csv")
    assert found["mean"][0] - found["mean"][1] == pytest.approx(-1 / 8, rel=0.3)  # 1/2 of its pairs for 3/8
    assert found["half_width_90"][0] > found["half_width_90"][1]  # far off all that it was taught


def test_alloys_without_structures(small_data, tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(small_data / "Database.csv", tmp_path / "data")
    flags = ["--data-dir", tmp_path / "data", "--results-dir", tmp_path, *SHORT]
    assert "Test: R2" in run("main_committee.py", *flags).out
