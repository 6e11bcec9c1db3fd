"""Each script once as a user runs it, with tiny settings."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY, run


def test_structure_stat(small_data):
    for phase in ("fcc", "bcc"):
        table = pd.read_csv(small_data / f"{phase}_train.csv")
        assert len(table) == 22
        assert table.columns[0] == "structure"
        assert list(table.columns[-2:]) == ["Eform (eV/atom)", "Ms (mub/atom)"]


def test_tables_in_a_folder_of_their_own(small_data, tmp_path):
    run("structure_stat.py", "--data-dir", small_data, "--table-dir", tmp_path / "tables")
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == ["bcc_train.csv", "fcc_train.csv"]


@pytest.mark.parametrize("target", ["Ef", "Ms"])
def test_generate(small_data, tmp_path, target):
    printed = run("generate.py", "--data-dir", small_data, "--results-dir", tmp_path, "--target", target).out
    assert "fit R2" in printed
    for phase in ("fcc", "bcc"):
        samples = pd.read_csv(tmp_path / f"generated_{phase}_{target}.csv")
        assert len(samples) > 100 and samples.notna().all(axis=None)
        interactions = pd.read_csv(tmp_path / f"eci_{phase}_{target}.csv")
        assert interactions.cluster.iloc[-1] == "intercept"
        assert (tmp_path / f"eci_{phase}_{target}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("script", "method", "more"),
    [
        ("main.py", "scratch", []),
        ("main.py", "scratch_prime", ["--percent", "50"]),
        ("main_transfer.py", "tl", ["--source-epochs", "2"]),
        ("main_transfer.py", "da", ["--augment", "20"]),
    ],
)
def test_training_scripts(small_data, tmp_path, script, method, more):
    flags = ["--method", method, "--seeds", "0-1", "--splits", "0,2", "--target", "Ms", *TINY, *more]
    printed = run(script, "--data-dir", small_data, "--results-dir", tmp_path, *flags).out
    assert printed.count("Train: R2: ") == printed.count("Test: R2: ") == 4
    name = tmp_path / f"{method}_Ms"
    metrics = pd.read_csv(f"{name}_metrics.csv")
    assert list(metrics[["split", "seed"]].itertuples(index=False, name=None)) == [
        (0, 0),
        (0, 1),
        (2, 0),
        (2, 1),
    ]
    assert metrics.select_dtypes("number").notna().all(axis=None)

    # the metrics follow from the predictions, and these from the checkpoint
    predictions = pd.read_csv(f"{name}_predictions.csv")
    test = predictions[(predictions.split == 0) & (predictions.set == "test")]
    checkpoint = torch.load(f"{name}.pt", weights_only=True)
    assert checkpoint["state"]["weights"]["embedding"].shape[0] == 4
    assert checkpoint["settings"]["SEEDS"] == [0, 1]
    error = ((test["mean"] - test.true) ** 2).mean() ** 0.5
    assert (
        error <= metrics.test_RMSE[:2].mean() + 1e-9
    )  # convexity: the ensemble is no worse than its members
    summary = pd.read_csv(f"{name}_summary.csv").set_index("of")
    by_split = metrics.groupby("split").test_RMSE.mean()
    assert summary.test_RMSE_mean["single networks"] == pytest.approx(by_split.mean())
    assert summary.test_RMSE_std["single networks"] == pytest.approx(by_split.std())
    assert 0 <= summary.within_1_std["ensemble"] <= summary.within_2_std["ensemble"] <= 1
    losses = pd.read_csv(f"{name}_losses.csv")
    assert set(losses.columns) == {"split", "seed", "epoch", "train", "watched"}
    assert (tmp_path / f"{method}_Ms_parity.png").stat().st_size > 5000


def test_more_training_fits_better(small_data, tmp_path):
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, "--target", "Ms", "--epochs", "60"]
    run("main.py", *flags, "--device", "cpu", "--learning-rate", "0.003")
    assert pd.read_csv(tmp_path / "scratch_Ms_metrics.csv").train_R2[0] > 0.8


def test_the_settings_are_printed(small_data, tmp_path):
    printed = run("main.py", "--data-dir", small_data, "--results-dir", tmp_path, "--seeds", "3", *TINY).out
    assert "SEEDS 3" in printed.splitlines()[0] and "EPOCHS 3" in printed.splitlines()[0]


def test_interrupted_run_leaves_earlier_results(small_data, tmp_path):
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, "--device", "cpu"]
    run("main.py", *flags, *TINY)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    process = subprocess.Popen(
        [sys.executable, ROOT / "main.py", *map(str, flags), "--epochs", "100000", "--patience", "100000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    while b"training" not in process.stderr.read1():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1].decode()
    assert process.returncode == 130 and "Traceback" not in error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_test_label_reaches_the_models(small_data, tmp_path):
    """With the epoch not chosen on the test set, its labels change nothing of the predictions."""
    import shutil

    changed = shutil.copytree(small_data, tmp_path / "changed")
    flags = ["--select-by", "validation", *TINY]
    for method, script in (("scratch", "main.py"), ("tl", "main_transfer.py"), ("da", "main_transfer.py")):
        run(
            script, "--data-dir", small_data, "--results-dir", tmp_path / "before", "--method", method, *flags
        )
        before = pd.read_csv(tmp_path / "before" / f"{method}_Ef_predictions.csv")
        test = before.structure[before.set == "test"]
        for table in ("Database.csv", "fcc_train.csv", "bcc_train.csv"):
            frame = pd.read_csv(small_data / table)
            column = frame.columns.intersection(["structures", "structure"])[0]
            frame.loc[frame[column].isin(test), "Eform (eV/atom)"] += 100
            frame.to_csv(changed / table, index=False)
        run(script, "--data-dir", changed, "--results-dir", tmp_path / "after", "--method", method, *flags)
        after = pd.read_csv(tmp_path / "after" / f"{method}_Ef_predictions.csv")
        assert (after.true != before.true).sum() == len(test)
        np.testing.assert_array_equal(after["mean"], before["mean"])
