"""The comparison of methods: statistics by hand, resumption, and a Dask cluster of two workers."""

import shutil
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run

sys.path.insert(0, str(ROOT / "studies"))
import compare_methods

import common
import processes

SMALL = ["--splits", "0-1", "--seeds", "0-1", "--percents", "100", "--targets", "Ms", "--alloy-sets", "4+5"]


def test_corrected_interval_by_hand():
    """Two splits, differences 1 and 3: variance 2, t(0.975, 1) = 12.7062, factor 1/2 + 1/4."""
    found = compare_methods.corrected_interval(np.array([1.0, 3.0]), n_pool=40, n_test=10)
    assert found == pytest.approx(12.7062 * np.sqrt(0.75 * 2), rel=1e-4)


def test_paired_differences_are_split_by_split():
    keys = {
        "alloys": "4+5",
        "target": "Ef",
        "percent": 100.0,
        "phase_input": "named",
        "n_pool": 40,
        "n_test": 10,
    }
    rows = [
        keys | {"method": method, "rule": rule, "split": split, "RMSE": value}
        for method, rule, values in (
            ("scratch", "validation", (1, 2, 3)),
            ("ce", "training set", (1.5, 2.5, 3.5)),
        )
        for split, value in enumerate(values)
    ]
    frame = pd.DataFrame(rows)
    found = compare_methods.paired(frame).iloc[0]
    assert found.method == "ce" and found.difference == pytest.approx(0.5) and found.half_width == 0
    assert found.ratio == pytest.approx((20.75 / 14) ** 0.5)  # of roots of mean squares
    # a method of both rules: each beside the baseline's of the same
    published = frame.assign(rule="reference", RMSE=frame.RMSE.where(frame.method == "ce", 1.0))
    both = pd.concat([published, frame])
    found = compare_methods.paired(both).set_index("rule").difference
    assert found["validation"] == pytest.approx(0.5) and found["reference"] == pytest.approx(1.5)


def test_what_a_kept_piece_follows_from():
    """Other data, seeds, splits or code: another file; the same: the same."""
    piece = dict(zip(compare_methods.KEYS, ("4+5", "Ef", 100.0, "named", "scratch", "validation"))) | {
        "splits": [0, 1]
    }
    system, fewer = common.System(("Fe", "Ni"), (frozenset(("Fe", "Ni")),)), common.System(("Fe", "Ni"), ())
    data, other_data = (SimpleNamespace(sha256={"a": a}, system=system) for a in "12")
    calls = [
        (piece, data, [0, 1], "code"),
        (piece, other_data, [0, 1], "code"),
        (piece, SimpleNamespace(sha256={"a": "1"}, system=fewer), [0, 1], "code"),
        (piece, data, [0, 7], "code"),
        (piece | {"splits": [0, 2]}, data, [0, 1], "code"),
        (piece | {"percent": 20.0}, data, [0, 1], "code"),
        (piece, data, [0, 1], "other code"),
    ]
    names = [compare_methods.part_path(Path(), *call).name for call in calls]
    assert len(set(names)) == len(calls)
    assert compare_methods.part_path(Path(), *calls[0]).name == names[0]


def test_peers_get_what_they_need(small_data):
    """Each peer: better than the mean of the training set, from the rows it is given."""
    data = common.load_data(small_data, small_data, "Ms", cells="lattice")
    split = common.split_rows(data.table, "4+5", 100, 1)
    for method, predict in compare_methods.PEERS.items():
        found = predict(data, split.train, split.test, split.number, "training set")
        if method == "ard":  # has more columns than rows here, and no ridge to hold it: only runs
            continue
        true, plain = data.targets[split.test], data.targets[split.train].mean()
        assert ((found - true) ** 2).mean() < 0.7 * ((plain - true) ** 2).mean(), method


def test_gaussian_process_of_many_rows(small_data, monkeypatch):
    """Its lengths are settled on a part of the training set, and all of it predicts."""
    import sklearn.gaussian_process as process

    fits = []

    class Noted(process.GaussianProcessRegressor):
        def fit(self, inputs, targets):
            fits.append((len(inputs), self.optimizer is not None))
            return super().fit(inputs, targets)

    monkeypatch.setattr(process, "GaussianProcessRegressor", Noted)
    data = common.load_data(small_data, small_data, "Ms", cells="lattice")
    split = common.split_rows(data.table, "4+5", 100, 0)
    rows, true = (data, split.train, split.test, 0, "training set"), data.targets[split.test]
    of_all = compare_methods.predict_gp(*rows)
    assert fits == [(len(split.train), True)] * 2
    monkeypatch.setattr(processes, "LENGTHS_FROM", 25)
    found = compare_methods.predict_gp(*rows)
    assert fits[2:] == [(25, True)] * 2 + [(len(split.train), False)]
    assert ((found - true) ** 2).mean() < 4 * ((of_all - true) ** 2).mean()


