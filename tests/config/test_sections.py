"""RunConfig: every check of every section, who reads each setting, and which way the package's imports go."""

import ast
import functools
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import FrozenInstanceError
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hf_finetune
from hf_finetune.config import checks, model_sections, sections, training_sections
from hf_finetune.config.loading import SECTIONS, get_setting_types
from hf_finetune.config.model_sections import parse_fraction
from hf_finetune.config.sections import (
    AdapterConfig,
    CacheConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ExportConfig,
    FreezeConfig,
    HubConfig,
    ModelConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
    flatten,
    to_dict,
)
from hf_finetune.config.tasks import TASKS, load_task
from hf_finetune.config.training_sections import WaitingConfig
from hf_finetune.system.errors import InputError

PACKAGE = Path(hf_finetune.__file__).parent
NAN, INFINITY = float("nan"), float("inf")
MODEL = ModelConfig(backbone="backbone")
SECTION_MODULES = (sections, model_sections, training_sections, checks)
SETTINGS = {kind: load_task(kind).Settings for kind in TASKS}
TASK = SETTINGS["classify"](kind="classify")
TYPES = get_setting_types(SETTINGS["classify"])
DATA = DataConfig(train=("train.csv",))
STAGED = FreezeConfig(unfreeze=({"epoch": 2, "layers": 0},))


# --- checks ---------------------------------------------------------------------------------------------------------

