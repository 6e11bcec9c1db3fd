"""The comparison of methods: statistics by hand, what a method may read, resumption, a Dask cluster."""

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
import settings

KEYS, LABELS, HONEST = compare_methods.KEYS, compare_methods.LABELS, compare_methods.HONEST
SMALL = ["--splits", "0-1", "--seeds", "0-1", "--percents", "100", "--targets", "Ms", "--alloy-sets", "4+5"]


def test_differences_table_and_pictures(tmp_path, pictures):
    """Split by split, each rule beside the baseline's same rule, else beside its honest one.

    Two differences, 1 and 3: variance 2, t(0.975, 1) = 12.7062, factor 1/2 + 1/4.
    """
    errors = {("gp", HONEST): (1, 2), ("gp", "reference"): (1, 1), ("tl", "reference"): (3, 4)}
    pairs = [*errors.items(), (("ce", HONEST), (2, 5))]
    rows = [(*key, i, one) for key, pair in pairs for i, one in enumerate(pair)]
    frame = pd.DataFrame(rows[::-1], columns=["method", "rule", "split", "RMSE"])
    frame = frame.assign(alloys="4+5", target="Ef", percent=100.0, phase_input="named", n_pool=40, n_test=10)
    found = compare_methods.paired(frame, "gp").set_index("method")
    assert found.difference.to_dict() == {"tl": 2.5, "ce": 2} and compare_methods.paired(frame, "svr").empty
    assert found.half_width["ce"] == pytest.approx(12.7062 * np.sqrt(0.75 * 2), rel=1e-4)
    assert found.ratio["ce"] == pytest.approx((29 / 5) ** 0.5)
    text = compare_methods.markdown(frame)
    assert "| Gaussian process | training set | **1.58 ± 0.71** |" in text  # the best of the honest ones
    assert "| TL | test set (as published) | 3.54 ± 0.71 |" in text
    frame = pd.concat(frame.assign(target=t, percent=p) for t, p in product(("Ef", "Ms"), (20.0, 100.0)))
    compare_methods.plot_paired(compare_methods.paired(frame, "gp"), "gp", "source", tmp_path / "paired")
    assert "RMSE minus Gaussian process's\n(eV/atom; negative: better)" in pictures["paired"]
    assert LABELS["ce"] in pictures["paired"]


def test_what_a_kept_piece_follows_from():
    """Other data, elements, seeds, splits, share or code: another file; the same: the same."""
    piece = dict(zip(KEYS, ("4+5", "Ef", 100.0, "named", "gp", HONEST)), splits=[0, 1])
    systems = [common.System(("Fe", "Ni"), pair) for pair in ((frozenset(("Fe", "Ni")),), ())]
    data = [SimpleNamespace(sha256=a, system=systems[i]) for a, i in (("1", 0), ("1", 1), ("2", 0))]
    calls = [(piece, one, [0, 1], "a") for one in (*data, data[0])]
    calls += [(piece | change, data[0], [0, 1], "a") for change in ({"splits": [0, 2]}, {"percent": 20.0})]
    calls += [(piece, data[0], [0, 7], "a"), (piece, data[0], [0, 1], "b")]
    assert len({compare_methods.part_path(Path(), *call).name for call in calls}) == len(calls) - 1


def test_intervals_are_those_of_the_split_and_the_question(monkeypatch):
    """Made-up ones of phase_gp, that hold all alloys of one split and none of the other."""
    true, off, half = np.arange(4.0), np.array([[0.0], [1.0]]), np.full((2, 4), 0.5)
    columns = {"mean_given_phase": true + off[::-1], "half_width_90_given_phase": half, "half_width_90": half}
    outcome = SimpleNamespace(predicted=(true + off)[:, None], columns=columns)
    monkeypatch.setattr("beyond.phase_gp.fit_splits", lambda *_, **__: outcome)
    data, rows, held = SimpleNamespace(targets=true), np.array([0, 2]), {}
    found = compare_methods.answers({"method": "phase_gp"}, data, [0, 1], None)
    for name, pairs in found.items():
        held[name] = [compare_methods.figures(data, rows, *pair)["within_90"] for pair in zip(*pairs)]
    assert held == {"named": [1, 0], "found": [0, 1]}


