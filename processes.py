"""Gaussian processes with lengths of their own, noise by groups of rows, and an order of species.

Nothing to run here. Fitted by torch's gradients and scipy's minimiser; scikit-learn's processes have one
noise for all rows, or one that is given.
"""

from typing import NamedTuple

import numpy as np
import torch

LENGTHS_FROM = 600  # rows that lengths are settled on: the time grows as their number cubed
FREEDOM, ROUNDS = 4, 3  # degrees of the Student-t noise, and how often rows are weighed anew
LENGTH, SPREAD = 3, 1.5  # where a prior is asked for: lengths are expected about this, in natural logarithms
# The squared effect of the order, in deviations of the target for a pair more in one: pair interactions of
# some tenths of an eV. Where no row is ordered, nothing else says that an ordered cell may differ.
ORDER_EFFECT = 10


class Process(NamedTuple):
    """A fitted process; inputs and targets are standardised by `scales`, all tensors in double precision."""

    theta: torch.Tensor  # logarithms of scale, inverse squared lengths, noise of the groups, order's scale
    inputs: torch.Tensor  # (n, n_inputs)
    targets: torch.Tensor  # (n,)
    groups: torch.Tensor  # (n,), whose noise a row has
    doubt: torch.Tensor  # (n,), by which a row's noise is multiplied
    order: torch.Tensor  # (n, n_pairs)
    scales: list  # mean and deviation of inputs and targets
    inverse: torch.Tensor  # (n, n), of the kernel's matrix with noise


def kernel(theta, one, other, order, other_order):
    """Matérn 5/2 with a length for each input, and a linear kernel of the order: (n, m)."""
    scale, weights, order_scale = theta[0].exp(), theta[1 : 1 + one.shape[1]].exp(), theta[-1].exp()
    one, other = one * weights.sqrt(), other * weights.sqrt()
    square = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    u = (5 * square.clamp(min=0) + 1e-12).sqrt()
    return scale * (1 + u + u**2 / 3) * (-u).exp() + order_scale * order @ other_order.T


def noise_of(theta, n_inputs, groups):
    """Variance of the noise of each row; a group that no row was of has that of the last."""
    levels = theta[1 + n_inputs : -1].exp()
    return levels[groups.clamp(max=len(levels) - 1)]


def rows_for_lengths(n):
    """Numbers of the rows that a kernel is settled on, of n: all, or LENGTHS_FROM drawn ones in order."""
    return np.sort(np.random.default_rng(0).permutation(n)[:LENGTHS_FROM])


def fit_process(inputs, targets, groups, order, doubt=None, start=None, prior=False):
    """The process of greatest likelihood, but for what is expected of the order; prior: and of the lengths.

    That of `rows_for_lengths`; all rows predict.

    inputs: (n, n_inputs). targets: (n,). groups: (n,) of whole numbers. order: (n, n_pairs). doubt: (n,).
    start: theta of an earlier fit. Rasmussen and Williams (2006), equation 5.8.
    """
    from scipy.optimize import minimize

    inputs, targets, order = (torch.tensor(np.array(part, float)) for part in (inputs, targets, order))
    scales = [part for one in (inputs, targets) for part in (one.mean(0), one.std(0).clamp(min=1e-12))]
    inputs, targets = (inputs - scales[0]) / scales[1], (targets - scales[2]) / scales[3]
    groups = torch.as_tensor(groups)
    doubt = torch.ones(len(targets), dtype=torch.float64) if doubt is None else torch.as_tensor(doubt)
    n_inputs, n_groups = inputs.shape[1], int(groups.max()) + 1

    some = rows_for_lengths(len(targets))
    z, y, ordered, of_group, multiple = (part[some] for part in (inputs, targets, order, groups, doubt))

    def loss(values):
        theta = torch.tensor(values, requires_grad=True)
        noise = noise_of(theta, n_inputs, of_group) * multiple + 1e-8
        lower, failed = torch.linalg.cholesky_ex(kernel(theta, z, z, ordered, ordered) + noise.diag())
        if failed:
            return 1e10, np.zeros_like(values)
        solved = torch.linalg.solve_triangular(lower, y[:, None], upper=False)
        total = 0.5 * (solved**2).sum() + lower.diag().log().sum()
        total = total + 0.5 * ((theta[-1] - np.log(ORDER_EFFECT)) / SPREAD) ** 2
        if prior:
            total = total + 0.5 * (((theta[1 : 1 + n_inputs] + 2 * np.log(LENGTH)) / SPREAD) ** 2).sum()
        total.backward()
        return total.item(), theta.grad.numpy()

    first = [0, *[-2 * np.log(LENGTH)] * n_inputs, *[np.log(0.1)] * n_groups, np.log(ORDER_EFFECT)]
    bounds = [(-9.0, 7.0), *[(-14.0, 4.6)] * n_inputs, *[(-11.5, 0.7)] * n_groups, (-9.0, 9.0)]
    options = {"maxiter": 200}
    found = minimize(loss, first if start is None else start, jac=True, bounds=bounds, options=options)
    return assembled(torch.tensor(found.x), inputs, targets, groups, doubt, order, scales)


