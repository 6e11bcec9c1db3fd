"""Occupation probabilities of clusters, from POSCAR files.

    python structure_stat.py
    python structure_stat.py --data-dir ../HEA_data --table-dir tables
    python structure_stat.py --cells given lattice

Reads Database.csv and POSCARS/ in DATA_DIR. Writes fcc_train.csv and bcc_train.csv to TABLE_DIR: a
row per structure, with the probability that a cluster of each shape (point, nearest-neighbour pair,
triplet, quadruplet, second-neighbour pair) holds each combination of elements, the shares of its atoms
in fcc, bcc, hcp and other surroundings, and the targets; beside each the list of its POSCARs with their
checksums (.sha256); order.csv, the Warren-Cowley parameters of the first two shells; and phases.csv and
phases.png, what the cells have become.

Cells are counted as they are given, which is as published. Relaxed cells then carry what relaxation made
of them, and many have left the lattice of their name. With --cells lattice each atom is put back on its
site first, and the tables are fcc_train_lattice.csv, bcc_train_lattice.csv and order_lattice.csv. The
shares are always of the cell as given.
"""

from contextlib import suppress
from functools import cache
from itertools import combinations, product
from math import factorial

import settings  # first: from here on Ctrl-C leaves no traceback

# isort: split
import joblib
import numpy as np
import pandas as pd
from pymatgen.core import Composition
from tqdm import tqdm

import cells
import common
from cells import FIRST_SHELL, MIN_DISTANCE, read_poscar
from common import BLOCKS, TARGETS
from settings import InputError

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder for the two occupation tables; None: DATA_DIR
CELLS = "given"  # given: counted as they are, as published; lattice: put back on it first; or both
# --------------------------------------------------------------------------------------------------

SECOND_SHELL = 6  # atoms, in both
CHUNK = 16  # structures counted together: many make numpy's loops long, few stay in the processor's cache
PARALLEL_FROM = 2000  # structures; fewer are counted before the workers have started
DECIMALS = 9  # of the tables, as published; cluster expansions are fitted to what is rounded
ORDER = ["pairs", "second_pairs"]  # blocks whose excess over a random alloy is the order of a cell
ROUNDS = 8  # in the search for neighbours; with as many, some atom stands alone in an empty cell


