"""Occupation probabilities of clusters, from POSCAR files.

    python structure_stat.py
    python structure_stat.py --data-dir ../HEA_data --table-dir tables --cells given

Reads Database.csv and POSCARS/ in DATA_DIR. Writes fcc_train.csv and bcc_train.csv to TABLE_DIR: a row per
structure, with the probability that a cluster of each shape (point, nearest-neighbour pair, triplet,
quadruplet, second-neighbour pair) holds each combination of elements, the shares of its atoms that are of the
structure types fcc, bcc, hcp and other, and the targets; beside each the list of its POSCARs with their
checksums (.sha256); order.csv, the Warren-Cowley parameters of the first two shells; and phases.csv and
phases.png, what the cells have become.

These cells are counted as they are given, which is as published. Relaxed cells carry what relaxation made of
them, and many have left the lattice of their name. In fcc_train_lattice.csv, bcc_train_lattice.csv and
order_lattice.csv each atom is put back on its site first. The shares are always of the cell as given.
"""

from contextlib import suppress
from functools import cache
from itertools import combinations, product
from math import factorial

import numpy as np
import pandas as pd
from tqdm import tqdm

import common
import lattice
import report
import settings
from common import BLOCKS, TARGETS
from settings import InputError

# ---- settings ------------------------------------------------------------------------------------
CELLS = "given lattice"  # given: as they are, as published; lattice: put back on it first; or both
# --------------------------------------------------------------------------------------------------

CHUNK = 16  # structures counted together: many make numpy's loops long, few stay in the processor's cache
DECIMALS = 9  # of the tables, as published; cluster expansions are fitted to what is rounded
ORDER = ["pairs", "second_pairs"]  # blocks whose excess over a random alloy is the order of a cell
SHARES = [f"share {name}" for name in lattice.STRUCTURE_TYPES]  # columns


def cluster_members(positions, phase):
    """Which neighbours form clusters with their atom, on a lattice that may be distorted.

    positions: (n_atoms, 1 + n, 3) from `neighbours`. Returns a dict from block to an array of neighbour
    ranks (n_atoms or 1, clusters per atom, cluster size - 1). On an undistorted fcc lattice these
    are the triangle and the tetrahedron of first-neighbour edges; in bcc the triangle of two first-
    and one second-neighbour edge, and the tetrahedron of four first- and two second-neighbour edges.
    """
    n1 = lattice.FIRST_SHELL[phase]
    n = n1 + lattice.SECOND_SHELL
    near = positions[:, 1:]
    length = lattice.distances(near, positions[:, :1])  # (n_atoms, n)
    mutual = lattice.distances(near[:, :n1, None], near[:, None])  # (n_atoms, n1, n)
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
        "pairs": np.arange(n1).reshape(1, -1, 1),
        "triplets": triplets,
        "quadruplets": quadruplets,
        "second_pairs": np.arange(n1, n).reshape(1, -1, 1),
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


def read_structure(path, formula):
    """As lattice.read_poscar; InputError too where the mole fractions are not those of the formula."""
    structure, expected = lattice.read_poscar(path), common.composition(formula)
    found = structure.composition.fractional_composition.get_el_amt_dict()
    if set(found) != set(expected) or any(abs(found[e] - expected[e]) > 1e-3 for e in found):
        fault = f"expected {formula}, holds {structure.composition.formula}"
        raise InputError(f"{lattice.file_name(path)} ({fault})")
    return structure


def ideal_supercells(paths, formulas, phase):
    """The supercells that structures of one phase were made in, where their atoms tell: a set."""
    found = set()
    for path, formula in zip(paths, formulas):
        with suppress(InputError):  # said when the clusters are counted
            found.add(lattice.ideal_supercell(read_structure(path, formula), phase))
    return found - {None}


def count_structures(paths, formulas, phase, system, supercells=None):
    """Occupation probabilities of structures of one phase: (n, n_columns), and the faults found.

    formulas: of elements of the system. supercells: for lattice.map_to_lattice, where each structure is to be
    put on its lattice first. Columns: those of all BLOCKS, in order, and the fractions of atoms of the
    STRUCTURE_TYPES, which are of the structure as it is. With a fault the probabilities are None.
    """
    species, sites, positions, types, faults, offset = [], [], [], [], [], 0
    for path, formula in zip(paths, formulas):
        try:
            structure = read_structure(path, formula)
            site, position = lattice.neighbours(structure, phase)
            types.append(lattice.structure_types(position))
            if supercells is not None:
                structure, *_ = lattice.map_to_lattice(structure, phase, supercells)
                site, position = lattice.neighbours(structure, phase)
        except InputError as error:
            name, fault = lattice.file_name(path), str(error)
            faults.append(fault if fault.startswith(name) else f"{name} ({fault})")
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
    blocks.append(np.add.reduceat(np.concatenate(types).astype(float), first) / n_atoms[:, None])
    return np.hstack(blocks), faults


