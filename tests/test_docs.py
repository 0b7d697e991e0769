import re
from pathlib import Path

import joblib
import pytest
from joblib.externals.loky import get_reusable_executor

ROOT = Path(__file__).parents[1]
FOLDERS = ["docs", "docs/guide", "docs/howto"]
PAGES = [f"{folder}/{path.name}" for folder in FOLDERS for path in (ROOT / folder).glob("*.md")]
PAGES = ["README.md", *sorted(PAGES)]


def snippets(page):
    """Give the Python blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


def run_snippets(page, names):
    """Run the Python blocks of a page in order."""
    for snippet in snippets(page):
        exec(compile(snippet, page, "exec"), names)


# Pages show small fits, which may well leave the loss at chance; PEFT asks what BERT lacks.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the training loss is stuck", "ignore:`is_gradient_checkpointing:FutureWarning"
)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Work in a folder of its own, and so do workers: those from before are in another one."""
    monkeypatch.chdir(tmp_path)
    get_reusable_executor().shutdown(wait=True)


def test_readme(elsewhere):
    names = {}
    run_snippets("README.md", names)
    assert names["sentiment"].predict(["what a joy"]) == ["good"]
    assert list(names["bank"]) == ["sentiment", "answers"]
    assert joblib.load("model.joblib").predict(["win a free prize"]) == [1]
    assert Path("sentiment.safetensors").stat().st_size < 150_000


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if snippets(page)])
def test_snippets_run_in_order(page, elsewhere):
    run_snippets(page, {})


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        generated = "auto_examples/" in link  # Sphinx checks it
        assert generated or ((ROOT / page).parent / link).exists(), link


def test_readme_commands_name_files_that_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"<!-- (?:quickstart|tests) -->\n```sh\n(.*)\n```", text)
    assert len(commands) == 2
    for command in commands:
        assert "-c constraints.txt" in command and (ROOT / "constraints.txt").exists()
    assert (ROOT / re.search(r"python (examples/\S+)", commands[0])[1]).exists()
