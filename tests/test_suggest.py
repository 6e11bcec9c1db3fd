"""What to calculate next: the picks against sums written out, and the script as a user runs it."""

import sys

import numpy as np
import pandas as pd
import pytest
from conftest import files, run

import common
import suggest


def made_up(n=12, seed=0):
    """A covariance of candidates and a noise."""
    generator = np.random.default_rng(seed)
    roots = generator.normal(size=(n, 4)) * np.linspace(0.3, 1.5, n)[:, None]
    return roots @ roots.T + 0.1 * np.eye(n), generator.uniform(0.05, 0.5, n)


def conditioned(covariance, noise, picks):
    """The covariance given all picks at once."""
    own = covariance[np.ix_(picks, picks)] + np.diag(noise[picks])
    cross = covariance[:, picks]
    return covariance - cross @ np.linalg.solve(own, cross.T)


def test_the_most_telling_leave_the_least_variance():
    covariance, noise = made_up()
    picks, shares = suggest.most_telling(covariance, noise, 4)
    for n in range(4):
        left = [np.trace(conditioned(covariance, noise, [*picks[:n], i])) for i in range(12)]
        assert picks[n] == min(set(range(12)) - set(picks[:n]), key=lambda i: left[i])
        assert 1 - sum(shares[: n + 1]) == pytest.approx(left[picks[n]] / np.trace(covariance))


@pytest.mark.parametrize("goal", ["high", "low"])
def test_expected_improvement_by_drawing(goal):
    """The first pick's gain as drawn; a likelihood of zero rules an alloy out; none is picked twice."""
    covariance, noise = made_up()
    generator, mean = np.random.default_rng(1), np.linspace(-1, 1, 12)
    deviation = np.sqrt(covariance.diagonal() + 2)  # noise and phase count more than what is to be learned
    arguments = [mean, deviation, covariance, noise, np.ones(12), 0.5]
    picks, gains = suggest.most_promising(*arguments, goal, 12)
    drawn = mean + deviation * generator.normal(size=(200_000, 12))
    ahead = drawn - 0.5 if goal == "high" else 0.5 - drawn
    expected = np.maximum(ahead, 0).mean(0)
    assert picks[0] == expected.argmax() and gains[0] == pytest.approx(expected.max(), rel=0.02)
    assert sorted(picks) == list(range(12))
    arguments[4] = np.where(np.arange(12) == picks[0], 0, 1)
    assert suggest.most_promising(*arguments, goal, 1)[0] == [expected.argsort()[-2]]


def flags(small_data, tmp_path):
    return ["suggest.py", "--data-dir", small_data, "--results-dir", tmp_path, "--number", "3"]


def test_as_a_script(small_data, tmp_path, pictures):
    run(*flags(small_data, tmp_path))
    goal = ["--alloys", "Total", "--goal", "low", "--bound", "0.05"]
    run(*flags(small_data, tmp_path), *goal)
    learn, low = (pd.read_csv(tmp_path / f"suggested_{n}.csv") for n in ("Ef_learn", "Ef_low"))
    assert learn.number.tolist() == [1, 2, 3] and low.p_below_bound.between(0, 1).all()
    assert not (learn.half_width_90 <= 0).any() and learn.reason.str.contains("variance").all()
    database = pd.read_csv(small_data / "Database.csv").structures.str.replace("_sqs", " ")
    known = {
        tuple(common.mole_fractions([n.split()[0]], ["Fe", "Ni", "Co", "Cr", "Mn"])[0]) for n in database
    }
    new = common.mole_fractions(learn.formula, ["Fe", "Ni", "Co", "Cr", "Mn"])
    assert not {tuple(row) for row in new} & known
    assert len(pictures) == 2 and all("formation energy (eV/atom)" in said for said in pictures.values())


@pytest.mark.parametrize(
    ("goal", "bound", "best"), [("high", 0.02, 1.4), ("low", 0.02, 0.3563), ("high", -0.1, 1.975)]
)
def test_what_is_to_be_improved_on(small_data, tmp_path, goal, bound, best):
    """The best moment of the database among alloys below the bound, or among all where none is below it."""
    more = ["--alloys", "Total", "--target", "Ms", "--goal", goal, "--bound", str(bound), "--number", "1"]
    said = run(*flags(small_data, tmp_path), *more).out
    assert f"improve on {best} μB/atom at an Ef below {bound:g} eV/atom" in said
    assert ("hardly any candidate" in said) == (bound == -0.1)  # nothing comes near it


def test_candidates_of_ones_own(small_data, tmp_path):
    """Those that the database holds are no candidates, nor is one twice."""
    held = pd.read_csv(small_data / "Database.csv").structures[0]
    path = tmp_path / "alloys.csv"
    rows = [held.split("_")[0], "FeNi7CoCr", "Fe2Ni14Co2Cr2", "FeNiCo5Cr", "FeNiCoCr5"]
    path.write_text("formula,phase\n" + "".join(f"{row},{held[-3:]}\n" for row in rows))
    run(*flags(small_data, tmp_path), "--candidates", path)
    found = pd.read_csv(tmp_path / "suggested_Ef_learn.csv")
    assert set(found.formula) == {"FeNi7CoCr", "FeNiCo5Cr", "FeNiCoCr5"}
    rows = rows[:1] + rows[3:] + ["FeNi6CoCr"]
    path.write_text("formula,phase\n" + "".join(f"{row},{held[-3:]}\n" for row in rows))
    run(*flags(small_data, tmp_path), "--candidates", path)  # another file's picks do not take the name
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "suggested_Ef_learn.csv"), found)
    assert "FeNi6CoCr" in pd.read_csv(tmp_path / "suggested_Ef_learn_2.csv").formula.tolist()
    more = ["--candidates", path, "--number", "5"]
    assert "only 3 candidates" in run(*flags(small_data, tmp_path), *more, status=2).err


def test_lattice_constants_of_structures(small_data):
    """All cells here have the same, whatever is in them."""
    data = common.load_data(small_data, small_data, "Ef")
    data = data._replace(table=data.table[data.table.phase == "fcc"])
    fractions = common.mole_fractions(["FeNiCoCr", "Cr3Mn"], ["Fe", "Ni", "Co", "Cr", "Mn"])
    candidates = pd.DataFrame(fractions, columns=data.system.elements).assign(phase=["fcc", "bcc"])
    found = suggest.lattice_constants(small_data, data, candidates)
    np.testing.assert_allclose(found, [3.6, 3.6 / 2 ** (1 / 3)])


def test_bad_input(small_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "icet", None)
    (tmp_path / "alloys.csv").write_text("formula\nFeAl\nMnPdFe\n")
    for more, expected in (
        (["--bound", "0"], "with GOAL"),
        (["--goal", "best"], "high, low"),
        (["--sqs-atoms", "32"], "pip install icet"),
        (["--candidates", tmp_path / "alloys.csv"], "Mn; got FeAl, MnPdFe\n"),
        (["--goal", "low", "--bound", "-10"], "none of 1092 candidates can improve on"),
    ):
        error = run(*flags(small_data, tmp_path / "out"), *more, status=2).err
        assert expected in error and len(error.splitlines()) == 1
    assert not files(tmp_path / "out")
