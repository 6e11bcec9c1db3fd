"""A cell read, what became of it (the surroundings of its atoms), and the cell put back on its lattice.

Many a cell leaves its lattice while it relaxes. Shells taken by distance then hold the outcome of the
relaxation; on the lattice, at the same volume, the cell is what is known before any calculation.

    own = own_cell(structure, "bcc", vectors)  # None where it is too far from bcc to tell
    ideal, mean, largest = on_lattice(structure, "bcc", known if own is None else [own])

vectors: from each atom to its nearest ones, near first, in angstrom, (n_atoms, at least 14, 3): of the
positions that structure_stat.neighbours gives, the others minus the first. A cell is written as its
lattice vectors in half lattice constants along the cubic axes: three tuples of three whole numbers.
Nothing depends on how a structure is turned, where its origin lies, or the order of its atoms.
"""

import re
import warnings
from itertools import combinations

import numpy as np
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp.inputs import Poscar

from settings import InputError

SURROUNDINGS = ("fcc", "bcc", "hcp", "other")
PRIMITIVE = {  # rows: primitive vectors in half lattice constants
    "fcc": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]),
    "bcc": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]),
}
ATOMS_PER_CUBE = {"fcc": 4, "bcc": 2}
FIRST_SHELL = {"fcc": 12, "bcc": 8}  # atoms
WHOLE_SHELLS = {"fcc": 12, "bcc": 14}  # those of the 14 nearest that fill their shells
SEEDS = 200  # atoms that are searched for three primitive vectors

# How far a cell may have gone. A stretch is the greatest principal stretch over the least: sqrt(2) makes
# fcc of bcc, and bcc of fcc (Bain). In the study's 364 cells the right lattice takes stretches up to 1.48
# and mean displacements up to 0.137, another known one over 1.6 or over 0.18.
OWN_STRETCH = 2**0.25  # half way from one lattice to the other; beyond, the atoms do not tell their axes
MOST_STRETCH = 1.5
MEAN_DISPLACEMENT = 0.16  # lattice constants
MARGIN = 0.03  # lattice constants by which the mean has to be worse in the second best cell

MIN_DISTANCE = 0.5  # angstrom; closer atoms stand on one site
VOLUMES = (1, 500)  # angstrom^3 per atom; beyond, lengths are not in angstrom, or a digit is wrong


def read_poscar(path):
    """A POSCAR as pymatgen Structure. Raises InputError with name and fault if it is no whole one."""
    try:
        text = path.read_text("utf-8", errors="replace")  # comments may be in other encodings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "Elements in POSCAR cannot be determined")  # it takes H, He ...
            structure = Poscar.from_str(prepared(text), read_velocities=False).structure
            per_atom = structure.volume / len(structure)
            height = 1 / np.linalg.norm(structure.lattice.inv_matrix, axis=0)  # between opposite faces
            inside = np.abs(structure.frac_coords).max() < 1000  # False for nan
    except OSError as error:
        raise InputError(f"{path.name} (cannot be read: {error.strerror or error})") from None
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


