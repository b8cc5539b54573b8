"""Tokens to text and back: one tokenizer, and a detokenizer per sequence that gives text as it becomes certain."""

from __future__ import annotations

import pathlib
from typing import Any

import jinja2
from transformers import AutoTokenizer

from holdfast.errors import UsageError
from holdfast.serve.errors import bad_value

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# So many tokens before the first new one are decoded with it, for tokenizers whose text depends on what stands before.
CONTEXT_TOKENS = 5
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


class Texts:
    """The model's tokenizer and chat template."""

    def __init__(self, folder: pathlib.Path) -> None:
        hint = "save the tokenizer beside the model: tokenizer.save_pretrained(MODEL_DIR)"
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):  # transformers would make up an empty one
            raise UsageError(f"{folder} has no tokenizer", code="no_tokenizer", hint=hint)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{folder} has no usable tokenizer: {error}", code="no_tokenizer", hint=hint) from error

    @property
    def eos_id(self) -> int | None:
        eos: int | None = self._tokenizer.eos_token_id
        return eos

    def encode(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids

    def decode(self, ids: list[int], *, skip_special: bool) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        return text

    def token(self, token_id: int) -> str:
        """One token as text; what is only a part of a character is the empty string, as vLLM has it."""
        text = self.decode([token_id], skip_special=False)
        return "" if text.endswith(UNFINISHED) else text

    def chat(self, messages: list[dict[str, Any]], *, generation_prompt: bool, more: dict[str, Any]) -> list[int]:
        """The prompt's tokens for a conversation.

        Raises:
            ApiError: 400; there is no template, or it refuses these messages.
        """
        if not self._tokenizer.chat_template:
            raise bad_value("the model has no chat template: use /v1/completions", "messages")
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt, **more
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise bad_value(f"the chat template refuses this: {error}", "messages") from error
        return self.encode(text, special=False)


class Detokenizer:
    """The text of one sequence, and where a stop string ends it."""

    def __init__(self, texts: Texts, prompt: list[int], stop: tuple[str, ...], *, include: bool, skip: bool) -> None:
        self._texts = texts
        self._stop = stop
        self._include_stop = include
        self._skip_special = skip
        self._ids = prompt[-CONTEXT_TOKENS:]
        self._read = len(self._ids)
        # What could be the beginning of a stop string is not given away before it is clear.
        self._held_back = max((len(text) for text in stop), default=1) - 1 if not include else 0
        self._given = 0
        self.text = ""

    def add(self, token_id: int) -> str | None:
        """One more token; the stop string that it completed, if any. The text then ends before that string."""
        self._ids.append(token_id)
        before = self._texts.decode(self._ids[: self._read], skip_special=self._skip_special)
        now = self._texts.decode(self._ids, skip_special=self._skip_special)
        if len(now) <= len(before) or now.endswith(UNFINISHED):
            return None
        new = now[len(before) :]
        del self._ids[: max(self._read - CONTEXT_TOKENS, 0)]
        self._read = len(self._ids)
        return self._stopped_by(new)

    def _stopped_by(self, new: str) -> str | None:
        start = len(self.text)
        self.text += new
        found = [(at, stop) for stop in self._stop if (at := self.text.find(stop, max(start - len(stop) + 1, 0))) >= 0]
        if not found:
            return None
        at, stop = min(found)
        self.text = self.text[: at + len(stop) if self._include_stop else at]
        return stop

    def take(self, *, finished: bool) -> str:
        """The text that has become certain since the last call."""
        end = len(self.text) if finished else max(len(self.text) - self._held_back, self._given)
        new = self.text[self._given : end]
        self._given = max(self._given, end)
        return new
