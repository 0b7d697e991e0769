"""Tests end: no process is waited for without a limit."""

import ast
from pathlib import Path

import pytest
from helpers import kill, start_python, wait_until

FILES = sorted(Path(__file__).parent.rglob("*.py"))
BY_HAND = ["fuzz.py", "soak.py"]


def calls(path):
    """Yield the name, the keywords and the line of each call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg for keyword in node.keywords}
            yield ast.unparse(node.func), keywords, node.lineno


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_processes_have_a_time_limit(path):
    if path.name in BY_HAND:
        pytest.skip("it is not a test")
    for name, keywords, line in calls(path):
        if name in ("subprocess.run", "subprocess.check_call", "subprocess.check_output"):
            assert "timeout" in keywords, f"{path.name}:{line}"
        elif name == "subprocess.Popen":
            assert path.name == "helpers.py", f"{path.name}:{line}: use start_python"


def test_a_process_that_hangs_is_killed_with_its_children():
    code = """if True:
        import subprocess, sys, time
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(command)  # inherits the pipes of its parent
        time.sleep(600)
    """
    process = start_python(code, timeout=1)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode < 0
    kill(process)  # changes nothing


def test_what_does_not_happen_is_an_error():
    with pytest.raises(AssertionError, match="nothing happened"):
        wait_until(lambda: False, timeout=0.01)
