"""Descriptors, samples and splits, against counts by hand; test labels, which no method may read."""

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, STUDY, TINY, needs_study, run
from pymatgen.core import Structure
from pymatgen.io.vasp.inputs import Poscar
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

import common
import generate
import main_committee
from common import System

PAPER = System(("Fe", "Ni", "Co", "Cr", "Mn", "Pd"), (frozenset(("Mn", "Pd")),))


def test_descriptors_of_an_equimolar_binary():
    """FeNi by hand: S = R ln 2, mismatches from the two radii and electronegativities."""
    found = common.descriptors(np.array([[0.5, 0.5]]), ("Fe", "Ni"))[0]
    mean = (1.277 + 1.246) / 2
    expected = [0.5, 0.5, 8.3145 * np.log(2), abs(1.277 - mean) / mean, 0.04, 9]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_selection_for_augmentation():
    fractions, kind = generate.sample_compositions(PAPER, "4+5")
    chosen = generate.select(SimpleNamespace(fractions=fractions, kind=kind), 75, "4+5")
    sizes = (fractions[chosen] > 0).sum(1)
    counts = {k: [int(((sizes == k) & (kind[chosen] == x)).sum()) for x in range(3)] for k in (4, 5)}
    # 28 quinaries; 47 quaternaries: ceil(4/9 47) = 21 with Pd, 5 with neither
    assert counts == {4: [5, 21, 21], 5: [0, 14, 14]} and len(set(chosen)) == 75
    # in this order, and those with Mn are the alloys whose Pd copies were drawn
    assert [*zip(sizes, kind[chosen])] == sorted(zip(sizes, kind[chosen]))
    assert {i + 1 for i in chosen[kind[chosen] == 1]} == set(chosen[kind[chosen] == 2])
    for n in range(1, 10):  # fewer than the kinds
        assert len(generate.select(SimpleNamespace(fractions=fractions, kind=kind), n, "4+5")) == n


def test_selection_of_two_to_five_elements():
    """By method.md: 18, 25, 20 and 12 of them, of these ceil(2/7), ceil(3/8), ceil(4/9), 1/2 with Pd."""
    fractions, kind = generate.sample_compositions(PAPER, "Total")
    chosen = generate.select(SimpleNamespace(fractions=fractions, kind=kind), 75, "Total")
    sizes = (fractions[chosen] > 0).sum(1)
    counts = {k: [int(((sizes == k) & (kind[chosen] == x)).sum()) for x in range(3)] for k in range(2, 6)}
    assert counts == {2: [6, 6, 6], 3: [5, 10, 10], 4: [2, 9, 9], 5: [0, 6, 6]}


def test_half_of_the_quinaries_are_copies_where_some_are_plain():
    seven = System((*PAPER.elements, "Al"), pairs("Mn-Pd"))
    fractions, kind = generate.sample_compositions(seven, "4+5")
    chosen = generate.select(SimpleNamespace(fractions=fractions, kind=kind), 75, "4+5")
    of_five = kind[chosen][(fractions[chosen] > 0).sum(1) == 5]
    assert [int((of_five == x).sum()) for x in range(3)] == [0, 14, 14]


def pairs(*names):
    return tuple(frozenset(name.split("-")) for name in names)


