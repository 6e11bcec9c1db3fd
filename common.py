"""What the scripts share: alloys, data and splits, the network and its training.

Nothing to run here. From top to bottom: what can be predicted; alloys and their descriptors; the
database and the occupation tables; splits; the network; training; the choice of the epoch.
"""

import copy
import hashlib
import re
import warnings
from functools import cache
from itertools import combinations, combinations_with_replacement
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.linalg  # noqa: F401 (its BLAS is another than numpy's, and is held to one thread only if loaded)
import torch
from pymatgen.core import Element
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn.functional import mse_loss, pad
from torch.optim.adam import adam
from tqdm import tqdm

from settings import InputError, listed

# Sums are rounded otherwise on another number of threads, whatever OMP_NUM_THREADS says; and matrices so
# small gain nothing from more than one. Many splits go side by side in processes instead.
torch.set_num_threads(1)
threadpool_limits(1)
say_once = cache(print)  # a line that holds for many networks or alloys is printed for the first of them


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
PHASES = ("fcc", "bcc")  # lattices that alloys are named after; also the order of their one-hot columns
# What a network is told of the phase: the lattice in the name, as published, or what the cell became.
INPUT_PHASES = {"named": PHASES, "found": (*PHASES, "hcp")}
LARGEST = 1e6  # of the targets; far beyond any alloy, and far from where sums of squares overflow
FAR, LARGEST_ENERGY = 10, 5  # robust deviations, eV/atom of formation: labels beyond are said
GAS_CONSTANT = 8.3145  # J/(mol K)

# Pauling electronegativity, metallic radius (angstrom), valence electrons: the paper's table.
ELEMENT_TABLE = {
    "Fe": (1.83, 1.277, 8), "Ni": (1.91, 1.246, 10), "Co": (1.88, 1.250, 9),
    "Cr": (1.66, 1.285, 6), "Mn": (1.55, 1.292, 7), "Pd": (2.20, 1.376, 10),
}  # fmt: skip
# Blocks of the occupation tables: name in CLUSTERS -> (prefix of the columns, atoms in the cluster).
BLOCKS = {
    "points": ("", 1),
    "pairs": ("pair ", 2),
    "triplets": ("triplet ", 3),
    "quadruplets": ("quadruplet ", 4),
    "second_pairs": ("second pair ", 2),
}
SOURCES = {  # SHA-256 of a Database.csv -> whose labels these are
    "94704eb693bba516de0cf7eb8a2c9d0423b2fb0f7a639000ee112d4e223f1081": "the study's, DFT",
    "86cfd5addc26cdb8ed061555b8a8472fc8dcd8f41bdc8458663eedd2256bb494": "CHGNet, not DFT",
}


# ==== alloys and their descriptors ================================================================


def composition(formula):
    """Mole fractions of a formula, {element: fraction}, in its order.

    A formula is element symbols, each once, with amounts, and nothing else; blanks do not count. What stands
    in parentheses has to sum to one, as in (Fe0.5Ni0.5)50Cr50. Raises ValueError that says what is wrong.
    """
    number = r"(\d+\.?\d*|\.\d+)?"

    def amounts(text):
        pairs = re.findall(rf"([A-Z][a-z]?){number}", text)
        found = {element: float(amount or 1) for element, amount in pairs}
        known = all(e in ELEMENT_TABLE or (Element.is_valid_symbol(e) and e not in "DT") for e in found)
        whole = "".join(map("".join, pairs)) == text and not re.search(r"[A-Za-z]0\d", text)  # S001 is a name
        if not (known and whole and len(found) == len(pairs) and 0 < sum(found.values()) < np.inf):
            raise ValueError(f"'{formula}' is no formula (each element once, as Al0.25CoCrFeNi)")
        return found

    def opened(match):
        inside = amounts(match[1])
        if abs(sum(inside.values()) - 1) > 1e-3:
            advice = "write each element with its own amount, as Fe25Ni25Cr50"
            raise ValueError(f"'{formula}': what is in parentheses does not sum to one; {advice}")
        return "".join(f"{element}{x * float(match[2] or 1):.12f}" for element, x in inside.items())

    found = amounts(re.sub(rf"\(([^()]*)\){number}", opened, "".join(formula.split())))
    return {element: amount / sum(found.values()) for element, amount in found.items() if amount}


def is_formula(text):
    try:
        return bool(composition(text))
    except ValueError:
        return False


def mole_fractions(formulas, elements):
    """Formulas -> mole fractions, (n_formulas, n_elements)."""
    found = [composition(formula) for formula in formulas]
    return np.array([[one.get(e, 0) for e in elements] for one in found], float).reshape(-1, len(elements))


