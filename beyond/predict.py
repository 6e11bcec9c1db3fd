"""What a checkpoint says of alloys of your own.

    python beyond/predict.py --checkpoint results/scratch_Ef_4+5_100_reference/model.pt --predict FeNiCoCr
    python beyond/predict.py --predict "Fe50 Mn30 Co10 Cr10" alloys.csv cells/ run/CONTCAR

Reads formulas, tables (.csv), POSCARs and folders of them; what is called like a formula is a file only with
a / in it. In a table the composition is a column formula (or composition, or structures, of names such as
FeNi3_sqsfcc), or else columns headed Fe or Fe (at%), of elements that the model knows, which sum to 100 or 1.
The lattice is a column phase, lattice or structure; without one an alloy stands for each lattice. Prints a
short table and writes RESULTS_DIR/predicted_<run>/predictions.csv: all that the model says, Warren-Cowley
parameters of structures, what lies outside of the training, and last the table's other columns.
"""

import os
import re
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import torch

import common
import lattice
import report
import settings
import structure_stat
from common import INPUT_PHASES, TARGETS
from settings import InputError, listed

# ---- settings ------------------------------------------------------------------------------------
CHECKPOINT = "results/scratch_Ef_4+5_100_reference"  # a run's folder, or its model.pt
PREDICT = ["FeNiCoCr"]  # formulas (one with blanks in quotes), CSV files, POSCARs, folders of POSCARs
# --------------------------------------------------------------------------------------------------

ORDER_MARGIN = 0.01  # of a pair's probability, beyond what was seen in training
MOST_LINES = 40  # printed; all are in the file


def read_alloys(words, elements, phases):
    """Frame of alloys: structure (name or ""), formula, phase, poscar, file (paths or None), carried (dicts).

    words: as PREDICT. elements: which a table may have columns of. phases: lattices that can be asked for; an
    alloy without one stands for each of them. Raises InputError that says where the fault is.
    """
    rows, words = [], [*dict.fromkeys(map(str, words or []))]
    formulas = {word: common.composition(word) for word in words if common.is_formula(word)}
    if len(words) == len(formulas) > 1 and max(map(len, formulas.values())) == 1:
        raise InputError(f"PREDICT: pure elements; an alloy goes into quotes, as '{' '.join(words)}'")
    for word in words:
        if word in formulas or not os.path.exists(word):
            rows.append({"formula": word, "where": "PREDICT, no file of that name"})
        elif word.lower().endswith(".csv"):
            rows += alloys_of_csv(Path(word), elements)
        else:
            rows += alloys_of_poscars(poscars_in(word) if os.path.isdir(word) else [Path(word)])
    if not rows:
        raise InputError("PREDICT: expected formulas, such as FeNiCoCr, or files; found none")
    for row in rows:
        try:
            common.composition(row["formula"])
        except ValueError as error:
            raise InputError(f"{row['where']}: {error}") from None
        if row.setdefault("phase", "") not in ("", *phases):
            expected = f"the lattice {' or '.join(phases)}, in a column or at the end of a name"
            raise InputError(f"{row['where']}: expected {expected}; found '{row['phase']}'")
        row["phase"] = row["phase"] or phases
    blank = {"structure": "", "poscar": None, "file": None, "carried": {}}
    return pd.DataFrame([blank | row for row in rows]).explode("phase", ignore_index=True)


def poscars_in(folder):
    """The POSCARs below a folder: in each CONTCAR, else POSCAR, else what may be one by its ending."""
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    paths = [path for path in paths if "/." not in f"/{path.relative_to(folder).as_posix()}"]
    of_runs = [path for path in paths if path.name in ("CONTCAR", "POSCAR") and path.stat().st_size]
    of_runs = {path.parent: path for path in reversed(of_runs)}  # CONTCAR is the earlier one
    # A number may follow the last dot: Fe0.5Ni0.5 is no file of the type .5Ni0.
    ending = re.compile(r"(^[^.]*|fcc|bcc|hcp|\.vasp|\.poscar|\.\d[^.]*)$", re.IGNORECASE)
    found = [path for path in paths if of_runs.get(path.parent, ending.search(path.name) and path) == path]
    others = listed(sorted({*paths} - {*found}))
    if not found:
        raise InputError(f"{folder}: expected POSCARs in this folder; found {others or 'none'}")
    if others:
        print(f"left out, beside a CONTCAR or no POSCARs by their names: {others}")
    return found


