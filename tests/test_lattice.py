"""POSCARs in the dialects of codes; structure types in known crystals; cells put back on their lattice."""

import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import STUDY, ideal, needs_study, random_alloy
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp.inputs import Poscar
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

import lattice
from lattice import PRIMITIVE, STRUCTURE_TYPES, ideal_supercell, map_to_lattice
from settings import InputError

CELL = random_alloy("fcc", {"Cr": 6, "Fe": 8, "Co": 10, "Ni": 8}, seed=1).get_sorted_structure()
CELL = CELL.apply_strain([0, 0.1, 0.3]).make_supercell([[1, 0, 0], [1, 1, 0], [0, 1, 1]], to_unit_cell=False)


def poscar(changes=(), factors=1, direct=True, selective=False):
    """CELL as POSCAR, x, y and z multiplied, some lines replaced: {number from 0: line}, None for none."""
    structure = Structure(CELL.lattice.matrix * factors, CELL.species, CELL.frac_coords)
    flags = [[True, False, True]] * len(CELL) if selective else None
    text = Poscar(structure, selective_dynamics=flags).get_str(direct=direct, significant_figures=15)
    lines = dict(enumerate(text.splitlines())) | dict(changes)
    return "\n".join(line for line in lines.values() if line is not None) + "\n"


