"""Occupation probabilities: counts known by hand, invariances, the values of the method's tables."""

import numpy as np
import pandas as pd
import pytest
from conftest import ideal, needs_study, random_alloy, run, write_data
from matplotlib.figure import Figure
from pymatgen.core import Composition, Structure
from pymatgen.io.vasp.inputs import Poscar
from scipy.spatial.transform import Rotation

import common
import structure_stat
from common import BLOCKS, System

FE_NI = System(("Fe", "Ni"), ())
PAPER = System(("Fe", "Ni", "Co", "Cr", "Mn", "Pd"), (frozenset(("Mn", "Pd")),))


def occupation(structure, phase, tmp_path, system=PAPER):
    """{column: probability} of one structure, by way of a POSCAR file."""
    (tmp_path / "POSCAR").write_text(Poscar(structure).get_str(significant_figures=14))
    formula = structure.composition.formula.replace(" ", "")
    values, faults = structure_stat.count_structures([tmp_path / "POSCAR"], [formula], phase, system)
    assert not faults
    return dict(zip(common.cluster_columns(system, *BLOCKS), values[0]))


L12 = {  # Ni3Fe: every Fe has 12 Ni; triangles are Ni3 or FeNi2, tetrahedra FeNi3
    "Fe": 1 / 4, "Ni": 3 / 4, "pair Fe-Ni": 1 / 2, "pair Ni-Ni": 1 / 2, "triplet Fe-Ni-Ni": 3 / 4,
    "triplet Ni-Ni-Ni": 1 / 4, "quadruplet Fe-Ni-Ni-Ni": 1, "second pair Fe-Fe": 1 / 4,
    "second pair Ni-Ni": 3 / 4,
}  # fmt: skip
B2 = {  # FeNi: first neighbours unlike, second alike; tetrahedra hold two of each
    "Fe": 1 / 2, "Ni": 1 / 2, "pair Fe-Ni": 1, "triplet Fe-Fe-Ni": 1 / 2, "triplet Fe-Ni-Ni": 1 / 2,
    "quadruplet Fe-Fe-Ni-Ni": 1, "second pair Fe-Fe": 1 / 2, "second pair Ni-Ni": 1 / 2,
}  # fmt: skip


@pytest.mark.parametrize("phase, expected", [("fcc", L12), ("bcc", B2)])
def test_ordered_by_hand(tmp_path, phase, expected):
    species = {"fcc": ["Fe", "Ni", "Ni", "Ni"], "bcc": ["Fe", "Ni"]}[phase]
    for repeat in (1, 3):
        found = occupation(ideal(phase, species, repeat), phase, tmp_path, FE_NI)
        assert found == pytest.approx({column: expected.get(column, 0) for column in found}, abs=1e-12)


def test_random_and_order_by_hand():
    """L1_2 Ni3Fe: no Fe beside Fe, 12 Ni; in the second shell Fe sees Fe alone. At random all is 0.

    A quarter of the pairs of Fe0.5Ni0.3Co0.2 is Fe-Fe; of unlike members each order counts.
    """
    system = System(("Fe", "Ni", "Co"), ())
    found = structure_stat.at_random(system, np.array([[0.5, 0.3, 0.2]]), [*BLOCKS])[0]
    found = pd.Series(found, common.cluster_columns(system, *BLOCKS))
    some = found[["pair Fe-Fe", "pair Fe-Ni", "triplet Fe-Ni-Co", "quadruplet Fe-Fe-Ni-Ni"]]
    assert some.tolist() == pytest.approx([0.25, 0.3, 0.18, 0.135])
    fractions, columns = np.array([[0.25, 0.75], [0.5, 0.5], [1, 0]]), common.cluster_columns(FE_NI, *BLOCKS)
    random = pd.DataFrame(structure_stat.at_random(FE_NI, fractions, [*BLOCKS]), columns=columns)
    clusters = pd.concat([pd.DataFrame([L12], columns=columns).fillna(0), random[1:]], ignore_index=True)
    found = structure_stat.short_range_order(clusters, FE_NI)
    expected = [[1, -1 / 3, 1 / 9, -3, 1, -1 / 3], [0] * 6, [0, np.nan, np.nan, 0, np.nan, np.nan]]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert list(found)[:3] == ["alpha1 Fe-Fe", "alpha1 Fe-Ni", "alpha1 Ni-Ni"]
    clusters.loc[2] = np.nan  # not known
    excess = structure_stat.order_of(FE_NI, fractions, clusters)
    np.testing.assert_allclose(excess[0], [-1 / 16, 1 / 8, -1 / 16, 3 / 16, -3 / 8, 3 / 16])
    assert (excess[1:] == 0).all() and not structure_stat.order_of(FE_NI, fractions, None).any()


