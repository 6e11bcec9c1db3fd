"""Cluster expansion (CE): fit, effective cluster interactions, new labelled samples.

    python generate.py
    python generate.py --target Ms --alloys Total
    python generate.py --clusters points pairs triplets second_pairs --alpha 1e-3

Reads the occupation tables of structure_stat.py and one POSCAR per phase as lattice. Writes a folder
RESULTS_DIR/generate_<target>_<alloys>_<columns>: for each phase samples_<phase>.csv (composition,
descriptors, label), eci_<phase>.csv (effective cluster interactions) and a picture of these. To look at:
main_transfer.py calls the same functions for the training rows of its own splits, and reads no file of it.
"""

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

import common
import lattice
import report
import settings
import structure_stat
from common import PHASES, TARGETS
from settings import InputError

# ---- settings ------------------------------------------------------------------------------------
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, μB/atom
ALLOYS = "4+5"  # 4+5: samples of four and five elements; Total: of two to five
CLUSTERS = ["points", "pairs", "triplets"]  # blocks the CE is fitted to; second_pairs may be added
ALPHA = None  # strength of the ridge penalty; None: as published, by target and clusters; or tuned
CELLS = "given"  # clusters counted on cells as given, as published, or with each atom on its lattice site
# --------------------------------------------------------------------------------------------------

COUNTED_ON = {  # as a held-out cell's clusters are
    "given": "on cells as given, of which relaxed ones know the result", "lattice": "on the lattice",
}  # fmt: skip
PENALTIES = np.logspace(-6, 1, 15)  # that a tuned one is taken from
STEPS = 10  # mole fractions of samples are multiples of 1/STEPS
MAX_ELEMENTS = 5
MOST_SAMPLES = 100_000  # beyond, the occupation tables of the samples fill the memory
LATTICE = "FeNiCoCrMn_sqs"  # with the phase: the POSCAR whose sites the samples fill, where there is one
CHUNK = 2000  # samples whose clusters are looked up together


class Samples(NamedTuple):
    """Alloys to label: what does not depend on the fit, so it is computed once."""

    fractions: np.ndarray  # (n, n_elements)
    kind: np.ndarray  # (n,), 0: plain; 1: with Mn; 2: its copy with Pd
    inputs: dict  # phase -> (n, n_elements + 4 + n_phases), what a network sees
    occupation: dict  # phase -> (n, n_columns), what the CE sees


def formulas_of(fractions, elements):
    """Formulas of alloys whose mole fractions are multiples of 1/STEPS."""
    return ["".join(f"{e}{round(STEPS * x)}" for e, x in zip(elements, row) if x > 0) for row in fractions]


def sample_compositions(system, alloys):
    """Mole fractions (n, n_elements) and kind (n,) of the alloys to label: 1008 for '4+5', 1710 for 'Total'.

    All tenths that sum to one, of two to five elements ('4+5': four or five), by nested loops over
    the elements. An element that is never together with an earlier one (Pd with Mn) takes the
    earlier one's place: each alloy with Mn is followed by its copy with Pd. Alloys without such
    elements come first; in both parts those of fewer elements come first. kind: as in Samples.
    """
    least, elements = 4 if alloys == "4+5" else 2, system.elements
    n_made = [
        math.comb(len(elements), k) * math.comb(STEPS - 1, k - 1) for k in range(least, MAX_ELEMENTS + 1)
    ]
    if not 0 < sum(n_made) <= MOST_SAMPLES:
        raise InputError(
            f"ALLOYS {alloys}: {', '.join(elements)} make {sum(n_made)} alloys of {least} to {MAX_ELEMENTS} "
            f"elements, expected 1 to {MOST_SAMPLES}"
        )
    stands_for = {}  # Pd -> Mn
    for i, element in enumerate(elements):
        partners = [e for e in elements[:i] if frozenset((e, element)) in system.excluded]
        if partners:
            stands_for[element] = stands_for.get(partners[0], partners[0])
    replaced = set(stands_for.values())
    found = []
    for steps in tenths(len(elements)):
        present = [element for element, step in zip(elements, steps) if step]
        if not least <= len(present) <= MAX_ELEMENTS or not common.allowed(system, present):
            continue
        kind = 2 if not stands_for.keys().isdisjoint(present) else int(not replaced.isdisjoint(present))
        folded = [0] * len(steps)  # the alloy that this one is a copy of
        for element, step in zip(elements, steps):
            folded[elements.index(stands_for.get(element, element))] += step
        found.append((kind > 0, len(present), folded, kind, steps))
    if not found:
        raise InputError(f"ALLOYS {alloys}: the elements {', '.join(elements)} make no such alloy")
    found.sort(key=lambda entry: entry[:4])
    return np.array([entry[4] for entry in found]) / STEPS, np.array([entry[3] for entry in found])


