"""Alloys that a user asks about, and what a trained model says of them (PREDICT, CHECKPOINT).

Nothing to run here. Formulas, CSV files, POSCARs and folders of them are read; a checkpoint is written,
read again and checked; the table of predictions says what lies outside of what the model has seen.
"""

import importlib
import io
import pickle
import re
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import common
import settings
from common import INPUT_PHASES, METHODS, PHASES, TARGETS, System
from settings import InputError

ORDER_MARGIN = 0.01  # of a pair's probability
MOST_LINES = 40  # printed; all are in the file


# ==== alloys that are asked about =================================================================


def read_alloys(text, phases):
    """PREDICT -> frame with formula, phase, poscar (a path or None) and what else a CSV file holds.

    text: formulas, POSCARs, folders of POSCARs, or the path of a CSV file. phases: those that can be asked
    for; a formula without one stands for each of them. Raises InputError that says where the fault is.
    """
    words = [text] if is_there(text) else text.replace(",", " ").split()
    if any(word.lower().endswith(".csv") for word in words):
        if len(words) > 1:
            raise InputError(f"PREDICT: expected one CSV file alone, or formulas and POSCARs; got {text}")
        frame = alloys_of_csv(Path(words[0]), phases)
    else:
        rows = []
        for word in words:
            path = Path(word)
            if is_there(word) and path.is_dir():
                rows += [alloy_of_poscar(one, phases) for one in poscars_in(path)]
            elif is_there(word):
                rows.append(alloy_of_poscar(path, phases))
            elif common.is_formula(word):
                rows.append({"formula": word})
            else:
                raise InputError(f"PREDICT: expected formulas, such as FeNiCoCr, or files; got {word}")
        if not rows:
            raise InputError("PREDICT: expected formulas, such as FeNiCoCr, or files; got none")
        frame = pd.DataFrame(rows).reindex(columns=["structure", "formula", "phase", "poscar"])
        frame = frame.astype(object).where(frame.notna(), None)
        frame = frame.drop(columns=[] if frame.structure.notna().any() else "structure")
    each = [list(phases) if phase is None else [phase] for phase in frame.phase]
    return frame.assign(phase=each).explode("phase", ignore_index=True)


def is_there(text):
    """Whether it is the path of a file or folder; many formulas in a row are longer than a name can be."""
    try:
        return Path(text).exists()
    except OSError:
        return False


