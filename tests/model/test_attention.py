import numpy as np
import pytest
import torch
from conftest import DECODERS, FAMILIES, PAIRS, RELATIVE, TEXTS
from reference import bert_hidden, naive_attention, naive_deberta, naive_mpnet
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel
from transformers.masking_utils import eager_mask
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from prefixembed import load_backbone
from prefixembed._embed.batching import Batch, pad_batch, tokenize
from prefixembed._model import attention as _attention
from prefixembed._model.attention import combined_attention, widen_mask
from prefixembed._model.hook import attending
from prefixembed.prefix import concatenate

WEIGHTS = [1.0, 0.5, 3.0]


@pytest.fixture(autouse=True, params=["prefixes beside each text", "prefixes once a batch"])
def either_way(request, monkeypatch):
    """Short combined prefixes and long ones take different ways to the same attention."""
    first = 1 if request.param == "prefixes once a batch" else 10**9
    monkeypatch.setattr(_attention, "_SHARED_FROM", first)


def attention_of(prefixes, weights=None, combine="concat"):
    parts = [torch.tensor(prefix.keys_values) for prefix in prefixes]
    return combined_attention(parts, weights or [1.0] * len(parts), combine)


@torch.no_grad()
def hidden_of(backbone, texts, prefix=None):
    tokens = tokenize(backbone.tokenizer(64), texts)
    hidden, _ = backbone.forward(pad_batch(tokens, np.arange(len(texts)), backbone.pad_id), prefix)
    return tokens, hidden.float().numpy()


@pytest.mark.parametrize("combine", ["concat", "mean"])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], WEIGHTS])
def test_equals_bert_in_plain_algebra(tiny, random_prefix, combine, weights):
    prefixes = [random_prefix(tiny("bert"), length=k, seed=k) for k in (1, 3, 5)]
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    for texts in (TEXTS, PAIRS):
        tokens, hidden = hidden_of(backbone, texts, attention_of(prefixes, weights, combine))
        for k, (ids, types) in enumerate(zip(tokens.ids, tokens.type_ids, strict=True)):
            expected = bert_hidden(backbone.model, ids, types, prefixes, weights, combine)
            np.testing.assert_allclose(hidden[k, : len(ids)], expected, atol=2e-5)


@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_equals_plain_algebra_on_the_real_backbone(minilm, random_prefix, combine):
    prefixes = [random_prefix(minilm, seed=k, scale=0.5) for k in range(3)]
    backbone = load_backbone(minilm, dtype="float32", device="cpu")
    texts = ["A fine film.", "Not one I would see again, all in all."]
    tokens, hidden = hidden_of(backbone, texts, attention_of(prefixes, WEIGHTS, combine))
    for k, (ids, types) in enumerate(zip(tokens.ids, tokens.type_ids, strict=True)):
        expected = bert_hidden(backbone.model, ids, types, prefixes, WEIGHTS, combine)
        np.testing.assert_allclose(hidden[k, : len(ids)], expected, atol=5e-5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in RELATIVE])
@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_equals_eager_reference_for_each_family(tiny, random_prefix, family, combine):
    AttentionInterface.register("naive_reference", naive_attention)
    AttentionMaskInterface.register("naive_reference", eager_mask)
    prefixes = [random_prefix(tiny(family), length=k, seed=k) for k in (1, 4)]
    backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
    naive = AutoModel.from_pretrained(
        tiny(family), attn_implementation="naive_reference", dtype=torch.float32
    ).eval()
    tokens = tokenize(backbone.tokenizer(64), TEXTS)
    batch = pad_batch(tokens, np.arange(len(TEXTS)), backbone.pad_id)
    for weights in ([1.0, 1.0], [0.5, 2.0]):
        with torch.no_grad():
            hidden, mask = backbone.forward(batch, attention_of(prefixes, weights, combine))
            expected = naive(
                input_ids=torch.from_numpy(batch.ids),
                attention_mask=torch.from_numpy(batch.mask),
                naive=(prefixes, weights, combine, []),
            ).last_hidden_state
        np.testing.assert_allclose(hidden[mask].numpy(), expected[mask].numpy(), atol=2e-4)


