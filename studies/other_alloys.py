"""Does it hold elsewhere: the methods on two data sets that nobody here made, in eV/atom.

    python studies/other_alloys.py --data-dir ../shared/other_data
    python studies/other_alloys.py --tests arrangements --methods tl ce gp --input-dir inputs
    python studies/other_alloys.py --tests drawn systems --labels 300 1000 --methods scratch svr

DATA_DIR holds them, with sources and licences. Each is written as this project's input, on which the
project's own code runs. TESTS:

arrangements  Cu-Ni-Pd-Ag, 159 ideal fcc cells of 64 atoms, labelled relaxed, by DFT (Choubisa et al., Matter
    2022, doi 10.1016/j.matt.2022.11.031). Trained on all alloys of up to three elements and PERCENTS of
    four fifths of the quaternaries, tested on the last fifth: the splits of common.split_rows.
drawn         quaternaries of 15 elements, fcc and bcc, atoms at random by the method of calculation (npj
    Comput. Mater. 8, 89 (2022), doi 10.1038/s41524-022-00779-7). Trained on LABELS, tested on all others.
systems       the same, LABELS drawn from four fifths of the systems of four elements, tested on all alloys
    of the last fifth: five splits leave out each system once, the next five divide them otherwise.

Writes to RESULTS_DIR parts/ (an interrupted run goes on), other_alloys.csv (a row per method, split and
phase) and other_alloys.md, the table, which it prints with time and memory. Methods that read clusters are
left out where there are no structures.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import compare_methods

import common
import report
import settings
from settings import InputError

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "../shared/other_data"  # folder with the two data sets as published
INPUT_DIR = None  # folder to keep what they are turned into; None: a temporary one
RESULTS_DIR = "results/other_alloys"  # folder for what this script writes
TESTS = "arrangements drawn systems"  # which to do
METHODS = "scratch tl da committee ce gp svr"  # which to compare
PERCENTS = "0 20 40 100"  # arrangements: shares of the training set's quaternaries
LABELS = "300"  # drawn, systems: numbers of training alloys; all there are, where there are not as many
SPLITS = "0-19"  # random splits into training and test set
SEEDS = "0-3"  # networks per split
# --------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
EV_PER_RYDBERG = 13.605693
PURE = {"Cu": -240.11121086, "Ni": -352.62417749, "Pd": -333.69496589, "Ag": -173.55506507}  # eV, 64 atoms
FOLDS = 5  # of the systems
SETS = {"arrangements": "CuNiPdAg", "drawn": "quaternaries", "systems": "quaternaries"}
TITLES = {
    "arrangements": "Cu-Ni-Pd-Ag, arrangements", "drawn": "15 elements, drawn",
    "systems": "15 elements, systems left out",
}  # fmt: skip
LABELS_OF = compare_methods.LABELS | {"committee_found": "committee, in the phase"}
KEYS = ["test", "amount", "phase"]  # amount: of labels; of arrangements the share of the quaternaries


# ---- the data sets as this project's input ---------------------------------------------------------


def array(entry):
    """An array of ASE's JSON: {"__ndarray__": [shape, type, numbers]}, perhaps wrapped in "array"."""
    shape, _, numbers = entry.get("array", entry)["__ndarray__"]
    return np.reshape(numbers, shape)


def write_cunipdag(source, folder):
    """Database.csv and POSCARS/ of the cells that have an energy; names end with their numbers and fcc."""
    from pymatgen.core import Structure
    from pymatgen.io.vasp.inputs import Poscar

    entries = json.loads((source / "CuNiPdAg_structures.json").read_text("utf-8"))
    energies = pd.read_csv(source / "CuNiPdAg_properties.csv", index_col=0).final_energy
    (folder / "POSCARS").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, energy in energies.items():
        entry = entries[str(entries["ids"][number])]  # numbers count from 0, in the order of the ids
        cell, atoms, positions = (array(entry[name]) for name in ("cell", "numbers", "positions"))
        structure = Structure(cell, atoms, positions, coords_are_cartesian=True).get_sorted_structure()
        counts = {e: round(structure.composition[e]) for e in PURE}
        name = "".join(f"{e}{n}" for e, n in counts.items() if n) + f"_{number}_fcc"
        text = Poscar(structure).get_str(significant_figures=12)
        (folder / "POSCARS" / name).write_text(text, encoding="utf-8")
        n_atoms = len(structure)
        mixing = (energy - sum(n * PURE[e] for e, n in counts.items()) / n_atoms) / n_atoms
        rows.append((name, "fcc", mixing))
    write_database(rows, folder)


