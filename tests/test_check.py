"""check.py: what it finds and corrects in made-up faults and in the study's data."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import STUDY, needs_study, random_alloy, run, small_alloys, write_data
from pymatgen.core import Composition
from pymatgen.io.vasp.inputs import Poscar
from sklearn.linear_model import Ridge

import check
import common
from check import CELL_MOMENT, CELL_TOTAL, ENERGY, MASS_MOMENT, MOMENT, TOTAL, VOLUME

ENERGIES = {"Fe": -8.2, "Ni": -5.5, "Co": -7.0, "Cr": -9.5, "Mn": -9.0}  # eV/atom
COLUMNS = [ENERGY, TOTAL, CELL_TOTAL, MOMENT, CELL_MOMENT, MASS_MOMENT, VOLUME]
BEYOND = pd.Series([-0.01, 0.01, -0.2, 0.03, -0.5, -3, 0.3], COLUMNS)  # the tolerances; a tenth is within
AGAINST = {f"{MOMENT}: {other} in μB/atom" for other in (CELL_MOMENT, MASS_MOMENT)}
AGAINST |= {f"{ENERGY}: {TOTAL} less references", f"{TOTAL}: {CELL_TOTAL} per atom", f"{VOLUME}: POSCAR"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A data folder with all columns that are checked, in agreement, in any order; not to be written to."""
    alloys = small_alloys()
    folder = write_data(tmp_path_factory.mktemp("whole") / "data", alloys)
    frame = pd.read_csv(folder / "Database.csv", index_col=0)
    n_atoms = np.array([len(one) for one in alloys.values()])
    fractions = [Composition(formula).fractional_composition for formula, _ in alloys]
    frame[TOTAL] = frame[ENERGY] + [sum(c[e] * energy for e, energy in ENERGIES.items()) for c in fractions]
    frame[CELL_TOTAL] = frame[TOTAL] * n_atoms
    frame[CELL_MOMENT] = frame[MOMENT] * n_atoms
    frame[MASS_MOMENT] = frame[MOMENT] * 5585 / [float(c.weight) for c in fractions]
    frame[VOLUME] = [one.volume / len(one) for one in alloys.values()]
    frame.round(5).sample(frac=1, random_state=0, ignore_index=True).to_csv(folder / "Database.csv")
    return folder


@pytest.fixture(scope="module")
def parts(whole):
    """What `check.check` takes of it; not to be written to."""
    targets = common.targets_in(whole)
    frame, system = check.read_database(whole, targets, None, None)
    frame, occupation, findings = check.read_structures(whole / "POSCARS", frame, system)
    assert not findings and np.isfinite(occupation).all()
    return SimpleNamespace(frame=frame, occupation=occupation, targets=targets, system=system)


def changed(folder, whole, change):
    """A data folder of its own with the database changed, beside the same POSCARs."""
    (folder / "data").mkdir()
    (folder / "data/POSCARS").symlink_to(whole / "POSCARS")
    change(pd.read_csv(whole / "Database.csv", index_col=0)).to_csv(folder / "data/Database.csv")
    return folder / "data"


def checked(folder, out, *flags):
    """Findings as {(structure, column, against)}, and what was printed."""
    before = (folder / "Database.csv").read_bytes()
    printed = run("check.py", *flags, "--data-dir", folder, "--table-dir", out).out
    assert (folder / "Database.csv").read_bytes() == before
    written = ["findings", "fixed", "fixes"] if flags else ["findings"]
    assert sorted(path.name for path in out.glob("*")) == [f"Database_{name}.csv" for name in written]
    table = pd.read_csv(out / "Database_findings.csv")
    assert f" {len(table)} findings" in printed
    return set(table[["structure", "column", "against"]].itertuples(index=False, name=None)), printed


def test_the_unit_of_the_moment_by_mass():
    """By the CODATA values; 1 J/T is 1000 emu."""
    from scipy import constants

    magneton = constants.physical_constants["Bohr magneton"][0]
    assert abs(check.EMU - constants.N_A * magneton * 1000) < 0.005