# (section, what is given, dotted key that the message starts with, fragment of the message)
CASES: list[tuple[type, dict[str, Any], str, str]] = [
    *((ModelConfig, {"dropout": value}, "model.dropout", "in [0, 1)") for value in (-0.1, 1.0, 7, NAN)),
    (DataConfig, {"text_columns": ()}, "data.text_columns", "at least one column"),
    (DataConfig, {"text_columns": ("a", "a")}, "data.text_columns", "must differ"),
    (DataConfig, {"text_columns": ("label",)}, "data.text_columns", "data.label_column (label)"),
    (DataConfig, {"text_columns": ("b",), "label_column": ("a", "b")}, "data.text_columns", "data.label_column (a b)"),
    (DataConfig, {"folds": 1}, "data.folds", "at least 2"),
    *((DataConfig, {"folds": 3, "fold": value}, "data.fold", "between 1 and data.folds (3)") for value in (0, 4)),
    (DataConfig, {"fold": 2}, "data.fold", "with data.folds"),
    (DataConfig, {"folds": 3, "validation": ("v.csv",)}, "data.validation", "leave it out, or add it to data.train"),
    (DataConfig, {"folds": 3, "dataset": "imdb"}, "data.dataset", "cannot be used with data.folds"),
    (DataConfig, {"folds": 3, "streaming": True}, "data.streaming", "cannot be used with data.folds"),
    *((DataConfig, {"train_fraction": value}, "data.train_fraction", "above 0, and at most 1") for value in (0.0, 1.5)),
    (DataConfig, {"train_fraction": 0.5, "streaming": True}, "data.train_fraction", "data.streaming off"),
    *((DataConfig, {"delimiter": value}, "data.delimiter", "must be one of") for value in ("", "x", ",,")),
    *((DataConfig, {"validation_fraction": value}, "data.validation_fraction", "[0, 1)") for value in (-0.1, 1.0, NAN)),
    *((DataConfig, {"test_fraction": value}, "data.test_fraction", "in [0, 1)") for value in (-0.1, 1.0, NAN)),
    (DataConfig, {"validation_fraction": 0.0}, "data.validation_fraction", "data.validation is not given"),
    (DataConfig, {"validation_fraction": 0.5, "test_fraction": 0.5}, "data.validation_fraction", "test_fraction (0.5)"),
    *((DataConfig, {"max_length": value}, "data.max_length", "at least 4") for value in (3, 0, -1)),
    (DataConfig, {"max_train_examples": 1}, "data.max_train_examples", "at least 2"),
    (DataConfig, {"encoding": ()}, "data.encoding", "at least one"),
    (DataConfig, {"subset": "mrpc"}, "data.subset", "must be used with data.dataset"),
    *((AdapterConfig, {"kind": "lora", key: 0}, f"adapter.{key}", "at least 1") for key in ("rank", "alpha")),
    (AdapterConfig, {"kind": "lora", "dropout": 1.0}, "adapter.dropout", "in [0, 1)"),
    (AdapterConfig, {"kind": "lora", "targets": ("query", "")}, "adapter.targets", "must not have an empty name"),
    (AdapterConfig, {"rank": 4}, "adapter.rank", "must be used with adapter.kind lora"),
    (
        RunConfig,
        {"model": MODEL, "data": DATA, "task": TASK, "adapter": AdapterConfig(kind="lora"), "freeze": STAGED},
        "freeze.unfreeze",
        "pretrained weights stay frozen",
    ),
    *(
        (SETTINGS[kind], {"kind": kind, key: 0}, f"task.{key}", "at least 1")
        for kind, key in (
            ("answer", "longest_answer"),
            ("answer", "num_best"),
            ("summarize", "max_target_length"),
            ("translate", "num_beams"),
            ("instruct", "max_target_length"),
            ("model_language", "max_target_length"),
        )
    ),
    *(
        (SETTINGS[kind], {"kind": kind, key: -1}, f"task.{key}", "0 or more")
        for kind, key in (
            ("answer", "window_overlap"),
            ("tag", "window_overlap"),
            ("summarize", "generate_examples"),
            ("classify", "focal_gamma"),
            ("tag", "focal_gamma"),
        )
    ),
    *(
        (
            SETTINGS["model_language"],
            {"kind": "model_language", "mask_fraction": value},
            "task.mask_fraction",
            "in (0, 1)",
        )
        for value in (0.0, 1.0, NAN)
    ),
    *(
        (SETTINGS[kind], {"kind": kind, key: value}, f"task.{key}", "finite")
        for kind, key in (("answer", "null_threshold"), ("summarize", "length_penalty"), ("embed", "similarity_scale"))
        for value in (NAN, INFINITY)
    ),
    (
        SETTINGS["summarize"],
        {"kind": "summarize", "num_beams": 1, "length_penalty": 2.0},
        "task.length_penalty",
        "num_beams",
    ),
    (
        SETTINGS["summarize"],
        {"kind": "summarize", "num_beams": 1, "length_penalty": 2.0},
        "task.length_penalty",
        "num_beams",
    ),
    (SETTINGS["embed"], {"kind": "embed", "similarity_scale": 0.0}, "task.similarity_scale", "above 0"),
    *(
        (
            SETTINGS["classify"],
            {"kind": "classify", "label_separator": ",", "problem": problem},
            "task.label_separator",
            problem,
        )
        for problem in ("regression", "single_label")
    ),
    (SETTINGS["classify"], {"kind": "classify", "window_overlap": -1}, "task.window_overlap", "must be 0 or more"),
    (SETTINGS["classify"], {"kind": "classify", "label_separator": ""}, "task.label_separator", "not be empty"),
    *(
        (FreezeConfig, {"layers": value}, "freeze.layers", "a count, a negative count, a fraction")
        for value in ("some", "", "4/3", "1/0", "-1/2", "1 / 2", "0.5")
    ),
    (FreezeConfig, {"unfreeze": ({"epoch": 2, "encoder_layers": 1},)}, "freeze.unfreeze", "is now called layers"),
    (FreezeConfig, {"unfreeze": ({"epoch": 2},)}, "freeze.unfreeze", "must have exactly the keys epoch and layers"),
    (FreezeConfig, {"unfreeze": ({"epoch": 1, "layers": 0},)}, "freeze.unfreeze", "in ascending order"),
    (FreezeConfig, {"unfreeze": ({"epoch": 2, "layers": "x"},)}, "freeze.unfreeze", "must be a count"),
    (CheckpointConfig, {"every_minutes": 0.0}, "checkpoint.every_minutes", "must be above 0"),
    (FreezeConfig, {"patterns": ("ok", "(")}, "freeze.patterns", "must be a regular expression"),
    *(
        (TrainConfig, {key: 0}, f"train.{key}", "at least 1")
        for key in ("epochs", "max_updates", "batch_size", "micro_batch_size", "micro_batch_tokens", "patience")
    ),
    *(
        (TrainConfig, {key: value}, f"train.{key}", "above 0 and below 10")
        for key in ("learning_rate", "head_learning_rate")
        for value in (0.0, -1e-5, 10.0, NAN, INFINITY)
    ),
    *((TrainConfig, {"layer_decay": value}, "train.layer_decay", "in (0, 1]") for value in (0.0, 1.1, NAN)),
    *(
        (TrainConfig, {key: value}, f"train.{key}", "0 or more")
        for key in ("weight_decay", "max_grad_norm", "min_delta")
        for value in (-0.1, NAN, INFINITY)
    ),
    *(
        (TrainConfig, {key: value}, f"train.{key}", "in [0, 1)")
        for key in ("warmup_fraction", "label_smoothing")
        for value in (-0.1, 1.0, NAN)
    ),
    (TrainConfig, {"batch_size": 8, "micro_batch_size": 9}, "train.micro_batch_size", "train.batch_size (8)"),
    (
        TrainConfig,
        {"micro_batch_size": 2, "micro_batch_tokens": 9},
        "train.micro_batch_tokens",
        "not be given together",
    ),
    *((TrainConfig, {"ema_decay": value}, "train.ema_decay", "in (0, 1)") for value in (0.0, 1.0, -1, NAN)),
    (TrainConfig, {"optimizer": "adam_w"}, "train.optimizer", "did you mean adamw?"),
    (TrainConfig, {"optimizer": "??"}, "train.optimizer", "or your own as my_module:build"),
    (
        TrainConfig,
        {"optimizer_options": {"momentum": 0.9}},
        "train.optimizer_options.momentum",
        "adamw has no such option; it takes betas, eps, amsgrad",
    ),
    *(
        (
            TrainConfig,
            {"optimizer": optimizer, "optimizer_options": {option: 1}},
            f"train.optimizer_options.{option}",
            f"must not be given; set {setting}",
        )
        for optimizer in ("sgd", "my_module:build")
        for option, setting in (("lr", "train.learning_rate"), ("weight_decay", "train.weight_decay"))
    ),
    (
        TrainConfig,
        {"schedule": "constant", "schedule_options": {"power": 2}},
        "train.schedule_options.power",
        "constant has no such option; it takes none",
    ),
    (
        TrainConfig,
        {"optimizer": "schedule_free_adamw"},
        "train.schedule",
        "set train.schedule to constant",
    ),
    (
        TrainConfig,
        {"optimizer": "schedule_free_sgd", "schedule": "constant", "ema_decay": 0.9},
        "train.ema_decay",
        "averages the weights itself",
    ),
    *(
        (
            TrainConfig,
            {"schedule": schedule, "schedule_options": {option: value}},
            f"train.schedule_options.{option}",
            must_be,
        )
        for schedule, option, value, must_be in (
            ("linear", "min_ratio", 1, "in [0, 1)"),
            ("linear", "min_ratio", "a", "in [0, 1)"),
            ("cosine", "num_cycles", 0, "above 0"),
            ("cosine", "min_ratio", NAN, "in [0, 1)"),
            ("cosine_with_restarts", "num_cycles", 1.5, "a whole number of at least 1"),
            ("polynomial", "power", INFINITY, "above 0"),
            ("inverse_sqrt", "timescale", 0, "at least 1, or null"),
            ("wsd", "decay_fraction", 0, "in (0, 1]"),
            ("wsd", "decay_fraction", 0.95, "together with train.warmup_fraction (0.1)"),
            ("wsd", "decay", "cos", "cosine, linear or 1-sqrt"),
        )
    ),
    (SETTINGS["tag"], {"kind": "tag", "label_names": ("O", "O")}, "task.label_names", "must differ from each other"),
    (CacheConfig, {"dir": ""}, "cache.dir", "must not be empty"),
    (TrainConfig, {"min_delta": 0.1}, "train.min_delta", "train.patience"),
    *((TrainConfig, {key: "focal"}, f"train.{key}", "an import path") for key in ("loss", "augment", "on_update")),
    (EvaluationConfig, {"metrics": ("kappa=my module:kappa",)}, "evaluation.metrics", "an import path"),
    *((EvaluationConfig, {"every": value}, "evaluation.every", "at least 1") for value in (0, -3)),
    (EvaluationConfig, {"batch_size": 0}, "evaluation.batch_size", "at least 1"),
    *((CheckpointConfig, {"every": value}, "checkpoint.every", "at least 1") for value in (0, -3)),
    (CheckpointConfig, {"keep_best": 0}, "checkpoint.keep_best", "at least 1"),
    (CheckpointConfig, {"keep_last": 0}, "checkpoint.keep_last", "at least 1"),
    *((WaitingConfig, {"patience_minutes": value}, "run.patience_minutes", "above 0") for value in (0.0, float("inf"))),
    *(
        (ExportConfig, {"average": value}, "export.average", "must be none, last:K or best:K, such as last:3")
        for value in ("last", "last:0", "best:", "first:2", "last:-1", "best:2.5", "")
    ),
    (TrackingConfig, {"log_every": 0}, "tracking.log_every", "at least 1"),
    (HubConfig, {"push": True}, "hub.repo_id", "must be given with hub.push"),
    *(
        (RunConfig, {"name": value, "model": MODEL, "data": DATA, "task": TASK}, "name", "not a path")
        for value in ("", ".", "..", "../up", "a/b", "/tmp", "a\\b", ".hidden", "-x", "a b", "a\n", "ü")
    ),
    *(
        (RunConfig, {"seed": value, "model": MODEL, "data": DATA, "task": TASK}, "seed", "0 or more")
        for value in (-1, 2**31)
    ),
    (RunConfig, {"data": DATA, "task": TASK, "model": MODEL, "start_from": ""}, "start_from", "must not be empty"),
    (RunConfig, {"data": DATA, "task": TASK}, "model.backbone", "a Hub id, a folder, or package://NAME/path"),
    *(
        (SETTINGS["classify"], {"kind": "classify", "label_names": names, **options}, "task.label_names", fragment)
        for names, options, fragment in (
            (("a", "a"), {}, "must differ from each other"),
            (("a", "b"), {"problem": "regression"}, "has no effect on a regression"),
        )
    ),
    (RunConfig, {"model": MODEL, "task": TASK}, "data.train", "data.dataset"),
    (
        RunConfig,
        {
            "model": MODEL,
            "data": DataConfig(train=("a",), label_column=("a", "b")),
            "task": SETTINGS["tag"](kind="tag"),
        },
        "data.label_column",
        "must be one column; several are for classify, and this task is tag",
    ),
]


