"""Scratch, Scratch', DA and TL beside what a researcher would pick instead, on the same splits.

    python studies/compare_methods.py --data-dir HEA_data --table-dir results
    python studies/compare_methods.py --splits 0-19 --percents 20 100 --methods scratch tl ce gp
    python studies/compare_methods.py --backend dask --scheduler tcp://host:8786

Reads the occupation tables of structure_stat.py. Peers, on the networks' twelve inputs and the same
rows: the cluster expansion alone (ce, on the structure's own clusters), Gaussian process with an
anisotropic Matérn kernel (gp), support vector regression (svr), random forest (rf), gradient
boosting (gb); each chooses its hyperparameters inside the training set. Networks count as the
ensemble mean over SEEDS.

Writes to RESULTS_DIR: parts/ (one file per piece of work, named by a hash of all that it follows from:
data, tables, settings, code; what is there is not done again, so an interrupted run goes on where it
was), comparison.csv (tidy, a row per method, rule and split),
comparison.md, learning_curve.png and paired.png.
"""

import hashlib
import json
import os
import sys
import time
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from scipy.stats import t as student
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import generate
import main as scratch
import main_committee
import main_transfer as transfer
import report
import settings
import structure_stat

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results/compare"  # folder for what this script writes
METHODS = "scratch scratch_prime da tl committee ce gp svr rf gb"  # which to compare
TARGETS = "Ef Ms"  # Ef, Ms
ALLOY_SETS = "4+5 Total"  # 4+5, Total
PERCENTS = "0 20 40 60 80 100"  # shares of the training set's four- and five-element alloys
SPLITS = "0-19"  # random splits into training and test set
SEEDS = "0-3"  # networks per split
RULES = "validation reference"  # how networks choose their epoch: validation, reference
BACKEND = "loky"  # joblib's: loky (this machine's cores), threading, dask or ray
SCHEDULER = None  # address of the Dask scheduler or Ray cluster; None: one on this machine
# --------------------------------------------------------------------------------------------------

CHUNK = 5  # splits per piece of work: the networks of all train side by side
LABELS = report.METHODS | {
    "ce": "CE alone", "gp": "Gaussian process", "svr": "support vectors", "rf": "random forest",
    "gb": "gradient boosting",
}  # fmt: skip
NETWORKS = ("scratch", "scratch_prime", "da", "tl")
KEYS = ["alloys", "target", "percent", "method", "rule"]


# ---- the peers: (data, training rows, test rows, split number) -> predictions ------------------------


def predict_ce(data, train, test, number):
    """A ridge per phase on points, pairs and triplets; its penalty by leave-one-out in training."""
    from sklearn.linear_model import RidgeCV

    columns = generate.ce_columns(data.system, generate.CLUSTERS)
    inputs, phases = data.table[columns].to_numpy(), data.table.phase.to_numpy()
    predicted = np.empty(len(test))
    for phase in common.phases_of(data.table):
        rows, of_test = train[phases[train] == phase], phases[test] == phase
        model = RidgeCV(alphas=np.logspace(-6, 1, 15)).fit(inputs[rows], data.targets[rows])
        predicted[of_test] = model.predict(inputs[test[of_test]])
    return predicted


