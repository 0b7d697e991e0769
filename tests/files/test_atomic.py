"""Files that are written as a whole, and symbolic links on the way to them."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefixembed import PrefixBank, VectorCache
from prefixembed._files.atomic import make_folder, write_atomically
from prefixembed._fit.checkpoints import Checkpoints, State
from prefixembed._fit.fine_tuning import write_backbone
from prefixembed.corpus.recipe import RECIPE, check_recipe
from prefixembed.interop import save_peft

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    hops=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=4),
    exists=st.booleans(),
    through_folder=st.booleans(),
)
def test_what_links_lead_to_is_written_and_the_links_stay(
    tmp_path_factory, hops, exists, through_folder
):
    root = tmp_path_factory.mktemp("links")
    folders = [root / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    target = root / "a" / "target"
    if exists:
        target.write_bytes(b"old")
    path, links = target, []
    for k, (folder, is_relative) in enumerate(hops):
        link = folders[folder] / f"link{k}"
        link.symlink_to(os.path.relpath(path, link.parent) if is_relative else path)
        links.append((link, os.readlink(link)))
        path = link
    if through_folder:
        (root / "by").symlink_to(path.parent)
        path = root / "by" / path.name
    beside = []

    def fill(temporary):
        # On another file system than the target's, it could not replace the target.
        beside.append(Path(temporary).parent)
        Path(temporary).write_bytes(b"new")

    write_atomically(path, fill)
    assert beside == [target.parent]
    assert target.read_bytes() == b"new" and not target.is_symlink()
    assert [(link, os.readlink(link)) for link, _ in links] == links
    assert sorted(p.name for p in root.rglob("*") if not p.is_symlink()) == sorted(
        ["a", "b", "c", "target"]
    )


def test_links_in_a_circle_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for write_it in (lambda path: write_atomically(path, Path.touch), make_folder, VectorCache):
        with pytest.raises(OSError, match=str(tmp_path / "a")):
            write_it(tmp_path / "a")
    assert os.readlink(tmp_path / "a") == "b"


def test_error_behind_a_link_leaves_the_old_file(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "link", lambda temporary: 1 / 0)
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]
    assert (tmp_path / "link").read_bytes() == b"old"


def save_prefix(prefix, place):
    prefix.save(place / "file")


def save_bank(prefix, place):
    PrefixBank({"a": prefix}).save(place)


def save_checkpoint(prefix, place):
    Checkpoints(place, "run").save(1, State({}, {}))


def fill_cache(prefix, place):
    VectorCache(place / "file").put([b"k"], np.zeros((1, 2), np.float32), np.zeros(1, bool))


WRITERS = {
    "prefix": save_prefix,
    "bank": save_bank,
    "PEFT": lambda prefix, place: save_peft(prefix, place),
    "backbone": lambda prefix, place: write_backbone({"config.json": b"{}"}, place),
    "corpus": lambda prefix, place: check_recipe(make_folder(place), {"shard_size": 1}),
    "checkpoint": save_checkpoint,
    "cache": fill_cache,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("exists", [True, False])
def test_each_kind_of_file_and_folder_may_be_a_link(tiny, random_prefix, tmp_path, kind, exists):
    prefix = random_prefix(tiny(), length=2, first_position=2, max_length=40)
    place, target = tmp_path / "place", tmp_path / "elsewhere" / "target"
    if kind in ("prefix", "cache"):  # one file
        place.mkdir()
        target.parent.mkdir()
        link = place / "file"
        if exists:
            target.touch()
    else:
        link = place
        if exists:
            target.mkdir(parents=True)
    link.symlink_to(target)
    WRITERS[kind](prefix, place)
    assert link.is_symlink() and target.exists()
    if target.is_dir():
        files = {path.name for path in target.rglob("*") if path.is_file()}
        expected = {"bank": "bank.json", "PEFT": "adapter_config.json", "corpus": RECIPE}
        assert expected.get(kind, next(iter(files))) in files
        WRITERS[kind](prefix, place)  # over what is there
        assert files == {path.name for path in target.rglob("*") if path.is_file()}
    else:
        assert target.stat().st_size
        left = {path.name for path in place.iterdir()}
        assert left == {"file"}, "what belongs to the file lies beside it"
