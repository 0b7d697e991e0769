import re
from pathlib import Path

import joblib
import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def run_snippets(page, names):
    """Run the Python blocks of a page in order; return how many there are."""
    text = (ROOT / page).read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    for snippet in snippets:
        exec(compile(snippet, page, "exec"), names)
    return len(snippets)


# Pages show small fits, which may well leave the loss at chance.
pytestmark = pytest.mark.filterwarnings("ignore:the training loss is stuck")


def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    assert run_snippets("README.md", names) == 3
    assert names["sentiment"].predict(["what a joy"]) == ["good"]
    assert list(names["bank"]) == ["sentiment", "answers"]
    assert joblib.load("model.joblib").predict(["win a free prize"]) == [1]
    assert Path("sentiment.safetensors").stat().st_size < 150_000


@pytest.mark.parametrize("page", ["docs/quickstart.md", "docs/guide.md"])
def test_snippets_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_snippets(page, {}) > 5


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert ((ROOT / page).parent / link).exists(), link


def test_readme_commands_name_files_that_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"<!-- (?:quickstart|tests) -->\n```sh\n(.*)\n```", text)
    assert len(commands) == 2
    for command in commands:
        assert "-c constraints.txt" in command and (ROOT / "constraints.txt").exists()
    assert (ROOT / re.search(r"python (examples/\S+)", commands[0])[1]).exists()
