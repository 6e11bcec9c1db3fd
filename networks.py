"""The network of main.py and main_transfer.py, its training, and the choice of the epoch.

Nothing to run here. Networks of all splits and seeds train side by side: every tensor has a leading
axis of replicas, and a single network is the case of one replica. Each replica gets exactly the
initial weights and the batches that a run of its own would.
"""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import pad
from torch.optim.adam import adam as torch_adam
from tqdm import tqdm

from common import InputError, hold_out

EMBEDDING = 58  # dimensions of an element's embedding; with S, two mismatches, valence and phase: 64
HIDDEN = 64
relu_backward = torch.ops.aten.threshold_backward.grad_input
THREADS, THREADS_FROM = torch.get_num_threads(), 16  # replicas; fewer train on one thread


def initial_weights(seeds, n_elements, unused_convolution=False):
    """Weights of one network per seed, drawn as the published scripts draw them.

    unused_convolution: the published Scratch network also draws a 5 x 5 convolution that it never
    uses; it moves the random numbers that follow, so figures that agree need it drawn and dropped.
    Returns (weights, generators): a dict of tensors with a leading axis of replicas, and for each
    replica the random generator in the state in which training finds it.
    """
    networks, generators = [], []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.default_generator.manual_seed(seed)
            embedding = nn.Embedding(n_elements, EMBEDDING)
            if unused_convolution:
                nn.Conv2d(1, 1, 5)
            linear = [nn.Linear(EMBEDDING + 6, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)]
            weights = {"embedding": embedding.weight}
            for i, layer in enumerate(linear, start=1):
                # (inputs, outputs), as the batched product takes it
                weights |= {f"weight{i}": layer.weight.T, f"bias{i}": layer.bias[None]}
            networks.append(weights)
            generator = torch.Generator()
            generator.set_state(torch.get_rng_state())
            generators.append(generator)
    stacked = {name: torch.stack([one[name].detach() for one in networks]) for name in networks[0]}
    return stacked, generators


def forward(weights, inputs):
    """Networks on their inputs: (n_replicas, n, n_elements + 6) -> (n_replicas, n), standardised."""
    hidden = torch.bmm(inputs, lifted(weights["embedding"]))
    for i in "12":
        hidden = torch.baddbmm(weights["bias" + i], hidden, weights["weight" + i]).relu()
    # No product: torch adds up one matrix times a column in another order than several of them, and a
    # replica is to find what it would alone, to the last bit.
    return (hidden * weights["weight3"].mT).sum(2) + weights["bias3"][..., 0]


def lifted(embedding):
    """Matrices that embed the mole fractions and pass on the other six inputs as they are.

    (n_replicas, n_elements, 58) -> (n_replicas, n_elements + 6, 64).
    """
    passed = torch.eye(6, EMBEDDING + 6, dtype=embedding.dtype, device=embedding.device).roll(EMBEDDING, 1)
    return torch.cat([pad(embedding, (0, 6)), passed.expand(len(embedding), -1, -1)], dim=1)


def adam(rate):
    """Steps of Adam (Kingma and Ba 2015) for `train`, by torch's own function.

    torch.optim.Adam puts bookkeeping around it that takes as long as all else in a step of a network
    this small, and loads torch's compiler, which takes a second.
    """
    constants = {"lr": rate, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0}

    def step(values, gradients, moments, count):
        means, squares = moments
        torch_adam(
            [values], [gradients], [means], [squares], [], [count],
            fused=True, amsgrad=False, maximize=False, **constants,
        )  # fmt: skip

    return step


def sgd(rate):
    """Steps of stochastic gradient descent, likewise."""
    return lambda values, gradients, moments, count: values.sub_(gradients, alpha=rate)


def laid_out(tensors):
    """The tensors of a dict as one flat tensor, and its parts by their names.

    Zeros fill it up to a multiple of 64: the optimiser takes numbers in fours to sixteens, and what is
    left over at the end it rounds in another way.
    """
    flat = torch.cat([value.flatten() for value in tensors.values()])
    sizes = [value.numel() for value in tensors.values()]
    flat = pad(flat, (0, -len(flat) % 64))
    parts = flat.split([*sizes, len(flat) - sum(sizes)])
    return flat, {name: part.view_as(value) for part, (name, value) in zip(parts, tensors.items())}