def predict_gp(data, train, test, number):
    """Matérn kernel with a length per input, and noise; smoothness 3/2 or 5/2 by likelihood."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    scalers = common.Scalers.fit(data.inputs[train], data.targets[train])
    inputs, targets = scalers.transform(data.inputs[train], data.targets[train])
    models = []
    for nu in (1.5, 2.5):
        lengths = np.full(inputs.shape[1], 3.0)
        kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(lengths, (1e-1, 1e3), nu) + WhiteKernel(
            0.1, (1e-4, 1)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: an input of no use
            models.append(GaussianProcessRegressor(kernel).fit(inputs, targets))
    best = max(models, key=lambda model: model.log_marginal_likelihood_value_)
    scaled = best.predict(scalers.inputs.transform(data.inputs[test]))
    return scalers.target.inverse_transform(scaled[:, None])[:, 0]


def predict_by_search(model, grid):
    """A peer of scikit-learn: standardised, the best of the grid by five-fold cross-validation."""

    def predict(data, train, test, number):
        from sklearn.model_selection import GridSearchCV, KFold

        scalers = common.Scalers.fit(data.inputs[train], data.targets[train])
        folds = KFold(5, shuffle=True, random_state=number)
        search = GridSearchCV(model(number), grid, cv=folds, scoring="neg_mean_squared_error")
        search.fit(*scalers.transform(data.inputs[train], data.targets[train]))
        scaled = search.predict(scalers.inputs.transform(data.inputs[test]))
        return scalers.target.inverse_transform(scaled[:, None])[:, 0]

    return predict


def support_vectors(number):
    from sklearn.svm import SVR

    return SVR()


def forest(number):
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(100, random_state=number)


def boosting(number):
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(subsample=0.5, random_state=number)


PEERS = {
    "ce": predict_ce,
    "gp": predict_gp,
    "svr": predict_by_search(
        support_vectors, {"C": [1, 3, 10, 30, 100], "gamma": [0.01, 0.03, 0.1], "epsilon": [0.02, 0.1, 0.2]}
    ),
    "rf": predict_by_search(forest, {"max_features": [0.3, 0.6, 1.0]}),
    "gb": predict_by_search(
        boosting, {"max_depth": [2, 4], "n_estimators": [200, 600], "learning_rate": [0.05]}
    ),
}


# ---- one piece of work ---------------------------------------------------------------------------


def network_predictions(piece, data, data_dir, splits, seeds):
    """Test predictions of the published methods, with the scripts' own settings: [(n_seeds, n_test)]."""
    method = piece["method"]
    if method in ("da", "tl"):
        samples = generate.make_samples(data_dir, data.table, data.system, piece["alloys"], transfer.CLUSTERS)

    def fit(train_rows, watch_rows, epochs):
        rows = train_rows, watch_rows, epochs, seeds
        if method in ("scratch", "scratch_prime"):
            return scratch.scratch(data, *rows, device="cpu")
        labelled = transfer.label_by_ce(data, samples, train_rows)
        if method == "tl":
            return transfer.transfer(data, labelled, *rows, device="cpu")
        selected = generate.select(samples, transfer.AUGMENT, piece["alloys"])
        return transfer.augment(data, labelled, selected, *rows, device="cpu")

    trained = common.fit_selected(
        fit, data.table, splits, piece["rule"], scratch.EPOCHS, scratch.HOLD_OUT, scratch.REFIT
    )
    return [p[:, split.test] for p, split in zip(common.predict(trained, data.inputs), splits)]


def work(piece, data, data_dir, seeds):
    """Fit a method on a chunk of splits: rows of the tidy table."""
    started, method = time.time(), piece["method"]
    high_only = method == "scratch_prime"
    splits = [
        common.split_rows(data.table, piece["alloys"], piece["percent"], number, high_only)
        for number in piece["splits"]
    ]
    half_widths = None
    if method in NETWORKS:
        predicted = network_predictions(piece, data, data_dir, splits, seeds)
    elif method == "committee":
        outcome = main_committee.fit(
            data, data_dir, splits, seeds[:1], piece["alloys"]
        )  # an ensemble of networks itself
        predicted = [p[:, split.test] for p, split in zip(outcome.predicted, splits)]
        half_widths = outcome.columns["half_width_90"]
    else:
        predicted = [PEERS[method](data, one.train, one.test, one.number)[None] for one in splits]
    rows = []
    for i, (split, values) in enumerate(zip(splits, predicted)):
        true, within = data.targets[split.test], np.nan
        if half_widths is not None:
            within = (np.abs(true - values.mean(0)) <= half_widths[i, split.test]).mean()
        ensemble, single = report.scores(true, values.mean(0)), [report.scores(true, v) for v in values]
        # What the splits share follows from the pool that they draw test alloys from: for '4+5' those of
        # four and five elements. The alloys of few elements, in every training set, do not count.
        many = data.table.n_components >= (4 if piece["alloys"] == "4+5" else 0)
        rows.append(
            {name: piece[name] for name in KEYS}
            | {"split": split.number, "n_pool": many.sum() - len(split.test), "n_test": len(split.test)}
            | {name: ensemble[name] for name in ("R2", "RMSE", "MAE")}
            | {f"single_{name}": np.mean([one[name] for one in single]) for name in ("R2", "RMSE", "MAE")}
            | {"within_90": within, "seconds": (time.time() - started) / len(splits)}
        )
    return pd.DataFrame(rows)


def pieces_of(chosen):
    """All pieces of work, the most asked-for first: dicts with KEYS and splits."""
    pieces = []
    for alloys in chosen.ALLOY_SETS:
        for percent in sorted(map(float, chosen.PERCENTS), key=lambda p: (p not in (20, 100), -p)):
            for target in chosen.TARGETS:
                for method in chosen.METHODS:
                    if method == "scratch_prime" and percent == 0:
                        continue  # nothing is left to train on
                    for rule in chosen.RULES if method in NETWORKS else ["training set"]:
                        for start in range(0, len(chosen.SPLITS), CHUNK):
                            piece = dict(zip(KEYS, (alloys, target, percent, method, rule)))
                            pieces.append(piece | {"splits": chosen.SPLITS[start : start + CHUNK]})
    return pieces