ALLOYS = {"fcc": {"Fe": 8, "Ni": 8, "Co": 10, "Pd": 6}, "bcc": {"Fe": 4, "Ni": 4, "Cr": 5, "Mn": 3}}


@pytest.mark.parametrize("phase", ALLOYS)
def test_invariances(phase, tmp_path):
    """A supercell, a rotation, another order and origin of the sites, another scale: the same clusters."""
    alloy = random_alloy(phase, ALLOYS[phase], seed=3)
    expected, generator = occupation(alloy, phase, tmp_path), np.random.default_rng(1)
    for block in BLOCKS:
        columns = common.cluster_columns(PAPER, block)
        assert sum(expected[column] for column in columns) == pytest.approx(1)
    turn = Rotation.random(rng=generator).as_matrix()
    order, shifted = generator.permutation(len(alloy)), alloy.frac_coords + 0.37
    for changed in (
        alloy.copy().make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]]),
        Structure(alloy.lattice.matrix @ turn, alloy.species, alloy.frac_coords),
        Structure(alloy.lattice, [alloy.species[i] for i in order], shifted[order]),
        Structure(alloy.lattice.matrix * 1.1, alloy.species, alloy.frac_coords),
    ):
        assert occupation(changed, phase, tmp_path) == pytest.approx(expected, abs=1e-12)


PUBLISHED = {
    "NiFe_sqsfcc": {"pair Fe-Fe": 0.25, "triplet Fe-Fe-Ni": 0.375, "quadruplet Fe-Fe-Ni-Ni": 0.375},
    "FeNiCoCr_sqsfcc": {
        "pair Fe-Ni": 0.125, "triplet Fe-Fe-Ni": 0.052734375, "triplet Fe-Ni-Co": 0.08984375,
        "quadruplet Fe-Fe-Ni-Ni": 0.015625, "quadruplet Fe-Ni-Co-Cr": 0.109375,
        "second pair Fe-Ni": 0.119791667, "second pair Cr-Cr": 0.067708333,
    },
    "FeNiCoCrPd_sqsbcc": {
        "pair Fe-Ni": 0.09609375, "triplet Fe-Fe-Ni": 0.0265625, "triplet Fe-Ni-Co": 0.047569444,
        "quadruplet Fe-Fe-Ni-Ni": 0.011979167, "quadruplet Fe-Ni-Co-Cr": 0.041666667,
        "second pair Fe-Ni": 0.061458333, "second pair Cr-Cr": 0.033333333,
    },
}  # fmt: skip


@needs_study
def test_the_published_tables(study_tables):
    """Published values; an excluded pair has no column, -1, nor another pair's; what cells became."""
    sizes = [len(common.cluster_columns(PAPER, block)) for block in BLOCKS]
    assert sizes == [6, 20, 50, 105, 20]
    system = System(("Fe", "Mn", "Pd"), (frozenset(("Mn", "Pd")),))
    assert structure_stat.column_of(system, "pairs").tolist() == [[0, 1, 2], [1, 3, -1], [2, -1, 4]]
    tables = {phase: pd.read_csv(study_tables / f"{phase}_train.csv") for phase in ("fcc", "bcc")}
    assert [len(table) for table in tables.values()] == [188, 176]
    table = pd.concat(tables).set_index("structure")
    fractions = common.mole_fractions([name.split("_")[0] for name in table.index], PAPER.elements)
    np.testing.assert_allclose(table[[*PAPER.elements]], fractions, atol=1e-12)
    for structure, published in PUBLISHED.items():
        assert table.loc[structure, [*published]].to_dict() == pytest.approx(published, abs=1e-8), structure
    phases = pd.read_csv(study_tables / "phases.csv")
    many = [len(Composition(name.split("_")[0])) >= 4 for name in phases.structure]
    for rows, expected in ((phases, [81, 60, 31, 4, 21, 166, 1]), (phases[many], [32, 22, 14, 2, 82])):
        assert rows.groupby(["phase", "became"]).size().tolist() == expected  # bcc in bcc, bcc in fcc ...


