"""Which alloys to calculate next, to find one with a value as high or as low as can be.

    python beyond/suggest.py --target Ef --goal low
    python beyond/suggest.py --target Ms --goal high --bound 0.05
    python beyond/suggest.py --target Ms --goal high --candidates mine.csv --sqs-atoms 64

Learns from all of the database with phase_gp.py, and picks the candidates of the greatest expected
improvement on its best alloy: D. R. Jones et al., J. Global Optim. 13, 455 (1998). With BOUND that is the
best of those whose formation energy is below it, and the improvement counts times the probability that the
candidate's is, by a process of its own: M. Schonlau et al., IMS Lect. Notes 34, 11 (1998). Each pick then
counts as calculated, with its mean as result, so that a batch spreads; it ends where none is WORTH it.

Candidates are the compositions that generate.py makes, on each lattice of the database, or a table of alloys
as for predict.py, less what the database holds. Writes a folder RESULTS_DIR/suggested_<target>_<goal> with
table, picture and, with SQS_ATOMS, a special quasirandom structure of each pick as POSCAR.
"""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
from scipy.stats import norm

import common
import generate
import lattice
import report
import settings
import structure_stat
from beyond import phase_gp, predict
from common import TARGETS
from settings import InputError

# ---- settings ------------------------------------------------------------------------------------
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, μB/atom
GOAL = "low"  # high or low: what the target is to be
BOUND = None  # eV/atom that the formation energy is to be below; None: it does not matter
ALLOYS = "4+5"  # 4+5: the best alloy of four and more elements is looked for; Total: of two to five
NUMBER = 10  # of alloys to suggest, at most
CANDIDATES = None  # a CSV file of alloys, as for predict.py; None: a grid of compositions in tenths
SQS_ATOMS = None  # atoms of the structures to be written, by icet (pip install icet); None: no structures
# --------------------------------------------------------------------------------------------------

# The least expected improvement that is worth a calculation, in standard deviations of a label's noise. Of
# alloys that are known no better than this noise, one in 40 would then turn out to be an improvement.
WORTH = 0.01
SHORTLIST = 2000  # candidates that promise most on their own; batches are picked from them
SQS_STEPS = 100  # swaps tried for each atom


def best_known(values, looked_for):
    """The greatest known value of those looked for; if none of them is known, any improves on the least."""
    return values[looked_for].max() if looked_for.any() else values.min()


def improvement(mean, deviation, best):
    """How much more than the best value each calculation is expected to give, 0 where less: (n,)."""
    ahead = (mean - best) / deviation
    return deviation * (ahead * norm.cdf(ahead) + norm.pdf(ahead))


def pick_batch(mean, deviation, likely, best, joint, number, least):
    """Rows of the greatest expected improvement times `likely`, each given those before: rows, improvements.

    mean, deviation, likely: (n,). best: the value to be improved on; more is better. joint: covariance (n, n)
    and variance of the noise (n,). least: a lesser improvement is not picked.

    What is looked for is a label, so its noise is part of the deviation, and the best known label has none.
    """
    covariance, noise = joint
    rest = np.maximum(deviation**2 - covariance.diagonal(), 0)  # noise, and the phase that is not known
    picks, gains = [], []
    while len(picks) < min(number, len(mean)):
        spread = np.sqrt(np.maximum(covariance.diagonal(), 0) + rest).clip(min=1e-10)
        gain = likely * improvement(mean, spread, best)
        gain[picks] = -np.inf
        i = int(gain.argmax())
        if gain[i] < least:
            break
        picks, gains = [*picks, i], [*gains, gain[i]]
        best = max(best, mean[i]) if likely[i] > 0.5 else best
        covariance = covariance - np.outer(covariance[i], covariance[i]) / (covariance[i, i] + noise[i])
    return picks, gains