def tenths(n):
    """All ways to share STEPS among n elements, in the order of nested loops: (n_ways, n)."""
    bars = np.array(list(combinations(range(STEPS + n - 1), n - 1)), int).reshape(-1, n - 1)
    ends = np.full((len(bars), 1), STEPS + n - 1)
    return np.diff(np.hstack([np.full_like(ends, -1), bars, ends])) - 1


def read_lattice(data_dir, data, phase):
    """The structure whose sites the samples of a phase fill: LATTICE, else the phase's largest.

    Put on its lattice where data.cells says so. Repeated along its shortest vector until STEPS divides its
    number of atoms, as it does LATTICE's 160, so that each cell holds exactly the composition it stands for.
    """
    folder, rows = data_dir / "POSCARS", data.table[data.table.phase == phase]
    paths = [common.poscar_path(folder, name) for name in rows.structure]
    wanted = rows.structure == LATTICE + phase
    try:
        of_lattice = [path for path, is_wanted in zip(paths, wanted) if is_wanted or not wanted.any()]
        structure = max(map(lattice.read_poscar, of_lattice), key=len)
        if data.cells == "lattice":
            supercells = structure_stat.ideal_supercells(paths, rows.formula, phase)
            structure, *_ = lattice.map_to_lattice(structure, phase, supercells)
    except InputError as error:
        raise InputError(f"{folder}: expected the POSCAR of the samples' lattice; found {error}") from None
    repeats = [1, 1, 1]
    repeats[int(np.argmin(structure.lattice.abc))] = STEPS // math.gcd(len(structure), STEPS)
    return structure.make_supercell(repeats, in_place=False)


def draw_species(fractions, n_atoms):
    """Random occupation of a cell by each composition: element numbers, (n, n_atoms).

    Species in element order, numbers of atoms rounded, through numpy's legacy generator, seeded afresh for
    each composition, so that all of them share one permutation of the sites.
    """
    ends, permutation = np.rint(np.cumsum(fractions, axis=1) * n_atoms), np.arange(n_atoms)
    np.random.RandomState(0).shuffle(permutation)
    return (permutation >= ends[:, :-1, None]).sum(1, dtype=np.int8)


def sample_occupation(structure, phase, species, system, clusters):
    """Occupation probabilities of filled cells, (n, n_columns), of the blocks in clusters.

    species: element number of each of the structure's sites in each cell, (n, n_atoms).
    """
    sites, positions = lattice.neighbours(structure, phase)
    members = structure_stat.cluster_members(positions, phase)
    blocks = []
    for block in clusters:
        found = structure_stat.cluster_sites(sites, members[block])
        found = np.sort(found.reshape(-1, found.shape[-1]), axis=1)
        # Most clusters are met once from each of their atoms: look each up once and weight it.
        distinct, weight = np.unique(found, axis=0, return_counts=True)
        lookup = structure_stat.column_of(system, block)
        counts = []
        for start in range(0, len(species), CHUNK):
            part = species[start : start + CHUNK]
            column = lookup[tuple(part[:, distinct[:, i]] for i in range(distinct.shape[1]))]
            counts.append(structure_stat.count(column, weight, lookup.max() + 1))
        blocks.append(np.concatenate(counts) / weight.sum())
    return np.hstack(blocks)