@pytest.mark.parametrize("phase_input", ["named", "found"])
def test_a_method_reads_nothing_of_the_test_cells(small_data, monkeypatch, phase_input):
    """Neither labels nor, of a phase not asked for, what was found. Peers predict better than the mean."""
    networks, transfer = compare_methods.NETWORKS, compare_methods.main_transfer
    methods = {"named": ("scratch", "da", "tl_tuned", *compare_methods.PEERS), "found": ("tl", "gp", "svr")}
    small = [(compare_methods.main_scratch, "EPOCHS", 2), (transfer, "EPOCHS", 2), (transfer, "AUGMENT", 20)]
    small += [(transfer, "SOURCE_EPOCHS", 2), (compare_methods.generate, "STEPS", 7)]
    for where, name, value in small:
        monkeypatch.setattr(where, name, value)
    search, grid = compare_methods.GridSearchCV, {"C": [1, 10], "gamma": [0.01, 0.1]}
    monkeypatch.setattr(compare_methods, "GridSearchCV", lambda model, _, **more: search(model, grid, **more))
    cfg = settings.read(vars(compare_methods), SMALL, **compare_methods.KINDS)
    vars(cfg).update(DATA_DIR=small_data, TABLE_DIR=small_data, TARGET="Ms", PHASE_INPUT=phase_input)
    data = common.load_data(cfg, "lattice")
    split = common.split_rows(data.table, "4+5", 100, 1)
    test, mean = split.test, data.targets[split.train].mean()
    hidden = data._replace(targets=data.targets.copy(), phase_fractions=data.phase_fractions.copy())
    hidden.targets[test], hidden.phase_fractions[test] = 1e3, 1 / 3
    for method in methods[phase_input]:
        rule = "validation" if method in networks else HONEST
        piece = dict(zip(KEYS, ("4+5", "Ms", 100.0, phase_input, method, rule)))
        both = [compare_methods.answers(piece, one, [split], cfg) for one in (data, hidden)]
        seen, blind = (one[phase_input][0][0] for one in both)
        np.testing.assert_array_equal(seen[:, test], blind[:, test], method)
        if rule == HONEST and method != "ard":  # which has more columns than rows here
            error = compare_methods.figures(data, test, seen, None)["RMSE"]
            assert error**2 < 0.7 * ((mean - data.targets[test]) ** 2).mean(), method
    with pytest.raises(ValueError, match="not known before"):
        compare_methods.ce(data._replace(cells="given"), split, HONEST)


def test_gaussian_processes(monkeypatch):
    """A process learns what is smooth; fcc and hcp are close-packed."""
    inputs = np.random.default_rng(0).normal(size=(100, 2))
    model = compare_methods.MaternProcess().fit(inputs, np.sin(inputs[:, 0]))
    assert np.abs(model.predict(inputs) - np.sin(inputs[:, 0])).max() < 0.1
    data = SimpleNamespace(phases=("fcc", "bcc", "hcp"), inputs=np.array([[7, 0.5, 0.3, 0.2]]))
    monkeypatch.setattr(compare_methods, "regress", lambda model, inputs, *_: inputs)
    assert compare_methods.gp_close_packed(data, None, "").tolist() == [[7, 0.3, 0.2, 0.7]]


def test_resumes_and_a_dask_cluster_gives_the_same(small_data, tmp_path, monkeypatch):
    """Without structures what reads clusters is left out, by name; without Dask a line says so."""
    distributed = pytest.importorskip("distributed")
    (tmp_path / "alone").mkdir()
    shutil.copy(small_data / "Database.csv", tmp_path / "alone")
    flags = ["--data-dir", small_data, "--jobs", 1, *SMALL]

    def compare(folder, *more, status=0):
        out = ["--results-dir", tmp_path / folder]
        printed = run("studies/compare_methods.py", *flags, *out, *more, status=status)
        frame = None if status else pd.read_csv(tmp_path / folder / "comparison.csv")
        return frame, printed.out + printed.err

    here, _ = compare("here", "--methods", "gp", "ce")
    assert {*zip(here.method, here.rule)} == {("gp", HONEST), ("ce", HONEST), ("ce", "reference")}
    assert here.split.tolist() == [0, 1] * 3
    parts = sorted((tmp_path / "here" / "parts").iterdir())  # made again is what is missing, and no other
    times = {part: part.stat().st_mtime_ns for part in parts}
    parts[0].unlink()
    pd.testing.assert_frame_equal(compare("here", "--methods", "gp", "ce")[0], here)
    assert [part for part in parts if part.stat().st_mtime_ns != times[part]] == parts[:1]
    # Over the network, though in this process.
    local = {"processes": False, "protocol": "tcp://", "dashboard_address": None}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, **local) as cluster:
        there, _ = compare("there", "--methods", "gp", "ce", "--scheduler", cluster.scheduler_address)
    pd.testing.assert_frame_equal(there, here, rtol=1e-4)

    alone = "--data-dir", tmp_path / "alone"
    frame, printed = compare("alone", *alone, "--methods", "gp", "tl", "ce")
    assert "without clusters left out: TL, CE alone" in printed and {*frame.method} == {"gp"}
    assert "expected a method" in compare("alone", *alone, "--methods", "tl", status=2)[1]
    monkeypatch.setattr("joblib._dask.distributed", None)
    _, printed = compare("alone", "--methods", "svr", "--scheduler", "tcp://localhost:1", status=2)
    assert "install dask" in printed
