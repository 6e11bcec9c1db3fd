"""The published method written down a second time, as plainly as torch and scikit-learn allow.

Nothing here is fast, and nothing is shared with the project's scripts, which have to equal it to the last
bit. A `table` is a DataFrame with the columns formula, phase and the targets', all fcc rows before all bcc
rows; `occupations` is a DataFrame of cluster probabilities with the same rows.
"""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from pymatgen.core import Composition
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ELEMENTS = ("Fe", "Ni", "Co", "Cr", "Mn", "Pd")
EXCLUDED = {"Mn", "Pd"}  # no alloy holds both
PHASES = ("fcc", "bcc")
TARGETS = {"Ef": "Eform (eV/atom)", "Ms": "Ms (mub/atom)"}
CHI = {"Fe": 1.83, "Ni": 1.91, "Co": 1.88, "Cr": 1.66, "Mn": 1.55, "Pd": 2.20}  # electronegativity
RADIUS = {"Fe": 1.277, "Ni": 1.246, "Co": 1.250, "Cr": 1.285, "Mn": 1.292, "Pd": 1.376}
VALENCE = {"Fe": 8, "Ni": 10, "Co": 9, "Cr": 6, "Mn": 7, "Pd": 10}
SCRATCH_RATE = {"Ef": 0.005, "Ms": 0.001}
ALPHA = {("Ef", False): 1e-4, ("Ms", False): 1e-2, ("Ef", True): 1e-3, ("Ms", True): 1e-1}
BLOCKS = (("", 1), ("pair ", 2), ("triplet ", 3), ("quadruplet ", 4), ("second pair ", 2))


def descriptors(formulas, phases, elements=ELEMENTS):
    """Mole fractions, mixing entropy, two mismatches, valence electrons, and the phase as two columns."""
    chi, radius, valence = (np.array([of[e] for e in elements]) for of in (CHI, RADIUS, VALENCE))
    rows = []
    for formula, phase in zip(formulas, phases):
        c = np.array([Composition(formula).get_atomic_fraction(e) for e in elements])
        entropy = -8.3145 * sum(x * math.log(x) for x in c if x > 0)
        radii = math.sqrt(sum(c * (1 - radius / sum(c * radius)) ** 2))
        chis = math.sqrt(sum(c * (chi - sum(c * chi)) ** 2))
        rows.append([*c, entropy, radii, chis, sum(c * valence), phase == "fcc", phase == "bcc"])
    return np.array(rows, dtype=float)


def multisets(size, elements=ELEMENTS):
    """The unordered sets of `size` elements, with repetition, that an alloy can hold."""
    return [c for c in itertools.combinations_with_replacement(elements, size) if not set(c) >= EXCLUDED]


def columns(elements=ELEMENTS, second=False):
    """What the cluster expansion reads: points, pairs, triplets, and with `second` second-neighbour pairs."""
    blocks = [*BLOCKS[:3], BLOCKS[4]] if second else BLOCKS[:3]
    return [prefix + "-".join(chosen) for prefix, size in blocks for chosen in multisets(size, elements)]


def clusters(structure, phase):
    """The clusters about every atom as arrays of atoms' numbers, one array for each of BLOCKS."""
    lattice, n_atoms = structure.lattice.matrix, len(structure)
    positions = structure.frac_coords @ lattice
    block = np.concatenate([positions + np.array(m) @ lattice for m in itertools.product(range(3), repeat=3)])
    n_first, n_triplets, n_bases, n_fourths = {"fcc": (12, 24, 24, 1), "bcc": (8, 36, 12, 2)}[phase]
    first, second = range(1, n_first + 1), range(n_first + 1, n_first + 7)  # 0 is the atom itself
    third, fourths = (first, first) if phase == "fcc" else (range(1, n_first + 7), second)
    candidates = [(j, k) for j in first for k in third if j < k]
    found = [[] for _ in BLOCKS]
    for i in range(n_atoms):
        middle = 13 * n_atoms + i  # image (1, 1, 1)
        order = np.argsort(np.sqrt(((block - block[middle]) ** 2).sum(axis=1)), kind="stable")
        near = np.array([middle, *order[order != middle][: n_first + 6]])
        d = np.sqrt(((block[near][:, None] - block[near][None]) ** 2).sum(axis=2)).tolist()
        by_perimeter = sorted(candidates, key=lambda jk: d[0][jk[0]] + d[0][jk[1]] + d[jk[0]][jk[1]])
        bases = [(j, k) for j, k in by_perimeter if k in first][:n_bases]
        quadruplets = []
        for j, k in bases:
            others = [n for n in fourths if n not in (j, k)]
            nearest = sorted(others, key=lambda n: d[0][n] + d[j][n] + d[k][n])[:n_fourths]
            quadruplets += [(j, k, n) for n in nearest]
        pairs, second_pairs = [(j,) for j in first], [(j,) for j in second]
        blocks = ([()], pairs, by_perimeter[:n_triplets], quadruplets, second_pairs)
        for members, others in zip(found, blocks):
            members.append(near[np.array([(0, *rest) for rest in others])] % n_atoms)
    return [np.concatenate(members) for members in found]


