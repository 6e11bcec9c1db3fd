"""Make the project's own data set: quasirandom alloys on ideal lattices, labelled by CHGNet.

    pip install torch==2.13.0     # on Linux without a GPU: the CPU build, from PyTorch's own index
    pip install -r HEA_data/requirements.txt
    python HEA_data/build.py                        # everything, into HEA_data/
    python HEA_data/build.py --out again            # the same, elsewhere
    python HEA_data/build.py --device cpu --jobs 1  # default: CUDA where there is one, every core

Steps: the elements' own energies; for each alloy a special quasirandom structure (SQS), an energy at
each of several volumes, a fit of the minimum, and the labels there. An alloy that is done lies in
work/NAME.json, so an interrupted run goes on where it stopped; nothing else in the output folder
changes before all alloys are done. Delete work/ to begin anew.
"""

import argparse
import hashlib
import io
import json
import os
import sys
import warnings
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from itertools import combinations, combinations_with_replacement
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ase.build import bulk, make_supercell
from ase.neighborlist import neighbor_list
from chgnet.model import CHGNet, StructOptimizer
from icet import ClusterSpace
from icet.tools.structure_generation import generate_sqs_from_supercells
from pymatgen.core import Lattice, Structure
from tqdm import tqdm

# ---- settings ------------------------------------------------------------------------------------
SEED = 0  # of all quasirandom structures; each one's own seed is made from this and its name
ELEMENTS = ("Fe", "Ni", "Co", "Cr", "Mn", "Pd")
EXCLUDED = {"Mn", "Pd"}  # no alloy holds both
CHGNET = "0.2.0"  # which of the package's weights; README.md says why not its default
SQS_STEPS = 250  # swaps tried per atom; more is better and slower, most of the run is spent here
SQS_TEMPERATURES = (0.3, 0.01)  # of the annealing, first and last, in units of the cluster vector
SCAN = tuple(np.linspace(0.88, 1.12, 9))  # volumes tried, over the volume of the scan's centre
FIT_POINTS = 5  # volumes around the lowest energy through which the cubic goes; odd
RELAXED = 0.005  # eV/A: greatest force on an element's reference structure
# --------------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent

ATOMS_PER_CUBE = {"fcc": 4, "bcc": 2}  # the phases, in the order of Database.csv

# Number of elements -> (parts of one element, parts of each other); each element is the one in its turn.
AMOUNTS = {
    2: [(1, 3), (1, 1)],
    3: [(1, 1), (2, 1)],
    4: [(1, 1), (28, 12), (19, 15)],
    5: [(1, 1), (64, 24), (36, 31), (28, 33)],
}

# Periodic cells, rows in units of half the cubic lattice constant: of all cells with so many atoms the
# nearest to a cube, by the squares of G - 1, G the reduced vectors' Gram matrix over volume^(2/3).
CELLS = {
    ("fcc", 32): [[4, 0, 0], [0, 4, 0], [0, 0, 4]],
    ("fcc", 36): [[4, 0, 0], [0, 3, 3], [0, -3, 3]],
    ("fcc", 64): [[3, 2, 3], [3, -1, -4], [-1, 5, -2]],
    ("fcc", 160): [[-1, -1, 6], [-5, 5, 0], [-5, -5, -2]],
    ("bcc", 32): [[3, 1, -3], [-1, 5, 1], [4, 0, 4]],
    ("bcc", 36): [[-2, -4, 2], [-3, 3, 3], [-4, 0, -4]],
    ("bcc", 64): [[5, 3, -1], [3, -5, -3], [-2, 2, -6]],
    ("bcc", 160): [[-3, 7, 3], [-5, 1, -7], [-7, -5, 3]],
}

