"""Speed, as ratios of two times in one run: a slow machine passes, a regression by two does not."""

import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

import common
import generate
import networks

sys.path.insert(0, str(ROOT / "benchmarks"))
import benchmark

SLACK = 2  # on top of what RESULTS.md shows


@pytest.fixture(scope="module")
def data():
    """A part of the data set that takes a second: (settings, database, System)."""
    settings = SimpleNamespace(
        DATA_DIR=ROOT / "HEA_data",
        ELEMENTS=None,
        EXCLUDED_PAIRS=common.pair_list(common.EXCLUDED_PAIRS),
        ALLOYS=generate.ALLOYS,
        CLUSTERS=generate.CLUSTERS,
        LONG=False,
    )
    return settings, *common.read_database(settings)


@pytest.fixture(autouse=True)
def processor_time(monkeypatch):
    """Seconds of the processor on one thread: what else a machine does must not blur the ratios."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(networks, "THREADS", 1)
    monkeypatch.setattr(benchmark.time, "perf_counter", benchmark.time.process_time)
    yield
    torch.set_num_threads(threads)


def ratio(works, repeats=3):
    least = benchmark.side_by_side(works, repeats)
    return least["ours"] / least["other"]


def test_statistics_against_reading(data):
    settings, database, system = data
    chunks = benchmark.chunks_of(settings, database.iloc[::4], system)
    works = {"ours": lambda: benchmark.count_all(chunks), "other": lambda: benchmark.read_all(chunks)}
    assert ratio(works) < SLACK * 2.2


def test_samples_against_drawing(data):
    works = {"ours": lambda: generate.make_samples(*data), "other": lambda: benchmark.draw_alone(*data)}
    assert ratio(works) < SLACK * 1.0


def test_one_network_against_a_plain_loop(data):
    _, database, system = data
    rows = benchmark.training_data(database, system)
    least = benchmark.epoch_seconds(
        {
            "ours": lambda n: benchmark.train_ours(rows, 1, n),
            "other": lambda n: benchmark.train_plainly(rows, n),
        },
        epochs=8,
        repeats=3,
    )
    assert least["ours"] / least["other"] < SLACK / 5


def test_replicas_against_one_network(data):
    _, database, system = data
    rows = benchmark.training_data(database, system)
    works = {r: lambda n, r=r: benchmark.train_ours(rows, r, n) for r in (1, 32)}
    least = benchmark.epoch_seconds(works, epochs=3, repeats=3)
    assert 32 * least[1] / least[32] > 4.5 / SLACK


def test_plain_loop_has_the_same_figures(data):
    _, database, system = data
    rows = benchmark.training_data(database, system)
    ours, plain = benchmark.train_ours(rows, 1, 3), benchmark.train_plainly(rows, 3)
    assert ours == pytest.approx(plain, rel=1e-3)
