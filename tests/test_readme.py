"""The README's commands, in its order and with tiny settings, where a user would type them."""

import re
import shlex
import shutil

from conftest import ROOT, TINY, run

MORE = {  # said last, it counts
    "main.py": TINY,
    "main_transfer.py": [*TINY, "--source-epochs", "1"],
    "beyond/suggest.py": ["--number", "2"],
    "studies/compare_methods.py": [
        "--splits",
        "0",
        "--methods",
        "ce",
        "--percents",
        "100",
        "--targets",
        "Ef",
    ],
}
ELSEWHERE = {"studies/replay.py"}  # which needs data that a clone has not


def commands():
    """[[script, flag, ...], ...] of all that starts with python, in blocks of code and in the text."""
    text = (ROOT / "README.md").read_text("utf-8").replace("\\\n", " ")
    found = re.findall(r"^python (.*)|`python ([^`]*)`", text, re.MULTILINE)
    return [shlex.split(line or inline) for line, inline in found]


def test_commands(small_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("HEA_data", "MINE", "DATA"):
        shutil.copytree(small_data, tmp_path / folder)
    found = commands()
    assert len(found) > 12
    for script, *flags in found:
        if script not in ELSEWHERE:
            run(script, *flags, *MORE.get(script, []))
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"predicted_phase_gp_Ef_4+5_100_all", "suggested_Ms_high", "scratch_Ef_4+5_100_reference"} <= names


def test_every_script_and_constant_has_its_line():
    text = (ROOT / "README.md").read_text("utf-8") + (ROOT / "beyond/README.md").read_text("utf-8")
    for script in [*ROOT.glob("*.py"), *ROOT.glob("beyond/*.py")]:
        assert script.name in text, script
    of_studies = (ROOT / "studies/README.md").read_text("utf-8")
    assert all(script.name in of_studies for script in ROOT.glob("studies/*.py"))
