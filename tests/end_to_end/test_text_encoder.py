"""Training with the text encoder gone, on the CPU or on the device: the same run, and never beside the transformer."""

from __future__ import annotations

import logging
import re
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from cogvideox import stopping
from cogvideox.config.load import load_config
from cogvideox.errors import CheckpointError, ConfigError, DataError
from cogvideox.model import encode_captions
from cogvideox.parallel.groups import start_process_groups
from cogvideox.text.conditioner import Conditioner
from cogvideox.text.encoders import T5Encoder
from cogvideox.training import captions, evaluation
from cogvideox.training.trainer import Trainer
from encoder_watch import EncoderWatch
from processes import run_processes

Train = Callable[..., dict[str, Any]]
CHOICES = ("auto", "cpu", "device")
BF16 = "deepspeed.bf16.enabled=true"
ONE = "deepspeed.train_micro_batch_size_per_gpu=1"
# Held-out clips, and a preview whose prompt is no caption.
JUDGED = ("args.eval_split=0.25", "args.eval_prompts=['a white square moves up and right']", "args.sample_steps=1")


def record(summary: dict[str, Any]) -> tuple[Any, ...]:
    """What a run gives: losses, held-out losses, weights."""
    folder = Path(summary["run_folder"])
    lines = [line["train_loss"] for line in tiny.read_lines(folder) if "train_loss" in line]
    weights = {name: each.flatten().tolist() for name, each in tiny.read_states(folder).items()}
    return lines, summary["valid_loss"], weights


