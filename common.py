"""What the scripts share: data and splits, the network and its training.

Nothing to run here. From top to bottom: what can be predicted; alloys and their descriptors; the
database and the occupation tables; splits; the network; training; the choice of the epoch.
"""

import copy
import hashlib
import os
import re
import warnings
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import mse_loss, pad
from torch.optim.adam import adam
from tqdm import tqdm

from settings import InputError, listed

# Networks and matrices are so small here that threads would wait for one another, on a busy machine
# for ten times as long as the work takes. Many splits go side by side in processes instead.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


class Target(NamedTuple):
    """A property that can be predicted, and how the study trains for it."""

    column: str  # in Database.csv and in all tables
    unit: str
    label: str
    rate: float = 0.001  # learning rate of Scratch and Scratch' (Adam)
    alpha: float = 1e-2  # penalty of the cluster expansion on points, pairs and triplets
    alpha_second: float = 1e-1  # ... and on second-neighbour pairs too


TARGETS = {
    "Ef": Target("Eform (eV/atom)", "eV/atom", "formation energy", 0.005, 1e-4, 1e-3),
    "Ms": Target("Ms (mub/atom)", "μB/atom", "magnetisation", 0.001, 1e-2, 1e-1),
}
METHODS = {
    "scratch": "Scratch", "scratch_prime": "Scratch′", "da": "DA", "tl": "TL", "committee": "Committee",
}  # fmt: skip
PHASES = ("fcc", "bcc")  # lattices that alloys are named after; also the order of their one-hot columns
# What a network is told of the phase: the lattice in the name, as published, or what the cell became.
INPUT_PHASES = {"named": PHASES, "found": (*PHASES, "hcp")}
LARGEST = 1e6  # of the targets; far beyond any alloy, and far from where sums of squares overflow
GAS_CONSTANT = 8.3145  # J/(mol K)
STUDY_SHA256 = "94704eb693bba516de0cf7eb8a2c9d0423b2fb0f7a639000ee112d4e223f1081"  # its Database.csv

# Pauling electronegativity, metallic radius (angstrom), valence electrons: the paper's table.
ELEMENT_TABLE = {
    "Fe": (1.83, 1.277, 8),
    "Ni": (1.91, 1.246, 10),
    "Co": (1.88, 1.250, 9),
    "Cr": (1.66, 1.285, 6),
    "Mn": (1.55, 1.292, 7),
    "Pd": (2.20, 1.376, 10),
}

# Blocks of the occupation tables: name in CLUSTERS -> (prefix of the columns, atoms in the cluster).
BLOCKS = {
    "points": ("", 1),
    "pairs": ("pair ", 2),
    "triplets": ("triplet ", 3),
    "quadruplets": ("quadruplet ", 4),
    "second_pairs": ("second pair ", 2),
}


# ==== alloys and their descriptors ================================================================


class System(NamedTuple):
    """The elements of a data set in the order of all columns, and the pairs that no alloy holds."""

    elements: tuple
    excluded: tuple  # of frozensets of two elements


def alloy_system(formulas, elements=None, excluded_pairs=None):
    """System of some alloys; what is None follows from the formulas."""
    from pymatgen.core import Composition

    sets = [[str(element) for element in Composition(formula)] for formula in formulas]
    found = dict.fromkeys(element for one in sets for element in one)
    ordered = [e for e in ELEMENT_TABLE if e in found] + [e for e in found if e not in ELEMENT_TABLE]
    elements = tuple(elements or ordered)
    if excluded_pairs is None:
        together = {frozenset(pair) for one in sets for pair in combinations(one, 2)}
        excluded_pairs = [pair for pair in combinations(elements, 2) if frozenset(pair) not in together]
    return System(elements, tuple(frozenset(pair) for pair in excluded_pairs if set(pair) <= set(elements)))


def allowed(system, elements):
    """Whether the system has all these elements and none of its excluded pairs is among them."""
    elements = set(elements)
    return elements <= set(system.elements) and not any(pair <= elements for pair in system.excluded)


def alloys_of(system):
    """Which alloys a system has, in words."""
    pairs = "".join(f", no {' with '.join(sorted(pair))}" for pair in system.excluded)
    return f"alloys of {', '.join(system.elements)}{pairs}"


def cluster_columns(system, *blocks):
    """Names of the blocks' columns, such as 'triplet Fe-Fe-Ni': multisets of elements in order."""
    columns = []
    for prefix, size in (BLOCKS[block] for block in blocks):
        multisets = combinations_with_replacement(system.elements, size)
        columns += [prefix + "-".join(multiset) for multiset in multisets if allowed(system, multiset)]
    return columns


def radius_of(element):
    """Pymatgen's radius of an element in angstrom, and which: metallic as in ELEMENT_TABLE, where it has one.

    The atomic one (Slater's) is another scale: of Al 1.25 beside 1.43. nan where there is neither.
    """
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where it has no value
        kinds = {"metallic": Element(element).metallic_radius, "atomic": Element(element).atomic_radius}
    return next(((float(radius), kind) for kind, radius in kinds.items() if radius), (np.nan, "no"))