class System(NamedTuple):
    """The elements of a data set in the order of all columns, and the pairs that no alloy holds."""

    elements: tuple
    excluded: tuple  # of frozensets of two elements


def alloy_system(formulas, elements=None, excluded_pairs=None):
    """System of some alloys; what is None follows from the formulas."""
    sets = [composition(formula) for formula in formulas]
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


def cluster_columns(system, *blocks):
    """Names of the blocks' columns, such as 'triplet Fe-Fe-Ni': multisets of elements in order."""
    columns = []
    for prefix, size in (BLOCKS[block] for block in blocks):
        multisets = combinations_with_replacement(system.elements, size)
        columns += [prefix + "-".join(multiset) for multiset in multisets if allowed(system, multiset)]
    return columns


def element_properties(elements):
    """Electronegativity (Pauling), radius (angstrom), valence electrons: (n_elements, 3).

    Of elements that ELEMENT_TABLE lacks: pymatgen's, with the metallic radius where there is one (the atomic
    one, Slater's, is another scale), and said. Raises InputError where that has none either.
    """
    rows = []
    for element in elements:
        row = ELEMENT_TABLE.get(element)
        if row is None:
            known = Element(element)
            # Electrons outside the noble-gas core; a filled d shell under a p shell is not counted.
            valence = known.group - 10 if known.block == "p" else known.group
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns where it has no value
                row = float(known.X), float(known.metallic_radius or known.atomic_radius or np.nan), valence
            if not np.isfinite(row).all():
                raise InputError(f"no electronegativity or radius is known of {element}")
            say_once(f"{element}: not in ELEMENT_TABLE, so pymatgen's electronegativity {row[0]:g}, radius "
                     f"{row[1]:g} angstrom, {valence} valence electrons")  # fmt: skip
        rows.append(row)
    return np.array(rows, float)


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


def network_inputs(fractions, phase_fractions, elements):
    """Descriptors and the columns of the phase: 12 columns for the paper's elements and named phases.

    phase_fractions: of INPUT_PHASES, (n, n_phases), `one_hot` of names or what cells have of each.
    """
    return np.hstack([descriptors(fractions, elements), phase_fractions])


# ==== the database and the occupation tables ======================================================


def phases_of(table):
    """The phases that the table has rows of, fcc first."""
    return [phase for phase in PHASES if (table.phase == phase).any()]


def read_table(path, columns=(), dtype=None):
    """A CSV file with at least these columns; its index is that of the lines below the header.

    Commas or, as Excel writes where decimals have commas, semicolons. Blanks around heads are cut, empty
    lines left out, names of structures kept as they are (0001 is no number). InputError says what is wrong.
    """
    names = {"structures": str, "structure": str, "formula": str} if dtype is None else dtype
    try:
        with path.open(encoding="utf-8-sig") as file:
            style = {"sep": ";", "decimal": ","} if ";" in file.readline() else {}
        style |= {"encoding": "utf-8-sig", "skip_blank_lines": False, "keep_default_na": dtype is None}
        frame = pd.read_csv(path, dtype=names, **style)
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected UTF-8; in Excel save it as 'CSV UTF-8'") from None
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path}: no CSV file ({getattr(error, 'strerror', None) or error})") from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first field for a name, then
        raise InputError(f"{path}: expected rows with as many fields as the header, found more")
    frame = frame.rename(columns=lambda head: str(head).strip())
    if twice := [*frame.columns[frame.columns.duplicated()]]:
        raise InputError(f"{path}: expected each head once; twice there is {listed(twice)}")
    frame = frame[(frame.notna() & (frame != "")).any(axis=1)]
    missing = [repr(column) for column in columns if column not in frame]
    if missing:
        raise InputError(f"{path}: expected a column {listed(missing)}; there are {listed([*frame], 20)}")
    return frame


