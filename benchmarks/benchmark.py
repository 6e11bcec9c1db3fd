"""What a user waits for, measured beside what it might cost: Markdown tables, RESULTS.md.

    python benchmarks/benchmark.py

The two sides of a ratio are timed in one run, taking turns, and the least time of each counts, so that it
holds on a machine that does other work as well. Ends with status 1 if a ratio misses its limit. Loops of
training are timed only after they have ended with the same weights, to the last bit.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from pymatgen.io.vasp.inputs import Poscar
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import generate
import main as main_scratch
import main_transfer
import settings
import structure_stat

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = Path(common.__file__).parent / "HEA_data"  # folder with Database.csv and POSCARS/
RESULTS_DIR = Path(__file__).parent  # folder for RESULTS.md
DEVICE = "cpu"  # where networks train
REPEATS = 3  # of each timing; the least counts
NETWORKS = "1 8 32"  # side by side
EPOCHS = 10  # timed, beside the first
# --------------------------------------------------------------------------------------------------

# How many times as fast as what is beside it each must be; low enough that a slow machine passes.
LIMITS = {"cells": 0.4, "samples": 0.5, 1: 1, 8: 3, 32: 6}  # numbers: networks, beside the plain loop
CHECKED = 3  # epochs after which all loops must have the same weights
SIDES = ("this project", "beside it", "this", "other", "times as fast", "at least")
PYMATGEN = (
    "import sys; from pymatgen.io.vasp.inputs import Poscar; "
    "[Poscar.from_file(path).structure for path in sys.argv[1:]]"
)
MEASURE = (  # a small process starts it: a new one is booked with the memory of the one that starts it
    "import resource, subprocess, sys, time; start = time.perf_counter(); "
    "ended = subprocess.call([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL); "
    "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, ended)"
)


def side_by_side(works, repeats):
    """Least seconds of each call, {name: function} -> {name: seconds}; they take turns."""
    least = dict.fromkeys(works, np.inf)
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            least[name] = min(least[name], time.perf_counter() - start)
    return least


def compared(what, beside, seconds, other, limit=None):
    """A row of SIDES."""
    times = f"{1000 * seconds:.4g} ms", f"{1000 * other:.4g} ms"
    return what, beside, *times, f"{other / seconds:.2f}", f"{limit:g}" if limit else ""


# ==== cells and samples ===========================================================================


def time_cells(cfg, data, repeats):
    """Reading and counting of all cells, in one process, beside pymatgen's reading alone: a row of SIDES."""
    paths = [common.poscar_path(cfg.DATA_DIR / "POSCARS", name) for name in data.table.structure]

    def read():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for path in paths:
                _ = Poscar.from_file(path).structure

    count = partial(structure_stat.count_all, cfg.DATA_DIR, data.table, data.system)
    times = side_by_side({"count": count, "read": read}, repeats).values()
    return compared(f"read and count {len(paths)} cells", "pymatgen reads them", *times, LIMITS["cells"])


def time_samples(data, repeats, **places):
    """Samples beside drawing their species alone, a list of 160 shuffled for each: a row of SIDES."""
    cfg = settings.read(vars(main_transfer), words=[], **main_transfer.KINDS)
    vars(cfg).update(places)
    fractions, _ = generate.sample_compositions(data.system, cfg.ALLOYS)
    fractions = np.tile(fractions, (len(common.phases_of(data.table)), 1))

    def draw():
        for row in fractions:
            species = np.repeat(np.arange(len(row)), np.rint(160 * row).astype(int)).tolist()
            np.random.RandomState(0).shuffle(species)

    make = partial(generate.make_samples, cfg, data)
    times = side_by_side({"make": make, "draw": draw}, repeats).values()
    return compared(f"{len(fractions)} samples", "drawing their species alone", *times, LIMITS["samples"])


# ==== training: functions of (data, cfg, number of networks, epochs) -> their parameters, one by one ====


def train_plainly(data, cfg, n_networks, epochs, loader=True):
    """One after the other, as one would write it down; without loader, rows are taken by index.

    The published scripts' loop but for their losses on both sets after each epoch.
    """
    from sklearn.preprocessing import StandardScaler

    n, sets = len(data.system.elements), (data.inputs, data.targets[:, None])
    inputs, targets = (torch.tensor(StandardScaler().fit_transform(part)).float() for part in sets)
    targets, parameters = targets[:, 0], []
    for seed in range(n_networks):
        torch.manual_seed(seed)
        network = common.Network(n, inputs.shape[1])
        optimiser = torch.optim.Adam(network.parameters(), lr=common.TARGETS[data.target].rate)
        batches = DataLoader(TensorDataset(inputs, targets), cfg.BATCH_SIZE, shuffle=True)
        for _ in range(epochs):
            if not loader:
                order = common.epoch_order(torch.default_generator, len(targets))
                batches = zip(*(part[order].split(cfg.BATCH_SIZE) for part in (inputs, targets)))
            total = 0.0
            for batch, true in batches:
                loss = mse_loss(network(batch), true)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item()
        parameters += network.parameters()
    return parameters