def test_nothing_is_found_where_all_agrees(whole, tmp_path):
    assert checked(whole, tmp_path / "out")[0] == set()


def compared(frame, parts, targets):
    """What of row 30 is found in the frame, but by the cluster expansion; nothing of other rows is."""
    findings, _ = check.check(frame, parts.occupation, targets, parts.system)
    findings = [finding for finding in findings if not finding.against.startswith("cluster expansion")]
    assert all(finding.structure == frame.structure[30] for finding in findings)
    return {f"{finding.column}: {finding.against}" for finding in findings}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_that_disagrees_or_is_absent(parts, column):
    frame = parts.frame.copy()
    frame.loc[30, column] += BEYOND[column] / 10
    assert not compared(frame, parts, parts.targets)
    frame.loc[30, column] += BEYOND[column]
    assert compared(frame, parts, parts.targets) == {one for one in AGAINST if column in one}

    frame.loc[30, COLUMNS] = parts.frame.loc[30, COLUMNS] + BEYOND
    assert compared(frame, parts, parts.targets) == AGAINST
    left = [target for target in parts.targets if common.TARGETS[target].column != column]
    assert compared(frame.drop(columns=column), parts, left) == {one for one in AGAINST if column not in one}


def test_two_units_that_agree_settle_the_third(whole, tmp_path):
    rows = {MOMENT: 12, CELL_MOMENT: 20, MASS_MOMENT: 40}

    def change(frame):
        for column, row in rows.items():
            frame.loc[row, column] *= 1.5
        return frame

    data, right = changed(tmp_path, whole, change), pd.read_csv(whole / "Database.csv")
    checked(data, tmp_path / "out", "--fix")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out/Database_fixed.csv"), right, rtol=1e-3)
    log = pd.read_csv(tmp_path / "out/Database_fixes.csv")
    assert dict(zip(log.column, log.structure)) == {c: right.structures[row] for c, row in rows.items()}
    np.testing.assert_allclose(log.was / log.now, 1.5, rtol=2e-3)


def test_corrections_keep_the_decimals(tmp_path):
    """Of the row, four at least; what is not corrected stays as it was written."""
    (tmp_path / "data.csv").write_text("structures,Ms\na,1.123456\nb,1\nc,7.0\n")
    fixes = [check.Fix(name, "Ms", 1, now, "") for name, now in (("a", 2), ("b", 1.23456))]
    found = check.with_fixes(tmp_path / "data.csv", fixes)
    assert found[1].tolist() == ["Ms", "2.000000", "1.2346", "7.0"]


def test_two_units_alone_settle_nothing(whole, tmp_path):
    def change(frame):
        frame.loc[12, MOMENT] *= 1.5
        frame[VOLUME] = ["unknown", *frame[VOLUME][1:]]
        return frame.drop(columns=[MASS_MOMENT, ENERGY])

    data = changed(tmp_path, whole, change)
    found, printed = checked(data, tmp_path / "out", "--fix")
    name = pd.read_csv(data / "Database.csv").structures[12]
    assert (name, MOMENT, f"{CELL_MOMENT} in μB/atom") in found
    assert f"no column '{MASS_MOMENT}'" in printed and f"no column '{ENERGY}'" in printed
    assert f"column '{VOLUME}': no number in 1 rows" in printed
    assert pd.read_csv(tmp_path / "out/Database_fixes.csv").empty
    assert (tmp_path / "out/Database_fixed.csv").read_bytes() == (data / "Database.csv").read_bytes()


def test_a_formation_energy_is_corrected_where_totals_and_neighbours_agree():
    """Of four that are off: no second total for one, its neighbours side with it, or they do not say."""
    frame = pd.DataFrame({"structure": list("abcde"), ENERGY: [0.3, 0.3, 0.3, 0.3, 0.1]})
    expected, agree = pd.Series([0.1] * 5), pd.Series([True, False, True, True, True])
    predicted = pd.DataFrame({ENERGY: [0.12, 0.12, 0.29, 0.12, 0.12]})
    far = [check.Finding(name, MOMENT if name == "d" else ENERGY, 0.3, "", 0.1) for name in "abcde"]
    fixes = check.settled_energies(frame, far, expected, agree, predicted)
    assert [(fix.structure, fix.was, fix.now) for fix in fixes] == [("a", 0.3, 0.1)]