class Layer(NamedTuple):
    """A linear layer of networks in training, with the views that its products take.

    Shapes: weight (n_replicas, n_in, n_out), bias (n_replicas, 1, n_out), seen, which goes in, and the
    slope of the loss by it (n_replicas, batch_size, n_in), given, which comes out, (..., n_out).
    """

    weight: torch.Tensor
    bias: torch.Tensor
    weight_gradient: torch.Tensor
    bias_gradient: torch.Tensor
    seen: torch.Tensor
    given: torch.Tensor
    slope_of_seen: torch.Tensor
    weight_transposed: torch.Tensor
    seen_transposed: torch.Tensor


class Learners:
    """Networks learning side by side: their weights, and memory for all that a step needs.

    What surrounds the arithmetic of networks this small takes longer than the arithmetic. So the
    backward pass is by hand (autograd keeps a record; a test holds it against autograd), the optimiser
    takes all weights in one piece, a step takes no new memory and makes few views, and products go to
    contiguous tensors (into others torch multiplies stacked matrices one by one, at a third of the speed).
    """

    def __init__(self, weights, optimiser, batch_size, frozen=(), moments=None, count=None):
        """weights: {name: (n_replicas, ...)}. optimiser: from `adam` or `sgd`; moments, count: its state."""
        self.optimiser, self.batch_size, self.frozen = optimiser, batch_size, frozen
        self.values, learned = laid_out({name: weights[name] for name in weights if name not in frozen})
        self.weights = weights | learned
        zeros = {name: torch.zeros_like(value) for name, value in learned.items()}
        self.flat_gradients, self.gradients = laid_out(zeros)
        self.moments = [laid_out(one) for one in moments or (zeros, zeros)]
        embedding = self.weights["embedding"]
        self.count = embedding.new_zeros(()) if count is None else count  # of steps

        n_replicas, n_elements = embedding.shape[:2]
        self.lift = lifted(embedding)
        self.embedding_in_lift = self.lift[:, :n_elements, :EMBEDDING]
        tensors, slopes = (
            [embedding.new_empty(n_replicas, batch_size, n) for n in (EMBEDDING + 6, HIDDEN, HIDDEN, 1)]
            for _ in range(2)
        )
        self.slope = slopes[3]
        self.layers = [
            Layer(
                self.weights[f"weight{i}"],
                self.weights[f"bias{i}"],
                self.gradients[f"weight{i}"],
                self.gradients[f"bias{i}"],
                tensors[i - 1],
                tensors[i],
                slopes[i - 1],
                self.weights[f"weight{i}"].mT,
                tensors[i - 1].mT,
            )
            for i in (1, 2, 3)
        ]
        self.terms = torch.empty_like(tensors[2])
        self.slope_of_embedded = slopes[0][..., :EMBEDDING]
        self.loss = torch.zeros_like(tensors[3])  # by row of the batch, added up

    def some(self, chosen):
        """Learners that hold only the chosen replicas, (n_replicas,) of bool."""
        weights, *moments = (
            {name: value[chosen] for name, value in tensors.items()}
            for tensors in (self.weights, *(parts for _, parts in self.moments))
        )
        return Learners(weights, self.optimiser, self.batch_size, self.frozen, moments, self.count.clone())

    def differentiate(self, inputs, targets, share):
        """Gradients of each network's loss on a batch, into self.gradients; adds the loss to self.loss.

        inputs: (n_replicas, batch_size, n_elements + 6). targets, and share of each row in the loss:
        (n_replicas, batch_size, 1).
        """
        embedding_gradient = self.gradients.get("embedding")  # None: frozen
        if embedding_gradient is not None:
            self.embedding_in_lift.copy_(self.weights["embedding"])
        first, second, last = self.layers
        torch.bmm(inputs, self.lift, out=first.seen)
        for layer in (first, second):
            torch.baddbmm(layer.bias, layer.seen, layer.weight, out=layer.given).relu_()
        # The last layer has one column, and no products: see `forward`.
        torch.mul(last.seen, last.weight_transposed, out=self.terms)
        error = torch.sum(self.terms, 2, keepdim=True, out=last.given).add_(last.bias).sub_(targets)
        slope = torch.mul(error, share, out=self.slope)
        self.loss.addcmul_(error, slope)
        slope += slope
        torch.mul(last.seen, slope, out=self.terms)
        torch.sum(self.terms, 1, keepdim=True, out=last.weight_gradient.mT)
        torch.sum(slope, 1, keepdim=True, out=last.bias_gradient)
        slope = torch.mul(slope, last.weight_transposed, out=last.slope_of_seen)
        for layer in (second, first):
            relu_backward(slope, layer.given, 0, grad_input=slope)
            torch.bmm(layer.seen_transposed, slope, out=layer.weight_gradient)
            torch.sum(slope, 1, keepdim=True, out=layer.bias_gradient)
            if layer is second or embedding_gradient is not None:
                slope = torch.bmm(slope, layer.weight_transposed, out=layer.slope_of_seen)
        if embedding_gradient is not None:
            composition = inputs[..., : embedding_gradient.shape[1]]
            torch.bmm(composition.mT, self.slope_of_embedded, out=embedding_gradient)

    def step(self, inputs, targets, share):
        """Learn from a batch, as `differentiate` takes it."""
        self.differentiate(inputs, targets, share)
        self.optimiser(self.values, self.flat_gradients, [flat for flat, _ in self.moments], self.count)