def assembled(theta, inputs, targets, groups, doubt, order, scales):
    """A Process from its parts but for the inverse."""
    noise = noise_of(theta, inputs.shape[1], groups) * doubt + 1e-8
    inverse = torch.linalg.inv(kernel(theta, inputs, inputs, order, order) + noise.diag())
    return Process(theta, inputs, targets, groups, doubt, order, scales, inverse)


def standardised(process, inputs):
    return (torch.as_tensor(inputs) - process.scales[0]) / process.scales[1]


def in_units(process, mean, variance):
    """Mean and variance in the target's units, as arrays."""
    middle, unit = process.scales[2:]
    return (middle + unit * mean).numpy(), (unit**2 * variance.clamp(min=0)).numpy()


def of_process(process, inputs, order, groups=None):
    """Mean and variance of each row, (n,), in the target's units; with groups: noise included."""
    inputs = standardised(process, inputs)
    order, groups = torch.as_tensor(order), None if groups is None else torch.as_tensor(groups)
    cross = kernel(process.theta, inputs, process.inputs, order, process.order)
    own = process.theta[0].exp() + process.theta[-1].exp() * (order**2).sum(1)
    variance = own - ((cross @ process.inverse) * cross).sum(1)
    if groups is not None:
        variance = variance + noise_of(process.theta, inputs.shape[1], groups)
    return in_units(process, cross @ process.inverse @ process.targets, variance)


def left_out(process, inputs=None):
    """Mean and variance of each training row by the others, its group's noise included: (n,) each.

    inputs: other ones than the row's own, (n, n_inputs). Lengths stay as they are. Rasmussen and Williams
    (2006), equation 5.12, and for other inputs the same by the inverse of a matrix less one row.
    """
    diagonal, weights = process.inverse.diag(), process.inverse @ process.targets
    usual = noise_of(process.theta, process.inputs.shape[1], process.groups)
    if inputs is None:
        mean = process.targets - weights / diagonal
        variance = 1 / diagonal - usual * process.doubt
    else:
        inputs = standardised(process, inputs)
        cross = kernel(process.theta, inputs, process.inputs, process.order, process.order)
        solved = cross @ process.inverse
        mean = cross @ weights - solved.diag() * weights / diagonal
        variance = process.theta[0].exp() + process.theta[-1].exp() * (process.order**2).sum(1)
        variance = variance - (solved * cross).sum(1) + solved.diag() ** 2 / diagonal
    return in_units(process, mean, variance.clamp(min=0) + usual)


def robust_process(inputs, targets, groups, order):
    """A process whose rows are doubted as Student-t noise would have it, by what the others say of them."""
    doubt = start = None
    for _ in range(ROUNDS):
        process = fit_process(inputs, targets, groups, order, doubt, start)
        mean, variance = left_out(process)
        doubt, start = (FREEDOM + (targets - mean) ** 2 / variance) / (FREEDOM + 1), process.theta.numpy()
    return fit_process(inputs, targets, groups, order, doubt, start)


def covariance(process, inputs, order):
    """Of the target between rows, without noise, (n, n), in the target's unit squared."""
    inputs, order = standardised(process, inputs), torch.as_tensor(order)
    cross = kernel(process.theta, inputs, process.inputs, order, process.order)
    own = kernel(process.theta, inputs, inputs, order, order)
    return (process.scales[3] ** 2 * (own - cross @ process.inverse @ cross.T)).numpy()


def of_difference(process, one, other, order, groups):
    """Variance of one label less another, noise of both included, (n,), in the target's unit squared.

    one, other: inputs of the same alloys, (n, n_inputs), such as in two phases.
    """
    both = [standardised(process, inputs) for inputs in (one, other)]
    ordered = torch.as_tensor(order)
    first, second = (kernel(process.theta, z, process.inputs, ordered, process.order) for z in both)
    shared = kernel(process.theta, *both, ordered, ordered).diag()
    shared = shared - ((first @ process.inverse) * second).sum(1)
    variances = [of_process(process, inputs, order, groups)[1] for inputs in (one, other)]
    return sum(variances) - 2 * (process.scales[3] ** 2 * shared).numpy()


def noise_in_units(process, groups):
    """Variance of the noise of each row, (n,), in the target's unit squared."""
    noise = noise_of(process.theta, process.inputs.shape[1], torch.as_tensor(groups))
    return (process.scales[3] ** 2 * noise).numpy()