@pytest.mark.parametrize(
    "flags", [["--methods", "ce"], ["--methods", "scratch", "ce", "--rules", "reference"]]
)
def test_without_a_baseline_or_an_honest_rule(small_data, tmp_path, flags):
    assert set(compare(small_data, tmp_path, *flags).method) == {"ce"} | ({"scratch"} & set(flags))


@pytest.mark.parametrize("percents", [[100.0], [20.0, 100.0]])
def test_pictures(tmp_path, pictures, percents):
    """Data, unit and what was asked, in words; bars where there is one share; which side is better."""
    keys = list(product(("4+5", "Total"), ("Ef", "Ms"), percents, ("named",), compare_methods.LABELS))
    frame = pd.DataFrame(keys * 3, columns=compare_methods.KEYS[:5]).assign(n_pool=40, n_test=10)
    networks = frame.method.isin(compare_methods.NETWORKS)
    frame["rule"] = np.where(networks, "validation", "training set")
    frame["split"], frame["RMSE"] = np.repeat(range(3), len(keys)), np.arange(len(frame)) % 7 + 1.0
    compare_methods.plot_learning_curves(frame, "the data's source", tmp_path / "curves")
    found = compare_methods.paired(frame)
    compare_methods.plot_paired(found, "scratch", "the data's source", tmp_path / "paired")
    for said in pictures.values():
        assert not any(code in said for code in ("Ef", "Ms", "4+5", "Total", "mub"))
        for words in ("formation energy\nalloys of four and more elements\nphase as named", "μB/atom"):
            assert words in said and "of two and more" in said and "data: the data's source" in said
    assert ("kept (%)" in pictures["curves"]) == (len(percents) > 1)
    assert ("100 % of them for training" in pictures["curves"]) == (len(percents) == 1)
    assert "left of the line: better" in pictures["paired"] and "Committee" in pictures["paired"]
    assert "100 % of those of four and more for training" in pictures["paired"]


def compare(data, folder, *more):
    flags = ["--data-dir", data, "--results-dir", folder, *SMALL, *more]
    run("studies/compare_methods.py", *flags)
    frame = pd.read_csv(folder / "comparison.csv").drop(columns="seconds")
    return frame.sort_values(["method", "rule", "split"], ignore_index=True)


def test_resumes_and_a_dask_cluster_gives_the_same(small_data, tmp_path, pictures, capfd):
    methods = ["--methods", "scratch", "ce", "svr", "--rules", "validation"]
    here = compare(small_data, tmp_path / "here", *methods)
    assert set(here.method) == {"scratch", "ce", "svr"} and len(here) == 6
    assert (tmp_path / "here" / "paired.png").stat().st_size > 5000
    assert (tmp_path / "here" / "learning_curve.png").stat().st_size > 5000
    assert all("CHGNet" in said for said in pictures.values()) and len(pictures) == 2
    assert "| Scratch |" in (tmp_path / "here" / "comparison.md").read_text("utf-8")

    # what is done is not done again; what is missing is
    parts = sorted((tmp_path / "here" / "parts").iterdir())
    times = {part.name: part.stat().st_mtime_ns for part in parts}
    parts[0].unlink()
    pd.testing.assert_frame_equal(compare(small_data, tmp_path / "here", *methods), here)
    again = {part.name: part.stat().st_mtime_ns for part in (tmp_path / "here" / "parts").iterdir()}
    assert {name for name in times if times[name] != again[name]} == {parts[0].name}

    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        capfd.readouterr()
        flags = [*methods, "--backend", "dask", "--scheduler", cluster.scheduler_address]
        there = compare(small_data, tmp_path / "there", *flags)
        assert "epoch" not in capfd.readouterr().err  # the workers' bars
    pd.testing.assert_frame_equal(there, here, rtol=1e-4)


def test_a_backend_that_is_not_installed(small_data, tmp_path, monkeypatch):
    for package, backend in (("ray", "ray"), ("distributed", "dask")):
        monkeypatch.setitem(sys.modules, package, None)
        flags = ["--data-dir", small_data, "--results-dir", tmp_path, *SMALL, "--methods", "svr"]
        error = run("studies/compare_methods.py", *flags, "--backend", backend, status=2).err
        assert f"BACKEND {backend}: expected it installed" in error and len(error.splitlines()) == 1


def test_without_structures_what_needs_none_is_trained(small_data, tmp_path):
    """A table alone: methods on clusters are left out, and a line names them."""
    (tmp_path / "data").mkdir()
    shutil.copy(small_data / "Database.csv", tmp_path / "data")
    flags = ["--data-dir", tmp_path / "data", "--results-dir", tmp_path, *SMALL]
    printed = run("studies/compare_methods.py", *flags, "--methods", "svr", "tl", "ce").out
    assert "without clusters: trained are support vectors; not TL, CE alone" in printed
    assert set(pd.read_csv(tmp_path / "comparison.csv").method) == {"svr"}
    assert "expected a method" in run("studies/compare_methods.py", *flags, "--methods", "tl", status=2).err