def element_properties(elements):
    """Electronegativity (Pauling), radius (angstrom), valence electrons: (n_elements, 3).

    Of elements that ELEMENT_TABLE lacks: pymatgen's. Raises InputError where that has none either.
    """
    from pymatgen.core import Element

    rows = []
    for element in elements:
        if element in ELEMENT_TABLE:
            rows.append(ELEMENT_TABLE[element])
        else:  # electrons outside the noble-gas core; a filled d shell under a p shell is not counted
            known = Element(element)
            valence = known.group - 10 if known.block == "p" else known.group
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns where it has no value
                rows.append((known.X, radius_of(element)[0], valence))
            if not np.isfinite(rows[-1]).all():
                raise InputError(f"no electronegativity or radius is known of {element}")
    return np.array(rows, float)


def is_formula(text):
    """Whether the text is a chemical formula of real elements."""
    from pymatgen.core import Composition, Element

    try:
        composition = Composition(text)
    except Exception:  # noqa: BLE001 (pymatgen raises whatever its parsing meets)
        return False
    real = all(type(element) is Element for element in composition)  # not its dummy species
    real = real and not re.search(r"[A-Za-z]0\d", text)  # S001 is the name of something
    return real and 0 < sum(composition.values()) < np.inf


def mole_fractions(formulas, elements):
    """Formulas -> mole fractions, (n_formulas, n_elements)."""
    from pymatgen.core import Composition

    amounts = np.array([[Composition(formula)[e] for e in elements] for formula in formulas], float)
    return amounts / amounts.sum(1, keepdims=True)


def descriptors(fractions, elements):
    """The network's inputs but for the phase: (n, n_elements) -> (n, n_elements + 4).

    Mole fractions c; mixing entropy -R sum c ln c in J/(mol K); radius mismatch
    sqrt(sum c (1 - r/mean r)^2); electronegativity mismatch sqrt(sum c (chi - mean chi)^2); mean
    number of valence electrons. Li et al., J. Mater. Chem. C (2025), doi 10.1039/d5tc02311d.
    """
    from scipy.special import entr

    chi, radius, valence = element_properties(elements).T
    entropy = GAS_CONSTANT * entr(fractions).sum(1)
    mean_radius, mean_chi = (fractions @ radius)[:, None], (fractions @ chi)[:, None]
    delta_radius = np.sqrt((fractions * (1 - radius / mean_radius) ** 2).sum(1))
    delta_chi = np.sqrt((fractions * (chi - mean_chi) ** 2).sum(1))
    return np.column_stack([fractions, entropy, delta_radius, delta_chi, fractions @ valence])


def one_hot(names, phases):
    """Columns of the phases: names (n,) -> (n, n_phases), 1 where the name is the phase."""
    return np.array([[name == phase for phase in phases] for name in names], float)


def network_inputs(fractions, shares, elements):
    """Descriptors and the columns of the phase: 12 columns for the paper's elements and named phases.

    shares: of INPUT_PHASES, (n, n_phases), `one_hot` of names or what cells have of each.
    """
    return np.hstack([descriptors(fractions, elements), shares])


# ==== the database and the occupation tables ======================================================


def phases_of(table):
    """The phases that the table has rows of, fcc first."""
    return [phase for phase in PHASES if (table.phase == phase).any()]


def read_table(path, columns):
    """A CSV file with at least these columns; InputError says what is wrong with it.

    Its index is that of the lines below the header; empty lines are left out.
    """
    names = dict.fromkeys(("structures", "structure"), str)  # 0001 is no number
    try:
        frame = pd.read_csv(path, dtype=names, skip_blank_lines=False)
    except OSError as error:
        raise InputError(f"{path}: expected a CSV file ({error.strerror or error})") from None
    except ValueError as error:  # pandas' parser errors and wrong encodings are ValueErrors
        raise InputError(f"{path}: not a readable CSV file ({error})") from None
    if any(";" in str(column) for column in frame):
        raise InputError(f"{path}: expected commas between the fields, found semicolons")
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first field for a name, then
        raise InputError(f"{path}: expected rows with as many fields as the header, found more")
    frame = frame.dropna(how="all")
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InputError(f"{path}: expected a column {listed([repr(c) for c in missing])}")
    return frame


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def data_set(data_dir):
    """Whose data a Database.csv holds, by its SHA-256."""
    digest = sha256(data_dir / "Database.csv")
    if digest == STUDY_SHA256:
        return "the study's (DFT)"
    own = Path(__file__).parent / "HEA_data" / "SHA256SUMS"
    if own.is_file() and f"{digest}  Database.csv" in own.read_text("utf-8"):
        return "this project's (labels by CHGNet, a universal potential, not DFT)"
    return "another set than the study's and this project's"


def targets_in(data_dir):
    """Names of the targets that a Database.csv has a column of. Raises InputError if it has none."""
    path = data_dir / "Database.csv"
    columns = set(read_table(path, [])) if data_dir.is_dir() else set()
    found = [name for name, target in TARGETS.items() if target.column in columns]
    if data_dir.is_dir() and not found:
        expected = " or ".join(repr(target.column) for target in TARGETS.values())
        raise InputError(f"{path}: expected a column {expected}")
    return found