def test_on_the_lattice_a_displaced_cell_counts_as_the_ideal_one(tmp_path, monkeypatch):
    """Even one whose supercell another tells. The shares stay those of the cell as given."""
    stretched, values = {"Fe16Ni16": 1, "Fe8Ni24": 2**-0.5, "Fe24Ni8": 1, "Fe6Ni10": 1}, {}  # fcc to bcc
    clusters, shares = common.cluster_columns(FE_NI, *BLOCKS), structure_stat.SHARES
    monkeypatch.setattr(structure_stat, "CHUNK", 1)
    for displacement in (1e-6, 0.12):
        folder, alloys = tmp_path / f"{displacement}", {}
        for seed, (formula, c) in enumerate(stretched.items()):
            phase, counts = "bcc" if formula == "Fe6Ni10" else "fcc", Composition(formula).get_el_amt_dict()
            cell = random_alloy(phase, counts, seed, displacement=displacement)
            matrix = cell.lattice.matrix * [1, 1, c]
            alloys[formula, phase] = Structure(matrix, cell.species, cell.frac_coords)
        database, system = common.read_database(write_data(folder, alloys), ["Ef"])
        for cells in ("given", "lattice"):
            found = structure_stat.count_all(folder, database, system, on_lattice=cells == "lattice")
            values[displacement, cells] = pd.DataFrame(found, columns=[*clusters, *shares])
    still, ideal_cells = (values[one, "lattice"] for one in (1e-6, 0.12))
    pd.testing.assert_frame_equal(ideal_cells[clusters], still[clusters], rtol=0, atol=1e-9)
    moved = values[0.12, "given"]
    assert moved[shares].equals(ideal_cells[shares]) and still["share bcc"].tolist() == [0, 1, 0, 1]
    assert not np.allclose(moved[clusters], ideal_cells[clusters], atol=1e-3)
    alone = [folder / "POSCARS" / "Fe8Ni24_sqsfcc"], ["Fe8Ni24"], "fcc"
    assert structure_stat.ideal_supercells(*alone) == set()
    _, (fault,) = structure_stat.count_structures(*alone, FE_NI, ())
    assert fault.startswith("Fe8Ni24_sqsfcc (cannot be put back on its lattice")

    folder = tmp_path / "1e-06"
    run("structure_stat.py", "--data-dir", folder)
    written = [pd.read_csv(folder / common.table_name(phase, "lattice")) for phase in ("fcc", "bcc")]
    np.testing.assert_allclose(pd.concat(written)[[*clusters, *shares]], still, atol=1e-9)
    assert pd.read_csv(folder / "phases.csv").became.tolist() == ["fcc", "bcc", "fcc", "bcc"]
    order = pd.read_csv(folder / "order_lattice.csv").iloc[:, 2:]
    np.testing.assert_allclose(order, structure_stat.short_range_order(still, FE_NI), atol=1e-8)


def test_the_picture_holds_each_cell():
    """In the panel of its name, in the series of what it has become, in the bin of its valence."""
    phase, became = ["fcc", "fcc", "bcc", "bcc", "bcc"], ["fcc", "fcc", "hcp", "bcc", "bcc"]
    table = pd.DataFrame({"phase": phase, "became": became, "valence": [8.0, 8.3, 7.9, 9.0, 9.0]})
    structure_stat.plot_phases(figure := Figure(), table)
    for axes, where in zip(figure.axes, ([[8, 8.25], [], [], []], [[], [9, 9], [7.75], []]), strict=True):
        for container, lefts in zip(axes.containers, where, strict=True):
            bars = [bar for bar in container for _ in range(round(bar.get_height()))]
            assert [bar.get_x() for bar in bars] == lefts and {bar.get_width() for bar in bars} <= {0.25}
