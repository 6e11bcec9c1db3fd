"""What an alloy will have on a lattice, and in fcc, bcc and hcp: a Gaussian process that knows the phase.

    python beyond/phase_gp.py
    python beyond/phase_gp.py --target Ms --splits 0-7
    python beyond/phase_gp.py --splits all

1. Inputs: composition, valence electrons, and three phase numbers, the fractions of bcc, of hcp and of
   close-packed atoms. Kernel: mean of Matern 5/2 and squared exponential, a length per input with a prior;
   a linear kernel of the order of species. Noise: log-linear in the inputs, its own level in alloys of few
   elements; rows far off what the others say of them get more (Student-t).
2. In a phase: the numbers the cell has. On a lattice: three processes on composition and lattice predict the
   numbers, and the property's process is trained with those predicted for training rows left out, so that it
   learns from phases as uncertain as those that it will be told.
3. Intervals: deviations times what held 90 % of the rows of five folds, left out with lengths fitted anew.

Of what is predicted it reads composition, lattice and the arrangement of species on it; of training rows all.
Writes a run's folder as main.py does; predictions.csv has half_width_90, the expected fractions p_fcc, p_bcc,
p_hcp, those found_fcc, ... that the cell has, and mean_given_phase, half_width_90_given_phase for these.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import joblib
import numpy as np
import pandas as pd
from scipy.linalg import cho_factor, cho_solve, lapack
from scipy.optimize import minimize

import common
import report
import settings
import structure_stat

# ---- settings ------------------------------------------------------------------------------------
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, μB/atom
ALLOYS = "4+5"  # 4+5: test alloys of four and five elements; Total: of two to five
PERCENT = 100  # share of the training set's four- and five-element alloys kept, 0 to 100
SPLITS = "0"  # random splits into training and test set: 0 or 0-7; 0 is the study's; all: no test set
# --------------------------------------------------------------------------------------------------

PHASES = common.INPUT_PHASES["found"]
LENGTHS_FROM = 600  # rows that hyperparameters are settled on: the time grows as their number cubed
LENGTH, SPREAD = 5, 1  # prior of lengths: log-normal about so many deviations of the input
ORDER_EFFECT, ORDER_SPREAD = 10, 1.5  # prior of the order's variance for a pair more in one, log-normal
NOISE, NOISE_SPREAD = 0.05, 2  # prior of the noise's variance, in the target's, log-normal
FEW_SPREAD, SLOPE_SPREAD = 1, 0.4  # of what few elements and a deviation of an input add to its logarithm
FREEDOM, ROUNDS = 4, 3  # degrees of the Student-t noise, and how often rows are weighed anew
FOLDS = 5  # of the rows left out for the intervals
LEAST_ROWS = 20  # of four and more elements, for intervals that rest on them alone
LEAST_SHARE = 0.01  # no phase that a training cell was in is impossible
NORMAL_90 = 1.645  # half width of the normal distribution's 90 % interval: no stated one is less
JITTER = 1e-6  # of the target's variance, for the Cholesky factor
PRECISION = 1e-5  # of the fit, relative: far below what changes a prediction


class Process(NamedTuple):
    """A fitted process; inputs and targets are standardised by `scales`."""

    theta: np.ndarray  # logarithms of variance, inverse squared lengths, order's variance; noise coefficients
    inputs: np.ndarray  # (n, n_inputs)
    targets: np.ndarray  # (n,)
    noise_inputs: np.ndarray  # (n, n_noise), what the noise's logarithm is linear in
    doubt: np.ndarray  # (n,), by which a row's noise is multiplied
    order: np.ndarray  # (n, n_pairs)
    scales: list  # mean and deviation of inputs and of targets
    inverse: np.ndarray  # (n, n), of the kernel's matrix with noise


class Model(NamedTuple):
    """What was learned from training rows."""

    rows: list  # what `fit` was given
    processes: list  # of the three phase numbers on the lattice; of the property in a phase, on a lattice
    ratios: list  # half width of the 90 % interval over deviation: in a phase, on a lattice
    n_left_out: int  # rows that the ratios rest on


# ==== one process =================================================================================


def smooth_part(theta, one, other):
    """Variance times the mean of Matern 5/2 and squared exponential, and its derivative by squared distance.

    Of standardised inputs, (n, n_inputs) and (m, n_inputs): (n, m) each. Rasmussen and Williams (2006),
    equations 4.9 and 4.17.
    """
    lengths, half = np.exp(-theta[1 : 1 + one.shape[1]] / 2), np.exp(theta[0]) / 2
    one, other = one / lengths, other / lengths
    square = np.maximum((one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T, 0)
    u = np.sqrt(5 * square)
    rough, smooth = half * np.exp(-u), half * np.exp(-square / 2)
    return (1 + u + u**2 / 3) * rough + smooth, -5 / 6 * (1 + u) * rough - smooth / 2


def kernel(theta, one, other, order, other_order):
    """Covariance of the property, (n, m), standardised."""
    return smooth_part(theta, one, other)[0] + np.exp(theta[1 + one.shape[1]]) * order @ other_order.T


def noise_of(theta, noise_inputs):
    """Variance of the noise of each row, standardised."""
    return np.exp(noise_inputs @ theta[-noise_inputs.shape[1] :])


def noise_inputs_of(inputs, scaled, steady):
    """1, whether an alloy has few elements, and the standardised inputs; steady: 1 alone."""
    few = (inputs[:, :-4] > 0).sum(1) < 4
    return np.ones((len(inputs), 1)) if steady else np.column_stack([np.ones(len(few)), few, scaled])


def fit_theta(inputs, targets, noise_inputs, doubt, order, start=None):
    """Hyperparameters of greatest posterior density; Rasmussen and Williams (2006), equations 5.8 and 5.9."""
    n_inputs, slopes = inputs.shape[1], noise_inputs.shape[1] - 1
    mean = [0, *[-2 * np.log(LENGTH)] * n_inputs, np.log(ORDER_EFFECT), np.log(NOISE), *[0] * slopes]
    spread = [3, *[2 * SPREAD] * n_inputs, ORDER_SPREAD, NOISE_SPREAD]
    spread += [FEW_SPREAD, *[SLOPE_SPREAD] * n_inputs][:slopes]
    mean, spread, of_order = np.array(mean), np.array(spread), order @ order.T

    def loss(theta):
        value, slope = smooth_part(theta, inputs, inputs)
        ordered, noise = np.exp(theta[1 + n_inputs]) * of_order, noise_of(theta, noise_inputs) * doubt
        matrix = value + ordered
        matrix.flat[:: len(matrix) + 1] += noise + JITTER
        lower, failed = lapack.dpotrf(matrix, lower=1)  # by its module: alone no process can be sent it
        if failed:
            return 1e10, np.zeros_like(theta)
        inverse = lapack.dpotri(lower, lower=1)[0]
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        solved, off = inverse @ targets, (theta - mean) / spread
        total = 0.5 * targets @ solved + np.log(lower.diagonal()).sum() + 0.5 * off @ off
        by_matrix = 0.5 * (inverse - np.outer(solved, solved))
        by_square = by_matrix * slope
        of_weights = 2 * (by_square.sum(1) @ inputs**2 - (inputs * (by_square @ inputs)).sum(0))
        gradient = [(by_matrix * value).sum(), *of_weights * np.exp(theta[1 : 1 + n_inputs])]
        gradient += [(by_matrix * ordered).sum(), *(by_matrix.diagonal() * noise) @ noise_inputs]
        return total, np.array(gradient) + off / spread

    options = {"maxiter": 200, "ftol": PRECISION}
    bounds = list(zip(mean - 5 * spread, mean + 5 * spread))
    return minimize(loss, mean if start is None else start, jac=True, bounds=bounds, options=options).x


def condition(theta, inputs, targets, noise_inputs, doubt, order, scales):
    """The process of these hyperparameters."""
    matrix = kernel(theta, inputs, inputs, order, order)
    matrix.flat[:: len(matrix) + 1] += noise_of(theta, noise_inputs) * doubt + JITTER
    inverse = cho_solve(cho_factor(matrix, lower=True), np.eye(len(matrix)))
    return Process(theta, inputs, targets, noise_inputs, doubt, order, scales, inverse)


def rows_for_lengths(n):
    """Numbers of the rows that hyperparameters are settled on: all, or LENGTHS_FROM drawn ones in order."""
    return np.sort(np.random.default_rng(0).permutation(n)[:LENGTHS_FROM])


def fit_process(inputs, targets, order, doubt=None, start=None, steady=False, settled=False):
    """Inputs (n, n_elements + 4) -> Process. start: hyperparameters to begin with; settled: and to keep."""
    deviation = inputs.std(0)
    scales = [inputs.mean(0), np.where(deviation > 1e-9, deviation, 1), targets.mean(), targets.std() + 1e-12]
    scaled, y = (inputs - scales[0]) / scales[1], (targets - scales[2]) / scales[3]
    doubt = np.ones(len(y)) if doubt is None else doubt
    parts = scaled, y, noise_inputs_of(inputs, scaled, steady), doubt, order
    some = rows_for_lengths(len(y))
    theta = start if settled else fit_theta(*(part[some] for part in parts), start)
    return condition(theta, *parts, scales)


def left_out(process):
    """Mean and variance of each training row by the others, (n,) each, its usual noise included.

    Hyperparameters stay as they are. Rasmussen and Williams (2006), equation 5.12.
    """
    diagonal, usual = process.inverse.diagonal(), noise_of(process.theta, process.noise_inputs)
    mean = process.targets - process.inverse @ process.targets / diagonal
    variance = np.maximum(1 / diagonal - usual * process.doubt, 0) + usual
    return process.scales[2] + process.scales[3] * mean, process.scales[3] ** 2 * variance


def robust_process(inputs, targets, order):
    """A process whose rows are doubted as Student-t noise would have it, by what the others say of them."""
    doubt = start = None
    for _ in range(1 + ROUNDS):
        process = fit_process(inputs, targets, order, doubt, start)
        mean, variance = left_out(process)
        doubt, start = (FREEDOM + (targets - mean) ** 2 / variance) / (FREEDOM + 1), process.theta
    return process


def against_training(process, inputs, order):
    """Standardised inputs, their covariance with the training rows, and the variance of their noise."""
    scaled = (inputs - process.scales[0]) / process.scales[1]
    noise_inputs = noise_inputs_of(inputs, scaled, process.noise_inputs.shape[1] == 1)
    cross = kernel(process.theta, scaled, process.inputs, order, process.order)
    return scaled, cross, noise_of(process.theta, noise_inputs)


def predict(process, inputs, order):
    """Mean and standard deviation of a label, noise included: (n,) each."""
    scaled, cross, noise = against_training(process, inputs, order)
    own = np.exp(process.theta[0]) + np.exp(process.theta[1 + scaled.shape[1]]) * (order**2).sum(1)
    variance = np.maximum(own - ((cross @ process.inverse) * cross).sum(1), 0) + noise
    mean = cross @ (process.inverse @ process.targets)
    return process.scales[2] + process.scales[3] * mean, process.scales[3] * np.sqrt(variance)


# ==== the recipe ==================================================================================


def inputs_of(fractions, valence, phases):
    """Inputs (n, n_elements + 4) of an alloy in fcc, bcc and perhaps hcp, of which phases are the fractions.

    The last three are the phase numbers: bcc, hcp, and close-packed, which is fcc or hcp, near each other.
    """
    fcc, bcc, hcp = (*phases.T, np.zeros(len(phases)))[:3]
    return np.column_stack([fractions, valence, bcc, hcp, fcc + hcp])


def with_numbers(model, fractions, valence, lattice):
    """Inputs with the phase numbers expected on a lattice, (n, n_elements + 4)."""
    inputs, no_order = inputs_of(fractions, valence, lattice), np.zeros((len(fractions), 0))
    expected = [predict(one, inputs, no_order)[0] for one in model.processes[:3]]
    return np.column_stack([fractions, valence, *expected])


def learn(rows, thetas=None, doubts=None, settled=True):
    """The processes of a Model. thetas, doubts: of such ones, to keep, or to begin with in the last two."""
    fractions, valence, lattice, phases, order, targets = rows
    in_phase, named = (inputs_of(fractions, valence, one) for one in (phases, lattice))
    # Phases are 0 or 1, and a noise with slopes would follow them in the process's place.
    numbers = [
        fit_process(named, number, order[:, :0], None, theta, steady=True, settled=thetas is not None)
        for number, theta in zip(in_phase[:, -3:].T, thetas or [None] * 3)
    ]
    expected = np.column_stack([fractions, valence, *(left_out(one)[0] for one in numbers)])
    if thetas is None:
        return numbers + [robust_process(inputs, targets, order) for inputs in (in_phase, expected)]
    known = zip((in_phase, expected), doubts, thetas[3:])
    return numbers + [fit_process(x, targets, order, *one, settled=settled) for x, *one in known]


def fit(*rows):
    """fractions, valence, lattice, phases, order, targets of training rows -> Model."""
    model = Model(list(rows), learn(rows), [NORMAL_90, NORMAL_90], 0)
    some = rows_for_lengths(len(rows[0]))
    fold, scores = np.random.default_rng(0).permutation(len(some)) % FOLDS, np.zeros((2, len(some)))
    for k in range(FOLDS):
        kept, out = some[fold != k], [one[some[fold == k]] for one in rows]
        doubts = [one.doubt[kept] for one in model.processes[3:]]
        processes = learn([one[kept] for one in rows], thetas_of(model), doubts, settled=False)
        part = model._replace(processes=processes)
        found = predict_in_phase(part, *out[:2], *out[3:5]), predict_on_lattice(part, *out[:3], out[4])
        scores[:, fold == k] = [np.abs(out[5] - mean) / half for mean, half, *_ in found]
    many = (rows[0][some] > 0).sum(1) >= 4
    scores = scores[:, many] if many.sum() >= LEAST_ROWS else scores
    level = min(1, 0.9 * (1 + 1 / scores.shape[1]))  # with a place for the next row
    ratios = NORMAL_90 * np.maximum(1, np.quantile(scores, level, axis=1))
    return model._replace(ratios=ratios.tolist(), n_left_out=scores.shape[1])


def thetas_of(model):
    return [one.theta for one in model.processes]


def with_rows(model, *rows):
    """A Model that knows further rows, given as to `fit`; hyperparameters and ratios stay as they were."""
    doubts = [np.append(one.doubt, np.ones(len(rows[0]))) for one in model.processes[3:]]
    rows = [np.concatenate(pair) for pair in zip(model.rows, rows)]
    return model._replace(rows=rows, processes=learn(rows, thetas_of(model), doubts))


def to_plain(model):
    """A Model as numbers and lists; its processes follow from them."""
    arrays = model.rows, thetas_of(model), [one.doubt for one in model.processes[3:]]
    return [*([one.tolist() for one in part] for part in arrays), *model[2:]]


def from_plain(state):
    """A Model from `to_plain`."""
    rows, thetas, doubts = ([np.array(one) for one in part] for part in state[:3])
    return Model(rows, learn(rows, thetas, doubts), *state[3:])


def predict_on_lattice(model, fractions, valence, lattice, order):
    """Mean and half width of the 90 % interval, (n,), and expected fractions of fcc, bcc and hcp, (n, 3)."""
    inputs = with_numbers(model, fractions, valence, lattice)
    mean, deviation = predict(model.processes[4], inputs, order)
    bcc, hcp, close_packed = inputs[:, -3:].T
    shares = np.clip(np.column_stack([close_packed - hcp, bcc, hcp]), LEAST_SHARE, 1)
    shares *= (model.rows[3] > 0.5).any(0)
    return mean, model.ratios[1] * deviation, shares / shares.sum(1, keepdims=True)


def predict_in_phase(model, fractions, valence, phases, order):
    """Mean and half width of the 90 % interval, (n,) each."""
    mean, deviation = predict(model.processes[3], inputs_of(fractions, valence, phases), order)
    return mean, model.ratios[0] * deviation


def difference_of_phases(model, fractions, valence, one, other, order):
    """Half width of the 90 % interval of a label in one phase less one of the same alloy in another, (n,)."""
    process = model.processes[3]
    first, second = (against_training(process, inputs_of(fractions, valence, p), order) for p in (one, other))
    gap, shared = first[1] - second[1], smooth_part(process.theta, first[0], second[0])[0].diagonal()
    own = 2 * (np.exp(process.theta[0]) - shared)  # the order's parts cancel
    variance = np.maximum(own - ((gap @ process.inverse) * gap).sum(1), 0) + first[2] + second[2]
    return model.ratios[0] * process.scales[3] * np.sqrt(variance)


def covariance_on_lattice(model, fractions, valence, lattice, order):
    """Covariance of the property between alloys, without noise, (n, n), and variance of its noise, (n,)."""
    process, inputs = model.processes[4], with_numbers(model, fractions, valence, lattice)
    scaled, cross, noise = against_training(process, inputs, order)
    covariance = kernel(process.theta, scaled, scaled, order, order) - cross @ process.inverse @ cross.T
    return process.scales[3] ** 2 * covariance, process.scales[3] ** 2 * noise


# ==== the script ==================================================================================


def rows_of(data):
    """Fractions, valence, lattice, phases and order of all alloys of common.Data, as `fit` takes them."""
    fractions, clusters = np.hsplit(data.inputs, [len(data.system.elements)])[0], None
    if data.clusters is not None:
        columns = common.cluster_columns(data.system, *structure_stat.ORDER)
        clusters = pd.DataFrame(common.known_before(data, columns), columns=columns)
    order = structure_stat.order_of(data.system, fractions, clusters)
    return fractions, data.inputs[:, -3], data.inputs[:, -2:], data.phase_fractions, order


def fit_splits(data, splits, jobs=None):
    """The recipe for all splits: a report.Outcome. data: of cells on the lattice, phases named."""
    least, rows = min(len(split.train) for split in splits), rows_of(data)
    if least < 2 * FOLDS:
        raise settings.InputError(f"{least} training alloys: expected {2 * FOLDS} or more")
    calls = [[one[split.train] for one in (*rows, data.targets)] for split in splits]
    workers = joblib.Parallel(n_jobs=min(len(splits), jobs or joblib.cpu_count()))
    models = workers(joblib.delayed(fit)(*call) for call in calls)
    found = zip(*(predict_on_lattice(model, *rows[:3], rows[4]) for model in models))
    mean, half_width, shares = map(np.array, found)
    given = np.array([predict_in_phase(model, *rows[:2], *rows[3:]) for model in models])
    columns = {"half_width_90": half_width}
    columns |= {f"p_{phase}": shares[..., k] for k, phase in enumerate(PHASES)}
    columns |= {f"found_{phase}": np.tile(rows[3][:, k], (len(splits), 1)) for k, phase in enumerate(PHASES)}
    columns |= {"mean_given_phase": given[:, 0], "half_width_90_given_phase": given[:, 1]}
    return report.Outcome(
        method="phase_gp",
        title="Gaussian process that knows the phase",
        predicted=mean[:, None],
        scales=np.array([data.targets[split.train].std() for split in splits]),
        members=[{"rows_left_out": model.n_left_out} for model in models],
        losses=None,
        columns=columns,
        state={"models": [to_plain(one) for one in models], "most_order": float(np.abs(rows[4]).max())},
        network=None,
    )


def predictor(state, system):
    """Function (mole fractions, lattices (n,), clusters or None) -> ((n_models, n), {column: (n,)})."""
    models = [from_plain(one) for one in state["models"]]
    seen = np.all([(one.rows[3] > 0.5).any(0) for one in models], axis=0)

    def predict_alloys(fractions, names, clusters=None):
        valence = fractions @ common.element_properties(system.elements)[:, 2]
        alloys, lattice = (fractions, valence), common.one_hot(names, common.PHASES)
        order = structure_stat.order_of(system, fractions, clusters)
        found = zip(*(predict_on_lattice(one, *alloys, lattice, order) for one in models))
        means, half_widths, shares = map(np.array, found)
        columns = {"half_width_90": half_widths.mean(0)}
        columns |= {f"p_{phase}": shares.mean(0)[:, k] for k, phase in enumerate(PHASES)}
        # Of a phase that no training cell was in nothing is said.
        pure = np.where(seen[:, None], np.eye(3), np.nan)[:, None].repeat(len(fractions), 1)
        for phase, inside in zip(PHASES, pure):
            given = np.mean([predict_in_phase(one, *alloys, inside, order) for one in models], axis=0)
            columns[f"mean_{phase}"], columns[f"half_width_90_{phase}"] = given
        for phase, inside in zip(PHASES[1:], pure[1:]):
            gap = [difference_of_phases(one, *alloys, inside, pure[0], order) for one in models]
            columns[f"{phase} - fcc"] = columns[f"mean_{phase}"] - columns["mean_fcc"]
            columns[f"half_width_90 {phase} - fcc"] = np.mean(gap, axis=0)
        return means, columns

    return predict_alloys


def say_how_it_did(data, splits, outcome):
    """Print how many test alloys the intervals hold, and of how many the phase is told."""
    of_splits = [
        pd.DataFrame({name: values[i, split.test] for name, values in outcome.columns.items()})
        .assign(mean=outcome.predicted[i, 0, split.test], true=data.targets[split.test])
        for i, split in enumerate(splits)
    ]  # fmt: skip
    told = pd.concat(of_splits)
    if told.empty:
        return
    for ending, question in {"": "on a lattice", "_given_phase": "in the phase that the cell has"}.items():
        held = (told["mean" + ending] - told.true).abs() <= told["half_width_90" + ending]
        print(f"{question}: the 90 % interval holds {held.mean():.0%} of {len(told)} test alloys")
    expected, found = (
        told[[f"{x}_{phase}" for phase in PHASES]].to_numpy().argmax(1) for x in ("p", "found")
    )
    print(f"the phase that most atoms are in is told of {(expected == found).mean():.0%}")


def main():
    cfg = settings.read(globals(), TARGET=tuple(common.TARGETS))
    settings.output_folder(cfg.RESULTS_DIR)
    data = common.load_data(cfg, "lattice")
    splits = common.splits_of(data, cfg)
    outcome = fit_splits(data, splits, cfg.JOBS)
    say_how_it_did(data, splits, outcome)
    report.report(cfg, data, splits, outcome)
    print("quote mean ± half_width_90, for the lattice asked for; where the phase is known, those given it")


if __name__ == "__main__":
    settings.run(main)
