"""What a user waits for, measured beside what it might cost: Markdown tables, RESULTS.md.

    python benchmarks/benchmark.py
    python benchmarks/benchmark.py --repeats 10 --copies 100
    pip install -r benchmarks/requirements.txt      # for the rows of icet and smol; optional

The two sides of a ratio are timed in one run, taking turns, and the least time of each counts, so that
it holds on a machine that does other work as well. Ends with status 1 if a ratio misses its limit.
"""

# ruff: noqa: E402
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from datetime import date
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

os.environ["TQDM_DISABLE"] = "1"  # what the work prints is no part of it
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import numpy as np
import pandas as pd
import torch
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp.inputs import Poscar
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import common
import generate
import settings
import structure_stat

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = ROOT / "HEA_data"  # folder with Database.csv and POSCARS/, of cells on the ideal lattice
RESULTS_DIR = ROOT / "benchmarks"  # folder for RESULTS.md
REPEATS = 3  # of each timing; the least counts
COPIES = 5  # of the data set, counted on one core and on two
# --------------------------------------------------------------------------------------------------

# How many times as fast as what is beside it each must be; low enough that a slow machine passes.
LIMITS = {"read and count": 0.4, "two cores": 1.2, "samples": 0.5}
LIMITS |= {"1, plain loop": 1.0, "32, plain loop": 5, "32, one network": 4}  # networks side by side
REPLICAS = (8, 32, 128)  # networks side by side, beside one
MORE = 3  # times as many repeats of training, which is quick and scatters
EPOCHS_TIMED, EPOCHS_CHECKED = 10, 3  # after the latter all loops must have the same weights
RATE, BATCH = 0.005, 16  # learning rate and batch size of all loops
OF_SMOL = 10  # structures a phase; it takes some 0.1 s for one
LATTICE_CONSTANT = 4.0  # angstrom, to which cells are scaled for icet, which knows no other
CUTOFFS = {"fcc": (1.1, 0.75), "bcc": (1.1, 1.1)}  # pairs; triplets and quadruplets; lattice constants
HEADER = ("this project", "beside it", "this", "other", "times as fast", "at least")


# ==== timing ======================================================================================


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
    """A row of HEADER; limit: its name in LIMITS, if it has one there."""
    least = f"{LIMITS[limit]:g}" if limit in LIMITS else ""
    return what, beside, f"{1000 * seconds:.4g} ms", f"{1000 * other:.4g} ms", f"{other / seconds:.2f}", least


# ==== structure statistics ========================================================================


def chunks_of(folder, database, system, copies=1):
    """Arguments of `structure_stat.count_structures`, a list for each chunk."""
    chunks, size = [], structure_stat.CHUNK
    for phase in common.phases_of(database):
        rows = pd.concat([database[database.phase == phase]] * copies)
        for part in (rows[start : start + size] for start in range(0, len(rows), size)):
            chunks.append(([folder / name for name in part.structure], list(part.formula), phase, system))
    return chunks


def read_all(chunks):
    """The floor: pymatgen reads the files. {path: structure}."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {path: Poscar.from_file(path).structure for paths, *_ in chunks for path in paths}


def count_all(chunks, workers=1):
    """This project's reading and counting."""
    for _ in structure_stat.count_chunks(chunks, workers):
        pass


def count_ready(chunks, ready):
    """This project's counting alone: the structures are there."""
    with patch.object(structure_stat, "read_structure", lambda path, formula, elements: ready[path]):
        count_all(chunks)


def icet_calls(structures, phase, elements):
    """Calls that make icet's cluster vector of each structure. Raises ImportError without icet.

    The cells are scaled to one lattice constant before; icet finds sites by their position.
    """
    from ase.build import bulk
    from icet import ClusterSpace
    from pymatgen.io.ase import AseAtomsAdaptor

    pairs, others = (LATTICE_CONSTANT * cutoff for cutoff in CUTOFFS[phase])
    primitive = bulk(elements[0], phase, LATTICE_CONSTANT)
    space, calls = ClusterSpace(primitive, [pairs, others, others], list(elements)), []
    for structure in structures:
        scaled = structure.copy()
        scaled.scale_lattice(len(structure) * LATTICE_CONSTANT**3 / (4 if phase == "fcc" else 2))
        calls.append(partial(space.get_cluster_vector, AseAtomsAdaptor.get_atoms(scaled, msonable=False)))
    return calls


