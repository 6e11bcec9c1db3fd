"""Each script as a user runs it, with tiny settings: what it writes, and under which name."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, edited, files, run

import common

SHARED = "data-dir table-dir results-dir elements excluded-pairs device jobs"
CHOICE = "target method alloys phase-input percent seeds splits select-by hold-out refit"
SOURCE, TRAINING = "augment source-epochs source-learning-rate", "epochs patience batch-size learning-rate"
FLAGS = {
    "structure_stat.py": "cells",
    "generate.py": "target alloys clusters alpha cells",
    "main.py": f"{CHOICE} {TRAINING}",
    "main_transfer.py": f"{CHOICE} clusters alpha {SOURCE} {TRAINING}",
}
METHODS = {
    "scratch": ["main.py"], "scratch_prime": ["main.py", "--percent", "50.5"],
    "tl": ["main_transfer.py", "--source-epochs", "2"], "da": ["main_transfer.py", "--augment", "20"],
}  # fmt: skip
FILES = ["losses.csv", "metrics.csv", "model.pt", "parity.png", "predictions.csv", "settings.json"]


@pytest.mark.parametrize("script", FLAGS)
def test_flags(script):
    """Those of earlier releases; to drop or rename one breaks its users' commands."""
    flags = [f"--{name}" for name in f"{FLAGS[script]} {SHARED}".split()]
    error = run(script, "--no-such-flag", status=2).err
    assert error.startswith(f"{script}: unrecognized") and error.count("\n") == 1
    assert error.split("the flags are ")[1].split() == flags
    described = run(script, "--help").out
    assert all(re.search(rf"^  {flag} .*\n? *\w", described, re.MULTILINE) for flag in flags)
    assert ("; Ef, Ms (default: Ef)" in " ".join(described.split())) == ("--target" in flags)


@pytest.mark.parametrize("method", METHODS)
def test_training(small_data, tmp_path, pictures, method):
    """The figures follow from one another: printed ones from the metrics, the ensemble's from predictions."""
    script, *more = METHODS[method]
    flags = ["--method", method, "--seeds", "0-1", "--splits", "0,2", "--target", "Ms", *TINY, *more]
    printed = run(script, "--data-dir", small_data, "--results-dir", tmp_path, *flags).out
    assert "SEEDS 0-1" in printed.splitlines()[0] and "EPOCHS 3" in printed.splitlines()[0]
    name = f"{method}_Ms_4+5_{'50.5' if method == 'scratch_prime' else '100'}_reference"
    folder = tmp_path / name
    assert sorted(path.name for path in folder.iterdir()) == [*FILES, "summary.csv"]
    metrics, found, summary, losses = (
        pd.read_csv(folder / f"{one}.csv") for one in ("metrics", "predictions", "summary", "losses")
    )
    assert metrics[["split", "seed"]].to_numpy().tolist() == [[0, 0], [0, 1], [2, 0], [2, 1]]
    assert {*metrics.data} == {"HEA_data (the study's, DFT)"} and {*found.unit, *metrics.unit} == {"μB/atom"}
    lines = np.array(re.findall(r"R2: (\S+), loss: (\S+)", printed), float).reshape(4, 4)
    np.testing.assert_allclose(metrics[["train_R2", "train_loss", "test_R2", "test_loss"]], lines, atol=1e-6)
    least = losses[losses.epoch > 1].groupby(["split", "seed"]).watch_loss.min()  # the test set's
    np.testing.assert_allclose(least, metrics.test_loss, rtol=1e-4)

    figure = r"[-\d.]+ ± [\d.]+"  # R2 has no unit
    shown = rf"2 split\(s\) x 2 seed\(s\), test: R2 {figure}, RMSE {figure} μB/atom, MAE {figure} μB/atom\n"
    assert len(re.findall(shown, printed)) == 2
    found = found[found.set == "test"].assign(error=lambda frame: frame["mean"] - frame.true)
    errors = found.groupby("split").error.agg(lambda error: (error**2).mean() ** 0.5)
    single, ensemble = (row for _, row in summary.iterrows())
    assert ensemble.test_RMSE_mean == pytest.approx(errors.mean())
    assert single.test_RMSE_std == pytest.approx(metrics.groupby("split").test_RMSE.mean().std())
    within = f"of the seeds: {(found.error.abs() <= found['std']).mean():.0%} (68 %"
    assert within in printed and "100%" not in within
    said = pictures[f"{name}/parity.png"]
    assert "magnetisation in the database (μB/atom)" in said and "2 splits" in said and "90 %" not in said


