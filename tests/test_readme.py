"""The README's commands, in its order and with tiny settings, where a user would type them."""

import re
import shlex
import shutil

from conftest import ROOT, TINY, run

MORE = {  # said last, it counts
    "main.py": " ".join(TINY),
    "main_transfer.py": " ".join(TINY) + " --source-epochs 1",
    "beyond/suggest.py": "--number 2",
    "studies/compare_methods.py": "--splits 0 --methods ce --percents 100 --targets Ef --jobs 1",
}
ELSEWHERE = {"studies/replay.py"}  # which needs data that a clone has not


def test_commands(small_data, tmp_path, monkeypatch):
    """All that starts with python, in blocks of code and in the text."""
    monkeypatch.chdir(tmp_path)
    for folder in ("HEA_data", "MINE", "DATA"):
        shutil.copytree(small_data, tmp_path / folder)
    text = (ROOT / "README.md").read_text("utf-8").replace("\\\n", " ")
    found = re.findall(r"^python (.*)|`python ([^`]*)`", text, re.MULTILINE)
    assert len(found) > 12
    for line, inline in found:
        script, *flags = shlex.split(line or inline)
        if script not in ELSEWHERE:
            run(script, *flags, *MORE.get(script, "").split())
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"predicted_phase_gp_Ef_4+5_100_all", "suggested_Ms_high", "scratch_Ef_4+5_100_reference"} <= names


def test_every_script_has_its_line():
    for folder in (ROOT, ROOT / "beyond", ROOT / "studies"):
        text = (folder / "README.md").read_text("utf-8")
        assert all(path.name in text for path in folder.glob("*.py"))