def poscars_in(folder):
    """The POSCARs of a folder; a printed line says which files are taken for none, by their endings."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    # A number may follow the last dot: Fe0.5Ni0.5 is no file of the type .5Ni0.
    found = [
        path
        for path in paths
        if re.fullmatch(r"(\.vasp|\.poscar|\.\d.*)?", path.suffix.lower()) or common.phase_in_name(path.name)
    ]
    if not found:
        raise InputError(f"PREDICT: expected POSCARs in the folder {folder}, found none")
    if len(found) < len(paths):
        others = [path.name for path in paths if path not in found]
        print(f"left out of {folder}, no POSCARs by their endings: {settings.listed(others)}")
    return found


def alloy_of_poscar(path, phases):
    """A POSCAR as a row; its lattice is what its name ends with, else what most of its atoms are on."""
    import cells
    import structure_stat

    structure = cells.read_poscar(path)
    phase = common.phase_in_name(path.name)
    if phase is None:
        _, positions = structure_stat.neighbours(structure, "fcc")
        shares = cells.phase_shares(structure_stat.vectors_of(positions))
        phase = cells.SURROUNDINGS[shares.argmax()]
        print(f"{path.name}: no lattice in its name; taken for {phase}, as most of its atoms are")
    if phase not in phases:
        raise InputError(
            f"{path}: expected a cell of {' or '.join(phases)}, or a name that ends with its lattice"
        )
    formula = structure.composition.formula.replace(" ", "")
    return {"structure": path.name, "formula": formula, "phase": phase, "poscar": path}


def alloys_of_csv(path, phases):
    """A CSV file as frame: structures (as FeNi3_sqsfcc), formula, composition or a column for each element.

    Commas or semicolons, with these decimal commas; any case of names of columns and phases. POSCARs are
    taken from a folder POSCARS beside it. Raises InputError that gives the line.
    """
    try:
        text = path.read_text("utf-8-sig")
        separator = ";" if ";" in text.partition("\n")[0] else ","
        frame = pd.read_csv(
            io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False
        )
    except OSError as error:
        raise InputError(f"{path}: expected a CSV file ({error.strerror or error})") from None
    except ValueError as error:  # pandas' parser errors and wrong encodings are ValueErrors
        raise InputError(f"{path}: not a readable CSV file ({error})") from None
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(f"{path}: expected rows with as many fields as the header, found more")
    frame = frame[(frame != "").any(axis=1)]  # empty lines
    lower = {str(column).strip().lower(): column for column in frame}
    name = next((lower[word] for word in ("structures", "structure") if word in lower), None)
    formula = next((lower[word] for word in ("formula", "composition") if word in lower), None)
    phase, symbols = lower.get("phase"), {}
    if name is None and formula is None:
        symbols = element_columns(path, frame)
    if name is None and formula is None and not symbols:
        raise InputError(
            f"{path}: expected a column 'structure', 'formula' or 'composition', or one for each element"
        )
    rows = []
    for i, row in frame.iterrows():

        def complain(expected, got, line=i + 2):
            raise InputError(f"{path} line {line}: expected {expected}; got '{got}'")

        found = {"poscar": None, "phase": None}
        if name is not None:
            file = common.poscar_path(path.parent / "POSCARS", row[name].strip())
            found["poscar"] = file if row[name].strip() and file.is_file() else None
        if formula is not None:
            found["formula"] = row[formula].replace(" ", "")
        elif name is not None:
            found["formula"] = common.formula_of(row[name].strip(), path.parent / "POSCARS")
        else:
            found["formula"] = ""
            for symbol, column in symbols.items():
                amount = row[column].replace(",", ".") if separator == ";" else row[column]
                try:
                    amount = float(amount or 0)
                except ValueError:
                    amount = -1.0
                if not 0 <= amount < np.inf:
                    complain(f"an amount of {symbol}, 0 or more", row[column])
                found["formula"] += f"{symbol}{amount:.10g}" if amount else ""
        if not common.is_formula(found["formula"]):
            complain("a formula, such as FeNiCoCr", found["formula"])
        if phase is not None:
            found["phase"] = row[phase].strip().lower()
        elif name is not None:
            found["phase"] = common.phase_in_name(row[name])
        if (phase is not None or name is not None) and found["phase"] not in phases:
            complain(f"{' or '.join(phases)} as phase", row[name if phase is None else phase])
        rows.append(found)
    if not rows:
        raise InputError(f"{path}: expected alloys, found none")
    carried = frame.drop(columns=[c for c in (formula, phase) if c is not None]).reset_index(drop=True)
    return apart(carried, ("formula", "phase", "poscar")).join(pd.DataFrame(rows))


def apart(frame, taken):
    """The frame with its columns of names that are taken renamed, 'mean' to 'mean (given)'."""
    names = list(frame)
    for i in range(len(names)):
        while names[i] in taken or names.count(names[i]) > 1:
            names[i] += " (given)"
    return frame.set_axis(names, axis=1)


def element_columns(path, frame):
    """Columns of amounts of elements: {symbol: column}; their heads are Fe or FE or Fe (at%).

    Raises InputError where an element has two, or another unit, which may be of weight.
    """
    from pymatgen.core import Element

    symbols = {}
    for column in frame:
        head = str(column).strip()
        found = re.fullmatch(r"([A-Za-z]{1,2})(\.\d+|[\s(\[%].*)?", head)  # .1: pandas' of a second
        symbol, rest = (found[1].capitalize(), found[2] or "") if found else ("", "")
        if not Element.is_valid_symbol(symbol) or symbol == "No":  # a number, not nobelium
            continue
        if not re.fullmatch(r"(\.\d+)?|\W*(at|mol)?\W*", rest.lower()):
            raise InputError(f"{path}: expected {symbol} or {symbol} (at%) over a column; got '{head}'")
        if symbol in symbols:
            raise InputError(f"{path}: expected one column of {symbol}; got '{symbols[symbol]}', '{head}'")
        symbols[symbol] = column
    return symbols


def elements_of(formula):
    from pymatgen.core import Composition

    return [str(element) for element in Composition(formula)]


def arrangements(frame, system):
    """Clusters of the alloys on their lattice, (n, n_columns) of all BLOCKS, and remarks on each.

    nan where only a formula is known, or the cell cannot be put back on its lattice, which a remark says.
    """
    columns = common.cluster_columns(system, *common.BLOCKS)
    clusters = pd.DataFrame(np.nan, frame.index, columns)
    remarks = [[] for _ in range(len(frame))]
    for phase in PHASES:
        rows = [i for i in frame.index if frame.poscar[i] is not None and frame.phase[i] == phase]
        if not rows:
            continue
        import structure_stat

        for i in [i for i in rows if not common.allowed(system, elements_of(frame.formula[i]))]:
            remarks[i].append("arrangement not read: no cluster holds a pair that is excluded")
            rows.remove(i)
        for i in rows:
            alloy = [frame.poscar[i]], [frame.formula[i]], phase, system
            known, _ = structure_stat.own_cells(*alloy)  # whatever else is asked for beside it
            values, faults = structure_stat.count_structures(*alloy, known)
            if faults:
                remarks[i].append(f"arrangement not read: {faults[0]}")
            else:
                clusters.loc[i] = values[0, : len(columns)]
    return clusters, remarks


# ==== checkpoints =================================================================================


def save_checkpoint(chosen, data, splits, outcome, path):
    """What predictions need, and what the run was; `load_checkpoint` reads it without running code."""
    rows = np.unique(np.concatenate([split.train for split in splits]))
    held = data.inputs[rows][:, : len(data.system.elements)] > 0  # which elements, in each training alloy
    pairs = combinations(range(held.shape[1]), 2)
    unseen = [(i, j) for i, j in pairs if not (held[:, i] & held[:, j]).any()]
    seen = data.inputs[rows][:, -len(data.phases) :].max(0) > 0.5
    buffer = io.BytesIO()  # a full disk is an error of the writing, not one of torch's
    torch.save(
        {
            "state": outcome.state,
            "module": outcome.module,
            "target": chosen.TARGET,
            "method": chosen.METHOD,
            "phase_input": chosen.PHASE_INPUT,
            "data": data.source,
            "elements": list(data.system.elements),
            "excluded": [sorted(pair) for pair in data.system.excluded],
            "properties": common.element_properties(data.system.elements).tolist(),
            # what it was trained on, to tell which alloys lie outside
            "phases": [phase for phase, is_seen in zip(data.phases, seen) if is_seen],
            "unseen": [[data.system.elements[i] for i in pair] for pair in unseen],
            "least": torch.tensor(data.inputs[rows].min(0)),
            "greatest": torch.tensor(data.inputs[rows].max(0)),
            "most_order": most_order(data, rows),
            "n_components": sorted(set(data.table.n_components.to_numpy()[rows].tolist())),
        },
        buffer,
    )
    path.write_bytes(buffer.getvalue())


def most_order(data, rows):
    """Greatest excess of a neighbour pair over the random alloy among some rows; 0 without lattice tables."""
    if data.cells != "lattice":
        return 0.0
    from structure_stat import order_of

    order = order_of(data.system, data.inputs[:, : len(data.system.elements)], data.clusters)
    return float(np.abs(order[rows]).max())


def load_checkpoint(path):
    """A checkpoint: (predict_alloys, what `save_checkpoint` saved). InputError if it is none.

    predict_alloys: function (mole fractions (n, n_elements), phases (n,), clusters (n, n_columns) or None)
    -> predictions of all networks (n_networks, n) in the target's unit, and what else the method says,
    {name: (n,)}. No code from the file is run (weights_only).
    """
    try:
        with warnings.catch_warnings():  # on files that are none: what to do is said in one line below
            warnings.simplefilter("ignore")
            saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = checked(saved)
        system = System(saved["elements"], tuple(map(frozenset, saved["excluded"])))
        if saved["module"] not in ("common", "main_committee"):
            raise ValueError("no module of this project")
        module = importlib.import_module(saved["module"])
        predict_alloys = module.predictor(saved["state"], system, INPUT_PHASES[saved["phase_input"]])
        equal = np.full((len(saved["phases"]), len(system.elements)), 1 / len(system.elements))
        if not np.isfinite(predict_alloys(equal, saved["phases"])[0]).all():
            raise ValueError("predicts no numbers")
    except OSError as error:
        raise InputError(
            f"{path}: expected a checkpoint of an earlier run ({error.strerror or error})"
        ) from None
    except (
        pickle.UnpicklingError, EOFError, RuntimeError, LookupError, TypeError, ValueError, AttributeError,
    ):  # fmt: skip
        raise InputError(f"{path}: expected a checkpoint that one of the main scripts wrote") from None
    return predict_alloys, saved


def checked(saved):
    """What a checkpoint says, checked as what a user says. Raises an error where no run says so."""
    METHODS[saved["method"]], TARGETS[saved["target"]]
    elements = settings.element_list(" ".join(saved["elements"]))
    pairs = settings.pair_list(" ".join("-".join(pair) for pair in [*saved["excluded"], *saved["unseen"]]))
    bounds = [saved[name].numpy() for name in ("least", "greatest")]
    known = INPUT_PHASES[saved["phase_input"]]
    if not (
        list(elements) == saved["elements"] and {element for pair in pairs for element in pair} <= {*elements}
        and all(bound.shape == (len(elements) + 4 + len(known),) for bound in bounds)
        and np.isfinite(bounds).all() and type(saved["data"]) is str
        and saved["most_order"] >= 0 and saved["phases"] and {*saved["phases"]} <= {*known}
        and all(type(number) is int for number in saved["n_components"])
        # Those of elements outside ELEMENT_TABLE may have been others when it was trained.
        and np.array_equal(saved["properties"], common.element_properties(elements))
    ):  # fmt: skip
        raise ValueError("no run says so")
    return saved | {"elements": elements}


# ==== predictions =================================================================================


def predicts_only(chosen):
    """Look at PREDICT, CHECKPOINT and RESULTS_DIR before the work; predict if no training is asked for."""
    settings.output_folder(chosen.RESULTS_DIR)
    if chosen.PREDICT:
        read_alloys(chosen.PREDICT, INPUT_PHASES["found" if chosen.CHECKPOINT else chosen.PHASE_INPUT])
    if chosen.CHECKPOINT and not chosen.PREDICT:
        raise InputError("CHECKPOINT: expected with PREDICT, which says for which alloys")
    if chosen.CHECKPOINT:
        print("of these PREDICT, CHECKPOINT and RESULTS_DIR count; all else is as in the checkpoint's run")
        predict_for(chosen, chosen.CHECKPOINT)
    elif chosen.PREDICT and chosen.SPLITS != ["all"]:
        print("predictions will come from a part of the data; --splits all trains on all of it", flush=True)
    return bool(chosen.CHECKPOINT)


def spread(predicted):
    """Standard deviation over networks, (n_networks, n) -> (n,); nan of one, which has none."""
    return predicted.std(0) if len(predicted) > 1 else np.full(predicted.shape[1], np.nan)


def outside(saved, fractions, names, amounts):
    """What of each alloy the training has not seen: a list of remarks for each.

    fractions: (n, n_elements). names: of phases. amounts: of elements in the formula, [{element: amount}].
    """
    phases, elements = INPUT_PHASES[saved["phase_input"]], saved["elements"]
    inputs = common.network_inputs(fractions, common.one_hot(names, phases), elements)
    beyond = (inputs < saved["least"].numpy() - 1e-9) | (inputs > saved["greatest"].numpy() + 1e-9)
    labels = [*(f"c({e})" for e in elements), "S", "delta_r", "delta_chi", "valence"]
    remarks = []
    for name, amount, is_out in zip(names, amounts, beyond):
        remark = [] if name in saved["phases"] else [f"phase {name} not seen"]
        if len(amount) not in saved["n_components"]:
            remark.append(f"alloys of {len(amount)} not seen")
        remark += [f"{' with '.join(pair)} not seen" for pair in saved["unseen"] if {*pair} <= amount.keys()]
        if is_out[: len(labels)].any():
            named = ", ".join(label for label, out in zip(labels, is_out) if out)
            remark.append(f"outside the training range: {named}")
        remarks.append(remark)
    return remarks


def predict_for(chosen, checkpoint):
    """Write and print the predictions of a checkpoint for the alloys of PREDICT."""
    from pymatgen.core import Composition

    from structure_stat import order_of, short_range_order

    predict_alloys, saved = load_checkpoint(checkpoint)
    for name in ("TARGET", "METHOD", "PHASE_INPUT"):
        said = saved[name.lower()]
        if name in chosen.given and getattr(chosen, name) != said:
            raise InputError(f"{name} {getattr(chosen, name)}: expected {said}, as in {checkpoint}")
    elements = saved["elements"]
    frame = read_alloys(chosen.PREDICT, INPUT_PHASES[saved["phase_input"]])
    amounts = [Composition(formula).get_el_amt_dict() for formula in frame.formula]
    foreign = [[element for element in amount if element not in elements] for amount in amounts]
    remarks = [[f"element {element} not seen" for element in strange] for strange in foreign]
    known = [i for i, strange in enumerate(foreign) if not strange]
    shown = frame.drop(columns="poscar")
    if known:
        part, system = frame.loc[known], System(elements, tuple(map(frozenset, saved["excluded"])))
        fractions = common.mole_fractions(part.formula, elements)
        clusters, of_cells = arrangements(part.reset_index(drop=True), system)
        order = np.abs(order_of(system, fractions, clusters)).max(1)
        for remark, most in zip(of_cells, order):
            if most > saved["most_order"] + ORDER_MARGIN and saved["module"] == "main_committee":
                seen = f"{saved['most_order']:.2f} at most seen"
                remark.append(f"a pair's probability is {most:.2f} off the random alloy's, {seen}")
        of_training = outside(saved, fractions, part.phase, [amounts[i] for i in known])
        for i, *more in zip(known, of_training, of_cells):
            remarks[i] += [remark for some in more for remark in some]
        predicted, columns = predict_alloys(fractions, part.phase.tolist(), clusters)
        columns = {"mean": predicted.mean(0), "std": spread(predicted)} | columns
        found = pd.DataFrame(columns, index=known)
        found[[name not in saved["phases"] for name in part.phase]] = np.nan  # it says nothing of them
        if clusters.notna().any(axis=None):
            order = short_range_order(clusters, system).dropna(axis=1, how="all").set_axis(known)
            found = found.join(order)
            if saved["module"] == "common":
                print(f"{METHODS[saved['method']]} reads composition and lattice; it sees no arrangement")
        shown = apart(shown, {*found}).join(found)
    unit = TARGETS[saved["target"]].unit
    shown = apart(shown, ("unit", "outside")).assign(unit=unit, outside=list(map("; ".join, remarks)))
    of_run = chosen.RESULTS_DIR, f"{Path(checkpoint).stem}_predicted", "{}.csv", settings.csv_text(shown)
    with settings.files_of_run(*of_run) as (new, name):
        settings.write_csv(shown, new(f"{name}.csv"))
    print(f"{METHODS[saved['method']]}, data: {saved['data']}")
    print(shown.head(MOST_LINES).to_string(index=False, na_rep="", float_format=lambda x: f"{x:.4f}"))
    if len(shown) > MOST_LINES:
        print(f"and {len(shown) - MOST_LINES} more, in the file")
    print(f"mean and std over splits and seeds of the run; written: {chosen.RESULTS_DIR / name}.csv")