def test_exchanged_volumes():
    """AB's volumes are exchanged, CD's merely wrong, EF's POSCARs are exchanged, GH's cells do not tell."""
    names = ["AB", "CD", "EF", "GH", *"IJKLM"]
    frame = pd.DataFrame({"formula": names * 2, "phase": ["fcc"] * 9 + ["bcc"] * 9})
    frame["structure"] = frame.formula + "_" + frame.phase
    frame[VOLUME], frame["volume"] = [11.4] * 9 + [11.1] * 9, [11.1, 12.1, 11.1, 11.1] + [11.4] * 14
    frame.loc[13:, "volume"] = 11.1
    frame["named"] = [1, 1, -1, 1, 1, 1, 1, 1, 1, 1, 1, -0.5, -1, 1, 1, 1, 1, 1]
    findings, fixes = check.check_volume(frame)
    assert [f.structure for f in findings if f.column == VOLUME] == list(
        frame.structure[[0, 1, 2, 3, 9, 10, 11, 12]]
    )
    assert [(fix.structure, fix.now) for fix in fixes] == [("AB_fcc", 11.1), ("AB_bcc", 11.4)]
    others = [(f.structure, f.other) for f in findings if f.column != VOLUME]
    assert others == [("EF_fcc", "exchanged with that of EF_bcc")]


def test_a_convention_is_named_once_and_left(whole, tmp_path):
    """Cell moments and energies of half the cell in all fcc rows, volumes of another unit in all rows."""

    def change(frame):
        frame.loc[frame.phase == "fcc", [CELL_MOMENT, CELL_TOTAL]] /= 2
        return frame.assign(**{VOLUME: frame[VOLUME] * 1.1})

    data = changed(tmp_path, whole, change)
    found, printed = checked(data, tmp_path / "out", "--fix")
    assert not found and pd.read_csv(tmp_path / "out/Database_fixes.csv").empty
    assert printed.count("of 22 fcc rows: taken for a convention") == 3
    assert printed.count("rows: taken for a convention") == 4  # volumes of bcc too


def test_total_energies_of_no_use(parts, capsys):
    """Of cells of many sizes, by mistake: no reference energies of the elements make all of them."""
    n_atoms = np.random.default_rng(0).integers(2, 33, len(parts.frame))
    frame = parts.frame.assign(**{TOTAL: parts.frame[TOTAL] * n_atoms})
    assert check.check_energy(frame, parts.system) == ([], None)
    assert "is no sum over the elements in most rows: left out" in capsys.readouterr().out
    findings, expected = check.check_energy(parts.frame, parts.system)
    assert not findings and np.abs(expected - parts.frame[ENERGY]).max() < 1e-3


def test_a_supercell_is_no_wrong_moment(whole, tmp_path):
    data = changed(tmp_path, whole, lambda frame: frame)
    (data / "POSCARS").unlink()
    shutil.copytree(whole / "POSCARS", data / "POSCARS")
    name = pd.read_csv(data / "Database.csv").structures[3]
    cell = Poscar.from_file(data / "POSCARS" / name).structure
    n_atoms = len(cell)
    cell.make_supercell([2, 1, 1])
    (data / "POSCARS" / name).write_text(Poscar(cell.get_sorted_structure()).get_str())
    assert (name, "structures", CELL_TOTAL) in checked(data, tmp_path / "out", "--fix")[0]
    assert pd.read_csv(tmp_path / "out/Database_fixes.csv").empty
    table = pd.read_csv(tmp_path / "out/Database_findings.csv")
    row = table[table.column == "structures"].iloc[0]
    assert (row.value, row.other) == (f"{2 * n_atoms} atoms", f"{n_atoms} atoms")