def read_database(data_dir, targets, elements=None, excluded_pairs=None):
    """Database.csv: (frame with structure, phase, formula and the targets' columns; System).

    targets: names in TARGETS. elements, excluded_pairs: as in `alloy_system`. All fcc rows come before
    all bcc rows. Rows of phases other than fcc and bcc are left out, and a printed line says how many.
    A formula is that of a column `formula`, else what the structure's name begins with, else its POSCAR's.
    Raises InputError, with all faults of one kind together: no folder or file, a column missing,
    no phase, a target that is no number, a structure listed twice, no formula of the system's elements, a
    name that ends with another phase.
    """
    from pymatgen.core import Composition

    path, columns = data_dir / "Database.csv", [TARGETS[target].column for target in targets]
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: expected a folder with Database.csv and POSCARS/")
    frame = read_table(path, ["structures", "phase", *columns])
    frame = frame[[c for c in ("structures", "phase", *columns, "formula") if c in frame]]
    frame = frame.rename(columns={"structures": "structure"})
    if frame.empty:
        raise InputError(f"{path}: expected at least one row, found none")
    lines = pd.Series(frame.index + 2, frame.index)  # of the file, for messages; line 1 is the header

    def complain(bad, expected):
        if bad.any():
            rows = [
                f"{name} (line {line})" for name, line in zip(frame.structure[bad], lines[frame.index][bad])
            ]
            raise InputError(f"{path}: expected {expected}; found otherwise in {listed(rows)}")

    frame["structure"] = frame.structure.astype(str)
    complain(frame.phase.isna(), "a phase in column 'phase'")
    frame["phase"] = frame.phase.astype(str)
    other = frame.phase[~frame.phase.isin(PHASES)].value_counts()
    if len(other):
        found = listed([f"{number} of phase {phase!r}" for phase, number in other.items()])
        if other.sum() == len(frame):
            raise InputError(f"{path}: expected structures of phase {' or '.join(PHASES)}; found {found}")
        print(f"left out of {path}, neither {' nor '.join(PHASES)}: {found}", flush=True)
        frame = frame[frame.phase.isin(PHASES)].copy()
    for column in columns:
        values = pd.to_numeric(frame[column], errors="coerce").astype(float)
        complain(~(values.abs() < LARGEST), f"a number below {LARGEST:g} in column '{column}'")
        frame[column] = values
    plain = frame.structure.str.fullmatch(r"[A-Za-z0-9_.+() -]{1,200}")
    complain(~plain, "the plain name of a file in column 'structures'")
    complain(frame.structure.duplicated(keep=False), "each structure once in column 'structures'")
    if "formula" not in frame:
        frame["formula"] = [formula_of(name, data_dir / "POSCARS") for name in frame.structure]
    expected = "a name that begins with a formula, or one in a column 'formula' or in the POSCAR"
    complain(~frame.formula.map(is_formula).astype(bool), expected)
    named = frame.structure.map(phase_in_name)
    complain(named.notna() & (named != frame.phase), "a name that ends with its phase")
    system = alloy_system(frame.formula, elements, excluded_pairs)
    covered = frame.formula.map(lambda formula: allowed(system, map(str, Composition(formula))))
    complain(~covered.astype(bool), alloys_of(system))
    return pd.concat([frame[frame.phase == phase] for phase in PHASES], ignore_index=True), system


def poscar_path(folder, name):
    """The POSCAR of a structure, which may have the ending .vasp."""
    plain, ending = folder / name, folder / f"{name}.vasp"
    return ending if ending.is_file() and not plain.is_file() else plain


def phase_in_name(name):
    """fcc, bcc or hcp, in capitals too, which a structure's or a POSCAR's name ends with; else None."""
    found = re.search(r"(fcc|bcc|hcp)(\.vasp|\.poscar)?$", name.strip().lower())
    return found and found[1]


def formula_of(name, folder):
    """What a structure's name begins with; where that is an id, the formula of its POSCAR."""
    formula, path = name.split("_")[0], poscar_path(folder, name)
    if is_formula(formula) or not path.is_file():
        return formula
    from cells import read_poscar

    return read_poscar(path).composition.formula.replace(" ", "")


class Data(NamedTuple):
    """All alloys of a run; rows are the same in all parts."""

    target: str  # its name in TARGETS
    table: pd.DataFrame  # structure, phase in the name, formula, n_components, the target
    system: System
    phases: tuple  # whose columns are the last of the inputs, one of INPUT_PHASES
    inputs: np.ndarray  # (n, n_elements + 4 + n_phases), what a network sees
    targets: np.ndarray  # (n,), in the target's unit
    cells: str  # what the clusters are counted on: given or lattice; None: there are no POSCARs
    clusters: pd.DataFrame  # (n, n_columns), occupation probabilities, columns of all BLOCKS; or None
    shares: np.ndarray  # (n, 3) of atoms with fcc, bcc, hcp surroundings in the cell as given, or of the name
    source: str  # whose data it is, as `data_set` says
    sha256: dict  # of Database.csv, the tables and the lists of POSCARs

    def sets(self, row_sets):
        """[(inputs, targets)] of each set of rows; None for None."""
        return row_sets and [(self.inputs[rows], self.targets[rows]) for rows in row_sets]


