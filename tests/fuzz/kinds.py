"""What is mutated: for each kind of input a specimen, the files that go wrong, and the program's own reader of them."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import tiny
import torch
from cogvideox.config.compare import changed_settings
from cogvideox.config.load import load_config, read_trained_model
from cogvideox.conversion.diffusers_import.model_yaml import check_yamls
from cogvideox.conversion.diffusers_import.options import parse_options
from cogvideox.conversion.diffusers_import.plan import make_plan
from cogvideox.data.clips import ClipDecoder, ReadJob
from cogvideox.data.decode import open_reader
from cogvideox.data.images import read_image
from cogvideox.data.media import Media
from cogvideox.data.sources.read import read_sources
from cogvideox.data.sources.spec import SourceSpec
from cogvideox.data.survey import Survey
from cogvideox.data.timing import ClipSpec
from cogvideox.sampling.prompts import read_prompt_file
from cogvideox.text.encoders import T5Encoder
from cogvideox.training.training_state import TrainingState, read_state, state_file, write_state
from cogvideox.weights.integrity import FileChecks
from cogvideox.weights.lora_file import read_adapter
from cogvideox.weights.lora_map import TARGETS
from cogvideox.weights.manifest import write_checkpoint_manifest
from cogvideox.weights.sat_folder import find_states_file, read_checkpoint, read_vae, write_checkpoint
from data.clip_files import numbered_frame, render
from fuzz.mutate import BYTES, HOSTILE_NAMES, REPLACED, TEXT, Mutation, json_values, yaml_tricks, yaml_values
from PIL import Image
from safetensors.torch import save_file

WIDTH = 16
_UNTOUCHED_NS = 10**18  # the time of change that files of a specimen are given once they are read


@dataclass(frozen=True)
class Kind:
    """files: globs in the specimen's folder, of which one is changed. read: what the program does with the folder.

    count: cases in a full run. is_exact: a checksum tells a change, so that what is read must be the specimen's.
    """

    prepare: Callable[[Path], object]
    files: tuple[str, ...]
    mutations: tuple[Mutation, ...]
    read: Callable[[Path], Any]
    count: int = 40
    is_exact: bool = False


def _family(folder: Path) -> tiny.TinyFamily:
    return tiny.TinyFamily(folder / "family")


def _run_yaml(folder: Path) -> None:
    tiny.write_yaml(folder / "training_config.yaml", tiny.train_settings(_family(folder), folder / "runs"))


def _read_run_yaml(folder: Path) -> str:
    return load_config([str(folder / "training_config.yaml")], [], "train").resolved_yaml


def _read_saved_yaml(folder: Path) -> None:
    changed_settings(folder / "training_config.yaml", "args: {seed: 1}")
    read_trained_model(folder / "training_config.yaml")


def _override(file: Path, rng: random.Random) -> None:
    keys = ["args.load", "args.seed", "args.resume", "args.train_data", "data.fps", "deepspeed", "model.sampler_config"]
    keys += ["model.network_config.params.modules", "args.train_data.²", "args..seed", "", "a" * 3000, "a." * 200 + "a"]
    values = [
        "[" * 500,
        "{",
        "!!int x",
        "0b_",
        "None",
        "1\nb: 2",
        "*a",
        "&a [*a]",
        "'",
        "\0",
        "~",
        "==",
        *HOSTILE_NAMES,
    ]
    file.write_text(json.dumps([f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.randrange(1, 4))]))


def _read_overrides(folder: Path) -> None:
    overrides = json.loads((folder / "overrides.json").read_text())
    load_config([str(folder / "training_config.yaml")], overrides, "train", check_files=True)


def _overrides(folder: Path) -> None:
    _run_yaml(folder)
    for place in ("transformer", "clips", "t5", "vae/3d-vae.pt"):  # only looked for
        (folder / "family" / place).mkdir(parents=True)
    (folder / "overrides.json").write_text("[]")


def _checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    module = {f"model.diffusion_model.layer.{n}.weight": torch.randn(40, 50) for n in range(4)}
    write_checkpoint(folder, 3, module, {"lora": {"r": 4, "alpha": 4.0}})


def _read_checkpoint(folder: Path) -> Mapping[str, torch.Tensor]:
    with FileChecks([find_states_file(folder)]) as checks:
        tensors = {name: value.clone() for name, value in read_checkpoint(folder).module.items()}
        checks.wait()
    return tensors


def _state(folder: Path) -> None:
    """The state of a run with three parameters, as a save leaves it."""
    torch.manual_seed(0)
    moments = {n: {"step": 3.0, "exp_avg": torch.randn(40), "exp_avg_sq": torch.rand(40)} for n in range(3)}
    base = {"param_groups": [{"params": [0, 1, 2], "lr": 1e-3}], "state": moments}
    optimizer = {"kind": "torch", "base": base, "masters": [], "loss_scale": {}}
    (folder / "3").mkdir()
    written = write_state(folder / "3", 0, TrainingState(3, 12, "abc", 1, optimizer))
    write_checkpoint_manifest(folder / "3", 3, [written])


def _read_state(folder: Path) -> Mapping[str, torch.Tensor]:
    with FileChecks([state_file(folder / "3", 0)]) as checks:
        state = read_state(folder / "3", 0)
        moments = state.optimizer["base"]["state"]
        tensors = {f"{n} {name}": torch.as_tensor(each[name]).clone() for n, each in moments.items() for name in each}
        checks.wait()
    return tensors


def _vae(folder: Path) -> None:
    torch.manual_seed(0)
    names = ("encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight", "decoder.conv_out.conv.weight")
    torch.save({"state_dict": {name: torch.randn(4, 3) for name in names}}, folder / "3d-vae.pt")


def _adapter(folder: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        f"base_model.model.transformer_blocks.{layer}.{target.diffusers}.lora_{kind}.weight": torch.randn(shape)
        for layer in range(2)
        for target in TARGETS
        for kind, shape in (("A", (4, WIDTH)), ("B", (WIDTH, 4)))
    }
    header = {"transformer.r": 4, "transformer.lora_alpha": 8}
    save_file(tensors, folder / "adapter_model.safetensors", {"lora_adapter_metadata": json.dumps(header)})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": True, "rank_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _pickled_adapter(folder: Path) -> None:
    _adapter(folder)
    from safetensors.torch import load_file

    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def _encode(folder: Path) -> None:
    T5Encoder(str(folder / "t5"), max_length=8)(["a red square"])


def _pipeline(folder: Path) -> None:
    """A whole diffusers pipeline, as our own exporter writes it."""
    import convert_weight_sat2hf

    family = tiny.write_family(folder / "family", num_clips=0)
    words = ["--checkpoint", family.transformer, "--base", family.model_yaml, "--output_path", folder / "hf"]
    convert_weight_sat2hf.main([*map(str, words)])


def _plan(folder: Path) -> None:
    plan = make_plan(parse_options([str(folder / "hf"), "--output_path", str(folder / "out")]))
    check_yamls(plan)


def _clips(folder: Path) -> None:
    tiny.write_clips(folder / "clips", 1)


def _read_captions(folder: Path) -> None:
    read_sources([folder / "clips"])


def _lists(folder: Path) -> None:
    """The same two clips in every layout of lists."""
    names, texts = ["clips/a.mp4", "b.mp4"], ["a cat, asleep", "猫"]
    (folder / "a.csv").write_text('video,caption\nclips/a.mp4,"a cat, asleep"\nb.mp4,猫\n', encoding="utf-8")
    clips = [{"video": name, "caption": [text, "x"], "type": "video"} for name, text in zip(names, texts, strict=True)]
    (folder / "a.json").write_text(json.dumps(clips, indent=1))
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, clips)))
    table = pa.table({"video": names, "caption": texts})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, content in (
            ("a.mp4", b"x" * 600),
            ("a.json", b'{"caption": "a cat"}'),
            ("b.mp4", b"y"),
            ("b.txt", b"z"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (folder / "saved").mkdir()
    (folder / "saved" / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    videos = pa.array([{"bytes": b"x" * 99, "path": "a.mp4"}, {"bytes": None, "path": "b.mp4"}])
    inside = pa.table({"video": videos, "caption": texts})
    with (
        pa.OSFile(str(folder / "saved" / "data.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, inside.schema) as writer,
    ):
        writer.write_table(inside)
    (folder / "lines").mkdir()
    (folder / "lines" / "videos.txt").write_text("a.mp4\nb.mp4\n")
    (folder / "lines" / "prompts.txt").write_text("a cat\na dog\n")


def _read_lists(folder: Path) -> None:
    for place in sorted(folder.iterdir()):
        for sample in read_sources([SourceSpec(str(place), layout=_LAYOUTS.get(place.name))]).samples:
            assert sample.captions and sample.media.label


def _read_clip(folder: Path) -> None:
    spec = ClipSpec((tiny.HEIGHT, tiny.WIDTH), tiny.FPS, tiny.FRAMES, 0.0, "skip", False)
    decoder = ClipDecoder(spec, open_reader("pyav"))
    for file in sorted((folder / "clips").glob("*.mp4")):
        if Survey.of(decoder.reader.probe(Media(str(file))), spec).too_short is None:
            decoder.read(ReadJob(Media(str(file)), 0, spec.bucket, 0, 0))


# Containers and codecs that people have beside H.264 in MP4.
VIDEOS = {
    "a.mkv": {"options": {"x264-params": "bframes=3:open-gop=1"}},
    "b.mov": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "c.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "d.webm": {"codec": "libvpx"},
    "e.avi": {"codec": "mpeg4"},
    "f.ts": {"codec": "mpeg2video"},
    "g.mpg": {"codec": "mpeg1video", "fps": 25},
    "h.flv": {"codec": "flv"},
    "i.wmv": {"codec": "wmv2"},
    "j.mp4": {"codec": "libsvtav1", "size": (64, 96), "options": {"preset": "12"}},
    "k.mov": {"codec": "mjpeg"},
}


def _videos(folder: Path) -> None:
    for name, options in VIDEOS.items():
        render(folder / name, 24, **{"fps": 16, **options})  # type: ignore[arg-type]
    pictures = [Image.fromarray(numbered_frame(number, 48, 96)) for number in range(24)]
    pictures[0].save(folder / "l.gif", save_all=True, append_images=pictures[1:], duration=60)


def _read_changed_video(folder: Path) -> None:
    """The one that was changed, or all of the specimen: its cuts, and the clip."""
    spec = ClipSpec((48, 96), 8, 9, short_clips="pad", scene_cuts="avoid")
    decoder = ClipDecoder(spec, open_reader("pyav", "avoid"))
    for file in sorted(folder.iterdir()):
        if file.lstat().st_mtime_ns == _UNTOUCHED_NS:
            continue
        media = Media(str(file))
        decoder.reader.probe(media)
        decoder.read(ReadJob(media, 0, spec.bucket, 0, 0))
        os.utime(file, ns=(_UNTOUCHED_NS, _UNTOUCHED_NS))


def _images(folder: Path) -> None:
    rng = random.Random(0)
    image = Image.frombytes("RGB", (40, 30), rng.randbytes(3600))
    for name in ("a.png", "a.jpg", "a.webp"):
        image.save(folder / name)


def _read_images(folder: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp"):
        read_image(Media(str(folder / name)))


def _prompts(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a ship\na red square\nthe sea\n")


def _t5(folder: Path) -> None:
    tiny.write_t5(folder / "t5")


_LAYOUTS = {"saved": "datasets", "lines": "lines"}
_JSON = (*TEXT, *REPLACED, *[json_values] * 20)
_YAML = (*TEXT, *REPLACED, *[yaml_values] * 20, *[yaml_tricks] * 8)
_BINARY = (*BYTES, *BYTES, *REPLACED)
_LINES = (*TEXT, *BYTES, *REPLACED)

KINDS: Mapping[str, Kind] = {
    "YAML": Kind(_run_yaml, ("*.yaml",), _YAML, _read_run_yaml, 80),
    "saved YAML": Kind(_run_yaml, ("*.yaml",), (*_LINES, yaml_values, yaml_tricks), _read_saved_yaml),
    "overrides": Kind(_overrides, ("*.json",), (_override,), _read_overrides),
    "latest": Kind(_checkpoint, ("latest",), _LINES, _read_checkpoint),
    "checkpoint": Kind(_checkpoint, ("3/*.pt",), _BINARY, _read_checkpoint, 60, is_exact=True),
    "manifest": Kind(_checkpoint, ("3/*.json",), _JSON, _read_checkpoint, 30),
    "training state": Kind(_state, ("3/*/*.pt",), _BINARY, _read_state, 60, is_exact=True),
    "VAE": Kind(_vae, ("*.pt",), _BINARY, lambda folder: read_vae(folder, check=False)),
    "adapter settings": Kind(_adapter, ("*.json",), _JSON, lambda folder: read_adapter(folder), 60),
    "adapter": Kind(_adapter, ("*.safetensors",), _BINARY, lambda folder: read_adapter(folder)),
    "adapter (.bin)": Kind(_pickled_adapter, ("*.bin",), _BINARY, lambda folder: read_adapter(folder)),
    "T5 settings": Kind(_t5, ("t5/*.json",), _JSON, _encode, 60),
    "T5 weights": Kind(_t5, ("t5/*.safetensors",), _BINARY, _encode, 30),
    "diffusers settings": Kind(_pipeline, ("hf/*.json", "hf/*/*.json"), _JSON, _plan, 60),
    "diffusers weights": Kind(_pipeline, ("hf/*/*.safetensors",), _BINARY, _plan, 20),
    "captions": Kind(_clips, ("clips/*.txt",), _LINES, _read_captions),
    "other videos": Kind(_videos, ("*.*",), _BINARY, _read_changed_video, 160),
    "lists": Kind(_lists, ("a.csv", "a.json*", "lines/*"), _LINES, _read_lists, 60),
    "lists in binary files": Kind(_lists, ("a.parquet", "a.tar", "saved/*.arrow"), _BINARY, _read_lists, 90),
    "lists in JSON": Kind(_lists, ("a.json", "*/*.json"), _JSON, _read_lists, 60),
    "videos": Kind(_clips, ("clips/*.mp4",), _BINARY, _read_clip, 60),
    "images": Kind(_images, ("a.*",), _BINARY, _read_images),
    "prompts": Kind(_prompts, ("*.txt",), _LINES, lambda folder: read_prompt_file(folder / "prompts.txt"), 30),
}