# The elements' ground states, where their relaxation starts: space group, lattice with a and c in A,
# fractional coordinates. alpha-Mn: 58 atoms on the sites 2a, 8c, 24g and 24g of I-43m.
REFERENCES = {
    "Fe": ("bcc", "Im-3m", Lattice.cubic(2.85), [[0, 0, 0]]),
    "Ni": ("fcc", "Fm-3m", Lattice.cubic(3.52), [[0, 0, 0]]),
    "Co": ("hcp", "P6_3/mmc", Lattice.hexagonal(2.50, 4.05), [[1 / 3, 2 / 3, 1 / 4]]),
    "Cr": ("bcc", "Im-3m", Lattice.cubic(2.85), [[0, 0, 0]]),
    "Mn": ("alpha", "I-43m", Lattice.cubic(8.60),
           [[0, 0, 0], [0.317, 0.317, 0.317], [0.357, 0.357, 0.034], [0.089, 0.089, 0.282]]),
    "Pd": ("fcc", "Fm-3m", Lattice.cubic(3.95), [[0, 0, 0]]),
}  # fmt: skip

# What a stored result depends on; one made by another recipe is made again.
RECIPE = repr((SEED, CHGNET, SQS_STEPS, SQS_TEMPERATURES, np.round(SCAN, 9).tolist(), FIT_POINTS, RELAXED,
               CELLS, version("chgnet"), version("icet")))  # fmt: skip


# ==== which alloys ================================================================================


def formula(amounts):
    """{"Fe": 1, "Ni": 3} -> "FeNi3"."""
    return "".join(f"{element}{amount if amount > 1 else ''}" for element, amount in amounts.items())