def neighbours(structure, phase):
    """The first two shells of each atom, by rank of true periodic distance.

    structure: a pymatgen Structure. phase: 'fcc' or 'bcc', for the number of atoms in the shells.
    Returns site numbers (n_atoms, n), near ones first, and Cartesian positions in angstrom
    (n_atoms, 1 + n, 3), the atom itself first; n = 18 for fcc and 14 for bcc.
    Raises InputError where atoms stand on one site, or one far from all.

    In some small cells atoms are equally far, and rounding settles which of them count. So that tables
    agree with the published ones in every row, positions and distances are rounded as there: those of a
    block of 3 x 3 x 3 cells, the atom in the middle one, and ties go to the first in the block.
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
    lattice = structure.lattice.matrix
    positions = structure.frac_coords @ lattice
    middle = positions + (lattice[0] + lattice[1] + lattice[2])
    cell = image + 1.0  # of the block, each 0 to 2 where the cell is large
    shift = cell[:, :1] * lattice[0] + cell[:, 1:2] * lattice[1] + cell[:, 2:] * lattice[2]
    block = positions[site] + shift
    order = np.lexsort((site, *image.T[::-1], distances(block, middle[centre]), centre))
    nearest = order[(np.cumsum(count) - count)[:, None] + np.arange(n)]  # (n_atoms, n)
    return site[nearest], np.concatenate([middle[:, None], block[nearest]], axis=1)


def distances(one, other):
    """Between positions (..., 3), the squares added up in the order of the axes, as published."""
    square = one - other
    square *= square
    return np.sqrt(square[..., 0] + square[..., 1] + square[..., 2])


def cluster_members(positions, phase):
    """Which neighbours form clusters with their atom, on a lattice that may be distorted.

    positions: (n_atoms, 1 + n, 3) from `neighbours`. Returns a dict from block to an array of neighbour
    ranks (n_atoms or 1, clusters per atom, cluster size - 1). On an undistorted fcc lattice these
    are the triangle and the tetrahedron of first-neighbour edges; in bcc the triangle of two first-
    and one second-neighbour edge, and the tetrahedron of four first- and two second-neighbour edges.
    """
    n1 = FIRST_SHELL[phase]
    n = n1 + SECOND_SHELL
    near = positions[:, 1:]
    length = distances(near, positions[:, :1])  # (n_atoms, n)
    mutual = distances(near[:, :n1, None], near[:, None])  # (n_atoms, n1, n)
    within = np.array(list(combinations(range(n1), 2)))  # both of the first shell
    pairs = np.array([(j, k) for j in range(n1) for k in range(j + 1, n1 if phase == "fcc" else n)])

    def least_perimeter(pairs, number):
        j, k = pairs.T
        return pairs[least(length[:, j] + length[:, k] + mutual[:, j, k], number)]  # (n_atoms, number, 2)

    if phase == "fcc":
        bases = triplets = least_perimeter(within, 24)
        fourths, per_base = np.arange(n1), 1
    else:
        triplets, bases = least_perimeter(pairs, 36), least_perimeter(within, 12)
        fourths, per_base = np.arange(n1, n), 2

    # The fourth atom: least distance sum to the atom and to the two others of its base.
    j, k = bases[..., :1], bases[..., 1:]
    atom = np.arange(len(near))[:, None, None]
    distance_sum = length[:, None, fourths] + mutual[atom, j, fourths] + mutual[atom, k, fourths]
    distance_sum[(fourths == j) | (fourths == k)] = np.inf  # (n_atoms, n_bases, n_fourths)
    fourth = fourths[least(distance_sum, per_base)].reshape(len(near), -1, 1)
    quadruplets = np.concatenate([np.repeat(bases, per_base, axis=1), fourth], axis=2)
    return {
        "points": np.empty((1, 1, 0), int),
        "pairs": np.arange(n1).reshape(1, n1, 1),
        "triplets": triplets,
        "quadruplets": quadruplets,
        "second_pairs": np.arange(n1, n).reshape(1, SECOND_SHELL, 1),
    }


def least(sizes, number):
    """Positions of the `number` least along the last axis; of equal ones, the first."""
    return np.argsort(sizes, axis=-1, kind="stable")[..., :number]


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


def vectors_of(positions):
    """From each atom to its neighbours, (n_atoms, n, 3), from the positions of `neighbours`."""
    return positions[:, 1:] - positions[:, :1]


def own_cells(paths, formulas, phase, system):
    """The cells that structures of one phase were made in, where their atoms tell: a set; and no faults."""
    found = set()
    for path, formula in zip(paths, formulas):
        with suppress(InputError):  # said when the clusters are counted
            structure = read_structure(path, formula, system.elements)
            _, positions = neighbours(structure, phase)
            found.add(cells.own_cell(structure, phase, vectors_of(positions)))
    return found - {None}, []


def put_back(structure, phase, known):
    """A structure on its ideal lattice, in its own cell or one of the known. InputError if it cannot be."""
    _, positions = neighbours(structure, phase)
    own = cells.own_cell(structure, phase, vectors_of(positions))
    try:
        return cells.on_lattice(structure, phase, known if own is None else [own])[0]
    except ValueError as error:
        raise InputError(f"cannot be put back on its lattice: {error}") from None


def count_structures(paths, formulas, phase, system, known=None):
    """Occupation probabilities of structures of one phase: (n, n_columns), and the faults found.

    known: cells that structures of this phase were made in; then each is put back on its lattice first.
    Columns: those of all BLOCKS, in order, and the shares of atoms as in cells.SURROUNDINGS, which are of
    the structure as it is. With a fault the probabilities are None.
    """
    species, sites, positions, vectors, faults = [], [], [], [], []
    offset = 0
    for path, formula in zip(paths, formulas):
        try:
            structure = read_structure(path, formula, system.elements)
        except InputError as error:
            faults.append(str(error))
            continue
        try:
            site, position = neighbours(structure, phase)
            vectors.append(vectors_of(position))
            if known is not None:
                structure = put_back(structure, phase, known)
                site, position = neighbours(structure, phase)
        except InputError as error:
            faults.append(f"{path.name} ({error})")
            continue
        species.append([system.elements.index(site.specie.symbol) for site in structure])
        sites.append(site + offset)
        positions.append(position)
        offset += len(structure)
    if faults:
        return None, faults
    n_atoms = np.array([len(one) for one in species])
    first = np.cumsum(n_atoms) - n_atoms  # of each structure's atoms
    species, sites, positions = np.concatenate(species), np.concatenate(sites), np.concatenate(positions)
    blocks = []
    for block, members in cluster_members(positions, phase).items():
        clusters = cluster_sites(sites, members)  # (n_atoms, clusters per atom, size)
        lookup = column_of(system, block)
        columns = lookup[tuple(species[clusters[..., i]] for i in range(clusters.shape[-1]))]
        per_atom = count(columns, np.ones(columns.shape[1]), lookup.max() + 1)
        blocks.append(np.add.reduceat(per_atom, first) / (n_atoms * columns.shape[1])[:, None])
    found = cells.surroundings(np.concatenate(vectors)).astype(float)
    return np.hstack([*blocks, np.add.reduceat(found, first) / n_atoms[:, None]]), faults


def count_chunks(chunks, workers, function=count_structures):
    """What the function returns for each chunk of its arguments, in order, as they come."""
    calls = (joblib.delayed(function)(*chunk) for chunk in chunks)
    return joblib.Parallel(workers, return_as="generator")(calls)


def count_all(folder, database, system, on_lattice=False):
    """Occupation probabilities of all structures: {phase: (n, n_columns)}, in the database's order.

    Columns: as in `count_structures`. Raises InputError that names all faults found.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with a POSCAR for each structure")
    missing = [name for name in database.structure if not common.poscar_path(folder, name).is_file()]
    if missing:
        found = settings.listed(missing)
        raise InputError(f"{folder}: expected a POSCAR for each structure; none for {found}")
    chunks = []
    for phase in common.phases_of(database):
        rows = database[database.phase == phase]
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            paths = [common.poscar_path(folder, name) for name in part.structure]
            chunks.append((paths, list(part.formula), phase, system))
    workers = -1 if len(database) >= PARALLEL_FROM else 1
    if on_lattice:
        known = {phase: set() for phase in common.phases_of(database)}
        for chunk, (of_chunk, _) in zip(chunks, count_chunks(chunks, workers, own_cells)):
            known[chunk[2]] |= of_chunk
        chunks = [(*chunk, known[chunk[2]]) for chunk in chunks]
    found, faults = {phase: [] for phase in common.phases_of(database)}, []
    with tqdm(total=len(database), desc="structures", unit="") as bar:
        for chunk, (values, new_faults) in zip(chunks, count_chunks(chunks, workers)):
            found[chunk[2]].append(values)
            faults += new_faults
            bar.update(len(chunk[0]))
    if faults:
        raise InputError(
            f"{folder}: expected whole POSCARs with the composition of their name, of "
            f"{', '.join(system.elements)}, one atom a site; found {settings.listed(faults)}"
        )
    return {phase: np.concatenate(values) for phase, values in found.items()}


