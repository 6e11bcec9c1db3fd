"""beyond/map_ternary.py: what its maps show, by a made-up model and by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run

import common
from beyond import map_ternary, predict
from settings import InputError

ELEMENTS = ("Ni", "Fe", "Cr")
PHASES = ["fcc", "bcc", "hcp"]


@pytest.fixture
def model(monkeypatch, tmp_path):
    """A checkpoint that predicts what a test puts into `model.predict`."""
    saved = {
        "elements": ELEMENTS,
        "phases": PHASES[:2],
        "target": "Ef",
        "method": "scratch",
        "run": "made_up",
    }
    saved |= {"phase_input": "named", "title": "Made up", "data": "HEA_data", "path": tmp_path / "model.pt"}
    saved |= {"system": common.System(ELEMENTS, ()), "unseen": [["Ni", "Cr"]], "n_components": [1, 2, 3]}
    saved |= {"least": torch.full((7,), -9.0), "greatest": torch.full((7,), 99.0)}
    saved["path"].write_text("a checkpoint")
    made = SimpleNamespace(saved=saved, predict=networks(2))
    monkeypatch.setattr(predict, "load_checkpoint", lambda path: (made.predict, saved))
    return made


def networks(n):
    """n of them: bcc lies 0.1 - x(Ni) above fcc, which is -0.1 x(Fe), 0.01 more or less in each network."""

    def predict_alloys(fractions, names, clusters):
        bcc, (nickel, iron, _) = np.array(names) == "bcc", fractions.T
        return -0.1 * iron + bcc * (0.1 - nickel + 0.01 * np.arange(n)[:, None]), {}

    return predict_alloys


def process(fractions, names, clusters):
    """What a Gaussian process says: its mean is of the lattice in the name, the rest of phases."""
    assert set(names) == {"fcc"}  # the rest is the same for all
    columns = {f"mean_{phase}": fractions[:, 0] + i for i, phase in enumerate(PHASES)}
    columns |= {"bcc - fcc": fractions[:, 1] - 0.5, "half_width_90 bcc - fcc": np.full(len(fractions), 0.2)}
    return np.zeros((1, len(fractions))), columns


def drawn(tmp_path, *flags):
    """The run's folder, its table, and what was printed."""
    printed = run("beyond/map_ternary.py", "--results-dir", tmp_path / "out", *flags).out
    folder = tmp_path / "out" / printed.split("written to ")[1].split(":")[0].split("/")[-1]
    assert (folder / "map.png").stat().st_size > 20_000 and "could not be drawn" not in printed
    return folder, pd.read_csv(folder / "map.csv"), printed


def test_a_process_answers_for_the_phase_asked_for(model, tmp_path, pictures):
    """Not for the lattice in the name; an hcp that it knows is drawn, too; no hull of a magnetisation."""
    model.predict = process
    model.saved |= {"method": "phase_gp", "phases": PHASES, "target": "Ms"}
    folder, table, _ = drawn(tmp_path, "--corners", "Ni", "Fe", "Cr")
    for i, phase in enumerate(PHASES):
        np.testing.assert_allclose(table[phase], table.Ni + i)
    np.testing.assert_allclose(table.difference, table.Fe - 0.5)
    np.testing.assert_allclose(table.half_width, 0.2)
    said = pictures[f"{folder.name}/map.png"]
    assert "phase of the cell" in said and "\nhcp\n" in said and "hull" not in said
    assert "the interval of the difference holds zero" in said and "magnetisation (μB/atom)" in said


def test_networks_differ_by_their_spread(model, tmp_path, pictures):
    folder, table, printed = drawn(tmp_path, "--corners", "Ni", "Fe", "Cr")
    np.testing.assert_allclose(table.difference, 0.105 - table.Ni, atol=1e-12)
    np.testing.assert_allclose(table.half_width, 0.01, atol=1e-12)
    assert (table.outside == ((table.Ni > 0) & (table.Cr > 0))).all()
    said = pictures[f"{folder.name}/map.png"]
    assert "lattice in the name" in said and "outside of what was trained on" in said
    assert "the interval of the difference holds zero" in said and "no difference" in said
    assert "distance to the convex hull" in said and "convex hull: up to" in printed

    model.predict = networks(1)
    model.saved["unseen"] = []
    again, table, printed = drawn(tmp_path, "--corners", "FeNi", "Ni", "Cr", "--rest", "Fe", "--share", "0.2")
    said = pictures[f"{again.name}/map.png"]
    assert table.half_width.isna().all() and "interval" not in said and "outside" not in said
    assert "no convex hull" in printed and "hull" not in said and "with 20% Fe" in said
    assert json.loads((again / "settings.json").read_text())["settings"]["SHARE"] == 0.2
    np.testing.assert_allclose(table.fcc, -0.1 * (0.2 + 0.4 * table.FeNi))


def test_distance_to_the_convex_hull():
    """By hand: one alloy at -0.1 eV/atom, half Fe, half Ni; for pure elements no prediction counts."""
    shares, fractions = map_ternary.section(["Fe", "Ni", "Cr"], None, 0, ELEMENTS)
    energies = np.where(shares.max(1) == 1, -5, 0.0)
    energies[(shares == [0.5, 0.5, 0]).all(1)] = -0.1
    found = map_ternary.above_hull(["Fe", "Ni", "Cr"], fractions, energies, ELEMENTS)
    expected = 0.2 * np.minimum(shares[:, 0], shares[:, 1]) + energies
    expected[shares.max(1) == 1] = 0
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_what_cannot_be_mapped_is_said_in_a_line(model, tmp_path):
    for flags, fault in (("--corners Ni Fe", "three formulas"), ("--rest Fex", "a formula")):
        assert fault in run("beyond/map_ternary.py", *flags.split(), status=2).err
    with pytest.raises(InputError, match="Pd"):
        map_ternary.section(["Fe", "Ni", "Cr"], "Pd", 0.1, ELEMENTS)
    model.saved["phases"] = ["bcc"]
    assert "seen bcc alone" in run("beyond/map_ternary.py", "--results-dir", tmp_path, status=2).err
