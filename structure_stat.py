"""Occupation probabilities of clusters, from POSCAR files.

    python structure_stat.py
    python structure_stat.py --data-dir ../HEA_data --table-dir tables
    python structure_stat.py --check
    python structure_stat.py --fix

Reads Database.csv and POSCARS/ in DATA_DIR. Writes fcc_train.csv and bcc_train.csv to TABLE_DIR: a
row per structure, with the probability that a cluster of each shape (point, nearest-neighbour pair,
triplet, quadruplet, second-neighbour pair) holds each combination of elements, and the targets.
--check and --fix hold the database against itself and the POSCARs instead: see check.py.
"""

import multiprocessing
import os
import re
import signal
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import combinations, product, starmap

import joblib
import numpy as np
import pandas as pd
from pymatgen.core import Composition
from pymatgen.io.vasp.inputs import Poscar
from tqdm import tqdm

import common
from common import BLOCKS, TARGETS, InputError

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder for the two occupation tables; None: DATA_DIR
CHECK = False  # True: only look for faults in the database, and write Database_findings.csv
FIX = False  # True: the same, and write Database_fixed.csv, a copy with what the data settle themselves
# --------------------------------------------------------------------------------------------------

FIRST_SHELL = {"fcc": 12, "bcc": 8}  # atoms
SECOND_SHELL = 6  # atoms, in both
CHUNK = 16  # structures counted together: many make numpy's loops long, few stay in the processor's cache
# Forked workers need import nothing. START is how they start, PARALLEL_FROM the number of structures
# below which the start takes longer than the counting.
START, PARALLEL_FROM = ("fork", 200) if sys.platform == "linux" else ("spawn", 1500)
DIGITS = 6  # lengths equal to 1e-6 angstrom are a tie, whatever a machine's rounding makes of them
TIE = 1e-9  # angstrom per place in the list: settles it
MIN_DISTANCE = 0.5  # angstrom; closer atoms stand on one site
VOLUMES = (1, 500)  # angstrom^3 per atom; beyond, lengths are not in angstrom, or a digit is wrong
ROUNDS = 8  # in the search for neighbours; with as many, some atom stands alone in an empty cell


def neighbours(structure, phase):
    """The first two shells of each atom, by rank of true periodic distance, near atoms first.

    structure: a pymatgen Structure. phase: 'fcc' or 'bcc', for the number of atoms in the shells.
    Returns site numbers (n_atoms, n) and vectors from the atom to them in angstrom (n_atoms, n, 3),
    n = 18 for fcc and 14 for bcc. Raises InputError where atoms stand on one site, or one far from all.
    """
    n = FIRST_SHELL[phase] + SECOND_SHELL
    n_atoms = len(structure)
    # 1.2 lattice constants hold both shells; strongly distorted cells take another round.
    radius = 1.2 * (structure.volume / n_atoms * (4 if phase == "fcc" else 2)) ** (1 / 3)
    for _ in range(ROUNDS):
        centre, site, image, distance = structure.get_neighbor_list(radius)
        if len(distance) and distance.min() < MIN_DISTANCE:
            raise InputError("two atoms on one site")
        count = np.bincount(centre, minlength=n_atoms)
        if count.min() >= n:
            break
        radius *= 1.2
    else:
        raise InputError(f"an atom with {count.min()} others within {radius / 1.2:.1f} angstrom")
    order = np.lexsort((np.round(distance, DIGITS), centre))
    nearest = order[(np.cumsum(count) - count)[:, None] + np.arange(n)]  # (n_atoms, n)
    position = structure.cart_coords
    vector = position[site] + image @ structure.lattice.matrix - position[centre]
    return site[nearest], vector[nearest]


def lengths(vectors):
    """Lengths along the last axis; numpy's norm takes three times as long for axes of three."""
    return np.sqrt(np.einsum("...i,...i->...", vectors, vectors))


