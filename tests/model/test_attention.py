"""Attention to prefixes and tokens against plain algebra, in every family."""

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
from prefixembed._embed.batches import pad_batch
from prefixembed._embed.tokens import tokenize
from prefixembed._model import attention as _attention
from prefixembed._model.attention import LayerInput, combined_attention, widen_mask
from prefixembed._model.batch import Batch
from prefixembed._model.extension import Extension
from prefixembed._model.hook import extended
from prefixembed.reading import Reading

READING = Reading("mean", 64, pairs="joint")
WEIGHTS = [1.0, 0.5, 3.0]


@pytest.fixture(autouse=True, params=["copied for each text", "attended to once per batch"])
def both_code_paths(request, monkeypatch):
    """Run every test with the code for short prefixes and with the code for long ones."""
    minimum = 1 if request.param == "attended to once per batch" else 10**9
    monkeypatch.setattr(_attention, "_MIN_SHARED_LENGTH", minimum)


def attention_of(prefixes, weights=None, combine="concat"):
    parts = [torch.tensor(prefix.keys_values) for prefix in prefixes]
    return combined_attention(parts, weights or [1.0] * len(parts), combine)


@torch.no_grad()
def hidden_of(backbone, texts, attend=None):
    tokens = tokenize(backbone, texts, READING)
    batch = pad_batch(tokens, np.arange(len(texts)), backbone.pad_id)
    hidden, _ = backbone.forward(batch, attend and Extension(attend), READING)
    return tokens, hidden.float().numpy()


@pytest.mark.parametrize("combine", ["concat", "mean"])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], WEIGHTS])
def test_bert_equals_plain_algebra(tiny, random_prefix, combine, weights):
    prefixes = [random_prefix(tiny("bert"), length=k, seed=k) for k in (1, 3, 5)]
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    for texts in (TEXTS, PAIRS):
        tokens, hidden = hidden_of(backbone, texts, attention_of(prefixes, weights, combine))
        for k, (ids, types) in enumerate(zip(tokens.ids, tokens.type_ids, strict=True)):
            expected = bert_hidden(backbone.model, ids, types, prefixes, weights, combine)
            np.testing.assert_allclose(hidden[k, : len(ids)], expected, atol=2e-5)


@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_minilm_equals_plain_algebra(minilm, random_prefix, combine):
    prefixes = [random_prefix(minilm, seed=k, scale=0.5) for k in range(3)]
    backbone = load_backbone(minilm, dtype="float32", device="cpu")
    texts = ["A fine film.", "Not one I would see again, all in all."]
    tokens, hidden = hidden_of(backbone, texts, attention_of(prefixes, WEIGHTS, combine))
    for k, (ids, types) in enumerate(zip(tokens.ids, tokens.type_ids, strict=True)):
        expected = bert_hidden(backbone.model, ids, types, prefixes, WEIGHTS, combine)
        np.testing.assert_allclose(hidden[k, : len(ids)], expected, atol=5e-5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in RELATIVE])
@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_each_family_equals_naive_attention(tiny, random_prefix, family, combine):
    AttentionInterface.register("naive_reference", naive_attention)
    AttentionMaskInterface.register("naive_reference", eager_mask)
    prefixes = [random_prefix(tiny(family), length=k, seed=k) for k in (1, 4)]
    backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
    naive = AutoModel.from_pretrained(
        tiny(family), attn_implementation="naive_reference", dtype=torch.float32
    ).eval()
    tokens = tokenize(backbone, TEXTS, READING)
    batch = pad_batch(tokens, np.arange(len(TEXTS)), backbone.pad_id)
    for weights in ([1.0, 1.0], [0.5, 2.0]):
        with torch.no_grad():
            attend = attention_of(prefixes, weights, combine)
            hidden, mask = backbone.forward(batch, Extension(attend), READING)
            expected = naive(
                input_ids=torch.from_numpy(batch.ids),
                attention_mask=torch.from_numpy(batch.mask),
                naive=(prefixes, weights, combine, []),
            ).last_hidden_state
        np.testing.assert_allclose(hidden[mask].numpy(), expected[mask].numpy(), atol=2e-4)


