"""Whatever a reader makes of the network: it trains, repeats, and is not taken for another one."""

import copy
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import published
import pytest
import torch
from conftest import ROOT, TINY, files, run
from test_published import fitted, made_up_set
from torch import nn

import common
import report
import settings

RUN = "scratch_Ef_4+5_100_reference"


class Skip(nn.Linear):
    def forward(self, x):
        return x + super().forward(x)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def hidden(*more):
    """The layers with more of them before the last."""
    return lambda layers: [*layers[:4], *more, layers[4]]


CHANGES = {
    "added": hidden(nn.Linear(64, 64), nn.ReLU()),
    "taken away": lambda layers: [*layers[:2], layers[4]],
    "exchanged": lambda layers: [nn.Tanh() if isinstance(one, nn.ReLU) else one for one in layers],
    "no bias": hidden(nn.Linear(64, 64, bias=False)),
    "Dropout": hidden(nn.Dropout(0.3)),
    "LayerNorm": hidden(nn.LayerNorm(64)),
    "PReLU": hidden(nn.PReLU()),
    "BatchNorm1d": hidden(nn.BatchNorm1d(64)),
    "skip": hidden(Skip(64, 64)),
    "x - x.mean(0)": hidden(Centred()),
}
SIDE_BY_SIDE = ("added", "taken away", "exchanged", "no bias", "Dropout")


class Changed(common.Network):
    """The network with its layers changed, as one would do in common.py."""

    change = None

    def __init__(self, *sizes, **more):
        super().__init__(*sizes, **more)
        self.layers = nn.Sequential(*copy.deepcopy(type(self).change([*self.layers])))


class AnotherForward(common.Network):
    def forward(self, inputs):
        return 1.01 * super().forward(inputs)


Changed.__name__ = AnotherForward.__name__ = "Network"  # as `repr` shows it


@pytest.fixture
def changed(request, monkeypatch):
    monkeypatch.setattr(Changed, "change", staticmethod(CHANGES[request.param]))
    monkeypatch.setattr(common, "Network", Changed)
    return request.param


ROWS, WATCH = made_up_set(40, 1), made_up_set(9, 2)


def trained(*seeds):
    return fitted(seeds, [ROWS], [WATCH], partial(common.Adam, rate=0.01), 9)


def same(one, other):
    """Whether two networks have the same state, to the last bit."""
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("changed", CHANGES, indirect=True)
def test_any_layer_trains(changed, capsys):
    common.say_once.cache_clear()
    both, again, alone = trained(0, 1), trained(0, 1), trained(0)
    assert capsys.readouterr().out.count("one after the other") == (changed not in SIDE_BY_SIDE)
    assert all(map(same, both.networks, again.networks)) and not same(*both.networks)
    assert same(both.networks[0], alone.networks[0]) or changed == "Dropout"
    scaled, (inputs, targets) = (published.standardise(ROWS, *part) for part in (ROWS, WATCH))
    for i, predicted in enumerate(common.predict(both, WATCH[0])[0]):  # judged as it will predict
        losses = [row[2:] for row in both.losses if row[0] == i]
        at_end = (((predicted - WATCH[1]) / ROWS[1].std()) ** 2).mean()
        assert losses[both.epochs[i] - 1][1] == pytest.approx(at_end, rel=1e-4)
        assert losses[-1][0] < 0.9 * losses[0][0]
    if changed in ("Dropout", "BatchNorm1d"):  # the plain loop calls neither train() nor eval()
        return
    torch.manual_seed(1)
    plain, watch = Changed(6, 12), (inputs, targets[:, 0])
    adam = torch.optim.Adam(plain.parameters(), lr=0.01)
    kept = published.train(plain, scaled[0], scaled[1][:, 0], watch, adam, 9, 4, 16)
    assert kept == both.epochs[1] and same(plain, both.networks[1])


@pytest.mark.parametrize("changed", ["Dropout"], indirect=True)
def test_masks_hang_on_the_seed_alone(changed, monkeypatch):
    first = trained(0).networks[0]
    torch.manual_seed(8)
    assert same(first, trained(0).networks[0])
    monkeypatch.setattr(Changed, "change", staticmethod(hidden(nn.Dropout(0))))
    assert not same(first, trained(0).networks[0])


@pytest.fixture(scope="module")
def results(small_data, tmp_path_factory):
    """main.py with the network as it is: its folder of results, its flags, and what it printed."""
    flags = ["--data-dir", small_data, "--results-dir", tmp_path_factory.mktemp("results"), *TINY]
    return flags[3], flags, run("main.py", *flags).out


def load(out):
    saved = torch.load(out / RUN / "model.pt", weights_only=True)
    return saved, report.load_networks(saved["state"], len(saved["elements"]), "model.pt")


def test_a_checkpoint_predicts_what_the_run_did(results):
    saved, networks = load(results[0])
    found = pd.read_csv(results[0] / RUN / "predictions.csv")["mean"][:10]
    again = common.predict(networks, saved["state"]["inputs"].numpy())[0, 0]
    np.testing.assert_allclose(again, found, rtol=1e-9)


NAMED = [
    ("added", "[+] .4.: Linear.in_features=64, out_features=64"), ("taken away", "- .4.: Linear"),
    ("exchanged", "- .1.: ReLU.*[+] .1.: Tanh"), ("Dropout", "[+] .4.: Dropout.p=0.3"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "named"), NAMED, indirect=["changed"])
def test_a_changed_network_refuses_the_checkpoint(results, changed, named):
    with pytest.raises(settings.InputError, match="model.pt: .*" + named.replace(" ", " +")):
        load(results[0])


def test_a_changed_forward(results, monkeypatch):
    """Layers do not show it: refused too; it is another run, and leaves the earlier one alone."""
    (out, flags, _), before = results, files(results[0])
    monkeypatch.setattr(common, "Network", AnotherForward)
    with pytest.raises(settings.InputError, match=r"model.pt: .*forward"):
        load(out)
    written = [run("main.py", *flags).out.split("written to ")[1] for _ in range(2)]
    assert written[0] == written[1] and RUN + "_" in written[0]
    assert before.items() <= files(out).items() and len(files(out)) == len(before) + 6


def test_threads(results):
    """OMP_NUM_THREADS changes no digit: there is one thread, in scipy too, which brings a BLAS of its own."""
    code = """if True:
        import runpy, threadpoolctl, torch
        runpy.run_path("main.py", run_name="__main__")
        import sklearn.linear_model
        pools = [one for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"]
        print(torch.get_num_threads(), {one["num_threads"] for one in pools})"""
    command, env = [sys.executable, "-c", code, *map(str, results[1])], os.environ | {"OMP_NUM_THREADS": "2"}
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert found.stdout == results[2] + "1 {1}\n", found.stderr
