"""Transfer learning from a committee of cluster expansions: METHOD = "tl_committee" of main_transfer.py.

The method's idea, carried out so that it wins when judged honestly (studies/README.md says what was
tried and what it gave):

1. Three cluster expansions (CE) are fitted to the training rows. a: a Gaussian process, Matérn on the
   twelve inputs plus a linear kernel on the short-range order of the structure's clusters, its noise
   apart for alloys of few and of many elements. b: the same with Student-t noise, because magnetic
   states jump. c: the published ridge.
2. Each labels thousands of random alloys; networks that see composition and short-range order learn
   them, network k from CE k mod 3, and are then fine-tuned on the training rows, for a fixed number of
   epochs: no label is spent on choosing one.
3. The prediction is the mean of the CEs, weighted by their leave-one-out error, and of the networks.
   Its 90 % interval comes from the Gaussian processes' predictive variance, noise included.

Short-range order: occupation probability of a cluster minus its value in a random alloy of the same
composition. It needs an arrangement of species, as an SQS has, and no DFT.
"""

from math import factorial

import joblib
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import silu

import common
import generate
import networks

# ---- settings ------------------------------------------------------------------------------------
NETWORKS = 6  # per seed
SOURCE_ALLOYS = 4000  # random alloys a phase
SOURCE_EPOCHS, SOURCE_BATCH, SOURCE_RATE, SOURCE_DECAY = 32, 64, 4e-3, 1e-4  # AdamW, cosine to zero
EPOCHS, BATCH, RATE, DECAY = 10, 16, 3e-4, 1e-3  # fine-tuning: AdamW
HIDDEN = 64
STUDENT_DEGREES, STUDENT_ROUNDS = 4, 3  # of freedom; rounds of expectation and maximisation
ORDER_SCALE = 4.0  # of short-range order as the networks' input, beside standardised descriptors
NORMAL_90 = 1.645  # half width of the normal distribution's 90 % interval
# --------------------------------------------------------------------------------------------------

ORDER_BLOCKS = "pairs triplets second_pairs"
RIDGE_BLOCKS = "points pairs triplets"
ALPHAS = np.logspace(-6, 1, 22)


# ==== what the models see =========================================================================


def random_alloy(system, fractions, block):
    """Probability of each column of a block where species sit at random: (n, n_columns)."""
    columns = []
    for name in common.cluster_columns(system, block):
        members = name.split()[-1].split("-")
        number = [members.count(element) for element in system.elements]
        ways = factorial(len(members)) / np.prod([factorial(n) for n in number])
        columns.append(ways * np.prod(fractions ** np.array(number), axis=1))
    return np.column_stack(columns)


class Alloys:
    """Inputs of alloys, by rows: descriptors, short-range order of each block, CE columns."""

    def __init__(self, system, fractions, phases, occupation):
        """fractions: (n, n_elements). occupation: {column: (n,)} or None for random alloys."""
        self.inputs = common.network_inputs(fractions, phases, system.elements)  # (n, n_inputs)
        self.many = ((fractions > 0).sum(1) >= 4).astype(int)
        self.phase = np.array([common.PHASES.index(phase) for phase in phases])
        self.order, ridge = [], []
        for block in dict.fromkeys([*RIDGE_BLOCKS.split(), *ORDER_BLOCKS.split()]):
            at_random = random_alloy(system, fractions, block)
            actual = at_random if occupation is None else occupation[common.cluster_columns(system, block)]
            if block in ORDER_BLOCKS.split():
                self.order.append(np.asarray(actual) - at_random)
            if block in RIDGE_BLOCKS.split():
                ridge.append(np.asarray(actual))
        self.ridge = np.hstack(ridge)

    def take(self, rows):
        part = object.__new__(Alloys)
        part.__dict__ = {
            name: [block[rows] for block in value] if name == "order" else value[rows]
            for name, value in vars(self).items()
        }
        return part


