"""Occupation probabilities: counts known by hand, invariances, the values of the method's tables."""

import numpy as np
import pandas as pd
import pytest
from conftest import ideal, needs_study, random_alloy, run, write_data
from matplotlib.figure import Figure
from pymatgen.core import Composition, Structure
from pymatgen.io.vasp.inputs import Poscar

import common
import structure_stat
from common import BLOCKS, System

FE_NI = System(("Fe", "Ni"), ())
PAPER = System(("Fe", "Ni", "Co", "Cr", "Mn", "Pd"), (frozenset(("Mn", "Pd")),))


def occupation(structure, phase, tmp_path, system=PAPER):
    """{column: probability} of one structure, by way of a POSCAR file."""
    path = tmp_path / "POSCAR"
    path.write_text(Poscar(structure).get_str(significant_figures=14))
    values, faults = structure_stat.count_structures(
        [path], [structure.composition.formula.replace(" ", "")], phase, system
    )
    assert not faults
    columns = common.cluster_columns(system, *BLOCKS)
    return dict(zip(columns, values[0]))


def test_columns():
    sizes = {block: len(common.cluster_columns(PAPER, block)) for block in BLOCKS}
    assert sizes == {"points": 6, "pairs": 20, "triplets": 50, "quadruplets": 105, "second_pairs": 20}
    assert common.cluster_columns(PAPER, "triplets")[:3] == [
        "triplet Fe-Fe-Fe", "triplet Fe-Fe-Ni", "triplet Fe-Fe-Co",
    ]  # fmt: skip


def test_no_column_for_an_excluded_pair():
    """-1, at which counting ends in an error; never another pair's column."""
    system = System(("Fe", "Mn", "Pd"), (frozenset(("Mn", "Pd")),))
    columns = [[0, 1, 2], [1, 3, -1], [2, -1, 4]]
    assert structure_stat.column_of(system, "pairs").tolist() == columns


def test_ordered_l12(tmp_path):
    """Ni3Fe in L1_2: every Fe has 12 Ni; triangles are Ni3 or FeNi2, tetrahedra FeNi3."""
    found = occupation(ideal("fcc", ["Fe", "Ni", "Ni", "Ni"], 2), "fcc", tmp_path, FE_NI)
    expected = {
        "Fe": 1 / 4, "Ni": 3 / 4, "pair Fe-Ni": 1 / 2, "pair Ni-Ni": 1 / 2, "triplet Fe-Ni-Ni": 3 / 4,
        "triplet Ni-Ni-Ni": 1 / 4, "quadruplet Fe-Ni-Ni-Ni": 1, "second pair Fe-Fe": 1 / 4,
        "second pair Ni-Ni": 3 / 4,
    }  # fmt: skip
    assert found == pytest.approx({column: expected.get(column, 0) for column in found}, abs=1e-12)


def test_ordered_b2(tmp_path):
    """FeNi in B2: first neighbours unlike, second alike; tetrahedra hold two of each."""
    found = occupation(ideal("bcc", ["Fe", "Ni"], 3, a=2.9), "bcc", tmp_path, FE_NI)
    expected = {
        "Fe": 1 / 2, "Ni": 1 / 2, "pair Fe-Ni": 1, "triplet Fe-Fe-Ni": 1 / 2, "triplet Fe-Ni-Ni": 1 / 2,
        "quadruplet Fe-Fe-Ni-Ni": 1, "second pair Fe-Fe": 1 / 2, "second pair Ni-Ni": 1 / 2,
    }  # fmt: skip
    assert found == pytest.approx({column: expected.get(column, 0) for column in found}, abs=1e-12)


def test_short_range_order_by_hand():
    """L1_2 Ni3Fe: no Fe beside Fe, 12 Ni; in the second shell Fe sees Fe alone. At random all are 0."""
    clusters = {"Fe": [1 / 4, 0.5, 1], "Ni": [3 / 4, 0.5, 0]}
    clusters |= {
        "pair Fe-Fe": [0, 1 / 4, 1],
        "pair Fe-Ni": [1 / 2, 1 / 2, 0],
        "pair Ni-Ni": [1 / 2, 1 / 4, 0],
    }
    clusters |= {"second pair Fe-Fe": [1 / 4, 1 / 4, 1], "second pair Fe-Ni": [0, 1 / 2, 0]}
    clusters |= {"second pair Ni-Ni": [3 / 4, 1 / 4, 0]}
    found = structure_stat.short_range_order(pd.DataFrame(clusters), FE_NI)
    expected = [[1, -1 / 3, 1 / 9, -3, 1, -1 / 3], [0] * 6, [0, np.nan, np.nan, 0, np.nan, np.nan]]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert list(found)[:3] == ["alpha1 Fe-Fe", "alpha1 Fe-Ni", "alpha1 Ni-Ni"]


