"""A POSCAR read, the shells around its atoms, what the cell became, and the cell put back on its lattice.

    structure = read_poscar(path)
    sites, positions = neighbours(structure, "bcc")
    phase_fractions(positions)  # of atoms whose neighbours stand as in fcc, bcc, hcp, or otherwise
    ideal, mean, largest = map_to_lattice(structure, "bcc")

Many cells leave their lattice while they relax. Shells taken by distance then hold the outcome of the
relaxation; on the lattice, at the same volume, the cell is what is known before any calculation.

A supercell is written as its lattice vectors in half lattice constants along the cubic axes: three tuples of
three whole numbers. Nothing depends on a structure's orientation and origin, or on the order of its atoms.
"""

import re
from itertools import combinations, takewhile

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from settings import InputError, listed

STRUCTURE_TYPES = ("fcc", "bcc", "hcp", "other")
PRIMITIVE = {  # rows: primitive vectors in half lattice constants
    "fcc": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]),
    "bcc": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]),
}
ATOMS_PER_CUBE = {"fcc": 4, "bcc": 2}
FIRST_SHELL = {"fcc": 12, "bcc": 8}  # atoms
SECOND_SHELL = 6  # atoms, in both
WHOLE_SHELLS = {"fcc": 12, "bcc": 14}  # those of the 14 nearest that fill their shells
SEEDS = 200  # atoms that are searched for three primitive vectors
ROUNDS = 8  # in the search for neighbours; with as many, some atom stands alone in an empty cell

# How far a cell may have gone. A stretch is the greatest principal stretch over the least: sqrt(2) makes
# fcc of bcc, and bcc of fcc (Bain). In the study's 364 cells the right lattice takes stretches up to 1.48
# and mean displacements up to 0.137, another known one over 1.6 or over 0.18.
OWN_STRETCH = 2**0.25  # half way from one lattice to the other; beyond, the atoms do not tell their axes
MOST_STRETCH = 1.5
MEAN_DISPLACEMENT = 0.16  # lattice constants
MARGIN = 0.03  # lattice constants by which the mean has to be worse in the second best supercell

MIN_DISTANCE = 0.5  # angstrom; closer atoms stand on one site
VOLUMES = (1, 500)  # angstrom^3 per atom; beyond, lengths are not in angstrom, or a digit is wrong

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?", re.ASCII)  # as Fortran reads it
WHOLE = re.compile(r"\d{1,9}", re.ASCII)


def read_poscar(path):
    """A POSCAR or CONTCAR as pymatgen Structure, as VASP reads it: https://www.vasp.at/wiki/POSCAR

    Without a line of names, as of VASP 4, each atom's line has to end with its own.
    Raises InputError that begins with the file's name and says what is wrong with it.
    """
    try:
        text = path.read_text("utf-8", errors="replace")  # comments may be in other encodings
        if path.suffix.lower() != ".cif" and "_cell_length_a" not in text:
            with np.errstate(all="ignore"):  # numbers beyond all bounds are refused, without a warning
                return parse_poscar(text)
        fault = "is a CIF file, expected a POSCAR"
    except OSError as error:
        fault = f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        fault = f"no whole POSCAR: {error}"
    raise InputError(f"{file_name(path)} ({fault})")


def file_name(path):
    """A file's name in messages; of a CONTCAR with its folder's, for all of them are called so."""
    return "/".join(path.parts[-2:]) if path.name in ("POSCAR", "CONTCAR") else path.name


