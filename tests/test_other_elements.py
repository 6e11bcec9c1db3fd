"""Another system than the paper's, Al-Co-Ni in binaries and ternaries, through all four scripts."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, STUDY, TINY, ideal, needs_study, run
from pymatgen.core import Composition
from pymatgen.io.vasp.inputs import Poscar

import common
import generate

ELEMENTS = ["Al", "Co", "Ni"]


def al_co_ni(folder, per_phase=50):
    """A data folder of small random cells: made-up energies, moments by the elements."""
    generator = np.random.default_rng(5)
    (folder / "POSCARS").mkdir(parents=True)
    rows = []
    for phase, repeat, a in (("fcc", (2, 1, 2), 3.6), ("bcc", (2, 2, 2), 2.9)):
        seen = set()
        while len(seen) < per_phase:
            k = 2 + int(len(seen) >= 20)
            chosen = sorted(generator.choice(3, k, replace=False))
            counts = dict.fromkeys(chosen, 0)
            for i in (*chosen, *generator.choice(chosen, 16 - k)):
                counts[i] += 1
            name = "".join(f"{ELEMENTS[i]}{n}" for i, n in counts.items()) + f"_sqs{phase}"
            if name in seen:
                continue
            seen.add(name)
            species = [ELEMENTS[i] for i, n in counts.items() for _ in range(n)]
            structure = ideal(phase, ["Al"], repeat, a)
            for i, element in enumerate(generator.permutation(species)):
                structure[i] = element
            poscar = Poscar(structure.get_sorted_structure())
            (folder / "POSCARS" / name).write_text(poscar.get_str(significant_figures=10))
            c = structure.composition.fractional_composition
            energy = -1.2 * c["Al"] * (c["Co"] + c["Ni"]) + 0.02 * (phase == "bcc")
            rows.append([name, energy, max(1.6 * c["Co"] + 0.6 * c["Ni"] - c["Al"], 0), phase])
    columns = ["structures", "Eform (eV/atom)", "Ms (mub/atom)", "phase"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "Database.csv")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = al_co_ni(tmp_path_factory.mktemp("other") / "data")
    run("structure_stat.py", "--data-dir", folder)
    return folder


def test_columns_follow_from_the_data(data):
    for phase in common.PHASES:
        table = pd.read_csv(data / f"{phase}_train.csv")
        # 3 points, 6 pairs, 10 triplets, 15 quadruplets, 6 second-neighbour pairs
        assert table.shape == (50, 1 + 3 + 6 + 10 + 15 + 6 + 2)
        assert {"Co", "pair Ni-Co", "triplet Ni-Co-Al"} <= set(table)


def test_generate(data, tmp_path):
    printed = run("generate.py", "--data-dir", data, "--results-dir", tmp_path, "--alloys", "Total").out
    assert "Al: not in ELEMENT_TABLE" in printed and "1.61" in printed and "Co: not in" not in printed
    for phase in common.PHASES:
        samples = pd.read_csv(tmp_path / f"generated_{phase}_Ef.csv")
        assert len(samples) == 3 * 9 + 36 and samples.notna().all(axis=None)
        sums = samples[ELEMENTS].sum(axis=1)
        np.testing.assert_allclose(sums, 1)
        # the smooth law behind the made-up energies
        law = -1.2 * samples.Al * (1 - samples.Al) + 0.02 * (phase == "bcc")
        assert np.corrcoef(samples["Eform (eV/atom)"], law)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("main.py", []),
        ("main_transfer.py", ["--method", "da", "--augment", "40"]),
        ("main_transfer.py", ["--method", "tl"]),
    ],
)
def test_training(data, tmp_path, script, flags):
    flags = ["--data-dir", data, "--results-dir", tmp_path, "--alloys", "Total", *TINY, *flags]
    printed = run(script, *flags, "--predict", "Al2CoNi").out
    assert "Al: not in ELEMENT_TABLE" in printed and "R2: " in printed
    table = pd.read_csv(next(tmp_path.glob("*_predicted.csv")))
    assert list(table.phase) == ["fcc", "bcc"] and table["mean"].notna().all()


def test_map(data, tmp_path):
    flags = ["--data-dir", data, "--results-dir", tmp_path, "--alloys", "Total", "--seeds", "0-1", *TINY]
    run("main.py", *flags)
    study = ["studies/map_ternary.py", "--checkpoint", tmp_path / "scratch_Ef.pt", "--results-dir", tmp_path]
    run(*study, "--corners", "Al", "CoNi", "Ni", "--rest", "Co")
    assert (tmp_path / "map_scratch_Ef_Al_CoNi_Ni.png").stat().st_size > 20_000
    error = run(*study, "--corners", "Al", "Fe", "Ni", status=2).err
    assert "Fe" in error and len(error.splitlines()) == 1


def test_check(data, tmp_path):
    printed = run("structure_stat.py", "--check", "--data-dir", data, "--table-dir", tmp_path).out
    assert "no column 'Etot (eV/atom)'" in printed


@pytest.mark.parametrize("script", ["generate.py", "main.py", "main_transfer.py"])
def test_no_alloys_of_four_elements(data, tmp_path, script):
    """The default ALLOYS are the paper's, and this system has none of them: one line says so."""
    error = run(script, "--data-dir", data, "--results-dir", tmp_path, status=2).err
    assert len(error.splitlines()) == 1, error


