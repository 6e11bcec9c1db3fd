"""What a run leaves behind: figures printed, and a folder of tables, a picture and a checkpoint.

Nothing to run here. A run's folder is written hidden, and gets its name when all is in it.
"""

import difflib
import inspect
import itertools
import json
import os
import platform
import re
import shutil
import textwrap
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

import common
from common import TARGETS
from settings import InputError

METHODS = {"scratch": "Scratch", "scratch_prime": "Scratch′", "da": "DA", "tl": "TL"}
HOW = {"reference": "epoch chosen on the test set", "validation": "epoch chosen on held-out training alloys"}
PLACES = ("DATA_DIR", "TABLE_DIR", "RESULTS_DIR", "CHECKPOINT", "JOBS")  # settings that change no result
MOST_RUNS = 16  # printed one by one; all are in the files
EXAMPLES = 10  # training inputs whose predictions a checkpoint holds
TOLERANCE = 1e-3  # deviations of the target by which these may differ: processors round differently


# ==== files =======================================================================================


def write_csv(frame, path):
    """Write a CSV file that is there as a whole or not at all, with the same line ends on all machines."""
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        frame.to_csv(hidden, index=False, lineterminator="\n", errors="replace")
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


@contextmanager
def run_folder(cfg, name, sha256, network=None):
    """A new folder to write to, which becomes RESULTS_DIR/name when the block ends well.

    sha256: {what: checksum} of the run's data. network: its common.Network, if it has one. The folder of an
    earlier run of the same settings, data and network is replaced; one of any other is not touched, and the
    next free name is taken. What these are, and on which versions and processor, is in settings.json.
    """
    used = {name: value for name, value in vars(cfg).items() if name not in PLACES}
    layers = network and {"layers": repr(network), "source": inspect.getsource(type(network))}
    same = {"settings": used, "sha256": sha256, "network": layers}
    same, info = json.loads(json.dumps(same, default=str)), Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text("utf-8") if info.is_file() else "")
    made_on = {"processor": found[1] if found else platform.processor(), "python": platform.python_version()}
    made_on |= {"numpy": np.__version__, "torch": torch.__version__, "data": str(cfg.DATA_DIR.resolve())}
    hidden = cfg.RESULTS_DIR / f".{name}.{uuid.uuid4().hex[:8]}"
    hidden.mkdir(parents=True)
    try:
        (hidden / "settings.json").write_text(json.dumps(same | made_on, indent=1), "utf-8")
        yield hidden
        files = sorted(path.name for path in hidden.iterdir())
        for free in itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2))):
            place = cfg.RESULTS_DIR / free
            if not place.exists() or is_of(place, same):
                break
        if place.exists():
            shutil.rmtree(place)
        hidden.rename(place)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    print(f"written to {place}: {', '.join(files)}")


def is_of(place, same):
    """Whether a folder is of a run with the same settings, data and network."""
    try:
        return same.items() <= json.loads((place / "settings.json").read_text("utf-8")).items()
    except (OSError, ValueError, AttributeError):
        return False


@contextmanager
def picture(path, size, title, note=""):
    """A matplotlib Figure to draw on, saved at the end; one that fails costs nothing else, and is said.

    size: in inches. note: small, below the picture: data, rule, split. No display is needed, and no settings
    of the user's count.
    """
    os.environ["MPLBACKEND"] = "agg"
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(textwrap.fill(note, round(18 * size[0])), fontsize=7, color="0.35")
    try:
        yield figure
        figure.savefig(path, dpi=150)
    except Exception as error:  # noqa: BLE001 (whatever it is, the results are worth more)
        print(f"{path.name} could not be drawn: {error}")


# ==== figures =====================================================================================


class Outcome(NamedTuple):
    """What a method has found, for `report`."""

    method: str  # the first word of the run's name
    title: str  # of pictures: the method, and how it was chosen
    predicted: np.ndarray  # (n_splits, n_members, n) for all alloys of the data, in the target's unit
    scales: np.ndarray  # (n_splits,), standard deviation by which losses are standardised
    members: list  # of dicts, n_splits * n_members: what each is, such as seed and epoch
    losses: pd.DataFrame  # of training; or None
    columns: dict  # what else it says of each alloy: {name: (n_splits, n)}
    state: dict  # of tensors, numbers and lists: what predicts again
    network: object  # a common.Network; or None


