"""How low an error can get on the study's data: what cells of one alloy, and neighbouring cells, differ by.

    python studies/floor.py --data-dir path/to/HEA_data

Two labels that should be equal and differ tell the noise, which no method can predict: the root of the mean
squared difference, over the square root of two. Of alloys of four and more elements: cells of one alloy, one
named fcc and one bcc, both fcc in all atoms; neighbours, of compositions within NEAR (half the sum of the
differences), whose atoms are mostly in the same phase; and neighbours on the same named lattice, the phase
unknown. Reads the tables of structure_stat.py; prints a table with 95 % intervals (chi squared).
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import chi2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import settings

# ---- settings ------------------------------------------------------------------------------------
NEAR = 0.035  # mole fraction
# --------------------------------------------------------------------------------------------------


def noise(first, second):
    """Noise of labels that should be equal, and its 95 % interval: three numbers."""
    n, squared = len(first), np.mean((first - second) ** 2) / 2
    return np.sqrt([squared, *(squared * n / chi2.ppf([0.975, 0.025], n))])


def main():
    cfg = settings.read(globals(), NEAR=(float, 0, 1))
    print("| target | pairs of | number | noise | 95 % interval |\n| --- | --- | --- | --- | --- |")
    for target, properties in common.TARGETS.items():
        cfg.TARGET = target
        data = common.load_data(cfg, "given")
        many = np.flatnonzero(data.table.n_components >= 4)
        fractions = data.inputs[many][:, : len(data.system.elements)]
        found, named = data.phase_fractions[many], (data.table.phase[many] == "fcc").to_numpy()
        a, b = np.triu_indices(len(many), 1)
        apart = np.abs(fractions[a] - fractions[b]).sum(1) / 2
        whole = (found[:, 0] == 1)[[a, b]].all(0)
        near, same = apart <= cfg.NEAR, found[a].argmax(1) == found[b].argmax(1)
        kinds = {
            "one alloy, both wholly fcc": (apart < 1e-6) & whole & (named[a] != named[b]),
            "neighbours in the same phase": near & same,
            "neighbours on the same named lattice": near & (named[a] == named[b]),
        }
        for kind, pairs in kinds.items():
            level, low, high = noise(*data.targets[many][[a[pairs], b[pairs]]])
            row = f"{target} ({properties.unit}) | {kind} | {pairs.sum()}"
            print(f"| {row} | {level:.4f} | {low:.4f} to {high:.4f} |")
    bcc = near & ~named[a] & ~named[b]
    print(f"\n{(~same)[bcc].mean():.0%} of {bcc.sum()} pairs of neighbours named bcc end in different phases")


if __name__ == "__main__":
    settings.run(main)
