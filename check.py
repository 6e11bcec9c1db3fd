"""Hold a database against itself and its POSCARs, before anyone trains on it.

    python check.py
    python check.py --fix

Reads Database.csv and POSCARS/ in DATA_DIR. Prints what disagrees, and writes it to TABLE_DIR as
Database_findings.csv. --fix also writes Database_fixed.csv, a copy with the corrections that the
data settle themselves, and Database_fixes.csv, what was changed and why; never the original. They settle
what a witness says that does not share the fault's cause; what disagrees in most rows is a convention.

Columns of numbers may be absent, but for one target: what needs them is left out, and said so.
A finding is no verdict: an alloy far from its neighbours may simply have another magnetic order.
"""

from contextlib import suppress
from typing import NamedTuple

import settings  # first: from here on Ctrl-C leaves no traceback

# isort: split
import numpy as np
import pandas as pd
from pymatgen.core import Composition

import common
import generate
import structure_stat
from cells import SURROUNDINGS
from common import BLOCKS, PHASES, TARGETS

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder for what this script writes; None: DATA_DIR
FIX = False  # also write a corrected copy, and what was changed in it
# --------------------------------------------------------------------------------------------------

ENERGY, MOMENT = TARGETS["Ef"].column, TARGETS["Ms"].column
TOTAL, CELL_TOTAL = "Etot (eV/atom)", "Etot (eV)"
CELL_MOMENT, MASS_MOMENT = "mb (mub/cell)", "Ms (emu/g)"
VOLUME = "V0 (A3/atom)"
DISPLACED = r"rmsd (\AA)"  # by relaxation, in angstrom; only shown
EMU = 5584.94  # emu/mol in one Bohr magneton per atom: Avogadro's number times the magneton

ENERGY_TOLERANCE = 0.002  # eV/atom
MOMENT_TOLERANCE = 0.006  # μB/atom: more than the rounding to two decimals ...
MOMENT_SHARE = 0.001  # ... and this part of the value, for other values of the magneton
VOLUME_TOLERANCE = 0.005  # of the volume
FAR = 5.0  # robust standard deviations from the cluster expansion of the others
MIN_ROWS = 20  # of a phase, for that expansion
EXPANSION = ("points", "pairs", "triplets")  # what it is fitted to


class Finding(NamedTuple):
    """Two values that should be one."""

    structure: str
    column: str
    value: object
    against: str
    other: object


class Fix(NamedTuple):
    """A value, and what it should be."""

    structure: str
    column: str
    was: float
    now: float
    because: str


def read_database(data_dir, targets, elements, excluded_pairs):
    """The database with all columns that the checks know: (frame, System).

    Columns that are absent are so in the frame too; what is no number is nan, but for targets, which
    must be numbers. Added to it: molar_mass, in g/mol of atoms.
    """
    frame, system = common.read_database(data_dir, targets, elements, excluded_pairs)
    whole = common.read_table(data_dir / "Database.csv", ["structures", "phase"])
    whole = whole[whole.phase.isin(PHASES)]
    whole = whole.set_index(whole.structures.astype(str)).loc[frame.structure]
    for column in (ENERGY, MOMENT, TOTAL, CELL_TOTAL, CELL_MOMENT, MASS_MOMENT, VOLUME, DISPLACED):
        if column not in whole:
            print(f"no column '{column}': what needs it is left out")
        elif column not in frame:
            values = pd.to_numeric(whole[column], errors="coerce").astype(float)
            values = values.where(values.abs() < common.LARGEST)
            if values.isna().any():
                print(f"column '{column}': no number in {values.isna().sum()} rows, which are left out there")
            frame[column] = values.to_numpy()
    compositions = [Composition(formula) for formula in frame.formula]
    frame["molar_mass"] = [float(one.weight) / one.num_atoms for one in compositions]
    return frame, system