def parse_poscar(text):
    """The text of a POSCAR as Structure; ValueError says what is wrong."""
    lines = [re.split("[!#]", line)[0].strip() for line in text.split("\n")] + [""] * 6
    scale = np.array(numbers(lines[1]))  # of all lengths, or of x, y and z
    if len(scale) not in (1, 3) or not scale.all() or (len(scale) == 3 and scale.min() < 0):
        raise ValueError(f"expected a scale, or three above 0, found {lines[1][:40]!r}")
    matrix = np.array([numbers(line, least=3)[:3] for line in lines[2:5]])
    if scale[0] < 0:  # it is the volume
        scale = (-scale / abs(np.linalg.det(matrix))) ** (1 / 3)
    matrix *= scale

    # Long lists of names and of numbers go over several lines. VASP 6 writes names as Fe_pv/1a2b3c4d.
    start = next((i for i in range(5, len(lines)) if numbers(lines[i], WHOLE)), len(lines) - 2)
    end = next(i for i in range(start, len(lines)) if not numbers(lines[i], WHOLE))
    names = [re.split("[/_]", word)[0] for line in lines[5:start] for word in line.split()]
    counts = [int(number) for line in lines[start:end] for number in numbers(line, WHOLE)]
    n_atoms = sum(counts)
    if not n_atoms or (names and len(names) != len(counts)):
        raise ValueError(f"expected a number of atoms for each element, found {len(counts)} for {len(names)}")
    selective = lines[end][:1] in ("S", "s")
    mode = lines[end + selective]
    if not mode[:1].isalpha():
        raise ValueError(f"expected Direct or Cartesian, found {mode[:40]!r}")
    lines = lines[end + selective + 1 :][:n_atoms]
    if len(lines) < n_atoms:
        raise ValueError(f"fewer lines than atoms, {n_atoms}")
    points = np.array([numbers(line, least=3)[:3] for line in lines])
    if names:
        names = [name for name, number in zip(names, counts) for _ in range(number)]
    else:
        names = [" ".join(line.split()[6 if selective else 3 :][:1]) for line in lines]
    if unknown := [repr(x) for x in dict.fromkeys(names) if x in "DT" or not Element.is_valid_symbol(x)]:
        raise ValueError(f"Elements in POSCAR cannot be determined, found {listed(unknown)}")
    # Beyond these the search for neighbours would take all memory there is.
    volume = abs(np.linalg.det(matrix)) / n_atoms
    height = 1 / np.linalg.norm(np.linalg.inv(matrix), axis=0).max()  # the least between opposite faces
    if not (VOLUMES[0] <= volume <= VOLUMES[1] and height >= MIN_DISTANCE):
        raise ValueError(f"a volume of {volume:.3g} angstrom^3 per atom, a height of {height:.3g} angstrom")
    cartesian = mode[0] in "CcKk"
    points = points * scale if cartesian else points
    structure = Structure(Lattice(matrix), names, points, coords_are_cartesian=cartesian)
    if not np.abs(structure.frac_coords).max() < 1000:
        raise ValueError("a coordinate far out of the cell")
    return structure


def numbers(line, pattern=NUMBER, least=0):
    """The numbers that a line begins with; what follows is a comment. ValueError if they are too few."""
    found = [*takewhile(pattern.fullmatch, line.split())]
    if len(found) < least:
        raise ValueError(f"expected {least} numbers, found {line[:40]!r}")
    return [float(number.lower().replace("d", "e")) for number in found]


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
    # 1.2 lattice constants hold both shells; strongly distorted cells take another round.
    radius = 1.2 * lattice_constant(structure, phase)
    for _ in range(ROUNDS):
        centre, site, image, distance = structure.get_neighbor_list(radius)
        if len(distance) and distance.min() < MIN_DISTANCE:
            raise InputError("two atoms on one site")
        count = np.bincount(centre, minlength=len(structure))
        if count.min() >= n:
            break
        radius *= 1.2
    else:
        raise InputError(f"an atom with {count.min()} others within {radius / 1.2:.1f} angstrom")
    matrix = structure.lattice.matrix
    positions = structure.frac_coords @ matrix
    middle = positions + (matrix[0] + matrix[1] + matrix[2])
    cell = image + 1.0  # of the block, each 0 to 2 where the cell is large
    shift = cell[:, :1] * matrix[0] + cell[:, 1:2] * matrix[1] + cell[:, 2:] * matrix[2]
    block = positions[site] + shift
    order = np.lexsort((site, *image.T[::-1], distances(block, middle[centre]), centre))
    nearest = order[(np.cumsum(count) - count)[:, None] + np.arange(n)]  # (n_atoms, n)
    return site[nearest], np.concatenate([middle[:, None], block[nearest]], axis=1)