def make_candidates(cfg, database, system):
    """A frame of formula, phase and mole fractions, without what the database holds already."""
    elements, phases = list(system.elements), common.phases_of(database)
    if cfg.CANDIDATES is None:
        formulas = generate.formulas_of(generate.sample_compositions(system, cfg.ALLOYS)[0], elements)
        frame = pd.DataFrame({"formula": formulas}).merge(pd.DataFrame({"phase": phases}), how="cross")
    else:
        frame = predict.read_alloys([cfg.CANDIDATES], elements, phases)[["formula", "phase"]]
        bad = [one for one in frame.formula.unique() if not common.allowed(system, common.composition(one))]
        if bad:
            expected = f"alloys of {', '.join(elements)} without excluded pairs"
            raise InputError(f"CANDIDATES: expected {expected}; found {settings.listed(bad)}")
    both = pd.concat([database[["formula", "phase"]], frame], ignore_index=True)
    both[elements] = common.mole_fractions(both.formula, elements)
    new = ~both.round(4).duplicated([*elements, "phase"]) & (both.index >= len(database))
    if not new.any():
        raise InputError("CANDIDATES: the database holds all of them")
    return both[new].reset_index(drop=True)


def plot_picks(figure, across, up, half_width, lattices, picks, best, bound):
    """All candidates as dots, picks numbered. across, up: label and values (n,) of the axes."""
    axes, (x, y) = figure.subplots(), (across[1], up[1])
    for name, colour in zip(common.PHASES, ("tab:blue", "tab:orange")):
        own = lattices == name
        axes.plot(x[own], y[own], ".", ms=3, alpha=0.5, c=colour, label=f"candidates on {name}")
    style = {"fmt": "o", "c": "k", "ms": 3, "lw": 0.8, "label": "picks, 90 % interval"}
    axes.errorbar(x[picks], y[picks], half_width[picks], **style)
    axes.margins(y=0.12)
    height = 0.95 if (y[picks] > y.mean()).all() else 0.02  # of a row of numbers: picks lie close together
    style = {"textcoords": "axes fraction", "ha": "center", "arrowprops": {"arrowstyle": "-", "lw": 0.4}}
    for place, k in enumerate(np.argsort(x[picks])):
        axes.annotate(k + 1, (x[picks[k]], y[picks[k]]), ((place + 0.5) / len(picks), height), **style)
    axes.axhline(best, c="tab:green", label=f"best known, {best:.4g}")
    if bound is not None:
        axes.axvline(bound, c="tab:red", label=f"bound, {bound:g} eV/atom")
    axes.set(xlabel=across[0], ylabel=up[0])
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def write_structures(n_atoms, radii, table, folder):
    """A special quasirandom structure of each pick as POSCAR, by icet's simulated annealing.

    Mole fractions are rounded to whole atoms. radii: mean metallic radius of each pick, angstrom. A volume to
    relax from: spheres of it touch in fcc, and an atom of bcc has as much room.
    """
    from ase.build import bulk
    from ase.io.vasp import write_vasp
    from icet import ClusterSpace
    from icet.tools.structure_generation import generate_sqs

    for pick, radius in zip(table.itertuples(), radii):
        edge = radius * np.cbrt(32**0.5 * lattice.ATOMS_PER_CUBE[pick.lattice])
        amounts = common.composition(pick.formula)
        ends = np.rint(np.cumsum([*amounts.values()]) * n_atoms).astype(int)
        shares = dict(zip(amounts, np.diff(ends, prepend=0) / n_atoms))
        space = ClusterSpace(bulk("Fe", pick.lattice, a=edge), [1.1 * edge], [[*shares]])  # two shells
        steps = {"n_steps": SQS_STEPS * n_atoms, "random_seed": pick.number}
        cell = generate_sqs(space, n_atoms, shares, include_smaller_cells=False, **steps)
        place = folder / f"{pick.number}_{pick.formula}_sqs{pick.lattice}.vasp"
        write_vasp(place, cell, direct=True, sort=True)