def short_range_order(clusters, system):
    """Warren-Cowley parameters of the first two shells: a frame, a column for each shell and pair.

    clusters: a frame of occupation probabilities, columns of all BLOCKS. 1 - P(ij) / (c_i c_j), P(ij) the
    probability that a neighbour pair is i and then j: 0 at random, negative where unlike ones seek each
    other. nan where an alloy lacks one of the two. J. M. Cowley, Phys. Rev. 77, 669 (1950).
    """
    order = {}
    for block, shell in (("pairs", 1), ("second_pairs", 2)):
        for column in common.cluster_columns(system, block):
            i, j = column.split()[-1].split("-")
            at_random = (1 + (i != j)) * clusters[i] * clusters[j]  # either of the two may come first
            order[f"alpha{shell} {i}-{j}"] = 1 - clusters[column] / at_random.where(at_random > 0)
    return pd.DataFrame(order)


def at_random(system, fractions, blocks):
    """Occupation probabilities of alloys with species at random: (n, n_columns), of these blocks."""
    columns = []
    for name in common.cluster_columns(system, *blocks):
        members = name.split()[-1].split("-")
        number = np.array([members.count(element) for element in system.elements])
        ways = factorial(len(members)) / np.prod([factorial(n) for n in number])
        columns.append(ways * np.prod(fractions**number, axis=1))
    return np.column_stack(columns)


