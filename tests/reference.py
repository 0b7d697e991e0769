"""The method in plain matrix algebra and float64, as a reference for tests."""

from functools import partial
from types import MethodType

import numpy as np
import torch
from scipy.special import erf
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel
from transformers.masking_utils import eager_mask
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention


def softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    weights = np.exp(logits)
    return weights / weights.sum(axis=-1, keepdims=True)


def attend_concat(query, key, value, prefixes, weights, scaling, visible=None, terms=0.0):
    """Attend to prefixes and tokens in one softmax.

    query, key, value: (head, position, head_dim). prefixes: keys and values of each, (head,
    length, head_dim). visible: (position, position), True where a token sees another. terms:
    (head, position, position), added to the logits of tokens.
    """
    masses = [
        weight * np.exp(query @ k.swapaxes(-1, -2) * scaling)
        for (k, _), weight in zip(prefixes, weights, strict=True)
    ]
    masses.append(_token_mass(query, key, scaling, visible, terms))
    values = [v for _, v in prefixes] + [value]
    total = sum(mass.sum(axis=-1, keepdims=True) for mass in masses)
    return sum((m / total) @ v for m, v in zip(masses, values, strict=True))


def attend_mean(query, key, value, prefixes, weights, scaling, visible=None, terms=0.0):
    """Return the mean over prefixes of the attention to that prefix and the tokens."""
    outputs = [
        attend_concat(query, key, value, [prefix], [weight], scaling, visible, terms)
        for prefix, weight in zip(prefixes, weights, strict=True)
    ]
    return sum(outputs) / len(outputs)


def _token_mass(query, key, scaling, visible, terms):
    mass = np.exp(query @ key.swapaxes(-1, -2) * scaling + terms)
    return mass if visible is None else np.where(visible, mass, 0.0)


ATTEND = {"concat": attend_concat, "mean": attend_mean}


def gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def gelu_by_tanh(x):
    return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


# Activation functions of the feed-forward layers of families. Others use `gelu`.
ACTIVATIONS = {
    "albert": gelu_by_tanh,
    **dict.fromkeys(["llama", "mistral", "nomic_bert", "qwen3"], silu),
}


def added_by_slots(x, prefixes, weights, combine, layer, activation=gelu):
    """Return what slots add to the output of one feed-forward layer with input x."""
    added = np.zeros_like(x)
    for prefix, weight in zip(prefixes, weights, strict=True):
        if prefix.slots is None:
            continue
        slots = prefix.slots
        keys, biases, values = (
            part[layer].astype(float) for part in (slots.keys, slots.biases, slots.values)
        )
        for key, bias, value in zip(keys, biases, values, strict=True):
            added += weight * activation(x @ key + bias)[..., None] * value
    return added / len(prefixes) if combine == "mean" else added


def bert_hidden(model, ids, type_ids, prefixes, weights, combine="concat"):
    """Run one text through BERT: embeddings, attention, feed-forward layers, layer norms."""
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
        parts = [(p.keys_values[layer, 0], p.keys_values[layer, 1]) for p in prefixes]
        if parts:
            mixed = ATTEND[combine](q, k, v, parts, weights, q.shape[-1] ** -0.5)
        else:
            mixed = attend_concat(q, k, v, [], [], q.shape[-1] ** -0.5)
        mixed = mixed.transpose(1, 0, 2).reshape(len(ids), -1)
        mixed = dense(f"{block}.attention.output.dense", mixed)
        x = norm(f"{block}.attention.output.LayerNorm", x + mixed)
        inner = dense(f"{block}.intermediate.dense", x)
        output = dense(f"{block}.output.dense", gelu(inner))
        if prefixes:
            output += added_by_slots(x, prefixes, weights, combine, layer)
        x = norm(f"{block}.output.LayerNorm", x + output)
    return x  # (position, feature)


def naive_attention(module, query, key, value, attention_mask, scaling, naive=None, **kwargs):
    """Attend text by text: an attention function for transformers, for float masks of eager mode.

    naive: prefixes, weights, combine, and a list that grows by one entry per layer.
    """
    prefixes, weights, combine, layers = naive
    layer = len(layers)
    layers.append(module)
    n_groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(n_groups, dim=1) for tensor in (key, value))
    parts = [
        tuple(np.repeat(p.keys_values[layer, kind], n_groups, axis=0) for kind in (0, 1))
        for p in prefixes
    ]
    outputs = []
    for row in range(len(query)):
        q, k, v = (t[row].double().numpy() for t in (query, key, value))
        visible = None if attention_mask is None else (attention_mask[row, 0] > -1).numpy()
        attend = ATTEND[combine] if parts else attend_concat
        outputs.append(attend(q, k, v, parts, weights, scaling, visible))
    output = torch.from_numpy(np.stack(outputs)).to(query.dtype)
    return output.transpose(1, 2).contiguous(), None


