"""The project's own data set: its files agree with one another, with the rules, and with a rebuild."""

import hashlib
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

DATA = Path(__file__).resolve().parents[1] / "HEA_data"
ORDER = ["Fe", "Ni", "Co", "Cr", "Mn", "Pd"]
# Recipes by number of elements: the sorted parts, and how many alloys of it one set of elements makes.
QUINARIES = {(1,) * 5: 1, (24, 24, 24, 24, 64): 5, (31, 31, 31, 31, 36): 5, (28, 33, 33, 33, 33): 5}
QUATERNARIES = {(1, 1, 1, 1): 1, (12, 12, 12, 28): 4, (15, 15, 15, 19): 4}
RECIPES = {2: {(1, 1): 1, (1, 3): 2}, 3: {(1, 1, 1): 1, (1, 1, 2): 3}, 4: QUATERNARIES, 5: QUINARIES}
SITES = {2: [32], 3: [32, 36], 4: [64], 5: [160]}
STRUCTURES = {"Fe": "bcc", "Ni": "fcc", "Co": "hcp", "Cr": "bcc", "Mn": "alpha", "Pd": "fcc"}
TOLERANCES = {"Etot (eV/atom)": 1e-4, "Eform (eV/atom)": 1e-4, "Ms (mub/atom)": 1e-2, "V0 (A3/atom)": 1e-2}
TEST_ALLOYS = ["FeNi3_sqsfcc", "Fe3Ni_sqsbcc", "Fe2NiPd_sqsfcc", "FeNiCo_sqsbcc"]
ROWS = pd.read_csv(DATA / "Database.csv", index_col="structures")
# FeNi3_sqsfcc: {"Fe": 1, "Ni": 3}
FORMULAS = {name: re.findall(r"([A-Z][a-z]?)(\d*)", name.split("_")[0]) for name in ROWS.index}
PARTS = {name: {element: int(n or 1) for element, n in formula} for name, formula in FORMULAS.items()}


def read_poscar(path):
    """Lattice (3, 3) in A, symbols (n_atoms,), fractional coordinates (n_atoms, 3)."""
    lines = path.read_text().splitlines()
    lattice = float(lines[1]) * np.array([line.split() for line in lines[2:5]], float)
    symbols = np.repeat(lines[5].split(), [int(n) for n in lines[6].split()])
    fractional = np.array([line.split() for line in lines[8:] if line], float)
    assert lines[7] == "Direct" and fractional.shape == (len(symbols), 3)
    return lattice, symbols, fractional


