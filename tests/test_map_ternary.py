"""beyond/map_ternary.py: what its maps show, by a made-up model and by hand."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import common
from beyond import map_ternary, predict
from settings import InputError

ELEMENTS, PHASES = ("Ni", "Fe", "Cr"), ["fcc", "bcc", "hcp"]
SAVED = {
    "elements": ELEMENTS, "phases": PHASES[:2], "target": "Ef", "method": "scratch", "run": "made_up",
    "phase_input": "named", "title": "Made up", "data": "HEA_data", "system": common.System(ELEMENTS, ()),
    "unseen": [["Ni", "Cr"]], "n_components": [1, 2, 3], "least": torch.full((7,), -9.0),
    "greatest": torch.full((7,), 99.0),
}  # fmt: skip


@pytest.fixture
def draw(monkeypatch, tmp_path, pictures):
    """Function (what predicts, the checkpoint, flags) -> what the picture says, the table, the settings."""
    monkeypatch.setattr(map_ternary, "STEPS", 20)
    (tmp_path / "model.pt").write_text("a checkpoint")

    def run(predict_alloys, saved, *flags):
        saved = saved | {"path": tmp_path / "model.pt"}
        monkeypatch.setattr(predict, "load_checkpoint", lambda path: (predict_alloys, saved))
        monkeypatch.setattr(sys, "argv", ["map_ternary.py", "--results-dir", str(tmp_path / "out"), *flags])
        before = {*tmp_path.glob("out/*")}
        map_ternary.main()
        (folder,) = {*tmp_path.glob("out/*")} - before
        used = json.loads((folder / "settings.json").read_text())["settings"]
        return pictures[f"{folder.name}/map.png"], pd.read_csv(folder / "map.csv"), used

    return run


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
    columns |= {"bcc - fcc": fractions[:, 1] - 0.5, "half_width_90 bcc - fcc": np.full(len(fractions), 0.6)}
    return np.zeros((1, len(fractions))), columns


def test_a_process_answers_for_the_phase_asked_for(draw):
    """Not for the lattice in the name; an hcp that it knows is drawn, too; no hull of a magnetisation."""
    saved = SAVED | {"method": "phase_gp", "phases": PHASES, "target": "Ms"}
    said, table, _ = draw(process, saved, "--corners", *ELEMENTS)
    for i, phase in enumerate(PHASES):
        np.testing.assert_allclose(table[phase], table.Ni + i)
    np.testing.assert_allclose(table.difference, table.Fe - 0.5)
    np.testing.assert_allclose(table.half_width, 0.6)  # more than any difference
    assert "phase of the cell" in said and "\nhcp\n" in said and "hull" not in said
    assert "the interval of the difference holds zero" in said and "magnetisation (μB/atom)" in said


def test_networks_differ_by_their_spread(draw):
    """One network has none; with a rest, or with corners of several elements, there is no hull."""
    said, table, _ = draw(networks(2), SAVED, "--corners", *ELEMENTS)
    np.testing.assert_allclose(table.difference, 0.105 - table.Ni, atol=1e-12)
    np.testing.assert_allclose(table.half_width, 0.01, atol=1e-12)
    assert (table.outside == ((table.Ni > 0) & (table.Cr > 0))).all()
    for expected in ("lattice in the name", "outside of what was trained on", "distance to the convex hull",
                     "the interval of the difference holds zero", "no difference"):  # fmt: skip
        assert expected in said
    found = SAVED | {"unseen": [], "phase_input": "found"}
    flags = "--rest", "Fe", "--share", "0.2"
    said, table, used = draw(networks(1), found, "--corners", "FeNi", "Ni", "Cr", *flags)
    assert table.half_width.isna().all() and used["SHARE"] == 0.2 and "with 20% Fe" in said
    assert not any(word in said for word in ("interval", "outside", "hull")) and "phase of the cell" in said
    np.testing.assert_allclose(table.fcc, -0.1 * (0.2 + 0.4 * table.FeNi))


def test_distance_to_the_convex_hull(monkeypatch):
    """By hand: one alloy at -0.1 eV/atom, half Fe, half Ni; for pure elements no prediction counts."""
    monkeypatch.setattr(map_ternary, "STEPS", 20)
    shares, fractions = map_ternary.section(["Fe", "Ni", "Cr"], None, 0, ELEMENTS)
    energies = np.where(shares.max(1) == 1, -5, 0.0)
    energies[(shares == [0.5, 0.5, 0]).all(1)] = -0.1
    found = map_ternary.above_hull(["Fe", "Ni", "Cr"], fractions, energies, ELEMENTS)
    expected = 0.2 * np.minimum(shares[:, 0], shares[:, 1]) + energies
    expected[shares.max(1) == 1] = 0
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_what_cannot_be_mapped(draw):
    for bad in ("Fe Ni", "Fe Ni Ni", "Fe Ni X1"):
        with pytest.raises(ValueError, match="three formulas"):
            map_ternary.three_formulas(bad)
    with pytest.raises(ValueError, match="a formula"):
        map_ternary.one_formula("Fex")
    with pytest.raises(InputError, match="Pd"):
        map_ternary.section(["Fe", "Ni", "Cr"], "Pd", 0.1, ELEMENTS)
    with pytest.raises(InputError, match="seen bcc alone"):
        draw(networks(1), SAVED | {"phases": ["bcc"]})