def smol_calls(structures, phase, elements):
    """Calls that make smol's correlations of the first OF_SMOL. Raises ImportError without smol."""
    from smol.cofe import ClusterSubspace

    pairs, others = (LATTICE_CONSTANT * cutoff for cutoff in CUTOFFS[phase])
    shape = 1 - np.eye(3) if phase == "fcc" else 1 - 2 * np.eye(3)
    mixed = {element: 1 / len(elements) for element in elements}
    primitive = Structure(Lattice(LATTICE_CONSTANT / 2 * shape), [mixed], [[0, 0, 0]])
    subspace = ClusterSubspace.from_cutoffs(
        primitive, {2: pairs, 3: others, 4: others}, basis="indicator", supercell_size="num_sites"
    )
    return [partial(subspace.corr_from_structure, structure) for structure in structures[:OF_SMOL]]


def time_structures(folder, database, system, repeats, copies):
    """Rows of HEADER; none of what is not installed."""
    chunks = chunks_of(folder, database, system)
    n, ready, cells = len(database), read_all(chunks), {}
    works = {"all": partial(count_all, chunks), "read": partial(read_all, chunks)}
    works["count"] = partial(count_ready, chunks, ready)
    for name, make in {"icet's cluster vector": icet_calls, "smol's correlations": smol_calls}.items():
        calls = []
        with suppress(ImportError):
            for phase in common.phases_of(database):
                names = database.structure[database.phase == phase]
                calls += make([ready[folder / name] for name in names], phase, system.elements)
            works[name], cells[name] = partial(lambda calls: [call() for call in calls], calls), len(calls)
    least = side_by_side(works, repeats)
    what = f"read and count {n} cells, one core"
    rows = [compared(what, "pymatgen reads them", least["all"], least["read"], "read and count")]
    rows += [compared("count a cell", name, least["count"] / n, least[name] / cells[name]) for name in cells]
    more = chunks_of(folder, database, system, copies)
    several = side_by_side({workers: partial(count_all, more, workers) for workers in (1, 2)}, repeats)
    what = f"read and count {copies * n} cells, two cores, not for the first time"
    return [*rows, compared(what, "one core", several[2], several[1], "two cores")]


def time_samples(data_dir, data, repeats):
    """A row of HEADER: the floor is a list of 160 species shuffled for each sample."""
    phases = common.phases_of(data.table)
    fractions = np.tile(generate.sample_compositions(data.system, generate.ALLOYS)[0], (len(phases), 1))

    def draw():
        for row in fractions:
            species = np.repeat(np.arange(len(row)), np.rint(160 * row).astype(int)).tolist()
            np.random.RandomState(0).shuffle(species)

    def make():
        generate.make_samples(data_dir, data, generate.ALLOYS, generate.CLUSTERS)

    least, what = side_by_side({"make": make, "draw": draw}, repeats), f"{len(fractions)} samples"
    return [compared(what, "drawing their occupations alone", least["make"], least["draw"], "samples")]


# ==== training: functions of (data, replicas, epochs) that return the seven trained tensors =======


def standardised(data):
    rows = common.Scalers.fit(data.inputs, data.targets).transform(data.inputs, data.targets)
    return [torch.as_tensor(part, dtype=torch.float32) for part in rows]


def train_plainly(data, replicas, epochs, loader=True):
    """One network after the other, as one would write it down; without loader, rows are indexed."""
    inputs, targets = standardised(data)
    n, n_inputs, weights = len(data.system.elements), inputs.shape[1], []
    batches = DataLoader(TensorDataset(inputs, targets), BATCH, shuffle=True)
    for seed in range(replicas):
        torch.manual_seed(seed)
        embedding = nn.Embedding(n, common.EMBEDDING)
        layers = nn.Sequential(
            nn.Linear(common.EMBEDDING + n_inputs - n, common.HIDDEN), nn.ReLU(),
            nn.Linear(common.HIDDEN, common.HIDDEN), nn.ReLU(),
            nn.Linear(common.HIDDEN, 1),
        )  # fmt: skip
        parameters = [*embedding.parameters(), *layers.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=RATE)
        for _ in range(epochs):
            total = 0.0
            if not loader:
                order = common.epoch_order(torch.default_generator, len(targets))
                batches = zip(inputs[order].split(BATCH), targets[order].split(BATCH))
            for batch, true in batches:
                hidden = torch.cat([batch[:, :n] @ embedding.weight, batch[:, n:]], 1)
                loss = mse_loss(layers(hidden)[:, 0], true)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item()
        weights.append([parameter.detach() for parameter in parameters])
    return [torch.stack(of_all) for of_all in zip(*weights)]


