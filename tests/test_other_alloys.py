"""The study of other alloys, on rows of the two data sets read where they lie."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import OTHER, ROOT, needs_other, run

sys.path.insert(0, str(ROOT / "studies"))
import compare_methods
import other_alloys

import common
from settings import InputError

pytestmark = needs_other
COMMITTEE = {"committee", "committee_found"}


def test_labels_are_those_of_the_sources(tmp_path):
    """Numbers of alloys, mean and deviation as their README has them; elements mix with nothing."""
    other_alloys.write_cunipdag(OTHER, tmp_path / "ideal")
    database, system = common.read_database(tmp_path / "ideal", ["Ef"], excluded_pairs=None)
    table = pd.Series(common.mole_fractions(database.formula, system.elements).astype(bool).sum(1))
    assert table.value_counts().to_dict() == {4: 129, 3: 25, 1: 4, 2: 1} and set(database.phase) == {"fcc"}
    many = database["Eform (eV/atom)"][table == 4]
    assert many.mean() == pytest.approx(0.080, abs=5e-4) and many.std() == pytest.approx(0.058, abs=5e-4)
    assert database["Eform (eV/atom)"][table == 1].abs().max() < 1e-9
    assert {path.name for path in (tmp_path / "ideal" / "POSCARS").iterdir()} == set(database.structure)


def test_splits_leave_out_what_they_say(tmp_path):
    """Drawn labels are in no test set; a system left out gives no training row, and each is left out once."""
    other_alloys.write_quaternaries(OTHER, tmp_path)
    data = common.load_data(tmp_path, tmp_path, "Ef", excluded_pairs=None)
    assert len(data.table) == 7082 and data.clusters is None
    split, pool = other_alloys.split_of(data, "drawn", 300, 3)
    assert (len(split.train), len(split.test), pool) == (300, 6782, 7082)
    assert not np.isin(split.train, split.test).any()
    with pytest.raises(InputError, match="LABELS 7082"):
        other_alloys.split_of(data, "drawn", 7082, 0)
    systems = np.array([frozenset(re.findall("[A-Z][a-z]?", formula)) for formula in data.table.formula])
    left_out = []
    for number in range(other_alloys.FOLDS):
        split, pool = other_alloys.split_of(data, "systems", 300, number)
        assert not set(systems[split.train]) & set(systems[split.test])
        assert len(split.train) == 300 and len(split.test) + pool == 7082
        left_out += list(split.test)
    assert sorted(left_out) == list(range(7082))


def test_each_split_has_its_own_intervals(tmp_path, monkeypatch):
    """Made-up ones that hold all alloys of one split and none of the other; all phases are as named."""
    other_alloys.write_quaternaries(OTHER, tmp_path)
    data = common.load_data(tmp_path, tmp_path, "Ef", excluded_pairs=None)
    true, bcc = data.targets, (data.table.phase == "bcc").to_numpy(float)
    error = np.array([0.0, 1.0])[:, None] * np.ones(len(true))
    columns = {
        f"p_{phase}": np.array([chance] * 2)
        for phase, chance in {"fcc": 1 - bcc, "bcc": bcc, "hcp": 0 * bcc}.items()
    }
    columns |= dict.fromkeys(["half_width_90", "half_width_90_given_phase"], 0.5 + 0 * error)
    columns["mean_given_phase"] = true + error
    outcome = SimpleNamespace(columns=columns, predicted=(true + error)[:, None])

    def answers(piece, data, data_dir, splits, seeds):
        means = [(true + one)[split.test][None] for one, split in zip(error, splits)]
        return {"named": means, "found": means}, outcome

    monkeypatch.setattr(compare_methods, "answers", answers)
    piece = {"test": "drawn", "amount": 300, "method": "committee", "splits": [0, 1]}
    found = other_alloys.work(piece, data, tmp_path, [0])
    assert len(found) == 8 and set(found.method) == COMMITTEE  # two splits, phases and questions
    assert (found.within_90 == (found.split == 0)).all()
    assert (found.phase_told == 1).all() and (found.phase_named == 1).all()
    np.testing.assert_allclose(found.RMSE, found.split, atol=1e-12)


def test_what_splits_share(monkeypatch):
    """Where labels are drawn, the fewer of labels and test alloys; else the test set, of the pool."""
    asked = []
    monkeypatch.setattr(
        compare_methods, "corrected_interval", lambda _, n_pool, n_test: asked.append((n_test, n_pool)) or 0.0
    )
    rows = pd.DataFrame({"split": [0, 1] * 2, "method": ["tl"] * 2 + ["scratch"] * 2, "RMSE": [1, 1, 2, 2]})
    for test, n_train, n_test in (("drawn", 300, 700), ("drawn", 700, 300), ("systems", 300, 200)):
        frame = rows.assign(test=test, n_train=n_train, n_test=n_test, n_pool=800)
        assert other_alloys.ratio(frame, "tl", "scratch") == "0.50 ± 0.00"
    assert asked == [(300, 700), (300, 700), (200, 800)]


def test_a_handful_of_rows(tmp_path, monkeypatch):
    """The whole command, on some rows of each; without structures what needs clusters is left out."""
    monkeypatch.setattr(subprocess, "run", lambda words, check: run(words[1].name, *words[2:]))  # 5 s less
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    energies = pd.read_csv(OTHER / "CuNiPdAg_properties.csv", index_col=0)
    energies.iloc[::3].to_csv(source / "CuNiPdAg_properties.csv")
    shutil.copy(OTHER / "CuNiPdAg_structures.json", source)
    rows = json.loads((OTHER / "quaternary_fcc_bcc.json").read_text("utf-8"))
    (source / "quaternary_fcc_bcc.json").write_text(json.dumps(rows[:200]), "utf-8")
    flags = ["--data-dir", source, "--results-dir", out, "--methods", "ce", "svr", "committee"]
    flags += ["--splits", "0-1"]
    printed = run("studies/other_alloys.py", *flags, "--percents", "100", "--labels", "80").out
    assert "without clusters: trained are Committee, support vectors; not CE alone" in printed
    frame = pd.read_csv(out / "other_alloys.csv")
    assert set(frame.method[frame.test == "arrangements"]) == {"ce", "svr", *COMMITTEE}
    assert set(frame.method[frame.test != "arrangements"]) == {"svr", *COMMITTEE}
    assert (frame.R2[frame.test == "arrangements"] > 0.5).all() and frame.seconds.notna().all()
    text = (out / "other_alloys.md").read_text("utf-8")
    assert "| 15 elements, drawn | 80 | formation energy, fcc |" in text
    held = frame.within_90[frame.method.isin(COMMITTEE)]
    assert 0.5 < held.mean() < 1 and frame.within_90.notna().sum() == len(held)
