"""What a run that trains leaves behind, and predictions from it.

Nothing to run here. Data and splits of a run read, figures printed, tables, plot and checkpoint written;
a checkpoint read again and applied to alloys of one's own (PREDICT, CHECKPOINT).
"""

import importlib
import io
import pickle
import warnings
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

import common
import settings
from common import PHASES, TARGETS, System
from settings import InputError, listed

METHODS = {
    "scratch": "Scratch", "scratch_prime": "Scratch′", "da": "DA", "tl": "TL", "committee": "Committee",
}  # fmt: skip
HOW = {"reference": "selected on the test set", "validation": "selected on held-out training alloys"}
MOST_RUNS, MOST_LINES = 16, 40  # printed one by one; all are in the files


class Outcome(NamedTuple):
    """What a method has found, for the report."""

    predicted: np.ndarray  # (n_splits, n_seeds, n) for all alloys of the data, in the target's unit
    scales: np.ndarray  # (n_splits,), standard deviation by which losses are standardised
    epochs: np.ndarray  # (n_splits * n_seeds,)
    losses: list  # rows (replica, epoch, loss in training, loss on the watched set)
    columns: dict  # what else it says of each alloy: {name: (n_splits, n)}
    state: dict  # of tensors, numbers and lists: what a checkpoint needs to predict again
    module: str  # that has `predictor`, which reads the state


def of_networks(trained, data):
    """Outcome of common.Trained."""
    scales = np.array([one.target.scale_.item() for one in trained.scalers])
    predicted = common.predict(trained, data.inputs)
    return Outcome(predicted, scales, trained.epochs, trained.losses, {}, common.state_of(trained), "common")


def load(chosen, high_only=False):
    """Data and splits that the settings ask for. InputError where a split leaves nothing to learn from."""
    data = common.load_data(
        chosen.DATA_DIR, chosen.TABLE_DIR, chosen.TARGET, chosen.ELEMENTS, chosen.EXCLUDED_PAIRS
    )
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
        if np.ptp(data.targets[train]) == 0:
            value = f"{data.targets[train][0]:g} in all {len(train)} training alloys"
            raise InputError(f"split {number}: {chosen.TARGET} is {value}, so that there is nothing to learn")
    return data, splits


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


def split_scores(data, split, predicted, scale):
    """`scores` of training and test set as one row, train_R2 and so on; predicted: (n,)."""
    return {
        f"{part}_{name}": value
        for part, rows in (("train", split.train), ("test", split.test))
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
    runs = [(split.number, seed) for split in splits for seed in chosen.SEEDS]
    single, ensemble, tables = [], [], []
    for i, split in enumerate(splits):
        for j, seed in enumerate(chosen.SEEDS):
            row = run_settings | {"split": split.number, "seed": seed, "epoch": outcome.epochs[len(single)]}
            single.append(row | split_scores(data, split, outcome.predicted[i, j], outcome.scales[i]))
        ensemble.append(split_scores(data, split, outcome.predicted[i].mean(0), outcome.scales[i]))
        for part, members in (("train", split.train), ("test", split.test)):
            of_members = outcome.predicted[i][:, members]
            values = {"true": data.targets[members], "mean": of_members.mean(0), "std": of_members.std(0)}
            values |= {name: value[i, members] for name, value in outcome.columns.items()}
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
        for part in ("train", "test"):
            print(f"{part.capitalize()}: R2: {row[part + '_R2']:.6f}, loss: {row[part + '_loss']:.6f}")
    if len(single) > MOST_RUNS:
        print(f"and {len(single) - MOST_RUNS} more, in the file of metrics")

    identity = settings.identity(chosen, data.sha256)
    words = [f"{value:g}" if isinstance(value, float) else value for value in run_settings.values()]
    of_run = chosen.RESULTS_DIR, "_".join(words), "{}_settings.json", identity
    with settings.files_of_run(*of_run) as (new, name):
        new(f"{name}_settings.json").write_text(identity, encoding="utf-8")
        if len(single) > 1:
            summary = summarise(chosen, single, ensemble, predictions)
            summary = pd.DataFrame([run_settings]).merge(summary, how="cross")
            settings.write_csv(summary, new(f"{name}_summary.csv"))
        settings.write_csv(single, new(f"{name}_metrics.csv"))
        settings.write_csv(predictions, new(f"{name}_predictions.csv"))
        settings.write_csv(losses, new(f"{name}_losses.csv"))
        plot_parity(chosen, data, predictions, new(f"{name}_parity.png"))
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


def plot_parity(chosen, data, predictions, path):
    """True against predicted values (mean over seeds), training and test set of all splits."""
    from matplotlib.figure import Figure

    target = TARGETS[chosen.TARGET]
    axes = (figure := Figure(figsize=(5, 5), layout="constrained")).subplots()
    for part, name, colour in (("train", "training", "tab:gray"), ("test", "test", "tab:red")):
        points = predictions[predictions.set == part]
        found = scores(points.true, points["mean"])
        label = f"{name} ({len(points)}): R² {found['R2']:.3f}, RMSE {found['RMSE']:.4f}"
        axes.scatter(points.true, points["mean"], s=12, c=colour, alpha=0.6, label=label)
    axes.axline((0, 0), slope=1, c="k", lw=0.8, zorder=0)
    axes.set(
        xlabel=f"{target.label} in the database ({target.unit})",
        ylabel=f"predicted {target.label} ({target.unit})",
    )
    axes.set_title(f"{METHODS[chosen.METHOD]}; data: {data.source}", fontsize=9)
    axes.set_aspect("equal", "datalim")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150, format="png")