def write_quaternaries(source, folder):
    """Database.csv alone: there are no structures."""
    rows = []
    for entry in json.loads((source / "quaternary_fcc_bcc.json").read_text("utf-8")):
        formula, phase = entry["Composition"].replace(" ", ""), entry["Crystal structure"]
        energy = entry["Formation enthalpy"] * EV_PER_RYDBERG
        if entry["Bulk modulus"] <= 0:  # no minimum of the energy: its fit to volumes has gone wrong
            print(f"left out, {formula} {phase}: {entry['Bulk modulus']:.0f} GPa, {energy:.3f} eV/atom")
            continue
        rows.append((f"{formula}_{phase}", phase, energy))
    folder.mkdir(parents=True, exist_ok=True)
    write_database(rows, folder)


def write_database(rows, folder):
    columns = ["structures", "phase", common.TARGETS["Ef"].column]
    settings.write_csv(pd.DataFrame(rows, columns=columns), folder / "Database.csv")


def load(name, source, folder):
    """A data set of SETS as common.Data, by way of the project's input and scripts."""
    folder = folder / name
    {"CuNiPdAg": write_cunipdag, "quaternaries": write_quaternaries}[name](source, folder)
    if (folder / "POSCARS").is_dir():
        flags = ["--data-dir", folder, "--cells", "lattice", "--excluded-pairs", "None"]
        subprocess.run([sys.executable, ROOT / "structure_stat.py", *flags], check=True)
    return common.load_data(folder, folder, "Ef", cells="lattice")


# ---- splits and one piece of work ------------------------------------------------------------------


