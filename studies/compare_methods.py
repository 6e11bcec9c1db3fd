"""Scratch, Scratch', DA and TL beside what a researcher would pick instead, on the same splits.

    python studies/compare_methods.py --data-dir HEA_data --table-dir results
    python studies/compare_methods.py --splits 0-19 --percents 20 100 --methods scratch tl ce gp
    python studies/compare_methods.py --backend dask --scheduler tcp://host:8786

Reads the occupation tables of structure_stat.py (--cells given lattice). Peers, on the networks' inputs
and the same rows: Gaussian process with an anisotropic Matérn kernel (gp), support vector regression
(svr), random forest (rf), gradient boosting (gb); and, on the arrangement of species on the lattice, the
cluster expansion alone (ce; ce_fixed with the published penalty) and a Bayesian ridge with automatic
relevance (ard); a Gaussian process mixed over the phases that may become of an alloy (gp_mixture). Each
chooses its hyperparameters inside the training set. Networks count as the ensemble mean over SEEDS.

PHASE_INPUTS named: alloy and lattice in the name -> the label in the table, the published question.
found: alloy and the shares of fcc, bcc and hcp that its cell has -> the label, a property in a phase that
one asks for. RULES reference: the paper's, and for ce the test cells as DFT relaxed them, a leak to look at.

Writes to RESULTS_DIR: parts/ (one file per piece of work, named by a hash of all that it follows from:
data, tables, settings, code; what is there is not done again, so an interrupted run goes on where it
was), comparison.csv (tidy, a row per method, rule and split),
comparison.md, learning_curve.png and paired.png.
"""

import hashlib
import inspect
import json
import sys
import time
import warnings
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import settings  # first: from here on Ctrl-C leaves no traceback

# isort: split
import joblib
import numpy as np
import pandas as pd
from scipy.stats import t as student
from tqdm import tqdm

import cells
import common
import generate
import main as scratch
import main_committee
import main_transfer as transfer
import processes
import report
import structure_stat
from settings import InputError

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results/compare"  # folder for what this script writes
METHODS = "scratch scratch_prime da tl tl_tuned committee ce ce_fixed gp svr"  # more in LABELS
PHASE_INPUTS = "named"  # named, found: what is known of the phase
TARGETS = "Ef Ms"  # Ef, Ms
ALLOY_SETS = "4+5 Total"  # 4+5, Total
PERCENTS = "0 20 40 60 80 100"  # shares of the training set's four- and five-element alloys
SPLITS = "0-19"  # random splits into training and test set
SEEDS = "0-3"  # networks per split
RULES = "validation reference"  # how networks choose their epoch: validation, reference
BASELINE = "scratch"  # the method whose error is taken from the others' in paired.csv and paired.png
BACKEND = "loky"  # joblib's: loky (this machine's cores), threading, dask or ray
SCHEDULER = None  # address of the Dask scheduler or Ray cluster; None: one on this machine
# --------------------------------------------------------------------------------------------------

CHUNK = 5  # splits per piece of work: the networks of all train side by side
LABELS = common.METHODS | {
    "committee_scratch": "committee, networks not taught", "committee_processes": "committee, no networks",
    "tl_tuned": "TL, the CE's penalty tuned", "ce": "CE alone", "ce_fixed": "CE alone, published penalty",
    "ard": "Bayesian ridge on clusters", "gp_mixture": "Gaussian process over phases",
    "gp": "Gaussian process", "svr": "support vectors", "rf": "random forest",
    "gb": "gradient boosting",
}  # fmt: skip
NETWORKS = ("scratch", "scratch_prime", "da", "tl", "tl_tuned")
COMMITTEES = {  # what differs from main_committee.py's settings
    "committee": {}, "committee_scratch": {"source": False}, "committee_processes": {"n_networks": 0},
}  # fmt: skip
ON_CLUSTERS = ("ce", "ce_fixed")  # peers that are told of no phase but the lattice they are on
NEED_CLUSTERS = ("da", "tl", "tl_tuned", "ard", *ON_CLUSTERS)
KEYS = ["alloys", "target", "percent", "phase_input", "method", "rule"]