def order_of(system, fractions, clusters):
    """Excess of neighbour pairs over a random alloy, (n, n_pairs); 0 where the arrangement is not known.

    clusters: a frame of occupation probabilities on the lattice, nan in rows that are not known; or None.
    """
    random = at_random(system, fractions, ORDER)
    if clusters is None:
        return np.zeros_like(random)
    columns = common.cluster_columns(system, *ORDER)
    return np.nan_to_num(clusters[columns].to_numpy() - random)


def mean_valence(formulas, system):
    """Mean number of valence electrons, (n,)."""
    fractions = common.mole_fractions(formulas, system.elements)
    return fractions @ common.element_properties(system.elements)[:, 2]


def plot_phases(table, valence, source, path):
    """Which phase cells have become, by the mean number of valence electrons, a panel for each name.

    table: phase and became of each cell. valence: (n,).
    """
    from matplotlib.figure import Figure

    named = common.phases_of(table)
    edges = np.arange(np.floor(valence.min() / 0.25), np.floor(valence.max() / 0.25) + 2) * 0.25
    figure = Figure(figsize=(4.5 * len(named), 3.6), layout="constrained")
    figure.suptitle(f"What the cells have become; data: {source}", fontsize="medium")
    panels = figure.subplots(1, len(named), sharex=True, sharey=True, squeeze=False)[0]
    for axes, phase in zip(panels, named):
        rows = (table.phase == phase).to_numpy()
        parts = [valence[rows & (table.became == name).to_numpy()] for name in cells.SURROUNDINGS]
        labels = [f"{name} ({len(part)})" for name, part in zip(cells.SURROUNDINGS, parts)]
        axes.hist(parts, edges, stacked=True, label=labels, color=["C0", "C1", "C2", "lightgray"])
        axes.set(title=f"{rows.sum()} named {phase}", xlabel="mean number of valence electrons")
        axes.legend(title="most atoms are", fontsize="small")
    panels[0].set_ylabel("cells")
    figure.savefig(path, dpi=150, format="png")


def main():
    chosen = settings.read(globals(), CELLS=settings.words_of("given", "lattice"))
    targets = common.targets_in(chosen.DATA_DIR)
    database, system = common.read_database(chosen.DATA_DIR, targets, chosen.ELEMENTS, chosen.EXCLUDED_PAIRS)
    source = common.data_set(chosen.DATA_DIR)
    print(f"data: {source}", flush=True)
    settings.output_folder(chosen.TABLE_DIR)
    folder = chosen.DATA_DIR / "POSCARS"
    columns = common.cluster_columns(system, *BLOCKS)
    shares = [f"share {name}" for name in cells.SURROUNDINGS]
    of_targets = [TARGETS[target].column for target in targets]
    for counted_on in chosen.CELLS:
        counted = count_all(folder, database, system, counted_on == "lattice")
        phases, order = [], []
        with settings.whole_files(chosen.TABLE_DIR) as new:
            for phase, values in counted.items():
                rows = database[database.phase == phase].reset_index(drop=True)
                table = pd.DataFrame(values, columns=[*columns, *shares]).round(DECIMALS)
                name = common.table_name(phase, counted_on)
                settings.write_csv(
                    pd.concat([rows[["structure"]], table, rows[of_targets]], axis=1), new(name)
                )
                new(name.replace(".csv", ".sha256")).write_text(
                    common.poscar_list(folder, rows.structure), encoding="utf-8", newline=""
                )
                order.append(rows[["structure", "phase"]].join(short_range_order(table, system)))
                print(f"{name}: {len(table)} structures, {len(columns)} columns of clusters")
                became = np.array(cells.SURROUNDINGS)[table[shares].to_numpy().argmax(1)]
                phases.append(rows[["structure", "phase"]].join(table[shares]).assign(became=became))
                counts = [f"{name} in {n}" for name, n in pd.Series(became).value_counts().items()]
                print(f"  most atoms have surroundings of {', '.join(counts)} of them")
            name = "order_lattice.csv" if counted_on == "lattice" else "order.csv"
            settings.write_csv(pd.concat(order).round(DECIMALS), new(name))
            phases = pd.concat(phases, ignore_index=True)
            settings.write_csv(phases, new("phases.csv"))
            valence = mean_valence(database.formula, system)
            plot_phases(phases, valence, source, new("phases.png"))
    print(f"written to {chosen.TABLE_DIR}")


if __name__ == "__main__":
    settings.run(main)