def read_structures(folder, frame, system):
    """What the POSCARs in a folder hold: (frame, occupation, findings).

    Added to the frame: n_atoms; volume in angstrom^3/atom; named, by how much more atoms have the
    surroundings of the phase in the name than of the other phase, as a share. occupation: (n_rows,
    n_columns), of the clusters of EXPANSION. nan where there is no whole POSCAR; occupation and named also
    where it is of another alloy than the structure's name says, or its atoms are on no lattice.
    Without the folder all is nan, and a printed line says so, in place of a finding for each row.
    """
    if not folder.is_dir():
        print(f"no folder {folder}: what needs structures is left out")
        nothing = np.full((len(frame), 1), np.nan)
        return frame.assign(n_atoms=np.nan, volume=np.nan, named=np.nan), nothing, []
    columns = common.cluster_columns(system, *BLOCKS)
    wanted = [columns.index(column) for column in generate.ce_columns(system, EXPANSION)]
    n_atoms, volume, named = np.full((3, len(frame)), np.nan)
    known = {}  # cells that tell what others were made in that have left their lattice
    for phase, rows in frame.groupby("phase"):
        paths = [common.poscar_path(folder, name) for name in rows.structure]
        known[phase], _ = structure_stat.own_cells(paths, rows.formula, phase, system)
    occupation, findings = np.full((len(frame), len(wanted)), np.nan), []
    for row, (name, formula, phase) in enumerate(zip(frame.structure, frame.formula, frame.phase)):
        path = common.poscar_path(folder, name)
        with suppress(settings.InputError):
            structure = structure_stat.read_poscar(path)
            n_atoms[row], volume[row] = len(structure), structure.volume / len(structure)
        values, faults = structure_stat.count_structures([path], [formula], phase, system)
        findings += [Finding(name, "structures", formula, "POSCAR", fault) for fault in faults]
        if not faults:
            occupation[row] = values[0, wanted]
            shares = dict(zip(SURROUNDINGS, values[0, len(columns) :]))
            named[row] = shares[phase] - sum(shares[other] for other in PHASES if other != phase)
            try:
                structure_stat.put_back(structure, phase, known[phase])
            except settings.InputError as error:  # a vacancy, an atom too many, another lattice's cell
                findings.append(Finding(name, "phase", phase, "its lattice", str(error)))
            became = max(shares, key=shares.get)
            if became != phase:
                moved = f", rmsd {frame[DISPLACED][row]:g}" if DISPLACED in frame else ""
                now = f"{became} in {shares[became]:.0%} of its atoms{moved}"
                findings.append(Finding(name, "phase", phase, "surroundings in the POSCAR", now))
    return frame.assign(n_atoms=n_atoms, volume=volume, named=named), occupation, findings


def findings_of(frame, column, against, others, apart):
    """Findings of the rows where `apart` is true; others: what the column should hold, (n_rows,)."""
    rows = zip(frame.structure[apart], frame[column][apart], others[apart])
    return [Finding(name, column, value, against, other) for name, value, other in rows]


def fixes_of(frame, column, now, because, where):
    """Corrections of the rows where `where` is true; now: (n_rows,)."""
    rows = zip(frame.structure[where], frame[column][where], now[where])
    return [Fix(name, column, was, value, because) for name, was, value in rows]


def differ(first, second):
    """Whether two magnetisations in μB/atom are apart; False where one is nan."""
    return np.abs(first - second) > MOMENT_TOLERANCE + MOMENT_SHARE * np.abs(second)


def but_for_conventions(frame, apart, known, what):
    """The rows that are apart, without those of a phase in which most of the known are.

    That is another convention, such as another cell, and nothing says which of the two is meant.
    """
    for phase in common.phases_of(frame):
        rows = frame.phase == phase
        n, n_known = (apart & rows).sum(), (known & rows).sum()
        if n > n_known / 2:
            print(f"{what} disagree in {n} of {n_known} {phase} rows: taken for a convention, and left")
            apart = apart & ~rows
    return apart