def distances(one, other):
    """Between positions (..., 3), the squares added up in the order of the axes, as published."""
    square = one - other
    square *= square
    return np.sqrt(square[..., 0] + square[..., 1] + square[..., 2])


def lattice_constant(structure, phase):
    """In angstrom, of the cubic lattice with as much volume per atom."""
    return (structure.volume / len(structure) * ATOMS_PER_CUBE[phase]) ** (1 / 3)


def structure_types(positions):
    """Which atoms are of the type fcc, bcc, hcp or other: bool (n_atoms, 4), as in STRUCTURE_TYPES.

    Adaptive common neighbour analysis: A. Stukowski, Modelling Simul. Mater. Sci. Eng. 20, 045021 (2012).
    positions: of each atom and its 14 nearest or more, near first, (n_atoms, at least 15, 3), in any unit,
    as `neighbours` gives them; those of many structures may be put together.
    """
    vectors = positions[:, 1:15] - positions[:, :1]
    products = vectors @ vectors.swapaxes(1, 2)
    squares = np.einsum("ann->an", products)  # of the lengths, (n_atoms, 14)
    lengths = np.sqrt(squares)
    between = squares[:, :, None] + squares[:, None] - 2 * products  # squared distances of neighbours

    def counts(atoms, local, signatures):
        """How many of these atoms' neighbours have each signature; local: (n, n_nearest), their scale."""
        n = local.shape[1]
        cutoffs = (1 + 2**0.5) / 2 * local.mean(1)  # half way between two shells
        bonds = (between[atoms, :n, :n] < cutoffs[:, None, None] ** 2).astype(np.float32)
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


def phase_fractions(positions):
    """Fractions of a structure's atoms that are of each of STRUCTURE_TYPES, (4,); positions as there."""
    return structure_types(positions).mean(0)


def n_sites(supercell, phase):
    """Number of lattice points in a supercell."""
    return round(abs(np.linalg.det(supercell) / np.linalg.det(PRIMITIVE[phase])))


def stretch(structure, phase, supercell):
    """Greatest over least principal stretch from the ideal supercell to the structure's."""
    ideal = np.array(supercell) * lattice_constant(structure, phase) / 2
    values = np.linalg.svd(np.linalg.solve(ideal, structure.lattice.matrix), compute_uv=False)
    return values[0] / values[-1]


def ideal_supercell(structure, phase):
    """The supercell that a structure was made in, read off its atoms; None where they do not tell.

    Of the supercells that rotations and mirror images of the lattice make of one another one is given,
    the same for all of them, right-handed. Raises InputError where `neighbours` does.
    """
    n_first, ideal, unit = FIRST_SHELL[phase], PRIMITIVE[phase], lattice_constant(structure, phase) / 2
    _, positions = neighbours(structure, phase)
    nearest = (positions[:, 1:] - positions[:, :1])[:, : WHOLE_SHELLS[phase]] / unit
    # The three neighbours of one atom that are most nearly primitive vectors, by their scalar products.
    seeds = nearest[:SEEDS, :n_first]
    wanted = np.where(np.eye(n_first), ideal[0] @ ideal[0], ideal[0] @ ideal[1])
    off = np.abs(seeds @ seeds.swapaxes(1, 2) - wanted)  # (n_seeds, n_first, n_first)
    triples = np.array(list(combinations(range(n_first), 3)))  # (n_triples, 3)
    i, j, k = triples.T
    worst = np.max([off[:, a, b] for a, b in ((i, i), (j, j), (k, k), (i, j), (i, k), (j, k))], axis=0)
    atom, triple = np.unravel_index(worst.argmin(), worst.shape)
    basis = seeds[atom, triples[triple]]
    # Their mean over all atoms, in which displacements cancel and strain does not.
    nearest = nearest.reshape(-1, 3)
    for _ in range(2):
        steps = np.rint(nearest @ np.linalg.pinv(basis))
        basis = np.linalg.lstsq(steps, nearest, rcond=None)[0]
    supercell = np.rint(structure.lattice.matrix / unit @ np.linalg.pinv(basis)) @ ideal
    if n_sites(supercell, phase) != len(structure) or stretch(structure, phase, supercell) > OWN_STRETCH:
        return None
    # Rotations and mirror images of the lattice exchange the cubic axes and turn them round.
    supercell *= np.sign([axis[axis != 0][0] for axis in supercell.T])
    supercell = supercell[:, np.lexsort(supercell[::-1])]
    supercell *= np.sign(np.linalg.det(supercell))
    return tuple(map(tuple, supercell.astype(int).tolist()))


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