def naive_mpnet(naive):
    """Return a forward method for the attention of MPNet, for one text without padding."""

    def forward(self, hidden_states, attention_mask=None, position_bias=None, **kwargs):
        heads = [
            _heads(part(hidden_states)[0], self.num_attention_heads)
            for part in (self.q, self.k, self.v)
        ]
        terms = position_bias[0].double().numpy()
        mixed = _attend_next_layer(naive, self, heads, heads[0].shape[-1] ** -0.5, terms)
        return (self.o(mixed.to(hidden_states.dtype)[None]),)

    return forward


def naive_deberta(naive):
    """Return a forward method for the attention of DeBERTa-v2 and v3 (He et al., 2021, eq. 4)."""

    def forward(self, hidden_states, attention_mask, *args, relative_pos, rel_embeddings, **kwargs):
        n_heads, span = self.num_attention_heads, self.pos_ebd_size
        projections = (self.query_proj, self.key_proj, self.value_proj)
        query, key, value = (_heads(part(hidden_states)[0], n_heads) for part in projections)
        of_position = [
            _heads(part(rel_embeddings[: 2 * span]), n_heads) for part in projections[:2]
        ]
        distance = relative_pos.reshape(relative_pos.shape[-2:]).numpy()
        scaling = (3 * query.shape[-1]) ** -0.5
        terms = np.empty((n_heads, len(distance), len(distance)))
        for i in range(len(distance)):
            for j in range(len(distance)):
                ahead = np.clip(distance[i, j] + span, 0, 2 * span - 1)
                back = np.clip(span - distance[j, i], 0, 2 * span - 1)
                content_to_position = (query[:, i] * of_position[1][:, ahead]).sum(-1)
                position_to_content = (key[:, j] * of_position[0][:, back]).sum(-1)
                terms[:, i, j] = scaling * (content_to_position + position_to_content)
        mixed = _attend_next_layer(naive, self, (query, key, value), scaling, terms)
        return mixed.to(hidden_states.dtype)[None], None

    return forward


def _heads(x, n_heads):
    return x.double().numpy().reshape(len(x), n_heads, -1).transpose(1, 0, 2)


def _attend_next_layer(naive, module, heads, scaling, terms):
    prefixes, weights, combine, layers = naive
    parts = [tuple(p.keys_values[len(layers)]) for p in prefixes]
    layers.append(module)
    mixed = ATTEND[combine](*heads, parts, weights, scaling, terms=terms)
    return torch.from_numpy(mixed.transpose(1, 0, 2).reshape(mixed.shape[1], -1))


def add_naive_slots(model, prefixes, weights, combine):
    """Let the feed-forward layers of a model of transformers add slots, in every forward call."""
    family = model.config.model_type
    activation = ACTIVATIONS.get(family, gelu)
    uses = []  # one entry per use of a layer, which ALBERT uses repeatedly

    def added(x):
        layer = len(uses) % prefixes[0].layout[0]
        uses.append(layer)
        numbers = added_by_slots(x.double().numpy(), prefixes, weights, combine, layer, activation)
        return torch.from_numpy(numbers).to(x.dtype)

    for module in list(model.modules()):
        if hasattr(module, "ff_chunk") and family == "albert":
            module.ff_chunk = _plus(module.ff_chunk, added)
        elif hasattr(module, "intermediate"):
            # BERT and its relatives: `output` takes hidden units, and the input for the residual.
            module.output.forward = partial(_residual_output, module.output, added)
        elif hasattr(module, "ffn") and family == "distilbert":
            module.ffn.forward = _plus(module.ffn.forward, added)
        elif hasattr(module, "mlp"):
            module.mlp.forward = _plus(module.mlp.forward, added)
    return model


def _plus(feed_forward, added):
    return lambda x: feed_forward(x) + added(x)


def _residual_output(output, added, hidden, x):
    return output.LayerNorm(output.dense(hidden) + added(x) + x)


def naive_model(folder, prefixes, weights, combine):
    """Return a function that runs one text through a model of transformers, naively extended.

    The function takes token ids and returns token vectors. Nothing of the library runs in it.
    """
    AttentionInterface.register("naive_reference", naive_attention)
    AttentionMaskInterface.register("naive_reference", eager_mask)
    family = AutoConfig.from_pretrained(folder).model_type
    patched, naive_forward = {
        "deberta-v2": (DisentangledSelfAttention, naive_deberta),
        "mpnet": (MPNetSelfAttention, naive_mpnet),
    }.get(family, (None, None))
    implementation = "naive_reference" if patched is None else "eager"
    model = AutoModel.from_pretrained(
        folder, attn_implementation=implementation, dtype=torch.float32
    ).eval()
    add_naive_slots(model, prefixes, weights, combine)

    @torch.no_grad()
    def run(ids):
        naive = (prefixes, weights, combine, [])
        inputs = {"input_ids": torch.from_numpy(ids)[None].long()}
        if patched is None:
            inputs["naive"] = naive
        else:
            for module in model.modules():
                if isinstance(module, patched):
                    module.forward = MethodType(naive_forward(naive), module)
        return model(**inputs).last_hidden_state[0].numpy()

    return run
