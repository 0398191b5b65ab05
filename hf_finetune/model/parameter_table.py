"""The table of parameters that `hf-finetune inspect` prints."""

import csv
import io
import json
from typing import Any

from torch import nn

from hf_finetune.model.freezing import FreezePlan


def make_rows(model: nn.Module, plan: FreezePlan) -> list[dict[str, Any]]:
    """Returns a row for each entry of the state_dict: name, part, shape, dtype, bytes, state (trains, frozen or buffer)."""
    part_of = {name: part for part, names in plan.structure.parts().items() for name in names}
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # of tied entries, the first one's
    rows = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        parameter = names.get(id(tensor))
        state = "trains"
        if parameter is None:
            state = "buffer"
        elif parameter in plan.frozen:
            state = "frozen"
        if parameter not in (None, name):
            state += f", tied to {parameter}"
        rows.append(
            {
                "name": name,
                "part": part_of.get(parameter or "", "buffers"),
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "bytes": tensor.numel() * tensor.element_size(),
                "state": state,
            }
        )
    return rows


def format_rows(rows: list[dict[str, Any]], plan: FreezePlan, style: str) -> str:
    """Returns the rows as text. `style`: json, csv, or table, which ends with totals by part."""
    if style == "json":
        return format_as_json(rows, plan)
    if style == "csv":
        return format_as_csv(rows)
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'name':<{width}}  {'shape':>14}  {'dtype':<8} {'bytes':>12}  state"]
    for row in rows:
        shape = format_shape(row["shape"]) or "scalar"
        lines.append(f"{row['name']:<{width}}  {shape:>14}  {row['dtype']:<8} {row['bytes']:>12,}  {row['state']}")
    return "\n".join([*lines, "", "by part:", plan.describe()])


def format_as_json(rows: list[dict[str, Any]], plan: FreezePlan) -> str:
    """Returns a JSON document with the rows, the totals by part, and the total."""
    parts = [{"part": part, "parameters": size, "state": state} for part, size, state in plan.table()]
    parameters = {"total": plan.num_total, "trainable": plan.num_trainable}
    return json.dumps({"entries": rows, "parts": parts, "parameters": parameters}, indent=2)


def format_as_csv(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as csv with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "shape": format_shape(row["shape"])} for row in rows)
    return text.getvalue().rstrip("\n")


def format_shape(shape: list[int]) -> str:
    """Returns a shape as 2x3; "" for a scalar."""
    return "x".join(map(str, shape))