def code_hash():
    """Of all scripts that a figure comes from: a changed line may change it."""
    modules = (common, structure_stat, generate, scratch, transfer, main_committee, report)
    files = [*(module.__file__ for module in modules), __file__]
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in files)).hexdigest()


def part_path(folder, piece, data, seeds, code):
    """File of a piece: named by all that its content follows from."""
    follows_from = json.dumps([piece, seeds, data.sha256, code], sort_keys=True)
    words = [piece["method"], piece["target"], piece["alloys"], f"{piece['percent']:g}"]
    words += [piece["rule"].replace(" ", "-"), hashlib.sha256(follows_from.encode()).hexdigest()[:16]]
    return folder / "parts" / ("_".join(words) + ".csv")


@contextmanager
def joblib_backend(backend, scheduler):
    """In it joblib runs on this machine's cores, or on a Dask or Ray cluster."""
    with ExitStack() as stack:
        more = {}
        if backend == "dask":
            from distributed import Client

            more["client"] = stack.enter_context(Client(scheduler))
        if backend == "ray":
            import ray
            from ray.util.joblib import register_ray

            ray.init(address=scheduler)
            register_ray()
        stack.enter_context(joblib.parallel_config(backend, **more))
        yield


# ---- table and pictures --------------------------------------------------------------------------


def corrected_interval(differences, n_pool, n_test):
    """Half width of the 95 % interval of a mean difference over splits whose training sets overlap.

    Nadeau and Bengio, Machine Learning 52, 239 (2003): variance times 1/J + n_test/n_train, n_train being
    what is left of the pool that the test alloys are drawn from.
    """
    n = len(differences)
    if n < 2:
        return np.nan
    return student.ppf(0.975, n - 1) * np.sqrt((1 / n + n_test / n_pool) * np.var(differences, ddof=1))


def paired(frame, baseline="scratch", measure="RMSE"):
    """Each method against the baseline, split by split: mean difference, its interval, ratio.

    Empty where the baseline is not among the methods.
    """
    rows = []
    for (alloys, target, percent), group in frame.groupby(["alloys", "target", "percent"]):
        for rule in group.rule[group.method == baseline].unique():
            base = group[(group.method == baseline) & (group.rule == rule)].set_index("split")
            for method, other in group[group.rule.isin([rule, "training set"])].groupby("method"):
                other = other.set_index("split").reindex(base.index)
                difference = (other[measure] - base[measure]).dropna()
                if method == baseline or difference.empty:
                    continue
                half = corrected_interval(difference, base.n_pool.mean(), base.n_test.mean())
                rows.append(
                    dict(zip(KEYS, (alloys, target, percent, method, rule)))
                    | {"splits": len(difference), "difference": difference.mean(), "half_width": half}
                    | {"ratio": other[measure].mean() / base[measure].mean()}
                )
    return pd.DataFrame(rows, columns=[*KEYS, "splits", "difference", "half_width", "ratio"])


def write_markdown(frame, path):
    """comparison.md: RMSE, mean ± standard deviation over splits, of the ensembles."""
    lines = []
    for alloys, group in frame.groupby("alloys"):
        columns = sorted({*zip(group.target, group.percent)})
        lines += [
            f"Test RMSE, alloys {alloys}, mean ± standard deviation over {group.split.nunique()} splits; "
            "Ef in 10⁻² eV/atom, Ms in 10⁻¹ μB/atom; networks: ensembles over seeds\n",
            "| method | epoch or hyperparameters by | "
            + " | ".join(f"{t}, {p:g} %" for t, p in columns)
            + " |",
            "| --- | --- |" + " --- |" * len(columns),
        ]
        best = group[group.rule != "reference"].groupby(["target", "percent", "method", "rule"]).RMSE.mean()
        for method in LABELS:
            for rule in group.rule[group.method == method].unique():
                cells = []
                for target, percent in columns:
                    rows = group[
                        (group.method == method) & (group.rule == rule)
                        & (group.target == target) & (group.percent == percent)
                    ]  # fmt: skip
                    scale = 100 if target == "Ef" else 10
                    if rows.empty:
                        cells.append("")
                        continue
                    text = f"{scale * rows.RMSE.mean():.2f} ± {scale * rows.RMSE.std():.2f}"
                    least = rule != "reference" and np.isclose(rows.RMSE.mean(), best[target, percent].min())
                    cells.append(f"**{text}**" if least else text)
                shown = {"reference": "test set (as published)"}.get(rule, rule)
                lines.append(f"| {LABELS[method]} | {shown} | " + " | ".join(cells) + " |")
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")