def known_before(data, columns, rule="validation"):
    """Clusters of alloys to be predicted: occupation probabilities, (n, n_columns).

    All that may be read of them before the calculation: composition and named phase are in data.inputs,
    the arrangement of species is here. In a relaxed cell clusters tell what DFT made of it, so they
    have to be counted on the lattice; the paper's rule, `reference`, does not ask for that. Of training
    rows data.clusters and data.shares may be read as they are. Raises ValueError where cells are as given.
    """
    if data.cells == "given" and rule != "reference":
        raise ValueError("clusters of relaxed cells are not known before the calculation")
    return clusters_of(data)[columns].to_numpy()


def clusters_of(data):
    """data.clusters; raises InputError where there are none."""
    if data.clusters is None:
        raise InputError(
            "no POSCARS/, whose clusters CE, TL and DA need: expected a method that does without, "
            "Scratch, Scratch' (main.py) or the committee"
        )
    return data.clusters


def table_name(phase, cells):
    """File of an occupation table; the list of its POSCARs has the ending .sha256."""
    return f"{phase}_train{'_lattice' if cells == 'lattice' else ''}.csv"


def load_data(
    data_dir, table_dir, target, elements=None, excluded_pairs=None, cells="given", phase_input="named"
):
    """Data of a run from the occupation tables, fcc rows before bcc rows.

    target: a name in TARGETS. elements, excluded_pairs: as in `alloy_system`. cells: tables of clusters
    counted on cells as given or on the lattice. phase_input: a name in INPUT_PHASES. Where there is no
    folder POSCARS, there are no clusters, and the phase found is the one in the name. Raises InputError
    where a table is missing or does not match Database.csv or the POSCARs, and what `read_database` raises.
    """
    database, system = read_database(data_dir, [target], elements, excluded_pairs)
    source, sums = data_set(data_dir), {"Database.csv": sha256(data_dir / "Database.csv")}
    print(f"data: {source}", flush=True)
    column = TARGETS[target].column
    columns = cluster_columns(system, *BLOCKS)
    shares = [f"share {phase}" for phase in INPUT_PHASES["found"]]
    advice = "run structure_stat.py first, with the same data and table folders"
    advice += " and --cells lattice" if cells == "lattice" else ""
    tables = []
    if not (data_dir / "POSCARS").is_dir():
        print(f"no folder {data_dir / 'POSCARS'}: no clusters, and the phase of a cell is that in its name")
        cells, tables = (
            None,
            [database.join(pd.DataFrame(one_hot(database.phase, INPUT_PHASES["found"]), columns=shares))],
        )
    for phase in phases_of(database) if cells else ():
        rows = database[database.phase == phase].reset_index(drop=True)
        path = table_dir / table_name(phase, cells)
        if not path.is_file():
            raise InputError(f"{path}: no such table; {advice}")
        try:
            table = read_table(path, ["structure", column, *columns, *shares])
        except InputError as error:
            raise InputError(f"{error}; {advice}") from None
        same = ["structure", column]
        if not table[same].astype(str).equals(rows[same].astype(str)):
            raise InputError(f"{path}: does not match {data_dir / 'Database.csv'}; {advice}")
        numeric = table[[*columns, *shares]].apply(pd.to_numeric, errors="coerce").astype(float)
        if not np.isfinite(numeric.to_numpy()).all():
            raise InputError(f"{path}: expected numbers in all columns of clusters and shares; {advice}")
        tables.append(pd.concat([rows, numeric], axis=1))
        changed = changed_poscars(data_dir / "POSCARS", path.with_suffix(".sha256"))
        if changed:
            raise InputError(f"{path}: counted before {listed(changed)} changed; {advice}")
        sums |= {one.name: sha256(one) for one in (path, path.with_suffix(".sha256"))}
    table = pd.concat(tables, ignore_index=True)
    for element in system.elements:
        if element not in ELEMENT_TABLE:
            chi, radius, valence = element_properties([element])[0]
            print(
                f"{element}: not in ELEMENT_TABLE, so pymatgen's values: electronegativity {chi:g}, "
                f"{radius_of(element)[1]} radius {radius:g} angstrom, {valence:g} valence electrons"
            )
    fractions = mole_fractions(table.formula, system.elements)
    phases, found = INPUT_PHASES[phase_input], table[shares].to_numpy()
    inputs = network_inputs(
        fractions, one_hot(table.phase, phases) if phase_input == "named" else found, system.elements
    )
    clusters, targets = table[columns] if cells else None, table[column].to_numpy()
    table = table[database.columns].assign(n_components=(fractions > 0).sum(1))
    return Data(
        target, table, system, phases, inputs, targets, cells, clusters, found, source, sums
    )  # fmt: skip


