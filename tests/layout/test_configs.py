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
from cogvideox.config.schema import NO_EFFECT, DataConfig, ModelConfig, SampleArgs, TrainArgs
from cogvideox.config.sections import field_names
from cogvideox.config.signatures import read_signature
from layout.source_tree import LIBRARY, ROOT, SOURCE

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PUBLISHED = sorted((ROOT / "tests/config/published").glob("*.yaml"))
# Complete configurations as the README writes them: files, kind, what the user adds.
COMPLETE = [
    (["cogvideox_2b.yaml", "sft.yaml"], "train", ["args.train_data=[clips]"]),
    (["cogvideox_2b_lora.yaml", "sft.yaml"], "train", ["args.train_data=[clips]"]),
    (["cogvideox_2b.yaml", "inference.yaml"], "sample", []),
    (["cogvideox_2b_lora.yaml", "inference.yaml"], "sample", ["args.load=ckpts/run"]),
]
# Keys that config hands on to a component, so that nobody else reads them.
SETTLED = {"checkpoint_activations", "compile_model", "num_steps", "guidance_scale"}
# Keys whose only accepted value is checked.
CHECKED = {
    "model_parallel_size",
    "image2video",
    "latent_channels",
    "latent_input",
    "noised_image_input",
    "noised_image_all_concat",
    "noised_image_dropout",
    "image_latent_scale",
}


@pytest.mark.parametrize("file", CONFIGS + PUBLISHED, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_file_checks_by_itself(file: Path) -> None:
    assert check_alone(str(file))


@pytest.mark.parametrize(("files", "kind", "overrides"), COMPLETE, ids=lambda value: str(value))
def test_complete_configurations(files: list[str], kind: str, overrides: list[str]) -> None:
    base = [str(ROOT / "configs" / file) for file in files]
    config = load_config(base, overrides, kind)  # type: ignore[arg-type]
    assert not config.warnings, "a shipped configuration warns"
    assert not config.notices, "a shipped configuration holds keys without effect"


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
    assert len(ALIASES) >= 22


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
    sources = [file for file in SOURCE.rglob("*.py") if "config" not in file.relative_to(SOURCE).parts]
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
