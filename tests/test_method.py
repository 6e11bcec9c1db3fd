"""Descriptors, samples and splits, against counts by hand; what no prediction may know."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, run
from pymatgen.core import Structure
from pymatgen.io.vasp.inputs import Poscar
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

import common
import generate
from common import System

PAPER = System(("Fe", "Ni", "Co", "Cr", "Mn", "Pd"), (frozenset(("Mn", "Pd")),))


def loaded(folder, cells=None, **more):
    """Data of a run with these settings."""
    cfg = {"DATA_DIR": folder, "TABLE_DIR": folder, "TARGET": "Ef", "ELEMENTS": None, "EXCLUDED_PAIRS": None}
    return common.load_data(SimpleNamespace(**cfg | more), cells)


def test_descriptors_of_an_equimolar_binary():
    """FeNi by hand: S = R ln 2, mismatches from the two radii and electronegativities."""
    found = common.descriptors(np.array([[0.5, 0.5]]), ("Fe", "Ni"))[0]
    mean = (1.277 + 1.246) / 2
    expected = [0.5, 0.5, 8.3145 * np.log(2), abs(1.277 - mean) / mean, 0.04, 9]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


SELECTED = [  # alloys with neither Mn nor Pd, with Mn, with Pd, for each number of elements
    ("4+5", {4: [5, 21, 21], 5: [0, 14, 14]}),  # 28 quinaries; 47 quaternaries, ceil(4/9 47) with Pd
    ("Total", {2: [6, 6, 6], 3: [5, 10, 10], 4: [2, 9, 9], 5: [0, 6, 6]}),  # by method.md
]


@pytest.mark.parametrize(("alloys", "expected"), SELECTED)
def test_selection_for_augmentation(alloys, expected):
    samples = SimpleNamespace(**dict(zip(("fractions", "kind"), generate.sample_compositions(PAPER, alloys))))
    chosen = generate.select(samples, 75, alloys)
    sizes, kind = (samples.fractions[chosen] > 0).sum(1), samples.kind[chosen]
    counts = {k: [int(((sizes == k) & (kind == x)).sum()) for x in range(3)] for k in expected}
    assert counts == expected and len(set(chosen)) == len(chosen) == 75
    with pytest.raises(common.InputError, match="AUGMENT 9000"):
        generate.select(samples, 9000, alloys)


SIX = ("Fe", "Ni", "Co", "Cr", "Mn", "Pd")
OTHERS = [  # copies are more than originals; no alloy is plain; there are no originals; no quinaries
    ((*SIX, "Cu"), ["Mn-Pd", "Cr-Cu"]), (SIX[:5], ["Co-Cr"]), (("Al", "Cu", *SIX[:4]), []),
    (("Fe", "Mn", "Pd", "Al", "Cu"), ["Fe-Mn", "Fe-Pd"]),
]  # fmt: skip


@pytest.mark.parametrize(("elements", "excluded"), OTHERS)
def test_as_many_as_asked_of_other_systems(elements, excluded):
    system = System(elements, tuple(frozenset(pair.split("-")) for pair in excluded))
    fractions, kind = generate.sample_compositions(system, "4+5")
    chosen = generate.select(SimpleNamespace(fractions=fractions, kind=kind), 75, "4+5")
    sizes = (fractions[chosen] > 0).sum(1)
    assert len(chosen) == len(set(chosen)) == 75
    assert (sizes == 5).sum() == (28 if 5 in (fractions > 0).sum(1) else 0)  # ceil(55/152 75)


def test_percent_is_of_alloys_of_many_elements(small_data):
    """The training alloys of fewer elements are all kept, with ALLOYS Total too."""
    table = loaded(small_data).table
    for alloys in ("4+5", "Total"):
        whole, half, none = (common.split_rows(table, alloys, percent, 1) for percent in (100, 50, 0))
        many = [rows[table.n_components[rows] >= 4] for rows in (whole.train, half.train)]
        assert {*half.train} - {*many[1]} == {*whole.train} - {*many[0]} == {*none.train}
        assert {*many[1]} < {*many[0]} and abs(len(many[1]) - len(many[0]) / 2) <= 1
        assert sorted(whole.test) == sorted(half.test) and not {*whole.train} & {*whole.test}


def test_a_tuned_penalty(small_data):
    """Of the least error on rows left out one by one, of half decades from 1e-6 to 10."""
    data, clusters = loaded(small_data, "lattice"), ["points", "pairs"]
    models = generate.fit_ce(data, np.arange(len(data.table)), clusters, "tuned")
    inputs = data.clusters[common.cluster_columns(data.system, *clusters)].to_numpy()
    for phase, model in models.items():
        part, errors = np.flatnonzero(data.table.phase == phase), {}
        for alpha in 10 ** np.arange(-6, 1.25, 0.5):
            found = cross_val_predict(Ridge(alpha), inputs[part], data.targets[part], cv=LeaveOneOut())
            errors[alpha] = ((found - data.targets[part]) ** 2).mean()
        assert model.alpha_ == pytest.approx(min(errors, key=errors.get))


# ==== what no prediction may know: test labels, and what relaxation made of test cells ============

HONEST = {  # every way to predict but the paper's rule, and its flags for a short run
    "scratch": ["main.py", *TINY, "--select-by", "validation"],
    "scratch_prime": ["main.py", *TINY, "--select-by", "validation", "--method", "scratch_prime"],
    "tl": ["main_transfer.py", *TINY, "--select-by", "validation", "--source-epochs", "1"],
    "da": ["main_transfer.py", *TINY, "--select-by", "validation", "--method", "da"],
    # beyond/phase_gp.py comes here
}


def predictions(method, data, out, *more):
    script, *flags = HONEST[method]
    run(script, "--data-dir", data, "--results-dir", out, *flags, *more)
    (path,) = out.glob("*/predictions.csv")
    return pd.read_csv(path)


@pytest.fixture(scope="module")
def before(small_data, tmp_path_factory):
    """What each method predicts of the small data."""
    return {one: predictions(one, small_data, tmp_path_factory.mktemp(one)) for one in HONEST}


@pytest.mark.parametrize("method", HONEST)
def test_no_test_label_reaches_a_prediction(small_data, before, tmp_path, method):
    data, tested = shutil.copytree(small_data, tmp_path / "data"), before[method].set == "test"
    for path in [data / "Database.csv", *data.glob("*_train*.csv")]:
        frame = pd.read_csv(path)
        moved = frame["structures" if path.stem == "Database" else "structure"]
        frame.loc[moved.isin(before[method].structure[tested]), "Eform (eV/atom)"] += 100
        frame.to_csv(path, index=False)
    after = predictions(method, data, tmp_path / "after")
    assert (after.true != before[method].true).sum() == tested.sum() > 0
    np.testing.assert_array_equal(after["mean"], before[method]["mean"])


def hcp_of(bcc):
    """A cube of bcc moved the Burgers way: every other (110) plane shuffled, and a strain."""
    n_cubes = round((len(bcc) / 2) ** (1 / 3))
    cubes = bcc.frac_coords * n_cubes
    sign = np.where(np.rint(cubes[:, :2].sum(1)) % 2, 1, -1)
    shuffled = cubes + sign[:, None] * np.array([1, -1, 0]) / 12
    along, across = np.outer([1, 1, 0], [1, 1, 0]) / 2, np.outer([1, -1, 0], [1, -1, 0]) / 2
    strain = np.eye(3) + ((4 / 3) ** 0.5 - 1) * along + (1.5**0.5 - 1) * across
    return Structure(bcc.lattice.matrix @ strain * 2 ** (-1 / 6), bcc.species, shuffled / n_cubes)


@pytest.fixture(scope="module")
def relaxed_anew(small_data, tmp_path_factory):
    """Data whose relaxation of split 0's test or training cells ended elsewhere, two of them in hcp."""
    found, data = {}, loaded(small_data)
    split = common.split_rows(data.table, "4+5", 100, 0)
    for part, rows in (("test", split.test), ("train", split.train)):
        folder, generator = tmp_path_factory.mktemp(part) / "data", np.random.default_rng(0)
        shutil.copytree(small_data, folder)
        names = data.table.structure[rows]
        for name in names:
            cell = Poscar.from_file(folder / "POSCARS" / name).structure
            if name in [*names[names.str.endswith("bcc")]][:2]:
                cell = hcp_of(cell)
            strain = np.eye(3) + generator.uniform(-0.02, 0.02, (3, 3))
            moved = Structure(cell.lattice.matrix @ strain, cell.species, cell.frac_coords)
            places = moved.cart_coords + generator.normal(0, 0.05, (len(moved), 3))  # angstrom
            moved = Structure(moved.lattice, moved.species, places, coords_are_cartesian=True)
            (folder / "POSCARS" / name).write_text(Poscar(moved).get_str(significant_figures=12))
        run("structure_stat.py", "--data-dir", folder)
        found[part] = folder
    return found


