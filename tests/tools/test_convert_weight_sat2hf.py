"""Every kind of checkpoint becomes something that diffusers opens and that computes the same; mistakes are named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch
from cogvideox.config.targets import instantiate
from cogvideox.conversion.notes import MODEL_LEFT_OUT
from cogvideox.errors import CheckpointError, ConfigError, run_cli
from cogvideox.weights.hashes import FAST, SHA256, hash_of
from cogvideox.weights.sat_folder import STATES_FILE, read_checkpoint, read_vae, write_checkpoint
from convert_weight_sat2hf import main
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from huggingface_hub import RepoUrl
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_checkpoints import ALPHA, PREFIX, RANK, Checkpoints
from torch import Tensor

LATENT = (3, 4, 6)  # frames, height, width of the tiny family


def convert(output: Path, *arguments: Any) -> Path:
    main([*map(str, arguments), "--output_path", str(output)])
    return output


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """noised_latent, timestep, context."""
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(2, LATENT[0], 16, *LATENT[1:], generator=generator)
    return latent, torch.tensor([10, 700]), torch.randn(2, tiny.TEXT_LENGTH, tiny.TEXT_WIDTH, generator=generator)


@torch.no_grad()
def ours(state: dict[str, Tensor], lora: dict[str, Any] | None = None) -> Tensor:
    """The output of this framework's model with stored names and weights."""
    model = instantiate(tiny.network_node(lora), dtype=torch.float32)
    model.load_state_dict({name.removeprefix(PREFIX): value.float() for name, value in state.items()})
    return model(*inputs())


@torch.no_grad()
def theirs(transformer: CogVideoXTransformer3DModel) -> Tensor:
    latent, timestep, context = inputs()
    return transformer(latent, context, timestep).sample


def distance(mine: Tensor, reference: Tensor) -> float:
    return ((mine - reference).abs().max() / reference.std()).item()


def test_published_checkpoint_to_pipeline(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    family = checkpoints.family
    out = convert(tmp_path / "out", "--checkpoint", family.transformer, "--base", family.model_yaml, "--verify")
    text = capsys.readouterr().out
    for figure in (
        "52 tensors equal bit by bit",
        "VAE: 240 tensors equal",
        "pipeline: CogVideoXPipeline opens",
        "noise levels",
    ):
        assert figure in text
    pipeline = CogVideoXPipeline.from_pretrained(out)
    state = read_checkpoint(family.transformer).module
    assert distance(ours(state), theirs(pipeline.transformer)) <= 2e-5
    assert pipeline.scheduler.config.snr_shift_scale == 3.0
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    assert pipeline.vae.config.scaling_factor == 1.15258426
    assert pipeline.tokenizer("a red square").input_ids[-1] == 1
    assert not [file for file in out.parent.iterdir() if file != out]


@pytest.mark.parametrize("flags", [(), ("--sha256",)])
def test_manifest_holds_true_hashes(checkpoints: Checkpoints, tmp_path: Path, flags: tuple[str, ...]) -> None:
    family = checkpoints.family
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(f"include: {family.model_yaml}\n")
    out = convert(tmp_path / "out", "--checkpoint", family.transformer, "--base", yaml, *flags)
    manifest = json.loads((out / "conversion.json").read_text())
    t5 = {file.name for file in family.t5.iterdir()}
    read = {STATES_FILE, "3d-vae.pt", "mine.yaml", "model.yaml", *t5}
    assert sorted(Path(each["path"]).name for each in manifest["inputs"]) == sorted(read)
    written = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} - {"conversion.json"}
    assert {"text_encoder/model.safetensors", "scheduler/scheduler_config.json", "model_index.json"} <= written
    assert sorted(each["path"] for each in manifest["outputs"]) == sorted(written)
    for each in [*manifest["inputs"], *manifest["outputs"]]:
        file = out / each["path"]  # an absolute path stays itself
        assert file.stat().st_size == each["bytes"]
        kinds = (FAST, SHA256) if flags else (FAST,)
        assert each.keys() == {"path", "bytes", *kinds}
        assert all(each[kind] == hash_of(file, kind) for kind in kinds)


