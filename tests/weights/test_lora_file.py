"""LoRA files of every layout: what they are is found out, alpha is kept, and what has no place is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.base import LoraFacts
from cogvideox.weights.families import TRANSFORMER_PREFIX
from cogvideox.weights.lora_file import BASE_HEADER, complete, read_adapter, write_lora
from cogvideox.weights.lora_map import TARGETS, AdapterName, LayoutName
from cogvideox.weights.sat_folder import write_checkpoint
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

RANK, WIDTH, LAYERS, ALPHA = 3, 8, 2, 5.0
LORA = LoraFacts(RANK, ALPHA)
PEFT = "transformer.transformer_blocks.{}.{}.lora_{}.weight"


def matrices(dtype: torch.dtype = torch.float32, layers: int = LAYERS) -> dict[str, Tensor]:
    names = [AdapterName(i, target, kind) for i in range(layers) for target in TARGETS for kind in ("A", "B")]
    shapes = {"A": (RANK, WIDTH), "B": (WIDTH, RANK)}
    return {name.sat: torch.randn(shapes[name.kind]).to(dtype) for name in names}


def peft_file(path: Path, header: dict[str, Any] | None = None, **changes: Tensor | None) -> Path:
    """A file under diffusers' names; `changes` replace or remove (None) tensors by the end of their name."""
    state = {
        PEFT.format(i, target.diffusers, kind): torch.randn((RANK, WIDTH) if kind == "A" else (WIDTH, RANK))
        for i in range(LAYERS)
        for target in TARGETS
        for kind in ("A", "B")
    }
    for name, value in changes.items():
        state.pop(name, None)
        if value is not None:
            state[name] = value
    config = {f"transformer.{key}": value for key, value in (header or {}).items()}
    save_file(state, path, {"lora_adapter_metadata": json.dumps(config)} if header is not None else None)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["diffusers", "comfyui", "comfyui-wrapper"])
def test_round_trip_is_bit_equal(layout: LayoutName, dtype: torch.dtype, tmp_path: Path) -> None:
    there = matrices(dtype)
    base = {"path": "/home/me/base", "sha256": "0" * 64}
    write_lora(tmp_path, there, LORA, layout, base=base)
    back = read_adapter(tmp_path)
    assert back.lora == LORA and back.is_alpha_known
    assert back.base == {"sha256": "0" * 64}, "paths of this machine stay here"
    assert back.matrices.keys() == there.keys()
    for name, value in there.items():
        assert back.matrices[name].dtype == dtype and torch.equal(back.matrices[name], value)
    assert (back.num_layers, back.width) == (LAYERS, WIDTH)


def test_alpha_is_in_the_header_or_beside_every_module(tmp_path: Path) -> None:
    """diffusers refuses files with names that don't say lora; ComfyUI reads no header."""
    for layout in ("diffusers", "comfyui", "comfyui-wrapper"):
        (file,) = write_lora(tmp_path, matrices(), LORA, layout, stem=layout)
        state = load_file(tmp_path / file.name)
        alphas = [value.item() for name, value in state.items() if name.endswith(".alpha")]
        assert alphas == ([] if layout == "diffusers" else [ALPHA] * LAYERS * len(TARGETS))
        with safe_open(tmp_path / file.name, "pt") as opened:
            assert ("lora_adapter_metadata" in opened.metadata()) == (layout == "diffusers")
            assert BASE_HEADER not in opened.metadata()


def test_type_of_the_file(tmp_path: Path) -> None:
    write_lora(tmp_path, matrices(), LORA, "comfyui", dtype=torch.float16)
    adapter = read_adapter(tmp_path)
    assert {value.dtype for value in adapter.matrices.values()} == {torch.float16}
    assert adapter.lora.alpha == ALPHA


