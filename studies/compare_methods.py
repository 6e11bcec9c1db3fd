"""Scratch, Scratch', DA and TL beside what a researcher would pick instead, on the same splits.

    python studies/compare_methods.py --data-dir HEA_data
    python studies/compare_methods.py --splits 0-19 --percents 20 100 --methods scratch tl ce gp
    python studies/compare_methods.py --scheduler tcp://host:8786   # on Dask's workers

Reads the occupation tables of structure_stat.py. Peers of the networks learn from the same rows. Of the
networks' inputs: a Gaussian process with an anisotropic Matérn kernel, told the shares of fcc, bcc and hcp
(gp) or of bcc, hcp and fcc + hcp (gp_close_packed), and support vectors (svr). Of the arrangement of species
on the lattice: the cluster expansion alone (ce; ce_fixed with the published penalty) and a Bayesian ridge
with automatic relevance (ard). And beyond/phase_gp.py. Each chooses its hyperparameters inside the training
set. Networks count as the ensemble mean over SEEDS.

PHASE_INPUTS named: alloy and lattice in the name -> the label in the table, the published question. found:
alloy and the shares of fcc, bcc and hcp that its cell has -> the label, a property in a phase that one asks
for. RULES validation: nothing is read of a test cell that is not known before its calculation. reference:
the paper's, epochs chosen on the test set, and for ce the test cells as DFT relaxed them, a leak to look at.

Writes to RESULTS_DIR: parts/ (a file per piece of work, named by a hash of all that it follows from: data,
tables, settings, code; what is there is not done again, so an interrupted run goes on where it was),
comparison.csv (a row per method, rule and split), comparison.md, paired.csv and paired.png.
"""

import hashlib
import json
import sys
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
from scipy.stats import t as student
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import ARDRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import generate
import main as main_scratch
import main_transfer
import report
import settings
from beyond import phase_gp
from settings import InputError

# ---- settings ------------------------------------------------------------------------------------
RESULTS_DIR = "results/compare"  # folder for what this script writes
METHODS = "scratch scratch_prime da tl tl_tuned phase_gp ce ce_fixed gp gp_close_packed svr"  # compared
PHASE_INPUTS = "named"  # what is known of the phase
TARGETS = "Ef Ms"  # Ef: formation energy; Ms: magnetisation
ALLOY_SETS = "4+5 Total"  # test alloys of four and five elements, or of two to five
PERCENTS = "0 20 40 60 80 100"  # shares of the training set's four- and five-element alloys
SPLITS = "0-19"  # random splits into training and test set
SEEDS = "0-3"  # networks per split
RULES = "validation reference"  # how networks choose their epoch
BASELINE = "gp"  # the method whose error is taken from the others' in paired.csv and paired.png
SCHEDULER = None  # address of a Dask scheduler, whose workers import this project; None: this machine's cores
# --------------------------------------------------------------------------------------------------

CHUNK = 5  # splits per piece of work: the networks of all train side by side
LABELS = report.METHODS | {
    "tl_tuned": "TL, the CE's penalty tuned", "phase_gp": "Gaussian process, phase-aware",
    "ce": "CE alone", "ce_fixed": "CE alone, published penalty", "ard": "Bayesian ridge on clusters",
    "gp": "Gaussian process", "gp_close_packed": "Gaussian process, fcc near hcp", "svr": "support vectors",
}  # fmt: skip
NETWORKS = ("scratch", "scratch_prime", "da", "tl", "tl_tuned")
ON_CLUSTERS = ("ce", "ce_fixed")  # peers that are told of no phase but the lattice they are on
NEED_CLUSTERS = ("da", "tl", "tl_tuned", "ard", *ON_CLUSTERS)
KEYS = ["alloys", "target", "percent", "phase_input", "method", "rule"]
HONEST = "training set"  # the rule of what is no network: hyperparameters are chosen there


# ---- the peers: (data, split, rule) -> predictions for all alloys, (n,), in the target's unit ------------


def regress(model, inputs, data, split):
    """Predictions of a regressor of scikit-learn; inputs and target are standardised."""
    model = TransformedTargetRegressor(make_pipeline(StandardScaler(), model), transformer=StandardScaler())
    return model.fit(inputs[split.train], data.targets[split.train]).predict(inputs)