# ---- the peers: (data, training rows, test rows, split number, rule) -> predictions ------------------


def predict_ce(alpha):
    """The cluster expansion of `generate.fit_ce`, asked for an alloy's arrangement on the lattice."""

    def predict(data, train, test, number, rule):
        columns = generate.ce_columns(data.system, generate.CLUSTERS)
        inputs = common.known_before(data, columns, rule)
        models, predicted = generate.fit_ce(data, train, generate.CLUSTERS, alpha), np.empty(len(test))
        for phase in common.phases_of(data.table):
            of_test = data.table.phase.to_numpy()[test] == phase
            predicted[of_test] = models[phase].predict(inputs[test[of_test]])
        return predicted

    return predict


def predict_ard(data, train, test, number, rule):
    """Bayesian ridge with automatic relevance on the clusters on the lattice and the phase."""
    from sklearn.linear_model import ARDRegression

    columns = generate.ce_columns(data.system, generate.CLUSTERS)
    clusters = common.known_before(data, columns, rule)
    inputs = np.hstack([clusters, data.inputs[:, -len(data.phases) :]])
    scalers = common.Scalers.fit(inputs[train], data.targets[train])
    model = ARDRegression().fit(*scalers.transform(inputs[train], data.targets[train]))
    scaled = model.predict(scalers.inputs.transform(inputs[test]))
    return scalers.target.inverse_transform(scaled[:, None])[:, 0]