ALLOYS = {"fcc": {"Fe": 8, "Ni": 8, "Co": 10, "Pd": 6}, "bcc": {"Fe": 4, "Ni": 4, "Cr": 5, "Mn": 3}}


@pytest.mark.parametrize("phase", ["fcc", "bcc"])
class TestInvariance:
    def alloy(self, phase, displacement=0.05):
        return random_alloy(phase, ALLOYS[phase], seed=3, displacement=displacement)

    def check(self, phase, changed, tmp_path):
        before = occupation(self.alloy(phase), phase, tmp_path)
        assert occupation(changed, phase, tmp_path) == pytest.approx(before, abs=1e-12)

    def test_supercell(self, phase, tmp_path):
        self.check(phase, self.alloy(phase).make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]]), tmp_path)

    def test_rotation(self, phase, tmp_path):
        alloy = self.alloy(phase)
        q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
        rotation = q * np.sign(np.linalg.det(q))
        turned = Structure(alloy.lattice.matrix @ rotation, alloy.species, alloy.frac_coords)
        self.check(phase, turned, tmp_path)

    def test_order_of_sites_and_cell(self, phase, tmp_path):
        alloy = self.alloy(phase)
        order = np.random.default_rng(1).permutation(len(alloy))
        shifted = alloy.frac_coords[order] + 0.37
        self.check(phase, Structure(alloy.lattice, [alloy.species[i] for i in order], shifted), tmp_path)

    def test_strain(self, phase, tmp_path):
        """Only ranks of distances count, not distances."""
        alloy = self.alloy(phase)
        self.check(phase, Structure(alloy.lattice.matrix * 1.1, alloy.species, alloy.frac_coords), tmp_path)

    def test_blocks_sum_to_one(self, phase, tmp_path):
        found = occupation(self.alloy(phase), phase, tmp_path)
        for block in BLOCKS:
            assert sum(found[c] for c in common.cluster_columns(PAPER, block)) == pytest.approx(1)


@needs_study
def test_values_of_the_published_tables(study_tables):
    tables = pd.concat([pd.read_csv(study_tables / f"{phase}_train.csv") for phase in ("fcc", "bcc")])
    tables = tables.set_index("structure")
    prefixes = {"p": "pair", "t": "triplet", "q": "quadruplet", "n": "second pair"}
    values = {
        "NiFe_sqsfcc": "p Fe-Fe 0.25, p Fe-Ni 0.5, t Fe-Fe-Ni 0.375, q Fe-Fe-Ni-Ni 0.375, n Fe-Ni 0.5",
        "FeNiCoCr_sqsfcc": "p Fe-Fe 0.0625, p Fe-Ni 0.125, t Fe-Fe-Ni 0.052734375, t Fe-Ni-Co 0.08984375, "
        "q Fe-Fe-Ni-Ni 0.015625, q Fe-Ni-Co-Cr 0.109375, n Fe-Ni 0.119791667, n Cr-Cr 0.067708333",
        "FeNiCoCrPd_sqsbcc": "p Fe-Fe 0.03671875, p Fe-Ni 0.09609375, t Fe-Fe-Ni 0.0265625, "
        "t Fe-Ni-Co 0.047569444, q Fe-Fe-Ni-Ni 0.011979167, q Fe-Ni-Co-Cr 0.041666667, n Fe-Ni 0.061458333, "
        "n Cr-Cr 0.033333333",
    }
    for structure, text in values.items():
        for item in text.split(", "):
            kind, cluster, value = item.split()
            assert tables.loc[structure, f"{prefixes[kind]} {cluster}"] == pytest.approx(
                float(value), abs=1e-8
            )


@needs_study
def test_column_sums_of_all_rows(study_tables):
    for phase, n_rows in (("fcc", 188), ("bcc", 176)):
        table = pd.read_csv(study_tables / f"{phase}_train.csv")
        assert len(table) == n_rows
        for block in BLOCKS:
            columns = common.cluster_columns(PAPER, block)
            np.testing.assert_allclose(table[columns].sum(axis=1), 1, atol=1e-12)
        # points are the mole fractions that the name says
        fractions = [
            [Composition(n.split("_")[0]).get_atomic_fraction(e) for e in PAPER.elements]
            for n in table.structure
        ]
        np.testing.assert_allclose(table[list(PAPER.elements)], fractions, atol=1e-12)


