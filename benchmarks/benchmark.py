"""What a user waits for, measured beside what it might cost: a Markdown table, RESULTS.md.

    python benchmarks/benchmark.py
    python benchmarks/benchmark.py --long
    pip install -r benchmarks/requirements.txt      # for the rows of icet and smol; optional

Both sides of a row are timed in one run, taking turns, and the least time of each is kept, so that the
ratio holds on a machine that does other work as well. The short form is meant for two idle minutes.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common  # noqa: E402
import generate  # noqa: E402
import main as scratch  # noqa: E402
import structure_stat  # noqa: E402

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = ROOT / "HEA_data"  # folder with Database.csv and POSCARS/, of cells on the ideal lattice
RESULTS_DIR = ROOT / "benchmarks"  # folder for RESULTS.md
LONG = False  # True: 100 copies of the data set too, and more repeats
# --------------------------------------------------------------------------------------------------

REPEATS, LONG_REPEATS = 2, 10  # of each timing; the least counts
MORE = 2  # times as many of training, which is quick, and on two threads of a busy machine scatters
OF_SMOL = 10  # structures a phase; it takes some 70 ms for one
REPLICAS = (8, 32, 128, 512)  # beside one; the last in the long form alone
CUDA_REPLICAS = (1, 8, 32, 64, 128, 512, 4096)
LATTICE_CONSTANT = 4.0  # angstrom, to which cells are scaled for icet, which knows no other
CUTOFFS = {"fcc": (1.1, 0.75), "bcc": (1.1, 1.1)}  # pairs; triplets and quadruplets; lattice constants
PRODUCTS = ("aten::bmm", "aten::baddbmm", "aten::mm", "aten::addmm")  # torch's matrix products
SCRIPTS = {
    "structure_stat.py": [],
    "generate.py": [],
    "main.py": ["--epochs", "2", "--device", "cpu"],
    "main_transfer.py": ["--epochs", "2", "--source-epochs", "1", "--device", "cpu"],
}


# ==== timing ======================================================================================


def timed(work):
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def side_by_side(works, repeats):
    """Least seconds of each call, {name: function} -> {name: seconds}; they take turns."""
    taken = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(timed(work))
    return {name: min(seconds) for name, seconds in taken.items()}


class Ran(NamedTuple):
    """A finished process."""

    first_line: float  # seconds to the first line that it printed
    seconds: float
    memory: float  # peak, MB
    error: str  # what it wrote to standard error


def process(command):
    """Run Python with these arguments: Ran.

    A small process starts it: a new process is booked with the memory of the one that starts it.
    """
    measure = (
        "import resource, subprocess, sys, time; start = time.perf_counter(); "
        "child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE); "
        "child.stdout.readline(); first = time.perf_counter() - start; child.communicate(); "
        "print(first, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, "
        "child.returncode)"
    )
    found = subprocess.run([sys.executable, "-c", measure, *command], capture_output=True, text=True)
    first, seconds, memory, ended = found.stdout.split()
    if ended != "0":
        raise RuntimeError(f"{' '.join(command)} failed: {found.stderr[-500:]}")
    memory = int(memory) / (2**20 if sys.platform == "darwin" else 2**10)
    return Ran(float(first), float(seconds), memory, found.stderr)


# ==== structure statistics ========================================================================


def chunks_of(settings, database, system, copies=1):
    """Arguments of `structure_stat.count_structures`, as the script makes them."""
    chunks = []
    for phase in common.phases_of(database):
        rows = database[database.phase == phase]
        paths = [settings.DATA_DIR / "POSCARS" / name for name in rows.structure] * copies
        formulas = list(rows.formula) * copies
        for start in range(0, len(paths), structure_stat.CHUNK):
            part = slice(start, start + structure_stat.CHUNK)
            chunks.append((paths[part], formulas[part], phase, system))
    return chunks


def read_all(chunks):
    """The floor: pymatgen reads the files. {path: structure}."""
    from pymatgen.io.vasp.inputs import Poscar

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {path: Poscar.from_file(path).structure for paths, *_ in chunks for path in paths}


def count_all(chunks):
    """This project's reading and counting."""
    for chunk in chunks:
        structure_stat.count_structures(*chunk)


def count_ready(chunks, ready):
    """This project's counting alone: the structures are there."""
    reading = structure_stat.read_structure
    structure_stat.read_structure = lambda path, formula, elements: ready[path]
    try:
        count_all(chunks)
    finally:
        structure_stat.read_structure = reading