def make_samples(cfg, data):
    """Samples of all phases of the data; nothing in them depends on a fit or a target."""
    common.clusters_of(data)  # that there are none is said before what the elements make
    fractions, kind = sample_compositions(data.system, cfg.ALLOYS)
    inputs, occupation = {}, {}
    for phase in common.phases_of(data.table):
        structure = read_lattice(cfg.DATA_DIR, data, phase)
        of_phase = common.one_hot([phase] * len(fractions), data.phases)
        inputs[phase] = common.network_inputs(fractions, of_phase, data.system.elements)
        species = draw_species(fractions, len(structure))
        occupation[phase] = sample_occupation(structure, phase, species, data.system, cfg.CLUSTERS)
    return Samples(fractions, kind, inputs, occupation)


def rows_of(data, rows, phase):
    """Those of the row numbers that are named after one phase."""
    return rows[data.table.phase.to_numpy()[rows] == phase]


def fit_ce(data, rows, clusters, alpha=None):
    """Cluster expansion of each phase, fitted on the given rows of the data alone: {phase: Ridge}.

    clusters: list of blocks. alpha: penalty; None: the published one; tuned: of the least leave-one-out
    error on the rows.
    """
    from sklearn.linear_model import Ridge, RidgeCV

    if alpha is None:
        target = TARGETS[data.target]
        alpha = target.alpha_second if "second_pairs" in clusters else target.alpha
    inputs = common.clusters_of(data)[common.cluster_columns(data.system, *clusters)].to_numpy()
    models = {}
    for phase in common.phases_of(data.table):
        part = rows_of(data, rows, phase)
        if not len(part):
            raise InputError(f"no {phase} alloy is left to fit the cluster expansion to")
        model = RidgeCV(PENALTIES) if alpha == "tuned" else Ridge(alpha)
        models[phase] = model.fit(inputs[part], data.targets[part])
    return models


def label(models, samples):
    """Inputs and CE labels of all samples of each phase: {phase: ((n, n_inputs), (n,))}."""
    return {
        phase: (samples.inputs[phase], model.predict(samples.occupation[phase]))
        for phase, model in models.items()
    }


def select(samples, number, alloys):
    """Rows of the samples that data augmentation takes in each phase, `number` of them.

    By number of elements, and by what they hold of Mn and Pd, in the proportions of the study's data; where
    no element stands in for just one other (`sample_compositions`), by number of elements alone. Raises
    InputError where there are too few.
    """
    study = {4: 97, 5: 55} if alloys == "4+5" else {2: 84, 3: 128, 4: 97, 5: 55}  # alloys in its data
    n_elements = (samples.fractions > 0).sum(1)
    shares = {k: share for k, share in study.items() if k in n_elements}
    wanted = {k: math.ceil(number * share / sum(shares.values())) for k, share in shares.items()}
    wanted[max(shares, key=shares.get)] += number - sum(wanted.values())  # they take the rounding
    copied_share = {2: (2, 7), 3: (3, 8), 4: (4, 9), 5: (1, 2)}  # of those with Pd
    generator, chosen = np.random.default_rng(42), []
    for k, n in wanted.items():
        plain, original, copy = (
            np.flatnonzero((n_elements == k) & (samples.kind == kind)) for kind in range(3)
        )
        if len(original) != len(copy):
            plain, original, copy = np.flatnonzero(n_elements == k), original[:0], copy[:0]
        part, whole = copied_share[k] if len(plain) else (1, 2)
        n_copied = math.ceil(n * part / whole) if len(copy) else 0
        n_plain = max(n - 2 * n_copied, 0) if len(plain) else 0
        if min(n, len(plain) - n_plain, len(copy) - n_copied) < 0:
            kinds = f"{n_plain} of {len(plain)} plain, {n_copied} of {len(copy)} that are copies"
            raise InputError(f"AUGMENT {number}: it takes {n} samples of {k} elements, {kinds}")
        drawn = generator.choice(len(copy), n_copied, replace=False) if n_copied else np.arange(0)
        originals, n_original = drawn, n - n_plain - n_copied
        if n_original < n_copied:
            originals = generator.choice(drawn, n_original, replace=False)
        drawn_plain = generator.choice(plain, n_plain, replace=False) if n_plain else plain[:0]
        chosen += [drawn_plain, original[originals], copy[drawn]]
    return np.concatenate(chosen)