def test_names_of_runs(small_data, tmp_path):
    """A run replaces its own earlier folder, wherever its data lies, and never that of another run."""
    data, moved, out = (tmp_path / name for name in ("data", "moved", "out"))
    for folder in (data, moved):
        folder.mkdir()
    plain = (small_data / "Database.csv").read_text()
    (moved / "Database.csv").write_text(plain, newline="\r\n")
    (data / "Database.csv").write_text(plain.replace("2", "3"))
    flags = ["--results-dir", out, *TINY]
    for folder, more in ((small_data, []), (small_data, ["--seeds", "5"]), (data, [])):
        run("main.py", "--data-dir", folder, *flags, *more)
    first, second, third = sorted(out.iterdir())
    assert (second.name, third.name) == (f"{first.name}_2", f"{first.name}_3")
    before = files(third)
    for path in (first, second):
        (path / "mine.txt").write_text("of the earlier run")
    assert f"written to {first}: " in run("main.py", "--data-dir", moved, *flags).out
    run("main.py", "--data-dir", small_data, *flags, "--seeds", "5")
    assert sorted(out.iterdir()) == [first, second, third] and files(third) == before
    assert not [*out.glob("*/mine.txt")] and not [*out.glob(".*")]
    recorded = json.loads((first / "settings.json").read_text("utf-8"))
    assert recorded["sha256"]["Database.csv"] and recorded["torch"] and recorded["settings"]["SEEDS"] == [0]
    assert "class Network" in recorded["network"]["source"]
    info = Path("/proc/cpuinfo")  # where it names the processor
    models = re.findall(r"model name\s*: (.*)", info.read_text("utf-8")) if info.is_file() else []
    assert recorded["processor"] in (models or [recorded["processor"]])


def test_constants_as_python_values(small_data, tmp_path):
    """What a user writes who knows Python is the same run as what the flags take."""
    lines = ["SEEDS = range(9)", "SPLITS = [0, 2]", "PERCENT = 50", "ALLOYS = str('4+5')"]
    flags = ["--data-dir", small_data, "--results-dir", tmp_path / "out", *TINY]
    printed = run(edited(tmp_path, *lines), *flags).out
    assert printed.count("Train: ") == 16 and "and 2 more, in metrics.csv" in printed
    run("main.py", *flags, "--seeds", "0-8", "--splits", "0", "2", "--percent", "50")
    (folder,) = (tmp_path / "out").iterdir()
    assert len(pd.read_csv(folder / "metrics.csv")) == 18


def changed(small_data, folder, **columns):
    """A data folder with other columns in its Database.csv, and its tables."""
    shutil.copytree(small_data / "POSCARS", folder / "POSCARS")
    pd.read_csv(small_data / "Database.csv").assign(**columns).to_csv(folder / "Database.csv", index=False)
    run("structure_stat.py", "--data-dir", folder, "--cells", "given")
    return folder


def test_rows_without_a_label(small_data, tmp_path):
    """They stay in the tables, blank, and in no training set; another target's blanks keep no one.

    Nor does a column that is not there.
    """
    column = common.TARGETS["Ms"].column
    blank = {column: lambda frame: frame[column].where(frame.index % 4 > 0)}
    data = changed(small_data, tmp_path / "data", **blank)
    assert pd.read_csv(data / "fcc_train.csv")[column].isna().sum() == 6
    flags = ["--data-dir", data, "--results-dir", tmp_path, *TINY, "--target"]
    for script, target, n in (("main.py", "Ef", 44), ("main.py", "Ms", 33), ("main_transfer.py", "Ms", 33)):
        more = ["--source-epochs", "0"] if "transfer" in script else ["--alloys", "Total"]
        printed = run(script, *flags, target, *more).out
        assert ("left out, no Ms: 11 rows, " in printed and ", and 3 more\n" in printed) == (n < 44)
        (path,) = tmp_path.glob(f"{'tl' if 'transfer' in script else 'scratch'}_{target}_*/predictions.csv")
        found = pd.read_csv(path)
        assert len(found) == n and found[["true", "mean"]].notna().all(axis=None)
    pd.read_csv(data / "Database.csv").drop(columns=column).to_csv(data / "Database.csv", index=False)
    assert "Test: R2" in run("main.py", *flags, "Ef").out
    assert column in run("main.py", *flags, "Ms", status=2).err


def test_a_new_target_is_one_line(small_data, tmp_path, monkeypatch, pictures):
    """And what that does not give, rates and penalties, is fit to learn it."""
    column = "V0 (A^3/atom)"
    monkeypatch.setitem(common.TARGETS, "V0", common.Target(column, "Å^3/atom", "volume"))
    formulas = pd.read_csv(small_data / "Database.csv").structures.str.split("_").str[0]
    volumes = 10 + 9 * common.mole_fractions(formulas, ["Cr"])[:, 0] + 0.001 * np.arange(44)
    data = changed(small_data, tmp_path / "data", **{column: volumes})
    flags = ["--data-dir", data, "--results-dir", tmp_path, "--target", "V0"]
    printed = run("generate.py", *flags, "--clusters", "points").out
    fits = re.findall(r"fit R2 (\S+) .* RMSE (\S+) Å\^3/atom \(on cells as given", printed)
    assert len(fits) == 2 and all(float(r2) > 0.99 and float(rmse) < 0.5 for r2, rmse in fits)
    for phase in common.PHASES:
        (said,) = (text for name, text in pictures.items() if name.endswith(f"eci_{phase}.png"))
        assert f"Cluster expansion of the volume in {phase}" in said and "\nÅ^3/atom\n" in said
    run("main.py", *flags, *TINY, "--epochs", "150", "--patience", "150")
    found = pd.read_csv(tmp_path / "scratch_V0_4+5_100_reference/predictions.csv")
    np.testing.assert_array_equal(found.true.sort_values(), np.sort(volumes))
    assert ((found["mean"] - found.true) ** 2).mean() < 0.2 * found.true.var()
    assert "Ef, Ms, V0" in run("main.py", "--help").out