def text_digest(path):
    """SHA-256 of a text file, whichever line ends it has."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def data_name(data_dir):
    """The data in titles and tables: its folder, and whose labels these are where its checksum is known."""
    whose = SOURCES.get(text_digest(data_dir / "Database.csv"))
    return data_dir.resolve().name + (f" ({whose})" if whose else "")


def lattice_column(frame):
    """Head of the column that says the lattice: phase, lattice or structure, where cells name lattices."""
    for head in frame:
        words = frame[head].astype(str).str.strip().str.lower()
        if head.lower() in ("phase", "lattice", "structure") and words.isin(INPUT_PHASES["found"]).any():
            return head
    return None


def lattice_in_name(name):
    """fcc, bcc or hcp, in any case, which a structure's or a POSCAR's name ends with; else None."""
    found = re.search(r"(fcc|bcc|hcp)(\.vasp|\.poscar)?$", name.strip().lower())
    return found and found[1]


def poscar_path(folder, name):
    """The POSCAR of a structure: name, name.vasp, or CONTCAR or POSCAR in a folder of that name."""
    places = (name, f"{name}.vasp", f"{name}/CONTCAR", f"{name}/POSCAR")
    return next((folder / place for place in places if (folder / place).is_file()), folder / name)


def formula_of(name, given, folder):
    """The formula of a structure: the one given, else what its name begins with, else its POSCAR's.

    given: of the column formula; blank or nan: none. Raises InputError where name and POSCAR disagree.
    """
    if isinstance(given, str) and given.strip():
        return given
    formula, path = name.split("_")[0], poscar_path(folder, name)
    from lattice import read_poscar

    named = composition(formula) if is_formula(formula) else None
    try:
        held = read_poscar(path).composition.get_el_amt_dict() if path.is_file() else {}
    except InputError:
        held = {}
        if named is None:
            raise
    found = "".join(f"{element}{n:g}" for element, n in held.items())
    if held and named and any(abs(named.get(e, 0) - n / sum(held.values())) > 1e-3 for e, n in held.items()):
        raise InputError(
            f"{name}: the name says {formula}, the POSCAR {found}; settle it by a column formula"
        )
    return formula if named or not held else found


def read_database(data_dir, targets=None, elements=None, excluded_pairs=None):
    """Database.csv: (frame of structure, phase, formula and the targets' columns, which may be nan; System).

    targets: names in TARGETS; None: those that the file has. elements, excluded_pairs: as in
    `alloy_system`. All fcc rows come before all bcc rows. Rows of other phases are left out, and a printed
    line says how many. The formula: see `formula_of`. Raises InputError, with all faults of one kind
    together: no folder or file, a column missing, a target that is no number, a structure listed twice, no
    formula of the system's elements, a name that ends with another phase.
    """
    path, columns = data_dir / "Database.csv", [TARGETS[target].column for target in targets or TARGETS]
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: expected a folder with Database.csv and POSCARS/")
    frame = read_table(path, ["structures", *(columns if targets else [])])
    columns = [column for column in columns if column in frame]
    if not columns:
        raise InputError(f"{path}: expected {' or '.join(TARGETS)}; the columns are {listed([*frame], 20)}")
    if frame.empty:
        raise InputError(f"{path}: expected at least one row, found none")
    lines = frame.index + 2  # of the file, for messages; line 1 is the header

    def complain(bad, expected):
        if any(bad):
            rows = [f"{name} (line {line})" for name, line, is_bad in zip(names, lines, bad) if is_bad]
            raise InputError(f"{path}: expected {expected}; found otherwise in {listed(rows)}")

    names, head = frame.structures.fillna("").str.strip(), lattice_column(frame)
    in_names = names.map(lattice_in_name)
    phases = in_names if head is None else frame[head].fillna("").astype(str).str.strip().str.lower()
    known = phases.isin(PHASES)
    if not known.all():
        counts = phases[~known].fillna("").value_counts().items()
        other = listed([f"{number} of phase {phase!r}" for phase, number in counts])
        if not known.any():
            raise InputError(f"{path}: expected structures of phase {' or '.join(PHASES)}; found {other}")
        print(f"left out of {path}, neither {' nor '.join(PHASES)}: {other}", flush=True)
    frame, names, lines, phases = frame[known], names[known], lines[known], phases[known]
    values = {c: pd.to_numeric(frame[c], errors="coerce").astype(float) for c in columns}
    for c, numbers in values.items():
        complain(frame[c].notna() & ~(numbers.abs() < LARGEST), f"a number below {LARGEST:g} in '{c}'")
    complain(~names.str.fullmatch(r"[A-Za-z0-9_.+() -]{1,200}"), "the plain name of a file in 'structures'")
    complain(names.duplicated(keep=False), "each structure once in 'structures'")
    complain(in_names[known].notna() & (in_names[known] != phases), "a name that ends with its phase")
    given = frame["formula"] if "formula" in frame else pd.Series("", frame.index)
    formulas, faults = [], []
    for row in zip(names, given):
        try:
            formulas.append(formula_of(*row, data_dir / "POSCARS"))
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError(f"{path}: {listed(faults)}")
    expected = "a formula, each element once with its own amount, such as Al0.25CoCrFeNi"
    complain([not is_formula(one) for one in formulas], f"{expected}, in a column, the name or the POSCAR")
    system = alloy_system(formulas, elements, excluded_pairs)
    alloys = ", no ".join([", ".join(system.elements), *(" with ".join(sorted(p)) for p in system.excluded)])
    alloys += " (else set EXCLUDED_PAIRS = None)" if system.excluded else ""
    complain([not allowed(system, composition(one)) for one in formulas], f"alloys of {alloys}")
    table = pd.DataFrame({"structure": names, "phase": phases, **values, "formula": formulas})
    return pd.concat([table[table.phase == phase] for phase in PHASES], ignore_index=True), system


class Data(NamedTuple):
    """All alloys of a run that have a label; rows are the same in all parts."""

    target: str  # its name in TARGETS
    table: pd.DataFrame  # structure, phase in the name, formula, n_components, the target
    system: System
    phases: tuple  # whose columns are the last of the inputs, one of INPUT_PHASES
    inputs: np.ndarray  # (n, n_elements + 4 + n_phases), what a network sees
    targets: np.ndarray  # (n,), in the target's unit
    cells: str  # what the clusters are counted on: given or lattice; None: there are no clusters
    clusters: pd.DataFrame  # (n, n_columns), occupation probabilities, columns of all BLOCKS; or None
    phase_fractions: np.ndarray  # (n, 3) of atoms in fcc, bcc, hcp in the cell as given, or of the name
    source: str  # the data in titles, as `data_name` says
    sha256: dict  # of Database.csv, and of the tables and the lists of POSCARs that were read

    def sets(self, row_sets):
        """[(inputs, targets)] of each set of rows; None for None."""
        return row_sets and [(self.inputs[rows], self.targets[rows]) for rows in row_sets]


def known_before(data, columns, rule="validation"):
    """Clusters of alloys to be predicted: occupation probabilities, (n, n_columns).

    All that may be read of them before the calculation: composition and named phase are in data.inputs,
    the arrangement of species is here. In a relaxed cell clusters tell what DFT made of it, so they
    have to be counted on the lattice; the paper's rule, `reference`, does not ask for that. Of training
    rows data.clusters and data.phase_fractions may be read as they are. Raises ValueError where cells are
    as given.
    """
    if data.cells == "given" and rule != "reference":
        raise ValueError("clusters of relaxed cells are not known before the calculation")
    return clusters_of(data)[columns].to_numpy()


def clusters_of(data):
    """data.clusters; raises InputError where there are none."""
    if data.clusters is None:
        raise InputError("no folder POSCARS, whose clusters CE, TL and DA need; Scratch (main.py) needs none")
    return data.clusters


def table_name(phase, cells):
    """File of an occupation table; the list of its POSCARs has the ending .sha256."""
    return f"{phase}_train{'_lattice' if cells == 'lattice' else ''}.csv"


def poscar_list(folder, names):
    """The list of POSCARs beside a table, as sha256sum writes it."""
    paths = [poscar_path(folder, name) for name in names]
    return "".join(f"{text_digest(path)}  {path.relative_to(folder)}\n" for path in paths if path.is_file())


def read_tables(cfg, database, system, cells):
    """The occupation tables of a database: (frame of clusters and phase fractions, checksums).

    Raises InputError where one is missing, or made from another database or other POSCARs than there are.
    """
    columns = cluster_columns(system, *BLOCKS) + [f"share {phase}" for phase in INPUT_PHASES["found"]]
    same, advice = ["structure", TARGETS[cfg.TARGET].column], "run structure_stat.py on the same data"
    tables, sums = [], {}
    for phase in phases_of(database):
        rows = database[database.phase == phase].reset_index(drop=True)
        path = cfg.TABLE_DIR / table_name(phase, cells)
        if not path.is_file():
            raise InputError(f"{path}: no such table; {advice}")
        table, digests = read_table(path), path.with_suffix(".sha256")
        numbers = table.reindex(columns=columns).apply(pd.to_numeric, errors="coerce").astype(float)
        of_database = table.reindex(columns=same).astype(str).equals(rows[same].astype(str))
        listing = digests.read_text("utf-8") if digests.is_file() else ""
        of_poscars = listing == poscar_list(cfg.DATA_DIR / "POSCARS", rows.structure)
        if not (of_database and of_poscars and np.isfinite(numbers.to_numpy()).all()):
            other = "POSCARS" if of_database and not of_poscars else "Database.csv"
            raise InputError(f"{path}: not of {cfg.DATA_DIR / other} as it is now; {advice}")
        tables.append(numbers)
        sums |= {one.name: text_digest(one) for one in (path, digests)}
    return pd.concat(tables, ignore_index=True), sums


def load_data(cfg, cells=None):
    """Data of a run, fcc rows before bcc rows; those without a label are left out, and said.

    cells: what clusters are counted on, given or lattice; None: no tables are read, unless PHASE_INPUT is
    found. Without tables, and without a folder POSCARS, the phase of a cell is that of its name. Raises what
    `read_database` and `read_tables` raise.
    """
    database, system = read_database(cfg.DATA_DIR, [cfg.TARGET], cfg.ELEMENTS, cfg.EXCLUDED_PAIRS)
    source, sums = data_name(cfg.DATA_DIR), {"Database.csv": text_digest(cfg.DATA_DIR / "Database.csv")}
    print(f"data: {source}", flush=True)
    phases, column = INPUT_PHASES[getattr(cfg, "PHASE_INPUT", "named")], TARGETS[cfg.TARGET].column
    clusters, phase_fractions = None, one_hot(database.phase, INPUT_PHASES["found"])
    if cells or phases != PHASES:
        if (cfg.DATA_DIR / "POSCARS").is_dir():
            clusters, more = read_tables(cfg, database, system, cells or "given")
            phase_fractions, sums = clusters.iloc[:, -3:].to_numpy(), sums | more
        else:
            print(f"no folder {cfg.DATA_DIR / 'POSCARS'}: no clusters; a cell's phase is that of its name")
    known = database[column].notna().to_numpy()
    if not known.any():
        raise InputError(f"{cfg.DATA_DIR / 'Database.csv'}: no value in column '{column}'")
    if not known.all():
        print(f"left out, no {cfg.TARGET}: {(~known).sum()} rows, {listed([*database.structure[~known]])}")
    table, phase_fractions = database[known].reset_index(drop=True), phase_fractions[known]
    clusters = None if clusters is None else clusters.iloc[known, :-3].reset_index(drop=True)
    values = table[column]
    off = (values - values.median()).abs()
    far = off > FAR * max(1.4826 * off.median(), 1e-12)
    far |= (cfg.TARGET == "Ef") & (values.abs() > LARGEST_ENERGY)
    if far.any():
        strange = listed([f"{name} ({value:g})" for name, value in zip(table.structure[far], values[far])])
        print(f"far from the others, a wrong unit or digit? {cfg.TARGET} of {strange}", flush=True)
    fractions = mole_fractions(table.formula, system.elements)
    of_phase = one_hot(table.phase, phases) if phases == PHASES else phase_fractions
    inputs = network_inputs(fractions, of_phase, system.elements)
    outside = (np.abs(inputs - inputs.mean(0)) > FAR * np.maximum(inputs.std(0), 1e-12)).any(1)
    if outside.any():  # they may make the loss grow beyond all numbers
        print(f"far outside the other alloys: {listed([*table.structure[outside]])}", flush=True)
    return Data(
        cfg.TARGET, table.assign(n_components=(fractions > 0).sum(1)), system, phases, inputs,
        values.to_numpy(), None if clusters is None else cells, clusters, phase_fractions, source, sums,
    )  # fmt: skip


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

    if alloys == "4+5" and not (table.n_components >= 4).any():
        raise InputError("no alloys of four or more elements: set ALLOYS = Total")
    if 0 < percent <= 1:
        raise InputError(f"PERCENT {percent:g} is in per cent: 80 for four fifths")
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


def splits_of(data, cfg, high_only=False):
    """The splits that SPLITS asks for. InputError where one leaves nothing to learn from."""
    splits = [split_rows(data.table, cfg.ALLOYS, cfg.PERCENT, number, high_only) for number in cfg.SPLITS]
    for number, train, _ in splits:
        for phase in phases_of(data.table):
            if not (data.table.phase.to_numpy()[train] == phase).any():
                raise InputError(f"split {number}: PERCENT {cfg.PERCENT:g} leaves no {phase} training alloys")
        if np.ptp(data.targets[train]) == 0:
            same = f"{data.targets[train][0]:g} in all {len(train)} training alloys"
            raise InputError(f"split {number}: {data.target} is {same}, so that there is nothing to learn")
    return splits


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


class Network(nn.Module):
    """The paper's network: the mole fractions mix the elements' embeddings, three layers follow.

    Any of torch's layers may be added; inputs (n, n_inputs) and outputs (n,) are standardised.
    """

    def __init__(self, n_elements, n_inputs, unused_convolution=False):
        super().__init__()
        self.n_elements = n_elements
        self.embedding = nn.Embedding(n_elements, EMBEDDING)
        if unused_convolution:
            nn.Conv2d(1, 1, 5)  # drawn and dropped by the published Scratch: it moves what is drawn next
        self.layers = nn.Sequential(
            nn.Linear(EMBEDDING + n_inputs - n_elements, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, 1),
        )  # fmt: skip

    def forward(self, inputs):
        fractions, others = inputs[..., : self.n_elements], inputs[..., self.n_elements :]
        mixed = fractions @ self.embedding.weight
        return self.layers(torch.cat([mixed, others], dim=-1))[..., 0]


def make_networks(data, seeds, unused_convolution=False):
    """A network of torch's own initial weights for each seed, and the generators of their batches.

    Each generator is in the state that making its network left, as in a plain script.
    """
    networks, generators = [], []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.default_generator.manual_seed(seed)
            networks.append(Network(len(data.system.elements), data.inputs.shape[1], unused_convolution))
            generators.append(torch.Generator())
            generators[-1].set_state(torch.get_rng_state())
    return networks, generators


# ==== networks side by side =======================================================================
# Networks so small take most of their time in calls. Stacked, many go through each call together, and each
# is to the last bit what it would be alone.


class StackedLinear(nn.Linear):
    """nn.Linear of many replicas: weight (n_replicas, n_out, n_in), bias (n_replicas, n_out) or None."""

    def forward(self, inputs):  # (n_replicas, n, n_in) -> (n_replicas, n, n_out)
        if self.bias is None:
            return torch.bmm(inputs, self.weight.mT)
        if inputs.is_cpu and (self.weight.shape[1] == 1 or inputs.shape[1] < 4):  # these round otherwise
            copies = (one.clone() for one in inputs)  # begin at a multiple of 64 bytes, as alone
            return torch.stack([nn.functional.linear(*one) for one in zip(copies, self.weight, self.bias)])
        return torch.baddbmm(self.bias[:, None], inputs, self.weight.mT)


def aligned(stacked):
    """The same tensor (n_replicas, ...), each replica at a multiple of 64 bytes, as a tensor alone begins.

    Some processors (AMD Zen 5) round a product by where its matrices begin.
    """
    flat = stacked.flatten(1)
    return pad(flat, (0, -flat.shape[1] % 16))[:, : flat.shape[1]].view(stacked.shape)


def stack_networks(networks):
    """One network whose tensors have a leading axis of replicas, as its inputs and outputs then have."""
    stacked = copy.deepcopy(networks[0])
    for parameter, *of_all in zip(stacked.parameters(), *(one.parameters() for one in networks)):
        parameter.data = aligned(torch.stack([one.data for one in of_all]))
    for layer in stacked.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = StackedLinear
    return stacked


def can_stack(network, n_inputs, lengths):
    """Whether networks of this kind give side by side what they give alone, to the last bit: by trying.

    lengths: of the batches. No list of layers would tell, for a forward may do anything.
    """
    generator = torch.Generator().manual_seed(0)
    alone = [copy.deepcopy(network).eval() for _ in range(2)]
    for parameter in (parameter for one in alone for parameter in one.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    try:
        stacked = stack_networks(alone)
        for length in lengths:
            inputs = torch.randn(2, length, n_inputs, generator=generator)
            pairs = zip(stacked(inputs), (one(part) for one, part in zip(alone, inputs)), strict=True)
            if not all(torch.equal(*pair) for pair in pairs):
                return False
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError):
        return False
    return not [*network.buffers()]  # such as running means, which are of one network


# ==== training ====================================================================================


class Adam:
    """torch.optim.Adam with its defaults, by torch's own function.

    The class loads torch's compiler, which takes a second. Any class of torch.optim may stand in its place:
    what trains takes a function from a list of parameters to an optimiser.
    """

    def __init__(self, parameters, rate):
        self.rate, self.state = rate, {}
        for p in parameters:
            mean, square = torch.zeros_like(p), torch.zeros_like(p)
            self.state[p] = {"mean": mean, "square": square, "step": torch.zeros(())}

    @torch.no_grad()
    def step(self):
        learned = [p for p in self.state if p.grad is not None]
        mean, square, step = ([self.state[p][name] for p in learned] for name in ("mean", "square", "step"))
        adam(
            learned, [p.grad for p in learned], mean, square, [], step, foreach=False, amsgrad=False,
            maximize=False, lr=self.rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0,
        )  # fmt: skip


class SGD:
    """torch.optim.SGD with its defaults, likewise."""

    def __init__(self, parameters, rate):
        self.rate, self.state = rate, {parameter: {} for parameter in parameters}

    @torch.no_grad()
    def step(self):
        for parameter in self.state:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-self.rate)


def epoch_order(generator, n_rows):
    """Order of the rows in one epoch, drawn as DataLoader(shuffle=True) draws it.

    The loader takes two numbers from its generator: the base seed of worker processes, unused
    here, and the seed of the sampler, whose own generator makes the permutation.
    """
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    seed = torch.empty((), dtype=torch.int64).random_(generator=generator).item()
    return torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))


def train_stacked(networks, generators, rows, watch, optimiser, epochs, cfg):
    """Train networks with equally long sets by mean squared error, side by side: (kept epochs, losses).

    rows, watch: standardised inputs (n_networks, n, n_inputs) and targets (n_networks, n). epochs: an array.
    With watch, the state with the least loss on it is kept, from the second epoch on, and a network stops
    when cfg.PATIENCE epochs brought no better one; without, the state of the last epoch. Kept states are in
    the networks then. losses: rows (number of the network, epoch, loss in training, watched loss).
    """
    alone, device = len(networks) == 1, rows[0].device
    learner = (copy.deepcopy(networks[0]) if alone else stack_networks(networks)).to(device)
    stepper = optimiser([parameter for parameter in learner.parameters() if parameter.requires_grad])

    def losses_of(inputs, targets):  # of each network
        predicted = learner(inputs[0])[None] if alone else learner(inputs)
        return mse_loss(predicted, targets, reduction="none").mean(1)

    def state():
        return {name: value[None] if alone else value for name, value in learner.state_dict().items()}

    kept, history = {name: value.clone() for name, value in state().items()}, []
    kept_epochs, least = np.zeros(len(networks), int), np.full(len(networks), np.inf)
    last = np.full(len(networks), 1 + cfg.PATIENCE) if watch else np.array(epochs)  # the epoch each stops in
    held = np.arange(len(networks))  # number of each network that the tensors hold
    runs = np.ones(len(networks), bool)  # False: stopped, and still in the tensors
    bar = tqdm(range(1, epochs.max() + 1), desc="training", unit="epoch", leave=False, disable=None)
    for epoch in bar:
        learner.train()
        order = torch.stack([epoch_order(generators[i], rows[0].shape[1]) for i in held]).to(device)
        of_each = torch.arange(len(held), device=device)[:, None]
        batches = [*zip(*(part[of_each, order].split(cfg.BATCH_SIZE, dim=1) for part in rows))]
        total = 0
        for batch in batches:
            try:
                loss = losses_of(*batch)
            except ValueError as error:  # of layers such as BatchNorm1d
                raise InputError(f"{error}; the last batch may be too small: change BATCH_SIZE") from None
            learner.zero_grad()
            loss.sum().backward()
            stepper.step()
            total = total + loss.detach()
        in_training, watched = (total / len(batches)).cpu().numpy(), np.full(len(held), np.nan)
        if not np.isfinite(in_training[runs]).all():
            raise InputError(f"the loss grew beyond numbers in epoch {epoch}: use a smaller LEARNING_RATE")

        keep = last[held] == epoch
        if watch:
            learner.eval()
            with torch.no_grad():
                watched = losses_of(*watch).cpu().numpy()
            keep = runs & (watched < least[held]) & (epoch > 1)
            least[held[keep]], last[held[keep]] = watched[keep], epoch + cfg.PATIENCE
        kept_epochs[held[keep]] = epoch
        history += [(held[i], epoch, in_training[i], watched[i]) for i in np.flatnonzero(runs)]
        if keep.any():
            for name, value in state().items():
                kept[name][held[keep]] = value[keep]
        runs &= last[held] > epoch
        if not runs.any():
            break
        if runs.mean() < 0.75:  # worth the copying: take the stopped networks out of the tensors
            held, rows, watch = held[runs], [a[runs] for a in rows], watch and [a[runs] for a in watch]
            del loss  # and with it what autograd remembers of the parameters' shape
            keep_replicas(learner, stepper, runs)
            runs = runs[runs]
    bar.close()
    for i, network in enumerate(networks):
        network.load_state_dict({name: value[i] for name, value in kept.items()})
    return kept_epochs, history


def keep_replicas(stacked, stepper, which):
    """Leave in a stacked network and its optimiser some of the replicas alone; which: bool (n_replicas,)."""
    for parameter in stacked.parameters():
        parameter.data, parameter.grad = aligned(parameter.data[which]), None
        for name, value in stepper.state.get(parameter, {}).items():
            if torch.is_tensor(value) and value.ndim:
                stepper.state[parameter][name] = value[which]


class Trained(NamedTuple):
    """Trained networks of all splits and seeds, those of the first split first."""

    networks: list
    scalers: list  # StandardScalers of inputs and target, a pair per split
    epochs: np.ndarray  # (n_networks,), whose state was kept
    losses: list  # rows (number of the network, epoch, loss in training, watched loss)


def fit_networks(networks, generators, sets, watch, optimiser, cfg, epochs=None):
    """Train networks on sets in their own units, one per split, standardised as fits each: Trained.

    networks, generators: from `make_networks`, for each split all seeds; what requires no gradient stays as
    it is. sets, watch: (inputs (n, n_inputs), targets (n,)) per split; watch may be None: `train_stacked`.
    optimiser: function from parameters to a torch optimiser. epochs: in place of EPOCHS, one or one each.
    """
    from sklearn.preprocessing import StandardScaler

    scalers = [(StandardScaler().fit(x), StandardScaler().fit(y[:, None])) for x, y in sets]
    of_split = np.repeat(np.arange(len(sets)), len(networks) // len(sets))
    try:
        device = torch.accelerator.current_accelerator(True) if cfg.DEVICE == "auto" else cfg.DEVICE
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"DEVICE: use auto or cpu, this machine has no {cfg.DEVICE} for torch") from None
    epochs = np.broadcast_to(cfg.EPOCHS if epochs is None else epochs, len(networks))

    def tensors(sets, group):  # standardised inputs and targets of a group of networks
        sets = [(scalers[i][0].transform(sets[i][0]), scalers[i][1].transform(sets[i][1][:, None])[:, 0])
                for i in of_split[group]]  # fmt: skip
        return [torch.as_tensor(np.array(part), dtype=torch.float32, device=device) for part in zip(*sets)]

    lengths = [(len(sets[i][1]), len(watch[i][1]) if watch else 0) for i in of_split]
    groups = []
    for length in dict.fromkeys(lengths):  # what is equally long has equal batches and goes together
        group = [i for i, one in enumerate(lengths) if one == length]
        batches = {min(cfg.BATCH_SIZE, length[0]), length[0] % cfg.BATCH_SIZE, length[1]} - {0}
        if len(group) == 1 or can_stack(networks[0], sets[0][0].shape[1], batches):
            groups.append(group)
        else:
            say_once("the networks train one after the other: side by side, their layers give other numbers")
            groups += [[i] for i in group]
    kept_epochs, losses = np.zeros(len(networks), int), []
    for group in groups:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generators[group[0]].initial_seed())  # for what is random in layers, as Dropout
            kept_epochs[group], history = train_stacked(
                [networks[i] for i in group], [generators[i] for i in group], tensors(sets, group),
                watch and tensors(watch, group), optimiser, epochs[group], cfg,
            )  # fmt: skip
        losses += [(group[replica], *rest) for replica, *rest in history]
    if not kept_epochs.all():
        raise InputError(
            "the watched loss was no number from the second epoch on: use a smaller LEARNING_RATE"
        )
    return Trained(networks, scalers, kept_epochs, losses)


@torch.no_grad()
def predict(trained, inputs):
    """Predictions of all networks for the same rows, in the target's units: (n_splits, n_seeds, n)."""
    n_seeds, predicted = len(trained.networks) // len(trained.scalers), []
    for i, (of_inputs, of_target) in enumerate(trained.scalers):
        scaled = torch.as_tensor(of_inputs.transform(inputs), dtype=torch.float32)
        members = [one.eval()(scaled) for one in trained.networks[i * n_seeds : (i + 1) * n_seeds]]
        predicted.append(of_target.inverse_transform(torch.stack(members).double().numpy()))
    return np.array(predicted)


# ==== the choice of the epoch =====================================================================


def fit_selected(method, data, splits, cfg):
    """Networks of all splits, the epoch chosen as SELECT_BY says: Trained.

    method: function (data, training rows of each split, watched rows of each split or None, cfg, epochs).
    'reference' watches the test set, as published; with 'validation' the method never sees a row of it, but
    holds out HOLD_OUT of the training set, and with REFIT then learns the whole of that for as many epochs.
    The split 'all' has no test set: its epoch is the mean of a cross-validation, and it is always refitted.
    """
    whole = [split.train for split in splits]

    if cfg.SELECT_BY == "reference":
        if not all(len(split.test) for split in splits):
            raise InputError("SPLITS all has no test set to choose the epoch on: set SELECT_BY = validation")
        return method(data, whole, [split.test for split in splits], cfg)
    held = [[*hold_out(data.table, one, cfg.HOLD_OUT)] for one in splits]  # in parts of the split 'all' alone
    pairs = [(rows[~np.isin(rows, out)], out) for rows, parts in zip(whole, held) for out in parts]
    trained = method(data, *map(list, zip(*pairs)), cfg)
    if not cfg.REFIT and len(pairs) == len(splits):
        return trained
    kept = trained.epochs.reshape(len(splits), len(held[0]), -1).mean(1)
    return method(data, whole, None, cfg, np.rint(kept).astype(int).ravel())