def test_cells_relaxed_anew_became_others(small_data, relaxed_anew):
    """Clusters of cells as given move, two cells are hcp now; on the lattice, all is as it was."""
    folders = small_data, relaxed_anew["test"]
    was, now, *on_lattice = (loaded(folder, cells) for cells in ("given", "lattice") for folder in folders)
    rows, triplets = common.split_rows(was.table, "4+5", 100, 0).test, [*was.clusters.filter(like="triplet")]
    assert ((now.phase_fractions - was.phase_fractions)[rows, 2] > 0.5).sum() == 2
    assert not np.allclose(was.clusters.loc[rows, triplets], now.clusters.loc[rows, triplets], atol=1e-3)
    np.testing.assert_array_equal(*(common.known_before(data, triplets) for data in on_lattice))
    with pytest.raises(ValueError, match="before the calculation"):
        common.known_before(was, triplets)


@pytest.mark.parametrize("method", HONEST)
def test_no_relaxation_of_a_test_cell_reaches_a_prediction(
    small_data, before, relaxed_anew, tmp_path, method, monkeypatch
):
    """Also where the samples fill the sites of a test cell."""
    if method in ("tl", "da"):
        tested = before[method].structure[before[method].set == "test"]
        monkeypatch.setattr(generate, "LATTICE", tested.iloc[-1].removesuffix("bcc"))
        before = before | {method: predictions(method, small_data, tmp_path / "before")}
    after = predictions(method, relaxed_anew["test"], tmp_path / "after")
    said = [c for c in after if c.startswith(("mean", "std", "half", "p_")) and "given" not in c]
    np.testing.assert_array_equal(after[said], before[method][said])  # "given": asked for the phase it has


@pytest.mark.parametrize("method", ["scratch", "tl"])
def test_phase_found(small_data, relaxed_anew, tmp_path, method):
    """Training cells teach what they are; a test cell's phase is asked for, and moves that row alone."""
    folders = {"before": small_data} | relaxed_anew
    found = {n: predictions(method, f, tmp_path / n, "--phase-input", "found") for n, f in folders.items()}
    tested, moved = found["before"].set == "test", found["test"]["mean"] != found["before"]["mean"]
    became = pd.read_csv(relaxed_anew["test"] / "phases.csv").set_index("structure").became
    assert (moved == (found["before"].structure.map(became) == "hcp")).all() and moved.sum() == 2
    assert (found["train"]["mean"] != found["before"]["mean"])[tested].all()
