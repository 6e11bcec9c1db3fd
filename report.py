"""What a run of main.py or main_transfer.py leaves behind, and predictions from it.

Nothing to run here. Figures printed, tables, plot and checkpoint written; a checkpoint read again and
applied to alloys of one's own (PREDICT, CHECKPOINT).
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import networks
from common import (
    PHASES,
    UNITS,
    InputError,
    System,
    is_formula,
    listed,
    mole_fractions,
    network_inputs,
    output_folder,
    read_table,
    whole_file,
    write_csv,
)

NO_CHECKPOINT = (LookupError, TypeError, ValueError, AttributeError)  # what reading another file meets


def scores(true, predicted, target_scale):
    """R2, loss (mean squared error in standardised units), RMSE and MAE in the target's units."""
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    squared = mean_squared_error(true, predicted)
    return {
        "R2": r2_score(true, predicted) if len(true) > 1 else np.nan,
        "loss": squared / target_scale**2,
        "RMSE": squared**0.5,
        "MAE": mean_absolute_error(true, predicted),
    }


MOST_PRINTED = 16  # runs whose figures are printed one by one
HOW = {"reference": "selected on the test set", "validation": "selected on held-out training alloys"}


def report(settings, data, splits, outcome):
    """Print the figures of all runs and write metrics, predictions, losses, plot and checkpoint."""
    predicted = outcome.predicted
    identity = {
        "method": settings.METHOD,
        "target": settings.TARGET,
        "alloys": settings.ALLOYS,
        "percent": settings.PERCENT,
        "select_by": settings.SELECT_BY,
    }
    single, ensemble, tables = [], [], []
    for i, split in enumerate(splits):
        scale = outcome.scales[i]
        for j, seed in enumerate(settings.SEEDS):
            row = identity | {"split": split.number, "seed": seed, "epoch": outcome.epochs[len(single)]}
            single.append(row | split_scores(data, split, predicted[i, j], scale))
        ensemble.append(split_scores(data, split, predicted[i].mean(0), scale))
        for part, members in (("train", split.train), ("test", split.test)):
            table = data.table.iloc[members][["structure", "phase"]]
            spread = predicted[i][:, members].std(0)
            values = {"true": data.targets[members], "mean": predicted[i][:, members].mean(0), "std": spread}
            if outcome.half_widths is not None:
                values["half_width_90"] = outcome.half_widths[i, members]
            tables.append(table.assign(set=part, **values).assign(split=split.number))
    single, ensemble, predictions = pd.DataFrame(single), pd.DataFrame(ensemble), pd.concat(tables)
    predictions.insert(0, "split", predictions.pop("split"))

    how = "no epoch is chosen" if outcome.half_widths is not None else HOW[settings.SELECT_BY]
    print(f"{settings.METHOD} {settings.TARGET}, {how}")
    for row in single.head(MOST_PRINTED).to_dict("records"):
        print(f"split {row['split']}, seed {row['seed']}, epoch {row['epoch']}")
        for part in ("train", "test"):
            print(f"{part.capitalize()}: R2: {row[part + '_R2']:.6f}, loss: {row[part + '_loss']:.6f}")
    if len(single) > MOST_PRINTED:
        print(f"and {len(single) - MOST_PRINTED} more, in the file of metrics")
    if outcome.half_widths is not None:
        test = predictions[predictions.set == "test"]
        inside = ((test["mean"] - test.true).abs() <= test.half_width_90).mean()
        print(f"the truth lies within the stated 90 % interval for {inside:.0%} of test alloys")
    if len(single) > 1:
        summary = summarise(settings, single, ensemble, predictions)
        summary = pd.DataFrame([identity]).merge(summary, how="cross")
        write_csv(summary, result_name(settings, "_summary.csv"))
    runs = list(zip(single.split, single.seed))
    losses = [(*runs[replica], *rest) for replica, *rest in sorted(outcome.losses)]
    losses = pd.DataFrame(losses, columns=["split", "seed", "epoch", "train", "watched"])
    write_csv(single, result_name(settings, "_metrics.csv"))
    write_csv(predictions, result_name(settings, "_predictions.csv"))
    write_csv(losses, result_name(settings, "_losses.csv"))
    plot_parity(predictions, settings, result_name(settings, "_parity.png"))
    save_checkpoint(settings, data, splits, outcome.state, result_name(settings, ".pt"))
    print(f"written: {result_name(settings, '_*.csv')}, _parity.png and .pt")


def split_scores(data, split, predicted, scale):
    """`scores` of training and test set as one row, train_R2 and so on; predicted: (n,)."""
    return {
        f"{part}_{name}": value
        for part, rows in (("train", split.train), ("test", split.test))
        for name, value in scores(data.targets[rows], predicted[rows], scale).items()
    }


