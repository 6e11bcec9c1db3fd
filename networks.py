"""The network of main.py and main_transfer.py, its training, and the choice of the epoch.

Nothing to run here. Networks of all splits and seeds train side by side: every tensor has a leading
axis of replicas, and a single network is the case of one replica. Each replica gets exactly the
initial weights and the batches that a run of its own would.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm import tqdm

from common import InputError, hold_out

EMBEDDING = 58  # dimensions of an element's embedding; with S, two mismatches, valence and phase: 64
HIDDEN = 64
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
            torch.manual_seed(seed)
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
    n_elements = weights["embedding"].shape[1]
    composition = torch.bmm(inputs[..., :n_elements], weights["embedding"])
    hidden = torch.cat([composition, inputs[..., n_elements:]], dim=-1)
    hidden = torch.baddbmm(weights["bias1"], hidden, weights["weight1"]).relu()
    hidden = torch.baddbmm(weights["bias2"], hidden, weights["weight2"]).relu()
    return torch.baddbmm(weights["bias3"], hidden, weights["weight3"])[..., 0]


def loss_and_gradients(weights, gradients, inputs, targets, share):
    """Loss of each network, (n_replicas, 1); writes its gradients into `gradients`.

    By hand, because autograd's record of so small a network takes longer than its arithmetic; a test
    holds it against autograd. inputs: (n_replicas, n, n_elements + 6). targets, and share of each row
    in the loss: (n_replicas, n, 1). gradients: as weights; a name that it lacks is frozen.
    """
    n_elements = weights["embedding"].shape[1]
    composition = inputs[..., :n_elements]
    embedded = torch.cat([torch.bmm(composition, weights["embedding"]), inputs[..., n_elements:]], dim=-1)
    layers = [embedded]  # what each layer sees
    for i in "12":
        layers.append(torch.baddbmm(weights["bias" + i], layers[-1], weights["weight" + i]).relu_())
    error = torch.baddbmm(weights["bias3"], layers[-1], weights["weight3"]) - targets
    slope = error * share
    loss = (slope * error).sum(1)
    slope += slope  # of the loss by what a layer gives, (n_replicas, n, outputs)
    for i, seen in zip("321", reversed(layers)):
        torch.bmm(seen.mT, slope, out=gradients["weight" + i])
        torch.sum(slope, 1, keepdim=True, out=gradients["bias" + i])
        slope = torch.bmm(slope, weights["weight" + i].mT)
        if i != "1":
            slope = torch.ops.aten.threshold_backward(slope, seen, 0)  # zero where relu was
    if "embedding" in gradients:
        torch.bmm(composition.mT, slope[..., :EMBEDDING], out=gradients["embedding"])
    return loss


def by_name(values, shapes):
    """Views of values, (n_replicas, n_weights), as {name: (n_replicas, *shape)}; shapes: {name: shape}."""
    parts = values.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.view(-1, *shape) for part, (name, shape) in zip(parts, shapes.items())}


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
    optimiser: function from a list of tensors to a torch optimiser that works element by element.
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


@torch.no_grad()
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

    # All weights of a replica in one row, and the optimiser on that: one operation a step, not seven.
    shapes = {name: value.shape[1:] for name, value in weights.items() if name not in frozen}
    values = torch.cat([weights[name].flatten(1) for name in shapes], dim=1)
    values.grad = torch.zeros_like(values)
    weights, gradients = weights | by_name(values, shapes), by_name(values.grad, shapes)
    step = optimiser([values])
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
        epoch_loss = torch.zeros(len(held), 1, device=device)
        rows = (epoch_inputs, epoch_targets[..., None], state["share"][..., None])
        for batch in zip(*(part.split(batch_size, dim=1) for part in rows)):
            epoch_loss += loss_and_gradients(weights, gradients, *batch)
            step.step()
        epoch_loss = epoch_loss[:, 0].cpu().numpy() / (n_rows // batch_size)

        if watch is None:
            watched = np.full(len(held), np.nan)
            keep, stop = epochs[held] == epoch, epochs[held] <= epoch
        else:
            error = forward(weights, state["watch_inputs"]) - state["watch_targets"]
            watched = (error**2 * state["watch_share"]).sum(1).cpu().numpy()
            keep = runs & (watched < least[held]) & (epoch > 1)
            least[held[keep]], kept_epochs[held[keep]] = watched[keep], epoch
            stop = epoch - np.maximum(kept_epochs[held], 1) >= patience
        history += [(held[i], epoch, epoch_loss[i], watched[i]) for i in np.flatnonzero(runs)]
        if keep.any():
            for name, value in kept.items():
                value[held[keep]] = weights[name][keep]
        runs &= ~stop
        if not runs.any():
            break
        if runs.mean() < 0.75:  # worth the copying: take the stopped replicas out of the tensors
            held, state = held[runs], {name: value[runs] for name, value in state.items()}
            fewer = values[runs]
            fewer.grad = torch.zeros_like(fewer)
            weights = {name: value[runs] for name, value in weights.items()} | by_name(fewer, shapes)
            gradients, fewer_step = by_name(fewer.grad, shapes), optimiser([fewer])
            fewer_step.state[fewer] = {
                key: value[runs] if value is not None and value.shape == values.shape else value
                for key, value in step.state[values].items()
            }
            values, step, runs = fewer, fewer_step, runs[runs]
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