def train_batched(data, replicas, epochs):
    """All networks side by side, as in common.py, but the optimiser walks the seven tensors."""
    (inputs, targets), (network, generators) = standardised(data), common.draw(data, range(replicas))
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    for _ in range(epochs):
        total = 0
        order = torch.stack([common.epoch_order(generator, len(targets)) for generator in generators])
        for batch, true in zip(inputs[order].split(BATCH, dim=1), targets[order].split(BATCH, dim=1)):
            loss = mse_loss(network(batch), true, reduction="none").mean(1)
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
            total = total + loss.detach()
    return [parameter.detach() for parameter in network.parameters()]


def train_ours(data, replicas, epochs):
    """As the scripts do."""
    network, generators = common.draw(data, range(replicas))
    sets, adam = [(data.inputs, data.targets)], partial(common.Adam, rate=RATE)
    common.fit_networks(network, generators, sets, None, adam, epochs, BATCH, None, "cpu")
    return [parameter.detach() for parameter in network.parameters()]


STEPS = {
    "plain loop: `nn.Linear`, `DataLoader`, Adam over 7 tensors": train_plainly,
    "rows by index in place of the `DataLoader`": partial(train_plainly, loader=False),
    "all networks in one `baddbmm` a layer, Adam over 7 stacked tensors": train_batched,
    "one leaf for Adam: `common.train`": train_ours,
}
ONE_BY_ONE = list(STEPS)[:2]  # an epoch of 32 networks is 32 of one there


def time_training(data, repeats):
    """Rows of HEADER, and a row for each step: times as fast as the first, by number of networks."""
    for replicas in (1, 32):
        plain, *others = (work(data, replicas, EPOCHS_CHECKED) for work in STEPS.values())
        if not all(torch.equal(*pair) for weights in others for pair in zip(plain, weights)):
            raise RuntimeError(f"{replicas} networks: not all loops end with the same weights")
    lengths = (1, 1 + EPOCHS_TIMED)  # their difference leaves out the making of the networks
    keys = [(name, r) for name in STEPS for r in (1, *REPLICAS) if r == 1 or name not in ONE_BY_ONE]
    works = {(*key, n): partial(STEPS[key[0]], data, key[1], n) for key in keys for n in lengths}
    least = side_by_side(works, repeats)
    taken = {key: (least[(*key, lengths[1])] - least[(*key, 1)]) / EPOCHS_TIMED / key[1] for key in keys}
    first, *_, last = STEPS
    rows, plain = [], taken[first, 1]
    for replicas in (1, *REPLICAS):
        for beside, name in {"plain loop": first, "one network": last}.items():
            if (replicas, beside) != (1, "one network"):
                limit, what = f"{replicas}, {beside}", f"an epoch, {replicas} side by side, of each network"
                rows.append(compared(what, beside, taken[last, replicas], taken[name, 1], limit))
    columns = [(1, 1 if name in ONE_BY_ONE else 32) for name in STEPS]
    return rows, [(s, *(f"{plain / taken[s, r]:.2f}" for r in c)) for s, c in zip(STEPS, columns)]


# ==== whole scripts ===============================================================================


def process(arguments):
    """Run Python with these arguments: seconds, seconds of its imports, peak memory in MB.

    A small process starts it: a new process is booked with the memory of the one that starts it.
    """
    measure = (
        "import resource, subprocess, sys, time; start = time.perf_counter(); "
        "ended = subprocess.call([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL); "
        "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, ended)"
    )
    command = [sys.executable, "-c", measure, "-X", "importtime", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True)
    seconds, memory, ended = found.stdout.split()
    if ended != "0":
        raise RuntimeError(f"{arguments} failed: {found.stderr[-500:]}")
    imports = sum(map(int, re.findall(r"import time: +(\d+) \|", found.stderr))) / 1e6
    return float(seconds), imports, int(memory) / (2**20 if sys.platform == "darwin" else 2**10)