def of_networks(cfg, data, splits, trained):
    """Outcome of common.Trained."""
    runs = [(split.number, seed) for split in splits for seed in cfg.SEEDS]
    losses = [(*runs[i], *rest) for i, *rest in sorted(trained.losses)]
    return Outcome(
        cfg.METHOD,
        f"{METHODS[cfg.METHOD]}, {HOW[cfg.SELECT_BY]}",
        common.predict(trained, data.inputs),
        np.array([of_target.scale_.item() for _, of_target in trained.scalers]),
        [{"seed": seed, "epoch": epoch} for (_, seed), epoch in zip(runs, trained.epochs.tolist())],
        pd.DataFrame(losses, columns=["split", "seed", "epoch", "train_loss", "watch_loss"]),
        {},
        network_state(trained, data.inputs[splits[0].train[:EXAMPLES]]),
        trained.networks[0],
    )


def scores(true, predicted, scale=1.0):
    """R2, loss (mean squared error in standardised units), RMSE and MAE in the target's units."""
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    squared, r2 = mean_squared_error(true, predicted), r2_score(true, predicted) if len(true) > 1 else np.nan
    found = {"R2": r2, "loss": squared / scale**2, "RMSE": squared**0.5}
    return found | {"MAE": mean_absolute_error(true, predicted)}


def scores_of(data, parts, predicted, scale):
    """`scores` of each part of a split, {name: rows}, as one row: train_R2 and so on; predicted: (n,)."""
    found = {part: scores(data.targets[rows], predicted[rows], scale) for part, rows in parts.items()}
    return {f"{part}_{name}": value for part in parts for name, value in found[part].items()}


def spread(predicted):
    """Standard deviation over members, (n_members, n) -> (n,); nan of one, which has none."""
    return predicted.std(0) if len(predicted) > 1 else np.full(predicted.shape[1], np.nan)


def report(cfg, data, splits, outcome):
    """Print the figures of all runs, and write the run's folder."""
    what = {"data": data.source, "method": outcome.method, "target": cfg.TARGET, "alloys": cfg.ALLOYS}
    what |= {"percent": cfg.PERCENT, "unit": TARGETS[cfg.TARGET].unit}  # of RMSE and MAE
    what |= {name.lower(): vars(cfg)[name] for name in ("SELECT_BY", "PHASE_INPUT") if name in vars(cfg)}
    metrics, ensemble, tables, members = [], [], [], iter(outcome.members)
    for i, (split, predicted, scale) in enumerate(zip(splits, outcome.predicted, outcome.scales)):
        parts = {name: rows for name, rows in (("train", split.train), ("test", split.test)) if len(rows)}
        of_split = what | {"split": split.number}
        metrics += [of_split | next(members) | scores_of(data, parts, one, scale) for one in predicted]
        ensemble.append(of_split | scores_of(data, parts, predicted.mean(0), scale))
        for part, rows in parts.items():
            values = {name: value[i, rows] for name, value in outcome.columns.items()}
            table = data.table.loc[rows, ["structure", "phase"]].assign(set=part, true=data.targets[rows])
            table = table.assign(mean=predicted[:, rows].mean(0), std=spread(predicted[:, rows]), **values)
            tables.append(table.assign(unit=what["unit"]))
            tables[-1].insert(0, "split", split.number)
    metrics = pd.DataFrame(metrics)
    ensemble, predictions = pd.DataFrame(ensemble), pd.concat(tables)

    print(f"{outcome.title}; {cfg.TARGET}")
    for row, member in zip(metrics.head(MOST_RUNS).to_dict("records"), outcome.members):
        print(", ".join(f"{name} {row[name]}" for name in ["split", *member]))
        for part in ("train", "test"):
            if row.get(f"{part}_loss", np.nan) >= 0:
                print(f"{part.capitalize()}: R2: {row[part + '_R2']:.6f}, loss: {row[part + '_loss']:.6f}")
    if len(metrics) > MOST_RUNS:
        print(f"and {len(metrics) - MOST_RUNS} more, in metrics.csv")

    words = [outcome.method, cfg.TARGET, cfg.ALLOYS, f"{cfg.PERCENT:g}", what.get("select_by")]
    words += ["found" * (what.get("phase_input") == "found"), "all" * (cfg.SPLITS == ["all"])]
    with run_folder(cfg, "_".join(filter(None, words)), data.sha256, outcome.network) as folder:
        if len(metrics) > 1 and "test_R2" in metrics:
            write_csv(summarise(metrics, ensemble, predictions), folder / "summary.csv")
        write_csv(metrics, folder / "metrics.csv")
        write_csv(predictions, folder / "predictions.csv")
        if outcome.losses is not None:
            write_csv(outcome.losses, folder / "losses.csv")
        plot_parity(cfg, data, outcome, predictions, folder / "parity.png")
        save_checkpoint(cfg, data, splits, outcome, folder / "model.pt")