class Scale:
    """Standardised descriptors, and blocks of short-range order centred and of unit mean square norm."""

    def __init__(self, alloys):
        self.mean, self.std = alloys.inputs.mean(0), alloys.inputs.std(0)
        self.std[self.std == 0] = 1
        many = alloys.many.astype(bool)
        centred_on = many if many.sum() >= 10 else np.ones(len(many), bool)
        self.centres = [block[centred_on].mean(0) for block in alloys.order]
        self.norms = [
            max(np.sqrt(((block - centre) ** 2).sum(1).mean()), 1e-9)
            for block, centre in zip(alloys.order, self.centres)
        ]

    def __call__(self, alloys):
        """Descriptors (n, n_inputs) and short-range order (n, n_order)."""
        order = [
            (block - centre) / norm for block, centre, norm in zip(alloys.order, self.centres, self.norms)
        ]
        return (alloys.inputs - self.mean) / self.std, np.hstack(order)

    def for_networks(self, alloys):
        """Both in one array, short-range order in columns of its own for each phase: float32."""
        descriptors, order = self(alloys)
        by_phase = [ORDER_SCALE * order * (alloys.phase == phase)[:, None] for phase in (0, 1)]
        return np.hstack([descriptors, *by_phase]).astype(np.float32)


# ==== the committee ===============================================================================