def count_all(data_dir, database, system, on_lattice=False):
    """Occupation probabilities of all structures: (n, n_columns), rows in the order of the database.

    database, system: from common.read_database. Columns: as in `count_structures`. Raises InputError that
    names all faults found.
    """
    folder, values, faults = data_dir / "POSCARS", [], []
    paths = [common.poscar_path(folder, name) for name in database.structure]
    if missing := [path.name for path in paths if not path.is_file()]:
        expected = f"expected a POSCAR in {folder} for each structure; none for {settings.listed(missing)}"
        raise InputError(f"{data_dir / 'Database.csv'}: {expected}")
    for phase, rows in database.assign(path=paths).groupby("phase", sort=False):
        supercells = ideal_supercells(rows.path, rows.formula, phase) if on_lattice else None
        for start in tqdm(range(0, len(rows), CHUNK), phase, unit=f"x {CHUNK}", disable=None):
            part = rows[start : start + CHUNK]
            counted, found = count_structures(part.path, part.formula, phase, system, supercells)
            values.append(counted)
            faults += found
    if faults:
        raise InputError(
            f"{folder}: expected whole POSCARs with the composition of their name (a column 'formula' in "
            f"Database.csv settles it), one atom a site; found {settings.listed(faults)}"
        )
    return np.concatenate(values)


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


def plot_phases(figure, table):
    """Which phase cells have become, by the mean number of valence electrons, a panel for each name.

    figure: matplotlib's, to draw on. table: phase, became and valence of each cell.
    """
    edges = np.arange(np.floor(table.valence.min() * 4), np.floor(table.valence.max() * 4) + 2) / 4
    panels = figure.subplots(1, table.phase.nunique(), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (phase, rows) in zip(panels, table.groupby("phase", sort=False)):
        parts = [rows.valence[rows.became == name] for name in lattice.STRUCTURE_TYPES]
        labels = [f"{name} ({len(part)})" for name, part in zip(lattice.STRUCTURE_TYPES, parts)]
        axes.hist(parts, edges, stacked=True, label=labels, color=["C0", "C1", "C2", "lightgray"])
        axes.set(title=f"{len(rows)} named {phase}", xlabel="mean number of valence electrons")
        axes.legend(title="most atoms are", fontsize="small")
    panels[0].set_ylabel("cells")


def main():
    cfg = settings.read(globals(), CELLS=["given", "lattice"])
    database, system = common.read_database(cfg.DATA_DIR, None, cfg.ELEMENTS, cfg.EXCLUDED_PAIRS)
    print(f"data: {common.data_name(cfg.DATA_DIR)}", flush=True)
    settings.output_folder(cfg.TABLE_DIR)
    columns = common.cluster_columns(system, *BLOCKS)
    names = database[["structure", "phase"]]
    labels = database.filter([target.column for target in TARGETS.values()])
    for cells in cfg.CELLS:
        values = count_all(cfg.DATA_DIR, database, system, cells == "lattice")
        values = pd.DataFrame(values, columns=[*columns, *SHARES]).round(DECIMALS)
        for phase in common.phases_of(database):
            table = pd.concat([names.structure, values, labels], axis=1)[names.phase == phase]
            path = cfg.TABLE_DIR / common.table_name(phase, cells)
            report.write_csv(table, path)
            poscars = common.poscar_list(cfg.DATA_DIR / "POSCARS", table.structure)
            path.with_suffix(".sha256").write_text(poscars, "utf-8", newline="")
            print(f"{path.name}: {len(table)} structures, {len(columns)} columns of clusters")
        order = names.join(short_range_order(values, system)).round(DECIMALS)
        report.write_csv(order, cfg.TABLE_DIR / f"order{'_lattice' * (cells == 'lattice')}.csv")
    phases = names.join(values[SHARES])
    phases["became"] = np.array(lattice.STRUCTURE_TYPES)[values[SHARES].to_numpy().argmax(1)]
    report.write_csv(phases, cfg.TABLE_DIR / "phases.csv")
    for phase, rows in phases.groupby("phase", sort=False):
        counts = [f"{name} in {n}" for name, n in rows.became.value_counts().items()]
        print(f"most atoms are {', '.join(counts)} of the {len(rows)} cells named {phase}")
    properties = common.element_properties(system.elements)
    phases["valence"] = common.mole_fractions(database.formula, system.elements) @ properties[:, 2]
    title = f"What the cells have become; data: {common.data_name(cfg.DATA_DIR)}"
    with report.picture(cfg.TABLE_DIR / "phases.png", (4.5 * phases.phase.nunique(), 3.6), title) as figure:
        plot_phases(figure, phases)
    print(f"written to {cfg.TABLE_DIR}")


if __name__ == "__main__":
    settings.run(main)