def summarise(metrics, ensemble, predictions):
    """Print and return the test set's figures, mean and standard deviation over splits.

    metrics: a row per member; the mean over a split's members enters. ensemble: a row per split, of the mean
    prediction over members, where there are several. Returns a frame with a row for each.
    """
    names, what = ["test_R2", "test_RMSE", "test_MAE"], ["data", "method", "target", "alloys", "percent"]
    n_splits, n_seeds, rows = len(ensemble), len(metrics) // len(ensemble), []
    kinds = {"single": metrics.groupby("split")[names].mean()}
    kinds |= {"ensemble": ensemble[names]} if n_seeds > 1 else {}
    for of, frame in kinds.items():
        mean, std = frame.mean(), frame.std()
        shown = [f"{x[5:]} {mean[x]:.4f}" + f" ± {std[x]:.4f}" * (n_splits > 1) for x in names]
        shown[1:] = [f"{one} {ensemble.unit[0]}" for one in shown[1:]]
        print(f"{of}, {n_splits} split(s) x {n_seeds} seed(s), test: {', '.join(shown)}")
        counts = {"of": of, "splits": n_splits, "seeds": n_seeds}
        rows.append(counts | {**mean.add_suffix("_mean"), **std.add_suffix("_std")})
    if n_seeds > 1:
        test = predictions[predictions.set == "test"]
        within = ((test["mean"] - test.true).abs() <= test["std"]).mean()
        print(f"truth within one standard deviation of the seeds: {within:.0%} (68 % if it were the error)")
    return ensemble[what].head(1).merge(pd.DataFrame(rows), how="cross")


def plot_parity(cfg, data, outcome, predictions, path):
    """True against predicted values, mean over members: test sets pooled, training alloys' mean over splits.

    With bars of the 90 % interval where the method states one.
    """
    target, n_members = TARGETS[cfg.TARGET], outcome.predicted.shape[1]
    number = f"{len(cfg.SPLITS)} splits pooled" if len(cfg.SPLITS) > 1 else f"split {cfg.SPLITS[0]}"
    kept = f"{cfg.PERCENT:g} % of the training alloys of four and more elements"
    note = f"{data.source}; {number}, mean of {n_members} seed(s); {kept}"
    both = np.concatenate([predictions.true, predictions["mean"]])
    ends = both.min() - 0.04 * np.ptp(both), both.max() + 0.04 * np.ptp(both)
    with picture(path, (5, 5.4), f"{target.label}: {outcome.title}", note) as figure:
        axes = figure.subplots()
        for part, name, colour in (("train", "training", "0.6"), ("test", "test", "tab:red")):
            points = predictions[predictions.set == part]
            if points.empty:
                continue
            if part == "train":
                points = points.groupby(["structure", "phase"], as_index=False).mean(numeric_only=True)
            found = scores(points.true, points["mean"])
            label = f"{name} ({len(points)}): R² {found['R2']:.3f}, RMSE {found['RMSE']:.4f} {target.unit}"
            for phase, marker in zip(common.PHASES, "os"):
                of_phase = points[points.phase == phase]
                style = {"s": 12, "color": colour, "marker": marker, "alpha": 0.6, "lw": 0}
                axes.scatter(of_phase.true, of_phase["mean"], label=label, **style)
                label = None  # said once, by the circles
            if "half_width_90" in points:
                bars = {"fmt": "none", "ecolor": colour, "lw": 0.6, "alpha": 0.5}
                axes.errorbar(points.true, points["mean"], points.half_width_90, **bars)
        axes.plot(ends, ends, c="k", lw=0.8, zorder=0)
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.set_xlabel(f"{target.label} in the database ({target.unit})")
        axes.set_ylabel(f"predicted {target.label} ({target.unit})")
        said = ["circles fcc, squares bcc"] + ["bars: 90 % interval"] * ("half_width_90" in predictions)
        said += ["no test set: the fit, not how well it predicts"] * (cfg.SPLITS == ["all"])
        axes.legend(fontsize=8, title="\n".join(said), title_fontsize=8, loc="upper left")