def test_transformer_alone(checkpoints: Checkpoints, tmp_path: Path) -> None:
    family = checkpoints.family
    out = convert(
        tmp_path / "t", "--checkpoint", family.transformer, "--base", family.model_yaml, "--only", "transformer"
    )
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "config.json",
        "conversion.json",
        "diffusion_pytorch_model.safetensors",
    ]
    state = read_checkpoint(family.transformer).module
    assert distance(ours(state), theirs(CogVideoXTransformer3DModel.from_pretrained(out))) <= 2e-5


def test_vae_alone(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """Without a checkpoint; the number of norm groups, which no shape says, is in the YAML."""
    family = checkpoints.family
    out = convert(tmp_path / "v", "--vae", family.vae, "--base", family.model_yaml, "--verify")
    assert "VAE: decoded video" in capsys.readouterr().out
    found = AutoencoderKLCogVideoX.from_pretrained(out)
    assert sum(value.numel() for value in found.state_dict().values()) == sum(
        value.numel() for value in read_vae(family.vae).values()
    )


def test_vae_alone_by_old_flags(tmp_path: Path) -> None:
    """Without YAML and checkpoint they say what no tensor does; 32 norm groups, as released."""
    paths = tiny.TinyFamily(tmp_path)
    node = tiny.model_section(paths)["first_stage_config"]
    node["params"] |= {"ch": 32, "ch_mult": [1, 1, 1, 1], "norm_num_groups": 32}
    del node["params"]["ckpt_path"]
    torch.save({"state_dict": instantiate(node).state_dict()}, tmp_path / "vae.pt")
    flags = ("--vae_ckpt_path", tmp_path / "vae.pt", "--scaling_factor", "0.7")
    for version, inverts in (("1.0", False), ("1.5", True)):
        config = AutoencoderKLCogVideoX.from_pretrained(
            convert(tmp_path / version, *flags, "--version", version)
        ).config
        assert (config.scaling_factor, config.invert_scale_latents) == (0.7, inverts)


def test_whole_engine_checkpoint_brings_its_own_vae(checkpoints: Checkpoints, tmp_path: Path) -> None:
    family = checkpoints.family
    nowhere = "model.first_stage_config.params.ckpt_path=/nowhere/3d-vae.pt"
    out = convert(
        tmp_path / "out", "--checkpoint", checkpoints.engine, "--base", family.model_yaml, nowhere, "--verify"
    )
    state = read_checkpoint(family.transformer).module
    assert distance(ours(state), theirs(CogVideoXPipeline.from_pretrained(out).transformer)) <= 2e-5


def test_lora_run_to_pipeline_and_lora_file(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """YAML, base, rank and alpha are all found by themselves, and weight 1.0 is what was trained."""
    out = convert(tmp_path / "out", "--checkpoint", checkpoints.run, "--verify")
    assert "LoRA: rank 4, alpha 6, kept apart" in (text := capsys.readouterr().out)
    assert "output with the LoRA at weight 1.0 differs by at most" in text
    pipeline = CogVideoXPipeline.from_pretrained(out)
    base = read_checkpoint(checkpoints.family.transformer).module
    assert distance(ours(base), theirs(pipeline.transformer)) <= 2e-5
    pipeline.load_lora_weights(out)
    whole = read_checkpoint(checkpoints.old_lora).module
    expected = ours(whole, {"r": RANK, "lora_alpha": ALPHA})
    assert distance(expected, ours(base)) > 0.05, "the adapters must have a visible effect"
    assert distance(expected, theirs(pipeline.transformer)) <= 2e-5


def test_lora_file_alone(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    out = convert(tmp_path / "lora", "--checkpoint", checkpoints.run, "--only", "lora", "--verify")
    assert "output with the LoRA at weight 1.0" in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "conversion.json",
        "pytorch_lora_weights.safetensors",
    ]
    with safe_open(out / "pytorch_lora_weights.safetensors", "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
        assert len(file.keys()) == 2 * 4 * 2
    assert header["transformer.r"] == RANK
    assert header["transformer.lora_alpha"] == ALPHA
    assert sorted(header["transformer.target_modules"]) == ["to_k", "to_out.0", "to_q", "to_v"]
    assert not [file for file in tmp_path.iterdir() if file != out]


def test_lora_alone_from_a_file_with_its_model(checkpoints: Checkpoints, tmp_path: Path, capsys: Any) -> None:
    """Training may have changed the model too, and the LoRA file doesn't hold that."""
    family = checkpoints.family
    convert(tmp_path / "a", "--checkpoint", checkpoints.old_lora, "--base", family.model_yaml, "--only", "lora")
    assert f"note: {MODEL_LEFT_OUT}" in capsys.readouterr().out
    convert(tmp_path / "b", "--checkpoint", checkpoints.run, "--only", "lora")
    assert MODEL_LEFT_OUT not in capsys.readouterr().out


def test_merged_equals_unmerged(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = convert(tmp_path / "m", "--checkpoint", checkpoints.run, "--merge_lora", "--only", "transformer", "--verify")
    whole = read_checkpoint(checkpoints.old_lora).module
    expected = ours(whole, {"r": RANK, "lora_alpha": ALPHA})
    assert distance(expected, theirs(CogVideoXTransformer3DModel.from_pretrained(out))) <= 2e-5
    assert json.loads((out / "conversion.json").read_text())["lora"] == {"r": RANK, "alpha": ALPHA, "merged": True}


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_old_lora_has_alpha_one_unless_its_yaml_says_otherwise(
    checkpoints: Checkpoints, tmp_path: Path, alpha: float | None
) -> None:
    family = checkpoints.family
    lora = {"r": RANK} if alpha is None else {"r": RANK, "lora_alpha": alpha}
    section = tiny.model_section(family, lora={"r": RANK})
    section["network_config"]["params"]["modules"]["lora_config"]["params"] = lora
    yaml = tiny.write_yaml(tmp_path / "old.yaml", {"model": section})
    out = convert(
        tmp_path / "m", "--checkpoint", checkpoints.old_lora, "--base", yaml, "--merge_lora", "--only", "transformer"
    )
    expected = ours(read_checkpoint(checkpoints.old_lora).module, {"r": RANK, "lora_alpha": alpha or 1.0})
    assert distance(expected, theirs(CogVideoXTransformer3DModel.from_pretrained(out))) <= 2e-5


@pytest.mark.parametrize(("flag", "dtype"), [("--fp16", torch.float16), ("--bf16", torch.bfloat16)])
def test_types(checkpoints: Checkpoints, tmp_path: Path, flag: str, dtype: torch.dtype) -> None:
    family = checkpoints.family
    arguments = ("--checkpoint", family.transformer, "--base", family.model_yaml, flag, "--typecast_text_encoder")
    out = convert(tmp_path / "out", *arguments, "--verify")
    for name in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        assert {value.dtype for value in load_file(out / f"{name}.safetensors").values()} == {dtype}
    assert CogVideoXPipeline.from_pretrained(out).text_encoder.get_input_embeddings().weight.dtype == dtype


def test_stored_types_are_kept(checkpoints: Checkpoints, tmp_path: Path) -> None:
    state = {name: value.bfloat16() for name, value in read_checkpoint(checkpoints.family.transformer).module.items()}
    write_checkpoint(tmp_path / "half", 1, state, {})
    arguments = ("--base", checkpoints.family.model_yaml, "--only", "transformer", "--verify")
    out = convert(tmp_path / "out", "--checkpoint", tmp_path / "half", *arguments)
    found = load_file(out / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.bfloat16}


def test_text_encoder_from_the_cache_of_the_old_converter(checkpoints: Checkpoints, tmp_path: Path) -> None:
    family = checkpoints.family
    snapshot = tmp_path / "cache" / "models--google--t5-v1_1-xxl" / "snapshots" / "abc"
    shutil.copytree(family.t5, snapshot)
    arguments = ("--transformer_ckpt_path", family.transformer, "--vae_ckpt_path", family.vae)
    out = convert(
        tmp_path / "out", *arguments, "--base", family.model_yaml, "--text_encoder_cache_dir", tmp_path / "cache"
    )
    assert (out / "text_encoder" / "model.safetensors").is_file()


def test_old_flags_that_agree(checkpoints: Checkpoints, tmp_path: Path) -> None:
    family = checkpoints.family
    facts = "--num_layers 2 --num_attention_heads 2 --scaling_factor 1.15258426 --snr_shift_scale 3.0 --version 1.0"
    arguments = ("--checkpoint", family.transformer, "--base", family.model_yaml, "--only", "transformer")
    out = convert(tmp_path / "out", *arguments, *facts.split())
    assert any(out.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num_layers 30", r"--num_layers 30 contradicts the checkpoint .*2 layers.*it is 2; leave"),
        ("--num_attention_heads 48", r"--num_attention_heads 48 contradicts .*it is 2"),
        ("--use_rotary_positional_embeddings", r"--use_rotary_positional_embeddings contradicts .*does not apply"),
        ("--scaling_factor 0.7", r"--scaling_factor 0.7 contradicts .*it is 1.15258426"),
        ("--snr_shift_scale 1.0", r"--snr_shift_scale 1.0 contradicts .*it is 3.0"),
        ("--i2v", r"--i2v contradicts .*does not apply"),
        ("--version 1.5", r"--version 1.5 contradicts .*it is 1.0"),
        ("--merge_lora", r"holds no LoRA adapters: leave out --merge_lora"),
        ("--only lora", r"holds no LoRA adapters: leave out --only lora"),
    ],
)
def test_flags_that_contradict_the_checkpoint(
    checkpoints: Checkpoints, tmp_path: Path, flags: str, message: str
) -> None:
    family = checkpoints.family
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "out", "--checkpoint", family.transformer, "--base", family.model_yaml, *flags.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.network_config.params.num_layers=3", r"YAML says num_layers 3 \(checkpoint: 2\)"),
        ("model.network_config.params.hidden_size=128", r"YAML says hidden_size 128 \(checkpoint: 64\)"),
        (
            "model.network_config.params.modules.patch_embed_config.params.text_hidden_size=32",
            r"text_hidden_size 32 \(checkpoint: 16\)",
        ),
        (
            "model.network_config.params.modules.pos_embed_config.params.height_interpolation=2.0",
            r"height_interpolation 2.0 and width_interpolation 1.0 differ",
        ),
    ],
)
def test_yaml_that_contradicts_the_checkpoint(
    checkpoints: Checkpoints, tmp_path: Path, override: str, message: str
) -> None:
    family = checkpoints.family
    with pytest.raises(ConfigError, match=message):
        convert(
            tmp_path / "out",
            "--checkpoint",
            family.transformer,
            "--base",
            family.model_yaml,
            override,
            "--only",
            "transformer",
        )


def test_alpha_that_contradicts_the_checkpoint(checkpoints: Checkpoints, tmp_path: Path) -> None:
    config = {"model": tiny.model_section(checkpoints.family, lora={"r": RANK, "lora_alpha": 3.0})}
    yaml = tiny.write_yaml(tmp_path / "m.yaml", config)
    with pytest.raises(ConfigError, match=r"trained with lora_alpha 6, the YAML says 3: set .*lora_alpha to 6"):
        convert(tmp_path / "out", "--checkpoint", checkpoints.run, "--base", yaml, "--only", "lora")


def test_positions_of_another_clip_size_are_noticed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Interpolation is in no shape: --verify compares the tables."""
    family, room = checkpoints.family, "model.network_config.params.modules.pos_embed_config.params."
    wrong = [f"{room}{axis}_interpolation=2.0" for axis in ("height", "width")]
    arguments = ("--checkpoint", family.transformer, "--base", family.model_yaml, *wrong, "--only", "transformer")
    text = r"diffusers computes other positions than the checkpoint holds.*\. .*out stays as evidence: don't use it"
    with pytest.raises(CheckpointError, match=text):
        convert(tmp_path / "out", *arguments, "--verify")


def test_broken_result_is_noticed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    from cogvideox.conversion.diffusers_export.options import parse_options
    from cogvideox.conversion.diffusers_export.plan import make_plan
    from cogvideox.conversion.diffusers_export.verify import verify

    family, out = checkpoints.family, tmp_path / "out"
    arguments = ("--checkpoint", family.transformer, "--base", family.model_yaml, "--only", "transformer")
    convert(out, *arguments)
    file = out / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="differs after conversion"):
        verify(make_plan(parse_options([*map(str, arguments), "--output_path", str(out)])))


def test_base_that_has_gone_or_changed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    copy = tmp_path / "base.pt"
    shutil.copy(read_checkpoint(checkpoints.family.transformer).path, copy)
    trained = read_checkpoint(checkpoints.run)
    base = {"path": str(copy), "sha256": trained.extra["base"]["sha256"]}
    run = tmp_path / "run"
    write_checkpoint(run, 1, trained.module, {"lora": trained.extra["lora"], "base": base})
    shutil.copy(checkpoints.run / "training_config.yaml", run)
    convert(tmp_path / "fine", "--checkpoint", run, "--only", "lora")
    copy.write_bytes(copy.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=r"needs its base .*base.pt .*: that file has changed since"):
        convert(tmp_path / "out", "--checkpoint", run)
    copy.unlink()
    with pytest.raises(
        CheckpointError, match=r"base.pt .*: it is not there\. Put it back, or .*: args\.base_model=PATH"
    ):
        convert(tmp_path / "out", "--checkpoint", run)
    moved = f"args.base_model={checkpoints.family.transformer}"
    convert(tmp_path / "moved", "--checkpoint", run, "--only", "lora", "--base", moved)
    assert (tmp_path / "moved" / "pytorch_lora_weights.safetensors").is_file()
    write_checkpoint(tmp_path / "alone", 1, trained.module, {})
    with pytest.raises(CheckpointError, match="holds only a part of a transformer and names no base"):
        convert(tmp_path / "out", "--checkpoint", tmp_path / "alone", "--only", "lora")


def test_output_in_use(checkpoints: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    arguments = ("--checkpoint", checkpoints.run, "--only", "lora")
    convert(tmp_path / "out", *arguments)  # an empty folder is fine
    with pytest.raises(CheckpointError, match="out exists and is not empty"):
        convert(tmp_path / "out", *arguments)


def test_value_beyond_fp16(checkpoints: Checkpoints, tmp_path: Path) -> None:
    state = dict(read_checkpoint(checkpoints.family.transformer).module)
    state[PREFIX + "time_embed.2.bias"] = torch.full((32,), 1e6)
    write_checkpoint(tmp_path / "big", 1, state, {})
    arguments = ("--checkpoint", tmp_path / "big", "--base", checkpoints.family.model_yaml, "--only", "transformer")
    with pytest.raises(CheckpointError, match=r"time_embedding.linear_2.bias holds 1e\+06, beyond float16"):
        convert(tmp_path / "out", *arguments, "--fp16")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big"]
    convert(tmp_path / "out", *arguments, "--bf16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "nothing to convert: give --checkpoint"),
        ("--only transformer --vae x", "--only transformer needs --checkpoint"),
        ("--checkpoint x --only lora --merge_lora", "drop it, or use --only transformer"),
        ("--checkpoint x --typecast_text_encoder", "needs --fp16, --bf16 or --fp32"),
        ("--checkpoint x --fp16 --bf16", "not allowed with argument"),
        ("--checkpoint x --wrong", "unrecognized arguments: --wrong; see --help"),
        ("--checkpoint {transformer}", "which sizes it was trained at, no tensor says: give its YAML with --base"),
        ("--checkpoint {transformer} --base a.b=1", "overrides a YAML, but there is none"),
        (
            "--checkpoint {transformer} --base {yaml} model.first_stage_config.params.ckpt_path=null",
            "which VAE",
        ),
        (
            "--checkpoint {transformer} --base {yaml} model.first_stage_config.params.ckpt_path=/no.pt",
            "no VAE at /no.pt",
        ),
        ("--checkpoint {transformer} --base {yaml} --text_encoder /none", "no T5 folder at /none"),
        ("--checkpoint {transformer} --base {yaml} --text_encoder {vae_folder}", "is not a T5 text encoder"),
        ("--vae {vae} --base {yaml} model.first_stage_config.params.norm_num_groups=3", "norm groups"),
        ("--vae {transformer} --base {yaml}", "holds no VAE"),
        ("--vae {vae}", "no tensor of a VAE says which scale its latents have: give --base"),
        ("--checkpoint {vae} --base {yaml}", "is not a CogVideoX transformer in SAT layout"),
    ],
)
def test_mistakes_get_one_line_and_status_two(
    checkpoints: Checkpoints, tmp_path: Path, capsys: Any, arguments: str, message: str
) -> None:
    family = checkpoints.family
    words = arguments.format(
        transformer=family.transformer, vae=family.vae, vae_folder=family.vae.parent, yaml=family.model_yaml
    ).split()
    assert run_cli(main, [*words, "--output_path", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_keys_of_an_old_yaml(checkpoints: Checkpoints, tmp_path: Path) -> None:
    family = checkpoints.family
    arguments = ("--checkpoint", family.transformer, "--base", family.model_yaml, "args.no_such_key=1")
    with pytest.raises(ConfigError, match="no_such_key"):
        convert(tmp_path / "out", *arguments, "--only", "transformer")
    convert(tmp_path / "out", *arguments, "--only", "transformer", "--allow-unknown")


def test_text_encoder_that_is_nowhere(checkpoints: Checkpoints, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    key = "model.conditioner_config.params.encoder.params.model_dir"
    arguments = ("--checkpoint", checkpoints.family.transformer, "--base", checkpoints.family.model_yaml)
    with pytest.raises(CheckpointError, match=r"no T5 folder nobody/none, and Hugging Face .*give --text_encoder"):
        convert(tmp_path / "out", *arguments, f"{key}=nobody/none")


class FakeHub:
    """Stands for the Hugging Face service, which tests must not reach."""

    uploads: ClassVar[list[tuple[str, str]]] = []

    def create_repo(self, name: str, exist_ok: bool) -> Any:
        if name == "refused":
            raise OSError("401 Unauthorized\nmore")
        return RepoUrl(f"https://huggingface.co/me/{name}")

    def upload_folder(self, *, folder_path: Path, repo_id: str, ignore_patterns: list[str]) -> None:
        assert ignore_patterns == ["conversion.json"]
        self.uploads.append((folder_path.name, repo_id))

    def upload_file(self, *, path_or_fileobj: bytes, path_in_repo: str, repo_id: str) -> None:
        assert path_in_repo == "conversion.json"
        inputs = json.loads(path_or_fileobj)["inputs"]
        expected = {STATES_FILE, "training_config.yaml"}
        assert {each["path"] for each in inputs} == expected, "folders of this machine"
        assert b"/" not in path_or_fileobj


def test_upload(checkpoints: Checkpoints, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    arguments = ("--checkpoint", checkpoints.run, "--only", "lora", "--push_to_hub")
    convert(tmp_path / "mine", *arguments)
    assert FakeHub.uploads == [("mine", "me/mine")]
    assert "uploaded to https://huggingface.co/me/mine" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"refused is complete, but the upload failed \(401 Unauthorized\)"):
        convert(tmp_path / "refused", *arguments)
    assert (tmp_path / "refused" / "pytorch_lora_weights.safetensors").is_file()


def test_tokenizer_missing(checkpoints: Checkpoints, tmp_path: Path) -> None:
    shutil.copytree(checkpoints.family.t5, tmp_path / "t5")
    (tmp_path / "t5" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no T5 tokenizer: it needs spiece.model or tokenizer.json"):
        convert(tmp_path / "out", "--checkpoint", checkpoints.run, "--text_encoder", tmp_path / "t5")
    assert [file.name for file in tmp_path.iterdir()] == ["t5"]


def test_text_encoder_is_opened_before_anything_is_written(checkpoints: Checkpoints, tmp_path: Path) -> None:
    from cogvideox.conversion.diffusers_export.options import parse_options
    from cogvideox.conversion.diffusers_export.plan import make_plan

    shutil.copytree(checkpoints.family.t5, tmp_path / "t5")
    (tmp_path / "t5" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    words = ["--checkpoint", str(checkpoints.run), "--text_encoder", str(tmp_path / "t5")]
    with pytest.raises(CheckpointError, match=r"t5/model.safetensors is a Git LFS pointer"):
        make_plan(parse_options([*words, "--output_path", str(tmp_path / "out")]))


def test_as_a_command(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """From another directory, without installation; a mistake prints one line."""
    script = Path(__file__).resolve().parents[2] / "tools" / "convert_weight_sat2hf.py"
    command = [sys.executable, str(script), "--checkpoint", str(checkpoints.run), "--only", "lora"]
    done = subprocess.run([*command, "--output_path", "out"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()
    again = subprocess.run(
        [*command, "--output_path", "out"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.returncode == 2
    reason = "exists and is not empty: choose another place, or remove it first"
    assert again.stderr == f"error: {tmp_path / 'out'} {reason}\n"
