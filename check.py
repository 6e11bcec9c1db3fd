"""Hold a database against itself and its POSCARs, before anyone trains on it.

    python structure_stat.py --check
    python structure_stat.py --fix

Reads Database.csv and POSCARS/ in DATA_DIR. Prints what disagrees, and writes it to TABLE_DIR as
Database_findings.csv. --fix also writes Database_fixed.csv, a copy with the corrections that the
data settle themselves, and Database_fixes.csv, what was changed and why; never the original.

The columns that only the checks read may be absent: what needs them is then left out, and said so.
A finding is no verdict: an alloy far from its neighbours may simply have another magnetic order.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from pymatgen.core import Composition

import common
import generate
import structure_stat
from common import BLOCKS, TARGETS, InputError

ENERGY, MOMENT = TARGETS["Ef"], TARGETS["Ms"]
TOTAL, CELL_TOTAL = "Etot (eV/atom)", "Etot (eV)"
CELL_MOMENT, MASS_MOMENT = "mb (mub/cell)", "Ms (emu/g)"
VOLUME = "V0 (A3/atom)"
EMU = 5584.94  # emu/mol in one Bohr magneton per atom: Avogadro's number times the magneton

ENERGY_TOLERANCE = 0.002  # eV/atom
MOMENT_TOLERANCE = 0.006  # mub/atom: more than the rounding to two decimals ...
MOMENT_SHARE = 0.001  # ... and this part of the value, for other values of the magneton
VOLUME_TOLERANCE = 0.005  # of the volume
FAR = 5.0  # robust standard deviations from the cluster expansion of the others
MIN_ROWS = 20  # of a phase, for that expansion
CLUSTERS = "points pairs triplets"  # of that expansion


class Finding(NamedTuple):
    """Two values that should be one."""

    structure: str
    column: str
    value: object
    against: str
    other: object

    @property
    def ratio(self):
        numbers = isinstance(self.value, float) and isinstance(self.other, float)
        return self.value / self.other if numbers and self.other else np.nan


class Fix(NamedTuple):
    structure: str
    column: str
    was: float
    now: float
    because: str


def read(settings):
    """The database with all columns that the checks know: (frame, POSCARs by name, findings, System).

    Columns that are absent are so in the frame too; what is no number is nan. Added to it: n_atoms,
    volume (angstrom^3/atom) of the POSCAR, and molar_mass (g/mol of atoms) of the name.
    """
    frame, system = common.read_database(settings)
    path = settings.DATA_DIR / "Database.csv"
    whole = common.read_table(path, ["structures"])
    whole = whole[whole.phase.isin(common.PHASES)]
    whole = whole.set_index(whole.structures.astype(str)).loc[frame.structure]
    for column in (TOTAL, CELL_TOTAL, CELL_MOMENT, MASS_MOMENT, VOLUME):
        if column not in whole:
            print(f"no column '{column}': what needs it is left out")
            continue
        values = pd.to_numeric(whole[column], errors="coerce").astype(float)
        values = values.where(values.abs() < common.LARGEST)
        if values.isna().any():
            print(f"column '{column}': no number in {values.isna().sum()} rows, which are left out there")
        frame[column] = values.to_numpy()
    structures, findings = {}, []
    for name in frame.structure:
        try:
            structures[name] = structure_stat.read_poscar(settings.DATA_DIR / "POSCARS" / name)
        except InputError as error:
            findings.append(Finding(name, "structures", name, "POSCAR", str(error)))
    of = [structures.get(name) for name in frame.structure]
    frame["n_atoms"] = [len(one) if one else np.nan for one in of]
    frame["volume"] = [one.volume / len(one) if one else np.nan for one in of]
    compositions = [Composition(formula) for formula in frame.formula]
    frame["molar_mass"] = [float(one.weight) / one.num_atoms for one in compositions]
    return frame, structures, findings, system


def pairs_of(frame, column, values, against, others, apart):
    """Findings of the rows where `apart` is true; values and others: (n_rows,)."""
    return [
        Finding(frame.structure[row], column, float(values[row]), against, float(others[row]))
        for row in np.flatnonzero(apart)
    ]


def check_composition(frame, structures):
    """The POSCAR's composition against the formula in the structure's name."""
    return [
        Finding(name, "structures", formula, "POSCAR", structures[name].composition.formula)
        for name, formula in zip(frame.structure, frame.formula)
        if name in structures and not structure_stat.same_alloy(structures[name].composition, formula)
    ]


def moments(frame):
    """The magnetisation by each column that there is, in mub/atom: {column: (n_rows,)}."""
    found = {MOMENT: frame[MOMENT].to_numpy()}
    if CELL_MOMENT in frame:
        found[CELL_MOMENT] = (frame[CELL_MOMENT] / frame.n_atoms).to_numpy()
    if MASS_MOMENT in frame:
        found[MASS_MOMENT] = (frame[MASS_MOMENT] * frame.molar_mass / EMU).to_numpy()
    return found


def differ(first, second):
    """Whether two magnetisations in mub/atom are apart; False where one is nan."""
    return np.abs(first - second) > MOMENT_TOLERANCE + MOMENT_SHARE * np.abs(second)


def check_magnetisation(frame):
    """Ms (mub/atom) against the two other units; where all three are there, who stands alone."""
    found, findings, fixes = moments(frame), [], []
    for column in list(found)[1:]:
        against = f"{column} in mub/atom"
        apart = differ(found[MOMENT], found[column])
        findings += pairs_of(frame, MOMENT, found[MOMENT], against, found[column], apart)
    if len(found) < 3:
        return findings, fixes
    # Two columns that agree settle the third, which is made from them anew in its own unit.
    factor = {MOMENT: 1, CELL_MOMENT: frame.n_atoms, MASS_MOMENT: EMU / frame.molar_mass}
    for column in found:
        first, second = (other for other in found if other != column)
        alone = differ(found[column], found[first]) & differ(found[column], found[second])
        alone &= np.abs(found[first] - found[second]) <= MOMENT_TOLERANCE
        source = CELL_MOMENT if column != CELL_MOMENT else MOMENT
        now = found[source] * factor[column]
        because = f"{first} and {second} agree with each other"
        fixes += [
            Fix(frame.structure[row], column, frame[column][row], now[row], because)
            for row in np.flatnonzero(alone)
        ]
    return findings, fixes


def check_energy(frame, system):
    """Eform against Etot minus the elements' references: (findings, what Eform should be or None).

    The references are fitted to all rows at once, so that outliers have no say (soft L1).
    """
    from scipy.optimize import least_squares

    if TOTAL not in frame:
        return [], None
    fractions = common.mole_fractions(frame.formula, system.elements)  # (n_rows, n_elements)
    reference = (frame[TOTAL] - frame[ENERGY]).to_numpy()  # per atom, of the row's elements
    known = np.isfinite(reference)
    if known.sum() <= 2 * len(system.elements):
        print("too few rows to fit the elements' reference energies: left out")
        return [], None
    start = np.full(len(system.elements), np.median(reference[known]))
    fitted = least_squares(
        lambda energies: fractions[known] @ energies - reference[known],
        start,
        loss="soft_l1",
        f_scale=ENERGY_TOLERANCE,
    ).x
    expected = frame[TOTAL].to_numpy() - fractions @ fitted
    error = np.abs(frame[ENERGY].to_numpy() - expected)
    if np.median(error[known]) > ENERGY_TOLERANCE:
        print(f"'{TOTAL}' less '{ENERGY}' is no sum over the elements in most rows: left out")
        return [], None
    against = f"{TOTAL} less references"
    findings = pairs_of(frame, ENERGY, frame[ENERGY], against, expected, error > ENERGY_TOLERANCE)
    return findings, expected


def check_cell_energy(frame):
    """Total energy of the cell against that per atom: (findings, rows where both agree or None)."""
    if TOTAL not in frame or CELL_TOTAL not in frame:
        return [], None
    per_atom = (frame[CELL_TOTAL] / frame.n_atoms).to_numpy()
    apart = np.abs(frame[TOTAL] - per_atom) > ENERGY_TOLERANCE
    agree = np.abs(frame[TOTAL] - per_atom) <= ENERGY_TOLERANCE
    return pairs_of(frame, TOTAL, frame[TOTAL], f"{CELL_TOTAL} per atom", per_atom, apart), agree


def check_volume(frame):
    """Volume against the POSCAR's; two phases of one alloy that hold each other's are exchanged."""
    if VOLUME not in frame:
        return [], []
    findings, fixes = [], []
    given, found = frame[VOLUME], frame.volume
    apart = np.abs(given / found - 1) > VOLUME_TOLERANCE
    findings += pairs_of(frame, VOLUME, given, "POSCAR", found, apart)
    for _, rows in frame[apart].groupby("formula"):
        if len(rows) == 2:
            exchanged = rows[VOLUME].to_numpy()[::-1]
            if np.all(np.abs(exchanged / rows.volume - 1) <= VOLUME_TOLERANCE):
                because = "exchanged with the other phase, both are the POSCARs'"
                fixes += [
                    Fix(name, VOLUME, was, now, because)
                    for name, was, now in zip(rows.structure, rows[VOLUME], exchanged)
                ]
    return findings, fixes


def check_repeats(frame, system):
    """One composition and phase in two rows: their formation energies beside each other."""
    fractions = common.mole_fractions(frame.formula, system.elements).round(6)
    keys = list(zip(frame.phase, map(tuple, fractions)))
    first, findings = {}, []
    for row, key in enumerate(keys):
        if key in first:
            earlier = first[key]
            findings.append(
                Finding(
                    frame.structure[row],
                    ENERGY,
                    float(frame[ENERGY][row]),
                    f"the same alloy, {frame.structure[earlier]}",
                    float(frame[ENERGY][earlier]),
                )
            )
        first.setdefault(key, row)
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


def check_expansion(settings, frame, structures, system):
    """Each target against the cluster expansion of the phase's other rows: (findings, {ENERGY: (n,)}).

    A row is far if its residual, over the median of all, is more than FAR robust deviations, each
    scaled by its leverage: an alloy at the rim is expected to be further off.
    """
    findings, predicted = [], {column: np.full(len(frame), np.nan) for column in TARGETS.values()}
    columns = [column for block in BLOCKS for column in common.cluster_columns(system, block)]
    wanted = [columns.index(column) for column in generate.ce_columns(system, CLUSTERS)]
    floor = {ENERGY: ENERGY_TOLERANCE, MOMENT: MOMENT_TOLERANCE}
    for phase in common.phases_of(frame):
        rows, blocks = [], []
        for row in np.flatnonzero(frame.phase == phase):
            name, formula = frame.structure[row], frame.formula[row]
            path = settings.DATA_DIR / "POSCARS" / name
            if name in structures:
                values, faults = structure_stat.count_structures([path], [formula], phase, system)
                if faults and structure_stat.same_alloy(structures[name].composition, formula):
                    findings.append(Finding(name, "structures", name, "POSCAR", faults[0]))
                if not faults:
                    rows.append(row)
                    blocks.append(values[0, wanted])
        if len(rows) < MIN_ROWS:
            print(f"{phase}: {len(rows)} rows are too few for a cluster expansion of the others: left out")
            continue
        for target, column in TARGETS.items():
            values = frame[column].to_numpy()[rows]
            others, leverage = leave_one_out(np.array(blocks), values, generate.DEFAULT_ALPHA[target])
            predicted[column][rows] = others
            residual = (values - others) * np.sqrt(np.clip(1 - leverage, 0, 1))
            centred = residual - np.median(residual)
            deviation = max(1.4826 * np.median(np.abs(centred)), floor[column])
            far = np.zeros(len(frame), bool)
            far[np.array(rows)[np.abs(centred) > FAR * deviation]] = True
            against = "cluster expansion of the others"
            findings += pairs_of(frame, column, frame[column], against, predicted[column], far)
    return findings, predicted


def settled_energies(frame, findings, expected, agree, predicted):
    """Corrections of Eform: Etot stands twice, and the cluster expansion of the others sides with it.

    That is where the recorded value is far from the expansion, and the corrected one less than half
    as far.
    """
    if expected is None or agree is None:
        return []
    named = {finding.structure for finding in findings if finding.column == ENERGY}
    off = np.abs(frame[ENERGY] - expected) > ENERGY_TOLERANCE
    nearer = np.abs(expected - predicted) < np.abs(frame[ENERGY] - predicted) / 2
    because = f"{TOTAL} and {CELL_TOTAL} agree, and the cluster expansion of the others sides with them"
    return [
        Fix(frame.structure[row], ENERGY, frame[ENERGY][row], expected[row], because)
        for row in np.flatnonzero(off & agree & nearer)
        if frame.structure[row] in named
    ]


def write_fixed(settings, fixes):
    """Database_fixed.csv: the original, cell by cell as text, with the corrections in it."""
    path = settings.DATA_DIR / "Database.csv"
    try:
        cells = pd.read_csv(path, header=None, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise InputError(f"{path}: cannot be copied cell by cell ({error})") from None
    header = list(cells.iloc[0])
    names = cells[header.index("structures")]
    for fix in fixes:
        was = cells.loc[names == fix.structure, header.index(fix.column)]
        decimals = max(len(text.partition(".")[2]) for text in was)
        cells.loc[was.index, header.index(fix.column)] = f"{fix.now:.{max(decimals, 4)}f}"
    out = settings.TABLE_DIR / "Database_fixed.csv"
    with common.whole_file(out) as temporary:
        cells.to_csv(temporary, index=False, header=False, lineterminator="\n")
    log = settings.TABLE_DIR / "Database_fixes.csv"
    common.write_csv(pd.DataFrame(fixes, columns=Fix._fields), log)
    print(f"\n{len(fixes)} corrections in {out}; what and why in {log}")
    if fixes:
        print(pd.DataFrame(fixes).to_string(index=False, float_format="{:.5g}".format))


def run(settings):
    """All checks, on the settings of structure_stat.py; with FIX, the corrected copy too."""
    frame, structures, findings, system = read(settings)
    common.output_folder(settings.TABLE_DIR)
    findings += check_composition(frame, structures)
    magnetic, fixes = check_magnetisation(frame)
    energetic, expected = check_energy(frame, system)
    of_cell, agree = check_cell_energy(frame)
    of_volume, exchanged = check_volume(frame)
    far, predicted = check_expansion(settings, frame, structures, system)
    findings += magnetic + energetic + of_cell + of_volume + check_repeats(frame, system) + far
    fixes += exchanged + settled_energies(frame, far, expected, agree, predicted[ENERGY])

    rows = [(f.structure, f.column, f.value, f.against, f.other, f.ratio) for f in findings]
    table = pd.DataFrame(rows, columns=["structure", "column", "value", "against", "other value", "ratio"])
    path = settings.TABLE_DIR / "Database_findings.csv"
    common.write_csv(table, path)
    if len(table):
        print(table.to_string(index=False, na_rep="", float_format="{:.5g}".format))
    print(f"{len(frame)} structures, {len(findings)} findings, in {path}")
    if settings.FIX:
        write_fixed(settings, fixes)
