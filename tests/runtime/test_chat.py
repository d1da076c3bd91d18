"""Conversations: as a checkpoint's own template writes them, in a sandbox, or as plain lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="the extra [serve] is not installed")

from cosched.errors import BadInput
from cosched.runtime.chat import ChatTemplate, PlainChat, chat_of

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TURNS = [{"role": "user", "content": "Hi"}]


def test_a_checkpoints_own_template(tmp_path: Path):
    told = {"chat_template": CHATML, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    chat = chat_of(tmp_path)
    assert chat.text(TURNS) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not chat.special
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}{{ messages[0].content | tojson }}")
    assert chat_of(tmp_path).text(TURNS) == '<s></s>"Hi"'  # a file of its own goes first


def test_transformers_writes_the_same():
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered, _ = utils.render_jinja_template([TURNS], chat_template=CHATML, add_generation_prompt=True)
    assert ChatTemplate(CHATML, {}, "here").text(TURNS) == rendered[0]


def test_plain_lines_where_there_is_none(tmp_path: Path):
    chat = chat_of(tmp_path / "config.json")
    assert isinstance(chat, PlainChat)
    turns = [{"role": "system", "content": "Be brief."}, *TURNS, {"role": "assistant", "content": "Yes?"}, *TURNS]
    assert chat.text(turns) == "System: Be brief.\nUser: Hi\nAssistant: Yes?\nUser: Hi\nAssistant:"
    assert "\nUser:" in chat.stops


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "does not take"),
        ("{{ ''.__class__.__base__ }}", "does not take"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.append(1) }}", "does not take"),
        ("{{ messages[7].content.x.y }}", "does not take"),
    ],
)
def test_a_template_reaches_nothing_but_its_values(source: str, message: str):
    with pytest.raises(BadInput, match=message):
        ChatTemplate(source, {}, "here").text(TURNS)


def test_what_is_no_template_is_said_at_the_start(tmp_path: Path):
    with pytest.raises(BadInput, match=r"here: no chat template"):
        ChatTemplate("{% for x in %}", {}, "here")
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(BadInput, match=r"tokenizer_config\.json: no JSON"):
        chat_of(tmp_path)