def split_of(data, test, amount, number):
    """common.Split of one number, and the number of alloys that its labels are drawn from."""
    if test == "arrangements":
        split, many = common.split_rows(data.table, "4+5", amount, number), data.table.n_components >= 4
        return split, many.sum() - len(split.test)
    generator, pool = np.random.default_rng(number), np.arange(len(data.table))
    if not 0 < amount < (len(pool) if test == "drawn" else np.inf):
        raise InputError(f"LABELS {amount}: expected 1 or more, and some of {len(pool)} left to test on")
    if test == "systems":
        elements = data.inputs[:, : len(data.system.elements)] > 0
        _, system = np.unique(elements, axis=0, return_inverse=True)
        order = np.random.default_rng(number // FOLDS).permutation(system.max() + 1)
        left_out = np.isin(system.ravel(), np.array_split(order, FOLDS)[number % FOLDS])
        pool = np.flatnonzero(~left_out)
    train = np.sort(generator.choice(pool, min(amount, len(pool)), replace=False))  # fcc stays before bcc
    test_rows = np.setdiff1d(np.arange(len(data.table)), train if test == "drawn" else pool)
    return common.Split(number, train, test_rows), len(pool)


def work(piece, data, data_dir, seeds):
    """Fit a method on a chunk of splits: rows of the tidy table, one per split and phase of the test set."""
    started = time.time()
    splits, pools = zip(*(split_of(data, piece["test"], piece["amount"], n) for n in piece["splits"]))
    found, outcome = compare_methods.answers(piece, data, data_dir, splits, seeds)
    rows = []
    for (phase_input, predicted), i in product(found.items(), range(len(splits))):
        split, pool, values = splits[i], pools[i], predicted[i]
        method = piece["method"] if phase_input == "named" else f"{piece['method']}_{phase_input}"
        for phase in common.phases_of(data.table):
            of_phase = data.table.phase.to_numpy()[split.test] == phase
            tested, of_committee = split.test[of_phase], {}
            true = data.targets[tested]
            if outcome is not None:
                of_committee = compare_methods.of_intervals(data, outcome, i, tested, phase_input)
            rows.append(
                {"test": piece["test"], "amount": piece["amount"], "method": method}
                | {"phase": phase, "split": split.number, "n_train": len(split.train)}
                | {"n_test": len(split.test), "n_pool": pool, "spread": true.std()}
                | {k: v for k, v in report.scores(true, values.mean(0)[of_phase]).items() if k != "loss"}
                | of_committee
                | {"seconds": (time.time() - started) / len(splits), "memory_MB": peak_memory()}
            )
    return pd.DataFrame(rows)


def peak_memory():
    """The most memory that this process has held, in MB; nan where the system does not say."""
    with suppress(ImportError):  # Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return np.nan


def pieces_of(chosen, data):
    """All pieces of work: dicts that compare_methods.predictions reads, and test, amount and splits."""
    pieces = []
    for test in chosen.TESTS:
        amounts = map(int, chosen.PERCENTS) if test == "arrangements" else chosen.LABELS
        methods = compare_methods.able(chosen.METHODS, data[SETS[test]].clusters is not None)
        for amount, method in product(amounts, methods):
            rule = "validation" if method in compare_methods.NETWORKS else "training set"
            piece = dict(zip(compare_methods.KEYS, ("4+5", "Ef", amount, "named", method, rule)))
            # Networks gain from company; of the others' thousands of rows one split at a time is enough.
            step = compare_methods.CHUNK if method in compare_methods.NETWORKS else 1
            for start in range(0, len(chosen.SPLITS), step):
                numbers = chosen.SPLITS[start : start + step]
                pieces.append(piece | {"test": test, "amount": amount, "splits": numbers})
    return pieces


# ---- the table -------------------------------------------------------------------------------------


def ratio(frame, one, other):
    """Ratio of two methods' RMSE with the half width of its 95 % interval, as text; frame: of one test.

    What splits have in common goes with the test set's share. Where labels are drawn and the fewer, nearly
    all others are tested on in each split: it goes with the share of the labels.
    """
    rmse = frame.pivot(index="split", columns="method", values="RMSE")
    base, first = compare_methods.pooled(rmse[other]), frame.iloc[0]
    shared, rest = first.n_test, first.n_pool
    if first.test == "drawn":
        shared, rest = sorted([first.n_test, first.n_train])
    half = compare_methods.corrected_interval(rmse[one] - rmse[other], n_pool=rest, n_test=shared)
    return f"{compare_methods.pooled(rmse[one]) / base:.2f} ± {half / base:.2f}"


def markdown(frame):
    """A row per test, amount and phase: RMSE over all splits ± standard deviation over splits, and ratios."""
    methods = [m for m in LABELS_OF if m in set(frame.method)]
    names = ["labels", "predicted", "spread", *(LABELS_OF[m] for m in methods)]
    names += ["TL / Scratch", "DA / Scratch", "committee / best peer", "held by its 90 % intervals"]
    lines = [
        f"Test RMSE in meV/atom: root of the mean squared error over {frame.split.nunique()} splits ±",
        "standard deviation over splits; networks: ensembles, epoch by validation; ratios: 95 % intervals.\n",
        "| data set | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 1),
    ]  # fmt: skip
    for (test, amount, phase), group in frame.groupby(KEYS, sort=False):
        rmse = group.groupby("method").RMSE.agg([compare_methods.pooled, "std"])
        share = f" ({amount:g} %)" if test == "arrangements" else ""
        entries = [TITLES[test], f"{group.n_train.iloc[0]}{share}"]
        entries += [f"{'mixing' if test == 'arrangements' else 'formation'} energy, {phase}"]
        entries += [f"{1000 * group.spread.mean():.0f}"]
        for method in methods:
            pooled, std = 1000 * rmse.loc[method] if method in rmse.index else (np.nan, np.nan)
            text = f"{pooled:.1f} ± {std:.1f}" if method in rmse.index else ""
            entries.append(f"**{text}**" if pooled == 1000 * rmse["pooled"].min() else text)
        peers = rmse["pooled"][rmse.index.isin(compare_methods.PEERS)]
        for one in ("tl", "da"):
            entries.append(ratio(group, one, "scratch") if {one, "scratch"} <= set(rmse.index) else "")
        committee = group[group.method == "committee"]
        entries.append(ratio(group, "committee", peers.idxmin()) if len(committee) and len(peers) else "")
        entries.append(f"{committee.within_90.mean():.0%}" if len(committee) else "")
        lines.append("| " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def main():
    chosen = settings.read(
        globals(),
        INPUT_DIR=settings.optional(settings.folder),
        TESTS=settings.words_of(*SETS),
        METHODS=settings.words_of(*compare_methods.LABELS),
        PERCENTS=settings.words_of("0", "20", "40", "60", "80", "100"),
        LABELS=settings.numbers,
        SPLITS=settings.numbers,
    )
    started, folder = time.time(), chosen.RESULTS_DIR
    settings.output_folder(folder / "parts")
    own_code = Path(__file__).read_text("utf-8").split("# ---- the table")[0]
    own_code = hashlib.sha256(own_code.encode()).hexdigest()
    with tempfile.TemporaryDirectory() as temporary:
        inputs = chosen.INPUT_DIR or Path(temporary)
        data = {n: load(n, chosen.DATA_DIR, inputs) for n in dict.fromkeys(SETS[t] for t in chosen.TESTS)}
        pieces = pieces_of(chosen, data)
        paths = []
        for piece in pieces:
            code = own_code + compare_methods.code_hash(piece["method"])
            found_in = folder, piece, data[SETS[piece["test"]]], chosen.SEEDS, code
            paths.append(compare_methods.part_path(*found_in))

        def do(piece):
            name = SETS[piece["test"]]
            return work(piece, data[name], inputs / name, chosen.SEEDS)

        frame = compare_methods.finished(pieces, paths, do)
    with settings.whole_files(folder) as new:
        settings.write_csv(frame, new("other_alloys.csv"))
        new("other_alloys.md").write_text(markdown(frame), encoding="utf-8")
    print((folder / "other_alloys.md").read_text("utf-8"))
    print(f"{time.time() - started:.0f} s; a process held at most {frame.memory_MB.max():.0f} MB")


if __name__ == "__main__":
    settings.run(main)