def assign_sites(structure, phase, supercell):
    """Each atom on the site of the supercell that is nearest to it; None where two atoms take one site.

    Fractional coordinates keep what strain takes from the lattice vectors. Returns sites (n_atoms, 3) in
    half lattice constants and displacements (n_atoms,) in lattice constants, the common shift taken off.
    """
    points = structure.frac_coords @ np.array(supercell)  # (n_atoms, 3)
    # The shift, first from the phases of three plane waves that are 1 on every lattice point.
    waves = np.exp(2j * np.pi * points @ np.linalg.inv(PRIMITIVE[phase])).mean(0)
    points = points - np.angle(waves) / (2 * np.pi) @ PRIMITIVE[phase]
    sites = nearest_sites(points, phase)
    points = points - (points - sites).mean(0)
    volume = round(np.linalg.det(supercell))
    remainders = np.rint(sites @ np.linalg.inv(supercell) * volume) % volume  # whole numbers: no tolerance
    if len(np.unique(remainders, axis=0)) < len(points):
        return None
    return sites, np.linalg.norm(points - sites, axis=1) / 2


def map_to_lattice(structure, phase, supercells=()):
    """A structure put back on its ideal lattice, its volume kept: (Structure, mean, largest displacement).

    structure: a pymatgen Structure. phase: 'fcc' or 'bcc', the lattice it was made on. supercells: those of
    other structures, for one whose own atoms do not tell its `ideal_supercell`; of those with its number of
    sites, the one that displaces the atoms least is taken. The sites keep their order; the cubic axes are
    x, y and z. Displacements: in lattice constants, as in `assign_sites`.
    Raises InputError where no supercell fits, or two fit about as well.
    """
    own, n_atoms = ideal_supercell(structure, phase), len(structure)
    known = supercells if own is None else [own]
    supercells = [one for one in sorted(set(known)) if n_sites(one, phase) == n_atoms]
    # Nearer than this to a site, an atom is nearer to it than to any other.
    half = np.linalg.norm(PRIMITIVE[phase][0]) / 4  # of the nearest-neighbour distance, lattice constants
    fits = []
    for supercell in supercells:
        assigned = assign_sites(structure, phase, supercell)
        if assigned is None or stretch(structure, phase, supercell) > MOST_STRETCH:
            continue
        sites, displacements = assigned
        mean, largest = displacements.mean(), displacements.max()
        if mean < MEAN_DISPLACEMENT and largest < half:
            fits.append((mean, largest, supercell, sites))
    fits.sort(key=lambda fit: fit[0])
    fault = None
    if not supercells:
        fault = f"no undistorted {phase} cell of {n_atoms} atoms tells where its atoms were"
    elif not fits:
        fault = f"its {n_atoms} atoms are too far from the sites of a lattice of {phase}"
    elif len(fits) > 1 and fits[1][0] < fits[0][0] + MARGIN:
        fault = f"its {n_atoms} atoms fit two supercells of {phase} about as well"
    if fault:
        raise InputError(f"cannot be put back on its lattice: {fault}")
    mean, largest, supercell, sites = fits[0]
    # A lattice is its own inverse image; a supercell of it then is of the other hand.
    hand = np.sign(np.linalg.det(structure.lattice.matrix))
    ideal = Lattice(hand * np.array(supercell) * lattice_constant(structure, phase) / 2)
    return Structure(ideal, structure.species_and_occu, sites @ np.linalg.inv(supercell)), mean, largest