def test_windows_line_ends_and_byte_order_marks(small_data, tmp_path):
    data, found = shutil.copytree(small_data, tmp_path / "data"), []
    for path in data.rglob("*"):
        if path.is_file():
            mark = b"\xef\xbb\xbf" if path.suffix == ".csv" else b""
            path.write_bytes(mark + path.read_bytes().replace(b"\n", b"\r\n"))
    for folder, out in ((data, tmp_path / "windows"), (small_data, tmp_path / "plain")):
        run("main_transfer.py", "--data-dir", folder, "--results-dir", out, *TINY, "--source-epochs", "1")
        found.append((out / "tl_Ef_4+5_100_reference/predictions.csv").read_bytes())
    assert found[0] == found[1]
    run("structure_stat.py", "--data-dir", data, "--cells", "given")
    plain = (small_data / "fcc_train.csv").read_bytes()
    assert (data / "fcc_train.csv").read_bytes() == plain and b"\r" not in plain


def test_ids_and_endings(small_data, tmp_path):
    """Structures named by an id; the formula in their POSCAR or in a column; files that end with .vasp."""
    data, plain = tmp_path / "data", pd.read_csv(small_data / "Database.csv")
    (data / "POSCARS").mkdir(parents=True)
    ids = [f"{i:04}" if i % 2 else f"S{i:03}" for i in range(len(plain))]  # no numbers, no sulphur
    for name, old in zip(ids, plain.structures):
        shutil.copy(small_data / "POSCARS" / old, data / "POSCARS" / f"{name}.vasp")
    formulas = plain.structures.str.split("_").str[0].where(plain.index % 3 > 0)  # blank: from the POSCAR
    for columns in ({}, {"formula": formulas}):
        plain.assign(structures=ids, **columns).to_csv(data / "Database.csv", index=False)
        run("structure_stat.py", "--data-dir", data, "--cells", "given")
        for phase in common.PHASES:
            tables = [pd.read_csv(folder / f"{phase}_train.csv").iloc[:, 1:] for folder in (small_data, data)]
            pd.testing.assert_frame_equal(*tables)
    (data / "POSCARS/S000.vasp").write_text("no POSCAR")
    assert "S000" in run("structure_stat.py", "--data-dir", data, status=2).err


def test_a_table_of_alloys_alone(small_data, tmp_path):
    """Scratch reads nothing else, and the others say so."""
    (tmp_path / "data").mkdir()
    shutil.copy(small_data / "Database.csv", tmp_path / "data")
    flags = ["--results-dir", tmp_path, "--data-dir"]
    found, plain = (run("main.py", *TINY, *flags, one).out for one in (tmp_path / "data", small_data))
    assert found.split("Train:")[1] == plain.split("Train:")[1]
    for script in ("main_transfer.py", "generate.py"):
        assert "Scratch (main.py) needs none" in run(script, *flags, tmp_path / "data", status=2).err


def test_all_the_data(small_data, tmp_path):
    """Every row trains, the epoch is the mean of those that the parts of a cross-validation chose."""
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, "--splits", "all", "--seeds", "0-1", *TINY]
    assert "no test set" in run("main.py", *flags, status=2).err
    assert "Test" not in run("main.py", *flags, "--select-by", "validation").out
    found = pd.read_csv(tmp_path / "scratch_Ef_4+5_100_validation_all/predictions.csv")
    assert len(found) == 44 and {*found.set} == {"train"} and {*found.split} == {"all"}
    table = found.assign(n_components=found.structure.str.split("_").str[0].str.count("[A-Z]"))
    low, calls = np.flatnonzero(table.n_components < 4).tolist(), []
    split = common.split_rows(table, "4+5", 100, "all")

    def method(data, train, watch, cfg, epochs=None):
        calls.append((train, watch, epochs))
        return SimpleNamespace(epochs=np.arange(2 * len(train)) if watch else epochs)

    cfg = SimpleNamespace(SELECT_BY="validation", HOLD_OUT=0.2, REFIT=False)
    kept = common.fit_selected(method, SimpleNamespace(table=table), [split], cfg).epochs
    (parts, held, _), (whole, watch, _) = calls
    assert kept.tolist() == [4, 5] and watch is None and sorted(whole[0]) == [*range(44)]
    assert sorted([*low, *np.concatenate(held)]) == [*range(44)] and len(held) == 5
    assert all(sorted([*rest, *out]) == [*range(44)] for rest, out in zip(parts, held))
