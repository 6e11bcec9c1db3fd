"""Predictions for new alloys from a checkpoint."""

import pickle

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, run


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory):
    """RESULTS_DIR of a short run of two seeds."""
    folder = tmp_path_factory.mktemp("results")
    run("main.py", "--data-dir", small_data, "--results-dir", folder, "--seeds", "0-1", *TINY)
    return folder


def predict(trained, tmp_path, *alloys, status=0):
    flags = [
        "--checkpoint",
        trained / "scratch_Ef.pt",
        "--results-dir",
        tmp_path,
        "--data-dir",
        tmp_path / "none",
    ]
    return run("main.py", *flags, "--predict", *alloys, status=status)


def test_alloys_of_the_database_get_what_the_run_wrote(trained, tmp_path):
    written = pd.read_csv(trained / "scratch_Ef_predictions.csv").drop_duplicates("structure")
    written[["structure"]].to_csv(tmp_path / "alloys.csv", index=False)
    predict(trained, tmp_path, tmp_path / "alloys.csv")
    found = pd.read_csv(tmp_path / "scratch_Ef_predicted.csv")
    np.testing.assert_allclose(found["mean"], written["mean"], atol=1e-9)
    np.testing.assert_allclose(found["std"], written["std"], atol=1e-9)
    assert (found.unit == "eV/atom").all()


def test_formulas_stand_for_both_phases_and_strange_ones_are_marked(trained, tmp_path):
    predict(trained, tmp_path, "FeNiCoCr", "Fe2Ni2Co2Cr2", "FeNiAl", "Fe")
    found = pd.read_csv(tmp_path / "scratch_Ef_predicted.csv", keep_default_na=False)
    assert found.phase.tolist() == ["fcc", "bcc"] * 4
    assert found["mean"][0] == found["mean"][2]  # a formula's multiple is the same alloy
    assert found["outside"][0] == ""
    assert "Al" in found["outside"][4] and found["mean"][4] == ""
    assert "alloys of 1" in found["outside"][6] and "c(Fe)" in found["outside"][6]


@pytest.mark.parametrize("alloys", ["Xy2", "no.csv", ""])
def test_bad_alloys(trained, tmp_path, alloys):
    assert len(predict(trained, tmp_path, alloys, status=2).err.splitlines()) == 1


def test_csv_without_the_columns(trained, tmp_path):
    (tmp_path / "alloys.csv").write_text("name\nFeNi\n")
    assert "'structure' or 'formula'" in predict(trained, tmp_path, tmp_path / "alloys.csv", status=2).err
    (tmp_path / "alloys.csv").write_text("formula,phase\nFeNi,hcp\n")
    assert "fcc or bcc" in predict(trained, tmp_path, tmp_path / "alloys.csv", status=2).err


class Malicious:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps(Malicious()), pickle.dumps({})])
def test_what_is_no_checkpoint_is_refused_and_not_run(tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    result = run(
        "main.py",
        "--checkpoint",
        tmp_path / "bad.pt",
        "--predict",
        "FeNi",
        "--results-dir",
        tmp_path,
        status=2,
    )
    assert "code from" not in result.out and len(result.err.splitlines()) == 1 and "bad.pt" in result.err


def test_cut_checkpoint(trained, tmp_path):
    whole = (trained / "scratch_Ef.pt").read_bytes()
    (tmp_path / "scratch_Ef.pt").write_bytes(whole[: len(whole) // 2])
    assert "scratch_Ef.pt" in predict(tmp_path, tmp_path, "FeNi", status=2).err