def gaussian_process(inputs, targets):
    """Matérn kernel with a length per input, and noise; smoothness 3/2 or 5/2 by likelihood.

    Settled on some of the rows where there are many; all of them predict.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    models, drawn = [], processes.rows_for_lengths(len(targets))
    for nu in (1.5, 2.5):
        lengths, noise = np.full(inputs.shape[1], 3.0), WhiteKernel(0.1, (1e-4, 1))
        kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(lengths, (1e-1, 1e3), nu) + noise
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: an input of no use
            models.append(GaussianProcessRegressor(kernel).fit(inputs[drawn], targets[drawn]))
    best = max(models, key=lambda model: model.log_marginal_likelihood_value_)
    if len(drawn) == len(targets):
        return best
    return GaussianProcessRegressor(best.kernel_, optimizer=None).fit(inputs, targets)


def predict_gp(data, train, test, number, rule):
    scalers = common.Scalers.fit(data.inputs[train], data.targets[train])
    model = gaussian_process(*scalers.transform(data.inputs[train], data.targets[train]))
    scaled = model.predict(scalers.inputs.transform(data.inputs[test]))
    return scalers.target.inverse_transform(scaled[:, None])[:, 0]


def predict_gp_mixture(data, train, test, number, rule):
    """A process told the phase found, its mean over the phases that a classifier expects of the alloy."""
    from sklearn.gaussian_process import GaussianProcessClassifier
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel
    from sklearn.preprocessing import StandardScaler

    phases = common.INPUT_PHASES["found"]
    descriptors, became = data.inputs[:, : -len(data.phases)], data.shares.argmax(1)
    inputs = np.hstack([descriptors, data.shares])
    scalers = common.Scalers.fit(inputs[train], data.targets[train])
    model = gaussian_process(*scalers.transform(inputs[train], data.targets[train]))
    known = StandardScaler().fit(data.inputs[train])
    kernel = ConstantKernel(3.0) * RBF(3.0)
    classes, chances = np.unique(became[train]), np.ones((len(test), 1))
    if len(classes) > 1:
        classifier = GaussianProcessClassifier(kernel, random_state=number)
        classifier.fit(known.transform(data.inputs[train]), became[train])
        chances = classifier.predict_proba(known.transform(data.inputs[test]))
    scaled = 0
    for k, chance in zip(classes, chances.T):
        of_phase = np.hstack([descriptors[test], np.tile(np.eye(len(phases))[k], (len(test), 1))])
        scaled = scaled + chance * model.predict(scalers.inputs.transform(of_phase))
    return scalers.target.inverse_transform(scaled[:, None])[:, 0]


def predict_by_search(model, grid):
    """A peer of scikit-learn: standardised, the best of the grid by five-fold cross-validation."""

    def predict(data, train, test, number, rule):
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
    "ce": predict_ce("tuned"),
    "ce_fixed": predict_ce(None),
    "ard": predict_ard,
    "gp_mixture": predict_gp_mixture,
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
    if method in ("da", "tl", "tl_tuned"):
        samples = generate.make_samples(data_dir, data, piece["alloys"], transfer.CLUSTERS)

    def fit(train_rows, watch_rows, epochs):
        rows = train_rows, watch_rows, epochs, seeds
        if method in ("scratch", "scratch_prime"):
            return scratch.scratch(data, *rows, device="cpu")
        alpha = "tuned" if method == "tl_tuned" else None
        labelled = transfer.label_by_ce(data, samples, train_rows, alpha=alpha)
        if method != "da":
            return transfer.transfer(data, labelled, *rows, device="cpu")
        selected = generate.select(samples, transfer.AUGMENT, piece["alloys"])
        return transfer.augment(data, labelled, selected, *rows, device="cpu")

    trained = common.fit_selected(
        fit, data.table, splits, piece["rule"], scratch.EPOCHS, scratch.HOLD_OUT, scratch.REFIT
    )
    return [p[:, split.test] for p, split in zip(common.predict(trained, data.inputs), splits)]


def answers(piece, data, data_dir, splits, seeds):
    """Test predictions of a method fitted on each split: ({phase input: [(n_members, n_test)]}, outcome).

    A committee answers with both phase inputs, and has a report.Outcome; else that is None.
    """
    method, rule = piece["method"], piece["rule"]
    if method in NETWORKS:
        return {piece["phase_input"]: network_predictions(piece, data, data_dir, splits, seeds)}, None
    if method in COMMITTEES:  # of one seed: it is an ensemble of networks itself
        outcome = main_committee.fit(data, splits, seeds[:1], piece["alloys"], **COMMITTEES[method])
        given = outcome.columns["mean_given_phase"]
        named = [p[:, split.test] for p, split in zip(outcome.predicted, splits)]
        return {"named": named, "found": [p[None, split.test] for p, split in zip(given, splits)]}, outcome
    of_splits = [PEERS[method](data, one.train, one.test, one.number, rule)[None] for one in splits]
    return {piece["phase_input"]: of_splits}, None


def work(piece, data, data_dir, seeds):
    """Fit a method on a chunk of splits: rows of the tidy table; a committee's are of both phase inputs."""
    started, high_only = time.time(), piece["method"] == "scratch_prime"
    splits = [
        common.split_rows(data.table, piece["alloys"], piece["percent"], number, high_only)
        for number in piece["splits"]
    ]
    found, outcome = answers(piece, data, data_dir, splits, seeds)
    seconds, rows = (time.time() - started) / len(splits), []
    for phase_input, predicted in found.items():
        for i, (split, values) in enumerate(zip(splits, predicted)):
            true = data.targets[split.test]
            ensemble, single = report.scores(true, values.mean(0)), [report.scores(true, v) for v in values]
            row = {name: piece[name] for name in KEYS} | {"phase_input": phase_input, "split": split.number}
            # What the splits share follows from the pool that they draw test alloys from: for '4+5' those
            # of four and five elements. The alloys of few elements, in every training set, do not count.
            many = data.table.n_components >= (4 if piece["alloys"] == "4+5" else 0)
            row |= {"n_pool": many.sum() - len(split.test), "n_test": len(split.test)}
            for name in ("R2", "RMSE", "MAE"):
                row |= {name: ensemble[name], f"single_{name}": np.mean([one[name] for one in single])}
            if outcome is not None:
                row |= of_intervals(data, outcome, i, split.test, phase_input)
            rows.append(row | {"seconds": seconds})
    return pd.DataFrame(rows)