def train_ours(data, cfg, n_networks, epochs):
    """As main.py does, but that no set is watched."""
    networks, generators = common.make_networks(data, range(n_networks))
    rows, adam = np.arange(len(data.table)), partial(common.Adam, rate=common.TARGETS[data.target].rate)
    trained = common.fit_networks(networks, generators, data.sets([rows]), None, adam, cfg, epochs)
    return [parameter for network in trained.networks for parameter in network.parameters()]


LOOPS = {
    "a plain loop with a DataLoader": train_plainly,
    "a plain loop, rows by index": partial(train_plainly, loader=False),
    "ours": train_ours,
}


def time_training(data, cfg, numbers, epochs, repeats):
    """An epoch of each network, for several numbers of networks, beside plain loops: rows of SIDES."""
    for n in numbers:
        plain, *others = (loop(data, cfg, n, CHECKED) for loop in LOOPS.values())
        if not all(torch.equal(*pair) for weights in others for pair in zip(plain, weights, strict=True)):
            raise RuntimeError(f"{n} networks: not all loops end with the same weights")
    # Plain loops take as long for each network, however many: one is timed.
    calls = [(name, n) for name in LOOPS for n in (numbers if name == "ours" else [1])]
    lengths = (1, 1 + epochs)  # their difference leaves out the making of the networks
    works = {(*call, k): partial(LOOPS[call[0]], data, cfg, call[1], k) for call in calls for k in lengths}
    least = side_by_side(works, repeats)
    of_epoch = {call: (least[(*call, lengths[1])] - least[(*call, 1)]) / epochs / call[1] for call in calls}
    rows, (plain, by_index, _) = [], LOOPS
    for n in numbers:
        for beside, limit in ((plain, LIMITS.get(n)), (by_index, None)):
            what = f"an epoch of a network, {n} side by side"
            rows.append(compared(what, beside, of_epoch["ours", n], of_epoch[beside, 1], limit))
    return rows


# ==== whole scripts ===============================================================================


def run(arguments):
    """Run Python with these arguments: (seconds, peak memory in MB)."""
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    seconds, memory, ended = subprocess.run(command, capture_output=True, text=True).stdout.split()
    if ended != "0":
        raise RuntimeError(f"failed: {arguments}")
    return float(seconds), int(memory) / (2**20 if sys.platform == "darwin" else 2**10)


def time_scripts(cfg, tables):
    """Whole runs with all defaults, and pymatgen's reading of the cells. tables: a folder for theirs."""
    commands = {"pymatgen": ["-Wignore", "-c", PYMATGEN, *(cfg.DATA_DIR / "POSCARS").iterdir()]}
    flags = ["--data-dir", cfg.DATA_DIR, "--table-dir", tables, "--results-dir", tables]
    for module in (structure_stat, main_scratch, main_transfer):
        commands[Path(module.__file__).name] = [module.__file__, *flags, "--device", cfg.DEVICE]
    runs = [{name: run(command) for name, command in commands.items()} for _ in range(cfg.REPEATS)]
    least = {name: min(one[name] for one in runs) for name in commands}
    return [(name, f"{seconds:.2f} s", f"{memory:.0f} MB") for name, (seconds, memory) in least.items()]


def machine():
    """Processor, cores, load, versions and date in one line; a load above the cores: it was busy."""
    info = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    model = re.search(r"model name\s*: (.*)", info)
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "pymatgen"))
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return f"{model[1] if model else sys.platform}, {cores}; {versions}; {date.today()}"


def as_table(header, rows):
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def main():
    one = (int, 1, 1000)
    cfg = settings.read(globals(), REPEATS=one, NETWORKS=settings.numbers, EPOCHS=one)
    settings.output_folder(cfg.RESULTS_DIR)
    where, training = (
        machine(),
        settings.read(vars(main_scratch), words=[]),
    )  # now, for its load before the work
    vars(training).update(TARGET="Ef", DATA_DIR=cfg.DATA_DIR, DEVICE=cfg.DEVICE)
    with tempfile.TemporaryDirectory() as tables:
        scripts = time_scripts(cfg, tables)  # the first makes the tables
        training.TABLE_DIR = Path(tables)
        data = common.load_data(training, "given")
    rows = [time_cells(cfg, data, cfg.REPEATS), time_samples(data, cfg.REPEATS, DATA_DIR=cfg.DATA_DIR)]
    rows += time_training(data, training, cfg.NETWORKS, cfg.EPOCHS, 3 * cfg.REPEATS)
    text = "\n".join([
        f"# What a user waits for\n\n{where}; `benchmarks/benchmark.py --repeats {cfg.REPEATS}`.",
        "Times as fast: time of the other over time of this, the least of several of each, in one run. All",
        f"loops of training end with equal weights, to the last bit (looked at after {CHECKED} epochs); none",
        "evaluates a set after an epoch, as the published scripts do.\n",
        as_table(SIDES, rows),
        "\nWhole scripts, all defaults:\n",
        as_table(("", "run", "peak memory"), scripts),
    ])  # fmt: skip
    (cfg.RESULTS_DIR / "RESULTS.md").write_text(text + "\n", "utf-8")
    print(f"{text}\n\n{cfg.RESULTS_DIR / 'RESULTS.md'}")
    missed = [f"{row[0]} / {row[1]}: {row[4]}" for row in rows if float(row[4]) < float(row[5] or 0)]
    if missed:
        print(f"below its limit: {'; '.join(missed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    settings.run(main)
