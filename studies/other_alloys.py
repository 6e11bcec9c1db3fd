"""Does it hold elsewhere: the methods on two data sets that nobody here made, in eV/atom.

    python studies/other_alloys.py --data-dir ../shared/other_data
    python studies/other_alloys.py --tests arrangements --methods tl ce gp
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

Writes to RESULTS_DIR inputs/, parts/ (an interrupted run goes on), other_alloys.csv (a row per method, split
and phase) and other_alloys.md, the table, which it prints. Methods that read clusters are left out where
there are no structures.
"""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import compare_methods

import common
import report
import settings
import structure_stat
from settings import InputError

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "../shared/other_data"  # folder with the two data sets as published
RESULTS_DIR = "results/other_alloys"  # folder for what this script writes
TESTS = "arrangements drawn systems"  # which to do
METHODS = "scratch tl da phase_gp ce gp svr"  # which to compare
PERCENTS = "0 20 40 100"  # arrangements: shares of the training set's quaternaries
LABELS = "300"  # drawn, systems: numbers of training alloys; all there are, where there are not as many
SPLITS = "0-19"  # random splits into training and test set
SEEDS = "0-3"  # networks per split
SCHEDULER = None  # address of a Dask scheduler, whose workers import this project; None: this machine's cores
# --------------------------------------------------------------------------------------------------

EV_PER_RYDBERG = 13.605693
PURE = {"Cu": -240.11121086, "Ni": -352.62417749, "Pd": -333.69496589, "Ag": -173.55506507}  # eV, 64 atoms
FOLDS = 5  # of the systems
SETS = {  # of each test: the data set, and its name in the table
    "arrangements": ("CuNiPdAg", "Cu-Ni-Pd-Ag, arrangements"),
    "drawn": ("quaternaries", "15 elements, drawn"),
    "systems": ("quaternaries", "15 elements, systems left out"),
}


# ---- the data sets as this project's input ---------------------------------------------------------


def cunipdag(source, folder):
    """Rows of Database.csv of the cells that have an energy, whose POSCARS/ it writes: .._number_fcc."""
    from pymatgen.core import Structure
    from pymatgen.io.vasp.inputs import Poscar

    entries = json.loads((source / "CuNiPdAg_structures.json").read_text("utf-8"))
    energies = pd.read_csv(source / "CuNiPdAg_properties.csv", index_col=0).final_energy
    (folder / "POSCARS").mkdir(parents=True, exist_ok=True)
    for number, energy in energies.items():
        entry = entries[str(entries["ids"][number])]  # numbers count from 0, in the order of the ids
        arrays = [entry[name].get("array", entry[name]) for name in ("cell", "numbers", "positions")]
        arrays = [array["__ndarray__"] for array in arrays]  # of ASE's JSON: shape, type, numbers
        cell, atoms, positions = (np.reshape(numbers, shape) for shape, _, numbers in arrays)
        structure = Structure(cell, atoms, positions, coords_are_cartesian=True).get_sorted_structure()
        counts = {e: round(structure.composition[e]) for e in PURE}
        name = "".join(f"{e}{n}" for e, n in counts.items() if n) + f"_{number}_fcc"
        text = Poscar(structure).get_str(significant_figures=12)
        (folder / "POSCARS" / name).write_text(text, encoding="utf-8")
        of_elements = sum(n * PURE[e] for e, n in counts.items()) / len(structure)
        yield name, "fcc", (energy - of_elements) / len(structure)


def quaternaries(source, folder):
    """Rows of Database.csv; there are no structures."""
    for entry in json.loads((source / "quaternary_fcc_bcc.json").read_text("utf-8")):
        formula, phase = entry["Composition"].replace(" ", ""), entry["Crystal structure"]
        energy = entry["Formation enthalpy"] * EV_PER_RYDBERG
        if entry["Bulk modulus"] <= 0:  # no minimum of the energy: its fit to volumes has gone wrong
            print(f"left out, {formula} {phase}: {entry['Bulk modulus']:.0f} GPa, {energy:.3f} eV/atom")
            continue
        yield f"{formula}_{phase}", phase, energy


def settings_of(folder):
    """What common.load_data and generate.make_samples read of a data set that lies in a folder."""
    no = {"ELEMENTS": None, "EXCLUDED_PAIRS": None}
    return SimpleNamespace(DATA_DIR=folder, TABLE_DIR=folder, TARGET="Ef", PHASE_INPUT="named", **no)