def summarise(settings, single, ensemble, predictions):
    """Print and return the test set's figures, mean and standard deviation over splits.

    single: a row per network; the mean over a split's seeds enters. ensemble: a row per split, of
    the mean prediction over seeds. Returns a frame with a row for each.
    """
    unit, names = UNITS[settings.TARGET], ["test_R2", "test_RMSE", "test_MAE"]
    of_runs = f"{len(settings.SPLITS)} split(s) x {len(settings.SEEDS)} seed(s)"
    rows = []
    for kind, frame in (("single networks", single.groupby("split")[names].mean()), ("ensemble", ensemble)):
        mean, std = frame[names].mean(), frame[names].std()
        figures = []
        for name in names:
            spread = f" ± {std[name]:.4f}" if len(frame) > 1 else ""
            figures.append(f"{name[5:]} {mean[name]:.4f}{spread}" + (f" {unit}" if name != "test_R2" else ""))
        print(f"{kind}, {of_runs}, test: {', '.join(figures)}")
        rows.append(
            {"of": kind, "splits": len(settings.SPLITS), "seeds": len(settings.SEEDS)}
            | {f"{name}_mean": mean[name] for name in names}
            | {f"{name}_std": std[name] for name in names}
        )
    test = predictions[predictions.set == "test"]
    if len(settings.SEEDS) > 1:
        error = (test["mean"] - test.true).abs()
        within = [(error <= n * test["std"]).mean() for n in (1, 2)]
        print(
            f"the truth lies within one spread of the seeds for {within[0]:.0%} of test alloys, "
            f"within two for {within[1]:.0%}"
        )
        rows[1] |= {"within_1_std": within[0], "within_2_std": within[1]}
    return pd.DataFrame(rows)


def plot_parity(predictions, settings, path):
    """True against predicted values (mean over seeds), training and test set."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(4.5, 4.5), layout="constrained")).subplots()
    for part, colour in (("train", "tab:gray"), ("test", "tab:red")):
        points = predictions[predictions.set == part]
        axes.scatter(points.true, points["mean"], s=12, c=colour, alpha=0.6, label=f"{part} ({len(points)})")
    axes.axline((0, 0), slope=1, c="k", lw=0.8, zorder=0)
    label = {"Ef": "formation energy (eV/atom)", "Ms": "magnetisation (μB/atom)"}[settings.TARGET]
    axes.set(
        xlabel=f"{label} in the database",
        ylabel=f"predicted {label}",
        title=f"{settings.METHOD} {settings.TARGET}",
    )
    axes.set_aspect("equal", "datalim")
    axes.legend()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150)


def save_checkpoint(settings, data, splits, state, path):
    """State and settings of a run; `load_checkpoint` reads them without running code."""
    import torch

    plain = {
        name: value if isinstance(value, bool | int | float | list | None) else str(value)
        for name, value in vars(settings).items()
    }
    rows = np.unique(np.concatenate([split.train for split in splits]))
    with whole_file(path) as temporary:
        torch.save(
            {
                "state": state,
                "settings": plain,
                "elements": list(data.system.elements),
                "excluded": [sorted(pair) for pair in data.system.excluded],
                # what it was trained on, to tell which alloys lie outside
                "least": torch.tensor(data.inputs[rows].min(0)),
                "greatest": torch.tensor(data.inputs[rows].max(0)),
                "n_components": sorted(set(data.table.n_components.to_numpy()[rows].tolist())),
            },
            temporary,
        )


def load_checkpoint(path):
    """A checkpoint: (predict, what `save_checkpoint` saved). Raises InputError if it is none.

    predict: function (mole fractions (n, n_elements), phases (n,)) -> predictions of all networks
    (n_networks, n) in the target's unit, and half widths of 90 % intervals (n,) or None. No code
    from the file is run (weights_only).
    """
    import pickle

    import torch

    try:
        with warnings.catch_warnings():  # on files that are none: what to do is said in one line below
            warnings.simplefilter("ignore")
            saved = torch.load(path, map_location="cpu", weights_only=True)
        system = System(tuple(saved["elements"]), tuple(map(frozenset, saved["excluded"])))
        if "committees" in saved["state"]:
            import committee

            model = committee.restored(saved["state"])

            def predict_alloys(fractions, phases):
                return committee.predict_compositions(model, system, fractions, phases)

        else:
            model = networks.restored(saved["state"])

            def predict_alloys(fractions, phases):
                inputs = network_inputs(fractions, phases, system.elements)
                return networks.predict(model, inputs).reshape(-1, len(inputs)), None

        middle = np.full((1, len(system.elements)), 1 / len(system.elements))
        predict_alloys(middle, PHASES[:1])
        saved["settings"]["TARGET"], saved["settings"]["METHOD"], saved["least"], saved["greatest"]
        saved["n_components"]
    except OSError as error:
        raise InputError(f"{path}: expected a checkpoint of an earlier run ({error.strerror})") from None
    except (pickle.UnpicklingError, EOFError, RuntimeError, *NO_CHECKPOINT):
        raise InputError(f"{path}: expected a checkpoint that main.py or main_transfer.py wrote") from None
    return predict_alloys, saved


def alloys_to_predict(text):
    """PREDICT -> frame of formula and phase; formulas stand for both phases.

    text: formulas, or the path of a CSV file with a column structure (as FeNi3_sqsfcc), or formula
    and perhaps phase.
    """
    if not text.endswith(".csv"):
        formulas = text.replace(",", " ").split()
        frame = pd.DataFrame({"formula": formulas})
    else:
        frame = read_table(Path(text), [])
        if "structure" in frame:
            parts = frame.structure.astype(str).str.extract(r"^([^_]+)_.*?(fcc|bcc)$")
            frame = parts.set_axis(["formula", "phase"], axis=1)
        elif "formula" not in frame:
            raise InputError(f"{text}: expected a column 'structure' or 'formula'")
        if "phase" in frame and not frame.phase.isin(PHASES).all():
            raise InputError(f"{text}: expected fcc or bcc as phase in each row")
        frame = frame[[column for column in ("formula", "phase") if column in frame]].astype(str)
    bad = [formula for formula in frame.formula if not is_formula(formula)]
    if bad or frame.empty:
        raise InputError(f"PREDICT: expected formulas, such as FeNiCoCr; got {listed(bad) or 'none'}")
    if "phase" not in frame:
        frame = frame.merge(pd.DataFrame({"phase": PHASES}), how="cross")
    return frame.reset_index(drop=True)


def result_name(settings, ending):
    """Path of one of a run's results."""
    return settings.RESULTS_DIR / f"{settings.METHOD}_{settings.TARGET}{ending}"


