"""What stands for files in a run on the simulated device: clips, weights, the text encoder's folder, and what is
written.

Only the border is replaced: where the program would open a file. Everything between is the program itself.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from cogvideox.config.buckets import largest_buckets
from cogvideox.config.schema import Config
from cogvideox.data.bucket_plan import BucketPlan
from cogvideox.data.clips import ClipDecoder, ReadDone
from cogvideox.data.dataset import VideoDataset
from cogvideox.data.decode import open_reader
from cogvideox.data.media import Media
from cogvideox.data.pool import Task
from cogvideox.data.sample import Sample
from cogvideox.errors import ConfigError
from cogvideox.geometry import Bucket
from cogvideox.training.preflight import clip_spec
from cogvideox.training.which_run import RunChoice
from cogvideox.weights.safetensors_stream import WrittenFile
from cogvideox.weights.sat_folder import begin_iteration
from cogvideox.weights.t5_config import t5_settings
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[2]
CAPTION = "a ship in a bottle"
# google/t5-v1_1-xxl, the encoder of all published models.
T5_XXL = {
    "vocab_size": 32128, "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class TextFolder:
    """In place of weights.text_encoder_folder.TextEncoderFiles: the sizes, and tensors without contents."""

    settings: dict[str, Any]
    folder: Path = Path("t5")
    tokenizer_folder: Path = ROOT / "demo" / "t5"

    def num_bytes(self, dtype: torch.dtype | None = None) -> int:
        return 0

    def read(self) -> dict[str, Tensor]:
        """As stored: fp32, on the CPU."""
        from transformers import T5Config, T5EncoderModel

        with torch.device("meta"):
            model = T5EncoderModel(T5Config(**self.settings))
        return {name: torch.empty(each.shape, dtype=torch.float32) for name, each in model.state_dict().items()}


class Pool:
    """In place of the processes that decode clips: every clip is read at once."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def next_result(self) -> tuple[object, object] | None:
        return self._tasks.pop(0).key, ReadDone("pyav")

    def stop_waiting(self) -> None: ...
    def close(self) -> None: ...


def text_settings(config: Config, layers: int | None = None) -> dict[str, Any]:
    """Sizes of the text encoder: of its folder where there is one, else T5-XXL's. layers: fewer of them.

    Raises: ConfigError where there is no folder and the network wants another width than T5-XXL's.
    """
    encoder = config.model.conditioner_config["params"]["encoder"]["params"]
    file = Path(encoder["model_dir"]).expanduser() / "config.json"
    network = config.model.network_config["params"]["modules"]["patch_embed_config"]["params"]
    width = network.get("text_hidden_size", T5_XXL["d_model"])
    if file.is_file():
        settings = t5_settings(json.loads(file.read_text(encoding="utf-8")), str(file))
    elif width == T5_XXL["d_model"]:
        settings = T5_XXL
    else:
        raise ConfigError(
            f"model.conditioner_config.params.encoder.params.model_dir: no {file}, and text_hidden_size is {width}, so "
            "it is not T5-XXL's (4096): give the folder of the text encoder"
        )
    return settings if layers is None else {**settings, "num_layers": layers}


def data_sets(config: Config, clips: int, bucket: Bucket | None = None) -> tuple[VideoDataset, VideoDataset | None]:
    """In place of the clips in train_data; as many are held out as are evaluated at once by each of the processes.
    bucket: of all of them; None for the run's one with most tokens."""
    spec, bucket = clip_spec(config), bucket or largest_buckets(config)[0]
    samples = tuple(Sample(Media(f"{n}.mp4"), (CAPTION,), n) for n in range(clips))
    data = VideoDataset(samples, ClipDecoder(spec, open_reader("pyav")), BucketPlan((bucket,)))
    args = config.train_args
    return data, data.first(args.eval_batch_size) if args.valid_data or args.eval_split > 0 else None


