"""Pictures for which a has no place: the template is named, in plain words."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from support import moxin_checkpoint as moxin
from support.families import FAMILIES
from support.gemma3_reference import Gemma3Reference
from support.pixtral_reference import PixtralReference
from support.qwen2_vl_reference import Qwen2VLReference

from engine import (
    Engine,
    GenerationOptions,
    ImageCountError,
    ImageError,
    Message,
    PromptError,
    load,
)
from engine.prompts.builder import PromptBuilder
from model_kit.kit import load_model_kit
from vision_add_ons.testing import Photo, Reference, write_tokenizer, written
from vision_add_ons.testing.folders import changed_folder
from vision_add_ons.testing.text_tokenizer import write_text_tokenizer

PHOTO = Photo(60, 60, 1).image
STRINGS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
"""As text models have it: it fails at a list of parts."""
LENIENT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
"""It writes the list down as Python would."""
TEXTS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] if m['content'] is string else "
    "m['content'] | map(attribute='text', default='') | join }}\n{% endfor %}"
)
"""It passes over what is no text."""
WITHOUT_PICTURES = {"strings": STRINGS, "lenient": LENIENT, "texts": TEXTS}
USER_ONLY = """\
{%- for m in messages -%}
  {%- if m['role'] == 'user' and m['content'] is not string -%}
    {%- for part in m['content'] -%}
      {{- MARK if part['type'] == 'image' else part['text'] -}}
    {%- endfor -%}
  {%- else -%}
    {{- '(' + m['content'] + ')' -}}
  {%- endif -%}
{%- endfor -%}
"""


def use_template(folder: Path, template: str) -> None:
    for file in folder.glob("chat_template.*"):
        file.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place, made = tmp_path_factory.mktemp("families"), {}
    for reference in FAMILIES:
        plain = written(reference(1), place / f"{reference.name} plain")
        made[reference.name] = changed_folder(plain, place / reference.name, {})
        write_text_tokenizer(made[reference.name], reference.special_tokens)
    return made


def builder(folder: Path, target: Path, template: str) -> PromptBuilder:
    use_template(shutil.copytree(folder, target), template)
    return PromptBuilder(load_model_kit(target))


@pytest.mark.parametrize("template", WITHOUT_PICTURES)
@pytest.mark.parametrize("name", [f.name for f in FAMILIES])
def test_a_template_without_places_is_named(
    name: str, template: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    build = builder(folders[name], tmp_path / "folder", WITHOUT_PICTURES[template]).build
    messages = [{"role": "user", "content": "w9 w10"}]
    assert build(messages).tokens
    with pytest.raises(PromptError, match="has no place for pictures") as caught:
        build(messages, [PHOTO])
    told = str(caught.value)
    assert "give one picture" not in told
    assert "concatenate" not in told
    mark = told.rpartition("with ")[2].removesuffix(" for each picture")
    # What it offers instead works.
    assert len(build(f"w9 {mark} w10", [PHOTO]).spans) == 1


def test_so_it_is_in_a_family_without_a_token_for_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "moxin"
    moxin.write(folder, moxin.random_parts(1).named(moxin.FORMS["hf"]), moxin.config())
    write_tokenizer(folder)
    use_template(folder, "{% for m in messages %}{{ m['role'] }}\n{% endfor %}")
    with pytest.raises(PromptError, match="leaves out what message 1"):
        PromptBuilder(load_model_kit(folder)).build([{"role": "user", "content": "w9"}], [PHOTO])


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = written(Gemma3Reference(1), tmp_path_factory.mktemp("gemma3"))
    use_template(folder, TEXTS)
    with load(folder) as engine:
        yield engine


def test_a_chat_says_so_and_goes_on(gemma3: Engine) -> None:
    chat = gemma3.chat(options=GenerationOptions(max_tokens=2))
    with pytest.raises(PromptError, match="has no place for pictures"):
        chat.send("w9 w10", images=[PHOTO])
    assert chat.messages == ()
    assert chat.send("w9 w10").result().error is None


@pytest.mark.parametrize("role", ["system", "assistant"])
@pytest.mark.parametrize("reference", [Gemma3Reference, PixtralReference, Qwen2VLReference])
def test_a_role_that_takes_no_pictures_is_named(
    reference: type[Reference], role: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    mark = {"gemma3": "<start_of_image>", "pixtral": "[IMG]", "qwen2_vl": "<|image_pad|>"}
    template = USER_ONLY.replace("MARK", repr(mark[reference.name]))
    build = builder(folders[reference.name], tmp_path / "folder", template).build
    shown = Message("user", (*build_pictures(PHOTO), "w9"))
    other = Message(role, (*build_pictures(PHOTO), "w10"))
    assert len(build([shown, Message(role, "w10"), shown]).spans) == 2
    with pytest.raises(PromptError, match=f"takes no pictures in {role} messages; give them with"):
        build([shown, other, shown])


def build_pictures(*images: object) -> tuple:
    from engine.images import load_pictures

    return load_pictures(images)


def test_a_role_whose_pictures_our_own_template_drops(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Gemma 3 places none of a system message, and none is dropped without a word."""
    folder = shutil.copytree(folders["gemma3"], tmp_path / "folder")
    for file in folder.glob("chat_template.*"):
        file.unlink()
    build = PromptBuilder(load_model_kit(folder)).build
    system = Message("system", (*build_pictures(PHOTO), "w9"))
    with pytest.raises(PromptError, match="takes no pictures in system messages"):
        build([system, Message("user", (*build_pictures(PHOTO), "w10"))])


def test_other_faults_are_told_as_they_are(folders: dict[str, Path], tmp_path: Path) -> None:
    """A picture that cannot be served, a template that refuses the text too."""
    build = PromptBuilder(load_model_kit(folders["qwen2_vl"])).build
    with pytest.raises(ImageError, match="times"):
        build([{"role": "user", "content": "w9"}], [Photo(2000, 4, 1).image])
    fails = builder(folders["qwen2_vl"], tmp_path / "folder", "{{ raise_exception('never') }}")
    with pytest.raises(PromptError, match="refuses this: never"):
        fails.build([{"role": "user", "content": "w9"}], [PHOTO])


def test_a_mark_is_recommended_only_where_it_works(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        kit = load_model_kit(folder)
        build = PromptBuilder(kit).build
        with pytest.raises(ImageCountError, match="in a text marks one") as caught:
            build("w9 " + kit.add_on.image_marks[0], [PHOTO, PHOTO])
        mark = str(caught.value).rpartition("(")[2].partition(" in a text")[0]
        assert " or " not in mark, name
        assert len(build(f"w9 {mark} w10 {mark}", [PHOTO, PHOTO]).spans) == 2
        assert "video" not in str(caught.value)


def test_roles_that_are_told_are_those_that_work(gemma3: Engine) -> None:
    with pytest.raises(PromptError) as caught:
        gemma3.generate([{"role": "bishop", "content": "w9"}])
    told = str(caught.value)
    assert told == "a message's role is one of system, user, assistant, tool, not 'bishop'"