def probabilities(found, species, elements=ELEMENTS):
    """The share of each multiset of elements among the clusters; `species` has the element of each atom."""
    numbers = np.array([elements.index(element) for element in species])
    shares = {}
    for (prefix, size), members in zip(BLOCKS, found):
        digits = len(elements) ** np.arange(size)  # a multiset, sorted, read as one number
        counts = np.bincount(np.sort(numbers[members], axis=1) @ digits, minlength=len(elements) ** size)
        for chosen in multisets(size, elements):
            code = [elements.index(element) for element in chosen] @ digits
            shares[prefix + "-".join(chosen)] = counts[code] / len(members)
    return shares


def occupation(structure, phase, elements=ELEMENTS):
    """The occupation probabilities, not rounded, of a pymatgen Structure: column name -> probability."""
    return probabilities(clusters(structure, phase), [site.specie.symbol for site in structure], elements)


def of_many(table, rows):
    """Which of `rows` are alloys of four and more elements."""
    return np.array([len(Composition(table.formula.iloc[row])) >= 4 for row in rows])


def split(table, alloys="4+5", percent=100, number=0, prime=False):
    """The rows of the training set and of the test set."""
    train_rows, test_rows = [], []
    for phase in PHASES:
        rows = np.flatnonzero(table.phase == phase)
        many = of_many(table, rows)
        if alloys == "Total":
            low, folds = [], list(KFold(5, shuffle=True, random_state=number).split(rows))
            kept, tested = (rows[part] for part in folds[1])
        else:
            low = rows[~many]
            kept, tested = train_test_split(rows[many], train_size=0.8, random_state=number)
        if percent < 100:
            kept = train_test_split(kept, train_size=percent / 100, random_state=number)[0]
        train_rows += [*kept[of_many(table, kept)]] if prime else [*low, *kept]
        test_rows += [*tested]
    return np.array(train_rows), np.array(test_rows)


def held_out(table, train_rows, number, share):
    """The training rows that choose the epoch where the test set must not be read."""
    many = of_many(table, train_rows)
    rows = train_rows[many] if many.any() else train_rows
    return train_test_split(rows, test_size=share, stratify=table.phase.iloc[rows], random_state=number)[1]


def fit_ce(table, occupations, target, rows, alpha, names):
    """A ridge regression for each phase, fitted to those of `rows` that have it."""
    x, y, expansion = occupations[names].to_numpy(), table[TARGETS[target]].to_numpy(), {}
    for phase in PHASES:
        here = [row for row in rows if table.phase.iloc[row] == phase]
        expansion[phase] = Ridge(alpha=alpha).fit(x[here], y[here])
    return expansion