def poscar_digest(path):
    """SHA-256 of a POSCAR, whichever line ends it has."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def poscar_list(folder, names):
    """The list of POSCARs beside a table, as sha256sum writes and checks it."""
    paths = [poscar_path(folder, name) for name in names]
    return "".join(f"{poscar_digest(path)}  {path.name}\n" for path in paths)


def changed_poscars(folder, path):
    """Names of the POSCARs in the folder that differ from the list; those that are not there do not."""
    if not path.is_file():
        raise InputError(f"{path}: no such list of POSCARs; run structure_stat.py again")
    lines = [line.partition("  ") for line in path.read_text("utf-8", errors="replace").splitlines()]
    there = [(digest, name) for digest, _, name in lines if (folder / name).is_file()]
    return [name for digest, name in there if poscar_digest(folder / name) != digest]


# ==== splits ======================================================================================


class Split(NamedTuple):
    """Row numbers of the training set and the test set, in the order they are trained on."""

    number: int  # or "all": no test set
    train: np.ndarray
    test: np.ndarray


def split_rows(table, alloys, percent, number, high_only=False):
    """Split of one number (its random_state; 0 is the study's), both phases together.

    number 'all': all alloys train, and none is left to test on.
    alloys: '4+5' tests on alloys of four and five elements alone, 'Total' on all.
    percent: share of the training set's four- and five-element alloys that is kept.
    high_only: train on alloys of four and five elements alone (Scratch').
    Raises InputError where a set would be empty.
    """
    from sklearn.model_selection import KFold, train_test_split

    train, test = [], []
    for phase in phases_of(table):
        rows = np.flatnonzero(table.phase == phase)
        high = table.n_components.to_numpy()[rows] >= 4
        seed = 0 if number == "all" else number
        try:
            if number == "all":
                kept, held, low = rows[high] if alloys == "4+5" else rows, rows[:0], rows[~high]
            elif alloys == "4+5":
                kept, held = train_test_split(rows[high], train_size=0.8, random_state=number)
                low = rows[~high]
            else:
                folds = KFold(5, shuffle=True, random_state=number).split(rows)
                kept, held = (rows[fold] for fold in list(folds)[1])
                low = kept[table.n_components.to_numpy()[kept] < 4]
            if percent < 100 or high_only:
                kept = kept[table.n_components.to_numpy()[kept] >= 4]
            if percent == 0:
                kept = kept[:0]
            elif percent < 100:
                kept = train_test_split(kept, train_size=percent / 100, random_state=seed)[0]
        except ValueError as error:
            raise InputError(f"split {number}, {phase}: too few alloys to split ({error})") from None
        with_low = not high_only and (alloys == "4+5" or percent < 100)
        train.append(np.concatenate([low, kept]) if with_low else kept)
        test.append(held)
    split = Split(number, np.concatenate(train), np.concatenate(test))
    if not len(split.train):
        raise InputError(f"split {number}: PERCENT {percent:g} leaves no training alloys")
    return split


def hold_out(table, split, share):
    """Training rows to choose the epoch on, in one part or more: shares of those of four and five elements.

    Stratified by phase; random_state is the split's number. Where the training set has none of
    them (PERCENT 0), a share of all its alloys. Of the split 'all': the parts of a cross-validation, as
    many as the share goes into one.
    """
    from sklearn.model_selection import StratifiedKFold, train_test_split

    rows = split.train[table.n_components.to_numpy()[split.train] >= 4]
    rows = rows if len(rows) else split.train
    phases = table.phase.to_numpy()[rows]
    try:
        if split.number == "all":
            folds = StratifiedKFold(max(round(1 / share), 2), shuffle=True, random_state=0)
            return [rows[held] for _, held in folds.split(rows, phases)]
        return [train_test_split(rows, test_size=share, stratify=phases, random_state=split.number)[1]]
    except ValueError as error:
        raise InputError(f"split {split.number}: too few alloys to hold some out ({error})") from None


# ==== the network =================================================================================

EMBEDDING = 58  # dimensions of an element's embedding; with the six other inputs: 64
HIDDEN = 64
ALIGNED = 16  # numbers of 4 bytes: the 64 bytes at whose multiples torch begins its tensors


class Linear(nn.Linear):
    """nn.Linear of many replicas: weight (n_replicas, n_out, n_in), bias (n_replicas, n_out)."""

    def forward(self, inputs):  # (n_replicas, n, n_in) -> (n_replicas, n, n_out)
        return product(inputs, self.weight.mT, self.bias)


class Network(nn.Module):
    """The paper's network: the mole fractions mix the elements' embeddings, three layers follow.

    Made, it is one network with torch's own initial weights; `side_by_side` gives its tensors a
    leading axis of replicas, and with it `forward` takes (n_replicas, n, n_inputs) and returns
    (n_replicas, n), all standardised.
    """

    def __init__(self, n_elements, n_inputs, unused_convolution=False):
        super().__init__()
        self.n_elements = n_elements
        self.embedding = nn.Embedding(n_elements, EMBEDDING)
        if unused_convolution:
            nn.Conv2d(1, 1, 5)  # drawn and dropped by the published Scratch: it moves what is drawn next
        self.layers = nn.Sequential(
            Linear(EMBEDDING + n_inputs - n_elements, HIDDEN), nn.ReLU(),
            Linear(HIDDEN, HIDDEN), nn.ReLU(),
            Linear(HIDDEN, 1),
        )  # fmt: skip

    def forward(self, inputs):
        fractions, others = inputs[..., : self.n_elements], inputs[..., self.n_elements :]
        embedded = product(fractions, self.embedding.weight)
        return self.layers(torch.cat([embedded, others], dim=2))[..., 0]


def product(inputs, matrix, bias=None):
    """inputs @ matrix + bias of each replica, rounded as for that replica alone, to the last bit.

    inputs: (n_replicas, n, n_in). matrix: (n_replicas, n_in, n_out). bias: (n_replicas, n_out).
    A batched product rounds as single ones do, but where these have one row or one column: torch
    takes another path there, so they are done one by one.
    """
    if inputs.is_cpu and (inputs.shape[1] == 1 or matrix.shape[2] == 1):
        if bias is None:
            return torch.stack([one @ other for one, other in zip(inputs, matrix)])
        return torch.stack([torch.addmm(*one) for one in zip(bias, inputs, matrix)])
    return torch.bmm(inputs, matrix) if bias is None else torch.baddbmm(bias[:, None], inputs, matrix)


def side_by_side(seeds, make):
    """Networks of all seeds as one, and the generators that their batches are drawn from.

    make: function that makes a network with weights of its own. Returns (network with a leading axis of
    replicas in every tensor, generators), each generator in the state that making the network left.
    """
    networks, generators = [], []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.default_generator.manual_seed(seed)
            networks.append(make())
            generators.append(torch.Generator())
            generators[-1].set_state(torch.get_rng_state())
    for parameter, *of_all in zip(networks[0].parameters(), *(one.parameters() for one in networks)):
        parameter.data = torch.stack([one.data for one in of_all])
    return networks[0], generators


def draw(data, seeds, unused_convolution=False):
    """The paper's networks for all seeds, untrained, and their generators: as `side_by_side`."""
    n_elements, n_inputs = len(data.system.elements), data.inputs.shape[1]
    return side_by_side(seeds, lambda: Network(n_elements, n_inputs, unused_convolution))


# ==== training ====================================================================================


class Adam:
    """torch.optim.Adam with its defaults, by torch's own function, for one parameter.

    The class loads torch's compiler, which takes a second, and does bookkeeping that takes longer than the
    arithmetic of networks this small. Any class of torch.optim may stand in its place: `train` takes a
    function from a list of parameters to an optimiser. Fused Adam rounds otherwise at the ends of tensors.
    """

    def __init__(self, parameters, rate):
        (self.parameter,), self.rate = parameters, rate
        zeros = torch.zeros_like(self.parameter)
        self.state = {self.parameter: {"mean": zeros, "square": zeros.clone(), "step": torch.zeros(())}}

    @torch.no_grad()
    def step(self):
        mean, square, step = ([value] for value in self.state[self.parameter].values())
        adam(
            [self.parameter], [self.parameter.grad], mean, square, [], step, foreach=False, amsgrad=False,
            maximize=False, lr=self.rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0,
        )  # fmt: skip


class SGD:
    """torch.optim.SGD with its defaults, likewise."""

    def __init__(self, parameters, rate):
        (self.parameter,), self.rate = parameters, rate
        self.state = {self.parameter: {}}

    @torch.no_grad()
    def step(self):
        self.parameter.add_(self.parameter.grad, alpha=-self.rate)


def epoch_order(generator, n_rows):
    """Order of the rows in one epoch, drawn as DataLoader(shuffle=True) draws it.

    The loader takes two numbers from its generator: the base seed of worker processes, unused
    here, and the seed of the sampler, whose own generator makes the permutation.
    """
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    seed = torch.empty((), dtype=torch.int64).random_(generator=generator).item()
    return torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))