@pytest.mark.parametrize("family", RELATIVE)
@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_equals_naive_attention_with_terms_of_distance(
    tiny, random_prefix, family, combine, monkeypatch
):
    attention, naive_of = {
        "deberta-v2": (DisentangledSelfAttention, naive_deberta),
        "mpnet": (MPNetSelfAttention, naive_mpnet),
    }[family]
    prefixes = [random_prefix(tiny(family), length=k, seed=k) for k in (1, 4)]
    backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
    eager = AutoModel.from_pretrained(
        tiny(family), attn_implementation="eager", dtype=torch.float32
    ).eval()
    for weights in ([1.0, 1.0], [0.5, 2.0]):
        tokens, hidden = hidden_of(backbone, TEXTS, attention_of(prefixes, weights, combine))
        for k, ids in enumerate(tokens.ids):
            with monkeypatch.context() as patch, torch.no_grad():
                patch.setattr(attention, "forward", naive_of((prefixes, weights, combine, [])))
                expected = eager(torch.from_numpy(ids)[None].long()).last_hidden_state[0]
            np.testing.assert_allclose(hidden[k, : len(ids)], expected.numpy(), atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_prefix_equals_transformers_eager(tiny, family):
    backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
    eager = AutoModel.from_pretrained(
        tiny(family), attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokens = tokenize(backbone.tokenizer(64), TEXTS)
    batch = pad_batch(tokens, np.arange(len(TEXTS)), backbone.pad_id)
    with torch.no_grad():
        hidden, mask = backbone.forward(batch)
        expected = eager(
            input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask)
        ).last_hidden_state
    np.testing.assert_allclose(hidden[mask].numpy(), expected[mask].numpy(), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_padding_changes_nothing(tiny, random_prefix, family, combine):
    prefixes = [random_prefix(tiny(family), seed=k) for k in range(2)]
    backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
    prefix = attention_of(prefixes, [1.0, 0.3], combine)
    tokens, together = hidden_of(backbone, TEXTS, prefix)
    for k, text in enumerate(TEXTS):
        _, alone = hidden_of(backbone, [text], prefix)
        np.testing.assert_allclose(together[k, : len(tokens.ids[k])], alone[0], atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta", *DECODERS])
@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_left_padding_agrees_with_right(tiny, random_prefix, family, combine):
    prefix = attention_of([random_prefix(tiny(family), seed=k) for k in (1, 2)], None, combine)
    backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
    tokens, right = hidden_of(backbone, TEXTS, prefix)
    n_rows, longest = len(TEXTS), right.shape[1]
    ids = np.full((n_rows, longest), backbone.pad_id)
    mask = np.zeros((n_rows, longest), dtype=bool)
    for k, row in enumerate(tokens.ids):
        ids[k, longest - len(row) :] = row
        mask[k, longest - len(row) :] = True
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    # RoBERTa counts from the padding itself. Keys of a prefix are not rotated, so that ModernBERT's
    # queries must be rotated by their place in the text here too.
    if family != "roberta":
        inputs["position_ids"] = torch.from_numpy((mask.cumsum(axis=1) - 1).clip(min=0))
    with torch.no_grad(), attending(prefix):
        left = backbone.model(**inputs).last_hidden_state.numpy()
    for k, row in enumerate(tokens.ids):
        np.testing.assert_allclose(left[k, -len(row) :], right[k, : len(row)], atol=2e-4)


@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_order_of_prefixes_does_not_matter(tiny, random_prefix, combine):
    prefixes = [random_prefix(tiny("bert"), length=k, seed=k) for k in (2, 3, 4)]
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    _, one = hidden_of(backbone, TEXTS, attention_of(prefixes, WEIGHTS, combine))
    backwards = attention_of(prefixes[::-1], WEIGHTS[::-1], combine)
    _, other = hidden_of(backbone, TEXTS, backwards)
    np.testing.assert_allclose(one, other, atol=2e-5)


def test_mean_of_one_is_concatenation_of_one(tiny, random_prefix):
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    prefix = random_prefix(tiny("bert"))
    _, concat = hidden_of(backbone, TEXTS, attention_of([prefix], [0.4], "concat"))
    _, mean = hidden_of(backbone, TEXTS, attention_of([prefix], [0.4], "mean"))
    np.testing.assert_array_equal(concat, mean)
    # Twice the same prefix: the mean of equals is each of them, a concatenation is not.
    _, twice = hidden_of(backbone, TEXTS, attention_of([prefix] * 2, [0.4] * 2, "mean"))
    np.testing.assert_allclose(twice, mean, atol=2e-5)
    _, doubled = hidden_of(backbone, TEXTS, attention_of([prefix] * 2, [0.4] * 2, "concat"))
    assert np.abs(doubled - concat).max() > 0.01


def test_weights_of_one_are_plain_concatenation(tiny, random_prefix):
    prefixes = [random_prefix(tiny("bert"), seed=k) for k in range(3)]
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    _, weighted = hidden_of(backbone, TEXTS, attention_of(prefixes, [1.0] * 3))
    plain = combined_attention([torch.tensor(concatenate(prefixes))], [1.0], "concat")
    _, expected = hidden_of(backbone, TEXTS, plain)
    np.testing.assert_array_equal(weighted, expected)


@pytest.mark.parametrize("combine", ["concat", "mean"])
@pytest.mark.parametrize("masked", [False, True])
def test_halving_a_weight_halves_the_mass_before_normalisation(combine, masked):
    # Values that are one in a prefix and zero at tokens make attention's output that
    # prefix's share s of the mass; s / (1 - s) is its mass over that of everything else.
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 6, 4).unbind()
    value = torch.zeros(1, 2, 6, 4)
    part = torch.randn(1, 2, 2, 3, 4)
    part[:, 1] = 1.0
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool) if masked else None
    if masked:
        mask[..., 4:] = False

    def odds(weight):
        attend = combined_attention([part], [weight], combine)
        share = attend(0, query, key, value, mask, 0.5)
        return share / (1 - share)

    torch.testing.assert_close(odds(0.5), odds(1.0) / 2)
    torch.testing.assert_close(odds(0.1), odds(1.0) / 10)


def test_a_zero_prefix_is_no_identity(tiny, random_prefix):
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    zero = random_prefix(tiny("bert"), scale=0.0)
    _, with_zero = hidden_of(backbone, TEXTS, attention_of([zero]))
    _, bare = hidden_of(backbone, TEXTS)
    assert np.abs(with_zero - bare).max() > 0.01


@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_extreme_logits_stay_finite(combine):
    # A prefix whose logits lie 1,000 above the tokens' underflows every other mass.
    query = torch.full((1, 1, 3, 4), 10.0)
    parts = [torch.full((1, 2, 1, 2, 4), 50.0), torch.full((1, 2, 1, 2, 4), -50.0)]
    attend = combined_attention(parts, [1.0, 1.0], combine)
    output = attend(0, query, torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), None, 0.5)
    assert torch.isfinite(output).all()