def of_intervals(data, outcome, i, rows, phase_input):
    """How many of some test alloys a committee's 90 % intervals hold, and how well it tells the phase.

    i: place of the split in outcome. rows: numbers of the alloys.
    """
    ending = {"named": "", "found": "_given_phase"}[phase_input]
    columns = {name: values[i, rows] for name, values in outcome.columns.items()}
    mean = columns["mean_given_phase"] if ending else outcome.predicted[i].mean(0)[rows]
    became = data.shares[rows].argmax(1)
    chances = np.column_stack([columns[f"p_{phase}"] for phase in main_committee.FOUND])
    return {
        "within_90": (np.abs(data.targets[rows] - mean) <= columns[f"half_width_90{ending}"]).mean(),
        "phase_told": (chances.argmax(1) == became).mean(),
        "phase_named": (data.table.phase.to_numpy()[rows] == np.array(main_committee.FOUND)[became]).mean(),
        "phase_log_loss": -np.log(chances[np.arange(len(became)), became].clip(1e-3)).mean(),
    }


def able(methods, clusters):
    """Those of the methods that data with or without clusters can train; a printed line says which."""
    left = [method for method in methods if clusters or method not in NEED_CLUSTERS]
    if not left:
        raise InputError("no POSCARS/: expected a method that needs no clusters among METHODS")
    if len(left) < len(methods):
        others = [LABELS[method] for method in methods if method not in left]
        print(f"without clusters: trained are {', '.join(map(LABELS.get, left))}; not {', '.join(others)}")
    return left


def pieces_of(chosen):
    """All pieces of work, the most asked-for first: dicts with KEYS and splits."""
    pieces = []
    rules_of = {method: chosen.RULES for method in NETWORKS}
    rules_of |= {
        method: [rule.replace("validation", "training set") for rule in chosen.RULES]
        for method in ON_CLUSTERS
    }
    for alloys in chosen.ALLOY_SETS:
        for percent in sorted(map(float, chosen.PERCENTS), key=lambda p: (p not in (20, 100), -p)):
            for target in chosen.TARGETS:
                for phase_input, method in product(chosen.PHASE_INPUTS, chosen.METHODS):
                    if method == "scratch_prime" and percent == 0:
                        continue  # nothing is left to train on
                    if method in (*ON_CLUSTERS, *COMMITTEES, "gp_mixture") and phase_input == "found":
                        continue
                    for rule in rules_of.get(method, ["training set"]):
                        for start in range(0, len(chosen.SPLITS), CHUNK):
                            piece = dict(zip(KEYS, (alloys, target, percent, phase_input, method, rule)))
                            pieces.append(piece | {"splits": chosen.SPLITS[start : start + CHUNK]})
    return pieces


def code_hash(method):
    """Of the code that a method's figures come from: a changed line may change them."""
    modules = [common, structure_stat, cells, generate, processes]
    modules += [scratch, transfer] if method in NETWORKS else [main_committee] * (method in COMMITTEES)
    code = [Path(module.__file__).read_text("utf-8").split("\ndef main():")[0] for module in modules]
    code.append(Path(__file__).read_text("utf-8").split("# ---- table and pictures")[0])
    return hashlib.sha256("".join([*code, inspect.getsource(report.scores)]).encode()).hexdigest()


def data_key(piece):
    """Which data a piece of work takes: (target, phase input, cells)."""
    return piece["target"], piece["phase_input"], transfer.cells_for(piece["rule"])