def surroundings(vectors):
    """Which atoms have fcc, bcc, hcp or other surroundings: bool (n_atoms, 4), as in SURROUNDINGS.

    Adaptive common neighbour analysis: A. Stukowski, Modelling Simul. Mater. Sci. Eng. 20, 045021 (2012).
    vectors: as above, in any unit; those of many structures may be put together.
    """
    products = vectors[:, :14] @ vectors[:, :14].swapaxes(1, 2)
    squares = np.einsum("ann->an", products)  # of the lengths, (n_atoms, 14)
    lengths = np.sqrt(squares)
    distances = squares[:, :, None] + squares[:, None] - 2 * products  # squared, between neighbours

    def counts(atoms, local, signatures):
        """How many of these atoms' neighbours have each signature; local: (n, n_nearest), their scale."""
        n = local.shape[1]
        cutoffs = (1 + 2**0.5) / 2 * local.mean(1)  # half way between two shells
        bonds = (distances[atoms, :n, :n] < cutoffs[:, None, None] ** 2).astype(np.float32)
        bonds[:, np.arange(n), np.arange(n)] = 0
        shared = bonds @ bonds * bonds  # neighbours that two bonded ones have in common, (n_atoms, n, n)
        # Common neighbours, bonds between them, and the most bonds that one of them has, which tells 421
        # from 422 as the longest chain of bonds does; in 444 and 666 all bonds are one chain.
        found = np.stack([bonds.sum(2), shared.sum(2) / 2, shared.max(2)], axis=2)
        return [(found[..., : len(one)] == one).all(2).sum(1) for one in signatures]

    result = np.zeros((len(vectors), 4), bool)
    n421, n422 = counts(slice(None), lengths[:, :12], [(4, 2, 1), (4, 2, 2)])
    result[:, 0] = n421 == 12
    result[:, 2] = (n421 == 6) & (n422 == 6)
    rest = np.flatnonzero(~result.any(1))  # between fcc and bcc an atom can pass for both: it is fcc
    lattice_constants = lengths[rest] * np.repeat([2 / 3**0.5, 1], [8, 6])
    n666, n444 = counts(rest, lattice_constants, [(6, 6), (4, 4)])
    result[rest, 1] = (n666 == 8) & (n444 == 6)
    result[:, 3] = ~result.any(1)
    return result


def phase_shares(vectors):
    """Shares of atoms in fcc, bcc, hcp and other surroundings, (4,)."""
    return surroundings(vectors).mean(0)


def lattice_constant(structure, phase):
    """In angstrom, of the cubic lattice with as much volume per atom."""
    return (structure.volume / len(structure) * ATOMS_PER_CUBE[phase]) ** (1 / 3)


def n_sites(cell, phase):
    """Number of lattice points in a cell."""
    return round(abs(np.linalg.det(cell) / np.linalg.det(PRIMITIVE[phase])))


def stretch(structure, phase, cell):
    """Greatest over least principal stretch from the ideal cell to the structure's."""
    ideal = np.array(cell) * lattice_constant(structure, phase) / 2
    values = np.linalg.svd(np.linalg.solve(ideal, structure.lattice.matrix), compute_uv=False)
    return values[0] / values[-1]


def own_cell(structure, phase, vectors):
    """The cell that a structure was made in, read off its atoms; None where they do not tell.

    Of the cells that rotations and mirror images of the lattice make of one another one is given, the
    same for all of them, right-handed.
    """
    n_first, ideal, unit = FIRST_SHELL[phase], PRIMITIVE[phase], lattice_constant(structure, phase) / 2
    nearest = vectors[:, : WHOLE_SHELLS[phase]] / unit
    # The three neighbours of one atom that are most nearly primitive vectors, by their scalar products.
    seeds = nearest[:SEEDS, :n_first]
    wanted = np.where(np.eye(n_first), ideal[0] @ ideal[0], ideal[0] @ ideal[1])
    off = np.abs(seeds @ seeds.swapaxes(1, 2) - wanted)  # (n_seeds, n_first, n_first)
    triples = np.array(list(combinations(range(n_first), 3)))  # (n_triples, 3)
    i, j, k = triples.T
    worst = np.max([off[:, a, b] for a, b in ((i, i), (j, j), (k, k), (i, j), (i, k), (j, k))], axis=0)
    atom, triple = np.unravel_index(worst.argmin(), worst.shape)
    basis = seeds[atom, triples[triple]]
    # Their mean over all atoms, from whom displacements cancel and strain does not.
    nearest = nearest.reshape(-1, 3)
    for _ in range(2):
        steps = np.rint(nearest @ np.linalg.pinv(basis))
        basis = np.linalg.lstsq(steps, nearest, rcond=None)[0]
    cell = np.rint(structure.lattice.matrix / unit @ np.linalg.pinv(basis)) @ ideal
    if n_sites(cell, phase) != len(structure) or stretch(structure, phase, cell) > OWN_STRETCH:
        return None
    # Rotations and mirror images of the lattice exchange the cubic axes and turn them round.
    cell *= np.sign([axis[axis != 0][0] for axis in cell.T])
    cell = cell[:, np.lexsort(cell[::-1])]
    cell *= np.sign(np.linalg.det(cell))
    return tuple(map(tuple, cell.astype(int).tolist()))


