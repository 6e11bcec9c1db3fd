"""Surroundings of atoms in known crystals; cells put back on their lattice, and cells that cannot be."""

import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, STUDY, ideal, needs_study
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp.inputs import Poscar
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

from cells import PRIMITIVE, SURROUNDINGS, nearest_sites, on_lattice, own_cell, phase_shares, surroundings
from structure_stat import neighbours

ELEMENTS = ("Fe", "Ni", "Co", "Cr", "Mn")

# Supercells of the primitive cell: one to four atoms, cubes, slabs, and skewed ones.
SUPERCELLS = {
    "one": np.eye(3, dtype=int),
    "one, skewed": [[1, 0, 0], [2, 1, 0], [0, -1, 1]],
    "two": [[1, 0, 0], [0, 1, 0], [0, 0, 2]],
    "three": [[1, 1, 0], [-1, 2, 0], [0, 0, 1]],
    "four": [[-1, 1, 1], [1, -1, 1], [1, 1, -1]],
    "long": [[1, 0, 0], [0, 1, 1], [0, -8, 8]],
    "36": [[3, 0, 0], [1, 3, -1], [0, 0, 4]],
    "64": [[4, 0, 0], [0, 4, 0], [0, 0, 4]],
    "skewed": [[4, 0, 0], [4, 4, 0], [-8, 4, 4]],
    "160": [[-4, 4, 4], [4, -4, 4], [5, 5, -5]],
}
OVITO = {  # displacement in angstrom: atoms in SURROUNDINGS of fcc, bcc and ABAC crystals
    0.3: [[203, 0, 0, 53], [0, 244, 0, 6], [11, 0, 14, 7]],
    0.4: [[20, 0, 0, 236], [0, 83, 0, 167], [0, 0, 0, 32]],
    0.5: [[2, 0, 0, 254], [0, 1, 0, 249], [0, 0, 0, 32]],
}
CASES = [(phase, name) for phase in PRIMITIVE for name in SUPERCELLS]


def crystal(phase, supercell, a=3.5):
    """Sites of an ideal lattice in a supercell of its primitive cell, filled at random."""
    structure = Structure(Lattice(PRIMITIVE[phase] * a / 2), ["Fe"], [[0, 0, 0]])
    structure.make_supercell(supercell)
    generator = np.random.default_rng(len(structure))
    return Structure(structure.lattice, generator.choice(ELEMENTS, len(structure)), structure.frac_coords)


def moved(structure, lattice=None, shift=0.0):
    """With other lattice vectors (3, 3) and shifted fractional coordinates."""
    lattice = structure.lattice.matrix if lattice is None else lattice
    return Structure(Lattice(lattice), structure.species, structure.frac_coords + shift)


def displaced(structure, size, seed=0):
    """Each atom moved by this many angstrom, in a random direction."""
    step = np.random.default_rng(seed).normal(size=(len(structure), 3))
    step *= size / np.linalg.norm(step, axis=1)[:, None]
    return Structure(
        structure.lattice, structure.species, structure.cart_coords + step, coords_are_cartesian=True
    )


def vectors_of(structure, phase):
    """From each atom to its neighbours, (n_atoms, 18 or 14, 3)."""
    positions = neighbours(structure, phase)[1]
    return positions[:, 1:] - positions[:, :1]


def shares(structure):
    return phase_shares(vectors_of(structure, "fcc"))


def put_back(structure, phase, known=()):
    own = own_cell(structure, phase, vectors_of(structure, phase))
    return on_lattice(structure, phase, known if own is None else [own])


def topology(structure, phase):
    """Which sites are the first and the second neighbours of each, (n_atoms, 18 or 14)."""
    site, _ = neighbours(structure, phase)
    n_first = {"fcc": 12, "bcc": 8}[phase]
    return np.hstack([np.sort(site[:, :n_first]), np.sort(site[:, n_first:])])


def stacked(layers, a=2.5):
    """Close-packed layers, as 'AB' or 'ABAC', in a cell of 2 x 2 atoms a layer."""
    lattice = Lattice([[a, 0, 0], [a / 2, a * 3**0.5 / 2, 0], [0, 0, len(layers) * a * (2 / 3) ** 0.5]])
    sites = [["ABC".index(x) / 3, "ABC".index(x) / 3, i / len(layers)] for i, x in enumerate(layers)]
    return Structure(lattice, ["Fe"] * len(layers), sites).make_supercell([2, 2, 1])


