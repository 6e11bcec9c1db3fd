"""Hold a database against itself and its POSCARs, before anyone trains on it.

    python beyond/check.py

Reads Database.csv and POSCARS/ in DATA_DIR. Prints what disagrees, and writes it to TABLE_DIR as
Database_findings.csv: a value, what it was held against, and what it would be where the others tell. A
finding is no verdict: an alloy far from its neighbours may simply have another magnetic order.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from pymatgen.core import Element
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import lattice
import report
import settings
import structure_stat
from common import BLOCKS, PHASES, TARGETS

ENERGY, MOMENT = TARGETS["Ef"].column, TARGETS["Ms"].column
TOTAL, CELL_TOTAL, VOLUME = "Etot (eV/atom)", "Etot (eV)", "V0 (A3/atom)"
CELL_MOMENT, MASS_MOMENT = "mb (mub/cell)", "Ms (emu/g)"
COLUMNS = [ENERGY, MOMENT, TOTAL, CELL_TOTAL, CELL_MOMENT, MASS_MOMENT, VOLUME]  # all but one may be absent
EMU = 5584.94  # emu/mol in one Bohr magneton per atom: Avogadro's number times the magneton

TOLERANCE = {ENERGY: 0.002, MOMENT: 0.006}  # eV/atom; μB/atom, more than the rounding to two decimals
MOMENT_SHARE, VOLUME_SHARE = 0.001, 0.005  # of the value, besides (there are other magnetons); of the volume
# Of labels: the largest that an alloy may have (holmium has 10.6 μB/atom), the least deviation of all.
LABELS = {ENERGY: (common.LARGEST_ENERGY, 0.02), MOMENT: (12.0, 0.5)}
EXPANSION = ("points", "pairs", "triplets")  # what the cluster expansion of the others is fitted to
FAR, MIN_ROWS = 5.0, 20  # robust standard deviations from it; rows of a phase that it takes
SURROUNDINGS = "surroundings of its atoms"  # what the phase in a name is held against
# A finding: two values that should be one, and what the first would be, nan where the data do not tell.
FIELDS = ("structure", "column", "value", "against", "other", "would_be")


def read_database(data_dir, elements=None, excluded_pairs=None):
    """(Frame, System) of common.read_database, and the names of the targets that the file has.

    Added to the frame: all COLUMNS, nan where there is no number, and the mole fractions.
    """
    frame, system = common.read_database(data_dir, None, elements, excluded_pairs)
    targets = [name for name, target in TARGETS.items() if target.column in frame]
    whole = common.read_table(data_dir / "Database.csv")
    whole = whole.groupby(whole.structures.str.strip()).first().loc[frame.structure]
    numbers = whole.reindex(columns=COLUMNS).apply(pd.to_numeric, errors="coerce").astype(float)
    frame[COLUMNS] = numbers.where(numbers.abs() < common.LARGEST).to_numpy()
    for column, missing in frame[COLUMNS].isna().sum().items():
        if missing:
            print(f"'{column}': no number in {missing} of {len(frame)} rows, left out where it is needed")
    frame[[*system.elements]] = common.mole_fractions(frame.formula, system.elements)
    return frame, system, targets


def read_structures(folder, frame, system):
    """What the POSCARs in a folder hold: (frame, occupation, findings).

    Added to the frame: n_atoms; volume in angstrom^3/atom; named, by how much more atoms have the
    surroundings of the phase in the name than of the other phase, as a share. occupation: (n_rows,
    n_columns), of the clusters of EXPANSION. nan where there is no whole POSCAR of the row's formula.
    """
    columns = common.cluster_columns(system, *BLOCKS)
    wanted = [columns.index(column) for column in common.cluster_columns(system, *EXPANSION)]
    frame = frame.assign(n_atoms=np.nan, volume=np.nan, named=np.nan)
    occupation, findings = np.full((len(frame), len(wanted)), np.nan), []
    if not folder.is_dir():
        print(f"no folder {folder}: what needs structures is left out")
        return frame, occupation, findings
    for row, (name, formula, phase) in enumerate(zip(frame.structure, frame.formula, frame.phase)):
        path = common.poscar_path(folder, name)
        values, faults = structure_stat.count_structures([path], [formula], phase, system)
        if faults:
            findings.append((name, "structures", formula, "POSCAR", faults[0], np.nan))
            continue
        occupation[row], structure = values[0, wanted], lattice.read_poscar(path)
        shares = dict(zip(lattice.STRUCTURE_TYPES, values[0, len(columns) :]))
        n, became = len(structure), max(shares, key=shares.get)
        named = 2 * shares[phase] - sum(shares[one] for one in PHASES)
        frame.loc[row, ["n_atoms", "volume", "named"]] = n, structure.volume / n, named
        if became != phase:
            now, would_be = f"{became} in {shares[became]:.0%}", became if became != "other" else np.nan
            findings.append((name, "phase", phase, SURROUNDINGS, now, would_be))
    return frame, occupation, findings


def compare(frame, column, against, others, apart, would_be=None):
    """Findings of the rows where `apart` is true; one for all where most rows are, as of another unit.

    others: what the column was held against, (n_rows,). would_be: (n_rows,), nan where the data do not tell.
    """
    would_be = pd.Series(np.nan, frame.index) if would_be is None else would_be
    known = (frame[column] + others).notna().sum()
    if apart.sum() > max(known / 2, 3):
        low, ratio, high = (would_be.fillna(others) / frame[column])[apart].quantile([0.25, 0.5, 0.75])
        factor = f"each times {ratio:.4g}" if high - low < 0.02 * abs(ratio) else np.nan
        return [(f"{apart.sum()} of {known} rows", column, np.nan, against, np.nan, factor)]
    rows = zip(frame.structure[apart], frame[column][apart], others[apart], would_be[apart])
    return [(name, column, value, against, other, told) for name, value, other, told in rows]


def check_labels(frame, column):
    """Labels larger than any alloy's, or far from all others; a thousandth of it, where that is neither."""
    values, median = frame[column], frame[column].median()
    largest, least = LABELS.get(column, (np.inf, 0.0))
    far = common.FAR * max(1.4826 * (values - median).abs().median(), least)
    likely, smaller = (max(-largest, median - far), min(largest, median + far)), values / 1000
    apart, others = values.notna() & ~values.between(*likely), pd.Series(median, frame.index)
    return compare(frame, column, "median of all", others, apart, smaller.where(smaller.between(*likely)))