def icet_counting(chunks, ready, system):
    """Function that makes icet's cluster vectors of all structures, or None without icet.

    The cells are scaled to one lattice constant before; icet finds sites by their position.
    """
    try:
        from ase.build import bulk
        from icet import ClusterSpace
        from pymatgen.io.ase import AseAtomsAdaptor
    except ImportError:
        return None
    spaces, cells = {}, []
    for phase, (pairs, others) in CUTOFFS.items():
        cutoffs = [LATTICE_CONSTANT * cutoff for cutoff in (pairs, others, others)]
        primitive = bulk(system.elements[0], phase, LATTICE_CONSTANT)
        spaces[phase] = ClusterSpace(primitive, cutoffs, list(system.elements))
    for paths, _, phase, _ in chunks:
        for path in paths:
            structure = ready[path].copy()
            structure.scale_lattice(len(structure) * LATTICE_CONSTANT**3 / (4 if phase == "fcc" else 2))
            cells.append((spaces[phase], AseAtomsAdaptor.get_atoms(structure, msonable=False)))
    return lambda: [space.get_cluster_vector(atoms) for space, atoms in cells]


def smol_counting(chunks, ready, system):
    """Function that makes smol's correlations of OF_SMOL structures a phase, or None without smol."""
    try:
        from pymatgen.core import Lattice, Structure
        from smol.cofe import ClusterSubspace
    except ImportError:
        return None
    works = []
    for phase, (pairs, others) in CUTOFFS.items():
        a = LATTICE_CONSTANT
        primitive = (
            0.5 * a * (1 - np.eye(3)) if phase == "fcc" else 0.5 * a * (np.ones((3, 3)) - 2 * np.eye(3))
        )
        mixed = {element: 1 / len(system.elements) for element in system.elements}
        subspace = ClusterSubspace.from_cutoffs(
            Structure(Lattice(primitive), [mixed], [[0, 0, 0]]),
            {2: pairs * a, 3: others * a, 4: others * a},
            basis="indicator",
            supercell_size="num_sites",
        )
        paths = [path for chunk in chunks if chunk[2] == phase for path in chunk[0]][:OF_SMOL]
        works += [(subspace, ready[path]) for path in paths]
    return lambda: [subspace.corr_from_structure(structure) for subspace, structure in works]


def time_structures(settings, database, system, repeats):
    """Rows of the table: (what, this project, beside it, ratio)."""
    chunks = chunks_of(settings, database, system)
    n, ready = len(database), read_all(chunks)
    works = {
        "read": lambda: read_all(chunks),
        "whole": lambda: count_all(chunks),
        "count": lambda: count_ready(chunks, ready),
    }
    peers = {"icet": icet_counting(chunks, ready, system), "smol": smol_counting(chunks, ready, system)}
    least = side_by_side(works | {name: work for name, work in peers.items() if work}, repeats)
    rows = [compared(f"read and count {n} cells | pymatgen reads them", least["whole"], least["read"])]
    rows.append(compared("the same, per cell | pymatgen", least["whole"] / n, least["read"] / n))
    for name in peers:
        what = f"count, per cell | {name} {'cluster vector' if name == 'icet' else 'correlations'}"
        if name not in least:
            rows.append(
                (*what.split(" | "), f"{in_units(least['count'] / n)}", "skipped: not installed", "–")
            )
            continue
        number = n if name == "icet" else OF_SMOL * len(common.phases_of(database))
        rows.append(compared(what, least["count"] / n, least[name] / number))
    for copies in (10, 100) if settings.LONG else (5,):
        more = chunks_of(settings, database, system, copies)
        works = {1: partial(on_cores, more, 1), 2: partial(on_cores, more, 2)}
        several = side_by_side(works | ({"read": partial(read_all, more)} if settings.LONG else {}), 1)
        what = f"read and count, {copies} copies ({copies * n} cells)"
        if settings.LONG:
            rows.append(compared(f"{what} | pymatgen reads them", several[1], several["read"]))
        efficiency = f"efficiency {several[1] / several[2] / 2:.2f}"
        what += " on two cores, workers' start included"
        rows.append(compared(f"{what} | on one core", several[2], several[1], efficiency))
    return rows


def on_cores(chunks, workers):
    """As structure_stat.py spreads its chunks."""
    for _ in structure_stat.count_chunks(chunks, workers):
        pass


def compared(what, seconds, other, ratio=None):
    """A row: two times and how many times the other the first one is."""
    return (*what.split(" | "), in_units(seconds), in_units(other), ratio or f"{seconds / other:.2f}")


def in_units(seconds):
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


# ==== sample generation ===========================================================================


