"""Predictions for new alloys from a checkpoint."""

import pickle
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, files, run

import common
import report
import settings

RUN = "scratch_Ef_4+5_100_reference"


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory):
    """RESULTS_DIR of a short run of two seeds that predicts, too."""
    folder = tmp_path_factory.mktemp("results")
    flags = ["--data-dir", small_data, "--results-dir", folder, "--seeds", "0-1", *TINY]
    run("main.py", *flags, "--predict", "FeNiCoCr")
    return folder


def predict(trained, tmp_path, *alloys, status=0):
    """What a run prints that predicts from the checkpoint alone; the data is not there."""
    flags = [
        "--checkpoint",
        trained / f"{RUN}.pt",
        "--results-dir",
        tmp_path,
        "--data-dir",
        tmp_path / "none",
    ]
    return run("main.py", *flags, "--predict", *alloys, status=status)


def read(folder, n=""):
    return pd.read_csv(folder / f"{RUN}_predicted{n}.csv", keep_default_na=False)


def test_alloys_of_the_database_get_what_the_run_wrote(trained, tmp_path):
    written = pd.read_csv(trained / f"{RUN}_predictions.csv")
    written[["structure"]].to_csv(tmp_path / "alloys.csv", index=False, lineterminator="\r\n")
    predict(trained, tmp_path, tmp_path / "alloys.csv")
    np.testing.assert_allclose(read(tmp_path)[["mean", "std"]], written[["mean", "std"]], atol=1e-9)


def test_names(trained, tmp_path):
    """Other predictions are beside those of before, and the same replace them."""
    for alloys in ("FeNiCoCr", "FeNi", "FeNiCoCr"):
        predict(trained, tmp_path, alloys)
    assert len(list(tmp_path.iterdir())) == 2 and set(read(tmp_path, "_2").formula) == {"FeNi"}
    pd.testing.assert_frame_equal(read(tmp_path), read(trained))


def test_formulas_stand_for_both_phases_and_strange_ones_are_marked(trained, tmp_path):
    predict(trained, tmp_path, "FeNiCoCr", "Fe2Ni2Co2Cr2,FeNiAl", "Fe")
    found = read(tmp_path)
    assert found.phase.tolist() == ["fcc", "bcc"] * 4 and set(found.unit) == {"eV/atom"}
    assert found["mean"][0] == found["mean"][2] and found["outside"][0] == ""  # multiples are the same alloy
    assert "Al" in found["outside"][4] and found["mean"][4] == ""
    assert "alloys of 1" in found["outside"][6] and "c(Fe)" in found["outside"][6]


def test_pairs_that_no_training_alloy_holds_are_marked(trained, tmp_path):
    """Of checkpoints of before, which do not say them, the excluded ones."""
    saved = torch.load(trained / f"{RUN}.pt", weights_only=True)
    assert saved["unseen"] == []  # all pairs of the five elements are in the small data
    for name, pairs in (("unseen", {"unseen": [["Ni", "Fe"]]}), ("excluded", {"excluded": [["Fe", "Ni"]]})):
        changed = {key: value for key, value in saved.items() if key != "unseen"} | pairs
        torch.save(changed, tmp_path / f"{RUN}.pt")
        predict(tmp_path, tmp_path / name, "FeNiCoCr", "FeCo")
        found = read(tmp_path / name)
        assert all(re.search("(Fe with Ni|Ni with Fe) not seen", text) for text in found["outside"][:2])
        assert not any("with" in text for text in found["outside"][2:]) and (found["mean"] != "").all()


def test_the_pairs_of_the_training_alloys(small_data, tmp_path):
    data = common.load_data(small_data, small_data, "Ef")
    together = data.table.formula.str.contains("Co") & data.table.formula.str.contains("Mn")
    split = SimpleNamespace(train=np.flatnonzero(~together))
    chosen, outcome = SimpleNamespace(TARGET="Ef", METHOD="tl"), SimpleNamespace(state={}, module="common")
    report.save_checkpoint(chosen, data, [split], outcome, tmp_path / "saved.pt")
    assert torch.load(tmp_path / "saved.pt", weights_only=True)["unseen"] == [["Co", "Mn"]]