THREE, VOLUME = {1: "0.8 1.25 0.5 x y z"}, {1: f"-{CELL.volume:.12f}"}
DIALECTS = {
    "Cartesian": poscar({7: "K"}, direct=False),
    "comment after the scale": poscar({1: "1.0  # universal scaling factor"}),
    "comments": poscar({1: "1.0 scale", 5: "Cr Fe Co Ni ! PBE", 6: "6 8 10 8 # 32", 7: "direct mode"}),
    "three scales": poscar(THREE, [1.25, 0.8, 2]),
    "three scales, Cartesian": poscar(THREE, [1.25, 0.8, 2], direct=False),
    "volume": poscar(VOLUME, 2),
    "volume, Cartesian": poscar(VOLUME, 2, direct=False),
    "Fortran's numbers": poscar({1: "5.0D-1"}, 2, direct=False),
    "hashes": poscar({5: "Cr_pv/1a2b3c4d Fe/51fe0bdb Co/b169bca4 Ni_pv/9e2c"}),
    "hashes that wrap": poscar({5: "  Cr_pv/1a2b3c4d  Fe_sv_GW/51fe\n  Co/b169bca4\n  Ni/9e2c2ab0"}),
    "numbers wrap too": poscar({5: "Cr Fe\nCo Co Ni", 6: "6 8\n3 7 8"}),
    "selective dynamics": poscar(selective=True),
    "velocities": poscar() + "\n" + "  0.00000000E+00  0.00000000E+00  0.00000000E+00\n" * 32,
    "Windows": poscar({0: "Gitter in Å"}).replace("\n", "\r\n"),
    "VASP 4": poscar({5: None}),  # names at the ends of the atoms' lines
    "VASP 4, selective dynamics": poscar({5: None}, selective=True),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(tmp_path, dialect):
    """The same structure, written otherwise, is the same structure."""
    for encoding in ("utf-8-sig", "cp1252"):
        (tmp_path / "CONTCAR").write_text(DIALECTS[dialect], encoding, newline="")
        with warnings.catch_warnings(action="error"):
            found = lattice.read_poscar(tmp_path / "CONTCAR")
        assert found.species == CELL.species
        np.testing.assert_allclose(found.lattice.matrix, CELL.lattice.matrix, atol=1e-11)
        np.testing.assert_allclose(found.frac_coords, CELL.frac_coords, atol=1e-11)


def edges(a, b, c, shear=0):
    return poscar({2: f"{a} 0 0", 3: f"{shear} {b} 0", 4: f"0 0 {c}"})


NAMELESS = "\n".join(line[: -2 if i > 6 else None] for i, line in enumerate(poscar({5: None}).splitlines()))
FAULTS = [
    ("", "a scale"), (poscar({1: "1 2"}), "a scale"), (poscar({1: "0"}), "a scale"), ("\0\n\0", "a scale"),
    (poscar({1: "1 1 -1"}), "a scale"), (poscar({3: "1.0 abc 2"}), "3 numbers, found '1.0 abc 2'"),
    (poscar({5: "X1 Fe Co Ni"}), "Elements in POSCAR cannot be determined, found 'X1'"),
    (poscar({5: "Cr Fe D Ni"}), "cannot be determined, found 'D'"), (NAMELESS, "cannot be determined"),
    (NAMELESS.replace(" \n", " T T T\n"), "cannot be determined, found 'T'"),
    (poscar({6: "6 8 10"}), "of atoms for each element, found 3 for 4"), (poscar({6: "0 0 0 0"}), "of atoms"),
    (poscar({6: None}), "of atoms for each"), (poscar({6: "6 8 10 999999999"}), "fewer lines than atoms"),
    (poscar({7: ""}), "expected Direct or Cartesian"), (poscar({7: None}), "expected Direct or Cartesian"),
    (poscar({9: "0.1 nan 0.2"}), "3 numbers"), (poscar({9: "0.1 1_0 0.2"}), "3 numbers"),
    (poscar({9: "0,1 0,2 0,3"}), "3 numbers"), (poscar({39: None}), "3 numbers, found ''"),
    (poscar({9: "1e3 0.1 0.2"}), "far out of the cell"), ("data_Fe\n_cell_length_a 2.87\n", "(is a CIF file"),
    *((edges(a, a, a), "a volume of") for a in (1e-3, 3, 26, 1e4, 1e200)), (edges(0, 7, 7), "Singular"),
    (edges(0.4, 35, 35), "a height of 0.4"), (edges(7, 7, 7, shear=7e5), "a height of 7e-05"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FAULTS)
def test_faults_of_a_poscar(tmp_path, text, expected):
    for name in ("Cr6_fcc", "calc1/CONTCAR"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, newline="")
        with warnings.catch_warnings(action="error"), pytest.raises(InputError) as error:
            lattice.read_poscar(tmp_path / name)
        found = str(error.value)
        assert expected in found and found.startswith(f"{name} (") and len(found) < 130


SUPERCELLS = {  # of the primitive cell: one to 160 atoms, cubes, slabs, and skewed ones
    "one": np.eye(3), "two": np.diag([1, 1, 2]), "three": [[1, 1, 0], [-1, 2, 0], [0, 0, 1]],
    "four": [[-1, 1, 1], [1, -1, 1], [1, 1, -1]], "long": [[1, 0, 0], [0, 1, 1], [0, -8, 8]],
    "36": [[3, 0, 0], [1, 3, -1], [0, 0, 4]], "64": np.diag([4, 4, 4]), "slab": np.diag([2, 4, 8]),
    "160": [[-4, 4, 4], [4, -4, 4], [5, 5, -5]],
}  # fmt: skip
OVITO = {  # displacement in angstrom: atoms of STRUCTURE_TYPES in fcc, bcc and ABAC crystals
    0.3: [[203, 0, 0, 53], [0, 244, 0, 6], [11, 0, 14, 7]],
    0.4: [[20, 0, 0, 236], [0, 83, 0, 167], [0, 0, 0, 32]],
    0.5: [[2, 0, 0, 254], [0, 1, 0, 249], [0, 0, 0, 32]],
}
phases = pytest.mark.parametrize("phase", PRIMITIVE)


def crystal(phase, name, stretches=1, a=3.5):
    """Sites of an ideal lattice in one of SUPERCELLS, stretched along x, y and z, filled at random."""
    matrix = PRIMITIVE[phase] * a / 2 * stretches
    structure = Structure(matrix, ["Fe"], [[0, 0, 0]]).make_supercell(SUPERCELLS[name])
    species = np.random.default_rng(3).choice(["Fe", "Ni", "Co"], len(structure))
    return Structure(structure.lattice, species, structure.frac_coords)


def displaced(structure, size, seed=0):
    """Each atom moved by this many angstrom, in a random direction."""
    step = np.random.default_rng(seed).normal(size=(len(structure), 3))
    coords = structure.cart_coords + step * (size / np.linalg.norm(step, axis=1)[:, None])
    return Structure(structure.lattice, structure.species, coords, coords_are_cartesian=True)


def stacked(layers, a=2.5):
    """Close-packed layers, as 'AB' or 'ABAC', in a cell of 2 x 2 atoms a layer."""
    matrix = [[a, 0, 0], [a / 2, a * 3**0.5 / 2, 0], [0, 0, len(layers) * a * (2 / 3) ** 0.5]]
    sites = [["ABC".index(x) / 3, "ABC".index(x) / 3, i / len(layers)] for i, x in enumerate(layers)]
    return Structure(matrix, ["Fe"] * len(layers), sites).make_supercell([2, 2, 1])


def fractions(structure):
    return lattice.phase_fractions(lattice.neighbours(structure, "fcc")[1])


def topology(structure, phase):
    """Which sites are the first and the second neighbours of each, (n_atoms, 18 or 14)."""
    parts = np.split(lattice.neighbours(structure, phase)[0], [{"fcc": 12, "bcc": 8}[phase]], axis=1)
    return np.hstack([np.sort(part) for part in parts])


CRYSTALS = [
    (crystal("fcc", "one"), (1, 0, 0, 0)), (crystal("bcc", "one"), (0, 1, 0, 0)),
    (crystal("bcc", "64"), (0, 1, 0, 0)), (stacked("AB"), (0, 0, 1, 0)),
    (stacked("ABCABACBACB"), (9 / 11, 0, 2 / 11, 0)),  # hcp: the layers between two alike
    (Structure(Lattice.cubic(2.5), ["Fe"], [[0, 0, 0]]), (0, 0, 0, 1)),  # simple cubic
    (Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.4), ["Si"], [[0, 0, 0]]), (0, 0, 0, 1)),
    (ideal("fcc", ["Fe"], 3).remove_sites([0]), (95 / 107, 0, 0, 12 / 107)),  # beside a vacancy
]  # fmt: skip