# ==== checkpoints and predictions =================================================================


def save_checkpoint(chosen, data, splits, outcome, path):
    """What predictions need, and what the run was; `load_checkpoint` reads it without running code."""
    rows = np.unique(np.concatenate([split.train for split in splits]))
    held = data.inputs[rows][:, : len(data.system.elements)] > 0  # which elements, in each training alloy
    pairs = combinations(range(held.shape[1]), 2)
    unseen = [(i, j) for i, j in pairs if not (held[:, i] & held[:, j]).any()]
    buffer = io.BytesIO()  # a full disk is an error of the writing, not one of torch's
    torch.save(
        {
            "state": outcome.state,
            "module": outcome.module,
            "target": chosen.TARGET,
            "method": chosen.METHOD,
            "elements": list(data.system.elements),
            "excluded": [sorted(pair) for pair in data.system.excluded],
            "properties": common.element_properties(data.system.elements).tolist(),
            # what it was trained on, to tell which alloys lie outside
            "unseen": [[data.system.elements[i] for i in pair] for pair in unseen],
            "least": torch.tensor(data.inputs[rows].min(0)),
            "greatest": torch.tensor(data.inputs[rows].max(0)),
            "n_components": sorted(set(data.table.n_components.to_numpy()[rows].tolist())),
        },
        buffer,
    )
    path.write_bytes(buffer.getvalue())


def load_checkpoint(path):
    """A checkpoint: (predict_alloys, what `save_checkpoint` saved, `phases`). InputError if it is none.

    predict_alloys: function (mole fractions (n, n_elements), phases (n,)) -> predictions of all networks
    (n_networks, n) in the target's unit, and what else the method says, {name: (n,)}. No code
    from the file is run (weights_only).
    """
    try:
        with warnings.catch_warnings():  # on files that are none: what to do is said in one line below
            warnings.simplefilter("ignore")
            saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = checked(saved)
        system = System(saved["elements"], tuple(map(frozenset, saved["excluded"])))
        if saved["module"] not in ("common", "main_committee"):
            raise ValueError("no module of this project")
        predict_alloys = importlib.import_module(saved["module"]).predictor(saved["state"], system)
        equal = np.full((len(saved["phases"]), len(system.elements)), 1 / len(system.elements))
        if not np.isfinite(predict_alloys(equal, saved["phases"])[0]).all():
            raise ValueError("predicts no numbers")
    except OSError as error:
        raise InputError(
            f"{path}: expected a checkpoint of an earlier run ({error.strerror or error})"
        ) from None
    except (
        pickle.UnpicklingError, EOFError, RuntimeError, LookupError, TypeError, ValueError, AttributeError,
    ):  # fmt: skip
        raise InputError(
            f"{path}: expected a checkpoint that one of the main scripts wrote, with the properties of its "
            "elements as they are now"
        ) from None
    return predict_alloys, saved


def checked(saved):
    """What a checkpoint says, with the phases it was trained on. Raises an error where no run says so."""
    METHODS[saved["method"]], TARGETS[saved["target"]]
    elements = settings.element_list(" ".join(saved["elements"]))
    unseen = saved.get("unseen", saved["excluded"])  # earlier runs wrote only the latter
    pairs = settings.pair_list(" ".join("-".join(pair) for pair in [*saved["excluded"], *unseen]))
    bounds = [saved[name].numpy() for name in ("least", "greatest")]
    phases = [phase for phase, share in zip(PHASES, bounds[1][-len(PHASES) :]) if share == 1]
    # Those of elements outside ELEMENT_TABLE may have been others when it was trained.
    properties = saved.get("properties") or [common.ELEMENT_TABLE[element] for element in elements]
    if not (
        list(elements) == saved["elements"] and {element for pair in pairs for element in pair} <= {*elements}
        and all(bound.shape == (len(elements) + 6,) and np.isfinite(bound).all() for bound in bounds)
        and phases and all(type(number) is int for number in saved["n_components"])
        and np.array_equal(properties, common.element_properties(elements))
    ):  # fmt: skip
        raise ValueError("no run says so")
    return saved | {"elements": elements, "unseen": unseen, "phases": phases}