def samples(lattices, alloys="4+5", elements=ELEMENTS):
    """Random alloys on the 160-atom `lattices` (phase -> Structure): formulas, kinds, occupations by phase.

    A kind is (number of elements, "plain", "Mn" or "Pd"); without Pd among the elements all are plain.
    """
    both = set(elements) >= EXCLUDED
    base = [element for element in elements if not (both and element == "Pd")]
    plain, with_mn = [], []
    for tenths in itertools.product(range(11), repeat=len(base)):
        counts = {element: 16 * n for element, n in zip(base, tenths) if n}
        if sum(tenths) == 10 and len(counts) >= (2 if alloys == "Total" else 4):
            (with_mn if both and "Mn" in counts else plain).append(counts)
    drawn = [(counts, "plain") for counts in sorted(plain, key=len)]
    for counts in sorted(with_mn, key=len):
        copied = {"Pd" if element == "Mn" else element: n for element, n in counts.items()}
        drawn += [(counts, "Mn"), (copied, "Pd")]
    occupations = {}
    for phase in PHASES:
        found, rows = clusters(lattices[phase], phase), []
        for counts, _ in drawn:
            species = [element for element, n in counts.items() for _ in range(n)]
            np.random.RandomState(0).shuffle(species)
            rows.append(probabilities(found, species, elements))
        occupations[phase] = pd.DataFrame(rows)
    formulas = ["".join(f"{element}{n}" for element, n in counts.items()) for counts, _ in drawn]
    kinds = [(len(counts), kind) for counts, kind in drawn]
    return SimpleNamespace(formulas=formulas, kinds=kinds, occupations=occupations)


def select(kinds, n, alloys="4+5"):
    """The numbers of the n samples that data augmentation adds, the same ones to either phase."""
    rows, total, rest = ({2: 84, 4: 97, 5: 55}, 364, 3) if alloys == "Total" else ({5: 55}, 152, 4)
    shares = {size: math.ceil(count * n / total) for size, count in rows.items()}
    shares[rest] = n - sum(shares.values())
    generator, chosen = np.random.default_rng(42), []
    for size in sorted(shares):
        plain, mn = ([i for i, kind in enumerate(kinds) if kind == (size, name)] for name in ("plain", "Mn"))
        n_plain, n_mn, n_pd = shares[size], 0, 0
        if mn:
            over, under = {2: (2, 7), 3: (3, 8), 4: (4, 9), 5: (1, 2)}[size]
            n_pd = math.ceil(over * shares[size] / under)
            n_plain = max(shares[size] - 2 * n_pd, 0)  # of quinaries none is left either way
            n_mn = shares[size] - n_pd - n_plain
        mn = generator.choice(np.array(mn, int), n_pd, replace=False)
        pd_copies = mn + 1  # each sample with Mn is followed by its copy with Pd
        if n_mn < n_pd:
            mn = generator.choice(mn, n_mn, replace=False)
        chosen += [*generator.choice(plain, n_plain, replace=False), *mn, *pd_copies]
    return np.array(chosen, dtype=int)


class Network(nn.Module):
    """An embedding of the elements, mixed by the (standardised) mole fractions, and three layers."""

    def __init__(self, n_elements, convolution=False):
        super().__init__()
        self.embedding = nn.Embedding(n_elements, 58)
        if convolution:
            nn.Conv2d(1, 1, 5)  # never used: the published Scratch network draws its parameters here
        layers = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        n = self.embedding.num_embeddings
        return self.layers(torch.cat([x[:, :n] @ self.embedding.weight, x[:, n:]], dim=1))


def train(network, inputs, targets, watch, optimiser, epochs, patience, batch_size):
    """Train, leave the network in the state that is kept, and return that state's epoch, counted from 1.

    `watch` holds the inputs and targets whose loss chooses the state; None keeps the last one.
    """
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=batch_size, shuffle=True)
    least, kept, state = math.inf, epochs, network.state_dict()
    for epoch in range(1, epochs + 1):
        for x, y in loader:
            optimiser.zero_grad()
            nn.functional.mse_loss(network(x), y).backward()
            optimiser.step()
        if watch is None or epoch == 1:
            continue
        loss = nn.functional.mse_loss(network(watch[0]), watch[1]).item()
        if loss < least:
            least, kept, state = loss, epoch, copy.deepcopy(network.state_dict())
        elif epoch - kept >= patience:
            break
    network.load_state_dict(state)
    return kept


def standardise(on, inputs, targets):
    """As a network takes them: scaled in double precision as the set `on` asks for, then float32."""
    columns = (on[0], inputs), (on[1][:, None], targets[:, None])
    scaled = [StandardScaler().fit(fitted).transform(values) for fitted, values in columns]
    return [torch.tensor(values, dtype=torch.float32) for values in scaled]


