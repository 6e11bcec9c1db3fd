"""What the scripts share: settings, files, data and splits. The networks are in networks.py.

Nothing to run here. From top to bottom: settings and files; alloys and their descriptors; the
database and the occupation tables; splits. scikit-learn and scipy are imported where they are used,
because a script should not wait for what it does not need.
"""

import argparse
import hashlib
import os
import re
import sys
import tempfile
import uuid
import warnings
from contextlib import contextmanager
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd

# ---- settings of all scripts ---------------------------------------------------------------------
ELEMENTS = None  # as "Fe Ni Co"; None: those in the database, the table's below first, in its order
EXCLUDED_PAIRS = "Mn-Pd"  # pairs that no alloy holds, as "Mn-Pd Al-Co"; None: those no structure holds
# --------------------------------------------------------------------------------------------------

PHASES = ("fcc", "bcc")  # also the order of the one-hot phase columns
TARGETS = {"Ef": "Eform (eV/atom)", "Ms": "Ms (mub/atom)"}  # their columns, in Database.csv and after
UNITS = {"Ef": "eV/atom", "Ms": "mub/atom"}
LARGEST = 1e6  # of the targets; far beyond any alloy, and far from where sums of squares overflow
GAS_CONSTANT = 8.3145  # J/(mol K)
STUDY_SHA256 = "94704eb693bba516de0cf7eb8a2c9d0423b2fb0f7a639000ee112d4e223f1081"  # its Database.csv

# Pauling electronegativity, atomic radius (angstrom), valence electrons: the paper's table.
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


# ==== settings and files ==========================================================================


class InputError(Exception):
    """Something in the input that the user has to mend: ends a script with one line and status 2."""


def one_of(*options):
    def parse(text):
        if text not in options:
            raise ValueError(f"one of {', '.join(options)}")
        return text

    return parse


def words_of(*options):
    def parse(text):
        words = text.replace(",", " ").split()
        if not words or not set(words) <= set(options):
            raise ValueError(f"one or more of {', '.join(options)}")
        return " ".join(option for option in options if option in words)

    return parse


def number(kind, low, high=np.inf):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = np.nan
        if not low <= value <= high or value == np.inf:
            upper = f"to {high:g}" if high < np.inf else "or more"
            raise ValueError(f"{'a whole number' if kind is int else 'a number'}, {low:g} {upper}")
        return value

    return parse


def true_or_false(text):
    return one_of("True", "False")(text) == "True"


def optional(parse):
    def parse_or_none(text):
        if text == "None":
            return None
        try:
            return parse(text)
        except ValueError as error:
            raise ValueError(f"None or {error}") from None

    return parse_or_none


def numbers(text):
    """'3', '0-7' or '0,3,5-8' -> a list of whole numbers, each once."""
    found = []
    for part in text.replace(",", " ").split():
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= last - first < 100_000:
            raise ValueError("a number, a range or a list, such as 0 or 0-7 or 0,3,5")
        found += range(first, last + 1)
    if not found:
        raise ValueError("a number, a range or a list, such as 0 or 0-7 or 0,3,5")
    return list(dict.fromkeys(found))


def folder(text):
    if not text:
        raise ValueError("a folder")
    return Path(text).expanduser()


def element_list(text):
    from pymatgen.core import Element

    words = text.replace(",", " ").split()
    if not words or not all(Element.is_valid_symbol(word) for word in words) or len(set(words)) < len(words):
        raise ValueError("element symbols, each once, such as Fe Ni Co")
    return tuple(words)


def pair_list(text):
    pairs = [tuple(word.split("-")) for word in text.replace(",", " ").split()]
    if not all(len(pair) == 2 and pair[0] != pair[1] for pair in pairs):
        raise ValueError("pairs of elements, such as Mn-Pd")
    for pair in pairs:
        element_list(" ".join(pair))
    return pairs


# Every constant that is a setting, and what it may be. Which of them a script has, and with what
# default, stands in its own block of constants.
OPTIONS = {
    "DATA_DIR": folder,
    "TABLE_DIR": optional(folder),
    "RESULTS_DIR": folder,
    "TARGET": one_of(*TARGETS),
    "ALLOYS": one_of("4+5", "Total"),
    "PERCENT": number(float, 0, 100),
    "SEEDS": numbers,
    "SPLITS": numbers,
    "SELECT_BY": one_of("reference", "validation"),
    "CLUSTERS": words_of("points", "pairs", "triplets", "second_pairs"),
    "ALPHA": optional(number(float, 0)),
    "EPOCHS": number(int, 2),
    "PATIENCE": number(int, 1),
    "BATCH_SIZE": number(int, 1),
    "LEARNING_RATE": optional(number(float, 0)),
    "SOURCE_EPOCHS": number(int, 0),
    "SOURCE_LEARNING_RATE": number(float, 0),
    "AUGMENT": number(int, 1),
    "PREDICT": optional(str),
    "CHECKPOINT": optional(Path),
    "HOLD_OUT": number(float, 0.01, 0.9),
    "REFIT": true_or_false,
    "DEVICE": one_of("auto", "cpu", "cuda", "mps"),
    "ELEMENTS": optional(element_list),
    "EXCLUDED_PAIRS": optional(pair_list),
}