def draw_alone(settings, database, system):
    """The occupations of as many samples: a list of 160 species shuffled for each. Returns how many."""
    fractions, _ = generate.sample_compositions(system, settings.ALLOYS)
    for _ in common.phases_of(database):
        for row in fractions:
            species = np.repeat(np.arange(len(row)), np.rint(160 * row).astype(int)).tolist()
            np.random.RandomState(0).shuffle(species)
    return len(fractions) * len(common.phases_of(database))


def time_samples(settings, database, system, repeats):
    number = draw_alone(settings, database, system)
    least = side_by_side(
        {
            "make": lambda: generate.make_samples(settings, database, system),
            "draw": lambda: draw_alone(settings, database, system),
        },
        repeats,
    )
    thousand = number / 1000
    return [
        compared("per 1000 samples | drawing them alone", least["make"] / thousand, least["draw"] / thousand)
    ]


# ==== training ====================================================================================


def training_data(database, system):
    inputs = common.network_inputs(
        common.mole_fractions(database.formula, system.elements), database.phase, system.elements
    )
    return common.Data(database, system, inputs, database[common.TARGETS["Ef"]].to_numpy())


def train_ours(data, replicas, epochs, device="cpu"):
    """Train as main.py does, on all rows: losses of the first replica, an epoch each."""
    settings = SimpleNamespace(
        TARGET="Ef",
        LEARNING_RATE=None,
        SEEDS=list(range(replicas)),
        BATCH_SIZE=16,
        PATIENCE=None,
        DEVICE=device,
    )
    model = scratch.fit(settings, data, [np.arange(len(data.inputs))], None, epochs)
    return [row[2] for row in model.losses if row[0] == 0]


def train_plainly(data, epochs):
    """The same by a plain loop over a DataLoader: losses, an epoch each."""
    import torch
    from sklearn.preprocessing import StandardScaler
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    inputs = StandardScaler().fit_transform(data.inputs)
    targets = StandardScaler().fit_transform(data.targets[:, None])[:, 0]
    torch.manual_seed(0)
    n = len(data.system.elements)
    embedding = nn.Embedding(n, 58)
    nn.Conv2d(1, 1, 5)  # drawn and not used, as published
    layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimiser = torch.optim.Adam([*embedding.parameters(), *layers.parameters()], lr=0.005)
    loader = DataLoader(
        TensorDataset(torch.tensor(inputs).float(), torch.tensor(targets).float()), 16, shuffle=True
    )
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch, true in loader:
            hidden = torch.cat([batch[:, :n] @ embedding.weight, batch[:, n:]], 1)
            loss = nn.functional.mse_loss(layers(hidden)[:, 0], true)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()
        losses.append(total / len(loader))
    return losses


def epoch_seconds(works, epochs, repeats):
    """Seconds an epoch of each training, making the networks left out: {name: function of epochs}."""
    lengths = {
        (name, n): lambda work=work, n=n: work(n) for name, work in works.items() for n in (1, 1 + epochs)
    }
    least = side_by_side(lengths, repeats)
    return {name: (least[name, 1 + epochs] - least[name, 1]) / epochs for name in works}


def product_share(data, replicas):
    """Share of an epoch's time that matrix products take."""
    from torch.profiler import ProfilerActivity, profile

    inside, seconds = [], []
    for epochs in (1, 4):
        with profile(activities=[ProfilerActivity.CPU]) as found, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seconds.append(timed(lambda n=epochs: train_ours(data, replicas, n)))
        inside.append(sum(event.cpu_time_total for event in found.key_averages() if event.key in PRODUCTS))
    return np.diff(inside).item() / 1e6 / np.diff(seconds).item()


def time_training(data, repeats, long):
    import torch

    epochs = 20
    ours, plain = np.array(train_ours(data, 1, epochs)), np.array(train_plainly(data, epochs))
    if not np.allclose(ours, plain, rtol=1e-3):
        raise RuntimeError(f"the plain loop's figures differ: {plain[-1]:.6f}, not {ours[-1]:.6f}")
    least = epoch_seconds(
        {"ours": lambda n: train_ours(data, 1, n), "plain": lambda n: train_plainly(data, n)}, epochs, repeats
    )
    rows = [
        (
            f"1 network on cpu, epochs a second, {product_share(data, 1):.0%} in matrix products",
            "plain `DataLoader` loop, same figures",
            f"{1 / least['ours']:.0f}",
            f"{1 / least['plain']:.0f}",
            f"{least['plain'] / least['ours']:.2f}",
        )
    ]
    on_cpu = REPLICAS if long else REPLICAS[:-1]
    devices = [("cpu", on_cpu)] + [("cuda", CUDA_REPLICAS)] * torch.cuda.is_available()
    for device, numbers in devices:
        for replicas in numbers:
            works = {
                "one network on cpu": lambda n: train_ours(data, 1, n),
                "plain `DataLoader` loop": lambda n: train_plainly(data, n),
                "all": lambda n, r=replicas, d=device: train_ours(data, r, n, d),
            }
            least = epoch_seconds(works, 4 if replicas < 128 else 2, repeats)
            share = f", {product_share(data, replicas):.0%} in matrix products" if device == "cpu" else ""
            several = least.pop("all") / replicas
            rows += [
                (
                    f"{replicas} networks on {device}, network-epochs a second{share}",
                    beside,
                    f"{1 / several:.0f}",
                    f"{1 / seconds:.0f}",
                    f"{seconds / several:.2f}",
                )
                for beside, seconds in least.items()
            ]
    return rows