class MaternProcess(RegressorMixin, BaseEstimator):
    """Gaussian process of a Matérn kernel with a length per input, and noise; smoothness by likelihood."""

    def fit(self, inputs, targets):
        models, lengths = [], np.full(inputs.shape[1], 3.0)
        for nu in (1.5, 2.5):
            kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(lengths, (1e-1, 1e3), nu)
            model = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-4, 1)))
            with warnings.catch_warnings():  # of a length at its bound: an input of no use
                warnings.simplefilter("ignore", ConvergenceWarning)
                models.append(model.fit(inputs, targets))
        self.process_ = max(models, key=lambda model: model.log_marginal_likelihood_value_)
        return self

    def predict(self, inputs):
        return self.process_.predict(inputs)


def gp(data, split, rule):
    return regress(MaternProcess(), data.inputs, data, split)


def gp_close_packed(data, split, rule):
    """As gp, told the shares of bcc, hcp and fcc + hcp: the two close-packed phases are near each other."""
    descriptors, shares = np.split(data.inputs, [-len(data.phases)], axis=1)
    fcc, bcc, hcp = np.pad(shares, ((0, 0), (0, 3 - shares.shape[1]))).T
    return regress(MaternProcess(), np.column_stack([descriptors, bcc, hcp, fcc + hcp]), data, split)


def svr(data, split, rule):
    grid = {"C": [1, 3, 10, 30, 100], "gamma": [0.01, 0.03, 0.1], "epsilon": [0.02, 0.1, 0.2]}
    folds = KFold(5, shuffle=True, random_state=split.number)
    search = GridSearchCV(SVR(), grid, cv=folds, scoring="neg_mean_squared_error")
    return regress(search, data.inputs, data, split)


def ard(data, split, rule):
    columns = common.cluster_columns(data.system, *main_transfer.CLUSTERS)
    clusters = common.known_before(data, columns, rule)
    return regress(ARDRegression(), np.hstack([clusters, data.inputs[:, -len(data.phases) :]]), data, split)


def ce(data, split, rule, alpha="tuned"):
    """The cluster expansion of `generate.fit_ce`, asked for an alloy's arrangement on the lattice."""
    clusters, predicted = main_transfer.CLUSTERS, np.empty(len(data.table))
    inputs = common.known_before(data, common.cluster_columns(data.system, *clusters), rule)
    for phase, model in generate.fit_ce(data, split.train, clusters, alpha).items():
        of_phase = (data.table.phase == phase).to_numpy()
        predicted[of_phase] = model.predict(inputs[of_phase])
    return predicted


PEERS = {
    "ce": ce, "ce_fixed": partial(ce, alpha=None), "ard": ard,
    "gp": gp, "gp_close_packed": gp_close_packed, "svr": svr,
}  # fmt: skip


# ---- one piece of work ---------------------------------------------------------------------------


def predict_networks(piece, data, splits, cfg):
    """Predictions of main.py's and main_transfer.py's methods, constants theirs: (n_splits, n_seeds, n)."""
    method = piece["method"]
    script = main_scratch if method.startswith("scratch") else main_transfer
    own = settings.read(vars(script), words=[], **getattr(script, "KINDS", {}))
    vars(own).update({name: vars(cfg)[name] for name in settings.SHARED}, DEVICE="cpu", SEEDS=cfg.SEEDS)
    vars(own).update(TARGET=piece["target"], ALLOYS=piece["alloys"], SELECT_BY=piece["rule"])
    fit = main_scratch.scratch
    if script is main_transfer:
        own.ALPHA = "tuned" if method == "tl_tuned" else own.ALPHA
        fit = partial(main_transfer.METHODS[method[:2]], samples=generate.make_samples(own, data))
    return common.predict(common.fit_selected(fit, data, splits, own), data.inputs)