def test_the_files_are_those_of_the_sums():
    sums = dict(line.split("  ")[::-1] for line in (DATA / "SHA256SUMS").read_text().splitlines())
    paths = [DATA / "Database.csv", DATA / "elements.csv", *(DATA / "POSCARS").iterdir()]
    assert sums == {p.relative_to(DATA).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    assert {path.name for path in paths[2:]} == {*ROWS.index}


@pytest.mark.parametrize("phase", ["fcc", "bcc"])
def test_the_compositions_are_those_of_the_rules(phase):
    names = ROWS.index[ROWS.phase == phase]
    alloys = [PARTS[name] for name in names]
    assert len({tuple(alloy.items()) for alloy in alloys}) == len(alloys) == 219  # and no other than these:
    for n, recipes in RECIPES.items():
        sets = [set(s) for s in combinations(ORDER, n) if not {"Mn", "Pd"} <= set(s)]
        for elements in sets:
            here = [tuple(sorted(alloy.values())) for alloy in alloys if set(alloy) == elements]
            assert {recipe: here.count(recipe) for recipe in recipes} == recipes
    assert all(name.endswith(f"_sqs{phase}") for name in names)
    assert alloys == sorted(alloys, key=len)  # fewest elements first
    assert all([*alloy] == sorted(alloy, key=ORDER.index) for alloy in alloys)


@pytest.mark.parametrize("name", [*ROWS.index[::9], *(x for x in ROWS.index if x.startswith("FeNiCoCr"))])
def test_the_lattice_is_ideal_and_the_recorded_order_is_the_files(name):
    """The alloy of its name, at its volume, no atom beside an image of itself in either shell."""
    lattice, symbols, fractional = read_poscar(DATA / "POSCARS" / name)
    share, total = (
        {element: np.mean(symbols == element) for element in PARTS[name]},
        sum(PARTS[name].values()),
    )
    assert share == {element: n / total for element, n in PARTS[name].items()}
    assert [*dict.fromkeys(symbols)] == [*PARTS[name]] and len(symbols) in SITES[len(share)]
    volume = np.linalg.det(lattice) / len(symbols)  # positive: right-handed
    assert volume == pytest.approx(ROWS["V0 (A3/atom)"][name], abs=1e-6)
    per_cube, n1, first = {"fcc": (4, 12, 2**-0.5), "bcc": (2, 8, 0.75**0.5)}[ROWS.phase[name]]
    images = np.mgrid[-2:3, -2:3, -2:3].reshape(3, -1).T[:, None]
    block = cKDTree((fractional + images).reshape(-1, 3) @ lattice)
    distances, nearest = block.query(fractional @ lattice, n1 + 7)
    a = (volume * per_cube) ** (1 / 3)
    assert np.abs(distances - np.repeat([0, first * a, a], [1, n1, 6])).max() < 1e-6
    partner = nearest[:, 1:] % len(symbols)
    assert not (partner == np.arange(len(symbols))[:, None]).any()
    for shell, others in ((1, symbols[partner[:, :n1]]), (2, symbols[partner[:, n1:]])):
        pairs = [(x, y, (symbols[:, None] == x) & (others == y)) for x in share for y in share if x <= y]
        alphas = [1 - np.mean(together) / share[x] / share[y] for x, y, together in pairs]
        found = np.sqrt(np.mean(np.square(alphas))), np.abs(alphas).max()
        recorded = ROWS.loc[name, [f"wc{shell} (rms)", f"wc{shell} (max)"]].tolist()
        assert found == pytest.approx(recorded, abs=1e-4)


def test_labels():
    """Formation energies are against the elements; structures of many elements are nearly random."""
    elements = pd.read_csv(DATA / "elements.csv", index_col="element")
    assert elements.structure.to_dict() == STRUCTURES
    amounts = pd.DataFrame(PARTS).T.fillna(0)
    mixed = (amounts * elements["E0 (eV/atom)"]).sum(axis=1) / amounts.sum(axis=1)
    assert ((ROWS["Eform (eV/atom)"] - ROWS["Etot (eV/atom)"] + mixed).abs() < 2e-6).all()
    values = ROWS[["Eform (eV/atom)", "Ms (mub/atom)", "V0 (A3/atom)"]]
    assert ((values >= [-0.5, 0, 10]) & (values < [0.5, 3, 16])).all(axis=None)
    means = ROWS[["wc1 (rms)", "wc2 (rms)"]].groupby((amounts > 0).sum(axis=1)).mean()
    assert (means.loc[[4, 5]] < 0.08).all(axis=None)


@pytest.mark.slow
def test_a_rebuild_gives_the_same_structures_and_labels(tmp_path, monkeypatch):
    for package in ("chgnet", "icet", "torch", "ase", "pymatgen"):
        pytest.importorskip(package, reason=f"needs {package}: pip install -r HEA_data/requirements.txt")
    monkeypatch.syspath_prepend(str(DATA))
    import build

    table = {name: build.alloys()[name] for name in TEST_ALLOYS}
    build.build(table, tmp_path, "cpu", 2)
    again = pd.read_csv(tmp_path / "Database.csv", index_col="structures")
    assert list(again.index) == TEST_ALLOYS
    for column, tolerance in TOLERANCES.items():
        assert again[column].tolist() == pytest.approx(ROWS[column][TEST_ALLOYS].tolist(), abs=tolerance)
    for name in TEST_ALLOYS:
        stored, found = (read_poscar(folder / "POSCARS" / name) for folder in (DATA, tmp_path))
        assert list(stored[1]) == list(found[1])
        assert np.abs(stored[0] - found[0]).max() < 5e-3
        assert np.abs(stored[2] - found[2]).max() < 1e-9
    # Again in the same folder: what is missing is done, and no other.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.json")}
    lost = tmp_path / "work" / f"{TEST_ALLOYS[0]}.json"
    lost.unlink()
    build.build(table, tmp_path, "cpu", 1)
    assert [path for path in times if path.stat().st_mtime_ns != times[path]] == [lost]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "Database.csv", index_col="structures"), again)