def plot_interactions(system, clusters, model, target, title, note, path):
    """Effective cluster interactions as bars, a panel for each block, in the target's unit."""
    names = {"pairs": "nearest-neighbour pairs", "second_pairs": "second-neighbour pairs"}
    with report.picture(path, (10, 2.1 * len(clusters) + 0.7), title, note) as figure:
        start = 0
        for axes, block in zip(figure.subplots(len(clusters), squeeze=False)[:, 0], clusters):
            columns = common.cluster_columns(system, block)
            axes.bar(range(len(columns)), model.coef_[start : start + len(columns)])
            axes.set_xticks(range(len(columns)), [c.split()[-1] for c in columns], rotation=90, fontsize=8)
            axes.set_ylabel(target.unit)
            axes.set_title(names.get(block, block), fontsize=9)
            axes.axhline(0, color="k", lw=0.8)
            axes.margins(x=0.01)
            start += len(columns)


def main():
    from sklearn.base import clone
    from sklearn.model_selection import KFold, cross_val_predict

    cfg = settings.read(globals(), TARGET=tuple(TARGETS), CELLS=("given", "lattice"))
    settings.output_folder(cfg.RESULTS_DIR)
    data, target = common.load_data(cfg, cfg.CELLS), TARGETS[cfg.TARGET]
    samples = make_samples(cfg, data)
    train = common.split_rows(data.table, cfg.ALLOYS, percent=100, number=0).train
    columns = common.cluster_columns(data.system, *cfg.CLUSTERS)
    models = fit_ce(data, train, cfg.CLUSTERS, cfg.ALPHA)
    descriptors = [*data.system.elements, "S (J/mol/K)", "delta_r", "delta_chi", "valence", *PHASES]
    name = f"generate_{cfg.TARGET}_{cfg.ALLOYS}_{len(columns)}{'_lattice' * (cfg.CELLS == 'lattice')}"
    with report.run_folder(cfg, name, data.sha256) as folder:
        for phase, (inputs, labels) in label(models, samples).items():
            frame = pd.DataFrame(inputs, columns=descriptors).assign(**{target.column: labels})
            frame.insert(0, "composition", formulas_of(samples.fractions, data.system.elements))
            report.write_csv(frame, folder / f"samples_{phase}.csv")
            model, rows = models[phase], rows_of(data, train, phase)
            interactions = pd.DataFrame({"cluster": columns, f"ECI ({target.unit})": model.coef_})
            interactions.loc[len(columns)] = ["intercept", model.intercept_]
            report.write_csv(interactions, folder / f"eci_{phase}.csv")
            title = (
                f"Cluster expansion of the {target.label} in {phase}: coefficients of the ridge regression"
            )
            note = f"{data.source}; the columns of a block sum to one, so no single bar is an interaction"
            plot_interactions(
                data.system, cfg.CLUSTERS, model, target, title, note, folder / f"eci_{phase}.png"
            )
            known, values = data.clusters[columns].to_numpy()[rows], data.targets[rows]
            folds = KFold(5, shuffle=True, random_state=0)
            left_out = cross_val_predict(clone(model), known, values, cv=folds)
            print(
                f"{phase}: fit R2 {model.score(known, values):.4f} on {len(rows)} training alloys, "
                f"cross-validated RMSE {np.sqrt(np.mean((left_out - values) ** 2)):.4f} {target.unit} "
                f"({COUNTED_ON[cfg.CELLS]}); {len(frame)} samples"
            )


if __name__ == "__main__":
    settings.run(main)
