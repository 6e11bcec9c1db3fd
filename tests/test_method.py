"""Splits, samples, batches and training, against independent counts and a plain torch loop."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import STUDY, needs_study, run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import common
import generate
import networks
from common import System

PAPER = System(("Fe", "Ni", "Co", "Cr", "Mn", "Pd"), (frozenset(("Mn", "Pd")),))


def test_descriptors_of_an_equimolar_binary():
    """FeNi by hand: S = R ln 2, mismatches from the two radii and electronegativities."""
    found = common.descriptors(np.array([[0.5, 0.5]]), ("Fe", "Ni"))[0]
    mean = (1.277 + 1.246) / 2
    expected = [0.5, 0.5, 8.3145 * np.log(2), abs(1.277 - mean) / mean, 0.04, 9]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(("alloys", "without", "with_mn"), [("4+5", 84, 462), ("Total", 282, 714)])
def test_sample_compositions(alloys, without, with_mn):
    fractions, kind = generate.sample_compositions(PAPER, alloys)
    assert [int((kind == k).sum()) for k in range(3)] == [without, with_mn, with_mn]
    np.testing.assert_allclose(fractions.sum(1), 1)
    assert not (fractions[:, 4] * fractions[:, 5]).any()
    assert not fractions[:without, 4:].any()
    # each with Mn is followed by its copy with Pd
    original, copy = fractions[without::2], fractions[without + 1 :: 2]
    np.testing.assert_array_equal(original[:, :4], copy[:, :4])
    np.testing.assert_array_equal(original[:, 4], copy[:, 5])
    for part in (fractions[:without], original):
        assert (np.diff((part > 0).sum(1)) >= 0).all()
    np.testing.assert_allclose(
        fractions[0, :4], (0.1, 0.1, 0.1, 0.7) if alloys == "4+5" else (0, 0, 0.1, 0.9)
    )


def test_species_are_shuffled_as_a_list():
    fractions, _ = generate.sample_compositions(PAPER, "4+5")
    drawn = generate.draw_species(fractions, 160)
    for row in (0, 500, 1007):
        species = [i for i, x in enumerate(fractions[row]) for _ in range(round(160 * x))]
        np.random.RandomState(0).shuffle(species)
        assert drawn[row].tolist() == species


@pytest.mark.parametrize("alloys", ["4+5", "Total"])
def test_selection_for_augmentation(alloys):
    fractions, kind = generate.sample_compositions(PAPER, alloys)
    samples = SimpleNamespace(fractions=fractions, kind=kind)
    chosen = generate.select(samples, 75, alloys)
    assert len(chosen) == len(set(chosen)) == 75
    sizes = (fractions[chosen] > 0).sum(1)
    counts = {k: [int(((sizes == k) & (kind[chosen] == x)).sum()) for x in range(3)] for k in range(2, 6)}
    if alloys == "4+5":  # 28 quinaries; 47 quaternaries: ceil(4/9 47) = 21 with Pd, 5 with neither
        assert counts == {2: [0, 0, 0], 3: [0, 0, 0], 4: [5, 21, 21], 5: [0, 14, 14]}
    else:
        assert [sum(counts[k]) for k in (2, 3, 4, 5)] == [18, 25, 20, 12]
    # thinning aside, those with Mn are the alloys whose Pd copies were drawn
    originals = set(chosen[kind[chosen] == 1])
    assert originals <= {i - 1 for i in chosen[kind[chosen] == 2]}


def small_settings(folder, **changes):
    settings = dict(
        DATA_DIR=folder, TABLE_DIR=folder, TARGET="Ef", ALLOYS="4+5", PERCENT=100, SEEDS=[0], SPLITS=[0],
        CLUSTERS="points pairs triplets", ALPHA=None, BATCH_SIZE=16, PATIENCE=100, DEVICE="cpu",
        ELEMENTS=None, EXCLUDED_PAIRS=[("Mn", "Pd")],
    )  # fmt: skip
    return SimpleNamespace(**settings | changes)


def test_samples_by_counting(small_data):
    """Occupation of a sample, counted through structure_stat as if it were a structure."""
    settings = small_settings(small_data, CLUSTERS="points pairs triplets second_pairs")
    table, system = common.load_tables(settings)
    samples = generate.make_samples(settings, table, system)
    import structure_stat

    for phase in common.PHASES:
        lattice = generate.read_lattice(settings, table, system, phase)
        row = 17
        species = generate.draw_species(samples.fractions, len(lattice))[row]
        for i, element in enumerate(species):
            lattice[i] = system.elements[element]
        sites, vectors = structure_stat.neighbours(lattice, phase)
        members = structure_stat.cluster_members(vectors, phase)
        expected = []
        for block in settings.CLUSTERS.split():
            clusters = structure_stat.cluster_sites(sites, members[block]).reshape(
                -1, common.BLOCKS[block][1]
            )
            names = common.cluster_columns(system, block)
            counts = dict.fromkeys(names, 0)
            for cluster in clusters:
                elements = sorted((str(lattice[int(i)].specie) for i in cluster), key=system.elements.index)
                counts[common.BLOCKS[block][0] + "-".join(elements)] += 1
            expected += [n / len(clusters) for n in counts.values()]
        np.testing.assert_allclose(samples.occupation[phase][row], expected, atol=1e-12)


def test_batches_are_a_dataloaders():
    rows = torch.arange(37)
    torch.manual_seed(5)
    loader = DataLoader(TensorDataset(rows), batch_size=16, shuffle=True)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        plain = torch.cat([batch for (batch,) in loader])
        assert torch.equal(plain, networks.epoch_order(generator, 37))


class PlainNetwork(nn.Module):
    """The published network as one would write it for a single run."""

    def __init__(self, n_elements, convolution):
        super().__init__()
        self.n_elements = n_elements
        self.embedding = nn.Embedding(n_elements, 58)
        if convolution:
            nn.Conv2d(1, 1, 5)
        self.layers = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, x):
        n = self.n_elements
        return self.layers(torch.cat([x[:, :n] @ self.embedding.weight, x[:, n:]], 1))[:, 0]


def plain_run(inputs, targets, seed, epochs, rate):
    """Plain DataLoader loop: the last state's predictions on the training rows."""
    torch.manual_seed(seed)
    network = PlainNetwork(inputs.shape[1] - 6, convolution=True)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(epochs):
        for x, y in loader:
            optimiser.zero_grad()
            nn.functional.mse_loss(network(x), y).backward()
            optimiser.step()
    return network(inputs).detach()