def plot_learning_curves(frame, path):
    """RMSE against the share of high-component training alloys; bands: standard error over splits."""
    from matplotlib.figure import Figure

    cells = sorted({*zip(frame.alloys, frame.target)})
    figure = Figure(figsize=(4.6 * len(cells), 4.2), layout="constrained")
    for axes, (alloys, target) in zip(np.ravel(figure.subplots(1, len(cells))), cells):
        group = frame[(frame.alloys == alloys) & (frame.target == target)]
        for i, method in enumerate(m for m in LABELS if m in set(group.method)):
            rows = group[group.method == method].groupby("percent").RMSE.agg(["mean", "sem"])
            colour = f"C{i}"
            axes.plot(rows.index, rows["mean"], marker="o", ms=4, c=colour, label=LABELS[method])
            axes.fill_between(
                rows.index,
                rows["mean"] - rows["sem"],
                rows["mean"] + rows["sem"],
                color=colour,
                alpha=0.15,
                lw=0,
            )
        axes.set(
            title=f"{target}, alloys {alloys}", xlabel="four- and five-element training alloys kept (%)",
            ylabel=f"test RMSE ({common.TARGETS[target].unit})",
        )  # fmt: skip
    figure.axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=150, format="png")


def plot_paired(found, path):
    """Difference from Scratch in RMSE, split by split, with corrected 95 % intervals; found: of `paired`."""
    from matplotlib.figure import Figure

    cells = sorted({*zip(found.alloys, found.target, found.percent)})
    figure = Figure(figsize=(3.2 * len(cells) + 1, 3.4), layout="constrained")
    methods = [m for m in LABELS if m in set(found.method)]
    for axes, (alloys, target, percent) in zip(np.ravel(figure.subplots(1, len(cells), sharey=True)), cells):
        group = found[(found.alloys == alloys) & (found.target == target) & (found.percent == percent)]
        place = [-methods.index(method) for method in group.method]
        axes.errorbar(group.difference, place, xerr=group.half_width, fmt="o", ms=4, capsize=3)
        axes.axvline(0, c="k", lw=0.8)
        axes.locator_params(axis="x", nbins=4)
        axes.set_yticks([-i for i in range(len(methods))], [LABELS[m] for m in methods])
        unit = common.TARGETS[target].unit
        axes.set(title=f"{target}, {alloys}, {percent:g} %", xlabel=f"RMSE − Scratch's ({unit})")
    figure.savefig(path, dpi=150, format="png")


def main():
    chosen = settings.read(
        globals(),
        METHODS=settings.words_of(*LABELS),
        TARGETS=settings.words_of(*common.TARGETS),
        ALLOY_SETS=settings.words_of("4+5", "Total"),
        PERCENTS=settings.words_of("0", "20", "40", "60", "80", "100"),
        RULES=settings.words_of("validation", "reference"),
        BACKEND=settings.one_of("loky", "threading", "dask", "ray"),
        SCHEDULER=settings.optional(str),
    )
    folder, seeds, code = chosen.RESULTS_DIR, chosen.SEEDS, code_hash()
    settings.output_folder(folder / "parts")
    of_target = {
        target: common.load_data(
            chosen.DATA_DIR, chosen.TABLE_DIR, target, chosen.ELEMENTS, chosen.EXCLUDED_PAIRS
        )
        for target in chosen.TARGETS
    }
    pieces = pieces_of(chosen)
    paths = [part_path(folder, piece, of_target[piece["target"]], seeds, code) for piece in pieces]
    todo = [(piece, path) for piece, path in zip(pieces, paths) if not path.exists()]
    os.environ["TQDM_DISABLE"] = "1"  # the workers' bars; this one is the script's

    def call(piece, path):
        return path, work(piece, of_target[piece["target"]], chosen.DATA_DIR, seeds)

    with (
        joblib_backend(chosen.BACKEND, chosen.SCHEDULER),
        tqdm(total=len(pieces), initial=len(pieces) - len(todo), disable=False) as bar,
    ):
        calls = (joblib.delayed(call)(*one) for one in todo)
        for path, rows in joblib.Parallel(n_jobs=-1, return_as="generator_unordered")(calls):
            with settings.whole_files(path.parent) as new:
                settings.write_csv(rows, new(path.name))
            bar.update()

    frame = pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)
    with settings.whole_files(folder) as new:
        settings.write_csv(frame, new("comparison.csv"))
        settings.write_csv(paired(frame), new("paired.csv"))
        write_markdown(frame, new("comparison.md"))
        honest = frame[frame.rule != "reference"]
        differences = paired(honest[honest.percent.isin([20, 100])])
        if len(honest):
            plot_learning_curves(honest, new("learning_curve.png"))
        if len(differences):
            plot_paired(differences, new("paired.png"))
    print((folder / "comparison.md").read_text("utf-8"))


if __name__ == "__main__":
    settings.run(main)
