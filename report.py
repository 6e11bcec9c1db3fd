"""What a run that trains leaves behind.

Nothing to run here. Data and splits of a run read, figures printed, tables, plot and checkpoint written.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

import common
import settings
from common import METHODS, TARGETS
from prediction import predict_for, save_checkpoint, spread
from settings import InputError

HOW = {"reference": "selected on the test set", "validation": "selected on held-out training alloys"}
# In pictures: the alloys that are predicted, and of which of them a percentage is kept for training.
ALLOYS_IN_WORDS = {
    "4+5": ("alloys of four and more elements", "them"),
    "Total": ("alloys of two and more elements", "those of four and more"),
}
MOST_RUNS = 16  # printed one by one; all are in the files


class Outcome(NamedTuple):
    """What a method has found, for the report."""

    predicted: np.ndarray  # (n_splits, n_seeds, n) for all alloys of the data, in the target's unit
    scales: np.ndarray  # (n_splits,), standard deviation by which losses are standardised
    epochs: np.ndarray  # (n_splits * n_seeds,)
    losses: list  # rows (replica, epoch, loss in training, loss on the watched set)
    columns: dict  # what else it says of each alloy: {name: (n_splits, n)}
    state: dict  # of tensors, numbers and lists: what a checkpoint needs to predict again
    module: str  # that has `predictor`, which reads the state
    pictures: tuple = ()  # of (ending of the name, function of a path)


def of_networks(trained, data):
    """Outcome of common.Trained."""
    scales = np.array([one.target.scale_.item() for one in trained.scalers])
    predicted = common.predict(trained, data.inputs)
    return Outcome(predicted, scales, trained.epochs, trained.losses, {}, common.state_of(trained), "common")


def load(chosen, high_only=False, cells="given"):
    """Data and splits that the settings ask for. InputError where a split leaves nothing to learn from.

    cells: what the data's clusters are counted on.
    """
    data = common.load_data(
        chosen.DATA_DIR, chosen.TABLE_DIR, chosen.TARGET, chosen.ELEMENTS, chosen.EXCLUDED_PAIRS,
        cells, chosen.PHASE_INPUT,
    )  # fmt: skip
    splits = [
        common.split_rows(data.table, chosen.ALLOYS, chosen.PERCENT, number, high_only)
        for number in chosen.SPLITS
    ]
    for number, train, _ in splits:
        for phase in common.phases_of(data.table):
            if not (data.table.phase.to_numpy()[train] == phase).any():
                raise InputError(
                    f"split {number}: PERCENT {chosen.PERCENT:g} leaves no {phase} training alloys"
                )
        refuse_constant(data, train, f"split {number}: ")
    return data, splits


def refuse_constant(data, rows, where):
    """InputError where all the rows have one and the same value."""
    if np.ptp(data.targets[rows]) == 0:
        value = f"{data.targets[rows][0]:g} in all {len(rows)} training alloys"
        raise InputError(f"{where}{data.target} is {value}, so that there is nothing to learn")


def scores(true, predicted, target_scale=1.0):
    """R2, loss (mean squared error in standardised units), RMSE and MAE in the target's units."""
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    squared = mean_squared_error(true, predicted)
    return {
        "R2": r2_score(true, predicted) if len(true) > 1 else np.nan,
        "loss": squared / target_scale**2,
        "RMSE": squared**0.5,
        "MAE": mean_absolute_error(true, predicted),
    }


def parts_of(split):
    """[(name, rows)] of training and test set; of the split 'all' there is but the first."""
    return [(name, rows) for name, rows in (("train", split.train), ("test", split.test)) if len(rows)]


def split_scores(data, split, predicted, scale):
    """`scores` of training and test set as one row, train_R2 and so on; predicted: (n,)."""
    return {
        f"{part}_{name}": value
        for part, rows in parts_of(split)
        for name, value in scores(data.targets[rows], predicted[rows], scale).items()
    }