def answers(piece, data, splits, cfg):
    """A method fitted on each split: {phase input: (predictions, half widths of their 90 % intervals)}.

    Predictions (n_splits, n_members, n) are for all alloys; half widths (n_splits, n) are those of phase_gp,
    which answers with both phase inputs; of others each is None.
    """
    method, none = piece["method"], [None] * len(splits)
    if method in NETWORKS:
        return {piece["phase_input"]: (predict_networks(piece, data, splits, cfg), none)}
    if method in PEERS:
        predicted = [PEERS[method](data, split, piece["rule"]) for split in splits]
        return {piece["phase_input"]: (np.array(predicted)[:, None], none)}
    outcome = phase_gp.fit_splits(data, splits, jobs=1)
    given = outcome.columns["mean_given_phase"][:, None], outcome.columns["half_width_90_given_phase"]
    return {"named": (outcome.predicted, outcome.columns["half_width_90"]), "found": given}


def figures(data, rows, predicted, half_width):
    """Errors of the mean over members for some alloys; and how many of these its 90 % intervals hold.

    rows: numbers of the alloys. predicted: (n_members, n). half_width: (n,), or None.
    """
    true, mean = data.targets[rows], predicted.mean(0)[rows]
    found = {name: report.scores(true, mean)[name] for name in ("R2", "RMSE", "MAE")}
    found["single_RMSE"] = np.mean([report.scores(true, one[rows])["RMSE"] for one in predicted])
    if half_width is not None:
        found["within_90"] = (np.abs(true - mean) <= half_width[rows]).mean()
    return found


def work(piece, data, cfg):
    """Fit a method on a chunk of splits: rows of comparison.csv; phase_gp's are of both phase inputs."""
    rows, high_only = [], piece["method"] == "scratch_prime"
    kept = data.table, piece["alloys"], piece["percent"]
    splits = [common.split_rows(*kept, number, high_only) for number in piece["splits"]]
    # What the splits share follows from the pool that they draw test alloys from: for '4+5' those of four
    # and five elements. The alloys of few elements, in every training set, do not count.
    pool = (data.table.n_components >= (4 if piece["alloys"] == "4+5" else 0)).sum()
    for phase_input, (predicted, half_widths) in answers(piece, data, splits, cfg).items():
        for i, (number, _, test) in enumerate(splits):
            row = {name: piece[name] for name in KEYS} | {"phase_input": phase_input, "split": number}
            row |= {"n_pool": pool - len(test), "n_test": len(test)}
            rows.append(row | figures(data, test, predicted[i], half_widths[i]))
    return pd.DataFrame(rows)


def able(methods, clusters):
    """Those of the methods that data with or without clusters can train; a printed line says which."""
    left = [method for method in methods if clusters or method not in NEED_CLUSTERS]
    if not left:
        raise InputError("no POSCARS/: expected a method that needs no clusters among METHODS")
    if len(left) < len(methods):
        print(f"without clusters left out: {', '.join(LABELS[one] for one in methods if one not in left)}")
    return left


def pieces_of(cfg):
    """All pieces of work, the most asked-for first: dicts with KEYS and splits."""
    pieces, rules = [], [rule.replace("validation", HONEST) for rule in cfg.RULES]
    rules_of = dict.fromkeys(NETWORKS, cfg.RULES) | dict.fromkeys(ON_CLUSTERS, rules)
    percents = sorted(map(float, cfg.PERCENTS), key=lambda p: (p not in (20, 100), -p))
    asked = product(cfg.ALLOY_SETS, percents, cfg.TARGETS, cfg.PHASE_INPUTS, cfg.METHODS)
    for alloys, percent, target, phase_input, method in asked:
        # The cluster expansion is told of no phase, and phase_gp answers both questions at once.
        once = phase_input == "found" and method in (*ON_CLUSTERS, "phase_gp")
        if once or (method == "scratch_prime" and percent == 0):  # the latter has nothing to train on
            continue
        for rule in rules_of.get(method, [HONEST]):
            piece = dict(zip(KEYS, (alloys, target, percent, phase_input, method, rule)))
            for start in range(0, len(cfg.SPLITS), CHUNK):
                pieces.append(piece | {"splits": cfg.SPLITS[start : start + CHUNK]})
    return pieces


