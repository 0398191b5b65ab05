"""Writes the file tree into README.md from the first line of each module's docstring: `python docs/make_tree.py`."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- files: made by docs/make_tree.py -->\n", "<!-- end of files -->"
TOP = (
    "train.py",
    "recipe.py",
    "cli.py",
    "cli_choosing.py",
    "cli_data.py",
    "cli_predict.py",
    "cli_push.py",
    "cli_runs.py",
    "verify.py",
)
FOLDERS = (
    "system",
    "statistics",
    "config",
    "data",
    "model",
    "forward",
    "tasks",
    "training",
    "run",
    "cache",
    "export",
    "analysis",
    "choosing",
)  # in import order
OTHERS = {
    "recipes/": "A script for each task; recipes/configs/ has settings for known data sets.",
    "benchmarks/": "Comparisons with transformers.Trainer and others; benchmarks/results/ has their figures.",
    "docs/": "A tour, data, scale, tasks, Python, own parts, training, training on, looking, choosing, evaluation, design, "
    "performance, reliability, settings, results.",
    "tests/": "A test file for each module, in the same folders; tests/recipes/ runs every recipe.",
    "outputs/NAME/": "A run: config.yaml, data.json, environment.json, metrics.jsonl, event files, checkpoints/, model/, "
    "scored/, results.json.",
}


def read_first_line(path: Path) -> str:
    """The first line of a module's docstring; its first sentence if that is longer than a line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = docstring.partition("\n")[0]
    if line.endswith("."):
        return line
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".") + "."


def make_tree() -> str:
    """The tree: one line for each file of the package and each other folder."""
    package = ROOT / "hf_finetune"
    entries = [(f"hf_finetune/{name}", read_first_line(package / name)) for name in TOP]
    for folder in FOLDERS:
        entries.append((f"hf_finetune/{folder}/", read_first_line(package / folder / "__init__.py")))
        paths = sorted(path for path in (package / folder).rglob("*.py") if path.name != "__init__.py")
        entries += [(f"  {path.relative_to(package / folder)}", read_first_line(path)) for path in paths]
    entries += list(OTHERS.items())
    width = max(len(name) for name, _ in entries)
    return "```\n" + "".join(f"{name:<{width}}  {line}\n" for name, line in entries) + "```\n"


def make_readme() -> str:
    """README.md with the tree of today."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{make_tree()}{END}{after}"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(make_readme(), encoding="utf-8")
