"""What the terminal shows, and what the run's log file keeps."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from cogvideox.log import amount, get_logger, log_file, setup_logging

LIBRARIES = ("DeepSpeed", "sat", "transformers", "py.warnings")


@pytest.fixture(autouse=True)
def own_loggers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts set up loggers of the whole process."""
    monkeypatch.delenv("RANK", raising=False)
    loggers = [logging.getLogger(name) for name in ("cogvideox", *LIBRARIES)]
    root = logging.getLogger()
    before = [(each, each.handlers[:], each.filters[:], each.propagate, each.level) for each in [root, *loggers]]
    root.handlers[:] = []
    transformers = logging.getLogger("transformers")  # as the text encoder leaves it
    transformers.handlers[:], transformers.propagate = [], True
    yield
    logging.captureWarnings(False)
    for logger, handlers, filters, propagate, level in before:
        logger.handlers[:], logger.filters[:], logger.propagate = handlers, filters, propagate
        logger.setLevel(level)


def library_logger(capture: logging.Handler | None = None) -> logging.Logger:
    """As DeepSpeed makes its own when it is imported."""
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [capture or logging.StreamHandler()]
    return logger


def say_everything() -> None:
    log = get_logger("cogvideox.test")
    log.debug("our detail")
    log.info("our news")
    library_logger().warning("their warning")
    library_logger().error("their error")
    logging.getLogger("transformers.models").warning("their advice")
    warnings.warn("their old name", FutureWarning, stacklevel=1)


def test_the_terminal_has_our_news_and_the_file_has_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    setup_logging("INFO", keep=True)
    setup_logging("INFO", keep=True)  # a script calls it again when it has read the configuration
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # an earlier test may have switched it on, in another place than pytest's
        logging.captureWarnings(True)
        say_everything()
        with log_file(tmp_path, 0):
            get_logger("x").info("later news")
    get_logger("x").info("after the run")
    shown, kept = capfd.readouterr().err, (tmp_path / "run.log").read_text()
    for text in ("our news", "later news", "their error"):
        assert text in shown and kept.count(text) == 1
    for text in ("our detail", "their warning", "their advice", "their old name"):
        assert text not in shown and text in kept
    assert "after the run" in shown and "after the run" not in kept


def test_debug_shows_libraries_as_well(capfd: pytest.CaptureFixture[str]) -> None:
    setup_logging("DEBUG")
    get_logger("x").debug("our detail")
    library_logger().warning("their warning")
    shown = capfd.readouterr().err
    assert "our detail" in shown and "their warning" in shown


def test_each_process_has_its_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    setup_logging("INFO", 3, keep=True)
    with log_file(tmp_path, 3):
        get_logger("x").info("news")
        get_logger("x").warning("trouble")
    shown, kept = capfd.readouterr().err, (tmp_path / "run-rank-3.log").read_text()
    assert "news" not in shown and "[rank 3] W trouble" in shown
    assert "news" in kept and "trouble" in kept


def test_what_ends_a_run_is_in_the_file_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), log_file(tmp_path, 0):
        1 / 0  # noqa: B018
    kept = (tmp_path / "run.log").read_text()
    assert "ended by ZeroDivisionError: division by zero" in kept and "Traceback" in kept


def test_a_request_to_stop_is_no_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), log_file(tmp_path, 0):
        raise KeyboardInterrupt("asked")
    kept = (tmp_path / "run.log").read_text()
    assert "ended by KeyboardInterrupt: asked" in kept and "Traceback" not in kept


def test_a_resumed_run_goes_on_with_its_file(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with log_file(tmp_path, 0):
            get_logger("x").error(text)
    assert [line.split(": ")[-1] for line in (tmp_path / "run.log").read_text().splitlines()] == ["first", "second"]


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.log").symlink_to("/dev/full")
    with log_file(tmp_path, 0):
        get_logger("x").error("one")
        get_logger("x").error("two")
    shown = capfd.readouterr().err
    assert shown.count("can't be written any more: [Errno 28] No space left on device") == 1


def test_no_place_for_a_file_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    setup_logging("INFO")
    with log_file(tmp_path / "absent", 0):
        get_logger("x").info("news")
    assert "no log file: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (512, "512 B"), (1000, "1.0 kB"), (3_140_000, "3.1 MB"), (9_524_000_000, "9.5 GB"), (42e12, "42 TB")],
)
def test_amount(count: int, text: str) -> None:
    assert amount(count) == text
