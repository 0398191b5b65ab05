"""The table of parameters that `hf-finetune inspect` prints."""

import csv
import io
import json
from typing import Any

from hf_finetune.model.freezing import FreezePlan


def make_rows(model: Any, plan: FreezePlan) -> list[dict[str, Any]]:
    """One row for every entry of the state_dict: name, part, shape, dtype, bytes, state (trains, frozen or buffer)."""
    part_of = {name: part for part, names in plan.structure.parts().items() for name in names}
    tied = {id(parameter): name for name, parameter in model.named_parameters()}
    rows = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner = tied.get(id(tensor))
        state = "buffer" if owner is None else "frozen" if owner in plan.frozen else "trains"
        rows.append(
            {
                "name": name,
                "part": part_of.get(owner or "", "buffers"),
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "bytes": tensor.numel() * tensor.element_size(),
                "state": state if owner in (None, name) else f"{state}, tied to {owner}",
            }
        )
    return rows


def format_rows(rows: list[dict[str, Any]], plan: FreezePlan, style: str) -> str:
    """The rows as json, csv, or a table with totals by part."""
    if style == "json":
        totals = [{"part": part, "parameters": size, "state": state} for part, size, state in plan.table()]
        return json.dumps(
            {
                "entries": rows,
                "parts": totals,
                "parameters": {"total": plan.num_total, "trainable": plan.num_trainable},
            },
            indent=2,
        )
    if style == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "shape": "x".join(map(str, row["shape"]))} for row in rows)
        return text.getvalue().rstrip("\n")
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"{row['name']:<{width}}  {'x'.join(map(str, row['shape'])) or 'scalar':>14}  "
        f"{row['dtype']:<8} {row['bytes']:>12,}  {row['state']}"
        for row in rows
    ]
    return "\n".join(
        [
            f"{'name':<{width}}  {'shape':>14}  {'dtype':<8} {'bytes':>12}  state",
            *lines,
            "",
            "by part:",
            plan.describe(),
        ]
    )
