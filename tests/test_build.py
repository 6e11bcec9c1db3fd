"""The project's own data set: its files agree with one another, with the rules, and with a rebuild."""

import csv
import hashlib
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[1] / "HEA_data"
ORDER = ["Fe", "Ni", "Co", "Cr", "Mn", "Pd"]

# Recipes by number of elements: the sorted parts, and how many alloys of it one set of elements makes.
RECIPES = {
    2: {(1, 1): 1, (1, 3): 2},
    3: {(1, 1, 1): 1, (1, 1, 2): 3},
    4: {(1, 1, 1, 1): 1, (12, 12, 12, 28): 4, (15, 15, 15, 19): 4},
    5: {(1,) * 5: 1, (24, 24, 24, 24, 64): 5, (31, 31, 31, 31, 36): 5, (28, 33, 33, 33, 33): 5},
}
SETS = {2: 14, 3: 16, 4: 9, 5: 2}  # of so many of the six elements, without those holding Mn and Pd
TOLERANCES = {"Etot (eV/atom)": 1e-4, "Eform (eV/atom)": 1e-4, "Ms (mub/atom)": 1e-2, "V0 (A3/atom)": 1e-2}
TEST_ALLOYS = ["FeNi3_sqsfcc", "Fe3Ni_sqsbcc", "Fe2NiPd_sqsfcc", "FeNiCo_sqsbcc"]


def parts(name):
    """FeNi3_sqsfcc -> {"Fe": 1, "Ni": 3}."""
    pairs = re.findall(r"([A-Z][a-z]?)(\d*)", name.split("_")[0])
    return {element: int(amount or 1) for element, amount in pairs}


def read_poscar(path):
    """Lattice (3, 3) in A, symbols (n_atoms,), fractional coordinates (n_atoms, 3)."""
    lines = path.read_text().splitlines()
    lattice = float(lines[1]) * np.array([line.split() for line in lines[2:5]], float)
    counts = [int(n) for n in lines[6].split()]
    assert lines[7] == "Direct"
    symbols = np.repeat(lines[5].split(), counts)
    fractional = np.array([line.split() for line in lines[8:] if line], float)
    assert fractional.shape == (len(symbols), 3)
    return lattice, symbols, fractional


def distances(lattice, fractional):
    """Distances (A) of every site to every periodic image of every site, (n_atoms, 125 n_atoms)."""
    images = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    ends = ((fractional + images).reshape(-1, 3)) @ lattice
    return np.linalg.norm((fractional @ lattice)[:, None] - ends, axis=-1)


