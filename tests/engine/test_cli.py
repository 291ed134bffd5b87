import io
import json
import logging
import os
import signal
import struct
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from support import tiny
from support.commands import Terminal, answer_of, finished, take
from support.processes import COMMAND

from engine import Engine, Generation, GenerationOptions, Progress, TextDelta
from engine.cli import main
from engine.cli.answer import show_answer
from engine.cli.terminal import Bar, complain

PROMPT = "What is the capital of France?"


@pytest.fixture
def loaded_demo(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Engine:
    return take(monkeypatch, engine)


def one_complaint(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("sightline: ")
    assert output.err.count("\n") == 1
    return output.err


# --- generate ----------------------------------------------------------------------------------


def test_generate_prints_the_answer_alone(
    loaded_demo: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = loaded_demo.generate([{"role": "user", "content": PROMPT}]).result().answer
    assert main(["generate", "--prompt", PROMPT]) == 0
    output = capsys.readouterr()
    assert output.out == expected
    assert "Paris" in output.out
    assert output.err.count("\n") == 1
    assert "prompt tokens" in output.err
    assert "finish reason stop" in output.err


def test_generate_raw_from_standard_input(
    loaded: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GenerationOptions(max_tokens=8, seed=3, temperature=1.5, stop="\n")
    expected = loaded.generate("Once upon a time", options=options).result().answer
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon a time\n"))
    given = ["--max-tokens", "8", "--seed", "3", "--temperature", "1.5", "--prompt", "-", "--raw"]
    assert main(["generate", *given, "--stop", "\n"]) == 0
    assert capsys.readouterr().out == expected


def test_generate_json(loaded: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    expected = loaded.generate(messages, options=GenerationOptions(max_tokens=4)).result()
    asked = ["--prompt", PROMPT, "--system", "Be brief.", "--max-tokens", "4"]
    assert main(["generate", *asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["answer"] == expected.answer
    assert told["finish_reason"] == "length"
    assert told["completion_tokens"] == 4
    assert told["prompt_tokens"] == expected.prompt_tokens
    assert told["cached_tokens"] > 0
    assert told["time_to_first_token"] > 0
    assert told["error"] is None


def test_only_given_options_are_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Listener:
        default_options = GenerationOptions(temperature=0.7, top_k=20)

        def generate(self, prompt: object, images: object, options: object) -> Generation:
            seen.append(options)
            print("noise of a library")
            return answer_of()

    monkeypatch.setattr("engine.cli.generate.open_engine", lambda _: nullcontext(Listener()))
    monkeypatch.setattr("sys.stdout", out := io.StringIO())
    given = "--top-p 0.9 --top-k 5 --min-p 0.1 --repetition-penalty 1.1 --max-context 99"
    more = "--kv-bits 8 --kv-group-size 32 --prefill-step-size 16 --stop a --stop b"
    assert main(["generate", "--prompt", "x"]) == 0
    assert main(["generate", "--prompt", "x", *given.split(), *more.split()]) == 0
    assert seen[0] == GenerationOptions(temperature=0.7, top_k=20)
    assert seen[1] == GenerationOptions(
        temperature=0.7,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        max_context=99,
        kv_bits=8,
        kv_group_size=32,
        prefill_step_size=16,
        stop=("a", "b"),
    )
    assert out.getvalue() == ""


def test_an_answer_that_fails_has_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        default_options = GenerationOptions()

        def generate(self, *_: object) -> Generation:
            return answer_of(TextDelta("half"), end=finished("error", "half", OSError("no\nluck")))

    monkeypatch.setattr("engine.cli.generate.open_engine", lambda _: nullcontext(Failing()))
    assert main(["generate", "--prompt", "x"]) == 1
    output = capsys.readouterr()
    assert output.out == "half"
    assert output.err.endswith("\nsightline: OSError: no luck\n")
    assert main(["generate", "--prompt", "x", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"] == "no\nluck"


def test_ctrl_c_cancels_the_answer(loaded: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Out(io.StringIO):
        def write(self, text: str) -> int:
            signal.raise_signal(signal.SIGINT)
            return super().write(text)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("sys.stdout", out := Out())
    assert main(["generate", "--prompt", "Write a long story.", "--max-tokens", "200"]) == 130
    assert 0 < len(out.getvalue()) < 200
    assert signal.getsignal(signal.SIGINT) is before


# --- what is refused ---------------------------------------------------------------------------


def checkpoint(folder: Path, config: str, weights: bytes | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.mark.parametrize("command", [["generate", "--prompt", "x", "--model"], ["inspect"]])
def test_broken_checkpoints(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], demo: Path
) -> None:
    empty = struct.pack("<Q", 2) + b"{}"
    whole = (demo / "config.json").read_text()
    for folder, reason in (
        (tmp_path / "nowhere", "there is no folder"),
        (tmp_path, "holds no config.json"),
        (checkpoint(tmp_path / "a", whole), "safetensors"),
        (checkpoint(tmp_path / "b", '{"model_type": ', empty), "JSON"),
        (checkpoint(tmp_path / "c", '{"model_type": "mistrall"}', empty), "did you mean mistral"),
        (checkpoint(tmp_path / "d", whole, b"\0" * 4), "model.safetensors"),
    ):
        assert main([*command, str(folder)]) == 2
        assert reason in one_complaint(capsys)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("generate --prompt x --top-k many", "invalid int value: 'many'"),
        ("generate --prompt x --temperature -1", "temperature must be at least 0"),
        ("generate --prompt x --temperature nan", "finite"),
        ("generate --prompt x --cache-bytes -1", "cache_bytes"),
        ("generate --prompt x --raw --system y", "--raw"),
        ("generate --prompt x --image nowhere.png", "'nowhere.png' cannot be read"),
        ("generate --prompt x --max-tok 5", "unrecognized"),
        ("generate", "--prompt"),
        ("chat --kv-bits 3", "kv_bits must be 2, 4, 8"),
        ("chat --image nowhere.png", "'nowhere.png' cannot be read"),
        ("dance", "'dance'"),
    ],
)
def test_wrong_use(arguments: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    assert reason in one_complaint(capsys)


def test_pictures_for_a_text_model(
    loaded: Engine, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--prompt", "What is this?", "--image", str(photo)]) == 2
    assert "text only" in one_complaint(capsys)
    photo.write_text("not a picture")
    assert main(["generate", "--prompt", "What is this?", "--image", str(photo)]) == 2
    assert "my photo.png" in one_complaint(capsys)


# --- chat --------------------------------------------------------------------------------------


def test_generate_about_a_picture(
    seeing_folder: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(seeing_folder), "--max-tokens", "3", "--json"]
    assert main(["generate", "--image", str(photo), "--prompt", "Look", *model]) == 0
    assert json.loads(capsys.readouterr().out)["images_encoded"] == 1


# --- the terminal ------------------------------------------------------------------------------


def test_a_long_prefill_has_a_bar_that_goes_before_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    reading = [Progress(0, 5000, 0), Progress(2048, 5000, 0), Progress(4999, 5000, 0)]
    show_answer(lambda: answer_of(*reading, TextDelta("Hello")), screen)
    bar, erased, answer = screen.getvalue().rsplit("\r", 2)
    assert "read prompt" in bar
    assert erased.strip() == ""
    assert answer == "Hello"


def test_no_bar_for_a_short_prefill_or_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for screen, total in ((Terminal(), 900), (io.StringIO(), 5000)):
        monkeypatch.setattr("sys.stderr", screen)
        show_answer(lambda total=total: answer_of(Progress(0, total, 0)), None)
        assert screen.getvalue() == ""


def test_bars_of_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    bar = Bar()
    for stage, total in (("download demo model", 93_000_000), ("convert demo model", 272)):
        bar(stage, 0, total)
        bar(stage, total, total)
    complain("between\nbars \x1b[2J")
    bar.close()
    shown = screen.getvalue()
    assert "download demo model" in shown
    assert "93.0M" in shown
    assert "0/272" in shown
    assert "sightline: between bars [2J\n" in shown
    assert shown.rsplit("\r", 2)[1].strip() == ""


def test_the_log_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talk(_: object) -> int:
        log = logging.getLogger("sightline")
        log.info("quiet")
        log.warning("no OpenBLAS\non this system")
        return 0

    monkeypatch.setattr("engine.cli.inspect.add_ons", talk)
    assert main(["add-ons"]) == 0
    assert one_complaint(capsys) == "sightline: no OpenBLAS on this system\n"
    assert logging.getLogger("sightline").handlers == []


def test_inspect_and_add_ons(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from model_kit import inspect_checkpoint

    assert main(["inspect", "smollm2"]) == 0
    told = inspect_checkpoint(demo).lines()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(("tools:", "thoughts:"))] == told
    assert "thoughts:      none: no marks of thoughts are known" in lines
    assert "tools:         told in plain texts (the chat template knows none)" in lines
    assert main(["add-ons"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["moxin", "vision_add_ons.moxin:MoxinAddOn"] in lines


def test_no_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "generate" in capsys.readouterr().err


# --- whole processes ---------------------------------------------------------------------------


def test_version_and_help_load_nothing_heavy() -> None:
    script = """if True:
        import sys
        from engine.cli import main
        assert main(["--version"]) == 0
        try:
            main(["chat", "--help"])
        except SystemExit as leaving:
            assert not leaving.code
        assert not {"mlx", "transformers", "numpy", "PIL", "tqdm"} & set(sys.modules)
    """
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("sightline 0.")
    assert "--max-tokens" in ran.stdout


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that answers without an end, and waits at its pipe where nobody reads."""
    place = tmp_path_factory.mktemp("endless") / "model"
    folder = tiny.save_of_letters(7, place, max_position_embeddings=2**20)
    tiny.write_only_words(folder)
    asked = ["generate", "--prompt", "Write a long story.", "--max-tokens", "1000000"]
    return [*COMMAND, *asked, "--model", str(folder)]


def test_a_closed_pipe_is_left_quietly(story: list[str]) -> None:
    with subprocess.Popen(story, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(1)
        running.stdout.close()
        assert running.wait(600) == 141
        assert running.stderr.read() == b""


def test_ctrl_c_while_it_answers(story: list[str]) -> None:
    with subprocess.Popen(story, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.read(1)
        os.kill(running.pid, signal.SIGINT)
        said = running.communicate(timeout=600)[1]
        assert said == b"" or said.endswith(b", finish reason cancelled\n"), said
        assert running.returncode == 130


def test_inspect_has_nothing_to_complain_of(demo: Path) -> None:
    """MLX must not be imported before OpenBLAS: the command would say so."""
    ran = subprocess.run([*COMMAND, "inspect", "demo"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
