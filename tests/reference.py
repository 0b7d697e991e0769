"""The method in plain matrix algebra, in float64: what the library is held against."""

import numpy as np
import torch
from scipy.special import erf


def softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    weights = np.exp(logits)
    return weights / weights.sum(axis=-1, keepdims=True)


def attend_concat(query, key, value, prefixes, weights, scaling, visible=None):
    """Attend to prefixes and tokens in one softmax.

    query, key, value: (head, position, head_dim); prefixes: pairs of (head, length, head_dim);
    visible: (position, position), which token sees which.
    """
    masses = [
        weight * np.exp(query @ k.swapaxes(-1, -2) * scaling)
        for (k, _), weight in zip(prefixes, weights, strict=True)
    ]
    masses.append(_token_mass(query, key, scaling, visible))
    values = [v for _, v in prefixes] + [value]
    total = sum(mass.sum(axis=-1, keepdims=True) for mass in masses)
    return sum((m / total) @ v for m, v in zip(masses, values, strict=True))


def attend_mean(query, key, value, prefixes, weights, scaling, visible=None):
    """Average what attention to each prefix alone gives."""
    outputs = [
        attend_concat(query, key, value, [prefix], [weight], scaling, visible)
        for prefix, weight in zip(prefixes, weights, strict=True)
    ]
    return sum(outputs) / len(outputs)


def _token_mass(query, key, scaling, visible):
    mass = np.exp(query @ key.swapaxes(-1, -2) * scaling)
    return mass if visible is None else np.where(visible, mass, 0.0)


ATTEND = {"concat": attend_concat, "mean": attend_mean}


def bert_hidden(model, ids, type_ids, prefixes, weights, combine="concat"):
    """Run one text through a BERT: embeddings, attention, feed-forward, layer norms."""
    state = {k: v.double().numpy() for k, v in model.state_dict().items()}
    config = model.config
    n_heads, n_layers = config.num_attention_heads, config.num_hidden_layers

    def dense(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(variance + config.layer_norm_eps)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def heads(x):
        return x.reshape(len(x), n_heads, -1).transpose(1, 0, 2)  # (head, position, head_dim)

    embeddings = "embeddings"
    x = (
        state[f"{embeddings}.word_embeddings.weight"][ids]
        + state[f"{embeddings}.token_type_embeddings.weight"][type_ids]
        + state[f"{embeddings}.position_embeddings.weight"][: len(ids)]
    )
    x = norm(f"{embeddings}.LayerNorm", x)
    for layer in range(n_layers):
        block = f"encoder.layer.{layer}"
        q, k, v = (
            heads(dense(f"{block}.attention.self.{n}", x)) for n in ("query", "key", "value")
        )
        own = [(p.keys_values[layer, 0], p.keys_values[layer, 1]) for p in prefixes]
        if own:
            mixed = ATTEND[combine](q, k, v, own, weights, q.shape[-1] ** -0.5)
        else:
            mixed = attend_concat(q, k, v, [], [], q.shape[-1] ** -0.5)
        mixed = mixed.transpose(1, 0, 2).reshape(len(ids), -1)
        mixed = dense(f"{block}.attention.output.dense", mixed)
        x = norm(f"{block}.attention.output.LayerNorm", x + mixed)
        inner = dense(f"{block}.intermediate.dense", x)
        inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
        x = norm(f"{block}.output.LayerNorm", x + dense(f"{block}.output.dense", inner))
    return x  # (position, feature)


def naive_attention(module, query, key, value, attention_mask, scaling, naive=None, **kwargs):
    """Attention function for transformers, text by text: any family, float masks of eager mode.

    ``naive``: (prefixes, weights, combine).
    """
    prefixes, weights, combine = naive
    layer = module.layer_idx
    own = [(p.keys_values[layer, 0], p.keys_values[layer, 1]) for p in prefixes]
    outputs = []
    for row in range(len(query)):
        q, k, v = (t[row].double().numpy() for t in (query, key, value))
        visible = None if attention_mask is None else (attention_mask[row, 0] > -1).numpy()
        attend = ATTEND[combine] if own else attend_concat
        outputs.append(attend(q, k, v, own, weights, scaling, visible))
    output = torch.from_numpy(np.stack(outputs)).to(query.dtype)
    return output.transpose(1, 2).contiguous(), None
