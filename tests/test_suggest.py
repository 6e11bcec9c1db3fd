"""What to calculate next: picks against draws and sums written out, and the scripts as a user runs them."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, files, run
from scipy.stats import norm

import common
from beyond import suggest

sys.path.insert(0, str(ROOT / "studies"))
import replay


def made_up(n=12):
    """Mean, deviation (more than what is to be learned), chance of the bound, covariance and noise."""
    generator = np.random.default_rng(0)
    roots = generator.normal(size=(n, 4)) * np.linspace(0.3, 1.5, n)[:, None]
    covariance, noise = roots @ roots.T + 0.1 * np.eye(n), generator.uniform(0.05, 0.5, n)
    deviation = np.sqrt(covariance.diagonal() + noise + 0.3)
    likely = np.where(np.arange(n) == n - 1, 0.45, generator.uniform(0.2, 1, n))  # the first pick is doubtful
    return np.linspace(-1, 1, n), deviation, likely, (covariance, noise)


def test_a_batch_is_conditioned_on_its_picks():
    """Expected improvement is that of draws; each gain, as of all picks before put in at once.

    What is not worth it is not padded out.
    """
    mean, deviation, likely, (covariance, noise) = made_up()
    drawn = mean + deviation * np.random.default_rng(1).normal(size=(200_000, 12))
    expected = np.maximum(drawn - 0.5, 0).mean(0)
    np.testing.assert_allclose(suggest.improvement(mean, deviation, 0.5), expected, rtol=0.01, atol=1e-3)
    arguments = mean, deviation, likely, 0.5, (covariance, noise)
    picks, gains = suggest.pick_batch(*arguments, 12, -np.inf)
    assert sorted(picks) == list(range(12))
    for n in range(5):
        before, best = picks[:n], max([0.5, *(mean[i] for i in picks[:n] if likely[i] > 0.5)])
        labels = covariance[np.ix_(before, before)] + np.diag(noise[before])
        taken = covariance[:, before] @ np.linalg.solve(labels, covariance[before])
        spread = np.sqrt(deviation**2 - taken.diagonal())
        z = (mean - best) / spread
        gain = likely * ((mean - best) * norm.cdf(z) + spread * norm.pdf(z))
        gain[before] = -1
        assert picks[n] == gain.argmax() and gains[n] == pytest.approx(gain.max())
    least = (gains[2] + gains[3]) / 2
    assert suggest.pick_batch(*arguments, 12, least) == (picks[:3], gains[:3])
    assert suggest.pick_batch(*arguments, 2, least) == (picks[:2], gains[:2])


def flags(small_data, *more):
    return ["beyond/suggest.py", "--data-dir", small_data, "--alloys", "Total", *more]


@pytest.mark.parametrize("goal, bound, best", [("low", 0.02, "0.3563 μ"), ("high", -9, "none is")])
def test_what_is_to_be_improved_on(small_data, tmp_path, pictures, goal, bound, best):
    """The best known below the bound; picks that are not worth it are not padded out."""
    more = ["--target", "Ms", "--goal", goal, "--bound", bound, "--number", 300, "--results-dir", tmp_path]
    said = run(*flags(small_data, *more)).out.split("improvement: ")[1]
    table = pd.read_csv(tmp_path / f"suggested_Ms_{goal}" / "picks.csv")
    assert f"below {bound:g} eV/atom" in said and best in said
    assert f"{len(table)} of 300 are worth a calculation" in said and ", 1% of a label's noise" in said
    assert (len(table) == 0) == (bound == -9) and len(table) < 300 and table.p_below_bound.between(0, 1).all()
    assert "bound" in pictures[f"suggested_Ms_{goal}/picks.png"]


def test_a_table_of_candidates(small_data, tmp_path):
    """Those that the database holds are none, nor is one twice; one of them is better than all known."""
    database, system = common.read_database(small_data, ["Ef"])
    path, held = tmp_path / "alloys.csv", database.formula[0]
    rows = [held, "FeNi7CoCr", "Fe2Ni14Co2Cr2", "FeNiCo5Cr", "Fe9Co"]
    path.write_text("formula,phase\n" + "".join(f"{row},{database.phase[0]}\n" for row in rows))
    found = suggest.make_candidates(SimpleNamespace(CANDIDATES=path), database, system)
    assert found.formula.tolist() == ["FeNi7CoCr", "FeNiCo5Cr", "Fe9Co"]
    np.testing.assert_allclose(found[list(system.elements)].iloc[0], [0.1, 0.7, 0.1, 0.1, 0])
    more = ["--candidates", path, "--target", "Ms", "--goal", "high", "--results-dir", tmp_path]
    said = run(*flags(small_data, *more)).out
    picks = pd.read_csv(tmp_path / "suggested_Ms_high" / "picks.csv")
    assert picks.formula.tolist() == ["Fe9Co"] and picks.number.tolist() == [1] and "1 of 10 are" in said
    best = pd.read_csv(small_data / "Database.csv")["Ms (mub/atom)"].max()
    assert f"best known, {best:.4g} μ" in said and picks["mean"][0] > best and picks.improvement[0] > 0


def test_bad_input(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "alloys.csv").write_text("formula\nFeAl\n")
    for flag, value, expected in (
        ("--bound", 0, "with another TARGET"), ("--goal", "best", "high, low"),
        ("--sqs-atoms", 32, "pip install icet"), ("--candidates", tmp_path / "alloys.csv", "found FeAl"),
    ):  # fmt: skip
        error = run(*flags(small_data, flag, value, "--results-dir", tmp_path / "out"), status=2).err
        assert expected in error and len(error.splitlines()) == 1
    assert not files(tmp_path / "out")


@pytest.mark.parametrize("policy", ["improvement", "greedy"])
def test_no_label_is_read_before_it_is_calculated(small_data, policy):
    """Other labels, energies and phases of all that is not calculated change no pick."""
    same = {"DATA_DIR": small_data, "TABLE_DIR": small_data, "ELEMENTS": None, "EXCLUDED_PAIRS": None}
    data = [common.load_data(SimpleNamespace(TARGET=t, **same), "lattice") for t in ("Ms", "Ef")]
    case = replay.case_of(data[0], 0)._replace(targets=[one.targets for one in data])
    wanted = case.candidates[np.argsort(case.targets[0][case.candidates])[-2:]]
    asked = replay.fitted(case, case.known), wanted, "high", 0.1, policy, 5
    picked, _ = replay.search(case, *asked)
    teaching = picked[: (len(picked) - 1) // 5 * 5]  # the last batch teaches nothing
    unread = np.setdiff1d(case.candidates, teaching)
    *targets, phases = (one.copy() for one in (*case.targets, case.rows[3]))
    for one in (*targets, phases):
        one[unread] += 5
    other = case._replace(targets=targets, rows=(*case.rows[:3], phases, case.rows[4]))
    assert len(unread) > 7 and replay.search(other, *asked)[0] == picked and len({*picked}) == len(picked)


def test_random_order():
    """Means known in closed form: (n + 1) / 2 until the best, 5 (n + 1) / 6 until all five."""
    row = {"set": "study", "target": "Ef", "goal": "low", "bound": np.nan, "candidates": 147, "step": 1}
    known = row | {"policy": "improvement", "best": 4, "five": 9, "stopped": 3}
    found = replay.with_random(pd.DataFrame([known]))
    means = found[found.policy == "random"][["best", "five"]].mean()
    np.testing.assert_allclose(means, [74, 123.3], rtol=0.02)
    assert replay.whole_batches(np.array([1, 5, 6, 23]), 5, 23).tolist() == [5, 5, 10, 23]
    assert "| 4 (4 to 4) |" in replay.markdown(found) and "| 1 of 1 |" in replay.markdown(found)