def main():
    cfg = settings.read(
        globals(), TARGET=tuple(TARGETS), GOAL=("high", "low"), BOUND=(None, (float, -10, 10)),
        NUMBER=(int, 1, 1000), CANDIDATES=(None, Path), SQS_ATOMS=(None, (int, 2, 500)),
    )  # fmt: skip
    target, sign, bounded = TARGETS[cfg.TARGET], 1 if cfg.GOAL == "high" else -1, cfg.BOUND is not None
    if bounded and cfg.TARGET == "Ef":
        raise InputError("BOUND: expected with another TARGET than Ef")
    if cfg.SQS_ATOMS and not importlib.util.find_spec("icet"):
        raise InputError("SQS_ATOMS: expected icet (pip install icet)")
    settings.output_folder(cfg.RESULTS_DIR)
    names = [cfg.TARGET] + ["Ef"] * bounded
    database, system = common.read_database(cfg.DATA_DIR, names, cfg.ELEMENTS, cfg.EXCLUDED_PAIRS)
    candidates = make_candidates(cfg, database, system)
    data = common.load_data(cfg, "lattice")

    fractions, lattices = candidates[list(system.elements)].to_numpy(), candidates.phase.to_numpy()
    _, radii, valence = common.element_properties(system.elements).T
    at_random = structure_stat.order_of(system, fractions, None)
    asked = fractions, fractions @ valence, common.one_hot(lattices, common.PHASES), at_random
    known = phase_gp.rows_of(data)
    model = phase_gp.fit(*known, data.targets)
    mean, half_width, became = phase_gp.predict_on_lattice(model, *asked)
    across = f"half width of its 90 % interval ({target.unit})", half_width
    likely, below = np.ones(len(mean)), ""
    looked_for = (data.table.n_components >= (4 if cfg.ALLOYS == "4+5" else 2)).to_numpy()
    if bounded:
        energies = database.set_index("structure")[TARGETS["Ef"].column][data.table.structure].to_numpy()
        some = np.isfinite(energies)
        of_energy = phase_gp.fit(*(one[some] for one in (*known, energies)))
        middle, half, _ = phase_gp.predict_on_lattice(of_energy, *asked)
        likely = norm.cdf(phase_gp.NORMAL_90 * (cfg.BOUND - middle) / half)
        across, below = ("predicted Ef (eV/atom)", middle), f" at an Ef below {cfg.BOUND:g} eV/atom"
        looked_for = looked_for & (energies < cfg.BOUND)
    best, deviation = best_known(sign * data.targets, looked_for), half_width / phase_gp.NORMAL_90
    alone = likely * improvement(sign * mean, deviation, best)
    short = np.argsort(-alone, kind="stable")[:SHORTLIST]
    joint = phase_gp.covariance_on_lattice(model, *(one[short] for one in asked))
    least = WORTH * np.sqrt(np.median(joint[1]))
    of_short = sign * mean[short], deviation[short], likely[short]
    rows, gains = pick_batch(*of_short, best, joint, cfg.NUMBER, least)

    picks = short[rows]
    seen = report.seen_in_training(data, data.table.index)
    remarks = predict.outside(seen, fractions[picks], lattices[picks])
    phases = np.array(common.INPUT_PHASES["found"])[became[picks].argmax(1)]
    table = pd.DataFrame({
        "number": np.arange(len(picks)) + 1, "formula": candidates.formula[picks], "lattice": lattices[picks],
        "mean": mean[picks], "half_width_90": half_width[picks], "improvement": gains, "unit": target.unit,
        "phase": phases, "p_phase": became[picks].max(1),
        **({"p_below_bound": likely[picks]} if bounded else {}),
        "outside": ["; ".join(one) for one in remarks],
    })  # fmt: skip
    sums = data.sha256 | ({"candidates": common.text_digest(cfg.CANDIDATES)} if cfg.CANDIDATES else {})
    with report.run_folder(cfg, f"suggested_{cfg.TARGET}_{cfg.GOAL}", sums) as folder:
        report.write_csv(table, folder / "picks.csv")
        title = f"{len(picks)} alloys to calculate next: {cfg.GOAL} {target.label}{below}"
        with report.picture(folder / "picks.png", (8, 4.8), title, data.source) as figure:
            up = f"predicted {target.label} ({target.unit})", mean
            plot_picks(figure, across, up, half_width, lattices, picks, sign * best, cfg.BOUND)
        if cfg.SQS_ATOMS:
            write_structures(cfg.SQS_ATOMS, fractions[picks] @ radii, table, folder)
    if len(picks):
        print(table.to_string(index=False, float_format="{:.4g}".format))
    none = "" if looked_for.any() else " (none is; this is the worst of all)"
    print(f"improvement: expected, on the best known{below}{none}, {sign * best:.4g} {target.unit}")
    if len(picks) < cfg.NUMBER:
        print(f"{len(picks)} of {cfg.NUMBER} are worth a calculation: no other is expected to improve by "
              f"{least:.2g} {target.unit}, {WORTH:.0%} of a label's noise")  # fmt: skip


if __name__ == "__main__":
    settings.run(main)