@contextmanager
def no_files(config: Config, settings: Mapping[str, Any], clips: int, bucket: Bucket | None = None) -> Iterator[None]:
    """Replace every place where a training run reads or writes large files. settings: of the text encoder; clips and
    bucket: see data_sets."""
    text, written = TextFolder(dict(settings)), _saved
    places: dict[str, Callable[..., Any]] = {
        "data.batches:open_pool": lambda *_: Pool(),
        "training.setup:prepare_data": lambda config: data_sets(config, clips, bucket),
        "training.setup:files_to_check": lambda *_: [],
        "training.starting_weights:load_transformer": lambda *_, **__: None,
        "training.setup:check_transformer": lambda *_, **__: None,
        "training.starting_weights:base_reference": lambda *_, **__: {},
        "training.checkpoint:begin_iteration": _begin_iteration,
        "training.trainer:choose_run": lambda args, claim: RunChoice(load=Path("weights") if args.load else None),
        "model.build:check_text_encoder": lambda config: None,
        "text.encoders:_locate": lambda *_: Path("t5"),
        "text.encoders:text_encoder_files": lambda folder: text,
        "vae.autoencoder:VideoAutoencoder.load_checkpoint": lambda *_: None,
        "weights.sat_folder:save_hashed": written,
        "training.training_state:save_hashed": written,
        "sampling.run:write_video": _shown,
        "sampling.run:write_png": lambda *_: None,
        "diffusion.timesteps:gaussian": _noise,
        "sampling.run:gaussian": _noise,
        "diffusion.schedule:NoiseSchedule.__init__": _with_numbers("diffusion.schedule:NoiseSchedule.__init__"),
        "diffusion.schedule:NoiseSchedule.sampling": _with_numbers("diffusion.schedule:NoiseSchedule.sampling"),
    }
    with ExitStack() as stack:
        for place, value in places.items():
            owner, name, _ = find(place)
            stack.enter_context(patch.object(owner, name, value))
        stack.enter_context(patch.object(ThreadPoolExecutor, "submit", _at_once))
        yield


def find(place: str) -> tuple[Any, str, Any]:
    """`room.module:Class.name` -> the owner, the name, and what it is now. AttributeError when there is no such
    thing."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(f"cogvideox.{module}")
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return owner, name, getattr(owner, name)


def _at_once(pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    """In place of a thread, which would not know of the device: modes of torch belong to the thread that entered
    them."""
    future: Future[Any] = Future()
    try:
        future.set_result(function(*args, **kwargs))
    except Exception as error:  # noqa: BLE001  # as a thread pool hands on whatever is raised
        future.set_exception(error)
    return future


def exists(place: str) -> bool:
    """Whether there is such a place; those that need not be there are written with a question mark at the end."""
    try:
        find(place.removesuffix("?"))
    except AttributeError:
        return False
    return True


def _noise(shape: Any, *key: int | str) -> Tensor:
    return torch.empty(tuple(shape))


def _with_numbers(place: str) -> Callable[..., Any]:
    """The noise schedule is a small table on the CPU whose numbers are needed."""
    own = find(place)[2]

    def with_numbers(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return own(*args, **kwargs)

    return with_numbers


def _begin_iteration(folder: Path, step: int, needed: int, *, overwrite: bool) -> tuple[Path, Path]:
    """Without a look at how much the disk holds."""
    return begin_iteration(folder, step, 0, overwrite=overwrite)


def _saved(path: Path, content: object, *_: object) -> WrittenFile:
    """In place of the writer, which copies every tensor to the CPU, one after the other."""
    for value in tree_leaves(content):
        if isinstance(value, Tensor):
            value.cpu()
    path.write_bytes(b"")
    return WrittenFile(path.name, 0, "")


def _shown(path: Path, video: Iterator[Tensor], fps: float) -> Path:
    """In place of the encoder: frames are fetched, and dropped."""
    from cogvideox.sampling.write_video import to_uint8

    for piece in video:
        to_uint8(piece).permute(0, 2, 3, 1).contiguous().cpu()
    return path