def test_exchanged_poscars(tmp_path):
    """That is what is named, and the right volumes stay."""
    alloys = small_alloys() | {
        ("Fe4Ni12", "fcc"): random_alloy("fcc", {"Fe": 4, "Ni": 12}, 1, (2, 2, 1)),
        ("Fe4Ni12", "bcc"): random_alloy("bcc", {"Fe": 4, "Ni": 12}, 1),
    }
    folder = write_data(tmp_path / "data", alloys)
    frame = pd.read_csv(folder / "Database.csv", index_col=0)
    frame.assign(**{VOLUME: [one.volume / len(one) for one in alloys.values()]}).to_csv(
        folder / "Database.csv"
    )
    fcc, bcc = (folder / "POSCARS" / f"Fe4Ni12_sqs{phase}" for phase in ("fcc", "bcc"))
    text = fcc.read_text()
    fcc.write_text(bcc.read_text())
    bcc.write_text(text)
    found, _ = checked(folder, tmp_path / "out", "--fix")
    assert (fcc.name, "structures", "POSCAR") in found and (bcc.name, VOLUME, "POSCAR") in found
    assert pd.read_csv(tmp_path / "out/Database_fixes.csv").empty


def test_cells_that_cannot_be_put_back_are_named(tmp_path):
    """One with a vacancy, and three of bcc named fcc; the others go back, and are not."""
    alloys = small_alloys()
    cell = random_alloy("fcc", {"Fe": 8, "Ni": 24}, 3)
    cell.remove_sites([next(i for i, site in enumerate(cell) if site.specie.symbol == "Ni")])
    alloys["Fe8Ni23", "fcc"] = cell
    for seed, name in enumerate(("Fe6Ni48", "Fe24Co30", "Co12Ni42")):
        alloys[name, "fcc"] = random_alloy("bcc", Composition(name).get_el_amt_dict(), seed, 3)
    folder = write_data(tmp_path / "data", alloys)
    found, printed = checked(folder, tmp_path / "out")
    named = {name for name, column, against in found if (column, against) == ("phase", "its lattice")}
    assert named == {f"{name}_sqsfcc" for name in ("Fe8Ni23", "Fe6Ni48", "Fe24Co30", "Co12Ni42")}
    assert "cannot be put back on its lattice" in printed


def test_faulty_poscars(whole, parts, tmp_path):
    """Another alloy, no POSCAR at all, two atoms on one site; the fourth is as it should be."""
    frame = parts.frame[:4]
    lines = [(whole / "POSCARS" / name).read_text().splitlines() for name in frame.structure]
    lines[0][6] = " ".join(lines[0][6].split()[::-1])
    lines[1], lines[2][9] = ["nothing"], lines[2][8]
    for name, text in zip(frame.structure, lines):
        (tmp_path / name).write_text("\n".join(text))
    read, occupation, findings = check.read_structures(tmp_path, frame, parts.system)
    assert [(f.structure, f.against) for f in findings] == [(name, "POSCAR") for name in frame.structure[:3]]
    assert np.isfinite(read.n_atoms).tolist() == [True, False, True, True]
    assert np.isfinite(occupation).all(1).tolist() == [False, False, False, True]


def test_an_alloy_under_two_names(parts):
    amounts = Composition(parts.frame.formula[5]).get_el_amt_dict().items()
    twin = "".join(f"{element}{2 * n:g}" for element, n in reversed(amounts))
    row = parts.frame.iloc[[5]].assign(structure=f"{twin}_sqsfcc", formula=twin)
    frame, rows = pd.concat([parts.frame, row], ignore_index=True), [*parts.frame.index, 5]
    findings, fixes = check.check(frame, parts.occupation[rows], parts.targets, parts.system)
    against = f"the same alloy, {frame.structure[5]}"
    assert [(f.structure, f.against) for f in findings] == [(f"{twin}_sqsfcc", against)] and not fixes