def carry_out(
    sets, table, target, rate, *, convolution=False, source_rate=None, source_epochs=None, elements=ELEMENTS,
    alloys="4+5", percent=100, number=0, prime=False, seed=0, epochs=1000, patience=100, batch_size=16,
    share=None, refit=True,
):  # fmt: skip
    """Split, train and score. sets(x, y, rows) gives TL's source set or None, and the set to train on.

    The epoch is the one of least test loss, as published; or, with `share`, that of the least loss of so
    large a part of the training set, held out, and with `refit` the whole of it is trained on once more.
    """
    x, y = descriptors(table.formula, table.phase, elements), table[TARGETS[target]].to_numpy()

    def fit(rows, watched, epochs):
        source, trained = sets(x, y, rows) if sets else (None, (x[rows], y[rows]))
        torch.manual_seed(seed)
        network = Network(len(elements), convolution)
        optimiser = torch.optim.Adam(network.parameters(), lr=source_rate if source else rate)
        if source:
            scaled = standardise(source, *source)
            train(network, *scaled, None, optimiser, source_epochs, None, batch_size)
            torch.manual_seed(seed)
            network.embedding.requires_grad_(False)
            optimiser = torch.optim.SGD(network.layers.parameters(), lr=rate)
        scaled = standardise(trained, *trained)
        watch = None if watched is None else standardise(trained, x[watched], y[watched])
        return network, trained, train(network, *scaled, watch, optimiser, epochs, patience, batch_size)

    rows, test = split(table, alloys, percent, number, prime)
    watched = test if share is None else held_out(table, rows, number, share)
    network, trained, kept = fit(rows[~np.isin(rows, watched)], watched, epochs)
    if share is not None and refit:
        network, trained, kept = fit(rows, None, kept)
    result = SimpleNamespace(network=network, epochs=kept)
    for name, (inputs, values) in (("train", trained), ("test", (x[test], y[test]))):
        x, y = standardise(trained, inputs, values)
        scaled = network(x).detach()
        predicted = scaled.numpy().ravel() * trained[1].std() + trained[1].mean()
        setattr(result, f"{name}_predicted", predicted)
        setattr(result, f"{name}_r2", r2_score(values, predicted))
        setattr(result, f"{name}_loss", nn.functional.mse_loss(scaled, y).item())
    return result


def scratch(table, target, rate=None, **study):
    """Scratch; `study` holds further arguments of carry_out, here and below."""
    rate = SCRATCH_RATE[target] if rate is None else rate
    return carry_out(None, table, target, rate, convolution=True, **study)


def scratch_prime(table, target, **study):
    """Scratch on the training set's alloys of four and five elements alone."""
    return scratch(table, target, prime=True, **study)


def label(table, occupations, random, target, rows, second, alpha, elements):
    """The inputs and labels of the samples `random`, by phase, from a cluster expansion fitted to `rows`."""
    names, labelled = columns(elements, second), {}
    alpha = ALPHA[target, second] if alpha is None else alpha
    expansion = fit_ce(table, occupations, target, rows, alpha, names)
    for phase in PHASES:
        inputs = descriptors(random.formulas, [phase] * len(random.formulas), elements)
        labelled[phase] = inputs, expansion[phase].predict(random.occupations[phase][names].to_numpy())
    return labelled


def da(table, occupations, random, target, augment=75, second=False, alpha=None, rate=0.001, **study):
    """Data augmentation by `augment` of the samples `random` a phase, mixed with the training set."""
    elements, alloys = study.get("elements", ELEMENTS), study.get("alloys", "4+5")

    def sets(x, y, rows):
        labelled = label(table, occupations, random, target, rows, second, alpha, elements)
        chosen = select(random.kinds, augment, alloys)
        parts = []
        for phase in PHASES:
            here = [row for row in rows if table.phase.iloc[row] == phase]
            parts += [(x[here], y[here]), [part[chosen] for part in labelled[phase]]]
        return None, [np.concatenate(part) for part in zip(*parts)]

    return carry_out(sets, table, target, rate, **study)


def tl(table, occupations, random, target, second=False, alpha=None, rate=0.05, **study):
    """Transfer learning: first all of the samples `random`, then the training set, the embedding frozen."""
    study = {"source_rate": 0.001, "source_epochs": 20} | study
    elements = study.get("elements", ELEMENTS)

    def sets(x, y, rows):
        labelled = label(table, occupations, random, target, rows, second, alpha, elements)
        return [np.concatenate(part) for part in zip(*labelled.values())], (x[rows], y[rows])

    return carry_out(sets, table, target, rate, **study)