def part_path(folder, piece, data, seeds, code):
    """File of a piece: named by all that its content follows from."""
    system = [data.system.elements, sorted(map(sorted, data.system.excluded))]
    follows_from = json.dumps([piece, seeds, data.sha256, system, code], sort_keys=True)
    words = [piece["method"], piece["target"], piece["alloys"], f"{piece['percent']:g}"]
    words += [piece["rule"].replace(" ", "-"), hashlib.sha256(follows_from.encode()).hexdigest()[:16]]
    return folder / "parts" / ("_".join(words) + ".csv")


@contextmanager
def joblib_backend(backend, scheduler):
    """In it joblib runs on this machine's cores, or on a Dask or Ray cluster."""
    with ExitStack() as stack:
        more = {}
        try:
            if backend == "dask":
                from distributed import Client

                more["client"] = stack.enter_context(Client(scheduler))
            if backend == "ray":
                import ray
                from ray.util.joblib import register_ray

                ray.init(address=scheduler)
                register_ray()
        except ImportError as error:
            raise settings.InputError(f"BACKEND {backend}: expected it installed ({error})") from None
        stack.enter_context(joblib.parallel_config(backend, **more))
        yield


def finished(pieces, paths, do):
    """Rows of all pieces; do(piece) gives those of a piece that has no file yet, on any worker of joblib."""
    todo = [(piece, path) for piece, path in zip(pieces, paths) if not path.exists()]

    def call(piece, path):
        common.tqdm = partial(tqdm, disable=True)  # wherever it runs; the one bar is the script's
        return path, do(piece)

    with tqdm(total=len(pieces), initial=len(pieces) - len(todo)) as bar:
        calls = (joblib.delayed(call)(*one) for one in todo)
        for path, rows in joblib.Parallel(n_jobs=-1, return_as="generator_unordered")(calls):
            with settings.whole_files(path.parent) as new:
                settings.write_csv(rows, new(path.name))
            bar.update()
    return pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)


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


def paired(frame, baseline=BASELINE, measure="RMSE"):
    """Each method against the baseline, split by split: mean difference, its interval, ratio.

    Empty where the baseline is not among the methods.
    """
    rows = []
    for keys, group in frame.groupby(KEYS[:4]):
        for rule in group.rule[group.method == baseline].unique():
            base = group[(group.method == baseline) & (group.rule == rule)].set_index("split")
            for method, other in group.groupby("method"):
                own = rule if (other.rule == rule).any() else "training set"
                other = other[other.rule == own].set_index("split").reindex(base.index)
                difference = (other[measure] - base[measure]).dropna()
                if method == baseline or difference.empty:
                    continue
                half = corrected_interval(difference, base.n_pool.mean(), base.n_test.mean())
                rows.append(
                    dict(zip(KEYS, (*keys, method, rule)))
                    | {"splits": len(difference), "difference": difference.mean(), "half_width": half}
                    | {"ratio": pooled(other[measure]) / pooled(base[measure])}
                )
    return pd.DataFrame(rows, columns=[*KEYS, "splits", "difference", "half_width", "ratio"])


def pooled(rmse):
    """Root of the mean squared error over splits."""
    return np.sqrt(np.mean(np.square(rmse)))