def test_workers_count_the_same(tmp_path):
    chunks = []
    for seed, formula in enumerate(["Fe16Ni16", "Fe8Ni24"]):
        path = tmp_path / formula
        counts = Composition(formula).get_el_amt_dict()
        alloy = random_alloy("fcc", {element: int(n) for element, n in counts.items()}, seed)
        path.write_text(Poscar(alloy.get_sorted_structure()).get_str(significant_figures=12))
        chunks.append(([path], [formula], "fcc", PAPER))
    chunks.append(([tmp_path / "missing"], ["Fe"], "fcc", PAPER))
    alone = list(structure_stat.count_chunks(chunks, 1))
    spread = list(structure_stat.count_chunks(chunks, 2))
    assert len(spread) == 3 and not np.array_equal(alone[0][0], alone[1][0])
    for (one, faults), (other, other_faults) in zip(alone, spread):
        np.testing.assert_array_equal(one, other)
        assert faults == other_faults


FILLINGS = {("Fe8Ni8Co10Cr6", "fcc"): 2, ("Fe10Ni6Co10Cr6", "fcc"): 2, ("Fe4Ni4Cr5Mn3", "bcc"): 2}


def tables(folder, displacement, *flags):
    """Both tables of random alloys displaced by so much, by structure, and what was printed of faults."""
    alloys = {}
    for seed, (formula, phase) in enumerate(FILLINGS):
        counts = {e: int(n) for e, n in Composition(formula).get_el_amt_dict().items()}
        alloys[formula, phase] = random_alloy(phase, counts, seed, displacement=displacement)
    write_data(folder, alloys)
    run("structure_stat.py", "--data-dir", folder, *flags)
    ending = "_lattice" if flags else ""
    return pd.concat([pd.read_csv(folder / f"{phase}_train{ending}.csv") for phase in ("fcc", "bcc")])


def test_on_the_lattice_a_displaced_cell_counts_as_the_ideal_one(tmp_path):
    given = tables(tmp_path / "ideal", 1e-6, "--cells", "lattice")
    moved = tables(tmp_path / "moved", 0.15, "--cells", "lattice")
    known = [column for column in given if not column.startswith("share")]
    pd.testing.assert_frame_equal(moved[known], given[known], rtol=0, atol=1e-9)
    as_it_is = tables(tmp_path / "as it is", 0.15)
    shares = [column for column in given if column.startswith("share")]
    pd.testing.assert_frame_equal(as_it_is[shares], moved[shares])  # these are of the cell as it is
    clusters = [c for c in given if c.startswith("triplet")]
    assert not np.allclose(as_it_is[clusters], given[clusters], atol=1e-3)


def test_pictures_of_phases_hold_each_cell(monkeypatch):
    """In the panel of its name, in the series of what it has become, in the bin of its valence."""
    table = pd.DataFrame(
        {"phase": ["fcc", "fcc", "bcc", "bcc", "bcc"], "became": ["fcc", "fcc", "hcp", "bcc", "bcc"]}
    )
    figures, valence = [], np.array([8.0, 8.3, 7.9, 9.0, 9.0])
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    structure_stat.plot_phases(table, valence, "source", "no file")
    for axes, where in zip(figures[0].axes, ([[8, 8.25], [], [], []], [[], [9, 9], [7.75], []])):
        for container, lefts in zip(axes.containers, where, strict=True):
            bars = [bar for bar in container for _ in range(round(bar.get_height()))]
            assert [bar.get_x() for bar in bars] == lefts and {bar.get_width() for bar in bars} <= {0.25}


def test_what_became_of_each_cell(tmp_path):
    """A table of its own; a cell of bcc named fcc is told, and one with a vacancy cannot be put back."""
    folder = tmp_path / "data"
    write_data(folder, {("FeNi", "fcc"): ideal("bcc", ["Fe", "Ni"], 3, a=2.9),
                        ("FeCo3", "fcc"): ideal("fcc", ["Fe", "Co", "Co", "Co"], 2)})  # fmt: skip
    run("structure_stat.py", "--data-dir", folder)
    found = pd.read_csv(folder / "phases.csv")
    assert found.became.tolist() == ["bcc", "fcc"] and found["share bcc"].tolist() == [1, 0]
    cell = ideal("fcc", ["Fe", "Co", "Co", "Co"], 2)
    cell.remove_sites([0, 8, 16, 24])
    write_data(tmp_path / "vacancies", {("Fe7Co21", "fcc"): cell})
    error = run("structure_stat.py", "--data-dir", tmp_path / "vacancies", "--cells", "lattice", status=2).err
    assert "Fe7Co21_sqsfcc" in error and "put back" in error
