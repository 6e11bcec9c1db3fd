"""What suggest.py would have saved: labels revealed one batch after the other, as it picks them or at random.

    python studies/replay.py --data-dir DATA --table-dir TABLES
    python studies/replay.py --targets Ef --splits 0-4 --step 20

For each split, a Gaussian process (on descriptors, lattice and order, as suggest.py's, but that this doubts
no row) learns all alloys of few elements and START of the training set's alloys of four and five, then STEP
more at a time: those that suggest.most_telling picks from the rest, whose labels it does not see, or the next
of a random order. The error is on the test set, which neither reads. Reads the tables of structure_stat.py
--cells lattice. Writes replay.csv and replay.png to RESULTS_DIR, and prints how many labels chance needs for
the same error.
"""

import os
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import main_committee
import processes
import settings
import structure_stat
import suggest

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results/replay"  # folder for what this script writes
TARGETS = "Ef Ms"  # Ef, Ms
SPLITS = "0-19"  # random splits into training and test set; each has a random order of its own
START = 10  # labels of alloys of four and five elements at first
STEP = 10  # labels revealed at a time
# --------------------------------------------------------------------------------------------------


def replay(data, number, start, step):
    """Rows of the tidy table of one split: the error after each batch, both ways."""
    split = common.split_rows(data.table, "4+5", 100, number)
    many = data.table.n_components.to_numpy()[split.train] >= 4
    few, pool = split.train[~many], np.random.default_rng(number).permutation(split.train[many])
    fractions = data.inputs[:, : len(data.system.elements)]
    clusters = data.clusters
    if clusters is not None:
        common.known_before(data, list(clusters))
    order, groups = (
        structure_stat.order_of(data.system, fractions, clusters),
        main_committee.groups_of(fractions),
    )
    rows = []
    for policy in ("suggested", "at random"):
        known, rest = list(pool[:start]), list(pool[start:])
        while True:
            train = np.concatenate([few, known]).astype(int)
            process = processes.fit_process(
                data.inputs[train], data.targets[train], groups[train], order[train]
            )
            mean, _ = processes.of_process(process, data.inputs[split.test], order[split.test])
            rmse = np.sqrt(np.mean((mean - data.targets[split.test]) ** 2))
            rows.append({"split": number, "policy": policy, "labels": len(known), "RMSE": rmse})
            if not rest:
                break
            picks = list(range(min(step, len(rest))))
            if policy == "suggested":
                covariance = processes.covariance(process, data.inputs[rest], order[rest])
                noise = processes.noise_in_units(process, groups[rest])
                picks, _ = suggest.most_telling(covariance, noise, len(picks))
            known += [rest[i] for i in picks]
            rest = [row for i, row in enumerate(rest) if i not in set(picks)]
    return pd.DataFrame(rows)


def labels_for(curve, error):
    """Labels at which a curve (labels -> error) first is at an error, between its points; nan if never."""
    below = np.flatnonzero(curve.to_numpy() <= error)
    if not len(below) or below[0] == 0:
        return np.nan if not len(below) else float(curve.index[0])
    last, first = curve.iloc[below[0] - 1], curve.iloc[below[0]]
    part = (last - error) / (last - first)
    return curve.index[below[0] - 1] + part * (curve.index[below[0]] - curve.index[below[0] - 1])


def summary(frame):
    """Lines that say what was saved: how many labels chance needs for the same error."""
    lines = []
    for target, group in frame.groupby("target"):
        curves = {
            policy: rows.groupby("labels").RMSE.agg(lambda r: np.sqrt((r**2).mean()))
            for policy, rows in group.groupby("policy")
        }
        labels = curves["suggested"].index
        for at in (labels[len(labels) // 4], labels[len(labels) // 2]):
            error = curves["suggested"][at]
            pairs = group[group.labels == at].pivot(index="split", columns="policy", values="RMSE")
            gain = pairs["at random"] - pairs["suggested"]
            needed = labels_for(curves["at random"], error)
            said = "no number of" if np.isnan(needed) else f"{needed:.0f}"
            unit, chance = common.TARGETS[target].unit, curves["at random"][at]
            lines.append(
                f"{target}: {at} suggested labels give RMSE {error:.4f} {unit}, {at} at random {chance:.4f}; "
                f"{said} random ones give the same; difference {gain.mean():.4f} ± "
                f"{gain.std() / len(gain) ** 0.5:.4f} (standard error, {len(gain)} splits)"
            )
    return lines


def plot(frame, source, path):
    """Error against number of labels, mean over splits with its standard error as band."""
    from matplotlib.figure import Figure

    targets = list(dict.fromkeys(frame.target))
    figure = Figure(figsize=(5 * len(targets), 4), layout="constrained")
    figure.suptitle(f"A Gaussian process as labels come in; data: {source}", fontsize="medium")
    for axes, target in zip(figure.subplots(1, len(targets), squeeze=False)[0], targets):
        for policy, colour in (("suggested", "tab:red"), ("at random", "tab:gray")):
            rows = frame[(frame.target == target) & (frame.policy == policy)]
            rows = rows.groupby("labels").RMSE.agg(["mean", "sem"])
            axes.plot(rows.index, rows["mean"], c=colour, label=policy)
            band = rows["mean"] - rows["sem"], rows["mean"] + rows["sem"]
            axes.fill_between(rows.index, *band, color=colour, alpha=0.2, lw=0)
        unit = common.TARGETS[target]
        axes.set(xlabel="labels of alloys of four and five elements", ylabel=f"test RMSE ({unit.unit})")
        axes.set_title(unit.label, fontsize="medium")
        axes.legend(title="labels chosen", fontsize="small")
    figure.savefig(path, dpi=150, format="png")


def main():
    chosen = settings.read(
        globals(),
        TARGETS=settings.words_of(*common.TARGETS),
        SPLITS=settings.numbers,
        START=settings.number(int, 2),
        STEP=settings.number(int, 1),
    )
    settings.output_folder(chosen.RESULTS_DIR)
    os.environ["TQDM_DISABLE"] = "1"  # the workers' bars; this one is the script's
    frames = []
    for target in chosen.TARGETS:
        data = common.load_data(
            chosen.DATA_DIR, chosen.TABLE_DIR, target, chosen.ELEMENTS, chosen.EXCLUDED_PAIRS, "lattice"
        )
        calls = [joblib.delayed(replay)(data, number, chosen.START, chosen.STEP) for number in chosen.SPLITS]
        found = joblib.Parallel(n_jobs=-1, return_as="generator")(calls)
        bar = tqdm(found, total=len(calls), desc=target, unit="split", disable=False)
        frames.append(pd.concat(bar).assign(target=target))
    frame = pd.concat(frames, ignore_index=True)
    with settings.whole_files(chosen.RESULTS_DIR) as new:
        settings.write_csv(frame, new("replay.csv"))
        plot(frame, data.source, new("replay.png"))
    print("\n".join(summary(frame)))
    print(f"written: {chosen.RESULTS_DIR}/replay.csv and .png")


if __name__ == "__main__":
    settings.run(main)