def code_hash():
    """Of all scripts: a changed line may change figures."""
    root = Path(common.__file__).parent
    paths = sorted(path for folder in (".", "beyond", "studies") for path in (root / folder).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def part_path(folder, piece, data, seeds, code):
    """File of a piece: named by all that its content follows from."""
    system = [data.system.elements, sorted(map(sorted, data.system.excluded))]
    follows_from = json.dumps([piece, seeds, data.sha256, system, code], sort_keys=True)
    return folder / "parts" / (hashlib.sha256(follows_from.encode()).hexdigest() + ".csv")


def finished(work, calls, seeds, cfg):
    """Rows of all pieces of work, on this machine's cores or on Dask's. calls: (piece, data, more) each."""

    def make(path, call):
        common.tqdm = partial(tqdm, disable=True)  # wherever it runs; the one bar is the script's
        return path, work(*call)

    code = code_hash()
    paths = [part_path(cfg.RESULTS_DIR, piece, data, seeds, code) for piece, data, _ in calls]
    todo = [one for one in zip(paths, calls) if not one[0].exists()]
    backend = {"backend": "dask", "scheduler_host": cfg.SCHEDULER} if cfg.SCHEDULER else {"backend": "loky"}
    try:
        config = joblib.parallel_config(n_jobs=cfg.JOBS or -1, **backend)
    except (ImportError, ValueError) as error:  # it is not installed; no address
        raise InputError(f"SCHEDULER {cfg.SCHEDULER}: {error}") from None
    with config, tqdm(total=len(calls), initial=len(calls) - len(todo), unit="piece") as bar:
        jobs = (joblib.delayed(make)(*one) for one in todo)
        for path, rows in joblib.Parallel(return_as="generator_unordered")(jobs):
            report.write_csv(rows, path)
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


def paired(frame, baseline):
    """Each method and rule against the baseline, split by split: mean difference in RMSE, interval, ratio.

    The baseline's rule is the same or, where it has none such, its honest one. Empty where the baseline is
    not among the methods.
    """
    base, rows = frame[frame.method == baseline], []
    for keys, group in frame[frame.method != baseline].groupby(KEYS):
        both = group.merge(base, on=[*KEYS[:4], "split"], suffixes=("", "_base"))
        same = both.rule_base == keys[-1]
        both = both[same if same.any() else both.rule_base != "reference"]
        if both.empty:
            continue
        difference, ratio = both.RMSE - both.RMSE_base, pooled(both.RMSE) / pooled(both.RMSE_base)
        half = corrected_interval(difference, both.n_pool.mean(), both.n_test.mean())
        rows.append([*keys, len(both), difference.mean(), half, ratio])
    return pd.DataFrame(rows, columns=[*KEYS, "splits", "difference", "half_width", "ratio"])


def pooled(rmse):
    """Root of the mean squared error over splits."""
    return np.sqrt(np.mean(np.square(rmse)))


def table(heads, rows):
    """A table in Markdown."""
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in [heads, ["---"] * len(heads), *rows])


def markdown(frame):
    """comparison.md: RMSE over all splits ± its standard deviation over splits, of the ensembles."""
    text = ""
    for (alloys, phase_input), group in frame.groupby(["alloys", "phase_input"]):
        rmse = group.groupby(["method", "rule", "target", "percent"]).RMSE.agg([pooled, "std"])
        entries = rmse.apply(lambda row: f"{row.pooled:#.3g} ± {row['std']:#.2g}", axis=1)
        honest = rmse.pooled.where(rmse.index.get_level_values("rule") != "reference")
        best = honest == honest.groupby(["target", "percent"]).transform("min")
        entries = (
            entries.mask(best, "**" + entries + "**").unstack(["target", "percent"], "").sort_index(axis=1)
        )
        rows = []
        for method, rule in product(LABELS, ("validation", HONEST, "reference")):
            if (method, rule) in entries.index:
                read = "test set (as published)" if method in NETWORKS else "relaxed test cells"
                by = read if rule == "reference" else rule
                rows.append([LABELS[method], by, *entries.loc[(method, rule)]])
        if "within_90" in group:
            held = group.groupby(["target", "percent"]).within_90.mean()
            rows.append(
                ["alloys within its 90 % intervals", "", *map("{:.0%}".format, held[entries.columns])]
            )
        units = ", ".join(f"{t} in {common.TARGETS[t].unit}" for t in sorted({*group.target}))
        heads = ["method", "epoch, hyperparameters by", *(f"{t}, {p:g} %" for t, p in entries)]
        text += (
            f"Test RMSE, alloys {alloys}, phase {phase_input}: root of the mean squared error over "
            f"{group.split.nunique()} splits ± standard deviation over splits; {units}; networks: ensembles "
            f"over seeds\n\n{table(heads, rows)}\n"
        )
    return text