def test_structure_types():
    """Of crystals; in distorted ones as many as OVITO 3.17.2's adaptive common neighbour analysis finds."""
    for structure, expected in CRYSTALS:
        for one in (structure, displaced(structure, 0.05)):
            assert fractions(one) == pytest.approx(expected)
    turn = 3.7 * Rotation.random(rng=np.random.default_rng(1)).as_matrix()  # and another unit
    crystals = ideal("fcc", ["Fe"], 4), ideal("bcc", ["Fe"], 5, a=2.9), stacked("ABACABAC")
    for (size, numbers), seed in zip(OVITO.items(), (3, 1, 2)):
        for structure, expected in zip(crystals, numbers):
            _, positions = lattice.neighbours(displaced(structure, size, seed), "fcc")
            assert lattice.structure_types(positions).sum(0).tolist() == expected
            assert lattice.structure_types(positions @ turn).sum(0).tolist() == expected


@phases
@pytest.mark.parametrize("name", SUPERCELLS)
@pytest.mark.parametrize("seed", range(4))
def test_what_relaxation_does_is_undone(phase, name, seed):
    """The neighbours and the supercell are those of the ideal cell, whatever was done to it.

    Turned or mirrored, strained, shifted, displaced, in other periodic images, its sites in another order.
    """
    generator, size, cell = np.random.default_rng(seed), 0.15 * (seed > 0), crystal(phase, name)
    cell = Structure.from_sites([cell[i] for i in generator.permutation(len(cell))])
    if seed > 1:
        cell.make_supercell([[1, 0, 0], [2, 1, 0], [-1, 2, 1]], to_unit_cell=False)  # other lattice vectors
    supercell, expected = np.array(ideal_supercell(cell, phase)), cell.lattice.matrix / 1.75
    np.testing.assert_allclose(supercell @ supercell.T, expected @ expected.T)
    strain = generator.uniform(-0.04, 0.04, (3, 3)) * (seed > 0)
    turn = Rotation.random(rng=generator).as_matrix() * (-1) ** seed
    shift = generator.uniform(size=3) + generator.integers(-2, 3, (len(cell), 3))
    matrix = cell.lattice.matrix @ (np.eye(3) + (strain + strain.T) / 2) @ turn
    relaxed = displaced(Structure(matrix, cell.species, cell.frac_coords + shift), size, seed)
    assert ideal_supercell(relaxed, phase) == ideal_supercell(cell, phase)
    image, mean, largest = map_to_lattice(relaxed, phase)
    assert image.species == cell.species and mean <= largest < size / 3.5 * 2 + 1e-12
    assert np.linalg.det(image.lattice.matrix) == pytest.approx(np.linalg.det(matrix))
    np.testing.assert_array_equal(topology(image, phase), topology(cell, phase))


@phases
def test_sites_and_displacements(phase):
    """Nearest sites, against a search through all around; displacements are of one atom against all."""
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    grid = np.mgrid[-5:6, -5:6, -5:6].reshape(3, -1).T @ PRIMITIVE[phase]
    nearest = grid[np.linalg.norm(points[:, None] - grid, axis=2).argmin(1)]
    np.testing.assert_array_equal(lattice.nearest_sites(points, phase), nearest)
    structure = crystal(phase, "36").translate_sites([3], [0, 0.35, 0], frac_coords=False)
    assert map_to_lattice(structure, phase)[1:] == pytest.approx((2 * 0.1 * 35 / 36**2, 0.1 * 35 / 36))