@pytest.mark.parametrize("extra", [{}, {"lora": {"r": RANK, "alpha": 1.0}}])
def test_sat_checkpoint(tmp_path: Path, extra: dict[str, Any]) -> None:
    """A file with base weights beside the adapters, with and without a stated alpha."""
    there = matrices()
    module = {TRANSFORMER_PREFIX + name: value for name, value in there.items()}
    module["conditioner.embedders.0.weight"] = torch.ones(2)
    write_checkpoint(tmp_path, 7, module, extra)
    adapter = read_adapter(tmp_path, iteration=7)
    assert adapter.matrices.keys() == there.keys()
    assert (adapter.layout, adapter.lora, adapter.is_alpha_known) == ("SAT", LoraFacts(RANK, 1.0), bool(extra))
    if not extra:
        assert read_adapter(tmp_path, alpha=2.0).lora == LoraFacts(RANK, 2.0)
        assert "SAT's default" in adapter.summary


@pytest.mark.parametrize(
    ("header", "alpha"),
    [
        ({"r": RANK, "lora_alpha": 6}, 6.0),
        ({"r": RANK, "lora_alpha": 6, "use_rslora": True}, 6.0 * RANK**0.5),
        ({"r": RANK}, None),
        (None, None),
    ],
)
def test_alpha_of_a_header(tmp_path: Path, header: dict[str, Any] | None, alpha: float | None) -> None:
    adapter = read_adapter(peft_file(tmp_path / "a.safetensors", header))
    assert adapter.is_alpha_known == (alpha is not None)
    assert adapter.lora.alpha == (alpha or RANK), "without one, diffusers applies scale 1"
    assert adapter.layout == "peft"


def test_alpha_that_is_said_twice(tmp_path: Path) -> None:
    """In the header and beside the modules: equal, or nobody knows which one was trained with."""
    folder = tmp_path / "both"
    (file,) = write_lora(tmp_path, matrices(), LORA, "comfyui", stem="plain")
    state = load_file(tmp_path / file.name)
    folder.mkdir()
    for alpha in (ALPHA, ALPHA + 1):
        save_file(state, folder / "a.safetensors", {"lora_adapter_metadata": json.dumps({"lora_alpha": alpha})})
        if alpha == ALPHA:
            assert read_adapter(folder).lora.alpha == ALPHA
    with pytest.raises(CheckpointError, match=r"its settings say alpha \d+, its \.alpha tensors \d+: one of them"):
        read_adapter(folder)


def test_alpha_of_the_caller(tmp_path: Path) -> None:
    silent = peft_file(tmp_path / "silent.safetensors")
    stated = peft_file(tmp_path / "stated.safetensors", {"lora_alpha": 6})
    assert read_adapter(silent, alpha=2.0).lora.alpha == 2.0
    assert read_adapter(stated, alpha=6.0).lora.alpha == 6.0
    with pytest.raises(CheckpointError, match=r"stated\.safetensors states alpha 6, not 2: leave --alpha out"):
        read_adapter(stated, alpha=2.0)


def test_alpha_of_pefts_own_folder(tmp_path: Path) -> None:
    peft_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 9, "use_dora": False}))
    assert read_adapter(tmp_path).lora == LoraFacts(RANK, 9.0)


def test_fewer_modules_become_zeros(tmp_path: Path) -> None:
    names = {PEFT.format(i, "attn1.to_k", kind): None for i in range(LAYERS) for kind in ("A", "B")}
    adapter = read_adapter(peft_file(tmp_path / "a.safetensors", **names))
    whole = complete(adapter.matrices, LAYERS)
    assert len(adapter.matrices) == 12 and whole.keys() == matrices().keys()
    for name in whole.keys() - adapter.matrices.keys():
        assert "query_key_value" in name and name.endswith(".1") and not whole[name].any()


def test_fewer_layers_become_zeros() -> None:
    there = matrices()
    whole = complete(there, LAYERS + 1)
    assert whole.keys() == matrices(layers=LAYERS + 1).keys() and whole.keys() > there.keys()
    assert all(torch.equal(whole[name], value) for name, value in there.items())
    assert not any(whole[name].any() for name in whole.keys() - there.keys())


