"""pyproject.toml, the two files of versions, the makefile and CONTRIBUTING.md say the same."""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Their lowest versions say nothing of the package: lowest.txt has them as constraints.txt does
TOOLS = {"pytest", "pytest-cov", "pytest-socket", "pytest-timeout", "pytest-xdist", "hypothesis", "pre-commit", "ruff",
         "mypy", "types-pyyaml", "ipykernel", "nbclient"}  # fmt: skip


def pinned(name: str) -> dict[str, Version]:
    """The versions of a file of exact versions, by package."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    found = {canonicalize_name(package): Version(version) for package, version in pairs}
    assert len(found) == len(lines), f"{name} names a package twice"
    return found


def requirements() -> list[Requirement]:
    """Every direct dependency that Linux installs, those of the extras too, but for our own extras."""
    texts = [*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)]
    found = [Requirement(text) for text in texts]
    on_linux = {"platform_system": "Linux", "sys_platform": "linux", "os_name": "posix"}
    return [one for one in found if one.name != PROJECT["name"] and (not one.marker or one.marker.evaluate(on_linux))]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_a_lower_bound_is_the_version_that_is_tested_as_the_lowest(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    lowest = pinned("lowest.txt")[name]
    newest = pinned("constraints.txt")[name]
    assert lowest <= newest
    if name in TOOLS:
        assert lowest == newest
        return
    bounds = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "==")]
    assert bounds == [lowest]


def test_lowest_versions_are_of_direct_dependencies_only() -> None:
    direct = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert pinned("lowest.txt").keys() == direct


def test_bounds_exclude_the_versions_with_known_advisories() -> None:
    """Those of SECURITY.md."""
    bounds = {one.name: one.specifier for one in requirements()}
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w[\w-]*) \| (>=\S+) \| (.*) \|$", page, flags=re.M)
    assert len(rows) > 5
    for name, bound, advisories in rows:
        assert str(bounds[name]) == bound
        fixed = re.findall(r"CVE-\d{4}-\d+[^(]*\(fixed in ([\d.]+(?:rc\d)?)", advisories)
        assert fixed
        for version in fixed:
            assert Version(version) <= Version(bound.removeprefix(">="))


def test_every_extra_that_a_user_can_want_is_in_all() -> None:
    (everything,) = EXTRAS["all"]
    assert Requirement(everything).extras == EXTRAS.keys() - {"all", "test"}
    assert f"{PROJECT['name']}[all]" in EXTRAS["test"]


def test_contributing_names_targets_that_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    named |= set(re.findall(r"^# make ([a-z-]+)|; make ([a-z-]+) runs", makefile, flags=re.M)[0]) - {""}
    assert len(named) > 8
    assert not [name for name in named if not re.search(rf"^{name}:", makefile, flags=re.M)]


def test_newer_versions_are_found_and_torch_is_left_to_a_person(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("newest", ROOT / ".ci" / "newest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    index = {"torch": "3.0.0", "accelerate": "1.15.0", "tqdm": "5.0.0"}
    monkeypatch.setattr(module, "newest", index.__getitem__)
    path = tmp_path / "versions.txt"
    path.write_text("# What CI tests\ntorch==2.13.0\naccelerate==1.15.0\ntqdm==4.70.1\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["newest.py", "--write", str(path)])
    assert module.main() == 0
    assert "2 of 3 have a newer version" in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == "# What CI tests\ntorch==2.13.0\naccelerate==1.15.0\ntqdm==5.0.0\n"
