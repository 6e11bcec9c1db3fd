"""A picture of a predicted property over a ternary section of composition space, phase beside phase.

    python main.py --seeds 0-7
    python studies/map_ternary.py
    python studies/map_ternary.py --checkpoint results/tl_Ms_4+5_100_reference.pt --corners Fe Ni Cr
    python studies/map_ternary.py --corners FeNi CoCr Mn --rest Pd --share 0

Reads a checkpoint of one of the main scripts. Each corner is an element or a formula of several (FeNi:
equal parts); REST takes a constant SHARE of each alloy. Draws the mean of the checkpoint's networks for
each phase that it was trained on, and the second less the first. Where the difference is within the
networks' own spread it is dotted: there they do not settle which phase has the lower value. What lies
outside of what was trained on is hatched.

Between three elements a formation energy also gives the distance to the convex hull, at 0 K, of the
elements and all alloys of the section, each in its phase of lowest energy. Writes the picture and the
settings it is of to RESULTS_DIR; that of another checkpoint of the same name stays.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import settings  # first: from here on Ctrl-C leaves no traceback

# isort: split
import numpy as np

import common
import prediction

# ---- settings ------------------------------------------------------------------------------------
CHECKPOINT = "results/scratch_Ef_4+5_100_reference.pt"  # networks of a run of main.py or main_transfer.py
CORNERS = "FeNi CoCr Mn"  # three formulas: the lower left, lower right and upper corner
REST = None  # formula of what all alloys hold besides; None: nothing
SHARE = 0.4  # its mole fraction, 0 to 0.99
RESULTS_DIR = "results"  # folder for the picture
# --------------------------------------------------------------------------------------------------

STEPS = 60  # from corner to corner; the hull of its 1891 alloys takes half a second
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
    axes.set(aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.17, 1.0))
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
    # Long formulas of the lower corners grow towards one another, not into the next map.
    for name, x, y, side in zip(names, (-0.1, 1.1, 0.5), (-0.13, -0.13, 0.96), ("left", "right", "center")):
        axes.text(x, y, name, ha=side, va="center", fontweight="bold")


def above_hull(corners, fractions, energies, elements):
    """Distance of alloys to the convex hull of them and the elements, (n,), in the unit of the energies.

    energies: of formation, for an atom, of the most stable phase, (n,).
    """
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    distances, references = np.zeros(len(fractions)), [PDEntry(Composition(one), 0) for one in corners]
    mixed = np.flatnonzero((fractions > 0).sum(1) > 1)  # pure ones are the references, whatever is predicted
    counts = np.rint(fractions[mixed] * STEPS).astype(int)
    entries = [
        PDEntry(Composition(dict(zip(elements, count))), energy * STEPS)
        for count, energy in zip(counts.tolist(), energies[mixed])
    ]
    diagram = PhaseDiagram([*references, *entries])
    distances[mixed] = [diagram.get_e_above_hull(entry) for entry in entries]
    return distances


def mark(axes, triangles, where, hatches, colour):
    """Hatch the alloys for which `where` (n,) is above 0."""
    if where.max() > 0:
        marked = axes.tricontourf(triangles, where, [0, where.max() + 1], colors="none", hatches=[hatches])
        marked.set(edgecolor=colour, linewidth=0)


def draw(title, corners, shares, predicted, outside, distances, target, path):
    """The maps; predicted: {phase: (n_networks, n)}; outside: {phase: (n,)}; distances: (n,) or None."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator
    from matplotlib.tri import Triangulation

    mean = {phase: values.mean(0) for phase, values in predicted.items()}
    (first, second), label = list(predicted)[:2], f"{target.label} ({target.unit})"
    difference = predicted[second] - predicted[first]  # (n_networks, n)
    every, largest = np.concatenate(list(mean.values())), np.abs(difference.mean(0)).max()
    levels = MaxNLocator(LEVELS).tick_values(every.min(), every.max())
    around_zero = MaxNLocator(LEVELS, symmetric=True).tick_values(-largest, largest)

    n_phases, n_panels = len(mean), len(mean) + 1 + (distances is not None)
    figure = Figure(figsize=(4 * n_panels, 5.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)  # between title and maps
    axes = figure.subplots(1, n_panels)
    triangles = Triangulation(*(shares @ PLACE).T)
    below = {"location": "bottom", "aspect": 35, "pad": 0.03, "shrink": 0.9}
    for ax, phase in zip(axes, mean):
        filled = ax.tricontourf(triangles, mean[phase], levels, cmap="viridis")
        ax.set_title(phase, fontsize="x-large")
    figure.colorbar(filled, ax=axes[:n_phases], label=label, **below | {"shrink": 1 / n_phases})
    middle = axes[n_phases]
    filled = middle.tricontourf(triangles, difference.mean(0), around_zero, cmap="RdBu_r")
    figure.colorbar(filled, ax=middle, label=f"difference in {label}", **below)
    middle.set_title(f"{second} − {first}", fontsize="x-large")
    said = []
    if np.ptp(np.sign(difference.mean(0))) == 2:
        middle.tricontour(triangles, difference.mean(0), [0], colors="k", linewidths=1.2)
        said.append(Line2D([], [], color="k", lw=1.2, label="no difference"))
    if len(difference) > 1 and (within := difference.std(0) - np.abs(difference.mean(0))).max() > 0:
        mark(middle, triangles, within, "....", "k")
        said.append(Patch(fill=False, hatch="....", label="difference within the networks' spread"))
    either = outside[first] | outside[second]
    hatched = [*outside.values(), either]
    if distances is not None:
        levels = MaxNLocator(LEVELS).tick_values(0, 1000 * distances.max())
        filled = axes[-1].tricontourf(triangles, 1000 * distances, levels, cmap="magma_r")
        figure.colorbar(filled, ax=axes[-1], label="above the hull (meV/atom)", **below)
        axes[-1].set_title("distance to the convex hull", fontsize="x-large")
        hatched.append(np.any(list(outside.values()), axis=0))
    for ax, out in zip(axes, hatched):
        mark(ax, triangles, out - 0.5, "////", "0.4")
        draw_frame(ax, corners)
    if np.any(hatched):
        said.append(Patch(fill=False, hatch="////", edgecolor="0.4", label="outside of what was trained on"))
    if said:
        figure.legend(handles=said, loc="outside lower center", ncols=len(said), frameon=False)
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
    elements, target = saved["elements"], common.TARGETS[saved["target"]]
    shares, fractions = section(chosen.CORNERS, chosen.REST, chosen.SHARE, elements)
    amounts = [{e: x for e, x in zip(elements, row) if x > 0} for row in fractions]
    predicted, outside = {}, {}
    for phase in saved["phases"]:
        names = [phase] * len(fractions)
        predicted[phase], _ = predict(fractions, names)  # (n_networks, n)
        outside[phase] = np.array(list(map(bool, prediction.outside(saved, fractions, names, amounts))))
        low, high = predicted[phase].mean(0).min(), predicted[phase].mean(0).max()
        several = len(predicted[phase]) > 1
        spread = f", spread of the networks {predicted[phase].std(0).mean():.4f}" if several else ""
        print(f"{phase}: {low:.4f} to {high:.4f} {target.unit}{spread}; ", end="")
        print(f"{outside[phase].mean():.0%} of the alloys lie outside of what was trained on")
    distances = None
    pure = common.mole_fractions(chosen.CORNERS, elements).max(1) == 1
    if saved["target"] == "Ef" and pure.all() and not chosen.REST:
        lowest = np.min([values.mean(0) for values in predicted.values()], axis=0)
        distances = above_hull(chosen.CORNERS, fractions, lowest, elements)
        print(f"distance to the convex hull: up to {1000 * distances.max():.1f} meV/atom")
    elif saved["target"] == "Ef":
        print("no convex hull is drawn: it needs three elements as corners, and no REST")
    rest = f", all with {chosen.SHARE:.0%} {chosen.REST}" if chosen.REST else ""
    n = len(predicted[saved["phases"][0]])
    method = common.METHODS[saved["method"]] + (f", mean of {n} networks" if n > 1 else "")
    title = (
        f"{target.label}, {' – '.join(chosen.CORNERS)}{rest}, phase as {saved['phase_input']}\n"
        f"{method}; data: {saved['data']}"
    )
    name = f"map_{Path(chosen.CHECKPOINT).stem}_{'_'.join(chosen.CORNERS)}"
    name += f"_{chosen.SHARE:g}{chosen.REST}" if chosen.REST else ""
    identity = settings.identity(chosen, {"checkpoint": common.sha256(chosen.CHECKPOINT)})
    of_run = chosen.RESULTS_DIR, name, "{}_settings.json", identity
    with settings.files_of_run(*of_run) as (new, name):
        new(f"{name}_settings.json").write_text(identity, encoding="utf-8")
        draw(title, chosen.CORNERS, shares, predicted, outside, distances, target, new(f"{name}.png"))
    print(f"written: {chosen.RESULTS_DIR / name}.png, _settings.json")


if __name__ == "__main__":
    settings.run(main)