def epoch_order(generator, n_rows):
    """Order of the rows in one epoch, drawn as DataLoader(shuffle=True) draws it.

    The loader takes two numbers from its generator: the base seed of worker processes, unused
    here, and the seed of the sampler, whose own generator makes the permutation.
    """
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    seed = torch.empty((), dtype=torch.int64).random_(generator=generator).item()
    return torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))


class Outcome(NamedTuple):
    """What a method has found, for the report."""

    predicted: np.ndarray  # (n_splits, n_seeds, n) for all alloys of the data, in the target's unit
    scales: np.ndarray  # (n_splits,), standard deviation by which losses are standardised
    epochs: np.ndarray  # (n_splits * n_seeds,)
    losses: list  # rows (replica, epoch, loss in training, loss on the watched set)
    half_widths: np.ndarray | None  # of 90 % intervals, (n_splits, n), where a method states them
    state: dict  # of tensors, numbers and lists: what a checkpoint needs to predict again


class Scalers(NamedTuple):
    """StandardScalers of inputs and target."""

    inputs: object
    target: object

    @classmethod
    def fit(cls, inputs, targets):
        """Fit to inputs (n, n_inputs) and targets (n,)."""
        return cls(StandardScaler().fit(inputs), StandardScaler().fit(targets[:, None]))

    def transform(self, inputs, targets):
        """The same, standardised."""
        return self.inputs.transform(inputs), self.target.transform(targets[:, None])[:, 0]


class Model(NamedTuple):
    """Trained networks of all splits and seeds, those of the first split first."""

    weights: dict  # of tensors with a leading axis of replicas
    scalers: list  # of Scalers, one per split
    epochs: np.ndarray  # (n_replicas,), whose state was kept
    losses: list  # rows (replica, epoch, loss in training, loss on the watched set)


def padded(arrays):
    """Arrays (n_i, ...) -> one float32 tensor (len(arrays), max n_i, ...), filled up with zeros."""
    tensor = torch.zeros(len(arrays), max(map(len, arrays)), *np.shape(arrays[0])[1:])
    for row, array in zip(tensor, arrays):
        row[: len(array)] = torch.as_tensor(array)
    return tensor