def check_magnetisation(frame, agree):
    """Ms (mub/atom) against the two other units; where all three are there, who stands alone.

    agree: as `check_cell_energy` returns it.
    """
    if MOMENT not in frame:
        return [], []
    factors = {MOMENT: 1.0, CELL_MOMENT: frame.n_atoms, MASS_MOMENT: EMU / frame.molar_mass}
    found = {column: frame[column] / factor for column, factor in factors.items() if column in frame}
    findings, fixes = [], []
    for column in list(found)[1:]:
        apart, known = differ(found[MOMENT], found[column]), (found[MOMENT] - found[column]).notna()
        faults = but_for_conventions(frame, apart, known, f"'{MOMENT}' and '{column}'")
        phases = frame.phase[apart & ~faults].unique()
        found[column] = found[column].where(~frame.phase.isin(phases))
        apart = faults
        findings += findings_of(frame, MOMENT, f"{column} in μB/atom", found[column], apart)
    # Two columns that agree settle the third, which is made from them anew in its own unit.
    for column, factor in factors.items() if len(found) == 3 else ():
        first, second = (other for other in found if other != column)
        alone = differ(found[column], found[first]) & differ(found[column], found[second])
        alone &= np.abs(found[first] - found[second]) <= MOMENT_TOLERANCE
        if column == CELL_MOMENT:  # apart too where the POSCAR is of another cell, which the energies tell
            alone &= False if agree is None else agree
        source = CELL_MOMENT if column != CELL_MOMENT else MOMENT
        because = f"{first} and {second} agree with each other"
        fixes += fixes_of(frame, column, found[source] * factor, because, alone)
    return findings, fixes


def check_energy(frame, system):
    """Eform against Etot minus the elements' references: (findings, what Eform should be or None).

    The references are fitted to all rows at once, so that outliers have no say (soft L1).
    """
    from scipy.optimize import least_squares

    if TOTAL not in frame or ENERGY not in frame:
        return [], None
    fractions = common.mole_fractions(frame.formula, system.elements)  # (n_rows, n_elements)
    reference = (frame[TOTAL] - frame[ENERGY]).to_numpy()  # per atom, of the row's elements
    known = np.isfinite(reference)
    if known.sum() <= 2 * len(system.elements):
        print("too few rows to fit the elements' reference energies: left out")
        return [], None
    inputs, sums = fractions[known], reference[known]
    start = np.full(len(system.elements), np.median(sums))
    fit = least_squares(lambda x: inputs @ x - sums, start, loss="soft_l1", f_scale=ENERGY_TOLERANCE)
    expected = frame[TOTAL] - fractions @ fit.x
    error = (frame[ENERGY] - expected).abs()
    if error.median() > ENERGY_TOLERANCE:
        print(f"'{TOTAL}' less '{ENERGY}' is no sum over the elements in most rows: left out")
        return [], None
    against = f"{TOTAL} less references"
    return findings_of(frame, ENERGY, against, expected, error > ENERGY_TOLERANCE), expected


def check_cell_energy(frame):
    """Total energy per atom against that of the cell: (findings, rows where both agree or None)."""
    if TOTAL not in frame or CELL_TOTAL not in frame:
        return [], None
    per_atom = frame[CELL_TOTAL] / frame.n_atoms
    error = (frame[TOTAL] - per_atom).abs()
    what = f"'{TOTAL}' and '{CELL_TOTAL}'"
    apart = but_for_conventions(frame, error > ENERGY_TOLERANCE, error.notna(), what)
    findings = findings_of(frame, TOTAL, f"{CELL_TOTAL} per atom", per_atom, apart)
    n_atoms = frame[CELL_TOTAL] / frame[TOTAL]
    whole = apart & ((n_atoms - n_atoms.round()).abs() < 0.005) & (n_atoms.round() > 0)
    for row in frame.index[whole]:
        numbers = [f"{number:.0f} atoms" for number in (frame.n_atoms[row], n_atoms[row])]
        findings.append(Finding(frame.structure[row], "structures", numbers[0], CELL_TOTAL, numbers[1]))
    return findings, error <= ENERGY_TOLERANCE