@pytest.mark.parametrize("family", RELATIVE)
@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_families_with_relative_positions_equal_naive_attention(
    tiny, random_prefix, family, combine, monkeypatch
):
    attention, naive_forward = {
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
                naive = naive_forward((prefixes, weights, combine, []))
                patch.setattr(attention, "forward", naive)
                expected = eager(torch.from_numpy(ids)[None].long()).last_hidden_state[0]
            np.testing.assert_allclose(hidden[k, : len(ids)], expected.numpy(), atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_prefix_equals_transformers_eager(tiny, family):
    backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
    eager = AutoModel.from_pretrained(
        tiny(family), attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokens = tokenize(backbone, TEXTS, READING)
    batch = pad_batch(tokens, np.arange(len(TEXTS)), backbone.pad_id)
    with torch.no_grad():
        hidden, mask = backbone.forward(batch, None, READING)
        expected = eager(
            input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask)
        ).last_hidden_state
    np.testing.assert_allclose(hidden[mask].numpy(), expected[mask].numpy(), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_padding_does_not_affect_vectors(tiny, random_prefix, family, combine):
    prefixes = [random_prefix(tiny(family), seed=k) for k in range(2)]
    backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
    attend = attention_of(prefixes, [1.0, 0.3], combine)
    tokens, together = hidden_of(backbone, TEXTS, attend)
    for k, text in enumerate(TEXTS):
        _, alone = hidden_of(backbone, [text], attend)
        np.testing.assert_allclose(together[k, : len(tokens.ids[k])], alone[0], atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta", *DECODERS])
@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_left_padding_equals_right_padding(tiny, random_prefix, family, combine):
    attend = attention_of([random_prefix(tiny(family), seed=k) for k in (1, 2)], None, combine)
    backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
    tokens, right = hidden_of(backbone, TEXTS, attend)
    n_rows, longest = len(TEXTS), right.shape[1]
    ids = np.full((n_rows, longest), backbone.pad_id)
    mask = np.zeros((n_rows, longest), dtype=bool)
    for k, row in enumerate(tokens.ids):
        ids[k, longest - len(row) :] = row
        mask[k, longest - len(row) :] = True
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    # RoBERTa finds the first token itself. Keys of a prefix are not rotated, so the queries of
    # ModernBERT and of decoders must be rotated by their position in the text.
    if family != "roberta":
        inputs["position_ids"] = torch.from_numpy((mask.cumsum(axis=1) - 1).clip(min=0))
    with torch.no_grad(), extended(Extension(attend)):
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


def test_mean_of_one_prefix_equals_concatenation(tiny, random_prefix):
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    prefix = random_prefix(tiny("bert"))
    _, concat = hidden_of(backbone, TEXTS, attention_of([prefix], [0.4], "concat"))
    _, mean = hidden_of(backbone, TEXTS, attention_of([prefix], [0.4], "mean"))
    np.testing.assert_array_equal(concat, mean)
    # The mean over a prefix and itself is that prefix; their concatenation is not.
    _, twice = hidden_of(backbone, TEXTS, attention_of([prefix] * 2, [0.4] * 2, "mean"))
    np.testing.assert_allclose(twice, mean, atol=2e-5)
    _, doubled = hidden_of(backbone, TEXTS, attention_of([prefix] * 2, [0.4] * 2, "concat"))
    assert np.abs(doubled - concat).max() > 0.01


def test_weights_of_one_equal_plain_concatenation(tiny, random_prefix):
    prefixes = [random_prefix(tiny("bert"), seed=k) for k in range(3)]
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    _, weighted = hidden_of(backbone, TEXTS, attention_of(prefixes, [1.0] * 3))
    whole = np.concatenate([prefix.keys_values for prefix in prefixes], axis=3)
    plain = combined_attention([torch.tensor(whole)], [1.0], "concat")
    _, expected = hidden_of(backbone, TEXTS, plain)
    np.testing.assert_array_equal(weighted, expected)


@pytest.mark.parametrize("combine", ["concat", "mean"])
@pytest.mark.parametrize("masked", [False, True])
def test_halving_a_weight_halves_the_mass_before_normalization(combine, masked):
    # With values of one in the prefix and zero in the tokens, the output is the share s of the
    # prefix in the mass, and s / (1 - s) is its mass divided by that of the tokens.
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
        share = attend(LayerInput(0, query, key, value, mask, 0.5))
        return share / (1 - share)

    torch.testing.assert_close(odds(0.5), odds(1.0) / 2)
    torch.testing.assert_close(odds(0.1), odds(1.0) / 10)


def test_zero_prefix_is_not_a_no_op(tiny, random_prefix):
    backbone = load_backbone(tiny("bert"), dtype="float32", device="cpu")
    zero = random_prefix(tiny("bert"), scale=0.0)
    _, with_zero = hidden_of(backbone, TEXTS, attention_of([zero]))
    _, bare = hidden_of(backbone, TEXTS)
    assert np.abs(with_zero - bare).max() > 0.01


@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_extreme_logits_give_finite_output(combine):
    # The logits of one prefix are 1,000 higher than those of the tokens: other masses underflow.
    query = torch.full((1, 1, 3, 4), 10.0)
    parts = [torch.full((1, 2, 1, 2, 4), 50.0), torch.full((1, 2, 1, 2, 4), -50.0)]
    attend = combined_attention(parts, [1.0, 1.0], combine)
    zeros = torch.zeros(1, 1, 3, 4)
    output = attend(LayerInput(0, query, zeros, zeros, None, 0.5))
    assert torch.isfinite(output).all()


def test_no_prefixes_give_no_attention():
    assert combined_attention([], [], "concat") is None
    assert combined_attention([], [], "mean") is None


@pytest.mark.parametrize("combine", ["concat", "mean"])
def test_prefixes_without_positions_get_no_attention(combine):
    query, key, value = torch.randn(3, 2, 2, 5, 4).unbind()
    inputs = LayerInput(0, query, key, value, None, 0.5)
    empty, full = torch.empty(1, 2, 2, 0, 4), torch.randn(1, 2, 2, 3, 4)
    assert combined_attention([empty], [0.5], combine) is None
    assert combined_attention([empty, empty], [0.5, 2.0], combine) is None
    both = combined_attention([empty, full], [0.5, 2.0], combine)(inputs)
    alone = combined_attention([full], [2.0], "concat")(inputs)
    # In the mean, a prefix without positions stands for attention to the tokens alone.
    tokens = scaled_dot_product_attention(query, key, value, scale=0.5)
    expected = alone if combine == "concat" else (alone + tokens) / 2
    torch.testing.assert_close(both, expected)


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
    attend = combined_attention([part], [weight], "concat")
    output = attend(LayerInput(0, query, key, value, mask, 0.5))

    logits = torch.cat([query @ part[0, 0].mT, query @ key.mT], dim=-1) * 0.5
    logits[..., :3] += np.log(weight)
    if kind != "none":
        logits[..., 3:] = logits[..., 3:].masked_fill(~visible, -torch.inf)
    values = torch.cat([part[0, 1].expand(2, -1, -1, -1), value], dim=2)
    torch.testing.assert_close(output, logits.softmax(-1) @ values)


def test_no_mask_is_widened_to_no_mask():
    assert widen_mask(None, None, 5, 7, torch.float32) is None


def test_prefixes_do_not_shift_positions(tiny, random_prefix):
    # A prefix that gets no attention must not affect the vectors.
    backbone = load_backbone(tiny("roberta"), dtype="float32", device="cpu")
    prefix = random_prefix(tiny("roberta"))
    silent = combined_attention([torch.tensor(prefix.keys_values)], [1e-30], "concat")
    _, with_prefix = hidden_of(backbone, TEXTS, silent)
    _, bare = hidden_of(backbone, TEXTS)
    np.testing.assert_allclose(with_prefix, bare, atol=1e-4)


def test_longest_text_fits_beside_a_prefix(tiny, random_prefix):
    for family in FAMILIES:
        backbone = load_backbone(tiny(family), dtype="float32", device="cpu")
        reading = Reading("mean", backbone.max_length)
        tokens = tokenize(backbone, ["x" * 500], reading)
        assert tokens.lengths[0] == backbone.max_length
        batch = pad_batch(tokens, np.array([0]), backbone.pad_id)
        attend = attention_of([random_prefix(tiny(family))])
        with torch.no_grad():
            hidden, _ = backbone.forward(batch, Extension(attend), reading)
        assert torch.isfinite(hidden).all()


def test_mean_equals_sdpa_per_prefix_where_tokens_see_no_token():
    # The window of a padding token may hold nothing but padding. Its row must stay finite.
    query, key, value = torch.randn(3, 1, 1, 4, 4).unbind()
    visible = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()
    parts = list(torch.randn(2, 1, 2, 1, 3, 4).unbind())
    mean = combined_attention(parts, [1.0, 1.0], "mean")
    output = mean(LayerInput(0, query, key, value, visible[None, None], 0.5))
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


def test_batches_of_equal_shape_do_not_share_masks(tiny, random_prefix):
    # Widened masks are cached within a call.
    backbone = load_backbone(tiny("modernbert"), dtype="float32", device="cpu")
    attend = attention_of([random_prefix(tiny("modernbert"))])
    batches = []
    for n_tokens in (30, 12, 25):
        mask = np.arange(40) < np.array([[40], [n_tokens]])
        batches.append(Batch(np.where(mask, 9, 1), np.zeros(mask.shape, dtype=int), mask))
    with torch.no_grad():
        shared = [backbone.forward(batch, Extension(attend), READING)[0] for batch in batches]
        for batch, hidden in zip(batches, shared, strict=True):
            fresh = attention_of([random_prefix(tiny("modernbert"))])
            alone, _ = backbone.forward(batch, Extension(fresh), READING)
            torch.testing.assert_close(alone, hidden)


def test_long_prefixes_are_attended_to_once_per_batch(monkeypatch, both_code_paths):
    monkeypatch.undo()
    rng = np.random.default_rng(0)
    query, key, value = (torch.tensor(rng.standard_normal((5, 2, 3, 4))).float() for _ in range(3))
    shapes = []

    def spy(query, key, *args, **kwargs):
        shapes.append(key.shape)
        return attend(query, key, *args, **kwargs)

    attend = _attention._attention_with_mass
    monkeypatch.setattr(_attention, "_attention_with_mass", spy)
    minimum = _attention._MIN_SHARED_LENGTH
    for length in (minimum - 1, minimum):
        prefix = torch.tensor(rng.standard_normal((1, 2, 2, length, 4))).float()
        inputs = LayerInput(0, query, key, value, None, 0.5)
        combined_attention([prefix], [1.0], "concat")(inputs)
    assert shapes == [(5, 2, 3, 4), (1, 2, minimum, 4)]