def train(
    network, generators, sets, set_of, optimiser, epochs, batch_size, watch=None, patience=None, device="cpu"
):
    """Train all replicas of a network side by side by mean squared error, each as it would be alone.

    network, generators: from `side_by_side`; parameters that require no gradient stay as they are.
    sets: standardised training sets [(inputs (n, n_inputs), targets (n,)), ...]; a third array, if there
    is one, weighs the rows.
    set_of: number of the set that each replica learns, (n_replicas,).
    optimiser: function from a list of parameters to a torch optimiser.
    watch: sets as `sets`; the state with the least loss on them is kept, from the second epoch on,
    and a replica stops when `patience` epochs brought no better one. epochs: the most there may be.
    Without watch: epochs is the epoch whose state is kept, one number or one per replica.
    Returns (kept epochs (n_replicas,), losses), the kept states being in the network; losses are rows
    (replica, epoch, loss in training, loss on the watched set).
    """
    epochs, kept_epochs, losses = np.broadcast_to(epochs, len(set_of)), np.zeros(len(set_of), int), []
    lengths = [(len(sets[s][1]), watch and len(watch[s][1])) for s in set_of]
    for length in dict.fromkeys(lengths):  # what is equally long has equal batches and goes together
        group = np.flatnonzero([one == length for one in lengths])
        part = some_replicas(network, group).to(device)
        rows, watched = (
            chosen
            and [torch.as_tensor(np.array(a), dtype=torch.float32, device=device) for a in zip(*chosen)]
            for chosen in ([sets[set_of[i]] for i in group], watch and [watch[set_of[i]] for i in group])
        )
        kept_epochs[group], history = train_alike(
            part,
            [generators[i] for i in group],
            rows,
            optimiser,
            epochs[group],
            batch_size,
            watched,
            patience,
        )
        for parameter, trained in zip(network.parameters(), part.parameters()):
            parameter.data[group] = trained.data.cpu()
        losses += [(group[replica], *rest) for replica, *rest in history]
    if watch and not kept_epochs.all():
        raise InputError(
            "the watched loss was no number in any epoch from the second: expected a LEARNING_RATE less"
        )
    # Standardised, so to predict the mean costs 1.
    by_network = [one.to_numpy() for _, one in pd.DataFrame(losses).groupby(0)[2]] if losses else []
    stuck = sum(min(one) > 0.999 * (min(1, one[0]) if len(one) > 1 else 1) for one in by_network)
    if stuck:
        print(
            f"{stuck} of {len(set_of)} networks learned nothing: no epoch's loss in training was below the "
            "first's and below that of predicting the mean; expected another LEARNING_RATE or more EPOCHS"
        )
    return kept_epochs, losses


