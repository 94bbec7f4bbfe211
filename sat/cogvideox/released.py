"""The published models of CogVideoX: what tells them apart, what they were trained with, and their YAML files.

The one table of these figures, for the check of a configuration, the weights, the conversions and the tools. It needs
nothing but numbers. Figures of a user's own model come from its weights and its YAML, never from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cogvideox.geometry import Geometry


@dataclass(frozen=True)
class Clip:
    """Pixel frames, their size in pixels, and frames per second."""

    frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class Generation:
    """CogVideoX 1.0 or 1.5: what all models of a generation share.

    frames_per_patch: latent frames in a patch, which tells the generations apart. clip: what it was trained on, and
    samples. latent_height, latent_width: where its positions end, in latents; 1.5's reach far beyond its clips.
    text_length: tokens per caption.
    """

    version: str
    frames_per_patch: int
    clip: Clip
    latent_height: int
    latent_width: int
    text_length: int

    @property
    def sampling_num_frames(self) -> int:
        """Latent frames of `args.sampling_num_frames`, padding included: 13 of 1.0, 22 of 1.5."""
        geometry = Geometry(patch_size=(self.frames_per_patch, 2, 2))
        return geometry.padded_frames(geometry.latent_frames(self.clip.frames))

    @property
    def training_yaml(self) -> str:
        """The file with the settings of training, relative to the repository."""
        return f"configs/sft{self._suffix}.yaml"

    def sampling_yaml(self, image_input: bool) -> str:
        """The file with the settings of sampling, relative to the repository."""
        return f"configs/inference{self._suffix}{'_i2v' if image_input else ''}.yaml"

    @property
    def _suffix(self) -> str:
        return "" if self is V1_0 else f"_{self.version}"


V1_0 = Generation("1.0", 1, Clip(49, 480, 720, 8), latent_height=60, latent_width=90, text_length=226)
V1_5 = Generation("1.5", 2, Clip(81, 768, 1360, 16), latent_height=300, latent_width=300, text_length=224)


def generation_of(frames_per_patch: int) -> Generation:
    """The generation of a network, by the latent frames in its patches."""
    return V1_5 if frames_per_patch > 1 else V1_0


@dataclass(frozen=True)
class Family:
    """A published model.

    short_name: for tables. hub_name: in diffusers' layout on the Hugging Face hub. learned_table: whether a learned
    position table is added. has_ofs: whether it embeds a constant that is added to the timestep's.
    image_latent_scale: of the first frame's latent; None without one.
    """

    name: str
    short_name: str
    hub_name: str
    yaml: str
    licence: Literal["Apache-2.0", "CogVideoX License"]
    generation: Generation
    hidden_size: int
    num_layers: int
    rotary: bool
    scale_factor: float
    shift_scale: float
    learned_table: bool = False
    image_input: bool = False
    has_ofs: bool = False
    image_latent_scale: float | None = None

    @property
    def key(self) -> str:
        """For tables and command lines: 2b, 5b, 5b_i2v, 1.5 or 1.5_i2v."""
        return self.short_name.lower().replace("-", "_")

    @property
    def lora_yaml(self) -> str:
        """The model's file with adapters."""
        return self.yaml.replace(".yaml", "_lora.yaml")

    @property
    def sampling_yaml(self) -> str:
        """The file with its settings of sampling."""
        return self.generation.sampling_yaml(self.image_input)

    @property
    def architecture(self) -> tuple[object, ...]:
        """What tells the published models apart, sizes aside; as `TransformerFacts.architecture`."""
        return (self.rotary, self.learned_table, self.generation.frames_per_patch, self.image_input, self.has_ofs)


COGVIDEOX_2B = Family(
    name="CogVideoX-2B",
    short_name="2B",
    hub_name="THUDM/CogVideoX-2b",
    yaml="configs/cogvideox_2b.yaml",
    licence="Apache-2.0",
    generation=V1_0,
    hidden_size=1920,
    num_layers=30,
    rotary=False,
    scale_factor=1.15258426,
    shift_scale=3.0,
)
COGVIDEOX_5B = Family(
    name="CogVideoX-5B",
    short_name="5B",
    hub_name="THUDM/CogVideoX-5b",
    yaml="configs/cogvideox_5b.yaml",
    licence="CogVideoX License",
    generation=V1_0,
    hidden_size=3072,
    num_layers=42,
    rotary=True,
    scale_factor=0.7,
    shift_scale=1.0,
)
COGVIDEOX_5B_I2V = Family(
    name="CogVideoX-5B-I2V",
    short_name="5B-I2V",
    hub_name="THUDM/CogVideoX-5b-I2V",
    yaml="configs/cogvideox_5b_i2v.yaml",
    licence="CogVideoX License",
    generation=V1_0,
    hidden_size=3072,
    num_layers=42,
    rotary=True,
    scale_factor=0.7,
    shift_scale=1.0,
    learned_table=True,
    image_input=True,
    image_latent_scale=0.7,
)
COGVIDEOX1_5 = Family(
    name="CogVideoX1.5-5B",
    short_name="1.5",
    hub_name="THUDM/CogVideoX1.5-5B",
    yaml="configs/cogvideox1.5_5b.yaml",
    licence="CogVideoX License",
    generation=V1_5,
    hidden_size=3072,
    num_layers=42,
    rotary=True,
    scale_factor=0.7,
    shift_scale=1.0,
)
COGVIDEOX1_5_I2V = Family(
    name="CogVideoX1.5-5B-I2V",
    short_name="1.5-I2V",
    hub_name="THUDM/CogVideoX1.5-5B-I2V",
    yaml="configs/cogvideox1.5_5b_i2v.yaml",
    licence="CogVideoX License",
    generation=V1_5,
    hidden_size=3072,
    num_layers=42,
    rotary=True,
    scale_factor=0.7,
    shift_scale=1.0,
    image_input=True,
    has_ofs=True,
    image_latent_scale=1.0,
)
FAMILIES = (COGVIDEOX_2B, COGVIDEOX_5B, COGVIDEOX_5B_I2V, COGVIDEOX1_5, COGVIDEOX1_5_I2V)
