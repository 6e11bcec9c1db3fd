"""A picture of a predicted property over a ternary section of composition space, phase beside phase.

    python beyond/map_ternary.py --checkpoint results/tl_Ms_4+5_100_reference/model.pt --corners Fe Ni Cr

Each corner is an element or a formula of several (FeNi: equal parts); REST takes a constant SHARE of each
alloy. Draws what the checkpoint predicts for each phase, and the second phase less the first. To the Gaussian
process of beyond/phase_gp.py, and to networks told so, a phase is what the cell is in; to others it is the
lattice in its name, which many cells have left. The difference is dotted where its 90 % interval holds zero
(of several networks: twice their spread), all maps are hatched outside of what was trained on. Between three
elements a formation energy also gives the distance to the convex hull, at 0 K, of the elements and all alloys
of the section, each in its phase of lowest energy. Writes map.png and map.csv to a folder in RESULTS_DIR.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import report
import settings
from beyond import predict
from settings import InputError

# ---- settings ------------------------------------------------------------------------------------
CHECKPOINT = "results/scratch_Ef_4+5_100_reference/model.pt"  # of a run of any of the methods
CORNERS = "FeNi CoCr Mn"  # three formulas: the lower left, lower right and upper corner
REST = None  # formula of what all alloys hold besides; None: nothing
SHARE = 0.4  # its mole fraction, 0 to 0.99
# --------------------------------------------------------------------------------------------------

STEPS = 60  # from corner to corner; the hull of its 1891 alloys takes half a second
LEVELS = 14  # colours at most
HULL = "above the hull (meV/atom)"
PLACE = np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])  # of the corners in the picture


def one_formula(text):
    if not common.is_formula(text):
        raise ValueError("a formula, such as FeNi")
    return text


def three_formulas(text):
    words = text.replace(",", " ").split()
    if len({*words}) != 3 or len(words) != 3 or not all(map(common.is_formula, words)):
        raise ValueError("three formulas, such as FeNi CoCr Mn")
    return words


def section(corners, rest, share, elements):
    """Shares of the corners (n, 3) and mole fractions of the alloys (n, n_elements)."""
    formulas = [*corners, *([rest] if rest else [])]
    if foreign := {e for one in formulas for e in common.composition(one)} - {*elements}:
        expected = f"CORNERS, REST: expected elements of the checkpoint, {', '.join(elements)}"
        raise InputError(f"{expected}; got {', '.join(sorted(foreign))}")
    steps = [(i, j, STEPS - i - j) for i in range(STEPS + 1) for j in range(STEPS + 1 - i)]
    shares, ends = np.array(steps) / STEPS, common.mole_fractions(formulas, elements)
    fractions = shares @ ends[:3]
    return shares, (1 - share) * fractions + share * ends[3] if rest else fractions


def maps(predict_alloys, fractions, phases):
    """A frame, a column for each phase; difference, the second less the first; half_width, of its interval.

    Of a method that says so, of the phase an alloy is in, and the 90 % interval. Of networks the mean, and
    twice the spread of their differences, nan of one network.
    """
    difference, n = f"{phases[1]} - {phases[0]}", len(fractions)
    predicted, said = predict_alloys(fractions, [phases[0]] * n, None)
    if difference in said:
        means = {phase: said[f"mean_{phase}"] for phase in phases}
        more = {"difference": said[difference], "half_width": said[f"half_width_90 {difference}"]}
        return pd.DataFrame(means | more)
    rest = [predict_alloys(fractions, [phase] * n, None)[0] for phase in phases[1:]]  # (n_members, n) each
    means, apart = [predicted.mean(0), *(one.mean(0) for one in rest)], rest[0] - predicted
    more = {"difference": apart.mean(0), "half_width": 2 * report.spread(apart)}
    return pd.DataFrame(dict(zip(phases, means)) | more)


def above_hull(corners, fractions, energies, elements):
    """Distance of alloys to the convex hull of them and the elements, (n,), in the unit of the energies.

    corners: three elements. energies: of formation, for an atom, of the most stable phase, (n,).
    """
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    distances, references = np.zeros(len(fractions)), [PDEntry(Composition(one), 0) for one in corners]
    mixed = (fractions > 0).sum(1) > 1  # pure ones are the references, whatever is predicted
    counts = np.rint(fractions[mixed] * STEPS).tolist()
    alloys = [Composition(dict(zip(elements, count))) for count in counts]
    entries = [PDEntry(alloy, energy * STEPS) for alloy, energy in zip(alloys, energies[mixed])]
    diagram = PhaseDiagram([*references, *entries])
    distances[mixed] = [diagram.get_e_above_hull(entry) for entry in entries]
    return distances


def draw_frame(axes, names, title):
    """The triangle, a grid at every fifth, and the corners' names."""
    axes.set(aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.17, 1.0), title=title)
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