def check_magnetisation(frame, system, other_cell):
    """Magnetisation in three units, against the middle one; two that agree tell what the third would be.

    other_cell: (n_rows,), where the POSCAR may not be of the cell that was calculated.
    """
    mass = frame[[*system.elements]] @ [float(Element(e).atomic_mass) for e in system.elements]  # g/mol
    factors = {MOMENT: 1.0, CELL_MOMENT: frame.n_atoms.mask(other_cell), MASS_MOMENT: EMU / mass}
    found = pd.DataFrame({column: frame[column] / factor for column, factor in factors.items()})  # μB/atom
    of_three = found.notna().all(axis=1)
    middle = found.median(axis=1).where(of_three, found[MOMENT])
    tolerance = TOLERANCE[MOMENT] + MOMENT_SHARE * middle.abs()
    apart = found.sub(middle, axis=0).abs().gt(tolerance, axis=0)
    settled, findings = of_three & (apart.sum(axis=1) == 1), []
    for column, factor in factors.items():
        others = middle * factor
        findings += compare(frame, column, "other units", others, apart[column], others.where(settled))
    return findings


def check_energy(frame, system, same_cell):
    """Formation energy against the total energy less the elements' references.

    These are fitted to all rows at once, so that outliers have no say (soft L1). same_cell: (n_rows,), where
    the total energy stands twice, by atom and by cell, so that it tells.
    """
    sums = frame[TOTAL] - frame[ENERGY]  # of the references of a row's elements
    known, fractions = sums.notna(), frame[[*system.elements]].to_numpy()
    if known.sum() <= 2 * len(system.elements):
        print("too few rows to fit the elements' reference energies: left out")
        return []
    start, inputs, outputs = np.full(len(system.elements), sums.median()), fractions[known], sums[known]
    fit = least_squares(lambda x: inputs @ x - outputs, start, loss="soft_l1", f_scale=TOLERANCE[ENERGY])
    others = frame[TOTAL] - fractions @ fit.x
    apart = (frame[ENERGY] - others).abs() > TOLERANCE[ENERGY]
    return compare(frame, ENERGY, f"{TOTAL} less references", others, apart, others.where(same_cell))


