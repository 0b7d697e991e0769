"""MTEB: its scores of a bank equal those computed from the vectors of the bank."""

import inspect
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, ndcg_score
from sklearn.metrics.pairwise import cosine_similarity, paired_cosine_distances

from prefixembed import MultiTaskEncoder, PrefixBank, PrefixEncoder, VectorCache
from prefixembed.interop import to_mteb, to_sentence_transformer
from prefixembed.tasks import load_docstring_task

CPU = {"dtype": "float32", "device": "cpu", "on_truncate": "ignore"}
# Warnings of MTEB itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:mteb"),
    pytest.mark.filterwarnings("ignore::FutureWarning:mteb"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def mteb():
    return pytest.importorskip("mteb", reason="needs MTEB: pip install 'prefixembed[mteb]'")


@pytest.fixture
def bank(tiny, random_prefix):
    prefixes = {
        f"p{seed}": random_prefix(tiny(), seed=seed, scale=0.5, ffn_length=2 * seed)
        for seed in range(2)
    }
    return PrefixBank(prefixes, weights=0.5, cache=None, **CPU)


@pytest.fixture(scope="module")
def texts():
    task = load_docstring_task("package")
    return list(task.X_train[:120]), [str(label) for label in task.y_train[:120]]


def evaluate(mteb, model, task):
    """Return the scores of the test split of a task."""
    results = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    (scores,) = results[0].scores["test"]
    return scores


def test_scores_of_semantic_similarity(mteb, bank, texts):
    from datasets import Dataset
    from mteb.mocks.mock_tasks import MockSTSTask

    first, second = texts[0][:60], texts[0][60:]
    gold = np.random.default_rng(0).random(60)

    class Similarity(MockSTSTask):
        def load_data(self, *args, **kwargs):
            columns = {"sentence1": first, "sentence2": second, "score": gold}
            self.dataset = {"test": Dataset.from_dict(columns)}
            self.data_loaded = True

    scores = evaluate(mteb, to_mteb(bank), Similarity())
    cosines = 1 - paired_cosine_distances(bank.transform(first), bank.transform(second))
    assert scores["main_score"] == pytest.approx(spearmanr(gold, cosines)[0], abs=1e-4)
    assert scores["pearson"] == pytest.approx(pearsonr(gold, cosines)[0], abs=1e-5)
    # The scores are those of this bank: the bare backbone has others.
    bare = bank.set_params(active=[]).transform(first + second)
    others = 1 - paired_cosine_distances(bare[:60], bare[60:])
    assert abs(scores["pearson"] - pearsonr(gold, others)[0]) > 1e-3


def test_scores_of_classification(mteb, bank, texts):
    from datasets import Dataset, DatasetDict
    from mteb.mocks.mock_tasks import MockClassificationTask

    X, y = texts[0], np.unique(texts[1], return_inverse=True)[1].tolist()

    class Classification(MockClassificationTask):
        def load_data(self, *args, **kwargs):
            train = Dataset.from_dict({"text": X[:80], "label": y[:80]})
            test = Dataset.from_dict({"text": X[80:], "label": y[80:]})
            self.dataset = DatasetDict({"train": train, "test": test})
            self.data_loaded = True

    scores = evaluate(mteb, to_mteb(bank), Classification())
    train, test = bank.transform(X[:80]), bank.transform(X[80:])
    order, expected = list(range(80)), []
    for _ in range(10):  # samples of 8 texts per class
        np.random.RandomState(42).shuffle(order)
        drawn = [k for label in set(y) for k in [i for i in order if y[i] == label][:8]]
        drawn.sort(key=order.index)
        head = LogisticRegression(max_iter=100).fit(train[drawn], np.array(y)[drawn])
        expected.append(accuracy_score(y[80:], head.predict(test)))
    assert len(set(expected)) > 1
    assert scores["main_score"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_scores_of_retrieval(mteb, bank, texts):
    from datasets import Dataset
    from mteb.mocks.mock_tasks import MockRetrievalTask

    queries, corpus = texts[0][:20], texts[0][20:]
    relevant = np.array([[a == b for b in texts[1][20:]] for a in texts[1][:20]])

    class Retrieval(MockRetrievalTask):
        def load_data(self, *args, **kwargs):
            split = {
                "queries": Dataset.from_list(
                    [{"id": f"q{k}", "text": text} for k, text in enumerate(queries)]
                ),
                "corpus": Dataset.from_list(
                    [{"id": f"d{k}", "text": text} for k, text in enumerate(corpus)]
                ),
                "relevant_docs": {
                    f"q{q}": {f"d{d}": 1 for d in np.flatnonzero(row)}
                    for q, row in enumerate(relevant)
                },
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split, "val": split}}
            self.data_loaded = True

    scores = evaluate(mteb, to_mteb(bank), Retrieval())
    cosines = cosine_similarity(bank.transform(queries), bank.transform(corpus))
    expected = ndcg_score(relevant, cosines, k=10)
    assert 0 < expected < 1
    assert scores["main_score"] == pytest.approx(expected, abs=2e-5)  # MTEB rounds to five digits


def test_every_kind_of_task_scores_as_with_sentence_transformers(mteb, bank):
    from mteb.mocks import mock_tasks

    tasks = [task for task in vars(mock_tasks).values() if inspect.isclass(task)]
    tasks = [task() for task in tasks if task.metadata.modalities == ["text"]]
    assert {"Clustering", "BitextMining", "Reranking"} < {task.metadata.type for task in tasks}
    ours, theirs = (
        [
            result.get_score()
            for result in mteb.evaluate(model, tasks, cache=None, show_progress_bar=False)
        ]
        for model in (to_mteb(bank), to_sentence_transformer(bank))
    )
    assert len(ours) == len(tasks)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
def test_every_estimator_can_be_evaluated(mteb, tiny, bank):
    from mteb.mocks.mock_tasks import MockSTSTask
    from mteb.models import EncoderProtocol

    X, y = ["what a film", "a bore"] * 8, [1, 0] * 8
    encoder = PrefixEncoder(tiny(), max_steps=1, random_state=0, **CPU).fit(X, y)
    rival = MultiTaskEncoder(tiny(), max_steps=1, random_state=0, **CPU).fit({"a": (X, y)})
    revisions = set()
    for estimator in (bank, encoder, rival, bank.without("p0")):
        model = to_mteb(estimator, "me/model")
        assert isinstance(model, EncoderProtocol)
        assert model.mteb_model_meta.name == "me/model"
        assert model.mteb_model_meta.embed_dim == 32
        revisions.add(model.mteb_model_meta.revision)
        batches = [{"text": X[:3]}, {"text": X[3:]}]
        task = {"task_metadata": MockSTSTask.metadata, "hf_split": "test", "hf_subset": "default"}
        found = model.encode(batches, batch_size=3, show_progress_bar=True, **task)
        np.testing.assert_array_equal(found, estimator.transform(X))
    assert len(revisions) == 4


def test_changes_to_the_bank_do_not_affect_the_model(mteb, bank):
    from mteb.mocks.mock_tasks import MockSTSTask

    model = to_mteb(bank)
    before = bank.transform(["a"])
    bank.remove("p0")
    task = {"task_metadata": MockSTSTask.metadata, "hf_split": "test", "hf_subset": "default"}
    np.testing.assert_array_equal(model.encode([{"text": ["a"]}], **task), before)
    assert model.mteb_model_meta.revision != to_mteb(bank).mteb_model_meta.revision
    with pytest.raises(ValueError, match="encode_kwargs has .'precision'."):
        model.encode([{"text": ["a"]}], precision="int8", **task)
    with pytest.raises(ValueError, match="a task of texts is needed, got batches of .'image'."):
        model.encode([{"image": ["a"]}], **task)


def test_texts_that_tasks_share_are_encoded_once(mteb, bank, encoded):
    from mteb.mocks.mock_tasks import MockClassificationTask, MockSTSTask

    model = to_mteb(bank.set_params(cache=VectorCache()))
    evaluate(mteb, model, MockSTSTask())
    evaluate(mteb, model, MockClassificationTask())
    assert len(encoded) == len(set(encoded)) > 4


def test_example_prints_a_table(mteb, bank, tmp_path, monkeypatch, capsys):
    from mteb.mocks.mock_tasks import MockRetrievalTask, MockSTSTask

    bank.save(tmp_path / "bank")
    tasks = [MockRetrievalTask(), MockSTSTask()]
    monkeypatch.setattr(mteb, "get_tasks", lambda **options: tasks)
    path = Path(__file__).parents[2] / "examples" / "judge_by_mteb.py"
    main = runpy.run_path(str(path))["main"]
    command = [str(tmp_path / "bank"), "--dtype", "float32", "--device", "cpu"]
    main([*command, "--out", str(tmp_path / "results")])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table[0] == "|  | MockRetrievalTask | MockSTSTask | average |"
    scores = [float(cell) for cell in table[3].split("|")[2:-1]]
    assert [line.split(" |")[0] for line in table[2:]] == [
        "| bare backbone", "| concat", "| concat, weights 1/n", "| mean"
    ]  # fmt: skip
    model = to_mteb(bank.set_params(weights=None))
    expected = [100 * evaluate(mteb, model, task)["main_score"] for task in tasks]
    assert scores[:2] == pytest.approx(expected, abs=0.06)
    assert scores[2] == pytest.approx(np.mean(expected), abs=0.06)


@pytest.mark.parametrize(
    ("params", "name", "message"),
    [
        ({}, "bank", "name must be 'organisation/model', got 'bank'"),
        ({"output": "words"}, "a/b", "got output='words'"),
        ({"output_dtype": "int8"}, "a/b", "output_dtype='int8'"),
    ],
)
def test_wrong_names_and_outputs_are_refused(mteb, bank, params, name, message):
    with pytest.raises(ValueError, match=message):
        to_mteb(bank.set_params(**params), name)


def test_without_mteb_the_error_names_the_extra(bank, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", None)
    with pytest.raises(ImportError, match=r"pip install 'prefixembed\[mteb\]'"):
        to_mteb(bank)