def test_small_cells_hold_their_composition():
    """A lattice of 16 atoms is repeated until tenths of it are whole atoms."""
    settings = SimpleNamespace(DATA_DIR=ROOT / "HEA_data")
    system = common.System(("Fe", "Ni"), ())
    rows = pd.DataFrame({"structure": ["FeNi_sqsfcc"], "phase": "fcc", "formula": "FeNi"})
    lattice = generate.read_lattice(settings, rows, system, "fcc")
    assert len(lattice) % generate.STEPS == 0


def with_hcp(data, folder, change):
    shutil.copytree(data, folder)
    frame = pd.read_csv(folder / "Database.csv", index_col=0)
    extra = frame.iloc[:7].copy()
    extra["structures"] = extra.structures.str.replace("fcc", "hcp")
    extra["phase"], extra["Ms (mub/atom)"] = "hcp", np.nan  # targets may be missing there
    change(pd.concat([extra[:3], frame, extra[3:]], ignore_index=True)).to_csv(folder / "Database.csv")
    return folder


def test_hcp_is_left_out_and_said(data, tmp_path):
    folder = with_hcp(data, tmp_path / "data", lambda frame: frame)
    for script in ("structure_stat.py", "generate.py"):
        flags = ["--alloys", "Total", "--results-dir", tmp_path] if script == "generate.py" else []
        assert "7 of phase 'hcp'" in run(script, "--data-dir", folder, *flags).out
    for phase in common.PHASES:
        assert (folder / f"{phase}_train.csv").read_bytes() == (data / f"{phase}_train.csv").read_bytes()
    assert "7 of phase 'hcp'" in run("structure_stat.py", "--check", "--data-dir", folder).out


def test_only_hcp(data, tmp_path):
    folder = with_hcp(data, tmp_path / "data", lambda frame: frame[frame.phase == "hcp"])
    error = run("structure_stat.py", "--data-dir", folder, status=2).err
    assert len(error.splitlines()) == 1 and "7 of phase 'hcp'" in error


def test_a_row_without_a_phase(data, tmp_path):
    def change(frame):
        frame.loc[4, "phase"] = ""
        return frame

    folder = with_hcp(data, tmp_path / "data", change)
    error = run("structure_stat.py", "--data-dir", folder, status=2).err
    assert len(error.splitlines()) == 1 and "line 6" in error


def test_an_element_without_values():
    with pytest.raises(common.InputError, match="He"):
        common.element_properties(["Fe", "He"])


def test_too_many_elements():
    system = common.System(
        tuple(["Fe", "Ni", "Co", "Cr", "Mn", "Pd", "Al", "Cu", "Ti", "V", "Zr", "Nb", "Mo", "Hf"]), ()
    )
    with pytest.raises(common.InputError, match="make"):
        generate.sample_compositions(system, "Total")


def test_pairs_that_no_structure_holds():
    settings = SimpleNamespace(ELEMENTS=None, EXCLUDED_PAIRS=None)
    system = common.alloy_system(settings, ["AlCo", "CoNi", "Co2Ni"])
    assert system.elements == ("Ni", "Co", "Al")  # the table's first, in its order
    assert system.excluded == (frozenset(("Ni", "Al")),)


@needs_study
def test_the_papers_system_follows_from_the_papers_data():
    settings = SimpleNamespace(DATA_DIR=STUDY, ELEMENTS=None, EXCLUDED_PAIRS=None)
    database, system = common.read_database(settings)
    assert system == common.System(tuple(common.ELEMENT_TABLE), (frozenset(("Mn", "Pd")),))
    assert len(database) == 364
    assert all(common.allowed(system, map(str, Composition(f))) for f in database.formula)
