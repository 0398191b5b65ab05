"""Each fault at each call of everything that writes, and that there is nothing else that writes."""

import ast
from pathlib import Path

import pytest
from support.fault_attack import Attack, Place, attack_writer
from support.faulty_disk import Disk
from support.writers import find_writers, list_writers

from faults import attacks_cache, attacks_export, attacks_run
from faults.tools import Tools
from hf_finetune.cache import decision
from hf_finetune.system import locks


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """What the attacks write."""
    return Tools(tmp_path_factory.mktemp("tools"))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock waits long."""
    for name, seconds in (("STALE_SECONDS", 0.2), ("SETTLE_SECONDS", 0.01), ("POLL_SECONDS", 0.01)):
        monkeypatch.setattr(locks, name, seconds)


def list_attacks(tools: Tools) -> list[Attack]:
    """All attacks."""
    return [attack for module in (attacks_run, attacks_cache, attacks_export) for attack in module.list_attacks(tools)]


NAMES = [attack.name for attack in list_attacks(Tools(Path()))]


def find_attack(name: str, tools: Tools) -> Attack:
    return next(attack for attack in list_attacks(tools) if attack.name == name)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_old_or_new_whatever_fails(name: str, tools: Tools, tmp_path: Path) -> None:
    count, failures, tools.reached[name] = attack_writer(find_attack(name, tools), tmp_path)
    assert not failures, "\n".join([f"{len(failures)} failures of {count} faults", *failures])


@pytest.mark.parametrize("fault", ["EIO", "ESTALE for good"])
def test_a_cache_whose_disk_fails_is_no_reason_to_end_a_run(fault: str, tmp_path: Path) -> None:
    entry = attacks_cache.make_entry(tmp_path)
    entry.root.mkdir()
    assert decision.find_disk_problem(entry) is None
    for number in range(2):
        with Disk(tmp_path, number, fault).at_work():
            problem = decision.find_disk_problem(entry)
        assert (problem is None) == (number == 0 and fault == "EIO")  # the first call asks for a complete entry
        assert problem is None or "cannot be read: " in problem


# Functions that no attack reaches, and why
REASONS = {
    "cache.check:check_once.keep": "is written by write_atomically(); if it cannot be, the outputs are compared again",
    "cache.speeds:write_speeds": "is written by write_atomically(); if it cannot be, the speed is measured again",
    "cache.capture:complete_entry": "removes a partial entry; what is left of it is computed again",
    "analysis.report:write_report": "is written by write_atomically()",
    "choosing.advise:advise": "is written by write_atomically()",
    "choosing.auto:choose_settings": "has a temporary folder alone, whose end is not watched",
    "choosing.dry_run:dry_run": "has a temporary folder alone, whose end is not watched",
    "choosing.label_errors:report_errors": "is written by write_atomically()",
    "choosing.learning_curve:run_learning_curve": "is written by write_atomically()",
    "choosing.measurement:Measurement.time_saving": "has a temporary folder alone, whose end is not watched",
    "choosing.trials:write_journal": "is written by write_atomically()",
    "choosing.trials:write_log": "is what a trial prints; logging reports what cannot be written",
    "export.prediction_formats:write_delimited": "writes to the file that replace_atomically() has opened",
    "export.prediction_formats:write_parquet": "writes to the file that replace_atomically() has opened",
    "export.start:write_merged.write": "is written by write_folder(), as write_model() is",
    "model.conversions:convert": "writes into a folder that make_folder() renames when it is whole",
    "model.conversions:make_folder": "makes a folder again that is not whole or damaged (tests/model/test_conversions.py)",
    "model.conversions:open_source": "changes the time of a file alone",
    "run.scored:write_scored": "is written by replace_atomically()",
    "system.output:RawOutput.write": "is standard output (tests/test_output.py)",
    "system.output:print_at_once": "is standard error (tests/test_output.py)",
    "verify:verify_resume": "has a temporary folder alone, whose end is not watched",
}


def test_every_function_that_writes_is_attacked(tools: Tools, tmp_path: Path) -> None:
    for number, attack in enumerate(list_attacks(tools)):
        if attack.name not in tools.reached:
            tools.reached[attack.name] = Place(tmp_path / str(number), attack).observe().writers
    writers = list_writers()
    assert len(writers) > 40
    missing = writers - set().union(*tools.reached.values())
    assert not missing - REASONS.keys(), f"attack {sorted(missing - REASONS.keys())}, or give a reason"
    assert not REASONS.keys() - missing, f"{sorted(REASONS.keys() - missing)} need no reason"


def test_a_function_that_writes_is_found() -> None:
    """The guard fails when it should."""
    code = """
class A:
    def one(self): self.path.open("ab")
    def two(self): self.path.open("rb")
def three():
    def inner(): os.open(path, os.O_RDWR)
    text.replace("a", "b")
def four(): return [path.replace(target) for path in paths]
def five(): os.write(1, b"")
def six(): file.write(b"")
"""
    assert set(find_writers(ast.parse(code), "m")) == {"m:A.one", "m:three.inner", "m:four", "m:five"}