def message_of(section: type, given: Mapping[str, Any]) -> str:
    """The text of the InputError that these arguments cause."""
    with pytest.raises(InputError) as caught:
        section(**given)
    return str(caught.value)


@pytest.mark.parametrize(("section", "given", "key", "fragment"), CASES)
def test_a_wrong_setting_is_named_with_its_value_and_the_mend(
    section: type, given: dict[str, Any], key: str, fragment: str
) -> None:
    message = message_of(section, given)
    assert message.startswith(f"{key} ("), message
    assert fragment in message
    value = given.get(key.rsplit(".", 1)[-1])
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        assert message.startswith(f"{key} ({value}): ")


def find_checks(module: ModuleType) -> list[ast.Call]:
    """The calls of require() in the dataclasses of a module that check themselves, and in functions of the other modules."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    checkers = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.name == "__post_init__" or module in SECTION_MODULES)
    ]
    calls = [node for checker in checkers for node in ast.walk(checker) if isinstance(node, ast.Call)]
    return [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "require"]


def test_every_check_is_failed_by_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {
        *SECTION_MODULES,
        *(sys.modules[base.__module__] for kind in TASKS for base in SETTINGS[kind].__mro__[:-1]),
    }
    failed: set[tuple[str, int]] = set()
    original = checks.require

    def recording(condition: bool, key: str, value: object, message: str) -> None:
        if not condition:
            caller = sys._getframe(1)
            failed.add((caller.f_code.co_filename, caller.f_lineno))
        original(condition, key, value, message)

    for module in modules:
        if hasattr(module, "require"):
            monkeypatch.setattr(module, "require", recording)
    for section, given, _, _ in CASES:
        message_of(section, given)
    calls = [(str(module.__file__), call) for module in modules for call in find_checks(module)]
    assert len(calls) >= 40
    missed = [
        f"{file}:{call.lineno}"
        for file, call in calls
        if not any((file, line) in failed for line in range(call.lineno, (call.end_lineno or 0) + 1))
    ]
    assert not missed, f"no case fails the checks in {missed}"


@pytest.mark.parametrize(
    ("section", "given"),
    [
        (ModelConfig, {"dropout": 0.0}),
        (DataConfig, {"validation_fraction": 0.0, "validation": ("v.csv",)}),
        (DataConfig, {"validation_fraction": 0.0, "dataset": "glue"}),
        (DataConfig, {"dataset": "glue", "subset": "mrpc"}),
        (DataConfig, {"max_length": 4, "max_train_examples": 2}),
        (SETTINGS["classify"], {"kind": "classify", "label_separator": " ", "problem": "multi_label"}),
        (FreezeConfig, {"layers": "all"}),
        (FreezeConfig, {"layers": "3/3"}),
        (FreezeConfig, {"layers": -2}),
        (TrainConfig, {"batch_size": 8, "micro_batch_size": 8}),
        (TrainConfig, {"layer_decay": 1.0, "max_grad_norm": 0.0, "weight_decay": 0.0}),
        (TrainConfig, {"min_delta": 0.1, "patience": 1}),
        (TrainConfig, {"optimizer": "my_module:build", "optimizer_options": {"anything": 1}}),
        (TrainConfig, {"optimizer": "schedule_free_adamw", "schedule": "constant"}),
        (TrainConfig, {"schedule": "wsd", "schedule_options": {"decay_fraction": 0.9}}),
        (TrainConfig, {"schedule": "inverse_sqrt", "schedule_options": {"timescale": None}}),
        (EvaluationConfig, {"every": 1}),
        (HubConfig, {"push": True, "repo_id": "user/name"}),
        (RunConfig, {"name": "a-b_c.1", "seed": 2**31 - 1, "model": MODEL, "data": DATA, "task": TASK}),
        (RunConfig, {"model": MODEL, "data": DataConfig(dataset="glue"), "task": TASK}),
    ],
)
def test_the_edges_of_what_is_allowed_are_allowed(section: type, given: dict[str, Any]) -> None:
    made = section(**given)
    assert all(getattr(made, key) == value for key, value in given.items())


def test_configs_are_frozen_and_take_keywords_only() -> None:
    run = RunConfig(model=MODEL, data=DATA, task=TASK)
    with pytest.raises(FrozenInstanceError):
        run.train.epochs = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        TrainConfig(3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("text", "value"),
    [("2/3", Fraction(2, 3)), ("0/5", 0), ("6/6", 1), ("7/6", None), ("1/0", None), ("x", None), ("", None), ("1/2/3", None)],
)  # fmt: skip
def test_fractions_are_read_between_0_and_1(text: str, value: Fraction | None) -> None:
    assert parse_fraction(text) == value


def test_the_run_folder_is_the_name_under_output_dir() -> None:
    assert RunConfig(name="a", output_dir="some/where", model=MODEL, data=DATA, task=TASK).run_dir == Path(
        "some/where/a"
    )


# --- plain values ---------------------------------------------------------------------------------------------------


def test_as_dict_has_every_setting_and_plain_values_only() -> None:
    plain = to_dict(RunConfig(model=MODEL, data=DATA, task=TASK))
    flat = dict(flatten(plain))
    assert flat.keys() == TYPES.keys()
    assert flat["data.train"] == ["train.csv"]
    assert all(value in (None, {}) or isinstance(value, (str, int, float, bool, list)) for value in flat.values())


# --- no setting without a reader ------------------------------------------------------------------------------------

SECTION_OF = {f"{section.title()}Config": section for section in SECTIONS} | {"RunConfig": ""}
SECTION_OF |= {"Backbone": "", "Settings": "task"}  # the `adapter` of a Backbone is that section


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below hf_finetune ("" for __init__)."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "recipes":
            found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


class SettingReads(ast.NodeVisitor):
    """Dotted keys of the settings that a module reads off configs: `config.train.epochs`, names that stand for a section,
    calls of functions that return the task's Settings, and getattr. Annotations and assignments in the same function show
    what a name stands for."""

    def __init__(self, module: ast.Module) -> None:
        self.found: set[str] = set()
        self.patterns: set[str] = set()
        self.names: dict[str, str] = {}
        self.task_readers = {  # functions that return the settings of the task
            node.name
            for node in ast.walk(module)
            if isinstance(node, ast.FunctionDef)
            and isinstance(node.returns, ast.Name)
            and node.returns.id == "Settings"
        }
        self.strings = {n.value for n in ast.walk(module) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        self.visit(module)

    def section(self, node: ast.AST) -> str | None:
        """The section that an expression is ("" for the whole RunConfig), or None."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Call):
            is_reader = isinstance(node.func, ast.Name) and node.func.id in self.task_readers
            return "task" if is_reader or ast.unparse(node) == "cast(Settings, config.task)" else None
        if isinstance(node, ast.Attribute):
            if node.attr == "config":
                return ""
            return node.attr if node.attr in SECTIONS and self.section(node.value) == "" else None
        return None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.names)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            annotation = argument.annotation
            if isinstance(annotation, ast.Name) and annotation.id in SECTION_OF:
                self.names[argument.arg] = SECTION_OF[annotation.id]
            else:
                self.names.pop(argument.arg, None)
        self.generic_visit(node)
        self.names = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                section = self.section(value)
                if isinstance(name, ast.Name) and section is not None:
                    self.names[name.id] = section

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        section = self.section(node.value)
        if section is not None:
            self.found.add(f"{section}.{node.attr}".lstrip("."))

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id == "getattr"):
            return
        section, wanted = self.section(node.args[0]), node.args[1]
        if section is None:
            return
        if isinstance(wanted, ast.JoinedStr):
            parts = (re.escape(str(p.value)) if isinstance(p, ast.Constant) else r"\w+" for p in wanted.values)
            self.patterns.add(re.escape(f"{section}.".lstrip(".")) + "".join(parts))
        else:  # a name: any string that the module writes down
            self.found |= {f"{section}.{text}".lstrip(".") for text in self.strings}


