"""Which alloys to calculate next.

    python suggest.py
    python suggest.py --target Ms --number 20 --alloys Total
    python suggest.py --target Ms --goal high --bound 0.05
    python suggest.py --candidates mine.csv --sqs-atoms 64

Learns from all of the database (none of a candidate's labels, for there are none). Without a GOAL it picks,
one after the other, the alloys whose calculation takes most of the variance that a Gaussian process has of
all candidates, each given those before: D. A. Cohn, Z. Ghahramani and M. I. Jordan, J. Artif. Intell. Res.
4, 129 (1996). With GOAL high or low it picks those of the greatest expected improvement on the best alloy of
the database (D. R. Jones et al., J. Global Optim. 13, 455 (1998)). With BOUND that is the best of those whose
formation energy is below it, if any is, and the improvement counts times the probability that the candidate's
is. Means are main_committee.py's, and picks before count as calculated, as expected.

Candidates are the compositions that generate.py makes, on both lattices, or a CSV file as for PREDICT. Writes
to RESULTS_DIR a table and a picture, and with SQS_ATOMS a special quasirandom structure for each as POSCAR.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import settings  # first: from here on Ctrl-C leaves no traceback

# isort: split
import numpy as np
import pandas as pd

import common
import generate
import main_committee
import prediction
import processes
import report
import structure_stat
from common import TARGETS
from settings import InputError

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results"  # folder for what this script writes
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, μB/atom
ALLOYS = "4+5"  # candidates of four and five elements, or Total: of two to five
NUMBER = 10  # of alloys to suggest
GOAL = None  # None: learn most about all candidates; high or low: find an alloy with a value as high or low
BOUND = None  # with GOAL: eV/atom that the formation energy is to be below; None: it does not matter
CANDIDATES = None  # a CSV file of alloys, as for PREDICT; None: a grid of compositions in tenths
SQS_ATOMS = None  # atoms of the structures to be written, by icet (pip install icet); None: no structures
# --------------------------------------------------------------------------------------------------

HARDLY = 0.001  # of a candidate's standard deviation: an improvement that is not worth a calculation
NETWORKS = 0  # of the committee: in a search its processes are enough
SQS_STEPS = 100  # swaps tried for each atom


class Learned(NamedTuple):
    """What the committee has learned of one target, of the candidates."""

    data: common.Data
    model: main_committee.Model
    mean: np.ndarray  # (n,)
    deviation: np.ndarray  # (n,)
    chances: np.ndarray  # (n, 3) of fcc, bcc, hcp


def learn(chosen, target, candidates):
    """Learned from all of the database, of the candidates."""
    data = common.load_data(
        chosen.DATA_DIR, chosen.TABLE_DIR, target, chosen.ELEMENTS, chosen.EXCLUDED_PAIRS, "lattice"
    )
    rows = common.split_rows(data.table, chosen.ALLOYS, 100, "all").train
    report.refuse_constant(data, rows, f"{target}: ")
    model = main_committee.fit_split(data, rows, [0], chosen.ALLOYS, NETWORKS, False, None, None, None)
    descriptors, lattice, order = inputs_of(data.system, candidates)
    mean, half_width, chances = main_committee.predict(model, descriptors, lattice, order)
    return Learned(data, model, mean[0], half_width / main_committee.NORMAL_90, chances)


def inputs_of(system, candidates):
    """Descriptors, one-hot lattice and order (none: at random) of the candidates."""
    fractions = candidates[list(system.elements)].to_numpy()
    lattice = common.one_hot(candidates.phase, common.PHASES)
    random = structure_stat.order_of(system, fractions, None)
    return common.descriptors(fractions, system.elements), lattice, random


def make_candidates(chosen, system, table):
    """A frame of formula, phase and mole fractions, without what the database holds already."""
    if chosen.CANDIDATES is None:
        fractions, _ = generate.sample_compositions(system, chosen.ALLOYS)
        names = generate.formulas_of(fractions, system.elements)
        frame = pd.DataFrame({"formula": names}).join(pd.DataFrame(fractions, columns=system.elements))
        frame = frame.merge(pd.DataFrame({"phase": common.phases_of(table)}), how="cross")
    else:
        frame = prediction.read_alloys(chosen.CANDIDATES, common.phases_of(table))[["formula", "phase"]]
        formulas = dict.fromkeys(frame.formula)
        bad = [one for one in formulas if not common.allowed(system, prediction.elements_of(one))]
        if bad:
            raise InputError(f"CANDIDATES: expected {common.alloys_of(system)}; got {settings.listed(bad)}")
        fractions = common.mole_fractions(frame.formula, system.elements)
        frame = frame.join(pd.DataFrame(fractions, columns=system.elements))
    known = common.mole_fractions(table.formula, system.elements)
    known, rows = (
        [(*row, phase) for row, phase in zip(part.round(4).tolist(), phases)]
        for part, phases in ((known, table.phase), (frame[list(system.elements)].to_numpy(), frame.phase))
    )
    frame = frame[[row not in set(known) for row in rows]]
    frame = frame.drop_duplicates([*system.elements, "phase"], ignore_index=True)
    if len(frame) < chosen.NUMBER:
        raise InputError(f"NUMBER {chosen.NUMBER}: only {len(frame)} candidates are not in the database yet")
    return frame


def most_telling(covariance, noise, number):
    """Rows whose calculation takes most of the candidates' variance, and the share each takes: two lists.

    covariance: of the candidates, (n, n). noise: of a calculation, (n,).
    """
    covariance, picks, shares = covariance.copy(), [], []
    before = np.trace(covariance)
    for _ in range(number):
        taken = (covariance**2).sum(0) / (covariance.diagonal() + noise)
        taken[picks] = -np.inf
        picks.append(int(taken.argmax()))
        shares.append(taken[picks[-1]] / before)
        covariance = given_one(covariance, noise, picks[-1])
    return picks, shares


def given_one(covariance, noise, i):
    """The covariance once row i has been calculated."""
    return covariance - np.outer(covariance[i], covariance[i]) / (covariance[i, i] + noise[i])


def most_promising(mean, deviation, covariance, noise, likely, best, goal, number):
    """Rows of the greatest expected improvement times `likely`, and that: two lists; none that is 0."""
    from scipy.stats import norm

    covariance, picks, gains = covariance.copy(), [], []
    rest = np.maximum(deviation**2 - covariance.diagonal(), 0)  # of the phase, of noise
    for _ in range(number):
        spread = np.sqrt((covariance.diagonal() + rest).clip(min=1e-20))
        ahead = mean - best if goal == "high" else best - mean
        gain = likely * (ahead * norm.cdf(ahead / spread) + spread * norm.pdf(ahead / spread))
        gain[picks] = -np.inf
        if gain.max() <= 0:
            break
        picks.append(int(gain.argmax()))
        gains.append(gain[picks[-1]])
        best = max(best, mean[picks[-1]]) if goal == "high" else min(best, mean[picks[-1]])
        covariance = given_one(covariance, noise, picks[-1])
    return picks, gains


def plot_picks(candidates, system, values, label, picks, title, path):
    """The picks among the candidates of each lattice, coloured by value, in a polygon of the elements."""
    from matplotlib.figure import Figure

    angles = np.pi / 2 + 2 * np.pi * np.arange(len(system.elements)) / len(system.elements)
    corners = np.column_stack([np.cos(angles), np.sin(angles)])
    place = candidates[list(system.elements)].to_numpy() @ corners
    phases = list(dict.fromkeys(candidates.phase))
    figure = Figure(figsize=(5 * len(phases) + 1, 5.4), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    panels = figure.subplots(1, len(phases), squeeze=False)[0]
    limits = {"vmin": values.min(), "vmax": values.max()}
    for axes, phase in zip(panels, phases):
        rows = np.flatnonzero(candidates.phase == phase)
        rows = rows[np.argsort(values[rows])]  # the greatest on top
        drawn = axes.scatter(*place[rows].T, c=values[rows], s=14, cmap="viridis", **limits)
        axes.fill(*corners.T, fill=False, lw=0.8)
        for element, corner in zip(system.elements, corners):
            axes.text(*(1.1 * corner), element, ha="center", va="center", fontweight="bold")
        for number, pick in enumerate(picks, 1):
            if candidates.phase[pick] == phase:
                axes.plot(*place[pick], "o", ms=13, mfc="none", mec="tab:red", mew=1.5)
                axes.annotate(f"{number}", place[pick], (7, 7), textcoords="offset points", color="tab:red")
        axes.set(title=f"{phase} lattice", aspect="equal", xlim=(-1.25, 1.25), ylim=(-1.15, 1.25))
        axes.axis("off")
    figure.colorbar(drawn, ax=panels, label=label, shrink=0.8)
    figure.savefig(path, dpi=150, format="png")


def quasirandom(formula, phase, n_atoms, lattice_constant, number):
    """A special quasirandom structure of a formula as text of a POSCAR, by icet's simulated annealing.

    Mole fractions are rounded to whole atoms. lattice_constant: cubic, in angstrom.
    """
    from ase.build import bulk
    from icet import ClusterSpace
    from icet.tools.structure_generation import generate_sqs
    from pymatgen.core import Composition, Structure
    from pymatgen.io.vasp.inputs import Poscar

    amounts = Composition(formula).fractional_composition.get_el_amt_dict()
    ends = np.rint(np.cumsum(list(amounts.values())) * n_atoms).astype(int)
    counts = dict(zip(amounts, np.diff([0, *ends]).tolist()))
    space = ClusterSpace(bulk("Fe", phase, a=1.0), [1.1], [list(counts)])  # pairs of the first two shells
    found = generate_sqs(
        space, n_atoms, {e: n / n_atoms for e, n in counts.items()}, include_smaller_cells=False,
        n_steps=SQS_STEPS * n_atoms, random_seed=number,
    )  # fmt: skip
    lattice = found.cell.array * lattice_constant
    structure = Structure(lattice, found.get_chemical_symbols(), found.get_scaled_positions())
    return Poscar(structure.get_sorted_structure()).get_str(significant_figures=12)


def lattice_constants(data_dir, data, candidates):
    """Cubic lattice constants in angstrom, (n,), by Vegard's law for the volumes of the database's cells."""
    import cells

    paths = [common.poscar_path(data_dir / "POSCARS", name) for name in data.table.structure]
    structures = [cells.read_poscar(path) for path in paths]
    volumes = [one.volume / len(one) for one in structures]  # angstrom^3 per atom
    fractions = common.mole_fractions(data.table.formula, data.system.elements)
    of_elements = np.linalg.lstsq(fractions, volumes, rcond=None)[0]
    per_cube = candidates.phase.map(cells.ATOMS_PER_CUBE).to_numpy()
    return np.cbrt(candidates[list(data.system.elements)].to_numpy() @ of_elements * per_cube)


def main():
    chosen = settings.read(
        globals(),
        TARGET=settings.one_of(*TARGETS),
        NUMBER=settings.number(int, 1, 1000),
        GOAL=settings.optional(settings.one_of("high", "low")),
        BOUND=settings.optional(settings.number(float, -10, 10)),
        CANDIDATES=settings.optional(str),
        SQS_ATOMS=settings.optional(settings.number(int, 2, 500)),
    )
    if chosen.BOUND is not None and chosen.GOAL is None:
        raise InputError("BOUND: expected with GOAL high or low")
    if chosen.SQS_ATOMS:
        try:
            import icet  # noqa: F401
        except ImportError:
            raise InputError("SQS_ATOMS: expected icet (pip install icet)") from None
    settings.output_folder(chosen.RESULTS_DIR)
    targets = common.targets_in(chosen.DATA_DIR)
    database, system = common.read_database(chosen.DATA_DIR, targets, chosen.ELEMENTS, chosen.EXCLUDED_PAIRS)
    candidates = make_candidates(chosen, system, database)
    learned = learn(chosen, chosen.TARGET, candidates)
    data, target = learned.data, TARGETS[chosen.TARGET]

    descriptors, lattice, order = inputs_of(system, candidates)
    direct, inputs = learned.model.direct, np.hstack([descriptors, lattice])
    covariance = processes.covariance(direct, inputs, order)
    noise = processes.noise_in_units(direct, main_committee.groups_of(descriptors[:, :-4]))
    if chosen.GOAL is None:
        picks, scores = most_telling(covariance, noise, chosen.NUMBER)
        reasons = [
            f"takes {score:.1%} of the variance of all {len(candidates)} candidates" for score in scores
        ]
        values, label = learned.deviation, f"standard deviation of the {target.label} ({target.unit})"
    else:
        likely, rows = np.ones(len(candidates)), slice(None)
        if chosen.BOUND is not None:
            from scipy.stats import norm

            energy = learn(chosen, "Ef", candidates)
            likely = norm.cdf((chosen.BOUND - energy.mean) / energy.deviation)
            feasible = energy.data.targets < chosen.BOUND
            rows = feasible if feasible.any() else rows
        best = data.targets[rows].max() if chosen.GOAL == "high" else data.targets[rows].min()
        arguments = learned.mean, learned.deviation, covariance, noise, likely, best
        picks, scores = most_promising(*arguments, chosen.GOAL, chosen.NUMBER)
        below = "" if chosen.BOUND is None else f" at an Ef below {chosen.BOUND:g} eV/atom"
        improve = f"improve on {best:.4g} {target.unit}{below}"
        if not picks:
            raise InputError(f"GOAL {chosen.GOAL}: none of {len(candidates)} candidates can {improve}")
        if len(picks) < chosen.NUMBER:
            print(f"NUMBER {chosen.NUMBER}: only {len(picks)} of {len(candidates)} candidates can {improve}")
        if scores[0] < HARDLY * learned.deviation.mean():
            print(f"hardly any candidate will {improve}: the picks are the least unlikely")
        times = "" if chosen.BOUND is None else ", its probability counted in"
        reasons = [f"expected to {improve} by {score:.2g} {target.unit}{times}" for score in scores]
        values, label = learned.mean, f"{target.label} ({target.unit})"
    table = candidates.loc[picks, ["formula", "phase"]].rename(columns={"phase": "lattice"})
    table.insert(0, "number", range(1, len(picks) + 1))
    table = table.assign(
        mean=learned.mean[picks], half_width_90=main_committee.NORMAL_90 * learned.deviation[picks],
        unit=target.unit, **{f"p_{p}": learned.chances[picks, k] for k, p in enumerate(main_committee.FOUND)},
    )  # fmt: skip
    if chosen.BOUND is not None:
        table = table.assign(p_below_bound=likely[picks])
    table = table.assign(reason=reasons)

    asked = hashlib.sha256(settings.csv_text(candidates).encode()).hexdigest()  # the file may have changed
    identity = settings.identity(chosen, data.sha256 | {"candidates": asked})
    name = f"suggested_{chosen.TARGET}_{chosen.GOAL or 'learn'}"
    of_run = chosen.RESULTS_DIR, name, "{}_settings.json", identity
    with settings.files_of_run(*of_run) as (new, name):
        new(f"{name}_settings.json").write_text(identity, encoding="utf-8")
        settings.write_csv(table, new(f"{name}.csv"))
        title = f"{len(picks)} alloys to calculate next; data: {data.source}"
        plot_picks(candidates, system, values, label, picks, title, new(f"{name}.png"))
        if chosen.SQS_ATOMS:
            constants = lattice_constants(chosen.DATA_DIR, data, candidates.loc[picks])
            for number, (pick, constant) in enumerate(zip(picks, constants), 1):
                formula, phase = candidates.formula[pick], candidates.phase[pick]
                text = quasirandom(formula, phase, chosen.SQS_ATOMS, constant, number)
                new(f"{name}_{number}_{formula}_sqs{phase}.vasp").write_text(text, encoding="utf-8")
    shown = {"index": False, "float_format": "{:.4f}".format}
    print(table.to_string(**shown))
    if chosen.GOAL is None:
        print(f"together they take {sum(scores):.0%} of the variance of all candidates")
    print(f"written: {Path(chosen.RESULTS_DIR) / name}.csv, .png{' and .vasp' if chosen.SQS_ATOMS else ''}")


if __name__ == "__main__":
    settings.run(main)