def alloys_of_poscars(paths):
    """Rows of POSCARs; the lattice is the last word of the name, else what most of the atoms are on."""
    rows, guessed = [], []
    for path in paths:
        structure, name = lattice.read_poscar(path), os.fsencode(path).decode("utf-8", "replace")
        of_run = path.name in ("CONTCAR", "POSCAR")
        phase = common.lattice_in_name((path.absolute().parent if of_run else path).name)
        if phase is None:
            try:
                _, positions = lattice.neighbours(structure, "fcc")
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
            phase = lattice.STRUCTURE_TYPES[lattice.phase_fractions(positions).argmax()]
            guessed.append(f"{name} ({phase})")
        formula = structure.composition.formula.replace(" ", "")
        rows.append({"structure": name, "formula": formula, "phase": phase, "poscar": path, "where": name})
    if guessed:
        print(f"no lattice in the name, so that of most atoms: {listed(guessed)}")
    return rows


def alloys_of_csv(path, elements):
    """Rows of a table; the POSCARs of names in its column structures are in POSCARS beside it."""
    frame = common.read_table(path, dtype=str).fillna("").map(str.strip)
    heads, folder, rows = {head.lower(): head for head in frame}, path.parent / "POSCARS", []
    formula, name = heads.get("formula", heads.get("composition")), heads.get("structures")
    of_lattice, symbols = common.lattice_column(frame), {}
    for head in frame:
        symbol = re.sub(r"( ?\(at\.? ?%\))?(\.\d+)?$", "", head)  # .1: pandas' of a second one
        if symbol in elements and symbols.setdefault(symbol, head) != head:
            raise InputError(f"{path}: two columns of {symbol}, '{symbols[symbol]}' and '{head}'")
    kinds = [f"'{head}'" for head in (formula, name, ", ".join(symbols)) if head]
    if not kinds:
        expected = f"a column 'formula', 'composition' or 'structures', or columns {', '.join(elements)}"
        raise InputError(f"{path}: expected {expected}; there are {listed([*frame], 20)}")
    if len(kinds) > 1:
        print(f"{path}: composition read from {kinds[0]}, where that is blank from {' or '.join(kinds[1:])}")
    for i, row in zip(frame.index, frame.to_dict("records")):
        given, label, phase = (row.pop(head, "") for head in (formula, name, of_lattice))
        row = {"structure": label, "carried": row, "file": path, "where": f"{path} line {i + 2}"}
        if not given and (label or not symbols):
            given = common.formula_of(label, "", folder)
        row["formula"] = given or mixed(row["carried"], symbols, row["where"])
        row["phase"] = phase.lower() or common.lattice_in_name(label) or ""
        poscar = common.poscar_path(folder, label)
        rows.append(row | {"poscar": poscar if label and poscar.is_file() else None})
    return rows


def mixed(row, symbols, where):
    """The formula of a row with columns of elements, symbols: {symbol: head}."""
    given = {symbol: row[head].replace(",", ".") or "0" for symbol, head in symbols.items()}
    amounts = pd.to_numeric([*given.values()], errors="coerce")
    off = min(abs(amounts.sum() - 100), 100 * abs(amounts.sum() - 1))
    if not ((amounts >= 0).all() and off < 0.5 + 1e-9):
        first_words = {head: re.match(r"([A-Z][a-z]?)(?![A-Za-z])|", head)[0] for head in row}
        others = [head for head, word in first_words.items() if common.is_formula(word) and word not in given]
        found = ", ".join(map(" ".join, given.items())) + f"; not read: {', '.join(others)}" * bool(others)
        raise InputError(f"{where}: expected a sum of 100 or 1 (ratios go into 'formula'); found {found}")
    shares = [np.format_float_positional(amount, 8, trim="-") for amount in amounts]
    return "".join(symbol + share for symbol, share in zip(given, shares) if share != "0")


