"""A picture of a predicted property over a ternary section of composition space, fcc beside bcc.

    python main.py --seeds 0-7
    python studies/map_ternary.py
    python studies/map_ternary.py --checkpoint results/tl_Ms_4+5_100_reference.pt --corners Fe Ni Cr
    python studies/map_ternary.py --corners FeNi CoCr Mn --rest Pd --share 0

Reads a checkpoint of main.py or main_transfer.py. Each corner is an element or a formula of several
(FeNi: equal parts); REST takes a constant SHARE of each alloy. Draws the mean of the checkpoint's
networks for fcc, for bcc, and bcc less fcc. Where the difference is within the networks' own spread
it is hatched: there they do not settle which phase has the lower value.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import prediction
import settings

# ---- settings ------------------------------------------------------------------------------------
CHECKPOINT = "results/scratch_Ef_4+5_100_reference.pt"  # networks of a run of main.py or main_transfer.py
CORNERS = "FeNi CoCr Mn"  # three formulas: the lower left, lower right and upper corner
REST = None  # formula of what all alloys hold besides; None: nothing
SHARE = 0.4  # its mole fraction, 0 to 0.99
RESULTS_DIR = "results"  # folder for the picture
# --------------------------------------------------------------------------------------------------

STEPS = 60  # from corner to corner
LEVELS = 14  # colours at most
PLACE = np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])  # of the corners in the picture


def formula(text):
    if not common.is_formula(text):
        raise ValueError("a formula, such as FeNi")
    return text


def three_formulas(text):
    words = text.replace(",", " ").split()
    if len(words) != 3 or not all(map(common.is_formula, words)):
        raise ValueError("three formulas, such as FeNi CoCr Mn")
    return words


def section(corners, rest, share, elements):
    """Shares of the corners (n, 3) and mole fractions of the alloys (n, n_elements)."""
    from pymatgen.core import Composition

    formulas = [*corners, *([rest] if rest else [])]
    foreign = {str(e) for one in formulas for e in Composition(one)} - set(elements)
    if foreign:
        raise settings.InputError(
            f"CORNERS, REST: expected elements of the checkpoint, {', '.join(elements)}; "
            f"got {', '.join(sorted(foreign))}"
        )
    ends = common.mole_fractions(formulas, elements)
    steps = [(i, j, STEPS - i - j) for i in range(STEPS + 1) for j in range(STEPS + 1 - i)]
    shares = np.array(steps) / STEPS
    fractions = shares @ ends[:3]
    if rest:
        fractions = (1 - share) * fractions + share * ends[3]
    return shares, fractions


def draw_frame(axes, names):
    """The triangle, a grid at every fifth, and the corners' names."""
    axes.set(aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.13, 1.0))
    axes.axis("off")
    axes.plot(*PLACE[[0, 1, 2, 0]].T, c="k", lw=1, clip_on=False)
    for tick in (0.2, 0.4, 0.6, 0.8):
        for corner in range(3):
            ends = np.zeros((2, 3))
            ends[:, corner] = tick
            ends[0, (corner + 1) % 3] = ends[1, (corner + 2) % 3] = 1 - tick
            axes.plot(*(ends @ PLACE).T, c="k", lw=0.4, alpha=0.25)
            away = 0.035 * (PLACE[(corner + 1) % 3] + PLACE[corner] - 2 * PLACE[(corner + 2) % 3])
            axes.text(*(ends[0] @ PLACE + away), f"{tick:.0%}", fontsize=7, ha="center", va="center")
    for place, name in zip(PLACE, names):
        x, y = place + (place - PLACE.mean(0)) * 0.16
        axes.text(x, y, name, ha="center", va="center", fontweight="bold")


def draw(title, corners, shares, predicted, label, path):
    """The three maps; predicted: {phase: (n_networks, n)}."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from matplotlib.tri import Triangulation

    mean = {phase: values.mean(0) for phase, values in predicted.items()}
    difference = predicted["bcc"] - predicted["fcc"]  # (n_networks, n)
    both, largest = np.concatenate(list(mean.values())), np.abs(difference.mean(0)).max()
    levels = MaxNLocator(LEVELS).tick_values(both.min(), both.max())
    around_zero = MaxNLocator(LEVELS, symmetric=True).tick_values(-largest, largest)

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    axes = figure.subplots(1, 3)
    triangles = Triangulation(*(shares @ PLACE).T)
    below = {"location": "bottom", "aspect": 35, "pad": 0.03}
    for ax, phase in zip(axes, common.PHASES):
        filled = ax.tricontourf(triangles, mean[phase], levels, cmap="viridis")
        ax.set_title(phase, loc="left", fontsize="x-large")
    figure.colorbar(filled, ax=axes[:2], label=label, shrink=0.5, **below)
    filled = axes[2].tricontourf(triangles, difference.mean(0), around_zero, cmap="RdBu_r")
    figure.colorbar(filled, ax=axes[2], label=f"difference in {label}", **below)
    axes[2].set_title("bcc − fcc", loc="left", fontsize="x-large")
    axes[2].set_title("line: no difference\ndots: within the spread", loc="right", fontsize="small")
    if np.ptp(np.sign(difference.mean(0))) == 2:
        axes[2].tricontour(triangles, difference.mean(0), [0], colors="k", linewidths=1.2)
    if len(difference) > 1:
        unsettled = np.abs(difference.mean(0)) - difference.std(0)
        if unsettled.min() < 0:
            axes[2].tricontourf(
                triangles, unsettled, [unsettled.min() - 1, 0], colors="none", hatches=["...."]
            )
    for ax in axes:
        draw_frame(ax, corners)
    figure.suptitle(title)
    figure.savefig(path, dpi=150, format="png")


def main():
    chosen = settings.read(
        globals(),
        CHECKPOINT=Path,
        CORNERS=three_formulas,
        REST=settings.optional(formula),
        SHARE=settings.number(float, 0, 0.99),
    )
    predict, saved = prediction.load_checkpoint(chosen.CHECKPOINT)
    if len(saved["phases"]) < 2:
        raise settings.InputError(
            f"{chosen.CHECKPOINT}: expected one of fcc and bcc; it has seen {saved['phases'][0]} alone"
        )
    settings.output_folder(chosen.RESULTS_DIR)
    shares, fractions = section(chosen.CORNERS, chosen.REST, chosen.SHARE, saved["elements"])
    predicted = {}
    for phase in common.PHASES:
        predicted[phase], _ = predict(fractions, [phase] * len(fractions))  # (n_networks, n)
        low, high = predicted[phase].mean(0).min(), predicted[phase].mean(0).max()
        spread = predicted[phase].std(0).mean()
        print(f"{phase}: {low:.4f} to {high:.4f}, spread of the networks {spread:.4f}")
    target = common.TARGETS[saved["target"]]
    rest = f", all with {chosen.SHARE:.0%} {chosen.REST}" if chosen.REST else ""
    title = (
        f"{' – '.join(chosen.CORNERS)}{rest}: {common.METHODS[saved['method']]}, "
        f"mean of {len(predicted['fcc'])} networks"
    )
    name = f"map_{Path(chosen.CHECKPOINT).stem}_{'_'.join(chosen.CORNERS)}"
    name += f"_{chosen.SHARE:g}{chosen.REST}.png" if chosen.REST else ".png"
    with settings.whole_files(chosen.RESULTS_DIR) as new:
        draw(title, chosen.CORNERS, shares, predicted, f"{target.label} ({target.unit})", new(name))
    print(f"written: {chosen.RESULTS_DIR / name}")


if __name__ == "__main__":
    settings.run(main)