def report(chosen, data, splits, outcome, how=None):
    """Print the figures of all runs, write all results, and predict what PREDICT asks for.

    how: in what way the epoch was chosen; None: as SELECT_BY says.
    """
    rule = chosen.SELECT_BY if how is None else "fixed"
    run_settings = {
        "method": chosen.METHOD, "target": chosen.TARGET, "alloys": chosen.ALLOYS,
        "percent": chosen.PERCENT, "select_by": rule,
    }  # fmt: skip
    words = [f"{value:g}" if isinstance(value, float) else value for value in run_settings.values()]
    if chosen.PHASE_INPUT != "named":
        run_settings["phase_input"] = chosen.PHASE_INPUT
        words.append(chosen.PHASE_INPUT)
    if chosen.SPLITS == ["all"]:
        words.append("all")
    run_settings["unit"] = TARGETS[chosen.TARGET].unit  # of RMSE and MAE
    runs = [(split.number, seed) for split in splits for seed in chosen.SEEDS]
    single, ensemble, tables = [], [], []
    for i, split in enumerate(splits):
        for j, seed in enumerate(chosen.SEEDS):
            row = run_settings | {"split": split.number, "seed": seed, "epoch": outcome.epochs[len(single)]}
            single.append(row | split_scores(data, split, outcome.predicted[i, j], outcome.scales[i]))
        ensemble.append(split_scores(data, split, outcome.predicted[i].mean(0), outcome.scales[i]))
        for part, members in parts_of(split):
            of_members = outcome.predicted[i][:, members]
            values = {"true": data.targets[members], "mean": of_members.mean(0), "std": spread(of_members)}
            values |= {name: value[i, members] for name, value in outcome.columns.items()}
            values["unit"] = run_settings["unit"]
            tables.append(
                data.table.iloc[members][["structure", "phase"]].assign(
                    split=split.number, set=part, **values
                )
            )
    single, ensemble, predictions = pd.DataFrame(single), pd.DataFrame(ensemble), pd.concat(tables)
    predictions = predictions[["split", *predictions.columns.drop("split")]]
    losses = [(*runs[replica], *rest) for replica, *rest in sorted(outcome.losses)]
    losses = pd.DataFrame(losses, columns=["split", "seed", "epoch", "train", "watched"])

    print(f"{METHODS[chosen.METHOD]} {chosen.TARGET}, epoch {how or HOW[chosen.SELECT_BY]}")
    for row in single.head(MOST_RUNS).to_dict("records"):
        print(f"split {row['split']}, seed {row['seed']}, epoch {row['epoch']}")
        for part, _ in parts_of(next(split for split in splits if split.number == row["split"])):
            print(f"{part.capitalize()}: R2: {row[part + '_R2']:.6f}, loss: {row[part + '_loss']:.6f}")
    if len(single) > MOST_RUNS:
        print(f"and {len(single) - MOST_RUNS} more, in the file of metrics")

    identity = settings.identity(chosen, data.sha256)
    of_run = chosen.RESULTS_DIR, "_".join(words), "{}_settings.json", identity
    with settings.files_of_run(*of_run) as (new, name):
        new(f"{name}_settings.json").write_text(identity, encoding="utf-8")
        if len(single) > 1 and "test_R2" in single:
            summary = summarise(chosen, single, ensemble, predictions)
            summary = pd.DataFrame([run_settings]).merge(summary, how="cross")
            settings.write_csv(summary, new(f"{name}_summary.csv"))
        settings.write_csv(single, new(f"{name}_metrics.csv"))
        settings.write_csv(predictions, new(f"{name}_predictions.csv"))
        settings.write_csv(losses, new(f"{name}_losses.csv"))
        plot_parity(chosen, data, predictions, how or HOW[chosen.SELECT_BY], new(f"{name}_parity.png"))
        for ending, draw in outcome.pictures:
            draw(new(f"{name}_{ending}.png"))
        save_checkpoint(chosen, data, splits, outcome, new(f"{name}.pt"))
    print(f"written: {chosen.RESULTS_DIR / name}_*.csv, _settings.json, _parity.png and .pt")
    if chosen.PREDICT:
        predict_for(chosen, chosen.RESULTS_DIR / f"{name}.pt")