def check_volume(frame):
    """Volume against the POSCAR's; two phases of one alloy that hold each other's are exchanged.

    Which of the two is, the volumes or the POSCARs, the surroundings of the atoms tell, or do not.
    """
    if VOLUME not in frame:
        return [], []
    error, fixes = (frame[VOLUME] / frame.volume - 1).abs(), []
    apart = but_for_conventions(
        frame, error > VOLUME_TOLERANCE, error.notna(), f"'{VOLUME}' and the POSCARs' volumes"
    )
    findings = findings_of(frame, VOLUME, "POSCAR", frame.volume, apart)
    for _, rows in frame[apart].groupby("formula"):
        exchanged = rows[VOLUME][::-1].set_axis(rows.index)
        if len(rows) != 2 or ((exchanged / rows.volume - 1).abs() > VOLUME_TOLERANCE).any():
            continue
        if rows.named.sum() > 0:
            because = "exchanged with the other phase, both are the POSCARs', whose atoms are in their phases"
            fixes += fixes_of(rows, VOLUME, exchanged, because, rows.index)
        elif rows.named.sum() < 0:
            first, second = rows.structure
            findings.append(Finding(first, "structures", first, "POSCAR", f"exchanged with that of {second}"))
    return findings, fixes


def check_repeats(frame, column, system):
    """One composition and phase in two rows: their values in a column beside each other."""
    fractions = common.mole_fractions(frame.formula, system.elements).round(6)
    values, first, findings = frame[column], {}, []
    for row, alloy in enumerate(zip(frame.phase, map(tuple, fractions))):
        earlier = first.setdefault(alloy, row)
        if earlier != row:
            against = f"the same alloy, {frame.structure[earlier]}"
            findings.append(Finding(frame.structure[row], column, values[row], against, values[earlier]))
    return findings


def leave_one_out(inputs, targets, alpha):
    """Ridge regression with intercept: value of each row by the others, and its leverage, (n,) each.

    inputs: (n, n_columns). By the hat matrix H: what a row's own removal does to its residual is to
    divide it by 1 - H_ii.
    """
    centred = inputs - inputs.mean(0)
    inner = centred.T @ centred + alpha * np.eye(inputs.shape[1])
    hat = centred @ np.linalg.solve(inner, centred.T) + 1 / len(inputs)
    leverage = np.diag(hat)
    residual = targets - hat @ targets
    return targets - residual / (1 - leverage), leverage


def check_expansion(frame, occupation, targets):
    """Each target against the cluster expansion of the phase's other rows: (findings, predicted).

    predicted: a frame with the targets' columns, nan where there is no expansion. A row is far if its
    residual, over the median of all, is more than FAR robust deviations, each scaled by its leverage:
    an alloy at the rim is expected to be further off.
    """
    columns = [TARGETS[target].column for target in targets]
    findings, predicted = [], pd.DataFrame(np.nan, frame.index, columns)
    least = {ENERGY: ENERGY_TOLERANCE, MOMENT: MOMENT_TOLERANCE}  # of the deviations
    for phase in common.phases_of(frame):
        rows = np.flatnonzero((frame.phase == phase) & np.isfinite(occupation).all(1))
        if len(rows) < MIN_ROWS:
            print(f"{phase}: {len(rows)} rows are too few for a cluster expansion of the others: left out")
            continue
        for target, column in zip(targets, columns):
            values = frame[column].to_numpy()[rows]
            others, leverage = leave_one_out(occupation[rows], values, TARGETS[target].alpha)
            predicted.loc[rows, column] = others
            residual = (values - others) * np.sqrt(np.clip(1 - leverage, 0, 1))
            off = np.abs(residual - np.median(residual))
            deviation = max(1.4826 * np.median(off), least.get(column, 0.0))
            far = rows[off > FAR * deviation]
            findings += findings_of(frame, column, "cluster expansion of the others", predicted[column], far)
    return findings, predicted