def alloys():
    """{name: (phase, {element: atoms in the cell})}, in the order of Database.csv."""
    table = {}
    for phase in ATOMS_PER_CUBE:
        for n, recipes in AMOUNTS.items():
            for elements in combinations(ELEMENTS, n):
                if set(elements) >= EXCLUDED:
                    continue
                for one, other in recipes:
                    for chosen in elements[:1] if one == other else elements:
                        parts = {e: one if e == chosen else other for e in elements}
                        total = sum(parts.values())
                        # 1:1:1 is no 32 atoms' composition; generate.py needs 160 of the quinaries.
                        atoms = {2: 32, 3: 36 if total == 3 else 32, 4: 64, 5: 160}[n]
                        name = f"{formula(parts)}_sqs{phase}"
                        table[name] = phase, {e: k * atoms // total for e, k in parts.items()}
    return table


# ==== the structure ===============================================================================


def lattice_constant(volume, phase):
    """Cubic lattice constant (A) from the volume per atom (A^3)."""
    return (volume * ATOMS_PER_CUBE[phase]) ** (1 / 3)


def quasirandom(name, phase, counts):
    """SQS of the alloy at lattice constant 1: (cell (3, 3), fractional (n_atoms, 3), symbols (n_atoms,)).

    Simulated annealing of the pairs of the first two shells, by icet, in one thread: the same seed
    gives the same structure, whatever the number of cores.
    """
    primitive = bulk("Fe", phase, a=1.0)
    n_atoms = sum(counts.values())
    cell = np.array(CELLS[phase, n_atoms]) / 2
    supercell = make_supercell(primitive, np.rint(cell @ np.linalg.inv(primitive.cell.array)).astype(int))
    # Second neighbours stand at 1 lattice constant in both lattices, third ones at 1.22 or 1.41.
    space = ClusterSpace(primitive, [1.1], [list(counts)])
    found = generate_sqs_from_supercells(
        space,
        [supercell],
        {e: k / n_atoms for e, k in counts.items()},
        T_start=SQS_TEMPERATURES[0],
        T_stop=SQS_TEMPERATURES[1],
        n_steps=SQS_STEPS * n_atoms,
        random_seed=zlib.crc32(f"{SEED} {name}".encode()),
        optimality_weight=0,  # no bonus for a perfect first shell at the second one's cost
    )
    symbols = np.array(found.get_chemical_symbols())
    order = np.concatenate([np.flatnonzero(symbols == e) for e in counts])
    # Ideal coordinates are multiples of 1/(2 n_atoms): rounding takes only noise away.
    fractional = np.round(found.get_scaled_positions()[order], 9) % 1
    return cell, fractional, symbols[order]


def warren_cowley(structure, phase):
    """Remaining order: {"wc1 (rms)", "wc1 (max)", "wc2 (rms)", "wc2 (max)"}, 1 the first shell, 2 the second.

    alpha_ij = 1 - P_ij / (c_i c_j), P_ij the share of the shell's ordered pairs that are i, j; 0 if random.
    Taken over the unordered element pairs, like pairs included.
    """
    a = lattice_constant(structure.volume / len(structure), phase)
    i, j, distance = neighbor_list("ijd", structure.to_ase_atoms(), 1.1 * a)
    symbols = np.array([site.specie.symbol for site in structure])
    share = {e: np.mean(symbols == e) for e in dict.fromkeys(symbols)}
    values = {}
    for shell, inside in ((1, distance < 0.93 * a), (2, distance > 0.93 * a)):  # at 0.71 or 0.87 a; at a
        alphas = [
            1 - np.mean((symbols[i[inside]] == x) & (symbols[j[inside]] == y)) / (share[x] * share[y])
            for x, y in combinations_with_replacement(share, 2)
        ]
        values[f"wc{shell} (rms)"] = float(np.sqrt(np.mean(np.square(alphas))))
        values[f"wc{shell} (max)"] = float(np.abs(alphas).max())
    return values


def poscar(structure, comment):
    """The structure as a VASP 5 file, species in order, fractional coordinates."""
    counts = Counter(site.specie.symbol for site in structure)
    rows = [comment, "1.0"]
    rows += [" ".join(f"{x:.9f}" for x in vector) for vector in structure.lattice.matrix]
    rows += [" ".join(counts), " ".join(map(str, counts.values())), "Direct"]
    rows += [" ".join(f"{x:.9f}" for x in site.frac_coords) for site in structure]
    return "\n".join(rows) + "\n"


# ==== the labels ==================================================================================


def load_model(device):
    """CHGNet, and one torch thread: the work is spread over structures, one process per core."""
    global MODEL
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sys.stdout = io.StringIO()  # CHGNet prints through the progress bar
    MODEL = CHGNet.load(model_name=CHGNET, use_device=device, check_cuda_mem=False, verbose=False)


def energies(structures):
    """CHGNet energies (eV/atom), (n_structures,)."""
    batch = 1 if next(MODEL.parameters()).device.type == "cpu" else 16  # one by one is fastest on a CPU
    return np.array([float(p["e"]) for p in MODEL.predict_structure(structures, task="e", batch_size=batch)])


def least_energy_volume(at_volume, centre):
    """Volume per atom (A^3) of least energy; at_volume gives the structure of a volume per atom.

    A cubic through the lowest of the scanned energies and its neighbours. Where the lowest stands near
    the scan's end, the scan moves there.
    """
    half = FIT_POINTS // 2
    for _ in range(10):
        volumes = centre * np.array(SCAN)  # (n_volumes,)
        scan = energies([at_volume(v) for v in volumes])  # (n_volumes,)
        lowest = int(scan.argmin())
        if half <= lowest < len(volumes) - half:
            near = slice(lowest - half, lowest + half + 1)
            fit = np.polynomial.Polynomial.fit(volumes[near], scan[near], 3)
            # Of the cubic's two stationary points the minimum, if it lies among the fitted volumes.
            minima = [v.real for v in fit.deriv().roots() if np.isreal(v) and fit.deriv(2)(v.real) > 0]
            inside = [v for v in minima if volumes[near][0] < v < volumes[near][-1]]
            return inside[0] if inside else volumes[lowest]
        centre = volumes[lowest]
    raise RuntimeError("no volume of least energy found")


def reference(element):
    """The element at its own minimum: structure, E0 (eV/atom), V0 (A^3/atom), mean |moment| (mu_B)."""
    kind, group, lattice, sites = REFERENCES[element]
    start = Structure.from_spacegroup(group, lattice, [element] * len(sites), sites)
    relaxer = StructOptimizer(model=MODEL, use_device=next(MODEL.parameters()).device.type)
    end = relaxer.relax(start, fmax=RELAXED, steps=500, verbose=False)["final_structure"]
    label = MODEL.predict_structure(end, task="em")
    return {
        "element": element,
        "structure": kind,
        "E0 (eV/atom)": round(float(label["e"]), 6),
        "V0 (A3/atom)": round(end.volume / len(end), 4),
        "Ms (mub/atom)": round(float(np.abs(label["m"]).mean()), 4),
    }


def alloy(name, phase, counts, elements):
    """The alloy's row of Database.csv, and its POSCAR; elements: {element: its reference}."""
    n_atoms = sum(counts.values())
    cell, fractional, symbols = quasirandom(name, phase, counts)

    def at_volume(volume):
        return Structure(Lattice(cell * lattice_constant(volume, phase)), symbols, fractional)

    mixed = {q: sum(k * elements[e][q] for e, k in counts.items()) / n_atoms
             for q in ("E0 (eV/atom)", "V0 (A3/atom)")}  # fmt: skip
    volume = round(float(least_energy_volume(at_volume, mixed["V0 (A3/atom)"])), 4)
    structure = at_volume(volume)
    label = MODEL.predict_structure(structure, task="em")
    energy = round(float(label["e"]), 6)
    row = {
        "structures": name,
        "Etot (eV/atom)": energy,
        "Eform (eV/atom)": round(energy - mixed["E0 (eV/atom)"], 6),
        "Ms (mub/atom)": round(float(np.abs(label["m"]).mean()), 4),
        "V0 (A3/atom)": volume,
        **{column: round(value, 4) for column, value in warren_cowley(structure, phase).items()},
        "phase": phase,
    }
    return {"row": row, "poscar": poscar(structure, name)}


# ==== files, and all of it ========================================================================


def write_whole(path, text):
    """The file as a whole or not at all, whenever the program stops."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(text.encode())
    os.replace(part, path)


def finished(path):
    """The stored result, or None where there is none by this recipe."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    return stored.get("result") if stored.get("recipe") == RECIPE else None


def make(path, function, *arguments):
    """In a worker: one result into its file."""
    write_whole(path, json.dumps({"recipe": RECIPE, "result": function(*arguments)}))


def run_all(tasks, device, jobs, label):
    """The results of {path: (function, *arguments)}, in that order; only what is missing is made."""
    missing = [path for path in tasks if finished(path) is None][::-1]  # large cells first: even loads
    if missing:
        with ProcessPoolExecutor(jobs, get_context("spawn"), load_model, (device,)) as pool:
            futures = [pool.submit(make, path, *tasks[path]) for path in missing]
            try:
                bar = tqdm(as_completed(futures), label, len(tasks), initial=len(tasks) - len(futures))
                for future in bar:
                    future.result()
            except BaseException:  # an error or Ctrl-C: what is done lies in work/
                pool.shutdown(cancel_futures=True)
                raise
    return [finished(path) for path in tasks]


def build(table, out, device, jobs):
    """Make the data of {name: (phase, counts)} in the folder out."""
    work = out / "work"
    for folder in (work, out / "POSCARS"):
        folder.mkdir(parents=True, exist_ok=True)

    tasks = {work / f"element-{e}.json": (reference, e) for e in ELEMENTS}
    references = run_all(tasks, device, jobs, "elements")
    by_element = {row["element"]: row for row in references}
    tasks = {work / f"{name}.json": (alloy, name, *what, by_element) for name, what in table.items()}
    results = run_all(tasks, device, jobs, "alloys")

    files = {"elements.csv": pd.DataFrame(references).to_csv(index=False, lineterminator="\n")}
    files["Database.csv"] = pd.DataFrame([r["row"] for r in results]).to_csv(lineterminator="\n")
    files |= {f"POSCARS/{r['row']['structures']}": r["poscar"] for r in results}
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    files["SHA256SUMS"] = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    for name, text in files.items():
        write_whole(out / name, text)


def main():
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    options = parser.parse_args()
    table = alloys()
    build(table, options.out, options.device, options.jobs)
    print(f"{len(table)} structures in {options.out}")


if __name__ == "__main__":
    main()