@pytest.fixture(scope="module")
def rows():
    with open(DATA / "Database.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_sums_are_those_of_the_files():
    lines = (DATA / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = ["Database.csv", "elements.csv", *(f"POSCARS/{p.name}" for p in (DATA / "POSCARS").iterdir())]
    assert sorted(sums) == sorted(files)
    for name, digest in sums.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest, name


def test_the_data_are_small_and_have_unix_line_ends():
    files = [DATA / "Database.csv", DATA / "elements.csv", *(DATA / "POSCARS").iterdir()]
    assert sum(path.stat().st_size for path in files) < 5e6
    assert not any(b"\r" in path.read_bytes() for path in files)


def test_the_compositions_are_those_of_the_rules(rows):
    for phase in ("fcc", "bcc"):
        alloys = [parts(row["structures"]) for row in rows if row["phase"] == phase]
        for n, recipes in RECIPES.items():
            of_n = [alloy for alloy in alloys if len(alloy) == n]
            sets = [set(s) for s in combinations(ORDER, n) if not {"Mn", "Pd"} <= set(s)]
            assert len(sets) == SETS[n]
            assert len(of_n) == SETS[n] * sum(recipes.values())
            for elements in sets:
                here = [tuple(sorted(alloy.values())) for alloy in of_n if set(alloy) == elements]
                assert {recipe: here.count(recipe) for recipe in recipes} == recipes
    fractions = {(row["phase"], tuple(parts(row["structures"]).items())) for row in rows}
    assert len(fractions) == len(rows) == 438


def test_the_order_of_rows_and_elements(rows):
    assert list(rows[0])[:2] == ["", "structures"]
    assert [int(row[""]) for row in rows] == list(range(len(rows)))
    key = [(row["phase"] == "bcc", len(parts(row["structures"]))) for row in rows]
    assert key == sorted(key)
    for row in rows:
        assert row["structures"].endswith(f"_sqs{row['phase']}")
        assert list(parts(row["structures"])) == [e for e in ORDER if e in parts(row["structures"])]


def test_each_structure_is_the_alloy_of_its_name(rows):
    sizes = {2: {32}, 3: {32, 36}, 4: {64}, 5: {160}}
    assert {path.name for path in (DATA / "POSCARS").iterdir()} == {row["structures"] for row in rows}
    for row in rows:
        lattice, symbols, _ = read_poscar(DATA / "POSCARS" / row["structures"])
        wanted = parts(row["structures"])
        assert list(dict.fromkeys(symbols)) == list(wanted)
        assert len(symbols) in sizes[len(wanted)]
        for element, amount in wanted.items():
            assert np.mean(symbols == element) == amount / sum(wanted.values())
        volume = np.linalg.det(lattice) / len(symbols)
        assert volume == pytest.approx(float(row["V0 (A3/atom)"]), abs=1e-6)  # positive: right-handed


def test_the_lattice_is_ideal_and_the_recorded_order_is_the_files(rows):
    pairs_c = {"fcc": (4, 12, 2**-0.5), "bcc": (2, 8, 0.75**0.5)}  # atoms per cube, neighbours, distance / a
    # Every ninth structure, and the quaternaries and quinaries that make up the test set's corners.
    for row in rows[::9] + [r for r in rows if r["structures"].startswith("FeNiCoCr")]:
        lattice, symbols, fractional = read_poscar(DATA / "POSCARS" / row["structures"])
        per_cube, n1, first = pairs_c[row["phase"]]
        a = (float(row["V0 (A3/atom)"]) * per_cube) ** (1 / 3)
        apart = distances(lattice, fractional)
        nearest = np.argsort(apart, axis=1, kind="stable")[:, : n1 + 7]
        shells = np.take_along_axis(apart, nearest, axis=1)
        assert np.abs(shells[:, 0]).max() < 1e-6
        assert np.abs(shells[:, 1 : n1 + 1] - first * a).max() < 1e-6
        assert np.abs(shells[:, n1 + 1 :] - a).max() < 1e-6
        partner = nearest % len(symbols)
        # No atom meets an image of itself in either shell.
        assert not (partner[:, 1:] == np.arange(len(symbols))[:, None]).any()
        share = {e: np.mean(symbols == e) for e in dict.fromkeys(symbols)}
        for shell, columns in ((1, slice(1, n1 + 1)), (2, slice(n1 + 1, n1 + 7))):
            left, right = symbols[:, None], symbols[partner[:, columns]]
            alphas = []
            for k, x in enumerate(share):
                for y in list(share)[k:]:
                    alphas.append(1 - np.mean((left == x) & (right == y)) / share[x] / share[y])
            assert float(row[f"wc{shell} (max)"]) == pytest.approx(np.abs(alphas).max(), abs=1e-4)
            rms = np.sqrt(np.mean(np.square(alphas)))
            assert float(row[f"wc{shell} (rms)"]) == pytest.approx(rms, abs=1e-4)


def test_the_structures_are_nearly_random(rows):
    # A floor for the sake of the data's use: README.md gives the figures themselves.
    for n in (4, 5):
        ours = [row for row in rows if len(parts(row["structures"])) == n]
        for shell in (1, 2):
            assert np.mean([float(row[f"wc{shell} (rms)"]) for row in ours]) < 0.08


def test_formation_energies_are_against_the_elements(rows):
    with open(DATA / "elements.csv", newline="") as file:
        elements = {row["element"]: row for row in csv.DictReader(file)}
    assert {e: row["structure"] for e, row in elements.items()} == {
        "Fe": "bcc", "Ni": "fcc", "Co": "hcp", "Cr": "bcc", "Mn": "alpha", "Pd": "fcc"
    }  # fmt: skip
    for row in rows:
        amounts = parts(row["structures"])
        mixed = sum(k * float(elements[e]["E0 (eV/atom)"]) for e, k in amounts.items())
        mixed /= sum(amounts.values())
        assert float(row["Eform (eV/atom)"]) == pytest.approx(float(row["Etot (eV/atom)"]) - mixed, abs=2e-6)
        assert -0.5 < float(row["Eform (eV/atom)"]) < 0.5
        assert 0 <= float(row["Ms (mub/atom)"]) < 3
        assert 10 < float(row["V0 (A3/atom)"]) < 16


@pytest.mark.slow
def test_a_rebuild_gives_the_same_structures_and_labels(rows, tmp_path, monkeypatch):
    for package in ("torch", "chgnet", "icet", "ase", "pymatgen", "pandas", "tqdm"):
        pytest.importorskip(package, reason=f"needs {package}: pip install -r HEA_data/requirements.txt")
    monkeypatch.syspath_prepend(str(DATA))
    import build

    table = {name: build.alloys()[name] for name in TEST_ALLOYS}
    build.build(table, tmp_path, "cpu", 2)
    stored = {row["structures"]: row for row in rows}
    with open(tmp_path / "Database.csv", newline="") as file:
        again = list(csv.DictReader(file))
    assert [row["structures"] for row in again] == TEST_ALLOYS
    for row in again:
        name = row["structures"]
        for column, tolerance in TOLERANCES.items():
            assert float(row[column]) == pytest.approx(float(stored[name][column]), abs=tolerance), name
        lattice, symbols, fractional = read_poscar(tmp_path / "POSCARS" / name)
        lattice_0, symbols_0, fractional_0 = read_poscar(DATA / "POSCARS" / name)
        assert list(symbols) == list(symbols_0)
        assert np.abs(fractional - fractional_0).max() < 1e-9
        assert np.abs(lattice - lattice_0).max() < 5e-3

    # Again in the same folder: nothing that is done is done anew; what is missing, is.
    work = sorted((tmp_path / "work").glob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in work}
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    lost = tmp_path / "work" / f"{TEST_ALLOYS[0]}.json"
    lost.unlink()
    build.build(table, tmp_path, "cpu", 1)
    assert {path for path in work if path.stat().st_mtime_ns != before[path]} == {lost}
    assert {path: path.read_bytes() for path in files} == files