def some_replicas(network, which):
    """A copy of some replicas of a network; which: their numbers, or whether each is wanted."""
    part = copy.deepcopy(network)
    for parameter in part.parameters():
        parameter.data = parameter.data[which]
    return part


def learned_by(network):
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def as_one(tensors):
    """Tensors (n_replicas, ...) in one, (n_replicas, n_numbers), zeros between them.

    Each begins at a multiple of ALIGNED, as a tensor alone does in memory: on some processors a product
    rounds otherwise where a matrix begins elsewhere.
    """
    flat = [tensor.flatten(1) for tensor in tensors]
    return torch.cat([pad(one, (0, gap)) if (gap := -one.shape[1] % ALIGNED) else one for one in flat], dim=1)


def take_views(parameters, numbers):
    """Make the parameters views of one tensor that `as_one` made."""
    start = 0
    for parameter in parameters:
        size = parameter[0].numel()
        part = numbers[:, start : start + size]
        parameter.data = part.view(len(part), *parameter.shape[1:])
        start += size + -size % ALIGNED


def train_alike(network, generators, rows, optimiser, epochs, batch_size, watch, patience):
    """`train` for replicas with equally long sets; rows, watch: their arrays, (n_replicas, n, ...)."""
    # One leaf holds all that is learned, so that the optimiser has one tensor to walk, and the network's
    # parameters are views of it.
    learned = learned_by(network)
    leaf = nn.Parameter(as_one([parameter.detach() for parameter in learned]))
    take_views(learned, leaf.data)
    learner, stepper, kept = network, optimiser([leaf]), leaf.data.clone()
    kept_epochs = np.zeros(len(kept), int) if watch is not None else np.array(epochs)
    least, history = np.full(len(kept), np.inf), []
    held = np.arange(len(kept))  # number of each replica that the tensors hold
    runs = np.ones(len(held), bool)  # False: stopped, and still in the tensors
    bar = tqdm(range(1, epochs.max() + 1), desc="training", unit="epoch", leave=False)
    for epoch in bar:
        order = torch.stack([epoch_order(generators[i], rows[0].shape[1]) for i in held]).to(leaf.device)
        shuffled = [part[torch.arange(len(held))[:, None], order].split(batch_size, dim=1) for part in rows]
        total = 0
        for inputs, targets, *weights in zip(*shuffled):
            squared = mse_loss(learner(inputs), targets, reduction="none")  # (n_replicas, batch_size)
            loss = (weights[0] * squared if weights else squared).mean(1)
            gradients = torch.autograd.grad(loss.sum(), learned)
            leaf.grad = as_one(gradients)
            stepper.step()
            total = total + loss.detach()
        in_training, watched = (total / len(shuffled[0])).cpu().numpy(), np.full(len(held), np.nan)
        if not np.isfinite(in_training[runs]).all():
            raise InputError(
                f"the loss grew beyond all numbers in epoch {epoch}: expected a LEARNING_RATE less"
            )

        if watch is None:
            keep, stop = epochs[held] == epoch, epochs[held] <= epoch
        else:
            with torch.no_grad():
                watched = mse_loss(learner(watch[0]), watch[1], reduction="none").mean(1).cpu().numpy()
            keep = runs & (watched < least[held]) & (epoch > 1)
            least[held[keep]], kept_epochs[held[keep]] = watched[keep], epoch
            stop = epoch - np.maximum(kept_epochs[held], 1) >= patience
        history += [(held[i], epoch, in_training[i], watched[i]) for i in np.flatnonzero(runs)]
        kept[held[keep]] = leaf.data[keep]
        runs &= ~stop
        if not runs.any():
            break
        if runs.mean() < 0.75:  # worth the copying: take the stopped replicas out of the tensors
            held, rows, watch = held[runs], [a[runs] for a in rows], watch and [a[runs] for a in watch]
            for name, value in stepper.state[leaf].items():
                if torch.is_tensor(value) and value.ndim:
                    stepper.state[leaf][name] = value[runs]
            leaf.data, learner = leaf.data[runs], some_replicas(learner, runs)
            learned = learned_by(learner)
            take_views(learned, leaf.data)
            runs = runs[runs]
    bar.close()
    take_views(learned_by(network), kept)
    return kept_epochs, history