@pytest.mark.parametrize(
    "structure, expected",
    [
        (ideal("fcc", ["Fe"], 2), (1, 0, 0, 0)),
        (ideal("bcc", ["Fe"], 2), (0, 1, 0, 0)),
        (stacked("ABC"), (1, 0, 0, 0)),
        (stacked("AB"), (0, 0, 1, 0)),
        (stacked("ABAC"), (0.5, 0, 0.5, 0)),
        (stacked("ABCABACBACB"), (9 / 11, 0, 2 / 11, 0)),  # hcp: the layers between two alike
        (Structure(Lattice.cubic(2.5), ["Fe"], [[0, 0, 0]]), (0, 0, 0, 1)),  # simple cubic
        (Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.4), ["Si"], [[0, 0, 0]]), (0, 0, 0, 1)),
        (crystal("fcc", SUPERCELLS["one"]), (1, 0, 0, 0)),
        (crystal("bcc", SUPERCELLS["one"]), (0, 1, 0, 0)),
    ],
)
def test_surroundings_of_crystals(structure, expected):
    assert shares(structure) == pytest.approx(expected)
    assert shares(displaced(structure, 0.05)) == pytest.approx(expected)


def test_surroundings_are_the_same_turned_strained_and_in_other_units():
    structure = displaced(stacked("ABAC"), 0.1)
    vectors = vectors_of(structure, "fcc")
    expected = surroundings(vectors)
    assert expected.sum(1).tolist() == [1] * len(structure)
    turned = vectors @ Rotation.random(rng=np.random.default_rng(1)).as_matrix()
    np.testing.assert_array_equal(surroundings(3.7 * turned), expected)
    np.testing.assert_array_equal(surroundings(vectors @ np.diag([1.02, 0.99, 0.98])), expected)
    both = np.concatenate([vectors, vectors_of(ideal("bcc", ["Fe"], 2), "fcc")])
    np.testing.assert_array_equal(surroundings(both)[: len(structure)], expected)


@pytest.mark.parametrize("size, seed", [(0.3, 3), (0.4, 1), (0.5, 2)])
def test_surroundings_beside_ovito(size, seed):
    """Atoms that OVITO 3.17.2's adaptive common neighbour analysis finds in each, in distorted crystals."""
    found = [
        (surroundings(vectors_of(displaced(one, size, seed), "fcc")).sum(0)).tolist()
        for one in (ideal("fcc", ["Fe"], 4), ideal("bcc", ["Fe"], 5, a=2.9), stacked("ABACABAC"))
    ]
    assert found == OVITO[size]


def test_on_the_way_from_bcc_to_fcc_each_atom_is_one():
    structure = ideal("bcc", ["Fe"], 4)
    found = []
    for part in np.linspace(0, 1, 11):
        lattice = structure.lattice.matrix @ np.diag([1, 1, 2 ** (part / 2)])
        assert shares(moved(structure, lattice)).sum() == 1
        found.append(SURROUNDINGS[shares(moved(structure, lattice)).argmax()])
    assert found[0] == "bcc" and found[-1] == "fcc"
    assert found == sorted(found), "from one to the other, and not back"


def test_one_vacancy_unsettles_its_neighbours_alone():
    structure = ideal("fcc", ["Fe"], 3)
    structure.remove_sites([0])
    assert shares(structure) * len(structure) == pytest.approx([107 - 12, 0, 0, 12])


@pytest.mark.parametrize("phase, name", CASES)
def test_an_ideal_cell_is_its_own_image(phase, name):
    structure = crystal(phase, SUPERCELLS[name])
    image, mean, largest = put_back(structure, phase)
    assert mean == pytest.approx(0, abs=1e-12) and largest == pytest.approx(0, abs=1e-12)
    assert image.species == structure.species
    assert image.volume == pytest.approx(structure.volume)
    np.testing.assert_allclose(image.lattice.parameters, structure.lattice.parameters, rtol=1e-9)
    np.testing.assert_array_equal(topology(image, phase), topology(structure, phase))


