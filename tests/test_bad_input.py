"""Whatever the input holds, and wherever a run ends: results, or one line and status 2, and no file lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY, edited, files, random_alloy, run
from pymatgen.io.vasp.inputs import Poscar

import common
import report
import settings
import structure_stat

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="a process's children are found by /proc"
)
SCRIPTS = ["structure_stat.py", "generate.py", "main.py", "main_transfer.py"]
SYSTEM = common.System(("Fe", "Ni", "Co", "Cr", "Mn"), ())
ENERGY, MOMENT = "Eform (eV/atom)", "Ms (mub/atom)"


@pytest.fixture
def data(small_data, tmp_path):
    """A copy of the small data, to break."""
    return shutil.copytree(small_data, tmp_path / "data")


def flags_of(script, data):
    """Flags with which a script reads data and writes beside it, quickly."""
    out = ["--table-dir", data] if script == SCRIPTS[0] else ["--results-dir", data.parent / "out"]
    return ["--data-dir", data, *out, *(TINY if script in SCRIPTS[2:] else [])]


def refused(script, data, *flags, status=2):
    """The one line that a script ends with, but for progress bars; all files stay as they are."""
    before = files(data.parent)
    printed = run(script, *flags_of(script, data), *flags, status=status).err
    lines = [line for line in re.split(r"[\r\n]+", printed) if line.strip()]
    lines = [line for line in lines if not re.match("structures:|training:", line)]
    assert len(lines) == 1, printed
    assert files(data.parent) == before
    return lines[0]


VALUES = """
--target E: Ef, Ms; --method tl: scratch, scratch_prime; --alloys 4: 4+5, Total; --select-by test: validation
--percent 101: 0 to 100; --percent many: 0 to 100; --hold-out 1: 0.01 to 0.9; --refit no: True, False
--seeds 3-1: 0-7; --seeds -1: 0-7; --seeds 0-1-2: 0-7; --splits 0-999999999: 0-7; --patience 0: 1 or more
--batch-size 0: 1 or more
--epochs 1: 2 or more; --epochs 2.5: whole number; --epochs 100000000000000000000: whole number
--batch-size 100000000000000000000: whole number; --learning-rate nan: None or a number
--learning-rate 1e300: number; --device gpu: auto, cpu, cuda, mps; --elements Fe Xx: each once
--elements Fe Fe: each once; --excluded-pairs Mn: Mn-Pd; --excluded-pairs Fe-Ni: no Fe with Ni
--data-dir ~no-such-user/data: ~no-such-user; --predict no.csv: no.csv; --checkpoint no.pt: with PREDICT
--method scratch_prime --percent 0: PERCENT 0; main_transfer.py --method da --augment 5000: AUGMENT 5000
main_transfer.py --augment 0: 1 or more
main_transfer.py --source-learning-rate 1e30: number; main_transfer.py --learning-rate 1e3: LEARNING_RATE
main.py --results-dir FILE: Database.csv: ; generate.py --results-dir FILE: Database.csv:
structure_stat.py --table-dir FILE: Database.csv: ; structure_stat.py --data-dir nowhere: nowhere: expected
generate.py --data-dir nowhere: nowhere: expected; main_transfer.py --data-dir nowhere: nowhere: expected
"""


@pytest.mark.parametrize("case", re.split(r"; |\n", VALUES.strip()))
def test_values(data, case):
    given, expected = case.split(": ", 1)
    words = given.replace("FILE", str(data / "Database.csv")).split()
    script = words.pop(0) if words[0].endswith(".py") else "main.py"
    assert expected in refused(script, data, *words)


def test_faults_are_listed_to_the_eighth():
    assert settings.listed([*range(8)]) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert settings.listed([*range(20)]) == "0, 1, 2, 3, 4, 5, 6, 7, and 12 more"


def test_lists_of_numbers():
    assert settings.numbers("0,3,5-7 6") == [0, 3, 5, 6, 7]
    assert settings.numbers("200000-200001") == [200000, 200001]  # what is limited is how many


@pytest.mark.parametrize("script", ["main.py", "main_transfer.py", "main_committee.py"])
def test_nothing_to_learn_from(data, script):
    """A constant target; a phase whose alloys are all of many elements, of which none are kept."""
    out = ["--data-dir", data, "--results-dir", data.parent / "out"]
    frame = pd.read_csv(data / "Database.csv", index_col=0)
    n_elements = frame.structures.str.split("_").str[0].str.count("[A-Z]")
    many = frame[(frame.phase == "bcc") & (n_elements >= 4) | (frame.phase == "fcc")]
    for changed, flags, expected in (
        (frame.assign(**{MOMENT: 0.0}), ["--target", "Ms"], "Ms is 0 in all "),
        (many, ["--percent", "0"], "PERCENT 0 leaves no bcc training alloys"),
    ):
        changed.to_csv(data / "Database.csv")
        run("structure_stat.py", "--data-dir", data, "--cells", "given", "lattice")
        error = run(script, *out, *flags, status=2).err.replace("\r", "\n")
        assert expected in error and "training:" not in error and len(error.splitlines()) == 1
        assert not files(data.parent / "out")


@pytest.mark.parametrize("line", ['TARGET = "E"', "SEEDS = []", "SEEDS = 0.5", "REFIT = 1", "EPOCHS = None"])
def test_constants_are_checked_as_flags_are(data, tmp_path, line):
    assert f"constant {line.split()[0]}: expected " in refused(edited(tmp_path, line), data)


NAME, FORMULA, PLAIN = "structures", "begins with a formula", "the plain name of a file"
CELLS = [
    (ENERGY, 3, "", "line 5"), (ENERGY, 3, "?", "line 5"), (ENERGY, 3, "inf", "line 5"),
    (ENERGY, 3, "1e7", "line 5"), ("phase", 4, "", "line 6"), ("phase", 4, "bcc", "ends with"),
    ("phase", slice(None), "hcp", "44 of phase"), (NAME, [3, 7], "FeNi_fcc", "line 5), FeNi_fcc (line 9"),
    (NAME, 0, "Mn3Pd_fcc", "no Mn with Pd"), (NAME, 0, "../POSCARS/FeNi_fcc", PLAIN),
    (NAME, 0, 300 * "e" + "_fcc", PLAIN), (NAME, 0, "Fe0Ni0_fcc", FORMULA), (NAME, 0, "XxFe_fcc", FORMULA),
    (NAME, 0, 150 * "(" + "_fcc", FORMULA),
]  # fmt: skip


@pytest.mark.parametrize(("column", "row", "value", "expected"), CELLS)
def test_cells_of_the_database(data, column, row, value, expected):
    frame = pd.read_csv(data / "Database.csv", index_col=0).astype(object)
    frame.loc[row, column] = value
    frame.to_csv(data / "Database.csv")
    for script in SCRIPTS:
        line = refused(script, data)
        assert "Database.csv" in line and expected in line


def test_lines_and_separators(data):
    """An empty line counts in messages and is no row; semicolons are named; a phase in a name in capitals."""
    path, plain = data / "Database.csv", (data / "Database.csv").read_text()
    path.write_text(plain.replace("\n", "\n\n", 3))
    assert "Train" in run("main.py", *flags_of("main.py", data)).out
    shutil.rmtree(data.parent / "out")
    rows = plain.split("\n")
    path.write_text("\n".join([*rows[:2], "", rows[2].replace("fcc", "FCC", 1).replace("fcc", "bcc")]))
    assert "(line 4)" in refused("main.py", data)
    path.write_text(plain.replace(".", "%").replace(",", ";").replace("%", ","))
    assert "found semicolons" in refused("main.py", data)


CONTENTS = [b"", b"structures,phase\n", b"\xff\xfe\x00", b"a,b\n1,2,3\n", b'a,"b\n1', b"a,b\n1,2\n"]
CONTENTS += [f"structures,phase,{ENERGY}\n".encode(), f"phase,{ENERGY},{MOMENT}\nfcc,1,1\n".encode()]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["Database.csv", "bcc_train.csv"])
def test_what_is_no_table(data, name, content):
    (data / name).write_bytes(content)
    for script in SCRIPTS[name != "Database.csv" :]:
        assert name in refused(script, data)


@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_tables_of_other_data(script, data):
    path, pair = data / "fcc_train.csv", "pair Fe-Ni"
    table = pd.read_csv(path)
    values = [{pair: "many"}, {pair: np.inf}, {ENERGY: table[ENERGY] + 0.001}]
    changes = [table.assign(**value) for value in values] + [table.replace(table.structure[3], "Fe_sqsfcc")]
    for changed in [*changes, table.drop(columns=pair), table[1:], table[::-1]]:
        changed.to_csv(path, index=False)
        line = refused(script, data)
        assert "fcc_train.csv" in line and "structure_stat.py first" in line
    path.unlink()
    assert "structure_stat.py first" in refused(script, data)


FAULTS = [
    (9, lambda lines: "0.1 abc 0.2", "no whole POSCAR"), (9, lambda lines: "0.1 nan 0.2", "no number"),
    (9, lambda lines: lines[8], "one site"), (9, lambda lines: "1" + lines[8].strip()[1:], "one site"),
    (slice(-3, None), lambda lines: [], "no whole POSCAR"), (slice(None), lambda lines: [], "no whole"),
    (5, lambda lines: "Al" + lines[5].lstrip()[2:], "holds Al"), (None, None, "none for"),
    (6, lambda lines: "8 8 1999999999", "fewer lines than atoms"),
    (6, lambda lines: " ".join(lines[6].split()[::-1]), "holds "),
]  # fmt: skip


@pytest.mark.parametrize(("where", "change", "expected"), FAULTS)
def test_poscars(data, where, change, expected, little_memory):
    """All that have the fault are named, and the tables stay as they were."""
    paths = [data / "POSCARS" / name for name in pd.read_csv(data / "Database.csv").structures[:2]]
    for path in paths:
        lines = path.read_text().splitlines()
        path.unlink()
        if change:
            lines[where] = change(lines)
            path.write_text("\n".join(lines) + "\n")
    found = refused("structure_stat.py", data)
    assert all(path.name in found for path in paths) and expected in found


@pytest.fixture
def structure():
    return random_alloy("fcc", {"Fe": 8, "Ni": 8, "Co": 10, "Cr": 6}, seed=1).get_sorted_structure()


def as_text(structure, direct=True, **more):
    return Poscar(structure, **more).get_str(direct=direct, significant_figures=14)


def counted(path):
    """count_structures on one file: its row, or None with one fault; a warning is an error."""
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, faults = structure_stat.count_structures([path], ["Fe8Ni8Co10Cr6"], "fcc", SYSTEM)
    assert time.monotonic() - start < 10
    if values is None:
        assert len(faults) == 1 and path.name in faults[0]
        return None
    blocks = [len(common.cluster_columns(SYSTEM, block)) for block in common.BLOCKS]
    np.testing.assert_allclose([part.sum() for part in np.split(values[0], np.cumsum(blocks))], 1)
    return values[0]


def negative_scale(structure):
    """The scale is the volume; lattice and Cartesian coordinates are in other units than angstrom."""
    scaled = structure.copy()
    scaled.scale_lattice(8 * structure.volume)
    return with_line(as_text(scaled, direct=False), 1, f"-{structure.volume:.10f}\n")


def with_line(text, number, line):
    return "".join(line if i == number else one for i, one in enumerate(text.splitlines(keepends=True)))


DIALECTS = {
    "Cartesian": lambda one: as_text(one, direct=False),
    "volume, Cartesian": negative_scale,
    "selective dynamics": lambda one: as_text(one, selective_dynamics=[[True, False, True]] * len(one)),
    "what follows": lambda one: as_text(one) + "\n" + "0.0 0.0 garbage\n" * 5,
    "Windows": lambda one: with_line(as_text(one), 0, "Gitter in Å\n").replace("\n", "\r\n"),
    "VASP 4": lambda one: with_line(as_text(one), 5, ""),  # names stand at the ends of lines
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(structure, tmp_path, dialect, little_memory):
    """The same structure, written otherwise, has the same clusters."""
    (tmp_path / "plain").write_text(as_text(structure))
    (tmp_path / "other").write_text(DIALECTS[dialect](structure), "latin-1", newline="")
    np.testing.assert_allclose(counted(tmp_path / "other"), counted(tmp_path / "plain"), atol=1e-12)


EDGES = [[1e-6, 3e4, 3e4], [1e-5, 1e3, 1e3], [0.3, 100, 100], *([a] * 3 for a in (1e-3, 0, 1e4, 1e200, 30.0))]
SHEARED = [[[5, 0, 0], [5, 1e-9, 0], [0, 0, 5]], [[7.2, 0, 0], [7.2e5, 7.2, 0], [0, 0, 7.2]]]


@pytest.mark.parametrize("matrix", [*map(np.diag, EDGES), *SHEARED])
def test_absurd_lattices(structure, tmp_path, matrix, little_memory):
    """Refused within seconds, and no endless search for neighbours."""
    lines = as_text(structure).splitlines()
    lines[2:5] = [" ".join(map(repr, map(float, row))) for row in np.asarray(matrix)]
    (tmp_path / "POSCAR").write_text("\n".join(lines))
    assert counted(tmp_path / "POSCAR") is None


WORDS = "0 -1 1e308 -1e308 1e-308 nan inf 1e6 99999999999 1_0 abc 0x10 1,5 ½ 1e400 --1 1D0 Fe \x00 é"
LINES = ["", "Direct", "Selective dynamics", "Cartesian", "Xx Yy", "Fe", "\ufeff", "16 16", "(" * 5000]


def edited_at_random(text, generator):
    """The text after one to three random edits of lines, words or characters, in some encoding."""
    for _ in range(generator.integers(1, 4)):
        lines = text.split("\n")
        i = generator.integers(min(len(lines), 12) if generator.random() < 0.7 else len(lines))
        words, kind = lines[i].split(" "), generator.integers(6)
        words[generator.integers(len(words))] = generator.choice(WORDS.split(" "))
        p = generator.integers(len(lines[i]) + 1)
        new = generator.choice([*"0123456789.-e", chr(generator.integers(1, 0x300))])
        character = lines[i][:p] + new + lines[i][p + 1 :]
        edits = [[], [lines[i]] * 2, [generator.choice(LINES)], [" ".join(words)], [character], [lines[i]]]
        text = "\n".join(lines[:i] + edits[kind] + (lines[i + 1 :] if kind < 5 else []))
    content = text.encode(["utf-8", "utf-8", "latin-1", "utf-16"][generator.integers(4)], errors="replace")
    p = generator.integers(5 * len(content) + 1)
    return content[:p] + generator.bytes(3) + content[p + 1 :] if p < len(content) else content


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["POSCAR", "Database.csv", "fcc_train.csv"])
def test_random_edits(structure, data, name, seed, little_memory):
    generator, path, good = np.random.default_rng(seed), data / name, 0
    text = as_text(structure) if name == "POSCAR" else path.read_text().replace(",", " , ")  # words to edit
    for _ in range(30):
        content = edited_at_random(text, generator).replace(b" , ", b",")
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                if name == "POSCAR":
                    good += counted(path) is not None
                else:
                    common.read_database(data, ["Ef", "Ms"])
                    found = common.load_data(data, data, "Ef")
                    assert np.isfinite(found.targets).all() and np.isfinite(found.inputs).all()
                    good += 1
        except settings.InputError:
            pass
        except Exception as error:
            raise AssertionError(f"{error!r} from {content[:600]!r}") from error
    assert good < 30


@pytest.fixture(params=SCRIPTS[:3])
def earlier(request, data):
    """A script and a folder, beside which lie results of the same run that someone has changed."""
    run(request.param, *flags_of(request.param, data))
    for path in data.glob("*_train.csv") if request.param == SCRIPTS[0] else (data.parent / "out").iterdir():
        if path.suffix != ".json":
            path.write_bytes(b"earlier")
    return request.param, data


@pytest.mark.parametrize(("how", "status"), [("disk full", 2), ("interrupted", 130)])
def test_a_write_that_fails(earlier, monkeypatch, how, status):
    """No part of a file is left. Of main.py, it is the checkpoint that the disk has no space for."""
    resource, write = pytest.importorskip("resource"), settings.write_csv
    before, written = resource.getrlimit(resource.RLIMIT_FSIZE), []
    limit = (30_000 if earlier[0] == "main.py" else 9_000, before[1]) if how == "disk full" else before

    def write_csv(frame, path):
        written.append(write(frame, path))
        if how == "interrupted" and len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(settings, "write_csv", write_csv)
    monkeypatch.setattr(report, "plot_parity", lambda *rest: rest[-1].write_bytes(b""))
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    try:
        refused(*earlier, status=status)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_interrupted_while_files_get_their_names(earlier, monkeypatch):
    """Ctrl-C and SIGTERM wait until all have theirs, of a new run too, and work again afterwards."""
    (script, data), before, replace = earlier, signal.getsignal(signal.SIGINT), os.replace
    names, more = files(data.parent).keys(), ["--excluded-pairs", "Fe-Pd"] if script != SCRIPTS[0] else []
    for number, status, flags in ((signal.SIGINT, 130, []), (signal.SIGTERM, 143, more)):
        monkeypatch.setattr(
            os, "replace", lambda *paths, number=number: [signal.raise_signal(number), replace(*paths)]
        )
        run(script, *flags_of(script, data), *flags, status=status)
        assert b"earlier" not in files(data.parent).values() and not list(data.parent.rglob(".*"))
    of_run = [path for path in names if path.parts[0] == "out"]
    assert len(files(data.parent)) == len(names) + len(of_run)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_cannot_get_its_name(earlier, monkeypatch, times):
    """Those that have theirs give them back; what cannot be put back is named, and where it lies."""
    (script, data), replace, failed = earlier, os.replace, []
    before = files(data.parent)

    def fails(one, other):
        if other.name.endswith((".png", "bcc_train.csv")) or failed:
            failed.append(other.name)
            if len(failed) <= times:
                raise PermissionError(13, "locked", str(one), None, str(other))
        replace(one, other)

    monkeypatch.setattr(os, "replace", fails)
    if times == 1:
        line = refused(script, data)
        assert f"{failed[0]}: locked" in line and len(failed) > 1
        return
    error = run(script, *flags_of(script, data), status=2).err
    assert "locked; in " in error and f" {failed[1]} are new already" in error
    (kept,) = (path for path in data.parent.rglob(".*"))
    assert (
        kept.name in error and kept.read_bytes() == before[(kept.parent / failed[1]).relative_to(data.parent)]
    )


def test_a_failed_run_leaves_its_name_free(data, monkeypatch):
    monkeypatch.setattr(report, "plot_parity", lambda *rest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("main.py", *flags_of("main.py", data))
    assert not files(data.parent / "out")


def test_a_name_is_taken_before_the_files_are_there(tmp_path):
    with settings.files_of_run(tmp_path, "run", "{}.json", "one") as (_, first):
        with settings.files_of_run(tmp_path, "run", "{}.json", "other") as (new, second):
            new("run_2.json").write_text("other")
        assert (first, second) == ("run", "run_2") and (tmp_path / "run.json").read_text() == "one"


def test_killed_between_two_names(data):
    """Each table is the earlier or the later one, whole; the same run again puts all right."""
    fcc, bcc = (data / f"{phase}_train.csv" for phase in common.PHASES)
    whole, replace = files(data), os.replace
    fcc.write_text("earlier")
    bcc.write_text("earlier")
    if not (child := os.fork()):
        os.replace = lambda one, other: os.kill(os.getpid(), 9) if other == bcc else replace(one, other)
        with suppress(BaseException):
            run("structure_stat.py", "--data-dir", data)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert (fcc.read_bytes(), bcc.read_text()) == (whole[fcc.relative_to(data)], "earlier")
    run("structure_stat.py", "--data-dir", data)
    assert files(data).items() >= whole.items()


def start(*command, **more):
    command = [sys.executable, *map(str, command)]
    if os.name == "posix":  # tests run in the background ignore Ctrl-C, and what they start would too
        more["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    # `ended` waits for a progress bar, which the caller or another test may have turned off for itself.
    here = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    more.setdefault("env", here)
    return subprocess.Popen(
        command, cwd=ROOT, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | more
    )


TRAIN = ["main.py", "--epochs", "9999999", "--patience", "9999999", "--data-dir", "IT", "--results-dir", "IT"]
COUNT = ["-c", "import structure_stat as s; s.PARALLEL_FROM = 1; s.settings.run(s.main)", "--table-dir", "IT"]


def ended(data, command, how):
    """Status and standard error of a process after how(process), once it is at work; no file is changed.

    Workers that did not end with the main process would keep its standard error, and this test, open.
    """
    before = files(data.parent)
    process = start(*(data if word == "IT" else word for word in command), start_new_session=True)
    while not re.search(rb"training: .*\| [1-9]\d*/|[1-9]\d*/438", text := process.stderr.read1()):
        assert text
    how(process)
    error = process.communicate(timeout=60)[1].decode()
    assert files(data.parent) == before
    return process.returncode, error


@pytest.mark.parametrize("command", [TRAIN, COUNT])
def test_interrupted(data, command):
    status, error = ended(data, command, lambda process: os.killpg(process.pid, signal.SIGINT))
    assert status == 130 and "Traceback" not in error


def test_workers_end_with_a_killed_main_process(data):
    assert ended(data, COUNT, lambda process: process.kill())[0] == -signal.SIGKILL


def signal_to_a_worker(process, number):
    """To the last process that a process has started, by /proc; joblib's own come first."""
    children = [
        int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat")
        if path.read_text().rsplit(")", 1)[1].split()[1] == str(process.pid)
    ]  # fmt: skip
    os.kill(max(children), number)


