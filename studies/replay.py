"""What beyond/suggest.py saves: known labels are hidden, and revealed as it picks them.

    python studies/replay.py
    python studies/replay.py --sets study --seeds 0-3 --jobs 1

Known at first are all alloys of two and three elements and FEW of four and more, or FEW_ALONE where there are
no others; candidates are the rest. Looked for are the highest and the lowest value, and the highest Ms of the
study's data at an Ef below BOUND, which is learned while picking: by expected improvement, as suggest.py
picks; by the greedy mean, which asks for no uncertainty; and at random. Counted are the calculations, one or
five at a time, until the best candidate and the five best are known. Writes to RESULTS_DIR inputs/ and parts/
(an interrupted run goes on), replay.csv (a row per search), replay.md, the table, and replay.png.
"""

import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import compare_methods
import other_alloys

import common
import report
import settings
from beyond import phase_gp, suggest

# ---- settings ------------------------------------------------------------------------------------
STUDY_DIR = "../shared/HEA_data"  # folder with the study's data
OTHER_DIR = "../shared/other_data"  # folder of Cu-Ni-Pd-Ag and of the quaternaries of 15 elements
RESULTS_DIR = "results/replay"  # folder for what this script writes
SETS = "study HEA_data CuNiPdAg quaternaries"  # which data to search
SEEDS = "0-19"  # each with other alloys known at first
# --------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
TITLES = {
    "study": "the study's, DFT", "HEA_data": "HEA_data, CHGNet", "CuNiPdAg": "Cu-Ni-Pd-Ag",
    "quaternaries": "15 elements",
}  # fmt: skip
POLICIES = {"improvement": "expected improvement", "greedy": "greedy mean", "random": "at random"}
FEW, FEW_ALONE, MOST = 5, 20, 500  # known at first; where there are no alloys of few elements; candidates
BOUND, WANTED, STEPS = 0.05, 5, (1, 5)  # eV/atom; of the best candidates; calculations at a time
FIT_AFTER = 8  # calculations; before that a label joins a model whose hyperparameters stay


class Case(NamedTuple):
    """A search's alloys, n rows, and which of them are known at first."""

    rows: tuple  # of phase_gp.rows_of, the phases among them known once calculated
    targets: list  # of (n,): the target and, with a bound, the formation energy
    many: np.ndarray  # (n,), whether of four and more elements: the best known is one of these
    known: np.ndarray  # row numbers
    candidates: np.ndarray  # row numbers


def case_of(data, seed):
    many = (data.table.n_components >= 4).to_numpy()
    pool = np.random.default_rng(seed).permutation(np.flatnonzero(many))
    few = FEW_ALONE if many.all() else FEW
    rows = np.concatenate([np.flatnonzero(~many), pool[:few]]), pool[few:][:MOST]
    return Case(phase_gp.rows_of(data), [data.targets], many, *rows)


def fitted(case, rows):
    """A model of each target."""
    return [phase_gp.fit(*(one[rows] for one in (*case.rows, target))) for target in case.targets]


