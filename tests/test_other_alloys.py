"""The study of other alloys, on rows of the two data sets read where they lie."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import OTHER, ROOT, needs_other, run

sys.path.insert(0, str(ROOT / "studies"))
import compare_methods
import other_alloys

from settings import InputError

pytestmark = needs_other


def test_splits_leave_out_what_they_say(tmp_path):
    """Drawn labels are in no test set; a system left out gives no training row, and each is left out once."""
    data = other_alloys.load("quaternaries", OTHER, tmp_path)
    assert len(data.table) == 7082 and data.clusters is None
    split, _ = other_alloys.split_of(data, "drawn", 300, 3)
    assert len(split.train) == 300 and sorted([*split.train, *split.test]) == [*range(7082)]
    with pytest.raises(InputError, match="LABELS 7082"):
        other_alloys.split_of(data, "drawn", 7082, 0)
    systems = np.array([frozenset(re.findall("[A-Z][a-z]?", formula)) for formula in data.table.formula])
    left_out = []
    for number in range(other_alloys.FOLDS):
        split, pool = other_alloys.split_of(data, "systems", 300, number)
        assert not {*systems[split.train]} & {*systems[split.test]}
        assert len(split.train) == 300 and len(split.test) + pool == 7082
        left_out += [*split.test]
    assert sorted(left_out) == [*range(7082)]


def test_what_splits_share(monkeypatch):
    """Where labels are drawn, the fewer of labels and test alloys; else the test set, of the pool."""
    monkeypatch.setattr(compare_methods, "corrected_interval", lambda _, n_pool, n_test: n_test / n_pool)
    rows = pd.DataFrame({"split": [0, 1] * 2, "method": ["tl"] * 2 + ["scratch"] * 2, "RMSE": [1, 1, 2, 2]})
    shared = {("drawn", 300, 700): 3 / 7, ("drawn", 700, 300): 3 / 7, ("systems", 300, 200): 1 / 4}
    for (test, n_train, n_test), share in shared.items():
        frame = rows.assign(test=test, n_train=n_train, n_test=n_test, n_pool=800)
        assert other_alloys.ratio(frame, "tl", "scratch") == f"0.50 ± {share / 2:.2f}"


def test_a_handful_of_rows(tmp_path, monkeypatch):
    """The whole command, on some rows of each; all labels are those of the sources, as their README has them.

    Numbers of alloys, mean and deviation; elements mix with nothing.
    """
    rows = pd.DataFrame(other_alloys.cunipdag(OTHER, tmp_path), columns=["name", "phase", "energy"])
    n_elements = rows.name.map(lambda name: len(re.findall("[A-Z]", name)))
    assert n_elements.value_counts().to_dict() == {4: 129, 3: 25, 1: 4, 2: 1} and {*rows.phase} == {"fcc"}
    many = rows.energy[n_elements == 4]
    assert many.mean() == pytest.approx(0.080, abs=5e-4) and many.std() == pytest.approx(0.058, abs=5e-4)
    assert rows.energy[n_elements == 1].abs().max() < 1e-9
    assert {path.name for path in (tmp_path / "POSCARS").iterdir()} == {*rows.name}

    monkeypatch.setattr(subprocess, "run", lambda words, check: run(words[1], *words[2:]))  # 5 s less
    search, grid = compare_methods.GridSearchCV, {"C": [10], "gamma": [0.01, 0.1]}
    monkeypatch.setattr(compare_methods, "GridSearchCV", lambda model, _, **more: search(model, grid, **more))
    energies = pd.read_csv(OTHER / "CuNiPdAg_properties.csv", index_col=0)
    energies.iloc[::3].to_csv(tmp_path / "CuNiPdAg_properties.csv")
    shutil.copy(OTHER / "CuNiPdAg_structures.json", tmp_path)
    entries = json.loads((OTHER / "quaternary_fcc_bcc.json").read_text("utf-8"))
    (tmp_path / "quaternary_fcc_bcc.json").write_text(json.dumps(entries[:200]), "utf-8")
    flags = ["--data-dir", tmp_path, "--results-dir", tmp_path, "--splits", "0-1", "--percents", "100"]
    flags += ["--labels", "80", "--methods", "ce", "svr", "phase_gp", "--jobs", "1"]
    assert "without clusters left out: CE alone" in run("studies/other_alloys.py", *flags).out
    frame = pd.read_csv(tmp_path / "other_alloys.csv")
    methods = frame.groupby("test").method.agg(set)
    assert methods["drawn"] == methods["systems"] == {"svr", "phase_gp"}
    assert methods["arrangements"] == methods["drawn"] | {"ce"}
    assert (frame.R2[frame.test == "arrangements"] > 0.5).all()
    held = frame.within_90[frame.method.str.startswith("phase_gp")]
    assert 0.5 < held.mean() < 1 and frame.within_90.notna().sum() == len(held)
    assert "| 15 elements, drawn | 80 | formation energy, fcc |" in (tmp_path / "other_alloys.md").read_text()