def cluster_members(vectors, phase):
    """Which neighbours form clusters with their atom, on a lattice that may be distorted.

    vectors: (n_atoms, n, 3) from `neighbours`. Returns a dict from block to an array of neighbour
    ranks (n_atoms or 1, clusters per atom, cluster size - 1). On an undistorted fcc lattice these
    are the triangle and the tetrahedron of first-neighbour edges; in bcc the triangle of two first-
    and one second-neighbour edge, and the tetrahedron of four first- and two second-neighbour edges.
    """
    n1 = FIRST_SHELL[phase]
    n = n1 + SECOND_SHELL
    length = lengths(vectors)  # (n_atoms, n)
    mutual = lengths(vectors[:, :n1, None] - vectors[:, None])  # (n_atoms, n1, n)
    within = np.array(list(combinations(range(n1), 2)))  # both of the first shell
    between = np.array(list(product(range(n1), range(n1, n))))  # one of each shell

    def perimeter(pairs):
        j, k = pairs.T
        return length[:, j] + length[:, k] + mutual[:, j, k]  # (n_atoms, n_pairs)

    def least(sizes, number):
        """Positions of the `number` least along the last axis; of equal ones, the first."""
        place = np.arange(sizes.shape[-1])
        return np.argpartition(np.round(sizes, DIGITS) + TIE * place, number - 1)[..., :number]

    if phase == "fcc":
        bases = triplets = within[least(perimeter(within), 24)]  # (n_atoms, 24, 2)
        fourths, per_base = np.arange(n1), 1
    else:
        pairs = np.concatenate([within, between])
        triplets = pairs[least(perimeter(pairs), 36)]  # (n_atoms, 36, 2)
        bases = within[least(perimeter(within), 12)]  # (n_atoms, 12, 2)
        fourths, per_base = np.arange(n1, n), 2

    # The fourth atom: least distance sum to the atom and
    # to the two others of its base.
    j, k = bases[..., :1], bases[..., 1:]
    atom = np.arange(len(vectors))[:, None, None]
    distance_sum = length[:, None, fourths] + mutual[atom, j, fourths] + mutual[atom, k, fourths]
    distance_sum[(fourths == j) | (fourths == k)] = np.inf  # (n_atoms, n_bases, n_fourths)
    fourth = fourths[least(distance_sum, per_base)].reshape(len(vectors), -1, 1)
    quadruplets = np.concatenate([np.repeat(bases, per_base, axis=1), fourth], axis=2)
    return {
        "points": np.empty((1, 1, 0), int),
        "pairs": np.arange(n1).reshape(1, n1, 1),
        "triplets": triplets,
        "quadruplets": quadruplets,
        "second_pairs": np.arange(n1, n).reshape(1, SECOND_SHELL, 1),
    }


def cluster_sites(sites, members):
    """Site numbers of all clusters, the atom itself first: (n_atoms, clusters per atom, size)."""
    n_atoms, atom = len(sites), np.arange(len(sites))[:, None, None]
    per_atom, others = members.shape[1:]
    ranks = np.broadcast_to(members, (n_atoms, per_atom, others))
    return np.concatenate([np.broadcast_to(atom, (n_atoms, per_atom, 1)), sites[atom, ranks]], axis=2)


@cache
def column_of(system, block):
    """Lookup table: element numbers of a cluster, in any order -> its column in the block, or -1."""
    size = BLOCKS[block][1]
    columns = {name: i for i, name in enumerate(common.cluster_columns(system, block))}
    table = np.full((len(system.elements),) * size, -1)
    for numbers in product(range(len(system.elements)), repeat=size):
        name = BLOCKS[block][0] + "-".join(system.elements[i] for i in sorted(numbers))
        table[numbers] = columns.get(name, -1)
    return table


def count(columns, weights, n_columns):
    """How many clusters each row has in each column, (n_rows, n_columns).

    columns: column number of each cluster, (n_rows, n_clusters). weights: (n_clusters,).
    """
    place = columns + n_columns * np.arange(len(columns))[:, None]
    weights = np.broadcast_to(weights, columns.shape)
    counts = np.bincount(place.ravel(), weights.ravel(), minlength=len(columns) * n_columns)
    return counts.reshape(len(columns), n_columns)


def read_poscar(path):
    """A POSCAR as pymatgen Structure. Raises InputError with name and fault if it is no whole one."""
    try:
        text = path.read_text("utf-8", errors="replace")  # comments may be in other encodings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = Poscar.from_str(prepared(text), read_velocities=False).structure
            per_atom = structure.volume / len(structure)
            height = 1 / np.linalg.norm(structure.lattice.inv_matrix, axis=0)  # between opposite faces
            inside = np.abs(structure.frac_coords).max() < 1000  # False for nan
    except OSError as error:
        raise InputError(f"{path.name} (cannot be read: {error.strerror})") from None
    except Exception as error:  # noqa: BLE001 (pymatgen raises whatever its parsing meets)
        raise InputError(f"{path.name} (no whole POSCAR: {error or type(error).__name__})") from None
    # Beyond these the search for neighbours would take all memory there is.
    if not inside:
        raise InputError(f"{path.name} (a coordinate is no number, or far out of the cell)")
    if not VOLUMES[0] <= per_atom <= VOLUMES[1]:
        raise InputError(f"{path.name} (a volume of {per_atom:.3g} angstrom^3 per atom)")
    if not height.min() >= MIN_DISTANCE:
        raise InputError(f"{path.name} (a cell {height.min():.3g} angstrom high)")
    return structure


def prepared(text):
    """The text of a POSCAR without two things that pymatgen stumbles over.

    More atoms than the file can hold: it makes a list of them before it looks for their lines. A
    negative scale, which is the cell's volume: it multiplies Cartesian coordinates with it.
    """
    lines = text.split("\n")
    counts = [word for line in lines[5:30] for word in line.split() if re.fullmatch(r"\+?[\d_]+", word)]
    if any(int(word) > max(len(lines), 1000) for word in counts):
        raise ValueError("fewer lines than atoms")
    if len(lines) > 4 and (scale := float(lines[1])) < 0:
        volume = abs(np.linalg.det([[float(word) for word in line.split()] for line in lines[2:5]]))
        lines[1] = repr(float((-scale / volume) ** (1 / 3)))
    return "\n".join(lines)


