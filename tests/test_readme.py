"""The README's commands, in its order and with tiny settings, where a user would type them."""

import re
import shutil

import pandas as pd
from conftest import ROOT, TINY, run

MORE = {  # said last, it counts
    "main.py": TINY,
    "main_transfer.py": [*TINY, "--source-epochs", "1"],
    "main_committee.py": ["--epochs", "2", "--source-epochs", "1", "--networks", "2"],
    "studies/compare_methods.py": ["--splits", "0", "--seeds", "0", "--methods", "svr", "ce"],
}


def commands():
    """[[script, flag, ...], ...] of all lines in the README's blocks of code that start with python."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].split()[1:] for line in lines if line.startswith("python ")]


def test_commands(small_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("HEA_data", "CE-transfer-learning/HEA_data", "DATA"):
        shutil.copytree(small_data, tmp_path / folder)
    pd.DataFrame({"structure": ["FeNi3_sqsfcc", "FeCo_sqsbcc"]}).to_csv("alloys.csv")
    found = commands()
    assert len(found) > 10
    for script, *flags in found:
        run(script, *flags, *MORE.get(script, []))
    assert len(list((tmp_path / "results").glob("*_predicted*.csv"))) == 3
    assert list((tmp_path / "results").glob("map_*.png"))


def test_every_script_and_setting_has_its_line():
    text = (ROOT / "README.md").read_text("utf-8")
    for script in ROOT.glob("*.py"):
        assert script.name in text, script
    for name in re.findall(r"^\| `([A-Z_`, ]+)` \|", text, re.MULTILINE):
        for constant in name.replace("`", "").split(", "):
            assert re.search(rf"^{constant} = ", (ROOT / "main_transfer.py").read_text("utf-8"), re.MULTILINE)