def test_no_prefixes_is_no_attention_argument():
    assert combined_attention([], [], "concat") is None
    assert combined_attention([], [], "mean") is None


@pytest.mark.parametrize("kind", ["none", "boolean", "additive"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_kind_of_mask_is_widened(kind, weighted):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 4).unbind()
    visible = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    visible[1, ..., 3:] = False
    additive = torch.zeros(2, 1, 5, 5).masked_fill(~visible, torch.finfo(torch.float32).min)
    mask = {"none": None, "boolean": visible, "additive": additive}[kind]
    part = torch.randn(1, 2, 2, 3, 4)
    weight = 0.3 if weighted else 1.0
    output = combined_attention([part], [weight], "concat")(0, query, key, value, mask, 0.5)

    logits = torch.cat([query @ part[0, 0].mT, query @ key.mT], dim=-1) * 0.5
    logits[..., :3] += np.log(weight)
    if kind != "none":
        logits[..., 3:] = logits[..., 3:].masked_fill(~visible, -torch.inf)
    values = torch.cat([part[0, 1].expand(2, -1, -1, -1), value], dim=2)
    torch.testing.assert_close(output, logits.softmax(-1) @ values)


def test_no_mask_stays_no_mask():
    assert widen_mask(None, None, 5, 7, torch.float32) is None


def test_positions_are_not_shifted(tiny, random_prefix):
    # With keys so negative that a prefix gets no attention at all, nothing may be left of it.
    backbone = load_backbone(tiny("roberta"), dtype="float32", device="cpu")
    prefix = random_prefix(tiny("roberta"))
    silent = combined_attention([torch.tensor(prefix.keys_values)], [1e-30], "concat")
    _, with_prefix = hidden_of(backbone, TEXTS, silent)
    _, bare = hidden_of(backbone, TEXTS)
    np.testing.assert_allclose(with_prefix, bare, atol=1e-4)


def test_the_longest_text_fits_beside_a_prefix(tiny, random_prefix):
    for family in FAMILIES:
        backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
        tokens = tokenize(backbone.tokenizer(backbone.max_length), ["x" * 500])
        assert tokens.lengths[0] == backbone.max_length
        batch = pad_batch(tokens, np.array([0]), backbone.pad_id)
        with torch.no_grad():
            hidden, _ = backbone.forward(batch, attention_of([random_prefix(tiny(family))]))
        assert torch.isfinite(hidden).all()


def test_mean_agrees_with_sdpa_per_prefix_under_windows():
    # A token whose window is padding alone sees no token: the row must stay finite.
    query, key, value = torch.randn(3, 1, 1, 4, 4).unbind()
    visible = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()
    parts = list(torch.randn(2, 1, 2, 1, 3, 4).unbind())
    mean = combined_attention(parts, [1.0, 1.0], "mean")
    output = mean(0, query, key, value, visible[None, None], 0.5)
    assert torch.isfinite(output).all()
    expected = [
        scaled_dot_product_attention(
            query,
            torch.cat([p[0, 0][None], key], dim=2),
            torch.cat([p[0, 1][None], value], dim=2),
            attn_mask=torch.cat([torch.ones(4, 3).bool(), visible], dim=1),
            scale=0.5,
        )
        for p in parts
    ]
    torch.testing.assert_close(output, sum(expected) / 2)


def test_a_batch_does_not_see_the_mask_of_another(tiny, random_prefix):
    # Widened masks are remembered within a call: calls of equal shape must not mix them up.
    backbone = load_backbone(tiny("modernbert"), dtype="float32", device="cpu")
    prefix = attention_of([random_prefix(tiny("modernbert"))])
    batches = []
    for n_tokens in (30, 12, 25):
        mask = np.arange(40) < np.array([[40], [n_tokens]])
        batches.append(Batch(np.where(mask, 9, 1), np.zeros(mask.shape, dtype=int), mask))
    with torch.no_grad():
        shared = [backbone.forward(batch, prefix)[0] for batch in batches]
        for batch, hidden in zip(batches, shared, strict=True):
            fresh = attention_of([random_prefix(tiny("modernbert"))])
            torch.testing.assert_close(backbone.forward(batch, fresh)[0], hidden)


def test_long_prefixes_are_attended_to_once_a_batch(monkeypatch, either_way):
    monkeypatch.undo()
    rng = np.random.default_rng(0)
    query, key, value = (torch.tensor(rng.standard_normal((5, 2, 3, 4))).float() for _ in range(3))
    shapes = []

    def spy(query, key, *args, **kwargs):
        shapes.append(key.shape)
        return attend(query, key, *args, **kwargs)

    attend = _attention._attention_with_mass
    monkeypatch.setattr(_attention, "_attention_with_mass", spy)
    for length in (_attention._SHARED_FROM - 1, _attention._SHARED_FROM):
        prefix = torch.tensor(rng.standard_normal((1, 2, 2, length, 4))).float()
        combined_attention([prefix], [1.0], "concat")(0, query, key, value, None, 0.5)
    assert shapes == [(5, 2, 3, 4), (1, 2, _attention._SHARED_FROM, 4)]
