"""The published reference figures beside what the scripts give on the study's data.

    python studies/reference.py --data-dir path/to/HEA_data

Runs structure_stat.py, main.py and main_transfer.py with their defaults, on the CPU, and prints a table in
Markdown: figure, the study's value, the published scripts' when run again (torch 2.13.0, Intel Xeon), this
run's, and its difference from the latter. TL's figures hang on rounding: the range over NETWORKS whose first
weights differ by one part in 10^7 says how many of their digits mean something. Draws the predictions of both
to RESULTS_DIR/parity.png. `make reference` calls it.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import compare_methods

import common
import report
import settings

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "reference_data/HEA_data"  # the study's HEA_data
TABLE_DIR = "reference_results"  # folder for the occupation tables
RESULTS_DIR = "reference_results"  # folder for what the scripts write, and for parity.png
DEVICE = "cpu"  # where networks train: the figures are those of the CPU
NETWORKS = 48  # of TL whose first weights differ
# --------------------------------------------------------------------------------------------------

COLOURS, MARKERS = {"train": "0.6", "test": "tab:red"}, {"fcc": "o", "bcc": "s"}
NUDGE = 1e-7  # of each first weight, relative, standard deviation
FIGURES = {  # split 0, seed 0, Ef: the study's own figure; the published scripts' run again
    ("scratch", "train_R2"): (0.9576119, 0.9576118), ("scratch", "train_loss"): (0.042388, 0.042388),
    ("scratch", "test_R2"): (0.9109526, 0.9109527), ("scratch", "test_loss"): (0.051504, 0.051504),
    ("tl", "train_R2"): (0.9501819, 0.9392294), ("tl", "train_loss"): (0.049818, 0.060771),
    ("tl", "test_R2"): (0.9466269, 0.9476033), ("tl", "test_loss"): (0.030870, 0.030306),
}  # fmt: skip


def nudged(make_networks, *arguments, **more):
    """What common.make_networks makes, each network's weights off by NUDGE in a way of its own."""
    networks, generators = make_networks(*arguments, **more)
    for i, network in enumerate(networks):
        generator = torch.Generator().manual_seed(i)
        for weight in network.parameters():
            weight.data *= 1 + NUDGE * torch.randn(weight.shape, generator=generator)
    return networks, generators


def r2_of_nudged(cfg):
    """Test R2 of TL, split 0, of networks of seed 0 whose first weights are nudged: (n_networks,)."""
    own = SimpleNamespace(**vars(cfg) | {"TARGET": "Ef", "SEEDS": [0] * cfg.NETWORKS})
    data = common.load_data(own, "given")
    split = common.split_rows(data.table, "4+5", 100, 0)
    piece = {"method": "tl", "target": "Ef", "alloys": "4+5", "rule": "reference"}
    with patch.object(common, "make_networks", partial(nudged, common.make_networks)):
        (predicted,) = compare_methods.predict_networks(piece, data, [split], own)
    return np.array([report.scores(data.targets[split.test], one[split.test])["R2"] for one in predicted])


def plot(runs, source, path):
    """True against predicted values, a panel for each method. runs: {method: its predictions.csv}."""
    both = pd.concat(runs)[["true", "mean"]].to_numpy()
    ends = both.min() - 0.01, both.max() + 0.01  # eV/atom
    note = f"{source}; split 0, seed 0, epoch chosen on the test set, as published"
    with report.picture(path, (8, 4.6), "Formation energy (eV/atom)", note) as figure:
        for axes, (method, frame) in zip(figure.subplots(1, 2, sharey=True), runs.items()):
            for (part, phase), rows in frame.groupby(["set", "phase"], sort=False):
                style = {"c": COLOURS[part], "marker": MARKERS[phase], "s": 14, "lw": 0, "alpha": 0.6}
                axes.scatter(rows.true, rows["mean"], label=f"{part}, {phase} ({len(rows)})", **style)
            r2 = report.scores(*frame.loc[frame.set == "test", ["true", "mean"]].to_numpy().T)["R2"]
            axes.plot(ends, ends, c="k", lw=0.8, zorder=0)
            axes.set(title=f"{report.METHODS[method]}: test R² {r2:.3f}", xlim=ends, ylim=ends)
            axes.set(xlabel="in the database", ylabel="predicted", aspect="equal")
            axes.legend(fontsize=8, loc="upper left")


def main():
    cfg = settings.read(globals(), NETWORKS=(int, 2, 1000))
    names = ("DATA_DIR", "TABLE_DIR", "RESULTS_DIR", "DEVICE")
    flags = [str(word) for name in names for word in (f"--{name.lower().replace('_', '-')}", vars(cfg)[name])]
    for script in ("structure_stat", "main", "main_transfer"):
        command = [sys.executable, Path(common.__file__).with_name(f"{script}.py"), *flags]
        if status := subprocess.run(command, check=False).returncode:
            sys.exit(status)

    found, runs = {}, {}
    for method in ("scratch", "tl"):  # the newest folder: one of other data may be there
        folders = cfg.RESULTS_DIR.glob(f"{method}_Ef_4+5_100_reference*")
        folder = max(folders, key=lambda path: path.stat().st_mtime)
        found[method] = pd.read_csv(folder / "metrics.csv").iloc[0]
        runs[method] = pd.read_csv(folder / "predictions.csv")
    print("\n| Ef, split 0, seed 0 | the study | run again | here | difference |\n|---|---|---|---|---|")
    for (method, name), (study, again) in FIGURES.items():
        values = study, again, found[method][name]
        words = " | ".join(f"{value:.6f}" for value in values)
        print(f"| {method} {name} | {words} | {values[2] - again:+.1e} |")
    plot(runs, common.data_name(cfg.DATA_DIR), cfg.RESULTS_DIR / "parity.png")

    r2, (study, _) = r2_of_nudged(cfg), FIGURES["tl", "test_R2"]
    print(
        f"\ntl test_R2 of {cfg.NETWORKS} networks whose first weights differ by one part in 10^7: "
        f"{r2.min():.4f} to {r2.max():.4f}, median {np.median(r2):.4f}; "
        f"{(r2 < study).mean():.0%} are below the study's {study:.4f}"
    )


if __name__ == "__main__":
    settings.run(main)