def settled_energies(frame, far, expected, agree, predicted):
    """Corrections of Eform: Etot stands twice, and the cluster expansion of the others sides with it.

    That is where the recorded value is far from the expansion, the corrected one less than half as far.
    """
    if expected is None or agree is None:
        return []
    named = {finding.structure for finding in far if finding.column == ENERGY}
    off = (frame[ENERGY] - expected).abs() > ENERGY_TOLERANCE
    nearer = (expected - predicted[ENERGY]).abs() < (frame[ENERGY] - predicted[ENERGY]).abs() / 2
    because = f"{TOTAL} and {CELL_TOTAL} agree, and the cluster expansion of the others sides with them"
    where = frame.structure.isin(named) & off & agree & nearer
    return fixes_of(frame, ENERGY, expected, because, where)


def check(frame, occupation, targets, system):
    """All checks of the frame and the occupation of `read_structures`: (findings, corrections)."""
    of_cell, agree = check_cell_energy(frame)
    magnetic, fixes = check_magnetisation(frame, agree)
    energetic, expected = check_energy(frame, system)
    of_volume, exchanged = check_volume(frame)
    repeats = check_repeats(frame, TARGETS[targets[0]].column, system)
    far, predicted = check_expansion(frame, occupation, targets)
    settled = settled_energies(frame, far, expected, agree, predicted)
    return magnetic + energetic + of_cell + of_volume + repeats + far, fixes + exchanged + settled


def with_fixes(path, fixes):
    """The cells of a CSV file as text, its header among them, with the corrections in it: a frame."""
    cells = pd.read_csv(path, header=None, dtype=str, keep_default_na=False)
    header = list(cells.iloc[0])
    for fix in fixes:
        rows, column = cells[header.index("structures")] == fix.structure, header.index(fix.column)
        decimals = max(len(text.partition(".")[2]) for text in cells.loc[rows, column])
        cells.loc[rows, column] = f"{fix.now:.{max(decimals, 4)}f}"
    return cells


def main():
    chosen = settings.read(globals(), FIX=settings.true_or_false)
    targets = common.targets_in(chosen.DATA_DIR)
    frame, system = read_database(chosen.DATA_DIR, targets, chosen.ELEMENTS, chosen.EXCLUDED_PAIRS)
    print(f"data: {common.data_set(chosen.DATA_DIR)}", flush=True)
    settings.output_folder(chosen.TABLE_DIR)
    frame, occupation, faults = read_structures(chosen.DATA_DIR / "POSCARS", frame, system)
    findings, fixes = check(frame, occupation, targets, system)
    table = pd.DataFrame(faults + findings, columns=Finding._fields)
    value, other = (pd.to_numeric(table[column], errors="coerce") for column in ("value", "other"))
    table["ratio"] = value / other.replace(0, np.nan)
    corrections = pd.DataFrame(fixes, columns=Fix._fields)
    with settings.whole_files(chosen.TABLE_DIR) as new:
        settings.write_csv(table, new("Database_findings.csv"))
        if chosen.FIX:
            cells = with_fixes(chosen.DATA_DIR / "Database.csv", fixes)
            cells.to_csv(new("Database_fixed.csv"), index=False, header=False, lineterminator="\n")
            settings.write_csv(corrections, new("Database_fixes.csv"))
    shown = {"index": False, "na_rep": "", "float_format": "{:.5g}".format}
    print(table.to_string(**shown) if len(table) else "nothing disagrees")
    print(f"{len(frame)} structures, {len(table)} findings, in {chosen.TABLE_DIR}/Database_findings.csv")
    if chosen.FIX:
        print("\n" + corrections.to_string(**shown) if fixes else "nothing that the data settle themselves")
        print(f"{len(fixes)} corrections, in {chosen.TABLE_DIR}/Database_fixed.csv and _fixes.csv")


if __name__ == "__main__":
    settings.run(main)