def load_checkpoint(path):
    """A checkpoint: (predict_alloys, what `report.save_checkpoint` saved with its path, run, system, unit).

    predict_alloys: function (mole fractions (n, n_elements), phases (n,), clusters (n, n_columns) or None)
    -> predictions of all members (n_members, n), and what else the method says, {name: (n,)}. Runs no code
    from the file. InputError if it is none, or of another network or other elements' properties than today's.
    """
    path = path / "model.pt" if path.is_dir() else path
    try:
        with warnings.catch_warnings():  # on files that are none: what to do is said below
            warnings.simplefilter("ignore")
            saved = torch.load(path, map_location="cpu", weights_only=True)
        system = common.System(tuple(saved["elements"]), tuple(map(frozenset, saved["excluded"])))
        run = path.absolute().parent.name if path.name == "model.pt" else path.stem
        saved |= {"path": path, "run": run, "system": system, "unit": TARGETS[saved["target"]].unit}
        known = common.element_properties(system.elements)
        of_each = zip(system.elements, known.tolist(), saved["properties"], strict=True)
        if other := [element for element, now, was in of_each if now != was]:
            raise InputError(f"{path}: trained with other properties of {', '.join(other)} than in common.py")
        if saved["method"] == "phase_gp":
            from beyond import phase_gp

            predict_alloys = phase_gp.predictor(saved["state"], system)
        else:
            trained = report.load_networks(saved["state"], len(known), path)

            def predict_alloys(fractions, names, clusters=None):  # networks see no arrangement
                of_phase = common.one_hot(names, INPUT_PHASES[saved["phase_input"]])
                inputs = common.network_inputs(fractions, of_phase, system.elements)
                return common.predict(trained, inputs).reshape(-1, len(inputs)), {}
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever else goes wrong, no run wrote it)
        written = "main.py, main_transfer.py or beyond/phase_gp.py wrote"
        fault = getattr(error, "strerror", None) or f"{type(error).__name__} in reading it"
        raise InputError(f"{path}: expected a checkpoint that {written}; {fault}") from None
    return predict_alloys, saved


def outside(saved, fractions, names):
    """What of alloys the training has not seen: remarks on each. fractions (n, n_elements), names: phases."""
    elements, remarks = np.array(saved["elements"]), []
    inputs = common.descriptors(fractions, elements)
    least, greatest = (saved[name].numpy()[: inputs.shape[1]] for name in ("least", "greatest"))
    beyond = (inputs < least - 1e-9) | (inputs > greatest + 1e-9)
    labels = [*(f"c({e})" for e in elements), "S", "delta_r", "delta_chi", "valence"]
    for name, held, is_out in zip(names, fractions > 0, beyond):
        new = [] if name in saved["phases"] else [f"phase {name}"]
        new += [] if held.sum() in saved["n_components"] else [f"alloys of {held.sum()}"]
        new += [" with ".join(pair) for pair in saved["unseen"] if {*pair} <= {*elements[held]}]
        out = ", ".join(label for label, is_one in zip(labels, is_out) if is_one)
        new = [f"{one} not seen" for one in new]
        remarks.append(new + [f"outside the training range: {out}"] * bool(out))
    return remarks


def arrangements(alloys, system):
    """Clusters of alloys on their lattice, columns of all BLOCKS, nan where not known, and remarks on why."""
    columns = common.cluster_columns(system, *common.BLOCKS)
    clusters, remarks = pd.DataFrame(np.nan, alloys.index, columns), []
    for i, poscar, formula, phase in zip(alloys.index, alloys.poscar, alloys.formula, alloys.phase):
        cell, faults = ([poscar], [formula], phase), []
        if poscar is not None and not common.allowed(system, common.composition(formula)):
            faults = ["no cluster holds a pair that is excluded"]
        elif poscar is not None and phase in common.PHASES:
            own = structure_stat.ideal_supercells(*cell)  # whatever else is asked for beside it
            values, faults = structure_stat.count_structures(*cell, system, own)
            clusters.loc[i] = np.nan if faults else values[0, : len(columns)]
        remarks.append([f"arrangement not read: {fault}" for fault in faults])
    return clusters, remarks


