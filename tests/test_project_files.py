"""Files that the project's hosts and tools read agree with the project."""

import re
from pathlib import Path

import pytest
import yaml

import prefixembed

ROOT = Path(__file__).parents[1]
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
FORMS = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_citation_is_of_this_version_and_cites_the_paper():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == prefixembed.__version__
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    paper = citation["references"][0]["url"]
    assert paper in readme


def test_hooks_run_what_ci_runs():
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"] for hook in repository["hooks"]]
    checks = re.findall(
        r"^(\.venv/bin/(?:ruff|mypy|lint-imports|vulture)[^&\\\n]*)", CI, flags=re.M
    )
    scripts = [check for check in checks if "--cache-dir" in check]
    assert len(scripts) == 1  # the types of examples take too long for a hook
    assert [check.strip() for check in checks if check not in scripts] == entries


def test_workflow_runs_ci_on_each_version():
    (job,) = read_yaml(".github/workflows/ci.yml")["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'python_requires=">={job["strategy"]["matrix"]["python"][0]}"' in setup


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_complete(path):
    form = read_yaml(path)
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_bug_form_asks_for_versions():
    (field,) = [
        f for f in read_yaml(FORMS[0].with_name("bug.yml"))["body"] if f.get("id") == "versions"
    ]
    assert "prefixembed.show_versions()" in field["attributes"]["description"]
    assert hasattr(prefixembed, "show_versions")
