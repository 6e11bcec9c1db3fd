"""The project's own data set: its files agree with one another, with the rules, and with a rebuild."""

import hashlib
import re
from itertools import combinations, combinations_with_replacement
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

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


def test_the_files_are_those_of_the_sums_small_and_with_unix_line_ends():
    sums = dict(line.split("  ")[::-1] for line in (DATA / "SHA256SUMS").read_text().splitlines())
    paths = [DATA / "Database.csv", DATA / "elements.csv", *(DATA / "POSCARS").iterdir()]
    files = {path.relative_to(DATA).as_posix(): path.read_bytes() for path in paths}
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert sum(map(len, files.values())) < 5e6
    assert not any(b"\r" in content for content in files.values())


@pytest.mark.parametrize("phase", ["fcc", "bcc"])
def test_the_compositions_are_those_of_the_rules(phase):
    alloys = [PARTS[name] for name in ROWS.index[ROWS.phase == phase]]
    assert len({tuple(alloy.items()) for alloy in alloys}) == len(alloys) == 219  # and no other than these:
    for n, recipes in RECIPES.items():
        sets = [set(s) for s in combinations(ORDER, n) if not {"Mn", "Pd"} <= set(s)]
        for elements in sets:
            here = [tuple(sorted(alloy.values())) for alloy in alloys if set(alloy) == elements]
            assert {recipe: here.count(recipe) for recipe in recipes} == recipes


def test_the_order_of_rows_and_elements():
    assert (DATA / "Database.csv").read_text().startswith(",structures,")
    assert ROWS.iloc[:, 0].tolist() == list(range(438))
    key = [(row.phase == "bcc", len(PARTS[name])) for name, row in ROWS.iterrows()]
    assert key == sorted(key)
    for name, phase in ROWS.phase.items():
        assert name.endswith(f"_sqs{phase}")
        assert list(PARTS[name]) == [element for element in ORDER if element in PARTS[name]]


def test_each_structure_is_the_alloy_of_its_name():
    assert {path.name for path in (DATA / "POSCARS").iterdir()} == set(ROWS.index)
    for name, wanted in PARTS.items():
        lattice, symbols, _ = read_poscar(DATA / "POSCARS" / name)
        found = {element: np.mean(symbols == element) for element in dict.fromkeys(symbols)}
        assert [*found.items()] == [(element, n / sum(wanted.values())) for element, n in wanted.items()]
        assert len(symbols) in SITES[len(wanted)]
        volume = np.linalg.det(lattice) / len(symbols)  # positive: right-handed
        assert volume == pytest.approx(ROWS["V0 (A3/atom)"][name], abs=1e-6)


def test_the_lattice_is_ideal_and_the_recorded_order_is_the_files():
    images = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    cells = {"fcc": (4, 12, 2**-0.5), "bcc": (2, 8, 0.75**0.5)}  # atoms per cube, neighbours, distance / a
    # Every ninth structure, and the quaternaries and quinaries that make up the test set's corners.
    for name in [*ROWS.index[::9], *(name for name in ROWS.index if name.startswith("FeNiCoCr"))]:
        lattice, symbols, fractional = read_poscar(DATA / "POSCARS" / name)
        per_cube, n1, first = cells[ROWS.phase[name]]
        a = (ROWS["V0 (A3/atom)"][name] * per_cube) ** (1 / 3)
        apart = (fractional[:, None] - (fractional + images).reshape(-1, 3)) @ lattice
        distances = np.linalg.norm(apart, axis=-1)
        nearest = np.argsort(distances, axis=1, kind="stable")[:, : n1 + 7]
        ideal = np.repeat([0, first * a, a], [1, n1, 6])
        assert np.abs(np.take_along_axis(distances, nearest, axis=1) - ideal).max() < 1e-6
        partner = nearest[:, 1:] % len(symbols)  # no atom meets an image of itself in either shell
        assert not (partner == np.arange(len(symbols))[:, None]).any()
        share = {element: np.mean(symbols == element) for element in PARTS[name]}
        for shell, others in ((1, symbols[partner[:, :n1]]), (2, symbols[partner[:, n1:]])):
            alphas = []
            for x, y in combinations_with_replacement(share, 2):
                together = (symbols[:, None] == x) & (others == y)
                alphas.append(1 - np.mean(together) / share[x] / share[y])
            rms, largest = ROWS.loc[name, [f"wc{shell} (rms)", f"wc{shell} (max)"]]
            assert np.sqrt(np.mean(np.square(alphas))) == pytest.approx(rms, abs=1e-4)
            assert np.abs(alphas).max() == pytest.approx(largest, abs=1e-4)


def test_the_structures_are_nearly_random():
    """A floor for the sake of the data's use: README.md gives the figures themselves."""
    means = ROWS[["wc1 (rms)", "wc2 (rms)"]].groupby([len(PARTS[name]) for name in ROWS.index]).mean()
    assert (means.loc[[4, 5]] < 0.08).all(axis=None)


def test_formation_energies_are_against_the_elements():
    elements = pd.read_csv(DATA / "elements.csv", index_col="element")
    assert elements.structure.to_dict() == STRUCTURES
    amounts = pd.DataFrame(PARTS).T.fillna(0)
    mixed = (amounts * elements["E0 (eV/atom)"]).sum(axis=1) / amounts.sum(axis=1)
    assert ((ROWS["Eform (eV/atom)"] - ROWS["Etot (eV/atom)"] + mixed).abs() < 2e-6).all()
    values = ROWS[["Eform (eV/atom)", "Ms (mub/atom)", "V0 (A3/atom)"]]
    assert ((values >= [-0.5, 0, 10]) & (values < [0.5, 3, 16])).all(axis=None)


@pytest.mark.slow
def test_a_rebuild_gives_the_same_structures_and_labels(tmp_path, monkeypatch):
    for package in ("torch", "chgnet", "icet", "ase", "pymatgen", "pandas", "tqdm"):
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

    # Again in the same folder: nothing that is done is done anew; what is missing, is.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.json")}
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    lost = tmp_path / "work" / f"{TEST_ALLOYS[0]}.json"
    lost.unlink()
    build.build(table, tmp_path, "cpu", 1)
    assert {path for path in before if path.stat().st_mtime_ns != before[path]} == {lost}
    assert {path: path.read_bytes() for path in files} == files