SAID = {
    "method": "../escaped", "target": "E", "elements": ["Fe", "Ni", "Co", "Cr", "Xx"], "excluded": [["Fe"]],
    "unseen": [["Fe", "Al"]], "least": "low", "greatest": torch.zeros(11), "n_components": 5, "state": {},
    "properties": [[1.8, 1.3, 8]] * 5, "module": "os",
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_a_checkpoint_says_is_checked(trained, tmp_path, name):
    """Nothing is written, and no traceback."""
    saved = torch.load(trained / f"{RUN}.pt", weights_only=True)
    torch.save(saved | {name: SAID[name]}, tmp_path / "changed.pt")
    for script in ("main.py", "studies/map_ternary.py"):
        flags = ["--checkpoint", tmp_path / "changed.pt", "--results-dir", tmp_path / "in" / "out"]
        error = run(script, *flags, *(["--predict", "FeNi"] if script == "main.py" else []), status=2).err
        assert len(error.splitlines()) == 1 and "changed.pt: expected a checkpoint" in error
    assert [path.name for path in files(tmp_path)] == ["changed.pt"]


def test_a_checkpoint_of_one_phase_is_no_map(small_data, tmp_path):
    data = shutil.copytree(small_data, tmp_path / "data")
    frame = pd.read_csv(data / "Database.csv", index_col=0)
    frame[frame.phase == "bcc"].to_csv(data / "Database.csv")
    flags = ["--data-dir", data, "--results-dir", tmp_path / "out"]
    run("main_committee.py", *flags, "--networks", "2", "--source-epochs", "1", "--predict", "FeNi")
    name = "committee_Ef_4+5_100_fixed"
    checkpoint = ["--checkpoint", tmp_path / "out" / f"{name}.pt", "--results-dir", tmp_path / "map"]
    error = run("studies/map_ternary.py", *checkpoint, status=2).err
    assert len(error.splitlines()) == 1 and "seen bcc alone" in error and not (tmp_path / "map").exists()


def test_many_alloys(trained, tmp_path, monkeypatch):
    """All are in the file, at most forty are printed, and the file is written before that can fail."""
    printed = predict(trained, tmp_path, *(f"Fe{n}Ni" for n in range(1, 61))).out
    assert printed.count("Ni") == 60 + 40 and "and 80 more" in printed  # the settings name all
    assert len(read(tmp_path)) == 120
    monkeypatch.delattr(pd.DataFrame, "to_string")
    with pytest.raises(AttributeError):
        predict(trained, tmp_path, "FeNi")
    assert len(read(tmp_path, "_2")) == 2


TABLES = [
    ("name\nFeNi\n", "'structure' or"), ("formula,phase\nFeNi,hcp\n", "fcc or bcc"), ("formula\n", "none"),
    ("structure\nFeNi\n", "fcc or bcc"), ('formula\n""\n', "nan"), ("formula\n-\n", "got -"),
]  # fmt: skip
WORDS = [("Xy2", "Xy2"), ("no.csv", "no.csv"), (",", "none"), ("Fe0", "Fe0"), ("FeNi)", "FeNi)")]


@pytest.mark.parametrize(("alloys", "expected"), TABLES + WORDS)
def test_bad_alloys(trained, tmp_path, alloys, expected):
    (tmp_path / "alloys.csv").write_text(alloys)
    error = predict(trained, tmp_path, tmp_path / "alloys.csv" if "\n" in alloys else alloys, status=2).err
    assert len(error.splitlines()) == 1 and expected in error


class Malicious:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps(Malicious()), pickle.dumps({})])
def test_what_is_no_checkpoint_is_refused_and_not_run(tmp_path, content):
    (tmp_path / f"{RUN}.pt").write_bytes(content)
    result = predict(tmp_path, tmp_path, "FeNi", status=2)
    assert "code from" not in result.out and len(result.err.splitlines()) == 1 and f"{RUN}.pt" in result.err


@pytest.mark.parametrize("seed", range(120))
def test_damaged_checkpoints(trained, tmp_path, seed):
    """A cut one is refused, and one changed in two bytes too, or it still predicts."""
    generator, content = np.random.default_rng(seed), bytearray((trained / f"{RUN}.pt").read_bytes())
    place = int(generator.integers(len(content) if seed % 2 else 3000))  # 3000: what describes the tensors
    content[place : place + 2 if seed % 4 else None] = generator.bytes(2) if seed % 4 else b""
    (tmp_path / "damaged.pt").write_bytes(content)
    try:
        report.load_checkpoint(tmp_path / "damaged.pt")
        assert seed % 4
    except settings.InputError as error:
        assert "damaged.pt" in str(error)