def check_volume(frame):
    """Volume against the POSCAR's; two phases of one alloy that hold each other's are exchanged.

    Which of the two is, the volumes or the POSCARs, the surroundings of the atoms tell, or do not.
    """
    apart = (frame[VOLUME] / frame.volume - 1).abs() > VOLUME_SHARE
    would_be, exchanged = pd.Series(np.nan, frame.index), []
    for _, rows in frame[apart].groupby("formula"):
        others = rows[VOLUME][::-1].set_axis(rows.index)
        fit = len(rows) == 2 and ((others / rows.volume - 1).abs() <= VOLUME_SHARE).all()
        if fit and rows.named.sum() > 0:
            would_be[rows.index] = others
        elif fit and rows.named.sum() < 0:
            first, second = rows.structure
            exchanged.append((first, "structures", first, "POSCAR and volume", second, second))
    return compare(frame, VOLUME, "POSCAR", frame.volume, apart, would_be) + exchanged


def check_expansion(frame, occupation, target):
    """A target against the cluster expansion of the phase's other rows.

    A ridge regression with intercept, by its hat matrix H: without the row, its residual is divided by
    1 - H_ii. Far is one of more than FAR robust deviations, each divided by sqrt(1 - H_ii), as an alloy at
    the rim is expected further off.
    """
    column, others, far = TARGETS[target].column, frame.volume * np.nan, pd.Series(False, frame.index)
    for phase in common.phases_of(frame):
        rows = (frame.phase == phase) & np.isfinite(occupation).all(1) & frame[column].notna()
        if rows.sum() < MIN_ROWS:
            print(f"{phase}: {rows.sum()} rows are too few for a cluster expansion of the others: left out")
            continue
        values, inputs = frame[column][rows], occupation[rows] - occupation[rows].mean(0)
        inner = inputs.T @ inputs + TARGETS[target].alpha * np.eye(inputs.shape[1])
        hat = inputs @ np.linalg.solve(inner, inputs.T) + 1 / len(inputs)
        rest, residual = 1 - np.diag(hat), values - hat @ values
        others[rows], off = values - residual / rest, residual / np.sqrt(rest)
        off = (off - off.median()).abs()
        far[rows] = off > FAR * max(1.4826 * off.median(), TOLERANCE.get(column, 0.0))
    return compare(frame, column, "cluster expansion of the others", others, far)


def check_repeats(frame, column, system):
    """One composition and phase in two rows: their values in a column beside each other."""
    findings = []
    for _, rows in frame.round(6).groupby(["phase", *system.elements]):
        (first, value), *others = zip(rows.structure, rows[column])
        against = f"the same alloy, {first}"
        findings += [(name, column, found, against, value, np.nan) for name, found in others]
    return findings


def check(frame, occupation, targets, system):
    """All checks of the frame and the occupation of `read_structures`: a list of findings."""
    per_atom = frame[CELL_TOTAL] / frame.n_atoms
    other_cell = (frame[TOTAL] - per_atom).abs() > TOLERANCE[ENERGY]
    findings = compare(frame, TOTAL, f"{CELL_TOTAL} per atom of the POSCAR", per_atom, other_cell)
    findings += check_energy(frame, system, per_atom.notna() & ~other_cell)
    findings += check_magnetisation(frame, system, other_cell) + check_volume(frame)
    for target in targets:
        findings += check_labels(frame, TARGETS[target].column) + check_expansion(frame, occupation, target)
    return findings + check_repeats(frame, TARGETS[targets[0]].column, system)


def main():
    cfg = settings.read(globals())
    frame, system, targets = read_database(cfg.DATA_DIR, cfg.ELEMENTS, cfg.EXCLUDED_PAIRS)
    print(f"data: {common.data_name(cfg.DATA_DIR)}", flush=True)
    settings.output_folder(cfg.TABLE_DIR)
    frame, occupation, findings = read_structures(cfg.DATA_DIR / "POSCARS", frame, system)
    table = pd.DataFrame(findings + check(frame, occupation, targets, system), columns=FIELDS)
    report.write_csv(table, cfg.TABLE_DIR / "Database_findings.csv")
    shown = table[table.against != SURROUNDINGS]
    text = shown.to_string(index=False, na_rep="", float_format="{:.5g}".format)
    print(text if len(shown) else "nothing disagrees")
    print(f"{len(table) - len(shown)} cells are not of the phase in their name")
    print(f"{len(frame)} structures, {len(table)} findings, in {cfg.TABLE_DIR / 'Database_findings.csv'}")


if __name__ == "__main__":
    settings.run(main)
