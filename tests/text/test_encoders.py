"""The T5 encoder against transformers itself, and what it says about folders that don't fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.text.encoders import T5Encoder, open_tokenizer
from safetensors.torch import load_file, save_file
from text.tiny_t5 import build_tiny_t5
from transformers import AutoTokenizer, T5EncoderModel

CAPTIONS = ["a red square moves left", "", "the blue circle over the green triangle moves up and down and up again"]
LENGTH = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_t5(tmp_path_factory.mktemp("t5") / "spiece")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "t5"))


def reference(folder: Path, captions: list[str]) -> torch.Tensor:
    """transformers called directly: padded, cut, no mask."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
    with torch.no_grad():
        return T5EncoderModel.from_pretrained(folder).eval()(input_ids=ids).last_hidden_state


@pytest.mark.parametrize("kind", ["spiece", "fast"])
def test_equals_transformers_called_directly(kind: str, tmp_path: Path) -> None:
    folder = build_tiny_t5(tmp_path / "t5", tokenizer=kind)  # type: ignore[arg-type]
    assert (folder / "spiece.model").exists() == (kind == "spiece")
    encoder = T5Encoder(str(folder), max_length=LENGTH)
    context = encoder(CAPTIONS)
    assert context.shape == (3, LENGTH, 16) and encoder.width == 16
    assert torch.equal(context, reference(folder, CAPTIONS))