def load(name, source, folder):
    """A data set of SETS as common.Data, written to a folder as this project's input."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"CuNiPdAg": cunipdag, "quaternaries": quaternaries}[name](source, folder)
    columns = ["structures", "phase", common.TARGETS["Ef"].column]
    report.write_csv(pd.DataFrame(rows, columns=columns), folder / "Database.csv")
    if (folder / "POSCARS").is_dir():
        flags = ["--data-dir", folder, "--cells", "lattice", "--excluded-pairs", "None"]
        subprocess.run([sys.executable, structure_stat.__file__, *flags], check=True)
    return common.load_data(settings_of(folder), "lattice")


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


def work(piece, data, cfg):
    """Fit a method on a chunk of splits: rows of other_alloys.csv, a row per split and phase tested."""
    drawn, rows = [split_of(data, piece["test"], piece["amount"], number) for number in piece["splits"]], []
    predicted, half_widths = compare_methods.answers(piece, data, [split for split, _ in drawn], cfg)["named"]
    for i, ((number, train, test), n_pool) in enumerate(drawn):
        for phase in common.phases_of(data.table):
            tested = test[data.table.phase.to_numpy()[test] == phase]
            row = {name: piece[name] for name in ("test", "amount", "method")}
            row |= {"phase": phase, "split": number, "n_train": len(train), "n_test": len(test)}
            row |= {"n_pool": n_pool, "spread": data.targets[tested].std()}
            rows.append(row | compare_methods.figures(data, tested, predicted[i], half_widths[i]))
    return pd.DataFrame(rows)


def pieces_of(cfg, data):
    """All pieces of work: dicts that compare_methods.answers reads, and test, amount and splits."""
    pieces = []
    for test in cfg.TESTS:
        amounts = map(int, cfg.PERCENTS) if test == "arrangements" else cfg.LABELS
        methods = compare_methods.able(cfg.METHODS, data[SETS[test][0]].clusters is not None)
        for amount, method in product(amounts, methods):
            is_network = method in compare_methods.NETWORKS
            rule = "validation" if is_network else compare_methods.HONEST
            piece = dict(zip(compare_methods.KEYS, ("4+5", "Ef", amount, "named", method, rule)))
            # Networks gain from company; of the others' thousands of rows one split at a time is enough.
            step = compare_methods.CHUNK if is_network else 1
            for start in range(0, len(cfg.SPLITS), step):
                numbers = cfg.SPLITS[start : start + step]
                pieces.append(piece | {"test": test, "amount": amount, "splits": numbers})
    return pieces


# ---- the table -------------------------------------------------------------------------------------


def ratio(frame, one, other):
    """Ratio of two methods' RMSE with the half width of its 95 % interval, as text; frame: of one test.

    What splits have in common goes with the test set's share. Where labels are drawn and the fewer, nearly
    all others are tested on in each split: it goes with the share of the labels.
    """
    rmse, first = frame.pivot(index="split", columns="method", values="RMSE"), frame.iloc[0]
    if not {one, other} <= {*rmse}:
        return ""
    shared, rest = first.n_test, first.n_pool
    if first.test == "drawn":
        shared, rest = sorted([first.n_test, first.n_train])
    half = compare_methods.corrected_interval(rmse[one] - rmse[other], n_pool=rest, n_test=shared)
    base = compare_methods.pooled(rmse[other])
    return f"{compare_methods.pooled(rmse[one]) / base:.2f} ± {half / base:.2f}"


def markdown(frame):
    """A row per test, amount and phase: RMSE over all splits ± standard deviation over splits, and ratios."""
    names, rows = {one: label for one, label in compare_methods.LABELS.items() if one in {*frame.method}}, []
    heads = ["data set", "labels", "predicted", "spread", *names.values()]
    heads += ["TL / Scratch", "DA / Scratch", "phase_gp / best peer", "within its 90 % intervals"]
    for (test, amount, phase), group in frame.groupby(["test", "amount", "phase"], sort=False):
        rmse = 1000 * group.groupby("method").RMSE.agg([compare_methods.pooled, "std"])
        share, kind = (f" ({amount:g} %)", "mixing") if test == "arrangements" else ("", "formation")
        entries = [SETS[test][1], f"{group.n_train.iloc[0]}{share}", f"{kind} energy, {phase}"]
        entries.append(f"{1000 * group.spread.mean():.0f}")
        for pooled, std in rmse.reindex([*names]).to_numpy():
            text = f"{pooled:.1f} ± {std:.1f}" if pooled > 0 else ""
            entries.append(f"**{text}**" if pooled == rmse["pooled"].min() else text)
        peers = rmse["pooled"][rmse.index.isin(compare_methods.PEERS)]
        entries += [ratio(group, "tl", "scratch"), ratio(group, "da", "scratch")]
        entries.append(ratio(group, "phase_gp", peers.idxmin()) if len(peers) else "")
        own = group[group.method == "phase_gp"]
        rows.append([*entries, f"{own.within_90.mean():.0%}" if len(own) else ""])
    said = f"mean squared error over {frame.split.nunique()} splits ± standard deviation over splits"
    said = f"Test RMSE in meV/atom: root of the {said}; networks: ensembles, epoch by validation; ratios: "
    return f"{said}95 % intervals.\n\n{compare_methods.table(heads, rows)}"


KINDS = {name: compare_methods.KINDS[name] for name in ("METHODS", "PERCENTS", "SPLITS", "SCHEDULER")} | {
    "TESTS": [*SETS], "LABELS": settings.numbers,
}  # fmt: skip


def main():
    cfg = settings.read(globals(), **KINDS)
    settings.output_folder(cfg.RESULTS_DIR / "parts")
    names, calls = dict.fromkeys(SETS[test][0] for test in cfg.TESTS), []
    folders = {name: cfg.RESULTS_DIR / "inputs" / name for name in names}
    data = {name: load(name, cfg.DATA_DIR, folder) for name, folder in folders.items()}
    for piece in pieces_of(cfg, data):
        name = SETS[piece["test"]][0]
        own = SimpleNamespace(**vars(cfg) | vars(settings_of(folders[name])))
        calls.append((piece, data[name], own))
    frame = compare_methods.finished(work, calls, cfg.SEEDS, cfg)
    report.write_csv(frame, cfg.RESULTS_DIR / "other_alloys.csv")
    text = markdown(frame)
    (cfg.RESULTS_DIR / "other_alloys.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    settings.run(main)