def train(
    weights,
    generators,
    sets,
    set_of,
    optimiser,
    epochs,
    batch_size,
    watch=None,
    patience=None,
    frozen=(),
    device="cpu",
):
    """Train all replicas side by side by mean squared error.

    weights, generators: from `initial_weights`. frozen: names of weights that stay as they are.
    sets: standardised training sets [(inputs (n, n_inputs), targets (n,)), ...].
    set_of: number of the set that each replica learns, (n_replicas,).
    optimiser: from `adam` or `sgd`.
    watch: sets as `sets`; the state with the least loss on them is kept, from the second epoch on,
    and a replica stops when `patience` epochs brought no better one. epochs: the most there may be.
    Without watch: epochs is the epoch whose state is kept, one number or one per replica.
    Returns (kept weights, their epochs (n_replicas,), losses), losses being rows (replica, epoch,
    loss in training, loss on the watched set).
    """
    set_of, epochs = np.asarray(set_of), np.broadcast_to(epochs, len(set_of))
    n_batches = np.array([-(-len(sets[s][1]) // batch_size) for s in set_of])
    kept = {name: value.clone() for name, value in weights.items()}
    kept_epochs, losses = np.zeros(len(set_of), int), []
    # An optimiser counts its steps, so only replicas with as many batches an epoch go together.
    for n in np.unique(n_batches):
        group = np.flatnonzero(n_batches == n)
        part = {name: value[group].to(device) for name, value in weights.items()}
        best, kept_epochs[group], history = train_together(
            part,
            [generators[replica] for replica in group],
            sets,
            set_of[group],
            optimiser,
            epochs[group],
            batch_size,
            watch,
            patience,
            frozen,
        )
        for name, value in kept.items():
            value[group] = best[name].cpu()
        losses += [(group[replica], *rest) for replica, *rest in history]
    return kept, kept_epochs, losses


@torch.inference_mode()
def train_together(weights, generators, sets, set_of, optimiser, epochs, batch_size, watch, patience, frozen):
    """`train` for replicas with the same number of batches an epoch; the arguments are the same."""
    device = weights["embedding"].device
    inputs, targets = (padded(list(part)).to(device) for part in zip(*sets))
    sizes = np.array([len(sets[s][1]) for s in set_of])
    n_rows = -(-sizes.max() // batch_size) * batch_size  # whole batches, the last one filled up
    # Share of each row in the mean over its batch; zero for the rows that fill up the last one.
    last = (sizes - 1) % batch_size + 1
    share = np.full((len(sizes), n_rows), 1 / batch_size)
    share[:, -batch_size:] = (np.arange(batch_size) < last[:, None]) / last[:, None]
    share = torch.as_tensor(share, dtype=torch.float32, device=device)
    state = {"share": share, "set": torch.as_tensor(set_of, device=device)}
    if watch is not None:
        state["watch_inputs"], state["watch_targets"] = (
            padded([watch[s][part] for s in set_of]).to(device) for part in (0, 1)
        )
        watch_sizes = [len(watch[s][1]) for s in set_of]
        state["watch_share"] = padded([np.full(n, 1 / n) for n in watch_sizes]).to(device)

    learners = Learners(weights, optimiser, batch_size, frozen)
    kept = {name: value.clone() for name, value in weights.items()}
    kept_epochs = np.zeros(len(sizes), int) if watch is not None else np.array(epochs)
    least = np.full(len(sizes), np.inf)
    held = np.arange(len(sizes))  # number of each replica that the tensors hold
    runs = np.ones(len(held), bool)  # False: stopped, and still in the tensors
    history = []
    bar = tqdm(range(1, epochs.max() + 1), desc="training", unit="epoch", leave=False)
    for epoch in bar:
        order = torch.zeros(len(held), n_rows, dtype=torch.int64)
        for row, replica in zip(order, held):
            row[: sizes[replica]] = epoch_order(generators[replica], sizes[replica])
        order, which = order.to(device), state["set"][:, None]
        epoch_inputs, epoch_targets = inputs[which, order], targets[which, order]
        rows = (epoch_inputs, epoch_targets[..., None], state["share"][..., None])
        for batch in zip(*(part.split(batch_size, dim=1) for part in rows)):
            learners.step(*batch)
        epoch_loss = learners.loss.sum((1, 2)).cpu().numpy() / (n_rows // batch_size)
        learners.loss.zero_()

        if watch is None:
            watched = np.full(len(held), np.nan)
            keep, stop = epochs[held] == epoch, epochs[held] <= epoch
        else:
            error = forward(learners.weights, state["watch_inputs"]) - state["watch_targets"]
            watched = (error**2 * state["watch_share"]).sum(1).cpu().numpy()
            keep = runs & (watched < least[held]) & (epoch > 1)
            least[held[keep]], kept_epochs[held[keep]] = watched[keep], epoch
            stop = epoch - np.maximum(kept_epochs[held], 1) >= patience
        history += [(held[i], epoch, epoch_loss[i], watched[i]) for i in np.flatnonzero(runs)]
        if keep.any():
            for name, value in kept.items():
                value[held[keep]] = learners.weights[name][keep]
        runs &= ~stop
        if not runs.any():
            break
        if runs.mean() < 0.75:  # worth the copying: take the stopped replicas out of the tensors
            held, state = held[runs], {name: value[runs] for name, value in state.items()}
            learners, runs = learners.some(runs), runs[runs]
    bar.close()
    return kept, kept_epochs, history


def torch_device(name):
    """torch's device for DEVICE; auto: CUDA, else MPS, else CPU."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_there in there.items() if is_there)
    if not there[name]:
        raise InputError(f"DEVICE: expected auto or cpu, this machine has no {name} for torch")
    return torch.device(name)


def train_networks(
    settings, weights, generators, scalers, train_sets, watch_sets, optimiser, epochs, frozen=()
):
    """`train` with the settings of a run: sets in their own units, one per split, to a Model.

    Replicas: for each split all SEEDS, in this order.
    """
    # Few replicas make matrices so small that threads would wait for one another.
    torch.set_num_threads(THREADS if len(generators) >= THREADS_FROM else 1)
    sets = [one.transform(*rows) for one, rows in zip(scalers, train_sets)]
    watch = watch_sets and [one.transform(*rows) for one, rows in zip(scalers, watch_sets)]
    set_of = np.repeat(np.arange(len(sets)), len(settings.SEEDS))
    trained = train(
        weights,
        generators,
        sets,
        set_of,
        optimiser,
        epochs,
        settings.BATCH_SIZE,
        watch,
        settings.PATIENCE,
        frozen,
        torch_device(settings.DEVICE),
    )
    return Model(trained[0], scalers, *trained[1:])


def predict(model, inputs):
    """Predictions of all networks for the same rows, in the target's units: (n_splits, n_seeds, n)."""
    n_seeds = len(model.epochs) // len(model.scalers)
    found = []
    for i, scalers in enumerate(model.scalers):
        weights = {name: value[i * n_seeds : (i + 1) * n_seeds] for name, value in model.weights.items()}
        scaled = torch.as_tensor(scalers.inputs.transform(inputs), dtype=torch.float32)
        with torch.no_grad():
            out = forward(weights, scaled.expand(n_seeds, -1, -1)).double().numpy()
        found.append(scalers.target.inverse_transform(out))
    return np.array(found)


def fit_selected(settings, data, splits, fit):
    """Fit the networks of all splits, the epochs chosen as SELECT_BY says.

    fit: function (settings, data, training rows of each split, watched rows of each split or None,
    epochs) -> Model. With 'validation' it never sees a row of the test set.
    """
    whole = [split.train for split in splits]
    if settings.SELECT_BY == "reference":  # the published rule: it reads the test labels
        return fit(settings, data, whole, [split.test for split in splits], settings.EPOCHS)
    held = [hold_out(data.table, split, settings.HOLD_OUT) for split in splits]
    rest = [rows[~np.isin(rows, out)] for rows, out in zip(whole, held)]
    model = fit(settings, data, rest, held, settings.EPOCHS)
    return fit(settings, data, whole, None, model.epochs) if settings.REFIT else model


def outcome(model, data):
    """Outcome of the networks of all splits."""
    scalers = [[(torch.tensor(s.mean_), torch.tensor(s.scale_)) for s in one] for one in model.scalers]
    scales = np.array([one.target.scale_.item() for one in model.scalers])
    state = {"weights": model.weights, "scalers": scalers}
    return Outcome(predict(model, data.inputs), scales, model.epochs, model.losses, None, state)


def restored(state):
    """The Model of a checkpoint's state. Raises LookupError, TypeError or ValueError if it is none."""

    def scaler(mean, scale):
        made = StandardScaler()
        made.mean_, made.scale_, made.n_features_in_ = mean.numpy(), scale.numpy(), len(mean)
        return made

    scalers = [Scalers(*(scaler(*part) for part in one)) for one in state["scalers"]]
    return Model(state["weights"], scalers, np.zeros(len(state["weights"]["embedding"])), [])