def search(case, models, wanted, goal, bound, policy, step):
    """Rows in the order in which they are calculated until all wanted are, and when suggest.py would stop.

    models: of case.known, for each of the targets. wanted: rows that end the search; nothing else is read of
    an alloy that is not calculated yet. Second: number of calculations after which none was worth it; or nan.
    """
    sign, picked, rest, fresh, stopped = 1 if goal == "high" else -1, [], [*case.candidates], 0, np.nan
    while not {*wanted} <= {*picked}:
        calculated = np.array([*case.known, *picked])
        asked = [case.rows[k][rest] for k in (0, 1, 2, 4)]  # not what the cells became
        (mean, half_width, _), *energy = [phase_gp.predict_on_lattice(one, *asked) for one in models]
        of_many = calculated[case.many[calculated]]
        likely, looked_for = np.ones(len(rest)), of_many >= 0
        if bound is not None:
            likely = norm.cdf(phase_gp.NORMAL_90 * (bound - energy[0][0]) / energy[0][1])
            looked_for = case.targets[1][of_many] < bound
        if policy == "greedy":
            picks = np.lexsort([-sign * mean, likely < 0.5])[:step]
        else:
            best = suggest.best_known(sign * case.targets[0][of_many], looked_for)
            joint = phase_gp.covariance_on_lattice(models[0], *asked)
            deviation = half_width / phase_gp.NORMAL_90
            picks, gains = suggest.pick_batch(sign * mean, deviation, likely, best, joint, step, -np.inf)
            if np.isnan(stopped) and gains[0] < suggest.WORTH * np.sqrt(np.median(joint[1])):
                stopped = len(picked)
        new = [rest[i] for i in picks]
        picked, rest, fresh = picked + new, [row for row in rest if row not in new], fresh + len(new)
        if fresh >= FIT_AFTER:
            models, fresh = fitted(case, np.array([*case.known, *picked])), 0
        else:
            rows = [one[new] for one in case.rows]
            models = [phase_gp.with_rows(m, *rows, t[new]) for m, t in zip(models, case.targets)]
    return picked, stopped


