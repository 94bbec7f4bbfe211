"""Sampling never holds text encoder and transformer together, and the videos don't depend on where it encodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cogvideox.config.load import load_config
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.model import encode_captions
from cogvideox.parallel.groups import ProcessGroups, start_process_groups
from cogvideox.sampling.run import load_for_sampling, run_sampling
from cogvideox.text.encoders import T5Encoder
from encoder_watch import EncoderWatch
from processes import run_processes
from safetensors.torch import load_file

CPU = torch.device("cpu")
ALONE = ProcessGroups(rank=0, world_size=1, local_rank=0, device=CPU)
PROMPTS = ["a red square moves left", "a blue square moves up", "a red square moves left"]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFamily:
    return tiny.write_family(tmp_path_factory.mktemp("family") / "tiny", num_clips=0)


def config_of(family: tiny.TinyFamily, output: Path, **args: Any) -> Any:
    given = {"prompts": PROMPTS, "save_latents": True, "num_steps": 1, **args}
    return load_config([str(family.model_yaml)], tiny.sample_overrides(family, output, **given), "sample")


@pytest.mark.parametrize("choice", ["auto", "cpu"])
def test_each_prompt_is_encoded_once_and_the_encoder_is_gone_before_the_transformer_comes(
    choice: str, family: tiny.TinyFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As T5-XXL it would take 9 GB of device and machine for as long as sampling takes."""
    watch = EncoderWatch(monkeypatch)
    config = config_of(family, tmp_path, text_encoder_device=choice, num_samples=2, batch_size=2)
    run_sampling(config, ALONE)
    text = ["text of 1, transformer on meta"] * 2
    assert watch.events[:3] == [*text, "transformer gets memory, encoder gone"]
    assert set(watch.events[3:]) == {"transformer"}


def test_on_the_device_it_stays(family: tiny.TinyFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = EncoderWatch(monkeypatch)
    run_sampling(config_of(family, tmp_path, text_encoder_device="device"), ALONE)
    one = ["text of 1, transformer on cpu", "transformer"]
    assert watch.events == ["transformer gets memory", *one * 3]


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["fp32", "bf16"])
def test_videos_are_the_same_bits_wherever_it_encodes(
    precision: dict[str, Any], family: tiny.TinyFamily, tmp_path: Path
) -> None:
    latents = {}
    for choice in ("auto", "cpu", "device"):
        folder = tmp_path / choice
        run_sampling(config_of(family, folder, text_encoder_device=choice, **precision), ALONE)
        files = sorted(folder.rglob("latent.safetensors"))
        latents[choice] = torch.stack([load_file(file)["latent"] for file in files])
    assert torch.equal(latents["auto"], latents["cpu"]) and torch.equal(latents["auto"], latents["device"])
    assert len(latents["auto"]) == 3 and not torch.equal(latents["auto"][0], latents["auto"][1])


def encoded_by(family: tiny.TinyFamily, folder: Path) -> list[str]:
    """The captions that this process has encoded."""
    seen: list[str] = []
    encode = T5Encoder.forward

    def note(module: Any, captions: list[str]) -> torch.Tensor:
        seen.extend(captions)
        return encode(module, captions)

    T5Encoder.forward = note  # type: ignore[method-assign]
    groups = start_process_groups("cpu", collective_seconds=60)
    run_sampling(config_of(family, folder, prompts=PROMPTS[:1]), groups)
    return seen


@pytest.mark.slow
def test_a_process_encodes_its_own_prompts_only(family: tiny.TinyFamily, tmp_path: Path) -> None:
    assert run_processes(encoded_by, 2, family, tmp_path) == [PROMPTS[:1], []]


def test_prompts_that_nobody_knows_beforehand_leave_the_encoder(family: tiny.TinyFamily, tmp_path: Path) -> None:
    config = config_of(family, tmp_path)
    model = load_for_sampling(config.model, config.sample_args, CPU)
    assert model.encode_text(["up", "a green square"]).shape == (2, tiny.TEXT_LENGTH, tiny.TEXT_WIDTH)
    known = load_for_sampling(config.model, config.sample_args, CPU, ["up"])
    with pytest.raises(AssertionError, match=r"given up before it has seen all of \['a green square'\]"):
        known.encode_text(["a green square"])


def test_a_checkpoint_that_does_not_fit_is_found_before_anything_is_encoded(
    family: tiny.TinyFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_captions, "place_text_encoder", lambda *_: pytest.fail("the text encoder was placed"))
    config = config_of(family, tmp_path)
    config.model.network_config["params"]["num_layers"] = 3
    with pytest.raises(CheckpointError, match=r"holds .* but the configuration describes"):
        run_sampling(config, ALONE)


@pytest.mark.parametrize("value", ["gpu", "cuda", "true"])
def test_other_places_are_refused_with_those_that_there_are(
    value: str, family: tiny.TinyFamily, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"args\.text_encoder_device: must be one of auto, device, cpu, not"):
        config_of(family, tmp_path, text_encoder_device=value)
