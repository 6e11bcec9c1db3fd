"""Descriptors, samples and splits, against counts by hand; test labels, which no method may read."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import STUDY, TINY, needs_study, run

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


def pairs(*names):
    return tuple(frozenset(name.split("-")) for name in names)


OTHERS = {  # where copies are more than originals; where no alloy is plain; where there are no originals
    "two pairs": System((*PAPER.elements, "Cu"), pairs("Mn-Pd", "Cr-Cu")),
    "none plain": System(("Fe", "Ni", "Co", "Cr", "Mn"), pairs("Co-Cr")),
    "copies alone": System(("Fe", "Mn", "Pd", "Al", "Cu"), pairs("Fe-Mn", "Fe-Pd")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_as_many_as_asked_of_other_systems(name):
    fractions, kind = generate.sample_compositions(OTHERS[name], "4+5")
    chosen = generate.select(SimpleNamespace(fractions=fractions, kind=kind), 75, "4+5")
    assert len(chosen) == len(set(chosen)) == 75
    if name != "copies alone":  # half and half of each number of elements
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


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("main.py", [*TINY, "--select-by", "validation"]),
        ("main_transfer.py", [*TINY, "--select-by", "validation", "--source-epochs", "2"]),
        ("main_transfer.py", [*TINY, "--select-by", "validation", "--method", "da"]),
        ("main_committee.py", ["--source-epochs", "2", "--networks", "2"]),
    ],
)
def test_no_test_label_reaches_the_models(small_data, tmp_path, script, flags):
    """With the epoch not chosen on the test set, its labels change nothing of the predictions."""
    column, found = "Eform (eV/atom)", []
    (tmp_path / "tables").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "POSCARS").symlink_to(small_data / "POSCARS")
    for shift in (0, 100):
        for name, key in (("Database", "structures"), ("fcc_train", "structure"), ("bcc_train", "structure")):
            frame = pd.read_csv(small_data / f"{name}.csv")
            if found:
                frame.loc[frame[key].isin(found[0][found[0].set == "test"].structure), column] += shift
            frame.to_csv(tmp_path / ("data" if name == "Database" else "tables") / f"{name}.csv", index=False)
        out = tmp_path / f"out{shift}"
        run(
            script,
            "--data-dir",
            tmp_path / "data",
            "--table-dir",
            tmp_path / "tables",
            "--results-dir",
            out,
            *flags,
        )
        (path,) = out.glob("*_predictions.csv")
        found.append(pd.read_csv(path))
    before, after = found
    assert (after.true != before.true).sum() == (before.set == "test").sum() > 0
    np.testing.assert_array_equal(after["mean"], before["mean"])


def test_the_scripts_share_their_defaults():
    """A constant of the same name has the same value in the scripts that train."""
    import main
    import main_transfer

    shared = ("TARGET", "ALLOYS", "PERCENT", "SEEDS", "SPLITS", "SELECT_BY", "HOLD_OUT", "REFIT", "EPOCHS",
              "PATIENCE", "BATCH_SIZE", "DATA_DIR", "TABLE_DIR", "RESULTS_DIR")  # fmt: skip
    for name in shared:
        values = {str(vars(module)[name]) for module in (main, main_transfer)}
        assert len(values) == 1, name
    for name in ("TARGET", "ALLOYS", "PERCENT", "SPLITS"):
        assert getattr(main, name) == getattr(main_committee, name)
