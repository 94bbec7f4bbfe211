"""Every shipped configuration checks, every alias resolves, every key is used or known to be without effect."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from cogvideox.config.aliases import ALIASES
from cogvideox.config.check import check_alone
from cogvideox.config.consistency import NETWORK_SLOTS
from cogvideox.config.load import load_config
from cogvideox.config.schema import NO_EFFECT, DataConfig, Kind, ModelConfig, SampleArgs, TrainArgs
from cogvideox.config.sections import field_names
from cogvideox.config.signatures import read_signature
from layout.source_tree import LIBRARY, ROOT, SOURCE

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PUBLISHED = sorted((ROOT / "tests/config/published").glob("*.yaml"))
POSITIONS = "model.network_config.params.modules.pos_embed_config"
# Model files, and the training and sampling settings that go with them, as their headers say.
FAMILIES = {
    "cogvideox_2b": ("sft", "inference"),
    "cogvideox_5b": ("sft", "inference"),
    "cogvideox_5b_i2v": ("sft", "inference_i2v"),
    "cogvideox1.5_5b": ("sft_1.5", "inference_1.5"),
    "cogvideox1.5_5b_i2v": ("sft_1.5", "inference_1.5_i2v"),
}
CLIPS = "args.train_data=[clips]"
TRAIN = [([model, sft], [CLIPS]) for model, (sft, _) in FAMILIES.items()]
TRAIN += [([f"{model}_lora", sft], [CLIPS]) for model, (sft, _) in FAMILIES.items()]
TRAIN += [([f"{model}_lora", sft, "low_memory"], [CLIPS]) for model, (sft, _) in FAMILIES.items()]
TRAIN += [
    (["cogvideox1.5_5b", "sft_1.5"], [CLIPS, "data.max_num_frames=161"]),
    (["cogvideox1.5_5b_i2v_lora", "sft_1.5"], [CLIPS, "data.video_size=[480,720]", "args.sample_num_frames=9"]),
    (["cogvideox_5b_lora", "sft"], [CLIPS, "data.max_num_frames=1"]),
    (
        ["cogvideox_5b", "sft"],
        [CLIPS, "data.video_size=[720,480]", f"{POSITIONS}.params.resize=interpolate"],
    ),
    (["cogvideox_2b", "sft"], [CLIPS, "data.video_size=[720,480]", f"{POSITIONS}.params.resize=interpolate"]),
    (["demo_lora", "demo_sft"], []),
    (["demo", "demo_sft"], []),
    (["demo_5b", "demo_sft"], []),
    (["demo_1.5_i2v", "demo_sft_i2v"], []),
]
SAMPLE = [([model, inference], []) for model, (_, inference) in FAMILIES.items()]
SAMPLE += [([f"{model}_lora", inference], ["args.load=ckpts/run"]) for model, (_, inference) in FAMILIES.items()]
SAMPLE += [([model, inference, "low_memory"], []) for model, (_, inference) in FAMILIES.items()]
SAMPLE += [
    (["cogvideox1.5_5b", "inference_1.5"], ["args.sampling_num_frames=42"]),
    (["cogvideox1.5_5b", "inference_1.5"], ["args.sampling_num_frames=21", "args.num_steps=25"]),
    (["cogvideox_5b_i2v", "inference_i2v"], ["args.sampling_image_size=null"]),
    (["cogvideox_5b", "inference"], ["args.sampling_num_frames=1"]),
    (["demo_lora", "demo_inference"], []),
    (["demo_5b", "demo_inference"], []),
    (["demo_1.5_i2v", "demo_inference_i2v"], []),
]
# Keys that config hands on to a component, so that nobody else reads them.
SETTLED = {"checkpoint_activations", "offload_activations", "compile_model", "num_steps", "guidance_scale"}
# Keys whose only accepted value is checked.
CHECKED = {
    "model_parallel_size",
    "image2video",
    "latent_channels",
    "latent_input",
    "noised_image_all_concat",
}


@pytest.mark.parametrize("file", CONFIGS + PUBLISHED, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_file_checks_by_itself(file: Path) -> None:
    assert check_alone(str(file))


@pytest.mark.parametrize(("files", "overrides"), TRAIN, ids=lambda value: "+".join(value))
def test_complete_training_configurations(files: list[str], overrides: list[str]) -> None:
    _check_complete(files, overrides, "train")


@pytest.mark.parametrize(("files", "overrides"), SAMPLE, ids=lambda value: "+".join(value))
def test_complete_sampling_configurations(files: list[str], overrides: list[str]) -> None:
    _check_complete(files, overrides, "sample")


def _check_complete(files: list[str], overrides: list[str], kind: Kind) -> None:
    base = [str(ROOT / "configs" / f"{file}.yaml") for file in files]
    config = load_config(base, overrides, kind)
    assert not config.warnings, "a shipped configuration warns"
    assert not config.notices, "a shipped configuration holds keys without effect"


def test_every_shipped_config_is_in_some_complete_one() -> None:
    used = {file for files, _ in [*TRAIN, *SAMPLE] for file in files}
    assert used == {file.stem for file in CONFIGS}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_shipped_configs_use_our_names_only(file: Path) -> None:
    text = file.read_text()
    used = [name for name in ALIASES if re.search(rf"\b{re.escape(name)}\b", text)]
    assert not used, f"{file.name} uses published names: {used}"
    assert text.startswith("#"), "a config opens with its checkpoint, command and expected result"


@pytest.mark.parametrize("name", ALIASES)
def test_every_alias_resolves(name: str) -> None:
    alias = ALIASES[name]
    if alias.target is None:
        return
    keys = read_signature(alias.target).yaml_keys
    wrong = [ours for ours in [*alias.rename.values(), *alias.defaults] if ours not in keys]
    assert not wrong, f"{name}: {alias.target} has no parameters {wrong}"


def test_the_table_holds_every_published_target() -> None:
    fixtures = "".join(file.read_text() for file in PUBLISHED)
    found = set(re.findall(r"target: (\S+)", fixtures))
    assert found <= set(ALIASES), f"not in the table: {found - set(ALIASES)}"
    assert len(ALIASES) >= 23


def test_network_entries_are_those_of_the_transformer() -> None:
    tree = ast.parse((LIBRARY / "transformer/model.py").read_text())
    tables = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_MIXINS"
    ]
    assert list(tables[0]) == list(NETWORK_SLOTS)


@pytest.mark.parametrize(
    "section", [TrainArgs, SampleArgs, DataConfig, ModelConfig], ids=lambda section: section.__name__
)
def test_every_key_is_used_or_known_to_have_no_effect(section: type) -> None:
    # config checks every key, and conversion writes every key for the original program: that is no effect.
    without = {"config", "conversion"}
    sources = [file for file in SOURCE.rglob("*.py") if not without & set(file.relative_to(SOURCE).parts)]
    text = "\n".join(file.read_text() for file in sources)
    without_effect = {key for keys in NO_EFFECT.values() for key in keys}
    for name in field_names(section):
        is_read = re.search(rf"(args|data|model|config)\.{name}\b", text) is not None
        assert is_read or name in without_effect | SETTLED | CHECKED, f"nobody reads {section.__name__}.{name}"
        assert not (is_read and name in without_effect), f"{name} is read, so it has an effect: see schema.NO_EFFECT"


@pytest.mark.parametrize("file", ["sft.yaml", "inference.yaml", "cogvideox_2b.yaml"])
def test_every_key_is_commented(file: str) -> None:
    """A key at the level of args, model, data and deepspeed has a comment above it, or shares its neighbour's."""
    lines = (ROOT / "configs" / file).read_text().splitlines()
    keys = [i for i, line in enumerate(lines) if re.match(r"  \w+:", line)]
    uncommented = [
        lines[i].strip() for i in keys if not any(line.strip().startswith("#") for line in lines[max(0, i - 4) : i])
    ]
    assert not uncommented, f"{file}: no comment near {uncommented}"


def test_the_documentation_names_every_key() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    for section in (TrainArgs, SampleArgs, DataConfig, ModelConfig):
        missing = [name for name in field_names(section) if f"`{name}`" not in text]
        assert not missing, f"docs/configuration.md does not name {missing} of {section.__name__}"


def test_published_fixtures_are_plain_yaml() -> None:
    for file in PUBLISHED:
        assert set(yaml.safe_load(file.read_text())) <= {"args", "model", "data", "deepspeed"}