def test_all_captions_are_encoded_and_the_encoder_ended_before_the_transformer_comes(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = EncoderWatch(monkeypatch)
    summary = train(ONE, *JUDGED)
    assert len(record(summary)[0]) == 4 and len(summary["samples"]) == 2
    assert watch.events[:10] == [*["text of 1, transformer on meta"] * 9, "transformer gets memory, encoder gone"]
    assert set(watch.events[10:]) == {"transformer"}
    assert len(watch.captions) == len(set(watch.captions)) == 9  # 8 clips and a preview


def test_on_the_cpu_each_caption_is_encoded_when_it_first_comes(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = EncoderWatch(monkeypatch)
    train("args.text_encoder_device=cpu", ONE, "args.train_iters=12")
    texts = [event for event in watch.events if event.startswith("text")]
    assert watch.events[0] == "transformer gets memory" and texts == ["text of 1, transformer on cpu"] * 8
    assert len(set(watch.captions)) == 8 and watch.events[1:4] == [texts[0], "transformer", texts[0]]


@pytest.mark.parametrize("precision", [(), (BF16,)], ids=["fp32", "bf16"])
def test_where_it_encodes_changes_no_bit(
    train: Train, precision: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`device` is how it always was: it encodes every batch when it comes."""
    latents: list[Any] = []
    monkeypatch.setattr(evaluation, "write_frames", lambda _, latent, *__: latents.append(latent.tolist()))
    auto, cpu, device = (
        record(train(ONE, *precision, *JUDGED, f"args.text_encoder_device={choice}", save=choice)) for choice in CHOICES
    )
    assert auto == cpu == device
    assert len(latents) == 6 and latents[:2] == latents[2:4] == latents[4:]


def test_dropped_captions_are_the_same_zeros(train: Train) -> None:
    dropout = "model.conditioner_config.params.caption_dropout="
    half, other, none = (
        record(train(ONE, f"{dropout}{share}", f"args.text_encoder_device={choice}", save=f"{share}{choice}"))
        for share, choice in ((0.5, "auto"), (0.5, "device"), (0.0, "auto"))
    )
    assert half == other != none


def test_a_run_that_goes_on_elsewhere_is_the_same_run(train: Train, tmp_path: Path) -> None:
    common = (ONE, "args.save_interval=2", "deepspeed.gradient_accumulation_steps=2")
    whole = record(train(*common))
    stopped = Path(train(*common, "args.train_iters=2", "args.text_encoder_device=cpu", save="cut")["run_folder"])
    again = train(*common, f"args.resume={stopped}", save="cut")
    assert again["run_folder"] == str(stopped)
    lines, _, weights = record(again)
    assert lines == whole[0] and weights == whole[2]


def in_two_processes(settings: Path, folder: Path) -> dict[str, Any]:
    """One after the other, because processes take long to start. For each the captions that this process encoded and
    the summary, or what it ended with."""
    groups = start_process_groups("cpu", collective_seconds=120)
    shared = folder / "tmp"
    shared.mkdir(exist_ok=True)

    def run(name: str, *overrides: str, place: Path = shared, nan: bool = False) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            watch = EncoderWatch(patch)
            patch.setattr(tempfile, "tempdir", str(place))
            if nan and groups.rank == 1:
                patch.setattr(captions, "place_text_encoder", _broken)
            given = [f"args.save={folder / name}", ONE, *overrides]
            try:
                summary = Trainer(load_config([str(settings)], given, "train"), groups).fit()
            except (CheckpointError, DataError) as error:
                return str(error)
            return watch.captions, summary

    own = folder / f"tmp-{groups.rank}"
    own.mkdir()
    return {
        **{choice: run(choice, "args.train_iters=8", f"args.text_encoder_device={choice}") for choice in CHOICES},
        "apart": run("apart", "args.train_iters=1", place=own),
        "no place": run("no place", place=folder / "nowhere" if groups.rank else shared),
        "nan": run("nan", nan=True),
    }


def _broken(*_: Any) -> None:
    raise CheckpointError("NaN in the text encoder of this machine")


def test_two_processes(settings: Path, train: Train, tmp_path: Path) -> None:
    both = run_processes(in_two_processes, 2, settings, tmp_path)
    seen = {name: [each[name][0] for each in both] for name in (*CHOICES, "apart")}
    # They share the captions of one folder, and change no bit by it; with folders of their own, as on two machines,
    # each encodes all.
    assert [len(each) for each in seen["auto"]] == [4, 4] and len({*seen["auto"][0], *seen["auto"][1]}) == 8
    assert len(seen["cpu"][0]) + len(seen["cpu"][1]) == len({*seen["cpu"][0], *seen["cpu"][1]}) == 8
    assert [len(set(each)) for each in seen["apart"]] == [8, 8]
    auto, cpu, device = (record(both[0][choice][1]) for choice in CHOICES)
    assert auto == cpu == device
    alone = record(train("args.train_iters=8", "deepspeed.train_micro_batch_size_per_gpu=2"))
    assert auto[0] == pytest.approx(alone[0], rel=2e-5)
    # What one can't do ends both, and nothing stays behind.
    for name, message in (("no place", "no temporary file for the contexts .*nowhere"), ("nan", "NaN in the text")):
        assert both[0][name] == both[1][name] and re.search(message, both[0][name])
    assert not [file for file in tmp_path.rglob("*") if "tmp" in file.parts[-2]]
    assert not (tmp_path / "nan").exists() and not (tmp_path / "no place").exists()


def test_encoding_can_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conditioner, "encode_once", lambda *_: pytest.fail("encoded although asked to stop"))
    with stopping.listen(), stopping.deferred():
        stopping.request(signal.SIGTERM, "a test")
        with pytest.raises(stopping.Stopped, match="a test"):
            encode_captions.encode_each(Conditioner(None), ["a"])


def test_an_unknown_place_is_refused_with_those_that_there_are(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"text_encoder_device: must be one of auto, device, cpu, not 'gpu'"):
        train("args.text_encoder_device=gpu")


def test_a_checkpoint_that_does_not_fit_is_found_before_anything_is_encoded(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(T5Encoder, "forward", lambda *_: pytest.fail("a caption was encoded"))
    with pytest.raises(CheckpointError, match="the configuration describes"):
        train("model.network_config.params.num_layers=3")


def test_what_is_said(train: Train, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    monkeypatch.setattr(encode_captions, "_SAY_EVERY_S", 0.0)
    with caplog.at_level("INFO", logger="cogvideox"):
        train("args.train_iters=1")
        train("args.train_iters=1", "args.text_encoder_device=cpu", save="cpu")
    place = re.escape(tempfile.gettempdir())
    assert re.search(rf"8 different captions are encoded now, on cpu; 10 kB in {place} hold them", caplog.text)
    assert "8 different captions are encoded when they first come, on cpu" in caplog.text
    assert re.search(r"3 of 8 captions encoded, [\d.]+ per second", caplog.text)