def summarise(chosen, single, ensemble, predictions):
    """Print and return the test set's figures, mean and standard deviation over splits.

    single: a row per network; the mean over a split's seeds enters. ensemble: a row per split, of
    the mean prediction over seeds. Returns a frame with a row for each.
    """
    unit, names = TARGETS[chosen.TARGET].unit, ["test_R2", "test_RMSE", "test_MAE"]
    counts = {"splits": len(chosen.SPLITS), "seeds": len(chosen.SEEDS)}
    rows = []
    for kind, frame in (("single networks", single.groupby("split")[names].mean()), ("ensemble", ensemble)):
        mean, std = frame[names].mean(), frame[names].std()
        figures = []
        for name in names:
            spread = f" ± {std[name]:.4f}" if len(frame) > 1 else ""
            figures.append(f"{name[5:]} {mean[name]:.4f}{spread}" + (f" {unit}" if name != "test_R2" else ""))
        print(f"{kind}, {counts['splits']} split(s) x {counts['seeds']} seed(s), test: {', '.join(figures)}")
        rows.append(
            {"of": kind} | counts | mean.add_suffix("_mean").to_dict() | std.add_suffix("_std").to_dict()
        )
    if len(chosen.SEEDS) > 1:
        test = predictions[predictions.set == "test"]
        error = (test["mean"] - test.true).abs()
        within = [(error <= n * test["std"]).mean() for n in (1, 2)]
        print(
            f"the truth lies within one spread of the seeds for {within[0]:.0%} of test alloys, "
            f"within two for {within[1]:.0%}"
        )
        rows[1] |= {"within_1_std": within[0], "within_2_std": within[1]}
    return pd.DataFrame(rows)


def plot_parity(chosen, data, predictions, how, path):
    """True against predicted values (mean over seeds), training and test set of all splits.

    With bars of the 90 % interval where the method states one. how: in what way the epoch was chosen.
    """
    from matplotlib.figure import Figure

    target = TARGETS[chosen.TARGET]
    axes = (figure := Figure(figsize=(5, 5.4), layout="constrained")).subplots()
    for part, name, colour in (("train", "training", "tab:gray"), ("test", "test", "tab:red")):
        points = predictions[predictions.set == part]
        if points.empty:
            continue
        found = scores(points.true, points["mean"])
        label = f"{name} ({len(points)}): R² {found['R2']:.3f}, RMSE {found['RMSE']:.4f} {target.unit}"
        axes.scatter(points.true, points["mean"], s=12, c=colour, alpha=0.6, label=label)
        if "half_width_90" in points:
            half = points.half_width_90
            axes.errorbar(points.true, points["mean"], half, fmt="none", ecolor=colour, lw=0.6, alpha=0.5)
    axes.axline((0, 0), slope=1, c="k", lw=0.8, zorder=0)
    axes.set(
        xlabel=f"{target.label} in the database ({target.unit})",
        ylabel=f"predicted {target.label} ({target.unit})",
    )
    alloys, kept = ALLOYS_IN_WORDS[chosen.ALLOYS]
    lines = [
        f"{METHODS[chosen.METHOD]}, phase as {chosen.PHASE_INPUT}, epoch {how}",
        f"{alloys}, {chosen.PERCENT:g} % of {kept} for training",
        f"data: {data.source}",
    ]
    figure.suptitle("\n".join(lines), fontsize=8)
    ends = [end for limits in (axes.get_xlim(), axes.get_ylim()) for end in limits]
    axes.set(xlim=(min(ends), max(ends)), ylim=(min(ends), max(ends)), aspect="equal")
    bars = "bars: 90 % interval" if "half_width_90" in predictions else None
    axes.legend(fontsize=8, title=bars, title_fontsize=8)
    figure.savefig(path, dpi=150, format="png")