def torch_device(name):
    """torch's device for DEVICE; auto: CUDA, else MPS, else CPU."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_there in there.items() if is_there)
    if not there[name]:
        raise InputError(f"DEVICE: expected auto or cpu, this machine has no {name} for torch")
    return torch.device(name)


class Scalers(NamedTuple):
    """StandardScalers of inputs and target."""

    inputs: object
    target: object

    @classmethod
    def fit(cls, inputs, targets):
        """Fit to inputs (n, n_inputs) and targets (n,)."""
        from sklearn.preprocessing import StandardScaler

        return cls(StandardScaler().fit(inputs), StandardScaler().fit(targets[:, None]))

    def transform(self, inputs, targets):
        """The same, standardised."""
        return self.inputs.transform(inputs), self.target.transform(targets[:, None])[:, 0]


class Trained(NamedTuple):
    """Trained networks of all splits and seeds, those of the first split first."""

    network: nn.Module  # its tensors have a leading axis of replicas
    scalers: list  # of Scalers, one per split
    epochs: np.ndarray  # (n_replicas,), whose state was kept
    losses: list  # rows (replica, epoch, loss in training, loss on the watched set)


def fit_networks(network, generators, sets, watch, optimiser, epochs, batch_size, patience, device):
    """`train` on sets in their own units, one per split, standardised by scalers fitted to each: Trained.

    Replicas: for each split all seeds, in this order. watch: sets, one per split, or None.
    """
    scalers = [Scalers.fit(*one) for one in sets]
    sets = [one.transform(*rows) for one, rows in zip(scalers, sets)]
    watch = watch and [one.transform(*rows) for one, rows in zip(scalers, watch)]
    set_of = np.repeat(np.arange(len(sets)), len(generators) // len(sets))
    trained = train(
        network,
        generators,
        sets,
        set_of,
        optimiser,
        epochs,
        batch_size,
        watch,
        patience,
        torch_device(device),
    )
    return Trained(network, scalers, *trained)


def predict(trained, inputs):
    """Predictions of all networks for the same rows, in the target's units: (n_splits, n_seeds, n)."""
    n_splits, n_seeds = len(trained.scalers), len(trained.epochs) // len(trained.scalers)
    scaled = np.repeat([one.inputs.transform(inputs) for one in trained.scalers], n_seeds, axis=0)
    with torch.no_grad():
        out = trained.network(torch.as_tensor(scaled, dtype=torch.float32)).double().numpy()
    out = out.reshape(n_splits, n_seeds, len(inputs))
    return np.array([one.target.inverse_transform(part) for one, part in zip(trained.scalers, out)])


def state_of(trained):
    """Everything of Trained that predictions need, as tensors, numbers and lists."""
    scalers = [[(torch.tensor(s.mean_), torch.tensor(s.scale_)) for s in one] for one in trained.scalers]
    return {"weights": trained.network.state_dict(), "scalers": scalers}


def restored(state):
    """Trained from `state_of`. Raises what torch does, or LookupError, if it is no such state."""
    from sklearn.preprocessing import StandardScaler

    def scaler(mean, scale):
        made = StandardScaler()
        made.mean_, made.scale_, made.n_features_in_ = mean.numpy(), scale.numpy(), len(mean)
        return made

    scalers = [Scalers(*(scaler(*part) for part in one)) for one in state["scalers"]]
    n_replicas, n_elements = state["weights"]["embedding.weight"].shape[:2]
    network = Network(n_elements, scalers[0].inputs.n_features_in_)
    for name, parameter in network.named_parameters():
        parameter.data = state["weights"][name]
    return Trained(network, scalers, np.zeros(n_replicas), [])


def predictor(state, system, phases):
    """Function (mole fractions (n, n_elements), names of phases (n,)) -> ((n_networks, n), {}).

    state: from `state_of`. phases: one of INPUT_PHASES. The function takes clusters too, and reads none.
    """
    trained = restored(state)

    def predict_alloys(fractions, names, clusters=None):
        inputs = network_inputs(fractions, one_hot(names, phases), system.elements)
        return predict(trained, inputs).reshape(-1, len(inputs)), {}

    return predict_alloys


# ==== the choice of the epoch =====================================================================


def fit_selected(fit, table, splits, select_by, epochs, share, refit):
    """Networks of all splits, the epoch chosen as select_by says: Trained.

    fit: function (training rows of each split, watched rows of each split or None, epochs) -> Trained.
    'reference' watches the test set, as published; with 'validation' fit never sees a row of it, but a
    held-out `share` of the training set, and with `refit` then learns the whole of that for as many epochs.
    The split 'all' has no test set: its epoch is the mean of a cross-validation, and it is always refitted.
    """
    whole = [split.train for split in splits]
    if select_by == "reference":
        if not all(len(split.test) for split in splits):
            raise InputError(
                "SPLITS all: expected SELECT_BY validation, for there is no test set to choose on"
            )
        return fit(whole, [split.test for split in splits], epochs)
    held = [(rows, out) for rows, one in zip(whole, splits) for out in hold_out(table, one, share)]
    trained = fit([rows[~np.isin(rows, out)] for rows, out in held], [out for _, out in held], epochs)
    n_parts = len(held) // len(splits)  # more than one of the split 'all' alone
    if not refit and n_parts == 1:
        return trained
    kept = trained.epochs.reshape(len(splits), n_parts, -1).mean(1)
    return fit(whole, None, np.rint(kept).astype(int).ravel())