def time_scripts(folder, repeats):
    """Whole runs with all defaults; the first makes the tables for the others."""
    reading = "import sys; from pymatgen.io.vasp.inputs import Poscar; "
    reading += "[Poscar.from_file(path).structure for path in sys.argv[1:]]"
    with tempfile.TemporaryDirectory() as place:
        data = ["--data-dir", folder, "--table-dir", place]
        commands = {
            "pymatgen reads the cells": ["-Wignore", "-c", reading, *sorted((folder / "POSCARS").iterdir())]
        }
        commands["structure_stat.py"] = [ROOT / "structure_stat.py", *data]
        for script in ("main.py", "main_transfer.py"):
            commands[script] = [ROOT / script, *data, "--results-dir", place]
        runs = {name: [] for name in commands}
        for _ in range(repeats):
            for name, command in commands.items():
                runs[name].append(process(command))
    least = {name: min(found) for name, found in runs.items()}
    return [
        (name, f"{seconds:.2f} s", f"{imports:.2f} s", f"{imports / seconds:.0%}", f"{memory:.0f} MB")
        for name, (seconds, imports, memory) in least.items()
    ]


def machine():
    """Processor, cores, load, versions and date in one line; a load above the cores: it was busy."""
    info = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    model = re.search(r"model name\s*: (.*)", info)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    packages = [name for name in ("numpy", "torch", "pymatgen", "icet", "smol") if find_spec(name)]
    versions = ", ".join(
        [f"Python {sys.version.split()[0]}", *(f"{name} {version(name)}" for name in packages)]
    )
    return f"{model[1] if model else sys.platform}, {os.cpu_count()} cores{load}; {versions}; {date.today()}"


def as_table(title, header, rows):
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join([f"\n## {title}\n", *("| " + " | ".join(row) + " |" for row in (header, rule, *rows))])


def main():
    chosen = settings.read(globals(), REPEATS=settings.number(int, 1), COPIES=settings.number(int, 1))
    settings.output_folder(chosen.RESULTS_DIR)
    folder, repeats, where = chosen.DATA_DIR, chosen.REPEATS, machine()  # now, for its load before the work
    database, system = common.read_database(folder, ["Ef"], chosen.ELEMENTS, chosen.EXCLUDED_PAIRS)
    fractions = common.mole_fractions(database.formula, system.elements)
    shares = common.one_hot(database.phase, common.PHASES)
    inputs = common.network_inputs(fractions, shares, system.elements)
    targets = database[common.TARGETS["Ef"].column].to_numpy()
    data = SimpleNamespace(
        table=database,
        system=system,
        inputs=inputs,
        targets=targets,
        cells="given",
        clusters=database,
        phases=common.PHASES,
    )
    rows = time_structures(folder / "POSCARS", database, system, repeats, chosen.COPIES)
    rows += time_samples(folder, data, repeats)
    training, steps = time_training(data, MORE * repeats)
    rows, scripts = rows + training, time_scripts(folder, repeats)
    networks = ("times as fast as a plain loop", "1 network", "32 networks")
    text = "\n".join([
        f"# What a user waits for\n\n{where}; `benchmarks/benchmark.py --repeats {repeats}`.",
        "Times as fast: time of the other over time of this, the least of several of each, in one run.",
        as_table("Beside others", HEADER, rows),
        as_table("Training, step by step", networks, steps),
        f"\nA row adds to the one before. Weights after {EPOCHS_CHECKED} epochs: equal, to the last bit.",
        as_table("Whole scripts, all defaults", ("", "run", "its imports", "share", "peak memory"), scripts),
    ])  # fmt: skip
    with settings.whole_files(chosen.RESULTS_DIR) as new:
        new("RESULTS.md").write_text(text + "\n", "utf-8")
    print(f"{text}\n\n{chosen.RESULTS_DIR / 'RESULTS.md'}")
    missed = [f"{row[0]} / {row[1]}: {row[4]}" for row in rows if row[5] and float(row[4]) < float(row[5])]
    if missed:
        print(f"below its limit: {'; '.join(missed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    settings.run(main)