def made_up_set(n, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 12, generator=generator)
    return inputs, (inputs[:, 0] * inputs[:, 1] + inputs[:, 2]).tanh()


ADAM = networks.adam(0.003)


def batched_run(sets, set_of, seeds, epochs, optimiser=ADAM, **more):
    weights, generators = networks.initial_weights(seeds, 6, unused_convolution=True)
    return networks.train(
        weights, generators, [(x.numpy(), y.numpy()) for x, y in sets], set_of,
        optimiser, epochs, 16, **more,
    )  # fmt: skip


def test_replicas_equal_plain_runs():
    """Sets of several lengths and seeds side by side, each as a DataLoader loop of its own."""
    sets = [made_up_set(n, seed=n) for n in (37, 48, 41, 70)]
    set_of, seeds = [0, 1, 2, 2, 3], [0, 1, 2, 3, 4]
    weights, epochs, _ = batched_run(sets, set_of, seeds, 12)
    assert epochs.tolist() == [12] * 5
    for i, (s, seed) in enumerate(zip(set_of, seeds)):
        one = {name: value[i : i + 1] for name, value in weights.items()}
        expected = plain_run(*sets[s], seed, 12, 0.003)
        torch.testing.assert_close(networks.forward(one, sets[s][0][None])[0], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("frozen", [(), ("embedding",)])
def test_gradients_against_autograd(frozen):
    """Of two batches one after the other, the memory of the first used again."""
    weights, _ = networks.initial_weights([0, 1, 2], 6)
    weights = {name: value.double() for name, value in weights.items()}
    learners = networks.Learners(weights, networks.sgd(0.1), 16, frozen)
    for seed in (0, 1):
        torch.manual_seed(seed)
        inputs, targets, share = (torch.rand(3, 16, n).double() - 0.5 for n in (12, 1, 1))
        leaves = {name: value.clone().requires_grad_() for name, value in learners.weights.items()}
        expected = (plain_forward(leaves, inputs) - targets) ** 2 * share
        expected.sum().backward()
        learners.loss.zero_()
        learners.step(inputs, targets, share)
        torch.testing.assert_close(learners.loss, expected.detach())
        assert learners.gradients.keys() == leaves.keys() - set(frozen)
        for name, value in leaves.items():
            if name in frozen:
                assert torch.equal(learners.weights[name], value)
            else:
                torch.testing.assert_close(learners.gradients[name], value.grad)
                torch.testing.assert_close(learners.weights[name], value.detach() - 0.1 * value.grad)


def plain_forward(weights, inputs):
    """The network written out: (n_replicas, n, 12) -> (n_replicas, n, 1)."""
    hidden = torch.cat([inputs[..., :6] @ weights["embedding"], inputs[..., 6:]], -1)
    for i in "12":
        hidden = (hidden @ weights["weight" + i] + weights["bias" + i]).relu()
    return hidden @ weights["weight3"] + weights["bias3"]


def test_adam_is_torchs():
    """Steps and moments, also after some of the replicas are taken out."""
    weights, _ = networks.initial_weights([0, 1, 2], 6)
    leaves = {name: value[1:].clone().requires_grad_() for name, value in weights.items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=0.01)
    learners = networks.Learners(weights, networks.adam(0.01), 16)
    torch.manual_seed(0)
    for i in range(6):
        if i == 3:
            learners = learners.some(torch.tensor([False, True, True]))
        batch = torch.randn(3, 16, 12), torch.randn(3, 16, 1), torch.rand(3, 16, 1)
        learners.step(*(part[-len(learners.weights["embedding"]) :] for part in batch))
        inputs, targets, share = (part[1:] for part in batch)
        optimiser.zero_grad()
        ((plain_forward(leaves, inputs) - targets) ** 2 * share).sum().backward()
        optimiser.step()
    for name, value in leaves.items():
        torch.testing.assert_close(learners.weights[name], value.detach(), atol=1e-5, rtol=0)


def test_adam_rounds_a_replica_as_alone():
    """To the last bit, wherever its weights lie in the flat tensor."""
    weights, _ = networks.initial_weights([0, 1, 2], 6)
    parts = [weights, *({name: value[i : i + 1] for name, value in weights.items()} for i in range(3))]
    together, *alone = (networks.Learners(part, networks.adam(0.01), 16) for part in parts)
    torch.manual_seed(0)
    for _ in range(50):
        for name, gradient in together.gradients.items():
            gradient.normal_()
            for i, learners in enumerate(alone):
                learners.gradients[name].copy_(gradient[i : i + 1])
        for learners in (together, *alone):
            flat = [moment for moment, _ in learners.moments]
            learners.optimiser(learners.values, learners.flat_gradients, flat, learners.count)
    for name, value in together.weights.items():
        assert torch.equal(value, torch.cat([learners.weights[name] for learners in alone]))


def test_kept_state_is_the_watched_best():
    """Each replica keeps the state of least watched loss from the second epoch on, and then stops.

    By SGD: Adam divides by the gradient's size, and so turns the rounding of a gradient near zero, other
    side by side than alone, into a step.
    """
    optimiser = networks.sgd(0.1)
    sets, watch = [made_up_set(40, 1), made_up_set(40, 2)], [made_up_set(9, 3), made_up_set(14, 4)]
    arrays = [(x.numpy(), y.numpy()) for x, y in watch]
    weights, epochs, losses = batched_run(
        sets, [0, 1, 1], [0, 1, 2], 300, optimiser, watch=arrays, patience=15
    )
    table = pd.DataFrame(losses, columns=["replica", "epoch", "train", "watched"])
    assert len(set(epochs)) > 1
    for i, s in enumerate([0, 1, 1]):
        rows = table[table.replica == i]
        later = rows[rows.epoch >= 2]
        assert epochs[i] == later.epoch[later.watched.idxmin()]
        assert rows.epoch.max() == min(epochs[i] + 15, 300)
        one = {name: value[i : i + 1] for name, value in weights.items()}
        out = networks.forward(one, watch[s][0][None])[0]
        assert ((out - watch[s][1]) ** 2).mean().item() == pytest.approx(later.watched.min(), rel=1e-5)
        # the same as alone
        alone, alone_epochs, _ = batched_run(
            [sets[s]], [0], [i], 300, optimiser, watch=[arrays[s]], patience=15
        )  # fmt: skip
        assert alone_epochs[0] == epochs[i]
        for name, value in one.items():
            torch.testing.assert_close(value, alone[name], atol=1e-5, rtol=0)


def test_the_first_epoch_is_never_kept():
    """With a rate of zero all epochs are equal: the second is the first that may be kept."""
    watch = [tuple(part.numpy() for part in made_up_set(9, 3))]
    _, epochs, losses = batched_run(
        [made_up_set(40, 1)], [0], [0], 50, networks.sgd(0.0), watch=watch, patience=5
    )
    assert epochs.tolist() == [2] and losses[-1][1] == 7


def test_frozen_embedding_stays():
    sets = [made_up_set(40, 1)]
    start, _ = networks.initial_weights([0], 6, unused_convolution=True)
    weights, _, _ = batched_run(sets, [0], [0], 3, frozen=("embedding",))
    assert torch.equal(weights["embedding"], start["embedding"])
    assert not torch.equal(weights["weight1"], start["weight1"])


@pytest.fixture(scope="module")
def table(study_tables):
    return common.load_tables(small_settings(STUDY, TABLE_DIR=study_tables))[0]


@needs_study
class TestStudySplits:
    def test_sizes(self, table):
        split = common.split_rows(table, "4+5", 100, 0)
        assert (len(split.train), len(split.test)) == (333, 31)
        assert (table.n_components[split.test] >= 4).all()
        assert not set(split.train) & set(split.test)
        low = (table.n_components < 4).sum()
        assert len(common.split_rows(table, "4+5", 0, 0).train) == low
        prime = common.split_rows(table, "4+5", 100, 0, high_only=True)
        assert len(prime.train) == 333 - low
        np.testing.assert_array_equal(prime.test, split.test)

    def test_total(self, table):
        split = common.split_rows(table, "Total", 100, 0)
        assert len(split.train) + len(split.test) == 364
        assert table.n_components[split.test].nunique() == 4

    def test_percent_thins_only_high_components(self, table):
        whole, part = (common.split_rows(table, "4+5", percent, 3) for percent in (100, 20))
        np.testing.assert_array_equal(whole.test, part.test)
        assert set(part.train) < set(whole.train)
        high = [(table.n_components[s.train] >= 4).sum() for s in (whole, part)]
        assert high[1] == pytest.approx(0.2 * high[0], abs=2)


@needs_study
@pytest.mark.parametrize(
    ("script", "expected", "within"), [("main.py", (0.957612, 0.042388, 0.910953, 0.051504), 1e-4)]
)
def test_reference_figures(script, expected, within, study_tables, tmp_path):
    printed = run(
        script, "--data-dir", STUDY, "--table-dir", study_tables, "--results-dir", tmp_path, "--device", "cpu"
    ).out
    lines = [line.split() for line in printed.splitlines() if line.startswith(("Train:", "Test:"))]
    found = [float(word.strip(",")) for line in lines for word in (line[2], line[4])]
    np.testing.assert_allclose(found, expected, atol=within)