def write_markdown(frame, path):
    """comparison.md: RMSE over all splits ± its standard deviation over splits, of the ensembles."""
    lines = []
    for (alloys, phase_input), group in frame.groupby(["alloys", "phase_input"]):
        columns = sorted({*zip(group.target, group.percent)})
        units = ", ".join(f"{t} in {common.TARGETS[t].unit}" for t in dict.fromkeys(t for t, _ in columns))
        lines += [
            f"Test RMSE, alloys {alloys}, phase {phase_input}: root of the mean squared error over "
            f"{group.split.nunique()} splits ± standard deviation over splits; {units}; networks: ensembles "
            "over seeds\n",
            "| method | epoch, hyperparameters by | "
            + " | ".join(f"{t}, {p:g} %" for t, p in columns)
            + " |",
            "| --- | --- |" + " --- |" * len(columns),
        ]
        honest = group[group.rule != "reference"]
        best = honest.groupby(["target", "percent", "method", "rule"]).RMSE.agg(pooled)
        for method in LABELS:
            for rule in group.rule[group.method == method].unique():
                entries = []
                for target, percent in columns:
                    rows = group[
                        (group.method == method) & (group.rule == rule)
                        & (group.target == target) & (group.percent == percent)
                    ]  # fmt: skip
                    if rows.empty:
                        entries.append("")
                        continue
                    text = f"{pooled(rows.RMSE):.3g} ± {rows.RMSE.std():.2g}"
                    least = rule != "reference" and np.isclose(pooled(rows.RMSE), best[target, percent].min())
                    entries.append(f"**{text}**" if least else text)
                of_networks = "test set (as published)" if method in NETWORKS else "relaxed test cells"
                shown = of_networks if rule == "reference" else rule
                lines.append(f"| {LABELS[method]} | {shown} | " + " | ".join(entries) + " |")
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")


def in_words(alloys, target, phase_input):
    """Title of a panel."""
    label = common.TARGETS[target].label
    return f"{label}\n{report.ALLOYS_IN_WORDS[alloys][0]}\nphase as {phase_input}"


def kept(alloys, percent):
    return f"{percent:g} % of {report.ALLOYS_IN_WORDS[alloys][1]} for training"