def test_the_expansion_of_the_others_is_a_fit_without_the_row(parts):
    frame, inputs = parts.frame, parts.occupation
    for name, target in common.TARGETS.items():
        predicted = check.check_expansion(frame, inputs, [name])[1][target.column]
        for row in (0, 21, 30):
            others = (frame.phase == frame.phase[row]) & (frame.index != row)
            model = Ridge(target.alpha, solver="svd").fit(inputs[others], frame[target.column][others])
            assert predicted[row] == pytest.approx(model.predict(inputs[[row]])[0], abs=1e-9)


# ---- the study's data ----------------------------------------------------------------------------

# The faults that ../shared/README.md lists: structure, column.
TIMES_1_5 = [f"{name}_sqsbcc" for name in ("FeNiPd", "FeCoPd", "FeCrPd", "NiCrPd", "NiCoPd")]
IN_EMU = ["NiPd_sqsfcc", "NiPd_sqsbcc", "CrPd_sqsbcc"]  # it is emu/g that is wrong
LISTED = {(name, MOMENT) for name in TIMES_1_5 + IN_EMU} | {("FeCrPd_sqsbcc", ENERGY)}
LISTED |= {(f"Fe33Ni33Co33Cr28Mn33_sqs{phase}", VOLUME) for phase in ("fcc", "bcc")}
# Further columns that truly disagree: emu/g by three per cent, and volumes by one or two.
BY_THREE = ("FeCr_sqsfcc", "FeCr_sqsbcc", "CoMn_sqsfcc", "Ni2CrMn_sqsfcc", "Ni2CrMn_sqsbcc")
BY_ONE = ("Fe15Ni15Co15Cr19_sqsfcc", "Fe33Ni28Co33Cr33Mn33_sqsfcc", "Co3Cr_sqsbcc")
FURTHER = {(name, MOMENT) for name in BY_THREE} | {(name, VOLUME) for name in BY_ONE}
# False alarms: far from the cluster expansion of the others, no column against them.
ALARMS = ("NiMn_sqsfcc", "Fe3Cr_sqsfcc", "FeCr2Mn_sqsfcc", "Fe12Ni12Co12Mn28_sqsbcc")
FALSE_ALARMS = {(name, MOMENT) for name in ALARMS} | {("NiMn_sqsfcc", ENERGY)}


@needs_study
def test_study(tmp_path):
    found, _ = checked(STUDY, tmp_path / "out", "--fix")
    left_lattice = {one for one in found if one[1] == "phase"}  # 95 named bcc, 22 named fcc
    assert len(left_lattice) == 95 + 22
    found = {(structure, column) for structure, column, _ in found - left_lattice}
    assert found == LISTED | FURTHER | FALSE_ALARMS

    path = tmp_path / "out" / "Database_fixed.csv"
    original, fixed = (pd.read_csv(p, index_col=1).iloc[:, 1:] for p in (STUDY / "Database.csv", path))
    log = pd.read_csv(tmp_path / "out/Database_fixes.csv")
    differs = (original != fixed) & original.notna()
    changes = {(differs.index[row], differs.columns[column]) for row, column in np.argwhere(differs)}
    assert changes == set(zip(log.structure, log.column))
    assert {(name, MASS_MOMENT if name in IN_EMU else column) for name, column in LISTED} <= changes
    np.testing.assert_allclose((original[MOMENT] / fixed[MOMENT])[TIMES_1_5], 1.5, atol=0.01)

    # what was corrected is found no more
    again = changed(tmp_path, STUDY, lambda frame: pd.read_csv(path, index_col=0))
    left = {(structure, column) for structure, column, _ in checked(again, tmp_path / "again")[0]}
    left = {one for one in left if one[1] != "phase"}
    assert not left & LISTED
    # with them corrected the others scatter less, and one more stands out
    assert left - FURTHER - FALSE_ALARMS <= {("Fe36Ni31Co31Cr31Mn31_sqsbcc", MOMENT)}