def alloys_to_predict(text):
    """PREDICT -> frame of formula and phase; formulas stand for both phases.

    text: formulas, or the path of a CSV file with a column structure (as FeNi3_sqsfcc), or formula
    and perhaps phase.
    """
    if not text.endswith(".csv"):
        frame = pd.DataFrame({"formula": text.replace(",", " ").split()})
    else:
        frame = common.read_table(Path(text), [])
        if "structure" in frame:
            parts = frame.structure.astype(str).str.extract(r"^([^_]+)_.*?(fcc|bcc)$")
            frame = parts.set_axis(["formula", "phase"], axis=1)
        elif "formula" not in frame:
            raise InputError(f"{text}: expected a column 'structure' or 'formula'")
        if "phase" in frame and not frame.phase.isin(PHASES).all():
            raise InputError(f"{text}: expected fcc or bcc as phase in each row")
        frame = frame[[column for column in ("formula", "phase") if column in frame]].astype(str)
    bad = [formula for formula in frame.formula if not common.is_formula(formula)]
    if bad or frame.empty:
        raise InputError(f"PREDICT: expected formulas, such as FeNiCoCr; got {listed(bad) or 'none'}")
    if "phase" not in frame:
        frame = frame.merge(pd.DataFrame({"phase": PHASES}), how="cross")
    return frame.reset_index(drop=True)


def predicts_only(chosen):
    """Look at PREDICT, CHECKPOINT and RESULTS_DIR before the work; predict if no training is asked for."""
    settings.output_folder(chosen.RESULTS_DIR)
    if chosen.PREDICT:
        alloys_to_predict(chosen.PREDICT)
    if chosen.CHECKPOINT and not chosen.PREDICT:
        raise InputError("CHECKPOINT: expected with PREDICT, which says for which alloys")
    if chosen.CHECKPOINT:
        predict_for(chosen, chosen.CHECKPOINT)
    return bool(chosen.CHECKPOINT)


def predict_for(chosen, checkpoint):
    """Write and print the predictions of a checkpoint for the alloys of PREDICT."""
    from pymatgen.core import Composition

    predict_alloys, saved = load_checkpoint(checkpoint)
    frame, elements = alloys_to_predict(chosen.PREDICT), saved["elements"]
    amounts = [Composition(formula).get_el_amt_dict() for formula in frame.formula]
    foreign = [[element for element in amount if element not in elements] for amount in amounts]
    remarks = [[f"element {element} not seen" for element in strange] for strange in foreign]
    for amount, remark in zip(amounts, remarks):
        if len(amount) not in saved["n_components"]:
            remark.append(f"alloys of {len(amount)} not seen")
        remark += [f"{' with '.join(pair)} not seen" for pair in saved["unseen"] if {*pair} <= amount.keys()]
    known = np.flatnonzero([not strange for strange in foreign])
    if len(known):
        fractions = common.mole_fractions(frame.formula[known], elements)
        phases = frame.phase[known].tolist()
        predicted, columns = predict_alloys(fractions, phases)
        columns = {"mean": predicted.mean(0), "std": predicted.std(0)} | columns
        frame = frame.join(pd.DataFrame(columns, index=known))
        inputs = common.network_inputs(fractions, phases, elements)
        outside = (inputs < saved["least"].numpy() - 1e-9) | (inputs > saved["greatest"].numpy() + 1e-9)
        names = [*(f"c({e})" for e in elements), "S", "delta_r", "delta_chi", "valence", *PHASES]
        for i, beyond in zip(known, outside):
            if beyond.any():
                named = ", ".join(name for name, is_out in zip(names, beyond) if is_out)
                remarks[i].append(f"outside the training range: {named}")
    unit = TARGETS[saved["target"]].unit
    frame = frame.assign(unit=unit, outside=["; ".join(remark) for remark in remarks])
    of_run = chosen.RESULTS_DIR, f"{Path(checkpoint).stem}_predicted", "{}.csv", settings.csv_text(frame)
    with settings.files_of_run(*of_run) as (new, name):
        settings.write_csv(frame, new(f"{name}.csv"))
    print(frame.head(MOST_LINES).to_string(index=False, float_format=lambda x: f"{x:.4f}"))
    if len(frame) > MOST_LINES:
        print(f"and {len(frame) - MOST_LINES} more, in the file")
    print(f"mean and std over all splits and seeds of the run; written: {chosen.RESULTS_DIR / name}.csv")