@needs_proc
def test_ctrl_c_is_not_a_workers(data):
    """At any of its work, joblib's own too, it goes on; it ends with the main process, here by SIGTERM."""

    def how(process):
        signal_to_a_worker(process, signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)

    status, error = ended(data, COUNT, how)
    assert status == 143 and "Traceback" not in error and "killed" not in error


@needs_proc
def test_a_killed_worker(data):
    status, error = ended(data, COUNT, lambda process: signal_to_a_worker(process, signal.SIGKILL))
    assert status == 2 and "Traceback" not in error and "a worker process was killed" in error


@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_leaves(data, both):
    """As in `python main.py | head -1`: the results are there, and nobody complains."""
    process = start("main.py", *flags_of("main.py", data), "--predict", "FeNi", stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.readline() if both else process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0 and b"Broken" not in error
    assert len(files(data.parent / "out")) == 7


def test_a_closed_output(data):
    """As in `python main.py >&-`."""
    words = [sys.executable, ROOT / "main.py", *flags_of("main.py", data)]
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *map(str, words)], stderr=subprocess.PIPE)
    assert closed.returncode == 0 and b"Traceback" not in closed.stderr
    assert len(files(data.parent / "out")) == 6


def test_two_runs_at_once(data):
    """Both succeed, and each file is whole; output goes to a file in cp1252, as on Windows."""
    flags = [*flags_of("main.py", data), "--target", "Ms", "--method", "scratch_prime"]
    variables = os.environ | {"PYTHONIOENCODING": "cp1252"}
    runs = [start("main.py", *flags, env=variables) for _ in range(2)]
    errors = [one.communicate()[1] for one in runs]
    assert [one.returncode for one in runs] == [0, 0], errors
    both = files(data.parent)
    run("main.py", *flags)
    assert files(data.parent).keys() == both.keys()
    assert all(both[path] == content for path, content in files(data.parent).items() if path.suffix == ".csv")


@pytest.mark.parametrize(
    "script", ["main.py", "main_transfer.py", "structure_stat.py", "check.py", "studies/map_ternary.py",
               "studies/compare_methods.py", "generate.py", "main_committee.py", "suggest.py"],
)  # fmt: skip
def test_ctrl_c_during_imports(tmp_path, script):
    for package in ("numpy", "joblib"):
        (tmp_path / f"{package}.py").write_text("raise KeyboardInterrupt")
    command = [sys.executable, ROOT / script]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True)
    assert (result.returncode, result.stderr) == (130, b"")


def test_other_errors_during_imports_are_shown(tmp_path):
    (tmp_path / "numpy.py").write_text("raise ImportError")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, ROOT / "main.py"], env=env, capture_output=True)
    assert result.returncode == 1 and b"Traceback" in result.stderr