def test_pipeline_folders_work_too(copy: Path, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    for part, names in {"tokenizer": ["spiece.model"], "text_encoder": ["config.json", "model.safetensors"]}.items():
        (pipeline / part).mkdir(parents=True)
        for name in names:
            shutil.copy(copy / name, pipeline / part / name)
    assert torch.equal(T5Encoder(str(pipeline), LENGTH)(CAPTIONS), T5Encoder(str(copy), LENGTH)(CAPTIONS))


def test_tokens_are_counted_without_weights(folder: Path, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    counted = open_tokenizer(str(copy))(CAPTIONS)
    assert counted == T5Encoder(str(folder), LENGTH).count_tokens(CAPTIONS)
    (copy / "spiece.model").unlink()
    with pytest.raises(CheckpointError, match="holds no T5 tokenizer: it needs"):
        open_tokenizer(str(copy))
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="can't load the tokenizer"):
        open_tokenizer(str(copy))


def test_no_mask_hides_the_padding(folder: Path) -> None:
    """The same caption gives other states at another padded length, which a mask would prevent."""
    short, long = T5Encoder(str(folder), 20), T5Encoder(str(folder), 40)
    assert not torch.allclose(short(CAPTIONS[:1])[:, :5], long(CAPTIONS[:1])[:, :5], atol=1e-3)


def test_is_frozen_and_stays_in_evaluation_mode(folder: Path) -> None:
    encoder = T5Encoder(str(folder), LENGTH).train()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    assert not encoder(CAPTIONS).requires_grad
    assert torch.equal(encoder(CAPTIONS), encoder(CAPTIONS))


def test_counts_tokens_before_cutting(folder: Path) -> None:
    encoder = T5Encoder(str(folder), max_length=4)
    counts = encoder.count_tokens(CAPTIONS)
    assert counts[1] == 1 and counts[2] > counts[0] > 4  # the end token alone; longer than max_length
    assert encoder.tokenize(CAPTIONS).shape == (3, 4)


@pytest.mark.parametrize(("dtype", "wo"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_casting_keeps_the_output_matrix_out_of_fp16(folder: Path, dtype: torch.dtype, wo: torch.dtype) -> None:
    encoder = T5Encoder(str(folder), LENGTH)
    exact = encoder(CAPTIONS)
    encoder.move("cpu", dtype)
    dtypes = {name: p.dtype for name, p in encoder.named_parameters()}
    assert {d for name, d in dtypes.items() if ".wo." in name} == {wo}
    assert {d for name, d in dtypes.items() if ".wo." not in name} == {dtype}
    torch.testing.assert_close(encoder(CAPTIONS).float(), exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "T5 encoder: .* is not a T5 text encoder: it needs config.json"),
        ("model.safetensors", r"T5 encoder: .* has no weights: expected model.safetensors"),
        ("spiece.model", "T5 encoder: .* holds no T5 tokenizer: it needs spiece.model or tokenizer.json"),
    ],
)
def test_missing_files_are_named(copy: Path, name: str, message: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        T5Encoder(str(copy))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder .*nowhere.*Hugging Face id such as google/t5-v1_1-xxl"):
        T5Encoder(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="no folder t5-v1_1-xxl"):
        T5Encoder("t5-v1_1-xxl")


def test_folder_below_one_that_exists_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    with pytest.raises(CheckpointError, match="no folder weights/t5"):
        T5Encoder("weights/t5")


def test_id_that_can_not_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"no folder nobody/no-such-model .*and Hugging Face does not"):
        T5Encoder("nobody/no-such-model", cache_dir=str(tmp_path))


def test_file_instead_of_folder(copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"spiece.model is a file, a folder is needed"):
        T5Encoder(str(copy / "spiece.model"))


def test_other_family(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    with pytest.raises(CheckpointError, match="describes a 'clip' model, a 't5' model is needed"):
        T5Encoder(str(copy))


def test_broken_config(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"T5 encoder: .*config.json is no valid JSON"):
        T5Encoder(str(copy))


def test_missing_weight_is_not_filled_with_random_numbers(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights: encoder.block.1.layer.0.SelfAttention.q.weight"):
        T5Encoder(str(copy))


def test_truncated_weights(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"T5 encoder: .*model.safetensors is truncated or damaged"):
        T5Encoder(str(copy))


def test_broken_tokenizer(copy: Path) -> None:
    (copy / "spiece.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="can't load the tokenizer of"):
        T5Encoder(str(copy))


def test_length_must_be_positive(folder: Path) -> None:
    with pytest.raises(ConfigError, match="max_length is 0, must be at least 1"):
        T5Encoder(str(folder), max_length=0)


def test_config_names_no_code(copy: Path, tmp_path: Path) -> None:
    """What would fetch or import code elsewhere has no effect: the encoder is built from sizes alone."""
    expected = T5Encoder(str(copy), LENGTH)(CAPTIONS)
    canary = tmp_path / "ran"
    (copy / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Model: pass\nclass Tokenizer: pass\n")
    config = json.loads((copy / "config.json").read_text())
    code = {"attn_implementation": "org/kernel", "_attn_implementation": "org/kernel", "trust_remote_code": True}
    code["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Model", "AutoTokenizer": "evil.Tokenizer"}
    (copy / "config.json").write_text("\ufeff" + json.dumps({**config, **code}), encoding="utf-8")
    assert torch.equal(T5Encoder(str(copy), LENGTH)(CAPTIONS), expected)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": "2"}, r"num_layers is '2', a number from 1 to"),
        ({"d_model": None}, r"d_model is None, a number"),
        ({"vocab_size": [132]}, r"vocab_size is \[132\], a number"),
        ({"num_heads": True}, r"num_heads is True, a number"),
        ({"d_ff": 2**40}, r"d_ff is 1099511627776, a number from 1 to 1048576"),
        ({"num_layers": 1}, r"holds weights for which its config.json has no place: encoder.block.1"),
        ({"num_layers": 3}, r"lacks weights: encoder.block.2"),
        ({"d_kv": 4}, r"encoder.block.0.layer.0.SelfAttention.k.weight is torch.float32 \[16, 16\]; its .* \[8, 16\]"),
        ({"layer_norm_epsilon": "small"}, r"layer_norm_epsilon is 'small'"),
        ({"feed_forward_proj": "os.system"}, r"feed_forward_proj is 'os.system'; known are relu"),
        ({"relative_attention_num_buckets": 1}, r"relative_attention_num_buckets 1 and .* don't fit"),
        ({"quantization_config": {"load_in_4bit": True}}, r"quantised T5 weights are not read"),
        ({"model_type": {"a": 1}}, r"describes a \{'a': 1\} model"),
        ({"vocab_size": 20}, r"has tokens up to 131, the encoder knows 20: take both from one model"),
    ],
)
def test_config_with_wrong_values(copy: Path, change: dict[str, object], message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=f"T5 encoder: .*{message}"):
        T5Encoder(str(copy))


def test_tokenizers_own_exceptions(tmp_path: Path) -> None:
    folder = build_tiny_t5(tmp_path / "t5", tokenizer="fast")
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    for broken in ({**whole, "model": {"type": "Unknown"}}, {**whole, "version": 3}, {}):
        file.write_text(json.dumps(broken))
        with pytest.raises(CheckpointError, match="T5 encoder: can't load the tokenizer of"):
            T5Encoder(str(folder))


def test_integer_weights(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file({**weights, name: weights[name].int()}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{name} is torch.int32"):
        T5Encoder(str(copy))
