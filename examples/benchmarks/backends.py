"""sentence-transformers on ONNX Runtime or OpenVINO, for ``transform.py --backends PYTHON``.

These need an environment of their own, in whose Python this runs::

    pip install "sentence-transformers[onnx,openvino]"

It loads a model once, says "ready", and encodes the texts each time it is sent a line. The
vectors of the first time are left in a file beside the texts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def load(backend: str, folder: str, texts: list[Any], scratch: Path) -> Any:
    """Export a model to a backend, quantized or not."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    engine, _, quantized = backend.partition(" ")
    plain = Transformer(folder, backend=engine, model_args={"export": True})
    width = plain.get_word_embedding_dimension()
    if engine == "onnx" and quantized:
        plain.model = onnx_int8(plain.model, scratch)
    elif engine == "openvino" and quantized:
        some = [text if isinstance(text, list) else [text] for text in texts[:128]]
        rows = [dict(plain.tokenizer(*text, return_tensors="np")) for text in some]
        plain.model = openvino_int8(plain.model, rows)
    model = SentenceTransformer(modules=[plain, Pooling(width)], device="cpu")
    model.max_seq_length = 256
    return model


def onnx_int8(model: Any, scratch: Path) -> Any:
    """Quantize weights and, on the fly, activations."""
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
    """Quantize weights and activations, calibrated on some of the texts."""
    import nncf
    from optimum.intel import OVModelForFeatureExtraction

    quantized = nncf.quantize(
        model.model, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER
    )
    made = OVModelForFeatureExtraction(quantized, config=model.config)
    made.compile()
    return made


def main() -> None:
    """Serve."""
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
