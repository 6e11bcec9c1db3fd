"""How the committee's time and memory grow with the number of labels.

    python benchmarks/scale.py

Fits main_committee.py's processes to made-up alloys of 15 elements, fcc and bcc, each number in a process of
its own, and predicts 1000 others. Writes scale.csv and scale.png to RESULTS_DIR. Needs a POSIX system.
"""

import resource
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import main_committee
import settings
import structure_stat

# ---- settings ------------------------------------------------------------------------------------
RESULTS_DIR = Path(__file__).parent  # folder for what this script writes
SIZES = "300 600 1200 2400 5000"  # numbers of labels
# --------------------------------------------------------------------------------------------------

ELEMENTS = tuple(["Al", "Co", "Cr", "Cu", "Fe", "Hf", "Mn", "Mo", "Nb", "Ni", "Ta", "Ti", "V", "W", "Zr"])


def made_up(n):
    """Data of n alloys of four elements whose energy is pairwise in their mole fractions."""
    generator, fractions = np.random.default_rng(n), np.zeros((n, len(ELEMENTS)))
    for row in fractions:
        row[generator.choice(len(ELEMENTS), 4, replace=False)] = 1 + generator.multinomial(16, [0.25] * 4)
    fractions /= fractions.sum(1, keepdims=True)
    phases = np.array(common.PHASES)[np.sort(generator.integers(0, 2, n))]
    pairs = np.random.default_rng(0).normal(size=(len(ELEMENTS), len(ELEMENTS)))
    targets = np.einsum("ni,ij,nj->n", fractions, pairs, fractions) + 0.05 * (phases == "bcc")
    shares = common.one_hot(phases, common.PHASES)
    return SimpleNamespace(
        system=common.System(ELEMENTS, ()), phases=common.PHASES, clusters=None, targets=targets,
        shares=common.one_hot(phases, main_committee.FOUND),
        inputs=common.network_inputs(fractions, shares, ELEMENTS),
    )  # fmt: skip


def measure(n):
    """Seconds to fit and to predict, the most memory held in MB, and the error, as a line of CSV."""
    data, new = made_up(n), made_up(1000)
    before = time.time()
    model = main_committee.fit_split(data, np.arange(n), [0], "4+5", 0, False, None, None, None)
    fitted = time.time()
    descriptors, lattice = np.split(new.inputs, [-2], axis=1)
    order = structure_stat.order_of(new.system, descriptors[:, : len(ELEMENTS)], None)
    mean, _, _ = main_committee.predict(model, descriptors, lattice, order)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    rmse = np.sqrt(np.mean((mean[0] - new.targets) ** 2))
    print(f"{n},{fitted - before:.1f},{time.time() - fitted:.2f},{memory:.0f},{rmse:.4f}")


def plot(frame, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle("The committee's processes, made-up alloys of 15 elements, one thread", fontsize="medium")
    panels = zip(figure.subplots(1, 2), (["fit (s)", "predict 1000 (s)"], ["memory (MB)"]))
    for axes, names in panels:
        for name in names:
            axes.plot(frame.labels, frame[name], marker="o", label=name)
        axes.set(xscale="log", yscale="log" if len(names) > 1 else "linear")
        axes.set(
            ylim=None if len(names) > 1 else (0, None),
            xlabel="labels",
            xticks=frame.labels,
            xticklabels=frame.labels,
        )
        axes.minorticks_off()
        axes.legend()
    figure.savefig(path, dpi=150, format="png")


def main():
    chosen = settings.read(globals(), SIZES=settings.numbers)
    settings.output_folder(chosen.RESULTS_DIR)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import scale; scale.measure"
    lines = []
    for n in chosen.SIZES:
        command = [sys.executable, "-c", f"{code}({n})"]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        lines.append(ran.stdout)
        print(ran.stdout, end="", flush=True)
    columns = ["labels", "fit (s)", "predict 1000 (s)", "memory (MB)", "RMSE"]
    frame = pd.read_csv(StringIO("".join(lines)), names=columns)
    with settings.whole_files(chosen.RESULTS_DIR) as new:
        settings.write_csv(frame, new("scale.csv"))
        plot(frame, new("scale.png"))


if __name__ == "__main__":
    settings.run(main)