@functools.cache
def read_module(name: str) -> SettingReads:
    """The settings that a module reads."""
    return SettingReads(modules()[name])


def without_reader(settings: Iterable[str], names: Iterable[str]) -> list[str]:
    """Those settings that none of these modules reads."""
    reads = [read_module(name) for name in names]
    found = set().union(*(read.found for read in reads))
    patterns = set().union(*(read.patterns for read in reads))
    return [key for key in settings if key not in found and not any(re.fullmatch(p, key) for p in patterns)]


OUTSIDE = tuple(name for name in modules() if not name.startswith("config"))


def task_modules(kind: str) -> list[str]:
    """The modules of a task's class and its bases."""
    names = {base.__module__.partition(".")[2] for base in load_task(kind).__mro__}
    return sorted(name for name in names if name.startswith("tasks."))


def own_keys(kind: str) -> list[str]:
    """The settings of one task."""
    return [key for key in get_setting_types(SETTINGS[kind]) if key.startswith("task.") and key != "task.kind"]


def test_every_setting_is_read_by_code() -> None:
    shared = [key for key in TYPES if not key.startswith("task.") or key == "task.kind"]
    assert len(shared) >= 45
    assert without_reader(shared, OUTSIDE) == []


@pytest.mark.parametrize("kind", TASKS)
def test_every_setting_of_a_task_is_read_by_its_own_code(kind: str) -> None:
    assert own_keys(kind)
    assert without_reader(own_keys(kind), task_modules(kind)) == []
    assert without_reader(["task.ema"], task_modules(kind)) == ["task.ema"]


def test_all_tasks_together_have_the_settings_that_are_documented() -> None:
    assert len({key for kind in TASKS for key in own_keys(kind)}) >= 24


@pytest.mark.parametrize("invented", ["train.ema", "hub.every", "momentum", "data.revision", "freeze.epochs"])
def test_the_guard_finds_a_setting_that_no_code_reads(invented: str) -> None:
    assert without_reader([*TYPES, invented], OUTSIDE) == [invented]
