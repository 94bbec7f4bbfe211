"""Mistakes that a run on the simulated device has to find, each made in a process of its own kind: `python mistakes.py
NAME`.

Prints what was found as JSON. The clip is small and the network has two layers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "sat"), str(ROOT / "tools")]


def changed_loss(change: Any) -> Any:
    """A context in which the model's loss is `change` of it, in training."""

    @contextmanager
    def around() -> Iterator[None]:
        import torch
        from cogvideox.model.video_diffusion import VideoDiffusion

        own = VideoDiffusion.loss_of

        def loss_of(model: Any, *rest: Any) -> Any:
            loss = own(model, *rest)
            return change(torch, model, loss) if model.training else loss

        with patch.object(VideoDiffusion, "loss_of", loss_of):
            yield

    return around


def forgotten_device(torch: Any, model: Any, loss: Any) -> Any:
    return loss + torch.ones(2)


def number_on_the_host(torch: Any, model: Any, loss: Any) -> Any:
    assert float(loss.detach().mean()) == 1.0
    return loss


def truth_on_the_host(torch: Any, model: Any, loss: Any) -> Any:
    assert loss.isfinite().all()
    return loss


def waiting_copy(torch: Any, model: Any, loss: Any) -> Any:
    return loss + torch.ones(1).to(loss.device)


def copy_from_unpinned_memory(torch: Any, model: Any, loss: Any) -> Any:
    return loss + torch.ones(1).to(loss.device, non_blocking=True)


def right_copy(torch: Any, model: Any, loss: Any) -> Any:
    return loss + torch.ones(1).pin_memory().to(loss.device, non_blocking=True)


def synchronised(torch: Any, model: Any, loss: Any) -> Any:
    torch.cuda.synchronize()
    return loss


def cut_off(torch: Any, model: Any, loss: Any) -> Any:
    """Only half of the adapters are left in the graph."""
    kept = [p for n, p in model.named_parameters() if p.requires_grad and ".matrix_A." in n]
    return loss.detach() + torch.stack([p.sum() for p in kept]).sum()


MISTAKES = {each.__name__: each for each in (
    forgotten_device, number_on_the_host, truth_on_the_host, waiting_copy, copy_from_unpinned_memory, right_copy,
    synchronised, cut_off,
)}  # fmt: skip


def main(names: list[str]) -> None:
    from simulated_cuda.device import start

    start()
    from cogvideox.config.load import load_config
    from simulated_cuda.placement import check_placement
    from simulated_cuda.published import SMALL
    from simulated_cuda.worker import quiet

    quiet()
    files = [str(ROOT / "configs" / name) for name in ("cogvideox_2b_lora.yaml", "sft.yaml")]
    config = load_config(files, ["args.train_data=[clips]", *SMALL], "train")
    for name in names:
        answer: dict[str, Any] = {"name": name, "error": "", "waits": [], "without_gradient": []}
        try:
            found = check_placement(config, changed_loss(MISTAKES[name]))
            answer["waits"] = sorted(
                [*wait] for wait in found.waits if "mistakes" in wait.place or wait.phase == "forward"
            )
            answer["without_gradient"] = found.without_gradient
        except RuntimeError as error:
            answer["error"] = str(error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)