def nearest_sites(points, phase):
    """The lattice point nearest to each point, both (n, 3) in half lattice constants.

    fcc: integers of even sum; bcc: all even or all odd. Method: J. H. Conway and N. J. A. Sloane, IEEE
    Trans. Inf. Theory 28, 227 (1982).
    """
    if phase == "bcc":
        even, odd = 2 * np.rint(points / 2), 2 * np.rint((points - 1) / 2) + 1
        nearer = ((points - even) ** 2).sum(1) <= ((points - odd) ** 2).sum(1)
        return np.where(nearer[:, None], even, odd)
    sites = np.rint(points)
    wrong = np.flatnonzero(sites.sum(1) % 2)
    rest = (points - sites)[wrong]
    axis = np.abs(rest).argmax(1)  # where going to the next integer costs least
    sites[wrong, axis] += np.where(rest[np.arange(len(wrong)), axis] < 0, -1, 1)
    return sites


def place(structure, phase, cell):
    """Each atom on the site of the cell that is nearest to it; None where two atoms take one site.

    Fractional coordinates keep what strain takes from the lattice vectors. Returns sites (n_atoms, 3) in
    half lattice constants and displacements (n_atoms,) in lattice constants, the common shift taken off.
    """
    points = structure.frac_coords @ np.array(cell)  # (n_atoms, 3)
    # The shift, first from the phases of three plane waves that are 1 on every lattice point.
    waves = np.exp(2j * np.pi * points @ np.linalg.inv(PRIMITIVE[phase])).mean(0)
    points = points - np.angle(waves) / (2 * np.pi) @ PRIMITIVE[phase]
    sites = nearest_sites(points, phase)
    points = points - (points - sites).mean(0)
    volume = round(np.linalg.det(cell))
    remainders = np.rint(sites @ np.linalg.inv(cell) * volume) % volume  # whole numbers: no tolerance
    if len(np.unique(remainders, axis=0)) < len(points):
        return None
    return sites, np.linalg.norm(points - sites, axis=1) / 2


def on_lattice(structure, phase, cells):
    """A structure put back on its ideal lattice, its volume kept: (Structure, mean, largest displacement).

    structure: a pymatgen Structure. phase: 'fcc' or 'bcc', the lattice it was made on. cells: what it may
    have been made in: its `own_cell`, or else those of other structures. Cells with other numbers of
    sites are passed over; of the rest, the one that displaces the atoms least is taken. The sites keep
    their order; the cubic axes are x, y and z. Displacements: in lattice constants, as in `place`.
    Raises ValueError where no cell fits, or two fit about as well.
    """
    n_atoms = len(structure)
    cells = [cell for cell in sorted(set(cells) - {None}) if n_sites(cell, phase) == n_atoms]
    if not cells:
        raise ValueError(f"no undistorted {phase} cell of {n_atoms} atoms tells where its atoms were")
    # Nearer than this to a site, an atom is nearer to it than to any other.
    half = np.linalg.norm(PRIMITIVE[phase][0]) / 4  # of the nearest-neighbour distance, lattice constants
    fits = []
    for cell in cells:
        placed = place(structure, phase, cell)
        if placed is None or stretch(structure, phase, cell) > MOST_STRETCH:
            continue
        sites, displacements = placed
        mean, largest = displacements.mean(), displacements.max()
        if mean < MEAN_DISPLACEMENT and largest < half:
            fits.append((mean, largest, cell, sites))
    if not fits:
        raise ValueError(f"its {n_atoms} atoms are too far from the sites of a {phase} lattice")
    fits.sort(key=lambda fit: fit[0])
    if len(fits) > 1 and fits[1][0] < fits[0][0] + MARGIN:
        raise ValueError(f"its {n_atoms} atoms fit two cells of {phase} about as well")
    mean, largest, cell, sites = fits[0]
    # A lattice is its own inverse image; a cell of it then is of the other hand.
    hand = np.sign(np.linalg.det(structure.lattice.matrix))
    lattice = Lattice(hand * np.array(cell) * lattice_constant(structure, phase) / 2)
    return Structure(lattice, structure.species_and_occu, sites @ np.linalg.inv(cell)), mean, largest