def predicts_only(settings):
    """Look at PREDICT, CHECKPOINT and RESULTS_DIR before the work; predict if no training is asked for."""
    output_folder(settings.RESULTS_DIR)
    if settings.PREDICT:
        alloys_to_predict(settings.PREDICT)
    if settings.CHECKPOINT and not settings.PREDICT:
        raise InputError("CHECKPOINT: expected with PREDICT, which says for which alloys")
    if settings.CHECKPOINT:
        predict_for(settings, settings.CHECKPOINT)
    return bool(settings.CHECKPOINT)


def predict_for(settings, checkpoint):
    """Print and write the predictions of a checkpoint for the alloys of PREDICT."""
    from pymatgen.core import Composition

    predict_alloys, saved = load_checkpoint(checkpoint)
    frame, elements = alloys_to_predict(settings.PREDICT), saved["elements"]
    amounts = [Composition(formula).get_el_amt_dict() for formula in frame.formula]
    foreign = [[element for element in amount if element not in elements] for amount in amounts]
    remarks = [[f"element {element} not seen" for element in strange] for strange in foreign]
    for amount, remark in zip(amounts, remarks):
        if len(amount) not in saved["n_components"]:
            remark.append(f"alloys of {len(amount)} not seen")
    known = np.flatnonzero([not strange for strange in foreign])
    columns = {"mean": np.full(len(frame), np.nan), "std": np.full(len(frame), np.nan)}
    if len(known):
        fractions, phases = mole_fractions(frame.formula[known], elements), frame.phase[known].tolist()
        predicted, half_widths = predict_alloys(fractions, phases)
        columns["mean"][known], columns["std"][known] = predicted.mean(0), predicted.std(0)
        if half_widths is not None:
            columns["half_width_90"] = np.full(len(frame), np.nan)
            columns["half_width_90"][known] = half_widths
        inputs = network_inputs(fractions, phases, elements)
        outside = (inputs < saved["least"].numpy() - 1e-9) | (inputs > saved["greatest"].numpy() + 1e-9)
        names = [*(f"c({e})" for e in elements), "S", "delta_r", "delta_chi", "valence", *PHASES]
        for i, beyond in zip(known, outside):
            if beyond.any():
                named = ", ".join(name for name, is_out in zip(names, beyond) if is_out)
                remarks[i].append(f"outside the training range: {named}")
    unit = UNITS[saved["settings"]["TARGET"]]
    frame = frame.assign(**columns, unit=unit, outside=["; ".join(remark) for remark in remarks])
    print(frame.to_string(index=False, float_format=lambda x: f"{x:.4f}"))
    name = f"{saved['settings']['METHOD']}_{saved['settings']['TARGET']}_predicted.csv"
    write_csv(frame, settings.RESULTS_DIR / name)
    print(f"mean and std over all splits and seeds of the run; written: {settings.RESULTS_DIR / name}")
