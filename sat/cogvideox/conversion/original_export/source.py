"""What is to be exported: weights and their configuration, found by the path of a run, a converted folder or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cogvideox.config.load import load_config
from cogvideox.config.schema import Config, ModelConfig, SampleArgs
from cogvideox.conversion.yaml_facts import YamlFacts, check_network, with_alpha
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.weights.base import TransformerWeights, read_transformer
from cogvideox.weights.families import TransformerFacts, read_facts
from cogvideox.weights.run_config import trained_config
from cogvideox.weights.sat_folder import LATEST_FILE, STATES_FILE, SatCheckpoint, read_checkpoint, read_latest

_MODEL_YAML, _TRANSFORMER = "model.yaml", "transformer"  # of a folder that convert_weight_hf2sat.py made
_ALL_WEIGHTS = ["first_stage_model", "conditioner"]


@dataclass(frozen=True)
class Source:
    """Everything that the export needs, read and compared."""

    checkpoint: SatCheckpoint
    weights: TransformerWeights
    facts: TransformerFacts
    yaml: YamlFacts
    yaml_files: tuple[Path, ...]
    sampling: SampleArgs  # precision, and for 1.5 the size of videos

    @property
    def readable_folder(self) -> Path | None:
        """The folder that the original can load as it is; None where a new one has to be written.

        It takes a folder whose `latest` names the weights, and all of them in one file.
        """
        folder = self.checkpoint.path.parent.parent
        is_latest = (folder / LATEST_FILE).is_file() and read_latest(folder) == self.checkpoint.path.parent.name
        whole = len(self.weights.files) == 1 and self.checkpoint.path.name == STATES_FILE
        return folder if whole and is_latest else None

    def model(self, *, merged: bool) -> ModelConfig:
        """The section `model` for these weights: with the adapters that they hold, or with none."""
        assert self.yaml.config is not None, "an export has a YAML"
        model = self.yaml.config.model
        params = dict(model.network_config["params"])
        modules = {slot: node for slot, node in (params.get("modules") or {}).items() if slot != "lora_config"}
        lora = None if merged else self.weights.lora
        frozen = model.not_trainable_prefixes
        if lora is not None:
            target = "cogvideox.transformer.lora.LoraMixin"
            modules["lora_config"] = {"target": target, "params": {"r": lora.rank, "lora_alpha": lora.alpha}}
        elif "all" in frozen:
            frozen = _ALL_WEIGHTS
        network = {**model.network_config, "params": {**params, "modules": modules}}
        return replace(model, network_config=network, not_trainable_prefixes=frozen)

    @property
    def text_encoder(self) -> str:
        """An absolute path, or a name on the hub. Raises: ConfigError when the YAML names none."""
        name = self.yaml.text_encoder
        if name is None:
            raise ConfigError("which text encoder? the YAML names none: model.conditioner_config...encoder.params")
        return str(name.resolve()) if isinstance(name, Path) else name

    @property
    def vae(self) -> str:
        """Absolute path. Raises: ConfigError for none; CheckpointError for one in diffusers' layout."""
        place = self.yaml.vae_path
        if place is None:
            raise ConfigError("which VAE? the YAML names none: model.first_stage_config.params.ckpt_path")
        if place.is_dir() and (place / "config.json").is_file():
            raise CheckpointError(
                f"the VAE {place} is in diffusers' layout, which the original can't read: convert it with "
                "tools/convert_weight_hf2sat.py --only vae"
            )
        return str(place.resolve())


def open_source(path: Path, iteration: str | None, base: Sequence[str], overrides: Sequence[str]) -> Source:
    """Read a run folder, a folder of convert_weight_hf2sat.py, a SAT folder or a file.

    base, overrides: YAML files and key=value; by default the run's own, or the converted folder's model.yaml.
    Raises: CheckpointError, ConfigError.
    """
    path = path.expanduser()
    converted = (path / _TRANSFORMER / LATEST_FILE).is_file()
    checkpoint = read_checkpoint(path / _TRANSFORMER if converted else path, iteration)
    files = list(base) or _yaml_beside(path if converted else None, checkpoint.path)
    config = load_config(files, overrides, "train", partial=True)
    yaml = YamlFacts(config)
    weights = with_alpha(read_transformer(checkpoint, yaml.num_layers, yaml.base_places), checkpoint, yaml)
    facts = read_facts(weights.plain_shapes, str(weights.files[-1]))
    check_network(yaml, facts, weights.files[0])
    sampling = load_config(files, overrides, "sample", partial=True).sample_args
    return Source(checkpoint, weights, facts, yaml, tuple(map(Path, files)), _precision(sampling, config))


def _yaml_beside(converted: Path | None, states: Path) -> list[str]:
    beside = trained_config(states) if converted is None else converted / _MODEL_YAML
    if beside is None or not beside.is_file():
        raise ConfigError(f"no YAML beside {states}: give the one it belongs to with --base, e.g. a file of configs/")
    return [str(beside)]


def _precision(sampling: SampleArgs, trained: Config) -> SampleArgs:
    """With the precision of the training, where the file is that of a run."""
    if sampling.bf16 or sampling.fp16:
        return sampling
    precision = trained.deepspeed.precision
    return replace(sampling, bf16=precision == "bf16", fp16=precision == "fp16")