# ==== start-up and memory =========================================================================


def imported(text):
    """What `python -X importtime` reports: seconds of each top-level package, most first."""
    seconds = Counter()
    for line in text.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and fields[0].strip().isdigit():
            seconds[fields[2].strip().split(".")[0]] += int(fields[0]) / 1e6
    return seconds.most_common()


def time_scripts(settings):
    """Start-up import by import, whole runs and peak memory; the scripts make tables for one another."""
    rows = []
    bare = min(process(["-c", "pass"]).seconds for _ in range(REPEATS))
    reading = (
        "import sys, warnings; warnings.simplefilter('ignore'); from pymatgen.io.vasp.inputs import Poscar; "
        "[Poscar.from_file(path).structure for path in sys.argv[1:]]"
    )
    paths = sorted(str(path) for path in (settings.DATA_DIR / "POSCARS").iterdir())
    floor = process(["-c", reading, *paths])
    with tempfile.TemporaryDirectory() as place:
        for script, flags in SCRIPTS.items():
            command = [str(ROOT / script), "--data-dir", str(settings.DATA_DIR), "--table-dir", place, *flags]
            command += [] if script == "structure_stat.py" else ["--results-dir", place]
            ran = process(["-u", "-X", "importtime", *command])
            packages = imported(ran.error)
            total = sum(seconds for _, seconds in packages)
            most = ", ".join(f"{name} {in_units(seconds)}" for name, seconds in packages[:5])
            rows.append(compared(f"{script}, command to first line | python alone", ran.first_line, bare))
            rows.append(
                (
                    f"{script}, all imports of a tiny run: {most}",
                    "the whole run",
                    in_units(total),
                    in_units(ran.seconds),
                    f"{total / ran.seconds:.2f}",
                )
            )
            if script == "structure_stat.py":
                what = f"{script}, peak memory of a process"
                ratio = f"{ran.memory / floor.memory:.2f}"
                rows.append(
                    (what, "pymatgen reads them", f"{ran.memory:.0f} MB", f"{floor.memory:.0f} MB", ratio)
                )
    return rows


# ==== the table ===================================================================================


def machine():
    """Processor, cores, versions and date in one line."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = [f"Python {platform.python_version()}"]
    for package in ("numpy", "torch", "pymatgen", "icet", "smol"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""  # above cores: it was busy
    return f"{name}, {cores} cores{load}; {', '.join(versions)}; {date.today().isoformat()}"


def write_results(settings, where, sections):
    form = "long" if settings.LONG else "short"
    lines = [
        "# What a user waits for",
        "",
        f"{where}; {form} form of `benchmarks/benchmark.py`.",
        "A ratio is the first figure over the second; epochs a second are better where it is above 1.",
    ]
    for title, rows in sections.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| this project | beside it | this | other | ratio |",
            "|---|---|--:|--:|--:|",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    path = settings.RESULTS_DIR / "RESULTS.md"
    with common.whole_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines), f"\n{path}")


def main():
    settings = common.read_settings(globals(), LONG=common.true_or_false)
    common.output_folder(settings.RESULTS_DIR)
    settings.ALLOYS, settings.CLUSTERS = generate.ALLOYS, generate.CLUSTERS
    repeats = LONG_REPEATS if settings.LONG else REPEATS
    database, system = common.read_database(settings)
    data = training_data(database, system)
    where = machine()  # now, for its load before the work
    write_results(
        settings,
        where,
        {
            "Structure statistics": time_structures(settings, database, system, repeats),
            "Sample generation": time_samples(settings, database, system, repeats),
            "Training": time_training(data, MORE * repeats, settings.LONG),
            "Start-up and memory": time_scripts(settings),
        },
    )


if __name__ == "__main__":
    common.run(main)