# ==== the checkpoint ==============================================================================


def network_state(trained, inputs):
    """What predictions of common.Trained need, and what tells whether Network is still the same."""
    return {
        "weights": [one.state_dict() for one in trained.networks],
        "scalers": [[tuple(map(torch.tensor, (s.mean_, s.scale_))) for s in p] for p in trained.scalers],
        "layers": repr(trained.networks[0]),
        "inputs": torch.tensor(inputs),
        "predicted": torch.tensor(common.predict(trained, inputs)),
    }


def load_networks(state, n_elements, path):
    """common.Trained from `network_state`. InputError where common.Network is another than it was."""
    from sklearn.preprocessing import StandardScaler

    def scaler(mean, scale):
        made = StandardScaler()
        made.mean_, made.scale_, made.n_features_in_ = mean.numpy(), scale.numpy(), len(mean)
        return made

    scalers = [[scaler(*one) for one in pair] for pair in state["scalers"]]
    networks = [common.Network(n_elements, state["inputs"].shape[1]) for _ in state["weights"]]
    was, now = state["layers"].splitlines(), repr(networks[0]).splitlines()
    changed = ", ".join(line.strip() for line in difflib.ndiff(was, now) if line[0] in "+-")
    fault = f"{path}: its network is another than Network in common.py: {changed}"
    if was != now:
        raise InputError(fault)
    try:
        for network, weights in zip(networks, state["weights"]):
            network.load_state_dict(weights)
    except RuntimeError as error:  # parameters that layers do not show
        raise InputError(f"{fault} {error}") from None
    trained = common.Trained(networks, scalers, np.zeros(len(networks), int), [])
    off = np.abs(common.predict(trained, state["inputs"].numpy()) - state["predicted"].numpy()).max()
    if not off < TOLERANCE * min(pair[1].scale_.item() for pair in scalers):
        raise InputError(f"{path}: Network in common.py has another forward than its network: {off:.2g} off")
    return trained


def seen_in_training(data, rows):
    """What tells alloys outside of what some rows hold: elements, phases, pairs and ranges."""
    elements, inputs = data.system.elements, data.inputs[rows]
    held = inputs[:, : len(elements)] > 0  # which elements, in each alloy
    pairs = itertools.combinations(range(len(elements)), 2)
    most = inputs[:, -len(data.phases) :].max(0)
    return {
        "elements": [*elements], "phases": [p for p, share in zip(data.phases, most) if share > 0.5],
        "unseen": [[elements[i] for i in pair] for pair in pairs if not held[:, pair].all(1).any()],
        "n_components": sorted({*data.table.n_components[rows].tolist()}),
        "least": torch.tensor(inputs.min(0)), "greatest": torch.tensor(inputs.max(0)),
    }  # fmt: skip


def save_checkpoint(cfg, data, splits, outcome, path):
    """What predictions need, and what the run has seen, so that alloys outside of it are told."""
    saved = seen_in_training(data, np.unique(np.concatenate([split.train for split in splits]))) | {
        "method": outcome.method, "title": outcome.title, "target": cfg.TARGET, "data": data.source,
        "phase_input": getattr(cfg, "PHASE_INPUT", "named"), "state": outcome.state,
        "excluded": [sorted(pair) for pair in data.system.excluded],
        "properties": common.element_properties(data.system.elements).tolist(),
    }  # fmt: skip
    torch.save(saved, path)
