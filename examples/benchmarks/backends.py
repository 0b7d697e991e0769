"""Run peers that need an environment of their own; this script runs in its Python.

``transform.py --backends PYTHON`` uses sentence-transformers on ONNX Runtime or OpenVINO, and
``stack.py --backends PYTHON`` uses prefixes in adapters and in PEFT::

    pip install "sentence-transformers[onnx,openvino]"
    pip install adapters peft

The script loads a model, prints "ready", and encodes the texts each time it reads a line. It saves
the vectors of the first time in a file next to the texts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def load(backend: str, folder: str, texts: list[Any], scratch: Path) -> Any:
    """Return the peer: an object with a method ``encode``."""
    if backend in _WITH_PREFIXES:
        prefixes = np.load(scratch / "prefixes.npy")
        return Plain(folder, _WITH_PREFIXES[backend](folder, prefixes))
    return sentence_transformer(backend, folder, texts, scratch)


class Plain:
    """Encode with a plain loop: batches in order of length, mean over tokens."""

    def __init__(self, folder: str, model: Any) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = model.eval()

    def encode(self, texts: list[Any], batch_size: int, show_progress_bar: bool) -> Any:
        """Return one vector per text."""
        import torch

        singles = [" ".join(text) if isinstance(text, list) else text for text in texts]
        order = np.argsort([-len(text) for text in singles], kind="stable")
        vectors: Any = None
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            rows = [texts[k] for k in positions]
            parts = zip(*rows, strict=True) if isinstance(rows[0], list) else [rows]
            inputs = self.tokenizer(
                *map(list, parts), padding=True, truncation=True, max_length=256,
                return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                hidden = self.model(**inputs)[0]
            mask = inputs["attention_mask"].unsqueeze(-1)
            pooled = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
            if vectors is None:
                vectors = np.empty((len(texts), pooled.shape[1]), dtype=np.float32)
            vectors[positions] = pooled
        return vectors


def adapters_stack(folder: str, prefixes: np.ndarray) -> Any:
    """Return a model with stacked prefixes, which adapters concatenates."""
    import adapters
    import torch
    from adapters.composition import Stack
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder)
    adapters.init(model)
    names = [f"task_{k}" for k in range(len(prefixes))]
    for name, prefix in zip(names, prefixes, strict=True):
        config = adapters.PrefixTuningConfig(flat=True, prefix_length=prefix.shape[3], dropout=0.0)
        model.add_adapter(name, config=config)
        # (layer, 2, head, position, head_dim) to position, (layer, 2), head, head_dim
        flat = torch.from_numpy(np.ascontiguousarray(prefix.transpose(3, 0, 1, 2, 4)).ravel())
        for pool in {id(p): p for p in model.modules() if hasattr(p, "prefix_counts")}.values():
            for part in pool.prefix_tunings[name].values():
                part.control_trans.data = flat
    model.set_active_adapters(Stack(*names))
    return model


def peft_prefix(folder: str, prefixes: np.ndarray) -> Any:
    """Return a model with one prefix that is as long as all prefixes together.

    PEFT does not combine prefixes, and it shifts the positions of tokens.
    """
    import torch
    from peft import PrefixTuningConfig, TaskType, get_peft_model
    from transformers import AutoModel

    whole = np.concatenate(list(prefixes), axis=3)
    n_layers, _, n_heads, length, head_dim = whole.shape
    config = PrefixTuningConfig(
        task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=length, num_layers=n_layers,
        num_attention_heads=n_heads, token_dim=n_heads * head_dim,
    )  # fmt: skip
    model = get_peft_model(AutoModel.from_pretrained(folder), config)
    flat = np.ascontiguousarray(whole.transpose(3, 0, 1, 2, 4)).reshape(length, -1)
    model.prompt_encoder["default"].embedding.weight.data = torch.from_numpy(flat)
    return model


_WITH_PREFIXES = {"adapters Stack": adapters_stack, "PEFT": peft_prefix}


def sentence_transformer(backend: str, folder: str, texts: list[Any], scratch: Path) -> Any:
    """Export a model to a backend, quantized if its name says so."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    engine, _, quantized = backend.partition(" ")
    plain = Transformer(folder, backend=engine, model_args={"export": True})
    width = plain.get_word_embedding_dimension()
    if engine == "onnx" and quantized:
        plain.model = onnx_int8(plain.model, scratch)
    elif engine == "openvino" and quantized:
        sample = [text if isinstance(text, list) else [text] for text in texts[:128]]
        rows = [dict(plain.tokenizer(*text, return_tensors="np")) for text in sample]
        plain.model = openvino_int8(plain.model, rows)
    model = SentenceTransformer(modules=[plain, Pooling(width)], device="cpu")
    model.max_seq_length = 256
    return model


def onnx_int8(model: Any, scratch: Path) -> Any:
    """Quantize weights, and activations dynamically."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    target = scratch / "onnx-int8"
    target.mkdir(exist_ok=True)
    model.config.save_pretrained(target)
    quantize_dynamic(
        model.path, target / "model.onnx", per_channel=True, weight_type=QuantType.QInt8
    )
    return ORTModelForFeatureExtraction.from_pretrained(target, file_name="model.onnx")


def openvino_int8(model: Any, rows: list[dict[str, Any]]) -> Any:
    """Quantize weights and activations, calibrated on some texts."""
    import nncf
    from optimum.intel import OVModelForFeatureExtraction

    quantized = nncf.quantize(
        model.model, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER
    )
    compiled = OVModelForFeatureExtraction(quantized, config=model.config)
    compiled.compile()
    return compiled


def main() -> None:
    """Encode the texts once per line of standard input."""
    backend, folder, path, size = sys.argv[1:5]
    texts = json.loads(Path(path).read_text(encoding="utf-8"))
    model = load(backend, folder, texts, Path(path).parent)
    print("ready", flush=True)
    for _ in sys.stdin:
        vectors = model.encode(texts, batch_size=int(size), show_progress_bar=False)
        target = Path(path).with_suffix(f".{backend.replace(' ', '-')}.npy")
        if not target.exists():
            np.save(target, vectors)
        print("done", flush=True)


if __name__ == "__main__":
    main()