def predictions(alloys, predict_alloys, saved):
    """The table of predictions, a row for each of `read_alloys`; blank where the model can say nothing."""
    system, found = saved["system"], pd.DataFrame(columns=["mean", "std"])
    foreign = [{*common.composition(formula)} - {*system.elements} for formula in alloys.formula]
    remarks = [[f"element {element} not seen" for element in sorted(strange)] for strange in foreign]
    known = alloys[[not strange for strange in foreign]]
    if len(known):
        fractions, phases = common.mole_fractions(known.formula, system.elements), [*known.phase]
        clusters, of_cells = arrangements(known, system)
        predicted, columns = predict_alloys(fractions, phases, clusters)
        found = {"mean": predicted.mean(0), "std": report.spread(predicted)} | columns
        found = pd.DataFrame(found, known.index) + 0.0  # no -0.0
        found[[phase not in saved["phases"] for phase in phases]] = np.nan  # it says nothing of them
        found = found.join(structure_stat.short_range_order(clusters, system).dropna(axis=1, how="all"))
        most = np.abs(structure_stat.order_of(system, fractions, clusters)).max(1)
        seen = saved["state"].get("most_order", np.inf)  # of a method that reads the order
        for i, one, cell, order in zip(known.index, outside(saved, fractions, phases), of_cells, most):
            far = f"a pair's probability is {order:.2f} off random, {seen:.2f} at most seen"
            remarks[i] += one + cell + [far] * bool(order > seen + ORDER_MARGIN)
    names = ["structure"] * bool((alloys.structure != "").any()) + ["formula", "phase"]
    table = alloys[names].join(found.astype(float)).assign(unit=saved["unit"])
    table["outside"] = ["; ".join(one) for one in remarks]
    carried = pd.DataFrame([*alloys.carried], table.index)
    return table.join(carried.rename(columns=lambda head: f"{head} (given)" if head in table else head))


def show(table, saved):
    """Print the table in short, and which of its numbers to quote."""
    width = next((name for name in ("half_width_90", "std") if name in table and table[name].any()), "")
    shown = table[[one for one in ("structure", "formula", "phase", "mean", width) if one in table]].round(4)
    shown[[*shown.select_dtypes("number")]] += 0.0  # no -0.0000
    chances = table.filter(regex="^p_...$").dropna()
    if not chances.empty:
        shown["likeliest phase"] = chances.idxmax(axis=1).str[2:]
    shown = shown.rename(columns={"phase": "lattice", "half_width_90": "half width"}).join(table.outside)
    print(f"{saved['title']}; data: {saved['data']}; {saved['target']} in {saved['unit']}")
    print(shown.head(MOST_LINES).to_string(index=False, na_rep="", float_format="{:.4f}".format))
    if len(table) > MOST_LINES:
        print(f"and {len(table) - MOST_LINES} more, in predictions.csv")
    quote = "quote the mean, of composition and lattice alone, with the test RMSE in metrics.csv as its error"
    if "half_width_90" in table:
        quote = "quote mean ± half width (90 %) for the lattice asked for, mean_<phase> if you know the phase"
    print(quote + "; what lies outside of the training is a guess" * bool(table.outside.any()))


def main():
    cfg = settings.read(globals(), CHECKPOINT=settings.folder, PREDICT=list)
    print("of these CHECKPOINT, PREDICT and RESULTS_DIR count; all else is as in the checkpoint's run")
    settings.output_folder(cfg.RESULTS_DIR)
    predict_alloys, saved = load_checkpoint(cfg.CHECKPOINT)
    alloys = read_alloys(cfg.PREDICT, saved["elements"], INPUT_PHASES[saved["phase_input"]])
    table = predictions(alloys, predict_alloys, saved)
    files = [saved["path"], *alloys.file.dropna(), *alloys.poscar.dropna()]
    sums = {str(path): common.text_digest(path) for path in files}
    with report.run_folder(cfg, f"predicted_{saved['run']}", sums) as folder:
        report.write_csv(table, folder / "predictions.csv")
    show(table, saved)


if __name__ == "__main__":
    settings.run(main)