WRONG = {
    "ranks": ({PEFT.format(0, "attn1.to_q", "A"): torch.ones(2, WIDTH)}, r"matrices have ranks \[2, 3\]"),
    "partner": ({PEFT.format(1, "attn1.to_v", "B"): None}, r"value\.matrix_A\.2 has no partner"),
    "shape": (
        {PEFT.format(0, "attn1.to_q", "B"): torch.ones(WIDTH, 2)},
        r"matrix_A\.0 \[3, 8\] and its partner \[8, 2\]",
    ),
    "place": (
        {PEFT.format(0, "ff.net.2", "A"): torch.ones(RANK, 32)},
        r"adapts ff\.net\.2, .* has no place: valid are",
    ),
    "twice": (
        {"blocks.0.q.lora_down.weight": torch.ones(RANK, WIDTH)},
        r"are the same matrix: it holds several LoRAs",
    ),
    "alphas": (
        {"blocks.0.q.alpha": torch.tensor(1.0), "blocks.1.q.alpha": torch.tensor(2.0)},
        r"have alphas \[1\.0, 2\.0\]",
    ),
    "alphas of some": (
        {"blocks.0.q.alpha": torch.tensor(1.0)},
        r"7 of its 8 modules have no \.alpha tensor, the others have one \(e\.g\. .*to_k\.lora_A\.weight\)",
    ),
    "alpha of two values": (
        {"blocks.0.q.alpha": torch.ones(2)},
        r"blocks\.0\.q\.alpha has the shape \[2\]; an alpha is one number",
    ),
    "number": ({PEFT.format(0, "attn1.to_q", "A"): torch.tensor(1.0)}, r"matrix_A\.0 has the shape \[\]; a LoRA's are"),
    "number of B": (
        {PEFT.format(0, "attn1.to_q", "B"): torch.tensor(1.0)},
        r"matrix_B\.0 has the shape \[\]; a LoRA's are",
    ),
    "rank 0": (
        {PEFT.format(0, "attn1.to_q", "A"): torch.ones(0, WIDTH)},
        r"matrix_A\.0 has the shape \[0, 8\]; a LoRA's are \[rank, width\]",
    ),
    "not finite": (
        {PEFT.format(1, "attn1.to_k", "B"): torch.full((WIDTH, RANK), float("nan"))},
        r"a\.safetensors: NaN or infinity in .*layers\.1\..*matrix_B\.1: training diverged",
    ),
    "quantised": (
        {PEFT.format(1, "attn1.to_k", "B"): torch.ones(WIDTH, RANK).to(torch.float8_e4m3fn)},
        r"a\.safetensors: .*matrix_B\.1 is stored as torch\.float8_e4m3fn; known are float16",
    ),
}
ALPHAS = {"zero": 0.0, "negative": -1.0, "NaN": float("nan"), "infinite": float("inf")}


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_are_refused(case: str, tmp_path: Path) -> None:
    changes, message = WRONG[case]
    with pytest.raises(CheckpointError, match=message):
        read_adapter(peft_file(tmp_path / "a.safetensors", **changes))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"r": 4, "lora_alpha": 4}, "states rank 4, its matrices have rank 3"),
        ({"lora_alpha": "eight"}, r"a\.safetensors: it states alpha 'eight', which is no number above 0"),
        ({"r": "3"}, "states rank '3', its matrices have rank 3"),
        ({"lora_alpha": True}, "it states alpha True, which is no number above 0"),
        ({"lora_alpha": [8]}, r"it states alpha \[8\], which is no number above 0"),
        *(({"lora_alpha": alpha}, r"it states alpha -?\w+(\.0)?, which is no number") for alpha in ALPHAS.values()),
        ({"rank_pattern": {"a": 2}}, r"its modules differ \(rank_pattern\)"),
        ({"alpha_pattern": {"a": 2}}, r"its modules differ \(alpha_pattern\)"),
        ({"use_dora": True}, "is a DoRA"),
    ],
)
def test_headers_that_are_refused(header: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_adapter(peft_file(tmp_path / "a.safetensors", header))


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
def test_alpha_that_no_lora_has(alpha: float, tmp_path: Path) -> None:
    tensors: dict[str, Tensor | None] = {
        f"blocks.{i}.{t.comfyui}.alpha": torch.tensor(alpha) for i in (0, 1) for t in TARGETS
    }
    with pytest.raises(CheckpointError, match=r"a\.safetensors: blocks.*alpha: it states alpha .* no number above 0"):
        read_adapter(peft_file(tmp_path / "a.safetensors", **tensors))


def test_alphas_alone(tmp_path: Path) -> None:
    save_file({"lora_unet_blocks_0_q.alpha": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no matrix of a LoRA, only lora_unet_blocks_0_q\.alpha"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"model": "2B"}, "'model' of its base is a str, a dict is expected"),
        ({"path": 3}, "'path' of its base is a int, a str is expected"),
        ("2B", "'base' of its entry 'cogvideox' is a str, a dict is expected"),
    ],
)
def test_records_of_the_base_that_are_refused(base: Any, message: str, tmp_path: Path) -> None:
    module = {TRANSFORMER_PREFIX + name: value for name, value in matrices().items()}
    write_checkpoint(tmp_path / "sat", 1, module, {"base": base})
    with pytest.raises(CheckpointError, match=message):
        read_adapter(tmp_path / "sat")
    if isinstance(base, dict):
        state = load_file(peft_file(tmp_path / "plain.safetensors"))
        save_file(state, tmp_path / "a.safetensors", {BASE_HEADER: json.dumps(base)})
        with pytest.raises(CheckpointError, match=message):
            read_adapter(tmp_path / "a.safetensors")


def test_sat_names_that_are_refused(tmp_path: Path) -> None:
    """The file is named, which matters among several."""
    there = {TRANSFORMER_PREFIX + name: value for name, value in matrices().items()}
    name = next(name for name in there if "matrix_A" in name)
    for case, change in {
        "shape": {name: torch.tensor(1.0)},
        "place": {name.replace("_A.0", "_A.7"): there[name]},
    }.items():
        write_checkpoint(tmp_path / case, 1, {**there, **change}, {})
        with pytest.raises(CheckpointError, match=rf"{case}/1/mp_rank_00.*pt: .*matrix_A\.\d"):
            read_adapter(tmp_path / case)


def test_broken_header(tmp_path: Path) -> None:
    save_file({PEFT.format(0, "attn1.to_q", k): torch.ones(RANK, RANK) for k in "AB"}, tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json holds a list, expected a mapping"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is no valid JSON: Expecting"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json can't be read"):
        read_adapter(tmp_path)


def test_which_file_a_folder_means(tmp_path: Path) -> None:
    """A run folder means its iteration, also with a file beside; else the known names, else the only one."""
    peft_file(tmp_path / "a.safetensors", {"lora_alpha": 1})
    assert read_adapter(tmp_path).lora.alpha == 1
    peft_file(tmp_path / "b.safetensors", {"lora_alpha": 2})
    with pytest.raises(CheckpointError, match=r"holds 2 \.safetensors files \(a\.safetensors, b\.safetensors\): name"):
        read_adapter(tmp_path)
    peft_file(tmp_path / "pytorch_lora_weights.safetensors", {"lora_alpha": 3})
    assert read_adapter(tmp_path).lora.alpha == 3
    module = {TRANSFORMER_PREFIX + name: value for name, value in matrices().items()}
    write_checkpoint(tmp_path, 7, module, {"lora": {"r": RANK, "alpha": 4.0}})
    assert read_adapter(tmp_path).lora.alpha == read_adapter(tmp_path, 7).lora.alpha == 4
    with pytest.raises(CheckpointError, match=r"a\.safetensors is one file: iteration 7 can be asked of"):
        read_adapter(tmp_path / "a.safetensors", 7)


def test_no_lora(tmp_path: Path) -> None:
    save_file({"transformer_blocks.0.attn1.to_q.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no LoRA adapters; its first names: transformer_blocks\.0"):
        read_adapter(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_adapter(tmp_path / "nowhere")