def plot_paired(found, baseline, source, path):
    """Difference from the baseline in RMSE, split by split, with corrected 95 % intervals.

    found: of `paired`. A row of panels for each phase input.
    """
    names, inputs = ["alloys", "target", "percent"], sorted({*found.phase_input}, reverse=True)
    columns, methods = [*found.groupby(names).groups], [m for m in LABELS if m in {*found.method}]
    size = 2.8 * len(columns) + 2.6, (0.25 * len(methods) + 1.3) * len(inputs) + 0.6
    note = f"{source}; {found.splits.max()} splits; bars: 95 % intervals, splits' overlap accounted for"
    with report.picture(path, size, "Difference in test RMSE", note) as figure:
        panels = figure.subplots(len(inputs), len(columns), sharey=True, squeeze=False)
        for (i, phase_input), (j, keys) in product(enumerate(inputs), enumerate(columns)):
            axes, (alloys, target, percent) = panels[i, j], keys
            group = found[(found[names] == [*keys]).all(axis=1) & (found.phase_input == phase_input)]
            place = [-methods.index(method) for method in group.method]
            axes.errorbar(group.difference, place, xerr=group.half_width, fmt="o", ms=4, capsize=3)
            axes.axvline(0, c="k", lw=0.8)
            axes.locator_params(axis="x", nbins=4)
            axes.set_yticks([-i for i in range(len(methods))], [LABELS[m] for m in methods], fontsize=9)
            title = (
                f"{common.TARGETS[target].label}, phase {phase_input}\nalloys {alloys}, {percent:g} % kept"
            )
            axes.set_title(title, fontsize=9)
            versus = f"RMSE minus {LABELS[baseline]}'s\n({common.TARGETS[target].unit}; negative: better)"
            axes.set_xlabel(versus, fontsize=9)


KINDS = {
    "METHODS": [*LABELS], "TARGETS": [*common.TARGETS], "BASELINE": tuple(LABELS),
    "ALLOY_SETS": ["4+5", "Total"], "PERCENTS": ["0", "20", "40", "60", "80", "100"],
    "PHASE_INPUTS": ["named", "found"], "RULES": ["validation", "reference"], "SPLITS": settings.numbers,
    "SCHEDULER": (None, str),
}  # fmt: skip


def main():
    cfg = settings.read(globals(), **KINDS)
    cfg.METHODS = able(cfg.METHODS, (cfg.DATA_DIR / "POSCARS").is_dir())
    settings.output_folder(cfg.RESULTS_DIR / "parts")
    loaded, calls = {}, []
    for piece in pieces_of(cfg):
        key = piece["target"], piece["phase_input"], main_transfer.cells_for(piece["rule"])
        if key not in loaded:
            own = SimpleNamespace(**vars(cfg) | {"TARGET": key[0], "PHASE_INPUT": key[1]})
            loaded[key] = common.load_data(own, key[2])
        calls.append((piece, loaded[key], cfg))
    frame, source = finished(work, calls, cfg.SEEDS, cfg), calls[0][1].source
    report.write_csv(frame, cfg.RESULTS_DIR / "comparison.csv")
    report.write_csv(paired(frame, cfg.BASELINE), cfg.RESULTS_DIR / "paired.csv")
    text = markdown(frame)
    (cfg.RESULTS_DIR / "comparison.md").write_text(text, "utf-8")
    shown = frame[(frame.rule != "reference") & frame.percent.isin([20, 100])]
    if len(differences := paired(shown, cfg.BASELINE)):
        plot_paired(differences, cfg.BASELINE, source, cfg.RESULTS_DIR / "paired.png")
    print(text)


if __name__ == "__main__":
    settings.run(main)