OTHERS = {  # where copies are more than originals; where no alloy is plain; where there are no originals
    "two pairs": System((*PAPER.elements, "Cu"), pairs("Mn-Pd", "Cr-Cu")),
    "none plain": System(("Fe", "Ni", "Co", "Cr", "Mn"), pairs("Co-Cr")),
    "all plain": System(("Al", "Co", "Cr", "Cu", "Fe", "Ni"), ()),
    "copies alone": System(("Fe", "Mn", "Pd", "Al", "Cu"), pairs("Fe-Mn", "Fe-Pd")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_as_many_as_asked_of_other_systems(name):
    fractions, kind = generate.sample_compositions(OTHERS[name], "4+5")
    chosen = generate.select(SimpleNamespace(fractions=fractions, kind=kind), 75, "4+5")
    assert len(chosen) == len(set(chosen)) == 75
    sizes = (fractions[chosen] > 0).sum(1)
    if 5 in (fractions > 0).sum(1):  # ceil(55/152 75) quinaries
        assert (sizes == 5).sum() == 28
    if name not in ("all plain", "copies alone"):  # half and half of each number of elements
        assert abs((kind[chosen] == 1).sum() - (kind[chosen] == 2).sum()) <= 2


def test_an_outsize_sample_is_refused():
    fractions, kind = generate.sample_compositions(PAPER, "4+5")
    with pytest.raises(common.InputError, match="AUGMENT 900"):
        generate.select(SimpleNamespace(fractions=fractions, kind=kind), 900, "4+5")


@pytest.fixture(scope="module")
def table(study_tables):
    return common.load_data(STUDY, study_tables, "Ef", excluded_pairs=[("Mn", "Pd")]).table


@needs_study
def test_sizes_of_the_studys_sets(table):
    split = common.split_rows(table, "4+5", 100, 0)
    assert (len(split.train), len(split.test)) == (333, 31)
    assert not set(split.train) & set(split.test)
    low = (table.n_components < 4).sum()
    assert len(common.split_rows(table, "4+5", 0, 0).train) == low  # PERCENT 0: none of many elements
    total = common.split_rows(table, "Total", 100, 0)
    assert len(total.train) + len(total.test) == 364 and table.n_components[total.test].nunique() == 4


@pytest.mark.parametrize("target", ["Ef", "Ms"])
def test_a_tuned_penalty(small_data, target):
    """Of the least error on rows left out one by one, of half decades from 1e-6 to 10."""
    data = common.load_data(small_data, small_data, target, cells="lattice")
    clusters, rows = ["points", "pairs"], np.arange(len(data.table))
    models = generate.fit_ce(data, rows, clusters, "tuned")
    inputs = data.clusters[generate.ce_columns(data.system, clusters)].to_numpy()
    for phase, model in models.items():
        part = generate.rows_of(data, rows, phase)
        errors = {}
        for alpha in 10 ** np.arange(-6, 1.25, 0.5):
            found = cross_val_predict(Ridge(alpha), inputs[part], data.targets[part], cv=LeaveOneOut())
            errors[alpha] = ((found - data.targets[part]) ** 2).mean()
        assert model.alpha_ == pytest.approx(min(errors, key=errors.get))


HONEST = {  # every way to predict but the paper's rule, and its flags for a short run
    "scratch": ["main.py", *TINY, "--select-by", "validation"],
    "scratch_prime": ["main.py", *TINY, "--select-by", "validation", "--method", "scratch_prime"],
    "tl": ["main_transfer.py", *TINY, "--select-by", "validation", "--source-epochs", "2"],
    "da": ["main_transfer.py", *TINY, "--select-by", "validation", "--method", "da"],
    "committee": ["main_committee.py", "--source-epochs", "2", "--networks", "2"],
}


def predictions(method, data, out, *more):
    script, *flags = HONEST[method]
    run(script, "--data-dir", data, "--results-dir", out, *flags, *more)
    (path,) = out.glob("*_predictions.csv")
    return pd.read_csv(path)


@pytest.mark.parametrize("method", HONEST)
def test_no_test_label_reaches_the_models(small_data, tmp_path, method):
    """With the epoch not chosen on the test set, its labels change nothing of the predictions."""
    data = shutil.copytree(small_data, tmp_path / "data")
    before = predictions(method, data, tmp_path / "before")
    moved = before[before.set == "test"].structure
    for path in [data / "Database.csv", *data.glob("*_train*.csv")]:
        frame = pd.read_csv(path)
        names = frame["structures" if path.stem == "Database" else "structure"]
        frame.loc[names.isin(moved), "Eform (eV/atom)"] += 100
        frame.to_csv(path, index=False)
    after = predictions(method, data, tmp_path / "after")
    assert (after.true != before.true).sum() == (before.set == "test").sum() > 0
    np.testing.assert_array_equal(after["mean"], before["mean"])


def hcp_of(bcc):
    """A cube of bcc moved the Burgers way: every other (110) plane shuffled, and a strain."""
    cubes = bcc.frac_coords * round((len(bcc) / 2) ** (1 / 3))
    sign = np.where(np.rint(cubes[:, :2].sum(1)) % 2, 1, -1)
    shuffled = cubes + sign[:, None] * np.array([1, -1, 0]) / 12
    along, across = np.outer([1, 1, 0], [1, 1, 0]) / 2, np.outer([1, -1, 0], [1, -1, 0]) / 2
    strain = np.eye(3) + ((4 / 3) ** 0.5 - 1) * along + (1.5**0.5 - 1) * across
    scale = round((len(bcc) / 2) ** (1 / 3))
    return Structure(bcc.lattice.matrix @ strain * 2 ** (-1 / 6), bcc.species, shuffled / scale)


@pytest.fixture(scope="module")
def relaxed_anew(small_data, tmp_path_factory):
    """Data whose relaxation of split 0's test or training cells ended elsewhere: {set: (folder, names)}."""
    loaded, found = common.load_data(small_data, small_data, "Ef"), {}
    split = common.split_rows(loaded.table, "4+5", 100, 0)
    for part, rows in (("test", split.test), ("train", split.train)):
        data, generator = tmp_path_factory.mktemp(part) / "data", np.random.default_rng(0)
        shutil.copytree(small_data, data)
        names = loaded.table.structure[rows]
        for name in names:
            cell = Poscar.from_file(data / "POSCARS" / name).structure
            if name in list(names[names.str.endswith("bcc")])[:2]:
                cell = hcp_of(cell)
            strain = np.eye(3) + generator.uniform(-0.02, 0.02, (3, 3))
            moved = Structure(cell.lattice.matrix @ strain, cell.species, cell.frac_coords)
            step = generator.normal(0, 0.05, (len(moved), 3))  # angstrom
            moved = Structure(
                moved.lattice, moved.species, moved.cart_coords + step, coords_are_cartesian=True
            )
            text = Poscar(moved).get_str(significant_figures=12)
            (data / "POSCARS" / name).write_text(text)
        run("structure_stat.py", "--data-dir", data, "--cells", "given", "lattice")
        found[part] = data, list(names)
    return found


def test_cells_relaxed_anew_became_others(small_data, relaxed_anew):
    """What the two tests below stand on: clusters of cells as given move, two cells are hcp now."""
    for data, names in relaxed_anew.values():
        before, after = (
            pd.read_csv(folder / "phases.csv").set_index("structure") for folder in (small_data, data)
        )
        assert (after.became[names] == "hcp").sum() == 2 and not (before.became == "hcp").any()
        given = [
            pd.read_csv(folder / "bcc_train.csv").set_index("structure") for folder in (small_data, data)
        ]
        triplets = [column for column in given[0] if column.startswith("triplet")]
        assert not np.allclose(*(table.loc[table.index.isin(names), triplets] for table in given), atol=1e-3)


@pytest.mark.parametrize("method", HONEST)
def test_no_relaxation_of_a_test_cell_reaches_a_prediction(
    small_data, relaxed_anew, tmp_path, method, monkeypatch
):
    """Also where the samples fill the sites of a test cell."""
    data, names = relaxed_anew["test"]
    monkeypatch.setattr(generate, "LATTICE", names[-1].removesuffix("bcc"))
    before = predictions(method, small_data, tmp_path / "before")
    after = predictions(method, data, tmp_path / "after")
    said = [c for c in before if c.startswith(("mean", "std", "half", "p_")) and "given" not in c]
    np.testing.assert_array_equal(after[said], before[said])  # "given": asked for the phase it has


def test_no_relaxation_of_a_test_cell_reaches_a_peer(small_data, relaxed_anew):
    sys.path.insert(0, str(ROOT / "studies"))
    import compare_methods

    for method, predict in compare_methods.PEERS.items():
        found = []
        for folder in (small_data, relaxed_anew["test"][0]):
            data = common.load_data(folder, folder, "Ef", cells="lattice")
            split = common.split_rows(data.table, "4+5", 100, 0)
            found.append(predict(data, split.train, split.test, 0, "training set"))
        np.testing.assert_array_equal(*found, method)
        with pytest.raises(ValueError, match="before the calculation"):
            compare_methods.predict_ce(None)(data._replace(cells="given"), split.train, split.test, 0, "any")


@pytest.mark.parametrize("method", ["scratch", "tl"])
def test_phase_found(small_data, relaxed_anew, tmp_path, method):
    """Training cells teach what they are; a test cell's phase is asked for, and moves that row alone."""
    found = {
        name: predictions(method, folder, tmp_path / name, "--phase-input", "found")
        for name, folder in (("before", small_data), *((p, relaxed_anew[p][0]) for p in relaxed_anew))
    }
    before, became = found["before"], pd.read_csv(relaxed_anew["test"][0] / "phases.csv").became
    hcp = before.structure.isin(
        pd.read_csv(relaxed_anew["test"][0] / "phases.csv").structure[became == "hcp"]
    )
    moved = (found["test"]["mean"] != before["mean"]).to_numpy()
    assert hcp.sum() == 2 and moved[hcp].all() and not moved[before.set == "train"].any()
    assert (found["train"]["mean"] != before["mean"])[before.set == "test"].all()


def test_a_phase_that_is_asked_for(small_data, relaxed_anew, tmp_path):
    """A network told the phase found predicts each phase by name that it was taught; the others do not."""
    flags = ["--results-dir", tmp_path, *TINY, "--phase-input", "found", "--predict", "FeNiCoCr"]
    tables = []
    for data, ending in ((relaxed_anew["train"][0], ""), (small_data, "_2")):
        run("main.py", "--data-dir", data, *flags)
        tables.append(pd.read_csv(tmp_path / f"scratch_Ef_4+5_100_reference_found{ending}_predicted.csv"))
    taught, without = tables
    assert taught.phase.tolist() == ["fcc", "bcc", "hcp"] and taught["mean"].nunique() == 3
    assert taught.outside.isna().all()
    assert without["mean"].notna().tolist() == [True, True, False] and "hcp not seen" in without.outside[2]
    (tmp_path / "alloys.csv").write_text("formula,phase\nFeNi,hcp\n")
    named = ["--data-dir", small_data, "--results-dir", tmp_path, "--predict", tmp_path / "alloys.csv"]
    assert "fcc or bcc" in run("main.py", *named, status=2).err


def test_a_poscar_that_changed_after_its_tables(small_data, tmp_path):
    data = shutil.copytree(small_data, tmp_path / "data")
    name = pd.read_csv(data / "bcc_train.csv").structure[3]
    with open(data / "POSCARS" / name, "a") as file:
        file.write("\n")
    error = run("main.py", "--data-dir", data, "--results-dir", tmp_path, *TINY, status=2).err
    assert "bcc_train.csv" in error and name in error and "structure_stat.py" in error
    (data / "fcc_train.sha256").unlink()
    error = run("main.py", "--data-dir", data, "--results-dir", tmp_path, *TINY, status=2).err
    assert "fcc_train.sha256" in error


def test_the_scripts_share_their_defaults():
    """A constant of the same name has the same value in the scripts that train."""
    import main
    import main_transfer

    shared = ("TARGET", "ALLOYS", "PHASE_INPUT", "PERCENT", "SEEDS", "SPLITS", "SELECT_BY", "HOLD_OUT",
              "REFIT", "EPOCHS", "PATIENCE", "BATCH_SIZE", "DATA_DIR", "TABLE_DIR",
              "RESULTS_DIR")  # fmt: skip
    for name in shared:
        values = {str(vars(module)[name]) for module in (main, main_transfer)}
        assert len(values) == 1, name
    for name in ("TARGET", "ALLOYS", "PERCENT", "SPLITS"):
        assert getattr(main, name) == getattr(main_committee, name)
