import contextlib
import importlib
import io
import re
from pathlib import Path

import joblib
import pytest
from joblib.externals.loky import get_reusable_executor

ROOT = Path(__file__).parents[1]
FOLDERS = ["docs", "docs/evidence", "docs/guide", "docs/howto"]
PAGES = [f"{folder}/{path.name}" for folder in FOLDERS for path in (ROOT / folder).glob("*.md")]
PAGES = ["README.md", *sorted(PAGES)]


# A block of Python, and the block of text after it, if any: what the Python block prints.
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?", flags=re.S | re.M)


def snippets(page):
    """Return the Python blocks of a page, each with the output that the page shows, or ""."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def run_snippets(page, names):
    """Run the Python blocks of a page in order, and compare what they print."""
    for snippet, shown in snippets(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(snippet, page, "exec"), names)
        if shown:
            assert printed.getvalue() == shown


# The fits on these pages are small, so the loss may stay at chance. PEFT reads an attribute that
# BERT does not have.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the training loss is stuck", "ignore:`is_gradient_checkpointing:FutureWarning"
)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Work in a temporary folder, with new joblib workers, which start in it."""
    monkeypatch.chdir(tmp_path)
    get_reusable_executor().shutdown(wait=True)


def test_readme_runs_in_order(elsewhere):
    names = {}
    run_snippets("README.md", names)
    assert names["pipe"].steps[0][1] is names["bank"]
    assert list(names["bank"]) == ["sentiment", "answers"]
    assert joblib.load("model.joblib").predict(["win a free prize"]) == [1]
    assert Path("sentiment.safetensors").stat().st_size < 350_000


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if snippets(page)])
def test_snippets_run_in_order(page, elsewhere):
    run_snippets(page, {})


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        generated = "auto_examples/" in link  # checked by Sphinx
        assert generated or ((ROOT / page).parent / link).exists(), link


def test_files_in_readme_commands_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"<!-- (?:quickstart|tests) -->\n```sh\n(.*)\n```", text)
    assert len(commands) == 2
    for command in commands:
        assert "-c constraints.txt" in command and (ROOT / "constraints.txt").exists()
    assert (ROOT / re.search(r"python (examples/\S+)", commands[0])[1]).exists()


FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\$)\$([^$\n]+)\$(?!\$)", flags=re.S)


def test_formulas_become_mathml(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    to_mathml = importlib.import_module("mathml").to_mathml
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    formulas = FORMULA.findall(text)
    assert len(formulas) > 50
    for block, inline in formulas:
        assert to_mathml(block or inline).startswith("<math")
    with pytest.raises(ValueError, match="unknowncommand"):
        to_mathml(r"\unknowncommand{x}")


def test_formulas_are_rendered_without_a_network():
    assert 'html_math_renderer = "mathml"' in (ROOT / "docs" / "conf.py").read_text("utf-8")
