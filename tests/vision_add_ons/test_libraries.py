"""Loading a model changes nothing of a process that is not ours."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.processes import whole_environment

from vision_add_ons.libraries import VARIABLES, import_library

WATCHED = """
import logging, os, resource, sys

first, hard, action, folder, torch = sys.argv[1:6]
if torch == "without":
    sys.modules["torch"] = None
if first:
    __import__(first)
for name in ("LD_LIBRARY_PATH", "QT_QPA_FONTDIR", "QT_QPA_PLATFORM_PLUGIN_PATH"):
    os.environ.pop(name, None)
if int(hard):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # not everybody may raise it
    hard = int(hard) if most == resource.RLIM_INFINITY else min(most, int(hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))

def state():
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    return {
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
        "resource": sys.modules["resource"] is resource,
        "environment": dict(os.environ),
        "logging": {
            x.name: (x.level, [str(h) for h in x.handlers], x.propagate, x.disabled, str(x.filters))
            for x in loggers if isinstance(x, logging.Logger)
        },
    }

before = state()
match action:
    case "load":
        from engine import GenerationOptions, load
        with load(folder) as engine:
            engine.generate("Hello, " * 30, options=GenerationOptions(max_tokens=2)).result()
    case "inspect":
        from model_kit import inspect_checkpoint
        inspect_checkpoint(folder)
    case "add-on":
        from vision_add_ons import gemma3, weights
        from vision_add_ons.mlx_vlm_modules import import_mlx_vlm
        import mlx.nn as nn
        import_mlx_vlm("gemma3")
        import transformers
        assert "mlx_vlm" not in transformers.AutoProcessor.from_pretrained.__func__.__module__
after = state()
for kept in ("limit", "resource", "environment"):
    assert after[kept] == before[kept], (kept, before[kept], after[kept])
for name, settings in before["logging"].items():
    assert after["logging"][name] == settings, (name, settings, after["logging"][name])
assert not any(settings[4] != "[]" for settings in after["logging"].values())
for name in ("transformers", "huggingface_hub"):
    assert not any(h.filters for h in logging.getLogger(name).handlers)
"""


def process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Python with these arguments, and without what other tests' imports set in this process."""
    inherited = whole_environment()
    env = {name: value for name, value in inherited.items() if name not in VARIABLES}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def run(action: str, folder: Any = "", first: str = "", hard: int = 0, torch: str = "with") -> str:
    """What stands on standard error after a process has done it, and found all as it was."""
    done = process("-c", WATCHED, first, str(hard), action, str(folder), torch)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return "".join(x for x in done.stderr.splitlines(True) if "no OpenBLAS on this" not in x)


@pytest.fixture(scope="module")
def talkative_folder(letters_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of whose rope and tokenizer transformers has something to say."""
    folder = tmp_path_factory.mktemp("talkative") / "model"
    shutil.copytree(letters_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 2048,
        "unheard_of": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 100
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_load_changes_nothing_and_prints_nothing(talkative_folder: Path) -> None:
    """Any limit of open files will do, and stays; without PyTorch, transformers would say so."""
    assert run("load", talkative_folder, hard=1024, torch="without") == ""


def test_nor_where_transformers_is_there_before(talkative_folder: Path) -> None:
    assert run("load", talkative_folder, "transformers.models.auto.tokenization_auto") == ""


def test_nor_does_inspecting(talkative_folder: Path) -> None:
    assert run("inspect", talkative_folder, hard=8192, torch="without") == ""


def test_nor_does_what_add_ons_import() -> None:
    assert run("add-on", hard=4096, torch="without") == ""


LOGGED = """
import logging, sys, threading
sys.modules["torch"] = None
told, other = [], []

class Keep(logging.Handler):
    def __init__(self, kept):
        super().__init__()
        self.kept = kept
    def emit(self, record):
        self.kept.append(record.getMessage())

logging.getLogger("sightline").addHandler(Keep(told))
logging.getLogger("sightline").setLevel(logging.INFO)
from vision_add_ons.libraries import import_library, undisturbed
transformers = import_library("transformers")
assert any("PyTorch was not found" in text for text in told), told

log = logging.getLogger("transformers.anything")
log.parent.addHandler(Keep(other))
with undisturbed():
    log.warning("ours")
    thread = threading.Thread(target=log.warning, args=["another thread's"])
    thread.start()
    thread.join()
log.warning("later")
assert told[-1] == "transformers.anything: ours", told
assert other == ["ours", "another thread's", "later"], other
"""


def test_what_would_be_printed_is_logged_and_nothing_of_others_is_lost() -> None:
    done = process("-c", LOGGED)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "[transformers] another thread's\n[transformers] later\n"


LIMITS = """
import resource, sys, threading, types
from vision_add_ons.libraries import _file_limit_kept
seen = {}

def elsewhere():
    import resource as theirs
    theirs.setrlimit(theirs.RLIMIT_NOFILE, (300, 4096))
    seen["theirs"] = theirs

resource.setrlimit(resource.RLIMIT_NOFILE, (512, 4096))
with _file_limit_kept():
    import resource as ours
    ours.setrlimit(ours.RLIMIT_NOFILE, (5000, 9000))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, 4096)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, 4096)
    ours.setrlimit(ours.RLIMIT_CORE, (0, 0))
    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
ours.setrlimit(ours.RLIMIT_NOFILE, (400, 4096))
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (400, 4096)
assert sys.modules["resource"] is resource
"""


def test_other_threads_set_limits_meanwhile_and_everybody_does_later() -> None:
    done = process("-c", LIMITS)
    assert done.returncode == 0, done.stderr


def test_the_inside_of_a_package_is_no_place_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV leaves its own in `sys.path` where its import fails."""
    package = tmp_path / "odd_package"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import sys, os\nsys.path.insert(0, os.path.dirname(__file__))\nsys.path.append('kept')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.path)
    import_library("odd_package")
    assert sys.path == [*before, "kept"]