def whole_batches(number, step, most):
    """Calculations done when so many are reported, a batch at a time."""
    return np.minimum(-(-number // step) * step, most)


def work(piece, data, energies):
    """All searches of a set, target and seed: rows of replay.csv. energies: (n,), for the bound; or None."""
    (name, target, seed), rows = piece, []
    case = case_of(data, seed)
    models, n = fitted(case, case.known), len(case.candidates)
    for goal, bound in [("high", None), ("low", None)] + [("high", BOUND)] * (energies is not None):
        found = case.candidates
        if bound is not None:
            models += fitted(case._replace(targets=[energies]), case.known)
            case, found = case._replace(targets=[data.targets, energies]), found[energies[found] < bound]
        order = np.argsort(data.targets[found])
        wanted = found[order[::-1] if goal == "high" else order][:WANTED]
        for policy, step in product(("improvement", "greedy"), STEPS):
            picked, stopped = search(case, models, wanted, goal, bound, policy, step)
            best = whole_batches(picked.index(wanted[0]) + 1, step, n)
            rows.append([name, target, goal, bound, seed, n, policy, step, best, len(picked), stopped])
    columns = ["set", "target", "goal", "bound", "seed", "candidates", "policy", "step", "best", "five"]
    return pd.DataFrame(rows, columns=[*columns, "stopped"])


def load(name, cfg):
    """The targets of a data set, {name: common.Data}, tables in RESULTS_DIR/inputs."""
    folder = cfg.RESULTS_DIR / "inputs" / name
    if name not in ("study", "HEA_data"):
        return {"Ef": other_alloys.load(name, cfg.OTHER_DIR, folder)}
    own = vars(cfg) | {"DATA_DIR": cfg.STUDY_DIR if name == "study" else cfg.DATA_DIR, "TABLE_DIR": folder}
    if not (folder / common.table_name("fcc", "lattice")).is_file():
        flags = ["--data-dir", own["DATA_DIR"], "--table-dir", folder, "--cells", "lattice"]
        subprocess.run([sys.executable, ROOT / "structure_stat.py", *flags], check=True)
    return {t: common.load_data(SimpleNamespace(**own | {"TARGET": t}), "lattice") for t in ("Ef", "Ms")}


# ---- table and picture ---------------------------------------------------------------------------


def with_random(frame):
    """The searches with 10,000 random orders beside each, and what was looked for in words."""
    keys, parts = ["set", "target", "goal", "bound", "step", "candidates"], [frame]
    for values, _ in frame.groupby(keys, dropna=False, sort=False):
        *_, step, n = values
        places = np.random.default_rng(0).random((10_000, n)).argsort(1)[:, :WANTED] + 1
        found = {"best": whole_batches(places[:, 0], step, n), "five": whole_batches(places.max(1), step, n)}
        parts.append(pd.DataFrame(found).assign(**dict(zip(keys, values)), policy="random"))
    frame = pd.concat(parts, ignore_index=True)
    below = np.where(frame.bound.notna(), f" at Ef < {BOUND:g}", "")
    return frame.assign(words=frame.set.map(TITLES) + ": " + frame.goal + "est " + frame.target + below)


def markdown(frame):
    """A row per thing looked for and step: calculations, median and quartiles over the seeds."""

    def quartiles(values):
        return "{1:.0f} ({0:.0f} to {2:.0f})".format(*np.quantile(values, [0.25, 0.5, 0.75]))

    keys, own = ["words", "candidates", "step"], frame[frame.policy == "improvement"]
    table = frame.groupby([*keys, "policy"], sort=False)[["best", "five"]].agg(quartiles).unstack()
    heads = ["looked for", "candidates", "at a time"]
    heads += [f"{one}, {POLICIES[by]}" for one, by in table] + ["stops before the best"]
    early = own.assign(early=own.stopped < own.best).groupby(keys).early  # nan: it went on
    table["early", ""] = early.sum().astype(str) + " of " + early.size().astype(str)
    return compare_methods.table(heads, table.reset_index().to_numpy())


def plot(figure, frame):
    """Calculations one at a time, median and quartiles, a line for each thing looked for."""
    words, panels = list(dict.fromkeys(frame.words)), figure.subplots(1, 2, sharey=True)
    for axes, what, title in zip(panels, ("best", "five"), ("the best is", "the five best are")):
        for shift, (policy, colour) in enumerate(zip(POLICIES, ("tab:red", "tab:blue", "0.6"))):
            values = frame[(frame.policy == policy) & (frame.step == 1)].groupby("words")[what]
            low, middle, high = (values.quantile(q)[words].to_numpy() for q in (0.25, 0.5, 0.75))
            style = {"fmt": "o", "ms": 4, "c": colour, "label": POLICIES[policy]}
            place = np.arange(len(words)) + 0.2 * (shift - 1)
            axes.errorbar(middle, place, xerr=[middle - low, high - middle], **style)
        axes.set(xscale="log", xlim=(0.8, 600), xlabel=f"calculations until {title} found")
        axes.set_xticks([1, 10, 100], ["1", "10", "100"])
        axes.set_yticks(range(len(words)), words, fontsize=8)
    panels[0].invert_yaxis()
    panels[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def main():
    kinds = {"STUDY_DIR": settings.folder, "OTHER_DIR": settings.folder, "SETS": [*TITLES]}
    cfg, calls = settings.read(globals(), **kinds), []
    cfg.SCHEDULER = None  # of compare_methods' workers
    settings.output_folder(cfg.RESULTS_DIR / "parts")
    for name in cfg.SETS:
        data = load(name, cfg)
        for (target, one), seed in product(data.items(), cfg.SEEDS):
            energies = data["Ef"].targets if (name, target) == ("study", "Ms") else None
            calls.append(([name, target, seed], one, energies))
    frame = compare_methods.finished(work, calls, None, cfg)
    report.write_csv(frame, cfg.RESULTS_DIR / "replay.csv")
    frame, text = with_random(frame), cfg.RESULTS_DIR / "replay.md"
    text.write_text(markdown(frame), "utf-8")
    note = f"one at a time; median and quartiles over {len(cfg.SEEDS)} choices of the alloys known at first"
    size = (10.5, 1.4 + 0.5 * frame.words.nunique())
    with report.picture(cfg.RESULTS_DIR / "replay.png", size, "Finding the best alloys", note) as figure:
        plot(figure, frame)
    print(f"{text.read_text('utf-8')}\nwritten to {cfg.RESULTS_DIR}: replay.csv, replay.md, replay.png")


if __name__ == "__main__":
    settings.run(main)
