"""Do the tests notice a change in the code? Mutation testing of the scripts, with cosmic-ray.

Draws SAMPLE places in the scripts where an operator, number, condition, loop, except or decorator stands,
and for each a change that cosmic-ray knows there, but none that does not compile or is one to annotations
or the text of errors. Each goes into a copy of the working tree; it is found if a test fails or time runs
out. Status 1 if fewer than ENOUGH are. An interrupted run goes on from RESULTS, until a file other than
*.md and this one changes. Needs git and a POSIX system.
"""

import ast
import difflib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice, product
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

SAMPLE = 150  # a larger sample begins with the changes of a smaller one
WORKERS = 2  # test runs at a time
TIMEOUT = 2  # times as long as the tests take without a change
ENOUGH = 0.85  # share found
FIRST = {  # tests that find the most in a script; the others follow
    "cells.py": "cells", "check.py": "check", "structure_stat.py": "structure_stat published",
    "main_committee.py": "committee", "processes.py": "committee", "settings.py": "bad_input scripts",
    "report.py": "published predict scripts", "prediction.py": "predict", "suggest.py": "suggest",
}  # fmt: skip
WITHOUT = "build"  # rebuilds data: slow, and not about the scripts
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results/mutants.jsonl"


def copy_tree(folder):
    """The working tree as git sees it -> folder; returns a digest of it without *.md and this file."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    digest = hashlib.sha256(WITHOUT.encode())
    for name in sorted({name for name in names if (ROOT / name).is_file()}):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
        if not name.endswith((".md", "tests/mutants.py")):
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()[:16]


def meaning(code):
    """The syntax tree as text, without annotations and the text of errors; None: does not compile."""
    try:
        compile(code, "script", "exec")
    except SyntaxError:
        return None
    tree = ast.parse(code)
    for node in ast.walk(tree):
        for name in {"annotation", "returns", "exc"} & set(node._fields):  # exc: of a raise
            setattr(node, name, None)
    return ast.dump(tree)


def changes(folder):
    """Script, changed code, title and diff of a change at each place, in random order."""
    codes = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
    classes = [get_operator(name) for name in operator_names()]
    operators, places = [operator() for operator in classes if not operator.arguments()], {}
    trees = {script: [*ast_nodes(get_ast(code))] for script, code in codes.items()}
    for script, (i, operator) in product(trees, enumerate(operators)):
        found = (place for node in trees[script] for place in operator.mutation_positions(node))
        for occurrence, place in enumerate(found):
            places.setdefault((script, *place), []).append((i, occurrence))
    generator = random.Random(0)
    for script, start, end in generator.sample(sorted(places), len(places)):
        old, known = codes[script], places[script, start, end]
        for i, occurrence in generator.sample(known, len(known)):
            try:
                new = mutate_code(old, operators[i], occurrence)
            except AttributeError:  # cosmic-ray's, at `except module.Error`
                continue
            if meaning(new) not in (None, meaning(old)):
                diff = [*difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")][3:]
                yield script, new, f"{script}:{start[0]} {type(operators[i]).__name__}", "\n".join(diff)
                break


def run_tests(clean, limit=None, script=None, code=None, *_):
    """The tests on a copy of clean with script changed -> outcome, seconds, the end of what they print."""
    names = sorted(path.stem.removeprefix("test_") for path in clean.glob("tests/test_*.py"))
    first = FIRST.get(script, "published method").split()
    names = first + [name for name in names if name not in [*first, *WITHOUT.split()]]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    command += [f"tests/test_{name}.py" for name in names]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base, open(f"{base}/log", "w+") as log:
        folder = shutil.copytree(clean, Path(base, "main"))
        Path(base, "shared").symlink_to(ROOT.parent / "shared")  # data that tests look for there
        if script:
            (folder / script).write_text(code, encoding="utf-8")
        variables = os.environ | {"TMPDIR": base, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        settings = {"env": variables, "stdout": log, "stderr": log, "start_new_session": True}
        began, run = time.monotonic(), subprocess.Popen(command, cwd=folder, **settings)
        try:
            outcome = "killed" if run.wait(limit) else "survived"
        except subprocess.TimeoutExpired:
            outcome = "timed out"
        seconds = round(time.monotonic() - began)
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)  # and the scripts that the tests started
        run.wait()
        log.seek(0)
        return outcome, seconds, log.read().splitlines()[-3:]


def main():
    warnings.simplefilter("error", SyntaxWarning)  # `x is 3` does not compile
    with tempfile.TemporaryDirectory() as base, ThreadPoolExecutor(WORKERS) as pool:
        clean = Path(base)  # from here on the checkout may be edited
        state, sample = copy_tree(clean), list(islice(changes(clean), SAMPLE))
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.touch()
        earlier = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
        done = {one["number"]: one["outcome"] for one in earlier if one["state"] == state}
        todo = [n for n in range(len(sample)) if n not in done]
        plain = list(pool.map(run_tests, [clean] * WORKERS if todo else []))
        if any(outcome != "survived" for outcome, *_ in plain):
            sys.exit(f"The tests fail without a change: {plain}")
        limit = TIMEOUT * max([seconds for _, seconds, _ in plain], default=0)
        runs = pool.map(lambda n: run_tests(clean, limit, *sample[n]), todo)
        for n, (outcome, seconds, printed) in zip(todo, runs):
            done[n] = outcome
            line = {"state": state, "number": n, "change": sample[n][2:], "outcome": outcome, "by": printed}
            with RESULTS.open("a", encoding="utf-8") as file:
                print(json.dumps(line), file=file)
            print(f"{len(done)}/{len(sample)}: {n} {outcome}, {seconds} s", *printed[:1], flush=True)
    survivors = ["\n".join(change[2:]) for n, change in enumerate(sample) if done[n] == "survived"]
    share = 1 - len(survivors) / len(sample)
    print(*survivors, f"{share:.1%} of {len(sample)} changes found", sep="\n\n")
    sys.exit(share < ENOUGH)


if __name__ == "__main__":
    main()