def read_structure(path, formula, elements):
    """As `read_poscar`; InputError too if it holds not what formula and elements say."""
    structure = read_poscar(path)
    composition = structure.composition
    foreign = {str(element) for element in composition} - set(elements)
    if foreign:
        raise InputError(f"{path.name} (holds {', '.join(sorted(foreign))})")
    if not same_alloy(composition, formula):
        raise InputError(f"{path.name} (holds {composition.formula})")
    return structure


def same_alloy(composition, formula):
    """Whether a pymatgen Composition has the mole fractions of a formula, within 0.001."""
    found, named = composition.fractional_composition, Composition(formula).fractional_composition
    return found.almost_equals(named, rtol=0, atol=1e-3)


def count_structures(paths, formulas, phase, system):
    """Occupation probabilities of structures of one phase: (n, n_columns), and the faults found.

    Columns: those of all BLOCKS, in order. With a fault the probabilities are None.
    """
    species, sites, vectors, faults = [], [], [], []
    offset = 0
    for path, formula in zip(paths, formulas):
        try:
            structure = read_structure(path, formula, system.elements)
        except InputError as error:
            faults.append(str(error))
            continue
        try:
            site, vector = neighbours(structure, phase)
        except InputError as error:
            faults.append(f"{path.name} ({error})")
            continue
        species.append([system.elements.index(site.specie.symbol) for site in structure])
        sites.append(site + offset)
        vectors.append(vector)
        offset += len(structure)
    if faults:
        return None, faults
    n_atoms = np.array([len(one) for one in species])
    first = np.cumsum(n_atoms) - n_atoms  # of each structure's atoms
    species, sites = np.concatenate(species), np.concatenate(sites)
    blocks = []
    for block, members in cluster_members(np.concatenate(vectors), phase).items():
        clusters = cluster_sites(sites, members)  # (n_atoms, clusters per atom, size)
        lookup = column_of(system, block)
        columns = lookup[tuple(species[clusters[..., i]] for i in range(clusters.shape[-1]))]
        per_atom = count(columns, np.ones(columns.shape[1]), lookup.max() + 1)
        blocks.append(np.add.reduceat(per_atom, first) / (n_atoms * columns.shape[1])[:, None])
    return np.hstack(blocks), faults


def start_worker():
    """In a worker: leave Ctrl-C to the main process, and end when that one does, even if killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_main():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_main, daemon=True).start()


def count_chunks(chunks, workers, start=START):
    """What `count_structures` returns for each chunk of its arguments, in order, as they come."""
    if workers == 1:
        yield from starmap(count_structures, chunks)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context(start), start_worker) as pool:
        yield from pool.map(count_structures, *zip(*chunks))


def main():
    settings = common.read_settings(globals(), CHECK=common.true_or_false, FIX=common.true_or_false)
    if settings.CHECK or settings.FIX:
        import check

        check.run(settings)
        return
    database, system = common.read_database(settings)
    common.output_folder(settings.TABLE_DIR)
    folder = settings.DATA_DIR / "POSCARS"
    missing = [name for name in database.structure if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: expected a POSCAR for each structure; none for {common.listed(missing)}")

    chunks = []
    for phase in common.phases_of(database):
        rows = database[database.phase == phase]
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            chunks.append(([folder / name for name in part.structure], list(part.formula), phase, system))
    workers = 1
    if len(database) >= PARALLEL_FROM:
        workers = min(joblib.cpu_count(), len(chunks), 60)  # Windows allows 61
    results = []
    with tqdm(total=len(database), desc="structures", unit="") as bar:
        for chunk, result in zip(chunks, count_chunks(chunks, workers)):
            results.append(result)
            bar.update(len(chunk[0]))

    faults = [fault for _, found in results for fault in found]
    if faults:
        raise InputError(
            f"{folder}: expected whole POSCARs with the composition of their name, of "
            f"{', '.join(system.elements)}, one atom a site; found {common.listed(faults)}"
        )
    columns = [column for block in BLOCKS for column in common.cluster_columns(system, block)]
    for phase in common.phases_of(database):
        rows = database[database.phase == phase].reset_index(drop=True)
        values = [result[0] for chunk, result in zip(chunks, results) if chunk[2] == phase]
        table = pd.DataFrame(np.concatenate(values), columns=columns)
        table = pd.concat([rows[["structure"]], table, rows[list(TARGETS.values())]], axis=1)
        path = settings.TABLE_DIR / f"{phase}_train.csv"
        common.write_csv(table, path)
        print(f"{path}: {len(table)} structures, {len(columns)} columns of clusters")


if __name__ == "__main__":
    common.run(main)