@pytest.mark.parametrize("phase, name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_what_relaxation_does_is_undone(phase, name, seed):
    """Turned, strained, shifted and displaced, in other periodic images: the neighbours of the ideal cell."""
    structure = crystal(phase, SUPERCELLS[name])
    generator = np.random.default_rng(seed)
    strain = generator.uniform(-0.04, 0.04, (3, 3))
    turn = Rotation.random(rng=generator).as_matrix()
    lattice = structure.lattice.matrix @ (np.eye(3) + (strain + strain.T) / 2) @ turn
    images = generator.integers(-2, 3, (len(structure), 3))
    relaxed = displaced(moved(structure, lattice, generator.uniform(size=3) + images), 0.15, seed)
    image, mean, largest = put_back(relaxed, phase)
    np.testing.assert_array_equal(topology(image, phase), topology(structure, phase))
    assert image.volume == pytest.approx(relaxed.volume)
    assert mean <= largest < 0.15 / 3.5 * 2
    again, *displacements = put_back(image, phase)
    np.testing.assert_allclose(displacements, 0, atol=1e-12)
    np.testing.assert_allclose(again.lattice.matrix, image.lattice.matrix, atol=1e-9)


@pytest.mark.parametrize("phase", PRIMITIVE)
def test_order_of_sites(phase):
    structure = displaced(crystal(phase, SUPERCELLS["36"]), 0.2)
    order = np.random.default_rng(0).permutation(len(structure))
    image, *displacements = put_back(structure, phase)
    other, *again = put_back(Structure.from_sites([structure[i] for i in order]), phase)
    assert again == pytest.approx(displacements)
    assert other.species == [image.species[i] for i in order]
    np.testing.assert_allclose(other.distance_matrix, image.distance_matrix[order][:, order], atol=1e-9)


@pytest.mark.parametrize("phase", PRIMITIVE)
def test_choice_of_lattice_vectors(phase):
    structure = displaced(crystal(phase, SUPERCELLS["64"]), 0.2)
    skewed = structure.copy().make_supercell([[1, 0, 0], [2, 1, 0], [-1, 2, 1]], to_unit_cell=False)
    image, *displacements = put_back(structure, phase)
    other, *again = put_back(skewed, phase)
    assert again == pytest.approx(displacements)
    np.testing.assert_allclose(
        np.sort(other.distance_matrix, axis=None), np.sort(image.distance_matrix, axis=None), atol=1e-9
    )


@pytest.mark.parametrize("phase", PRIMITIVE)
def test_displacements_are_of_one_atom_against_all(phase):
    structure = crystal(phase, SUPERCELLS["36"], a=3.5)
    size, n = 0.35, len(structure)
    _, mean, largest = put_back(structure.translate_sites([3], [0, size, 0], frac_coords=False), phase)
    assert largest == pytest.approx(0.1 * (n - 1) / n)
    assert mean == pytest.approx(2 * 0.1 * (n - 1) / n**2)


@pytest.mark.parametrize("phase", PRIMITIVE)
def test_mirror_image(phase):
    """It is of the same cell, and stays of its own hand."""
    structure = displaced(crystal(phase, SUPERCELLS["36"]), 0.1)
    mirrored = moved(structure, structure.lattice.matrix @ np.diag([1, 1, -1]))
    image, other = put_back(structure, phase)[0], put_back(mirrored, phase)[0]
    assert np.linalg.det(image.lattice.matrix) == pytest.approx(-np.linalg.det(other.lattice.matrix))
    np.testing.assert_array_equal(topology(other, phase), topology(image, phase))


def test_cells_by_hand():
    """Half lattice constants: of the 2 x 2 x 2 cube, and of the primitive cell."""
    for phase in PRIMITIVE:
        structure = ideal(phase, ["Fe"], 2)
        cell = np.array(own_cell(structure, phase, vectors_of(structure, phase)))
        np.testing.assert_array_equal(cell @ cell.T, 16 * np.eye(3))
        structure = crystal(phase, SUPERCELLS["one"])
        cell = np.array(own_cell(structure, phase, vectors_of(structure, phase)))
        np.testing.assert_array_equal(cell @ cell.T, PRIMITIVE[phase] @ PRIMITIVE[phase].T)


@pytest.mark.parametrize("phase, to", [("fcc", 2**-0.5), ("bcc", 2**0.5)])
def test_bain(phase, to):
    """fcc and bcc made of one another: the cell itself does not tell, another one like it does."""
    structure = crystal(phase, SUPERCELLS["36"])
    vectors = vectors_of(structure, phase)
    known = {own_cell(structure, phase, vectors)}
    gone = displaced(moved(structure, structure.lattice.matrix @ np.diag([1, 1, to])), 0.05)
    other = "bcc" if phase == "fcc" else "fcc"
    assert shares(gone)[SURROUNDINGS.index(other)] == 1
    with pytest.raises(ValueError, match=f"no undistorted {phase} cell of 36 atoms"):
        put_back(gone, phase)
    image, mean, _ = put_back(gone, phase, known)
    assert mean < 0.05
    np.testing.assert_array_equal(topology(image, phase), topology(structure, phase))
    half_way = moved(structure, structure.lattice.matrix @ np.diag([1, 1, to**0.45]))
    assert own_cell(half_way, phase, vectors_of(half_way, phase)) in known


def test_burgers():
    """bcc to hcp: (110) planes shuffled by a sqrt(2)/12 each, on top of a strain."""
    a = 2.9
    sites = [[0, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]]
    bcc = Structure(Lattice.orthorhombic(a, 2**0.5 * a, 2**0.5 * a), ["Fe", "Ni", "Co", "Cr"], sites)
    sites = [[0, 0, 0], [0.5, 0.5, 0], [0, 1 / 3, 0.5], [0.5, -1 / 6, 0.5]]
    hcp = Structure(Lattice.orthorhombic(a, 3**0.5 * a, (8 / 3) ** 0.5 * a), bcc.species, sites)
    bcc.make_supercell([3, 2, 2])
    hcp.make_supercell([3, 2, 2])
    assert shares(hcp).tolist() == [0, 0, 1, 0]
    known = [own_cell(bcc, "bcc", vectors_of(bcc, "bcc"))]
    image, mean, largest = put_back(hcp, "bcc", known)
    assert (mean, largest) == pytest.approx((2**0.5 / 12, 2**0.5 / 12))
    np.testing.assert_array_equal(topology(image, "bcc"), topology(bcc, "bcc"))
    with pytest.raises(ValueError, match="no undistorted fcc cell"):
        put_back(hcp, "fcc")


@pytest.mark.parametrize("phase", PRIMITIVE)
@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_wrong_number_of_sites(phase, repeat):
    structure = ideal(phase, ["Fe"], repeat)
    known = [own_cell(structure, phase, vectors_of(structure, phase))]
    interstitial = structure.copy().append("Fe", [0.5 / repeat, 0, 0.25 / repeat])
    vacancy = structure.copy().remove_sites([0])
    for wrong in (interstitial, vacancy):
        assert own_cell(wrong, phase, vectors_of(wrong, phase)) is None
        with pytest.raises(ValueError, match=f"no undistorted {phase} cell of {len(wrong)} atoms"):
            put_back(wrong, phase, known)


@pytest.mark.parametrize("phase", PRIMITIVE)
def test_atoms_that_are_on_no_lattice(phase):
    structure = crystal(phase, SUPERCELLS["64"])
    known = [own_cell(structure, phase, vectors_of(structure, phase))]
    one_between = structure.copy().translate_sites([0], [0, 0, 1.6], frac_coords=False)
    step = PRIMITIVE[phase][0] * 3.5 / 2  # from site to site
    two_at_one = structure.copy().translate_sites([0], 0.8 * step, frac_coords=False)
    for wrong in (displaced(structure, 0.7), displaced(structure, 1.5), one_between, two_at_one):
        with pytest.raises(ValueError, match="too far from the sites"):
            on_lattice(wrong, phase, known)


@pytest.mark.parametrize("phase", PRIMITIVE)
def test_a_cell_strained_beyond_belief(phase):
    structure = crystal(phase, SUPERCELLS["two"])
    known = [own_cell(structure, phase, vectors_of(structure, phase))]
    for size, fits in ((1.45, True), (1.55, False), (1 / 1.45, True), (1 / 1.55, False)):
        strained = moved(structure, structure.lattice.matrix @ np.diag([1, size, 1]))
        if fits:
            on_lattice(strained, phase, known)
        else:
            with pytest.raises(ValueError, match="too far from the sites"):
                on_lattice(strained, phase, known)


def test_a_cell_of_another_shape_does_not_pass():
    """Both of 64 atoms: what is known of one does not put back the other."""
    one, other = crystal("bcc", SUPERCELLS["64"]), crystal("bcc", [[2, 0, 0], [0, 4, 0], [0, 0, 8]])
    known = [own_cell(other, "bcc", vectors_of(other, "bcc"))]
    gone = moved(one, one.lattice.matrix @ np.diag([1, 1, 2**0.5]))
    with pytest.raises(ValueError, match="too far from the sites"):
        put_back(gone, "bcc", known)


def test_two_cells_that_fit():
    """An atom in an fcc cell, once bcc: along which axis it was stretched is not to be seen."""
    fcc = crystal("fcc", SUPERCELLS["one"])
    before = [moved(fcc, fcc.lattice.matrix @ np.diag(np.roll([1, 1, 2**-0.5], i))) for i in range(3)]
    known = [own_cell(bcc, "bcc", vectors_of(bcc, "bcc")) for bcc in before]
    assert len(set(known)) > 1 and None not in known
    with pytest.raises(ValueError, match="two cells of bcc"):
        put_back(fcc, "bcc", known)
    assert put_back(fcc, "bcc", known[:1])[1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("phase", PRIMITIVE)
def test_nearest_sites(phase):
    """Against a search through all lattice points around."""
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    grid = np.array(np.meshgrid(*[range(-5, 6)] * 3)).reshape(3, -1).T @ PRIMITIVE[phase]
    nearest = np.linalg.norm(points[:, None] - grid, axis=2).min(1)
    sites = nearest_sites(points, phase)
    np.testing.assert_allclose(np.linalg.norm(points - sites, axis=1), nearest)
    steps = sites @ np.linalg.inv(PRIMITIVE[phase])
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-12)


def read_all(folder, every=1):
    """[(name, phase, Structure, vectors)] of a data set."""
    rows = pd.read_csv(folder / "Database.csv").iloc[::every]
    result = []
    for name, phase in zip(rows.structures, rows.phase):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = Poscar.from_file(folder / "POSCARS" / name, check_for_potcar=False).structure
        result.append((name, phase, structure, vectors_of(structure, phase)))
    return result


def test_own_data_never_left_the_lattice():
    for name, phase, structure, vectors in read_all(ROOT / "HEA_data", every=7):
        image, mean, largest = on_lattice(structure, phase, [own_cell(structure, phase, vectors)])
        assert mean <= largest < 1e-8, name
        assert phase_shares(vectors)[SURROUNDINGS.index(phase)] == 1, name
        assert image.volume == pytest.approx(structure.volume)
        np.testing.assert_array_equal(topology(image, phase), topology(structure, phase), name)


@needs_study
def test_the_study():
    """How many of its cells left their lattice, and that all go back to it, onto the sites that are best."""
    data = read_all(STUDY)
    table = pd.DataFrame([phase_shares(vectors) for *_, vectors in data], columns=SURROUNDINGS)
    table["named"] = [phase for _, phase, *_ in data]
    table["found"] = table[list(SURROUNDINGS)].idxmax(axis=1)
    own = [own_cell(structure, phase, vectors) for _, phase, structure, vectors in data]
    for phase, expected in (("bcc", (60, 81, 31, 4)), ("fcc", (166, 21, 0, 1))):
        found = table.found[table.named == phase].value_counts()
        assert tuple(found.get(one, 0) for one in SURROUNDINGS) == expected
    many = np.array([len(structure.composition) >= 4 for _, _, structure, _ in data])
    found = table.found[many & (table.named == "bcc")].value_counts()
    assert found.to_dict() == {"bcc": 32, "fcc": 22, "hcp": 14, "other": 2}
    assert (table.found[many & (table.named == "fcc")] == "fcc").all()

    means, largest, changed = [], [], []
    for (name, phase, structure, _), cell in zip(data, own):
        known = [one for one, row in zip(own, data) if one is not None and row[1] == phase]
        image, mean, most = on_lattice(structure, phase, known if cell is None else [cell])
        means.append(mean)
        largest.append(most)
        if phase == "bcc":
            n = topology(image, phase)[:, :8] != topology(structure, phase)[:, :8]
            changed.append(n.any())
        if len(structure) <= 36:  # no other way of giving each atom a site of its own moves them less
            off = structure.frac_coords[:, None] - image.frac_coords
            off -= np.diagonal(off, axis1=0, axis2=1).mean(1)
            grid = np.array(np.meshgrid(*[range(-1, 2)] * 3)).reshape(3, -1).T
            steps = (off - np.rint(off))[:, :, None] + grid
            squares = (np.linalg.norm(steps @ image.lattice.matrix, axis=3) ** 2).min(2)
            np.testing.assert_array_equal(linear_sum_assignment(squares)[1], np.arange(len(off)), name)
    table["mean"] = means
    average = table.groupby("named")["mean"].mean()
    assert average.round(2).to_dict() == {"bcc": 0.05, "fcc": 0.02}
    assert table["mean"][(table.named == "bcc") & (table.found == "hcp")].between(0.085, 0.14).all()
    assert round(max(largest), 2) == 0.27
    assert 100 * np.mean(changed) == pytest.approx(69, abs=0.5)