@pytest.mark.parametrize("phase, other, to", [("fcc", "bcc", 2**-0.5), ("bcc", "fcc", 2**0.5)])
def test_bain(phase, other, to):
    """fcc and bcc made of one another: the cell itself does not tell, another one like it does."""
    path = [fractions(crystal(phase, "36", [1, 1, to**part])) for part in np.linspace(0, 1, 11)]
    types = [STRUCTURE_TYPES[one.argmax()] for one in path]
    assert np.max(path, axis=1).tolist() == [1] * 11 and types[0] == phase and types[-1] == other
    assert types == sorted(types, reverse=phase == "fcc"), "from one to the other, and not back"
    structure, gone = crystal(phase, "36"), displaced(crystal(phase, "36", [1, 1, to]), 0.05)
    with pytest.raises(InputError, match=f"put back on its lattice: no undistorted {phase} cell of 36 atoms"):
        map_to_lattice(gone, phase)
    known = [ideal_supercell(crystal(phase, name), phase) for name in ("64", "36", "36")]
    image, mean, _ = map_to_lattice(gone, phase, known)
    assert mean < 0.05 and ideal_supercell(crystal(phase, "36", [1, 1, to**0.45]), phase) == known[1]
    np.testing.assert_array_equal(topology(image, phase), topology(structure, phase))


@phases
def test_cells_that_cannot_be_put_back(phase):
    cube, site = crystal(phase, "64"), PRIMITIVE[phase][0] * 3.5 / 2
    known = [ideal_supercell(crystal(phase, name), phase) for name in ("64", "two")]
    for wrong, expected in (
        (cube.copy().append("Fe", [0.125, 0, 0.0625]), f"no undistorted {phase} cell of 65 atoms"),
        (cube.copy().remove_sites([0]), f"no undistorted {phase} cell of 63 atoms"),
        (displaced(cube, 0.7), "too far from"), (displaced(cube, 1.5), "too far from|one site"),
        (cube.copy().translate_sites([0], [0, 0, 1.6], frac_coords=False), "too far from"),
        (cube.copy().translate_sites([0], 0.75 * site, frac_coords=False), "too far from"),  # two on a site
        (cube.copy().translate_sites([0], 0.9 * site, frac_coords=False), "two atoms on one site"),
        (crystal(phase, "two", [1, 1.6, 1]), "too far from"), (crystal(phase, "two", [1, 1, 0.6]), "too far"),
        (crystal(phase, "slab", [1, 1, 2**0.5 if phase == "bcc" else 2**-0.5]), "too far from"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=expected):
            map_to_lattice(wrong, phase, known)
    for stretch in (1.45, 1 / 1.45):
        map_to_lattice(crystal(phase, "two", [1, stretch, 1]), phase, known)
    # An atom in an fcc cell, once bcc: along which axis it was stretched is not to be seen.
    known = [ideal_supercell(crystal("fcc", "one", np.roll([1, 1, 2**-0.5], i)), "bcc") for i in range(3)]
    assert len(set(known)) > 1 and None not in known
    with pytest.raises(InputError, match="two supercells of bcc"):
        map_to_lattice(crystal("fcc", "one"), "bcc", known)
    assert map_to_lattice(crystal("fcc", "one"), "bcc", known[:1])[1] == pytest.approx(0, abs=1e-12)


@needs_study
def test_the_study():
    """Every third of its cells goes back to its lattice, onto the sites that are best."""
    data = pd.read_csv(STUDY / "Database.csv", usecols=["structures", "phase"])[::3]
    data["cell"] = [lattice.read_poscar(STUDY / "POSCARS" / name) for name in data.structures]
    data["hcp"] = [fractions(one).argmax() == 2 for one in data.cell]
    for phase, rows in data.groupby("phase"):
        known = {ideal_supercell(one, phase) for one in rows.cell} - {None}
        for i, structure in rows.cell.items():
            image, data.loc[i, "mean"], data.loc[i, "largest"] = map_to_lattice(structure, phase, known)
            if len(structure) <= 36:  # no other way of giving each atom a site of its own moves them less
                off = structure.frac_coords[:, None] - image.frac_coords
                off -= np.diagonal(off, axis1=0, axis2=1).mean(1)
                steps = (off - np.rint(off))[:, :, None] + np.mgrid[-1:2, -1:2, -1:2].reshape(3, -1).T
                squares = (np.linalg.norm(steps @ image.lattice.matrix, axis=3) ** 2).min(2)
                assert linear_sum_assignment(squares)[1].tolist() == [*range(len(off))], rows.structures[i]
    assert data.groupby("phase")["mean"].mean().round(2).to_dict() == {"bcc": 0.05, "fcc": 0.02}
    assert data["mean"][(data.phase == "bcc") & data.hcp].between(0.085, 0.14).all()
    assert data.hcp.sum() > 9 and data.largest.max() < 0.28