def read_settings(script, **own_options):
    """Settings of one run: the constants of a script, each replaced by its flag where one is given.

    script: the script's globals(); every constant there that OPTIONS knows becomes a flag
    (TABLE_DIR -> --table-dir), with the comment beside the constant as its help. ELEMENTS and
    EXCLUDED_PAIRS of this file become flags of every script.
    own_options: parsers of constants whose options are the script's own, such as METHOD.
    Prints the settings in force. Returns them as a namespace; DATA_DIR and such are Paths.
    Ends the program with one line and status 2 on an unknown flag or a value out of range.
    """
    program = Path(script["__file__"]).name
    options = OPTIONS | own_options
    shared = {"ELEMENTS": ELEMENTS, "EXCLUDED_PAIRS": EXCLUDED_PAIRS}
    defaults = {name: value for name, value in script.items() if name in options} | shared
    sources = Path(script["__file__"]).read_text("utf-8") + Path(__file__).read_text("utf-8")

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            flags = " ".join(flag_of(name) for name in defaults)
            self.exit(2, f"{program}: {message}; the flags are {flags}\n")

    def flag_of(name):
        return "--" + name.lower().replace("_", "-")

    parser = Parser(
        program,
        usage=f"{program} [--flag value ...]",
        description=script["__doc__"],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, value in defaults.items():
        comment = re.search(rf"^{name} = .*?  # (.*)$", sources, re.MULTILINE)
        help_text = f"{comment[1] if comment else ''} (default: {value})".replace("%", "%%")
        nargs = "*" if options[name] is true_or_false else "+"  # --check alone means --check True
        parser.add_argument(flag_of(name), nargs=nargs, metavar="VALUE", help=help_text)
    given = vars(parser.parse_args())

    settings, in_force = SimpleNamespace(), []
    for name, default in defaults.items():
        words = given[name.lower()]
        text = str(default) if words is None else " ".join(words) if words else "True"
        try:
            setattr(settings, name, options[name](text))
        except ValueError as error:
            where = f"constant {name}" if words is None else flag_of(name)
            parser.exit(2, f"{program}: {where}: expected {error}; got '{text}'\n")
        in_force.append(f"{name} {text}")
    print(", ".join(in_force), flush=True)
    if "TABLE_DIR" in defaults and settings.TABLE_DIR is None:
        settings.TABLE_DIR = settings.DATA_DIR
    return settings


def run(main):
    """Run a script's main; bad input ends it with one line on standard error and status 2."""
    try:
        main()
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a file in a program that locks it
        print(f"{Path(sys.argv[0]).name}: {error.filename}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; the files that were there before are as they were", file=sys.stderr)
        sys.exit(130)


def listed(faults, most=8):
    """The faults of one kind as one text."""
    more = f", and {len(faults) - most} more" if len(faults) > most else ""
    return ", ".join(map(str, faults[:most])) + more


@contextmanager
def whole_file(path):
    """Path to write to; becomes `path` when the block ends, and is gone if it does not end well.

    A name that no other run has keeps two at once from writing into one file; the process number
    would not, between containers or machines that share a folder.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(frame, path):
    with whole_file(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def output_folder(path):
    """Make the folder, and see that it can be written to, before the long work and not after."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(f"{path}: expected a folder that can be written to ({error.strerror})") from None


# ==== alloys and their descriptors ================================================================


class System(NamedTuple):
    """The elements of a data set in the order of all columns, and the pairs that no alloy holds."""

    elements: tuple
    excluded: tuple  # of frozensets of two elements


def alloy_system(settings, formulas):
    """System: from the settings, or from the formulas where a setting is None."""
    from pymatgen.core import Composition

    sets = [{str(element) for element in Composition(formula)} for formula in formulas]
    found = dict.fromkeys(str(element) for formula in formulas for element in Composition(formula))
    ordered = [e for e in ELEMENT_TABLE if e in found] + [e for e in found if e not in ELEMENT_TABLE]
    elements = settings.ELEMENTS or tuple(ordered)
    if settings.EXCLUDED_PAIRS is None:
        together = {frozenset(pair) for one in sets for pair in combinations(one, 2)}
        excluded = [frozenset(pair) for pair in combinations(elements, 2) if frozenset(pair) not in together]
    else:
        excluded = [frozenset(pair) for pair in settings.EXCLUDED_PAIRS if set(pair) <= set(elements)]
    return System(elements, tuple(excluded))


def allowed(system, elements):
    """Whether the system has all these elements and none of its excluded pairs is among them."""
    elements = set(elements)
    return elements <= set(system.elements) and not any(pair <= elements for pair in system.excluded)


def cluster_columns(system, block):
    """Names of one block's columns, such as 'triplet Fe-Fe-Ni': multisets of elements in order."""
    prefix, size = BLOCKS[block]
    multisets = combinations_with_replacement(system.elements, size)
    return [prefix + "-".join(multiset) for multiset in multisets if allowed(system, multiset)]


def element_properties(elements):
    """Electronegativity (Pauling), atomic radius (angstrom), valence electrons: (n_elements, 3).

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
                rows.append((known.X, float(known.atomic_radius or np.nan), valence))
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


def network_inputs(fractions, phases, elements):
    """Descriptors and the one-hot phase: (n, n_elements + 6), 12 columns for the paper's elements."""
    one_hot = np.array([[phase == p for p in PHASES] for phase in phases], float)
    return np.hstack([descriptors(fractions, elements), one_hot])


# ==== the database and the occupation tables ======================================================


def phases_of(table):
    """The phases that the table has rows of, fcc first."""
    return [phase for phase in PHASES if (table.phase == phase).any()]


def read_table(path, columns):
    """A CSV file with at least these columns; InputError says what is wrong with it."""
    try:
        frame = pd.read_csv(path)
    except OSError as error:
        raise InputError(f"{path}: expected a CSV file ({error.strerror})") from None
    except ValueError as error:  # pandas' parser errors and wrong encodings are ValueErrors
        raise InputError(f"{path}: not a readable CSV file ({error})") from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first field for a name, then
        raise InputError(f"{path}: expected rows with as many fields as the header, found more")
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InputError(f"{path}: expected a column {listed([repr(c) for c in missing])}")
    return frame


def data_set(path):
    """Whose data a Database.csv holds, by its SHA-256."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest == STUDY_SHA256:
        return "the study's (DFT)"
    own = Path(__file__).parent / "HEA_data" / "SHA256SUMS"
    if own.is_file() and f"{digest}  Database.csv" in own.read_text("utf-8"):
        return "this project's (labels by CHGNet, a universal potential, not DFT)"
    return "another set than the study's and this project's"


def read_database(settings):
    """Database.csv: (frame with structure, phase and the targets; fcc rows before bcc rows; System).

    Rows of phases other than fcc and bcc are left out, and a printed line says how many.
    Raises InputError, with all faults of one kind together: no folder or file, a column missing,
    no phase, a target that is no number, a structure listed twice, a name that does not begin with
    a formula of the system's elements or end with the phase.
    """
    from pymatgen.core import Composition

    path = settings.DATA_DIR / "Database.csv"
    if not settings.DATA_DIR.is_dir():
        raise InputError(f"{settings.DATA_DIR}: expected a folder with Database.csv and POSCARS/")
    frame = read_table(path, ["structures", "phase", *TARGETS.values()])
    print(f"data: {data_set(path)}", flush=True)
    frame = frame[["structures", "phase", *TARGETS.values()]].rename(columns={"structures": "structure"})
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
    for column in TARGETS.values():
        values = pd.to_numeric(frame[column], errors="coerce").astype(float)
        complain(~(values.abs() < LARGEST), f"a number below {LARGEST:g} in column '{column}'")
        frame[column] = values
    plain = frame.structure.str.fullmatch(r"[A-Za-z0-9_.+() -]{1,200}")
    complain(~plain, "the plain name of a file in column 'structures'")
    complain(frame.structure.duplicated(keep=False), "each structure once in column 'structures'")
    frame["formula"] = frame.structure.str.split("_").str[0]

    complain(~frame.formula.map(is_formula).astype(bool), "a name that begins with a formula")
    suffix = [name.endswith(phase) for name, phase in zip(frame.structure, frame.phase)]
    complain(~np.array(suffix), "a name that ends with its phase")
    system = alloy_system(settings, frame.formula)
    covered = frame.formula.map(lambda formula: allowed(system, map(str, Composition(formula))))
    pairs = "".join(f", no {' with '.join(sorted(pair))}" for pair in system.excluded)
    complain(~covered.astype(bool), f"alloys of {', '.join(system.elements)}{pairs}")
    return pd.concat([frame[frame.phase == phase] for phase in PHASES], ignore_index=True), system


def load_tables(settings):
    """The occupation tables, both phases: (frame, System).

    The frame has structure, phase, formula, the targets, n_components and the columns of all
    BLOCKS, fcc rows before bcc rows. Raises InputError where a table is missing or does not match
    Database.csv.
    """
    database, system = read_database(settings)
    columns = [column for block in BLOCKS for column in cluster_columns(system, block)]
    tables = []
    for phase in phases_of(database):
        rows = database[database.phase == phase].reset_index(drop=True)
        path = settings.TABLE_DIR / f"{phase}_train.csv"
        advice = "run structure_stat.py first, with the same data and table folders"
        if not path.is_file():
            raise InputError(f"{path}: no such table; {advice}")
        try:
            table = read_table(path, ["structure", *TARGETS.values(), *columns])
        except InputError as error:
            raise InputError(f"{error}; {advice}") from None
        same = ["structure", *TARGETS.values()]
        if not table[same].astype(str).equals(rows[same].astype(str)):
            raise InputError(f"{path}: does not match {settings.DATA_DIR / 'Database.csv'}; {advice}")
        numeric = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(float)
        if not np.isfinite(numeric).all():
            raise InputError(f"{path}: expected numbers in all columns of clusters; {advice}")
        tables.append(pd.concat([rows, pd.DataFrame(numeric, columns=columns)], axis=1))
    frame = pd.concat(tables, ignore_index=True)
    for element, values in zip(system.elements, element_properties(system.elements)):
        if element not in ELEMENT_TABLE:
            chi, radius, valence = values
            print(
                f"{element}: not in ELEMENT_TABLE, so pymatgen's values: electronegativity {chi:g}, "
                f"atomic radius {radius:g} angstrom, {valence:g} valence electrons"
            )
    fractions = mole_fractions(frame.formula, system.elements)
    return frame.assign(n_components=(fractions > 0).sum(1)), system


class Data(NamedTuple):
    """All alloys of a run; rows are the same in all parts."""

    table: pd.DataFrame
    system: System
    inputs: np.ndarray  # (n, n_elements + 6)
    targets: np.ndarray  # (n,), in the target's unit

    def sets(self, row_sets):
        """[(inputs, targets)] of each set of rows; None for None."""
        return row_sets and [(self.inputs[rows], self.targets[rows]) for rows in row_sets]


def load_data(settings):
    """Data of a run, from the occupation tables; errors as `load_tables`."""
    table, system = load_tables(settings)
    inputs = network_inputs(mole_fractions(table.formula, system.elements), table.phase, system.elements)
    return Data(table, system, inputs, table[TARGETS[settings.TARGET]].to_numpy())


# ==== splits ======================================================================================


class Split(NamedTuple):
    """Row numbers of the training set and the test set, in the order they are trained on."""

    number: int
    train: np.ndarray
    test: np.ndarray


def split_rows(table, alloys, percent, number, high_only=False):
    """Split of one number (its random_state; 0 is the study's), both phases together.

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
        try:
            if alloys == "4+5":
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
                kept = train_test_split(kept, train_size=percent / 100, random_state=number)[0]
        except ValueError as error:
            raise InputError(f"split {number}, {phase}: too few alloys to split ({error})") from None
        with_low = not high_only and (alloys == "4+5" or percent < 100)
        train.append(np.concatenate([low, kept]) if with_low else kept)
        test.append(held)
    split = Split(number, np.concatenate(train), np.concatenate(test))
    if not len(split.train):
        raise InputError(f"split {number}: PERCENT {percent:g} leaves no training alloys")
    return split


def make_splits(settings, table, high_only=False):
    """All SPLITS of a run."""
    return [split_rows(table, settings.ALLOYS, settings.PERCENT, n, high_only) for n in settings.SPLITS]


def hold_out(table, split, share):
    """Training rows to choose the epoch on: a share of the alloys of four and five elements.

    Stratified by phase; random_state is the split's number. Where the training set has none of
    them (PERCENT 0), a share of all its alloys.
    """
    from sklearn.model_selection import train_test_split

    rows = split.train[table.n_components.to_numpy()[split.train] >= 4]
    rows = rows if len(rows) else split.train
    try:
        phases = table.phase.to_numpy()[rows]
        return train_test_split(rows, test_size=share, stratify=phases, random_state=split.number)[1]
    except ValueError as error:
        raise InputError(f"split {split.number}: too few alloys to hold some out ({error})") from None
