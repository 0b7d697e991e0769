"""Training of a copy of a whole backbone, and its files."""

import numpy as np
import pytest
import torch
from helpers import labels, ratings, tags

from prefixembed import load_backbone
from prefixembed._fit import fine_tuning
from prefixembed._fit.examples import prepare, read_rows
from prefixembed._fit.fine_tuning import FineTuner, pack_backbone, write_backbone
from prefixembed._fit.learning import train
from prefixembed._fit.optimization import Recipe
from prefixembed.reading import Reading

RECIPE = Recipe(
    max_steps=15, eval_steps=15, batch_size=8, learning_rate=1e-3, weight_decay=0.0, patience=None
)
READING = Reading("cls", 32, pooled_layers=2, pairs="apart", prompt="query: ")


@pytest.fixture
def backbone(tiny):
    return load_backbone(tiny(), dtype="float32", device="cpu")


def make_tuner(backbone, reading=READING):
    texts, present = labels(40)
    rng = np.random.default_rng(0)
    rows = {
        "good": read_rows("classification", texts, present[:, 0]),
        "stars": read_rows("regression", *ratings(40)),
    }
    if not reading.prompt:
        rows["words"] = read_rows("token_classification", *tags(40))
    tasks = {name: prepare(some, backbone, reading, 0.1, rng) for name, some in rows.items()}
    return FineTuner(
        backbone,
        tasks,
        reading,
        learning_rate=RECIPE.learning_rate,
        head_learning_rate=1e-2,
        mixed_precision=False,
        rng=rng,
    )


def learn(tuner):
    rng = np.random.default_rng(0)
    return train(tuner.tasks, tuner, RECIPE, batch_tokens=1000, rng=rng)


def is_frozen(model):
    return not any(module.training for module in model.modules()) and not any(
        parameter.requires_grad for parameter in model.parameters()
    )


@pytest.mark.parametrize("error", [None, RuntimeError("lost"), KeyboardInterrupt()])
def test_copy_is_trained_and_left_frozen_even_after_an_error(backbone, monkeypatch, error):
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    tuner = make_tuner(backbone)
    assert is_frozen(tuner.backbone.model)
    real, calls = fine_tuning.encode_batch, []

    def encode(*args):
        calls.append(tuner.backbone.model.training)
        if error is not None and len(calls) == 6:
            raise error
        return real(*args)

    monkeypatch.setattr(fine_tuning, "encode_batch", encode)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    outcome = learn(tuner)
    assert outcome.error is error
    assert torch.equal(torch.rand(2), expected)  # the seed of dropout is not left behind
    assert all(calls) and is_frozen(tuner.backbone.model)
    weights = tuner.backbone.model.state_dict()
    assert any(not torch.equal(v, weights[k]) for k, v in before.items())
    after = backbone.model.state_dict()
    assert is_frozen(backbone.model)
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_learned_heads_read_the_vectors_of_their_task(backbone):
    tuner = make_tuner(backbone, Reading("mean", 32))
    learn(tuner).reraise(None)
    heads = tuner.heads_learned()
    assert [head.objective for head in heads.values()] == [
        "classification", "regression", "token_classification",
    ]  # fmt: skip
    for (name, data), own in zip(tuner.tasks.items(), tuner.heads, strict=True):
        logits = own(torch.from_numpy(tuner.embed(data.tokens, 1000))).detach().numpy()
        logits = logits * data.targets.scale + data.targets.mean
        vectors = tuner.embed(data.tokens, 1000)
        np.testing.assert_allclose(heads[name].decision_function(vectors), logits, rtol=1e-4)


def test_files_make_a_backbone_that_records_its_reading(backbone, tmp_path):
    tuner = make_tuner(backbone)
    learn(tuner).reraise(None)
    write_backbone(pack_backbone(tuner.backbone, READING), tmp_path / "new" / "folder")
    loaded = load_backbone(tmp_path / "new" / "folder", dtype="float32", device="cpu")
    assert loaded.reading == READING
    assert loaded.fingerprint != backbone.fingerprint
    weights = tuner.backbone.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in loaded.model.state_dict().items())
    assert not list(tmp_path.rglob(".*"))


def test_configuration_is_written_last(backbone, tmp_path, monkeypatch):
    files = pack_backbone(backbone, READING)
    real, written = fine_tuning.write_atomically, []

    def watch(target, write):
        written.append(target.relative_to(tmp_path).as_posix())
        real(target, write)

    monkeypatch.setattr(fine_tuning, "write_atomically", watch)
    write_backbone(files, tmp_path)
    assert set(written) == set(files)
    assert written[-1] == "config.json"
