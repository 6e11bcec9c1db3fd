"""Another system than the paper's, Al-Co-Ni in binaries and ternaries, through all four scripts."""

import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, random_alloy, run, write_data

import common
import settings

ELEMENTS = ["Al", "Co", "Ni"]
METHODS = [["scratch", "main.py"], ["da", "main_transfer.py", "--augment", "40"], ["tl", "main_transfer.py"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder of small random cells, 50 a phase, and its tables."""
    generator, alloys = np.random.default_rng(5), {}
    for phase, repeat in (("fcc", (2, 1, 2)), ("bcc", 2)):
        while len(alloys) < (50 if phase == "fcc" else 100):
            k = 2 + (len(alloys) % 50 >= 20)
            elements = sorted(generator.choice(ELEMENTS, k, replace=False))
            counts = dict(zip(elements, map(int, 1 + generator.multinomial(16 - k, np.ones(k) / k))))
            formula = "".join(f"{element}{n}" for element, n in counts.items())
            alloys[formula, phase] = random_alloy(phase, counts, len(alloys), repeat)
    folder = write_data(tmp_path_factory.mktemp("other") / "data", alloys)
    frame = pd.read_csv(folder / "Database.csv", index_col=0)
    al = common.mole_fractions(frame.structures.str.split("_").str[0], ELEMENTS)[:, 0]
    frame.assign(**{"Eform (eV/atom)": -1.2 * al * (1 - al)}).to_csv(folder / "Database.csv")
    run("structure_stat.py", "--data-dir", folder, "--cells", "given")
    return folder


def test_tables_and_samples(data, tmp_path):
    flags = ["--data-dir", data, "--results-dir", tmp_path]
    assert "Ni, Co, Al make 0 alloys" in run("generate.py", *flags, status=2).err  # of four elements
    printed = run("generate.py", *flags, "--alloys", "Total").out
    assert "Al: not in ELEMENT_TABLE" in printed and "Co: not in" not in printed
    assert "electronegativity 1.61, radius 1.43 angstrom, 3 valence electrons" in printed
    for phase in common.PHASES:
        columns = pd.read_csv(data / f"{phase}_train.csv").columns
        # 3 points, 6 pairs, 10 triplets, 15 quadruplets, 6 second-neighbour pairs, 4 shares, 2 targets
        assert len(columns) == 1 + 3 + 6 + 10 + 15 + 6 + 4 + 2 and {"Co", "triplet Ni-Co-Al"} <= {*columns}
        samples = pd.read_csv(tmp_path / f"generate_Ef_Total_19/samples_{phase}.csv")
        assert len(samples) == 3 * 9 + 36 and samples.notna().all(axis=None)
        np.testing.assert_allclose(samples[ELEMENTS].sum(axis=1), 1)
        assert len(pd.read_csv(tmp_path / f"generate_Ef_Total_19/eci_{phase}.csv")) == 20  # and the intercept
        law = -1.2 * samples.Al * (1 - samples.Al)
        assert np.corrcoef(samples["Eform (eV/atom)"], law)[0, 1] > 0.9


@pytest.mark.parametrize("phases", [["fcc", "bcc"], ["bcc"]])
def test_training(data, tmp_path, phases):
    """Also where the data is of one phase alone."""
    frame = pd.read_csv(data / "Database.csv", index_col=0)
    folder = shutil.copytree(data, tmp_path / "data")
    frame[frame.phase.isin(phases)].to_csv(folder / "Database.csv")
    for method, script, *more in METHODS:
        flags = ["--data-dir", folder, "--results-dir", tmp_path, *TINY, "--method", method, *more]
        assert len(run(script, *flags, status=2).err.splitlines()) == 1
        printed = run(script, *flags, "--alloys", "Total").out
        assert printed.count("Al: not in ELEMENT_TABLE") == 1 and "Test: R2: " in printed
        table = pd.read_csv(tmp_path / f"{method}_Ef_Total_100_reference/predictions.csv")
        assert {*table.phase} == {*phases}


def test_hcp_is_left_out_and_said(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    frame = pd.read_csv(folder / "Database.csv", index_col=0)
    extra = frame.iloc[:7].assign(phase="hcp", **{"Ms (mub/atom)": "?"})  # whatever else is there
    extra["structures"] = extra.structures.str.replace("fcc", "hcp")
    pd.concat([extra[:3], frame, extra[3:]], ignore_index=True).to_csv(folder / "Database.csv")
    assert "7 of phase 'hcp'" in run("structure_stat.py", "--data-dir", folder, "--cells", "given").out
    for name in ("fcc_train.csv", "bcc_train.csv"):
        assert (folder / name).read_bytes() == (data / name).read_bytes()


def test_systems():
    system = common.alloy_system(["AlCo", "CoNi", "Co2Ni"])
    assert system == (("Ni", "Co", "Al"), (frozenset(("Ni", "Al")),))  # the table's first, in its order
    system = common.alloy_system(["AlCo"], ("Al", "Co", "Ni"), [("Mn", "Pd"), ("Ni", "Al")])
    assert system == (("Al", "Co", "Ni"), (frozenset(("Ni", "Al")),))


def test_properties_of_elements_outside_the_table():
    """Metallic radii, as in the paper's table; of what is no metal the atomic one; of He there is none."""
    assert common.element_properties(["Ti", "Si", "Fe"])[:, 1].tolist() == [1.47, 1.10, 1.277]
    assert common.element_properties(["Al", "Cu", "Ti"])[:, 2].tolist() == [3, 11, 4]
    with pytest.raises(settings.InputError, match="He"):
        common.element_properties(["Fe", "He"])