def draw(figure, table, corners, phases, target):
    """The maps of the table that `main` writes on a figure of matplotlib, each with its colours below."""
    from matplotlib import lines, ticker, tri

    triangles = tri.Triangulation(*(table[corners].to_numpy() @ PLACE).T)
    label, every = f"{target.label} ({target.unit})", table[phases].to_numpy()
    name, difference, most = f"{phases[1]} − {phases[0]}", table.difference, table.difference.abs().max()
    panels = [(table[phase], phase, label, "viridis", every.min(), every.max()) for phase in phases]
    panels.append((difference, name, f"difference in {label}", "RdBu_r", -most, most))
    if HULL in table:
        panels.append((table[HULL], "distance to the convex hull", HULL, "magma_r", 0, table[HULL].max()))
    all_axes = figure.subplots(1, len(panels))
    for axes, (values, title, unit, colours, low, high) in zip(all_axes, panels):
        levels = ticker.MaxNLocator(LEVELS).tick_values(low, high)
        filled = axes.tricontourf(triangles, values, levels, cmap=colours)
        below = {"location": "bottom", "aspect": 25, "pad": 0.03, "ticks": ticker.MaxNLocator(5)}
        figure.colorbar(filled, ax=axes, label=unit, **below)
        said = hatch(axes, triangles, table.outside - 0.5, "////", "0.4", "outside of what was trained on")
        draw_frame(axes, corners, title)
    axes, open_ = all_axes[len(phases)], "the interval of the difference holds zero"
    said += hatch(axes, triangles, table.half_width - difference.abs(), "....", "k", open_)
    if difference.min() < 0 < difference.max():
        axes.tricontour(triangles, difference, [0], colors="k", linewidths=1.2)
        said.append(lines.Line2D([], [], color="k", lw=1.2, label="no difference"))
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.9))
    figure.legend(handles=said, loc="upper center", bbox_to_anchor=(0.5, 0.95), ncols=3, frameon=False)


def hatch(axes, triangles, where, pattern, colour, label):
    """Hatch the alloys for which `where`, (n,), is above 0: handles for the legend, one or none."""
    from matplotlib.patches import Patch

    if not where.max() > 0:  # or it is nan
        return []
    marked = axes.tricontourf(triangles, where, [0, where.max() + 1], colors="none", hatches=[pattern])
    marked.set(edgecolor=colour, linewidth=0)
    return [Patch(fill=False, hatch=pattern, edgecolor=colour, label=label)]


def main():
    kinds = {"CHECKPOINT": settings.folder, "CORNERS": three_formulas, "SHARE": (float, 0, 0.99)}
    cfg = settings.read(globals(), REST=(None, one_formula), **kinds)
    settings.output_folder(cfg.RESULTS_DIR)
    predict_alloys, saved = predict.load_checkpoint(cfg.CHECKPOINT)
    phases, target, elements = saved["phases"], common.TARGETS[saved["target"]], saved["system"].elements
    if len(phases) < 2:
        raise InputError(f"{cfg.CHECKPOINT}: expected two phases; it has seen {phases[0]} alone")
    shares, fractions = section(cfg.CORNERS, cfg.REST, cfg.SHARE, elements)
    table = pd.DataFrame(shares, columns=cfg.CORNERS).join(maps(predict_alloys, fractions, phases))
    table["outside"] = [*map(bool, predict.outside(saved, fractions, [phases[0]] * len(fractions)))]
    for name in (*phases, "difference"):
        print(f"{name}: {table[name].min():.4f} to {table[name].max():.4f} {target.unit}")
    print(f"{table.outside.mean():.0%} of the alloys lie outside of what was trained on")
    if saved["target"] == "Ef" and not cfg.REST and {*cfg.CORNERS} <= {*elements}:
        table[HULL] = 1000 * above_hull(cfg.CORNERS, fractions, table[phases].min(axis=1), elements)
        print(f"distance to the convex hull: up to {table[HULL].max():.1f} meV/atom")
    elif saved["target"] == "Ef":
        print("no convex hull is drawn: it needs three elements as corners, and no REST")
    rest = f" with {cfg.SHARE:.0%} {cfg.REST}" if cfg.REST else ""
    title = f"{target.label}, {' – '.join(cfg.CORNERS)}{rest}"
    is_in = saved["method"] == "phase_gp" or saved["phase_input"] == "found"
    note = f"{saved['title']}; {'phase of the cell' if is_in else 'lattice in the name'}; {saved['data']}"
    folder = "_".join(["map", saved["run"], *cfg.CORNERS, *([cfg.REST] if cfg.REST else [])])
    with report.run_folder(cfg, folder, {"checkpoint": common.text_digest(saved["path"])}) as out:
        report.write_csv(table, out / "map.csv")
        size = 3.4 * (len(phases) + 1 + (HULL in table)), 4.6
        with report.picture(out / "map.png", size, title, note) as figure:
            draw(figure, table, cfg.CORNERS, phases, target)


if __name__ == "__main__":
    settings.run(main)