def plot_learning_curves(frame, source, path):
    """RMSE against the share of high-component training alloys; bands: standard error over splits.

    Bars where there is but one share. source: whose data it is.
    """
    from matplotlib.figure import Figure

    panels, one = list(frame.groupby(["alloys", "phase_input", "target"])), frame.percent.nunique() == 1
    methods, width = [m for m in LABELS if m in set(frame.method)], max(4.0 * len(panels) + 2, 6)
    figure = Figure(figsize=(width, 5), layout="constrained")
    every = np.ravel(figure.subplots(1, len(panels), sharey=one))
    for axes, ((alloys, phase_input, target), group) in zip(every, panels):
        measure = f"test RMSE ({common.TARGETS[target].unit})"
        axes.set_title(in_words(alloys, target, phase_input), fontsize="medium")
        for i, method in enumerate(methods):
            rows = group[group.method == method].groupby("percent").RMSE.agg(["mean", "sem"])
            if one:
                axes.barh([-i] * len(rows), rows["mean"], xerr=rows["sem"], color=f"C{i}", capsize=3)
                continue
            line = {"ls": ("-", "--")[i // 10], "c": f"C{i}", "marker": "o", "ms": 4}  # ten colours
            axes.plot(rows.index, rows["mean"], **line, label=LABELS[method])
            low, high = rows["mean"] - rows["sem"], rows["mean"] + rows["sem"]
            axes.fill_between(rows.index, low, high, color=f"C{i}", alpha=0.15, lw=0)
        if one:
            axes.set_yticks([-i for i in range(len(methods))], [LABELS[m] for m in methods])
            axes.locator_params(axis="x", nbins=5)
            axes.set_xlabel(f"{measure}\n{kept(alloys, group.percent.iloc[0])}", fontsize="small")
        else:
            axes.set(xlabel="four- and five-element training alloys kept (%)", ylabel=measure)
    if not one:
        figure.axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    splits = f"mean over {frame.split.nunique()} splits and its standard error"
    figure.suptitle(f"{splits}\ndata: {source}", fontsize=9)
    figure.savefig(path, dpi=150, format="png")


def plot_paired(found, baseline, source, path):
    """Difference from the baseline in RMSE, split by split, with corrected 95 % intervals.

    found: of `paired`. A row of panels for each phase input.
    """
    from matplotlib.figure import Figure

    names, inputs = ["alloys", "target", "percent"], sorted(set(found.phase_input), reverse=True)
    columns = list(dict.fromkeys(map(tuple, found[names].sort_values(names).to_numpy())))
    methods = [m for m in LABELS if m in set(found.method)]
    size = max(3.4 * len(columns) + 1.5, 6), (0.3 * len(methods) + 1.6) * len(inputs) + 0.6
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(inputs), len(columns), sharey=True, squeeze=False)
    for (i, phase_input), (j, keys) in product(enumerate(inputs), enumerate(columns)):
        alloys, target, percent = keys
        group = found[(found[names] == list(keys)).all(axis=1) & (found.phase_input == phase_input)]
        axes, place = panels[i, j], [-methods.index(method) for method in group.method]
        axes.errorbar(group.difference, place, xerr=group.half_width, fmt="o", ms=4, capsize=3)
        axes.axvline(0, c="k", lw=0.8)
        axes.locator_params(axis="x", nbins=4)
        axes.set_yticks([-i for i in range(len(methods))], [LABELS[m] for m in methods])
        words = in_words(alloys, target, phase_input)
        axes.set_title(f"{words}\n{kept(alloys, percent)}", fontsize="small")
        axes.set_xlabel(f"left of the line: better ({common.TARGETS[target].unit})", fontsize="small")
    what = f"Test RMSE less that of {LABELS[baseline]}: {found.splits.max()} splits, 95 % intervals"
    figure.suptitle(f"{what}\ndata: {source}", fontsize=9)
    figure.savefig(path, dpi=150, format="png")


def main():
    chosen = settings.read(
        globals(),
        METHODS=settings.words_of(*LABELS),
        TARGETS=settings.words_of(*common.TARGETS),
        ALLOY_SETS=settings.words_of("4+5", "Total"),
        PERCENTS=settings.words_of("0", "20", "40", "60", "80", "100"),
        SPLITS=settings.numbers,
        PHASE_INPUTS=settings.words_of("named", "found"),
        BASELINE=settings.one_of(*LABELS),
        RULES=settings.words_of("validation", "reference"),
        BACKEND=settings.one_of("loky", "threading", "dask", "ray"),
        SCHEDULER=settings.optional(str),
    )
    chosen.METHODS = able(chosen.METHODS, (chosen.DATA_DIR / "POSCARS").is_dir())
    folder, seeds, pieces = chosen.RESULTS_DIR, chosen.SEEDS, pieces_of(chosen)
    settings.output_folder(folder / "parts")
    data = {
        key: common.load_data(
            chosen.DATA_DIR, chosen.TABLE_DIR, key[0], chosen.ELEMENTS, chosen.EXCLUDED_PAIRS, key[2], key[1]
        )
        for key in dict.fromkeys(map(data_key, pieces))
    }
    code = {method: code_hash(method) for method in chosen.METHODS}
    paths = [
        part_path(folder, piece, data[data_key(piece)], seeds, code[piece["method"]]) for piece in pieces
    ]

    def do(piece):
        return work(piece, data[data_key(piece)], chosen.DATA_DIR, seeds)

    with joblib_backend(chosen.BACKEND, chosen.SCHEDULER):
        frame = finished(pieces, paths, do)
    with settings.whole_files(folder) as new:
        settings.write_csv(frame, new("comparison.csv"))
        settings.write_csv(paired(frame, chosen.BASELINE), new("paired.csv"))
        write_markdown(frame, new("comparison.md"))
        honest, source = frame[frame.rule != "reference"], next(iter(data.values())).source
        differences = paired(honest[honest.percent.isin([20, 100])], chosen.BASELINE)
        if len(honest):
            plot_learning_curves(honest, source, new("learning_curve.png"))
        if len(differences):
            plot_paired(differences, chosen.BASELINE, source, new("paired.png"))
    print((folder / "comparison.md").read_text("utf-8"))


if __name__ == "__main__":
    settings.run(main)
