"""P-Tuning v2: checkpoints of its own code become prefixes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model
from transformers import AutoModel

from prefixembed.interop import load_p_tuning, load_peft
from prefixembed.interop._flat import to_flat

WIDTH = 3 * 2 * 32  # keys and values of three layers of the tiny backbone


@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prefix_is_the_output_of_the_prefix_encoder(tiny, hidden, dtype):
    torch.manual_seed(0)
    if hidden is None:
        encoder = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(4, WIDTH)}).to(dtype)
        flat = encoder["embedding"].weight
    else:
        trans = torch.nn.Sequential(
            torch.nn.Linear(32, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, WIDTH)
        )
        encoder = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(4, 32), "trans": trans})
        flat = encoder.to(dtype)["trans"](encoder["embedding"].weight)
    state = {f"prefix_encoder.{key}": value for key, value in encoder.state_dict().items()}
    prefix = load_p_tuning({**state, "classifier.weight": torch.zeros(2, 32)}, Path(tiny()))
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    found = to_flat(prefix, "P-Tuning v2")
    np.testing.assert_allclose(found, flat.detach().float(), atol=tolerance)
    assert prefix.reading.first_position == 4 and prefix.reading.pooling == "cls"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_layout_is_that_of_peft(tiny, tmp_path):
    config = PrefixTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=4)
    model = get_peft_model(AutoModel.from_pretrained(tiny()), config)
    model.save_pretrained(tmp_path)
    embedding = model.prompt_encoder["default"].embedding.weight
    prefix = load_p_tuning({"prefix_encoder.embedding.weight": embedding}, tiny(), pooling="auto")
    assert prefix == load_peft(tmp_path)
    first = load_p_tuning({"prefix_encoder.embedding.weight": embedding}, tiny())
    assert first == replace(prefix, reading=replace(prefix.reading, pooling="cls"))


def test_state_without_a_prefix_encoder_is_refused(tiny):
    with pytest.raises(ValueError, match=r"no 'prefix_encoder.embedding.weight'.*'nonsense'"):
        load_p_tuning({"nonsense": np.zeros(3)}, tiny())