class GaussianProcessCE:
    """Gaussian process on descriptors and short-range order, both phases and all alloys at once.

    Kernel: v1 Matern_3/2 (a length per descriptor) + v2 <order, order'> (1 within a phase,
    sigmoid(rho) across); noise variance apart for alloys of at most three and of more elements.
    theta: log v1, log lengths, log v2, rho, two log noises; by marginal likelihood with a weak normal
    prior (standard deviation PRIOR). Targets standardised.
    """

    PRIOR = 4.0

    def __init__(self, scale, alloys, targets):
        self.scale = scale
        self.rows = self.tensors(alloys)
        self.mean, self.std = targets.mean(), max(targets.std(), 1e-9)
        self.targets = torch.tensor((targets - self.mean) / self.std)
        n = self.rows[0].shape[1]
        self.theta = torch.tensor(
            [0.0, *[np.log(2.0)] * n, 0.0, 1.0, *[np.log(0.05)] * 2], dtype=torch.float64
        )
        self.factor = torch.ones(len(targets), dtype=torch.float64)  # of each row's noise variance

    def tensors(self, alloys):
        return *map(torch.tensor, self.scale(alloys)), torch.tensor(alloys.phase), torch.tensor(alloys.many)

    def kernel(self, theta, one, other):
        descriptors, order, phase, _ = one
        descriptors2, order2, phase2, _ = other
        a, b = descriptors / theta[1:-4].exp(), descriptors2 / theta[1:-4].exp()
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        distance = (3 * squared.clamp_min(1e-12)).sqrt()
        coupling = torch.where(phase[:, None] == phase2, 1.0, torch.sigmoid(theta[-3]))
        smooth = theta[0].exp() * (1 + distance) * (-distance).exp()
        return smooth + theta[-4].exp() * (order @ order2.T) * coupling

    def prior_variance(self, theta, one):
        return theta[0].exp() + theta[-4].exp() * (one[1] ** 2).sum(1)

    def noise(self):
        """Noise variances of alloys of at most three and of more elements, targets standardised."""
        return self.theta[-2:].exp()

    def solve(self, theta):
        """Cholesky factor of the rows' covariance, and its inverse on the targets."""
        covariance = self.kernel(theta, self.rows, self.rows)
        noise = theta[-2:].exp()[self.rows[3]] * self.factor
        jitter = 1e-5 + 1e-8 * covariance.diagonal()
        cholesky = torch.linalg.cholesky(covariance + torch.diag(noise + jitter))
        return cholesky, torch.cholesky_solve(self.targets[:, None], cholesky)[:, 0]

    def fit(self):
        theta = self.theta.clone().requires_grad_()
        best = (np.inf, self.theta)
        search = torch.optim.LBFGS(
            [theta], max_iter=150, tolerance_change=1e-5, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure():
            nonlocal best
            search.zero_grad()
            try:
                cholesky, solved = self.solve(theta)
                fit_term = 0.5 * self.targets @ solved
                loss = fit_term + cholesky.diagonal().log().sum() + 0.5 * ((theta / self.PRIOR) ** 2).sum()
            except torch.linalg.LinAlgError:  # far out in a line search: turn it back
                loss = 1e3 * (theta**2).sum()
            loss.backward()
            if loss.item() < best[0]:
                best = loss.item(), theta.detach().clone()
            return loss

        search.step(closure)
        return self.settle(best[1])

    def settle(self, theta):
        """Take theta, and what predictions need of it."""
        self.theta = theta
        self.cholesky, self.solved = self.solve(theta)
        return self

    def weigh_outliers(self):
        """Expectation step for Student-t noise: the factor of each row's noise variance."""
        covariance = self.kernel(self.theta, self.rows, self.rows)
        reduced = torch.linalg.solve_triangular(self.cholesky, covariance, upper=False)
        variance = covariance.diagonal() - (reduced**2).sum(0)
        squared = (self.targets - covariance @ self.solved) ** 2 + variance
        noise = self.noise()[self.rows[3]]
        self.factor = (STUDENT_DEGREES + squared / noise) / (STUDENT_DEGREES + 1)

    def fit_student(self):
        """Go on with Student-t noise, by expectation and maximisation: outliers get more noise."""
        for _ in range(STUDENT_ROUNDS):
            self.weigh_outliers()
            self.fit()
        return self

    def leave_one_out(self):
        """Errors on the training rows, each left out, in the targets' units, (n,)."""
        return (self.solved / torch.cholesky_inverse(self.cholesky).diagonal()).numpy() * self.std

    def predict(self, alloys):
        """Mean and standard deviation, noise included, in the targets' units: (n,), (n,)."""
        means, variances = [], []
        for rows in np.array_split(np.arange(len(alloys.phase)), len(alloys.phase) // 2000 + 1):
            one = self.tensors(alloys.take(rows))
            covariance = self.kernel(self.theta, one, self.rows)
            reduced = torch.linalg.solve_triangular(self.cholesky, covariance.T, upper=False)
            means.append(covariance @ self.solved)
            noise = self.noise()[one[3]]
            variances.append(self.prior_variance(self.theta, one) - (reduced**2).sum(0) + noise)
        variance = torch.cat(variances).clamp_min(0).numpy()
        return torch.cat(means).numpy() * self.std + self.mean, np.sqrt(variance) * self.std


def fit_ridge(alloys, targets):
    """The published CE, its penalty by leave-one-out: ({phase: (coefficients, intercept)}, errors (n,))."""
    from sklearn.linear_model import RidgeCV

    models, errors = {}, np.empty(len(targets))
    for phase in np.unique(alloys.phase):
        rows = alloys.phase == phase
        model = RidgeCV(ALPHAS, store_cv_results=True).fit(alloys.ridge[rows], targets[rows])
        models[int(phase)] = model.coef_, float(model.intercept_)
        errors[rows] = np.sqrt(model.cv_results_[:, list(ALPHAS).index(model.alpha_)])
    return models, errors


def predict_ridge(models, alloys):
    predicted = np.full(len(alloys.phase), np.nan)
    for phase, (coefficients, intercept) in models.items():
        rows = alloys.phase == phase
        predicted[rows] = alloys.ridge[rows] @ coefficients + intercept
    return predicted


# ==== the networks ================================================================================


def new_networks(n_networks, n_inputs, generator):
    """Weights of networks with two hidden layers and a linear path beside them, replicas leading."""

    def uniform(*shape, inputs):
        return (2 * torch.rand(shape, generator=generator) - 1) / inputs**0.5

    sizes = [(n_inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)]
    weights = []
    for n, m in sizes:
        weights += [uniform(n_networks, n, m, inputs=n), uniform(n_networks, 1, m, inputs=n)]
    return [*weights, torch.zeros(n_networks, n_inputs, 1)]


def forward(weights, inputs):
    """(n_networks, n, n_inputs) -> (n_networks, n)."""
    w1, b1, w2, b2, w3, b3, linear = weights
    hidden = silu(torch.baddbmm(b1, inputs, w1))
    hidden = silu(torch.baddbmm(b2, hidden, w2))
    return (torch.baddbmm(b3, hidden, w3) + inputs @ linear)[..., 0]


def train(weights, inputs, targets, row_weights, epochs, batch, rate, decay, generator, cosine=False):
    """AdamW on weighted squared error; inputs (n, n_inputs), targets (n_networks, n)."""
    weights = [value.clone().requires_grad_() for value in weights]
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=decay, fused=True)
    n_steps = epochs * -(-len(inputs) // batch)
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: (1 + np.cos(np.pi * step / n_steps)) / 2 if cosine else 1.0
    )
    for _ in range(epochs):
        order = torch.rand(len(targets), len(inputs), generator=generator).argsort(1)
        for rows in order.split(batch, dim=1):
            error = forward(weights, inputs[rows]) - targets.gather(1, rows)
            loss = (row_weights[rows] * error**2).mean(1).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
    return [value.detach() for value in weights]


# ==== the recipe ==================================================================================


def source_alloys(settings, table, system):
    """Random alloys of all phases, each with an occupation of its own: Alloys. No label is read.

    Three in four have four elements or more, where the data's cells hold as many; half the
    compositions are of tenths, half drawn from a Dirichlet distribution on the same elements. Cells:
    one of each size in the database, large ones for alloys of many elements.
    """
    generator = np.random.default_rng(0)
    pool, _ = generate.sample_compositions(system, "Total")
    many = (pool > 0).sum(1) >= 4
    fractions, phases, tables = [], [], []
    columns = [
        column
        for block in dict.fromkeys([*RIDGE_BLOCKS.split(), *ORDER_BLOCKS.split()])
        for column in common.cluster_columns(system, block)
    ]
    for phase in common.phases_of(table):
        cells = generate.cells_by_size(settings, table, system, phase)
        large, small = cells[-2:], cells[: max(len(cells) - 1, 1)]
        for share, which, pool_rows in ((0.75, large, many), (0.25, small, ~many)):
            rows = pool[pool_rows] if pool_rows.any() else pool
            per_cell = round(share * SOURCE_ALLOYS / len(which))
            for cell in which:
                drawn = rows[generator.integers(len(rows), size=per_cell)]
                free = generator.standard_gamma(np.where(drawn > 0, 3.0, 0.0))  # Dirichlet, unnormalised
                free = np.maximum(free / free.sum(1, keepdims=True), 0.05 * (drawn > 0))
                drawn = np.where(np.arange(per_cell)[:, None] % 2, free / free.sum(1, keepdims=True), drawn)
                species = generator.permuted(generate.ordered_species(drawn, len(cell)), axis=1)
                fractions.append((species[:, :, None] == np.arange(len(system.elements))).mean(1))
                blocks = "points pairs triplets second_pairs"
                tables.append(generate.sample_occupation(cell, phase, species, system, blocks))
                phases += [phase] * per_cell
    occupation = pd.DataFrame(np.concatenate(tables), columns=columns)
    return Alloys(system, np.concatenate(fractions), phases, occupation)


class Committee:
    """The recipe, fitted to the training rows of one split."""

    def __init__(self, train_alloys, targets, source, seeds):
        """targets: (n,). source: from `source_alloys`. seeds: one ensemble of NETWORKS each."""
        self.scale = Scale(train_alloys)
        self.mean, self.std = targets.mean(), max(targets.std(), 1e-9)
        normal = GaussianProcessCE(self.scale, train_alloys, targets).fit()
        student = GaussianProcessCE(self.scale, train_alloys, targets).settle(normal.theta).fit_student()
        self.processes = [normal, student]
        self.ridge, ridge_errors = fit_ridge(train_alloys, targets)

        # Judged on alloys of many elements, which are what is asked for, where there are enough.
        judged = train_alloys.many.astype(bool)
        judged = judged if judged.sum() >= 10 else np.ones(len(judged), bool)
        errors = np.array([normal.leave_one_out(), student.leave_one_out(), ridge_errors])
        weights = 1 / (errors[:, judged] ** 2).mean(1) ** 2
        self.weights = weights / weights.sum()

        labels = (np.array(self.members(source)) - self.mean) / self.std  # (3, n_source)
        labels = torch.tensor(labels[np.arange(NETWORKS) % 3], dtype=torch.float32)
        inputs = torch.tensor(self.scale.for_networks(source))
        few, much = normal.noise().numpy()
        trust = np.where(train_alloys.many, 1.0, min(1.0, much / few)) / student.factor.numpy()
        trust = torch.tensor(trust / trust.mean(), dtype=torch.float32)
        target_inputs = torch.tensor(self.scale.for_networks(train_alloys))
        target_labels = torch.tensor((targets - self.mean) / self.std, dtype=torch.float32).expand(
            NETWORKS, -1
        )
        self.networks = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            networks = new_networks(NETWORKS, inputs.shape[1], generator)
            networks = train(
                networks, inputs, labels, torch.ones(len(inputs)),
                SOURCE_EPOCHS, SOURCE_BATCH, SOURCE_RATE, SOURCE_DECAY, generator, cosine=True,
            )  # fmt: skip
            networks = train(
                networks, target_inputs, target_labels, trust, EPOCHS, BATCH, RATE, DECAY, generator
            )
            self.networks.append(networks)

    def members(self, alloys):
        """The three CEs' values, (n,) each."""
        return [
            *(process.predict(alloys)[0] for process in self.processes),
            predict_ridge(self.ridge, alloys),
        ]

    def predict(self, alloys):
        """Predictions (n_seeds, n) and half widths of their 90 % interval (n,), in the targets' units."""
        weighted = self.weights @ np.array(self.members(alloys))
        inputs = torch.tensor(self.scale.for_networks(alloys)).expand(NETWORKS, -1, -1)
        with torch.no_grad():
            networks = [forward(one, inputs).double().mean(0).numpy() for one in self.networks]
        predicted = (weighted + np.array(networks) * self.std + self.mean) / 2
        deviations = [process.predict(alloys)[1] for process in self.processes]
        return predicted, NORMAL_90 * np.sqrt(np.mean(np.square(deviations), axis=0))

    def state(self):
        """Everything as tensors, numbers and lists, for a checkpoint."""
        return {
            "scale": {name: tensors_of(value) for name, value in vars(self.scale).items()},
            "mean": float(self.mean),
            "std": float(self.std),
            "processes": [
                {name: getattr(one, name) for name in ("rows", "targets", "theta", "factor")}
                | {"mean": float(one.mean), "std": float(one.std)}
                for one in self.processes
            ],
            "ridge": {phase: (torch.tensor(c), intercept) for phase, (c, intercept) in self.ridge.items()},
            "weights": torch.tensor(self.weights),
            "networks": self.networks,
        }


def tensors_of(value):
    return [torch.tensor(one) for one in value] if isinstance(value, list) else torch.tensor(value)


def restored(state):
    """Committees of a checkpoint's state."""

    def made(kind, values):
        one = object.__new__(kind)
        one.__dict__ = values
        return one

    def plain(value):
        return [one.numpy() for one in value] if isinstance(value, list) else value.numpy()

    committees = []
    for saved in state["committees"]:
        scale = made(Scale, {name: plain(value) for name, value in saved["scale"].items()})
        processes = [made(GaussianProcessCE, {"scale": scale, **one}) for one in saved["processes"]]
        for one in processes:
            one.settle(one.theta)
        ridge = {phase: (c.numpy(), intercept) for phase, (c, intercept) in saved["ridge"].items()}
        changed = {
            "scale": scale,
            "processes": processes,
            "ridge": ridge,
            "weights": saved["weights"].numpy(),
        }
        committees.append(made(Committee, saved | changed))
    return committees


def predict_compositions(committees, system, fractions, phases):
    """Predictions (n_committees * n_seeds, n) and half widths (n,) for alloys with species at random."""
    alloys = Alloys(system, fractions, phases, None)
    found = [one.predict(alloys) for one in committees]
    predicted = np.concatenate([predicted for predicted, _ in found])
    return predicted, np.mean([half_width for _, half_width in found], axis=0)


def fit(settings, data, splits):
    """The recipe for all splits and seeds, on all cores: a networks.Outcome. No test label is read."""
    fractions = common.mole_fractions(data.table.formula, data.system.elements)
    alloys = Alloys(data.system, fractions, data.table.phase, data.table)
    source = source_alloys(settings, data.table, data.system)
    committees = joblib.Parallel(n_jobs=min(len(splits), joblib.cpu_count()))(
        joblib.delayed(Committee)(alloys.take(split.train), data.targets[split.train], source, settings.SEEDS)
        for split in splits
    )
    found = [one.predict(alloys) for one in committees]
    return networks.Outcome(
        predicted=np.array([predicted for predicted, _ in found]),
        scales=np.array([one.std for one in committees]),
        epochs=np.full(len(splits) * len(settings.SEEDS), EPOCHS),
        losses=[],
        half_widths=np.array([half_width for _, half_width in found]),
        state={"committees": [one.state() for one in committees]},
    )
