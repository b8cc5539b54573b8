"""Text that every machine has: the documentation strings of Python's own library. Nothing is imported or downloaded."""

from __future__ import annotations

import ast
import pathlib
import random
import sysconfig
import warnings
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SKIPPED = frozenset({"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "encodings", "ensurepip"})
SHORTEST = 40  # characters: below that there is little to learn
END = "<end>"
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def documents(max_characters: int) -> list[str]:
    """About `max_characters` of documentation, in an order that is the same at every call on one machine."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py") if SKIPPED.isdisjoint(path.relative_to(root).parts))
    order = random.Random(0)
    order.shuffle(files)
    found: set[str] = set()
    size = 0
    for path in files:
        for text in _documentation(path):
            if len(text) >= SHORTEST and text not in found:
                found.add(text)
                size += len(text)
        if size >= max_characters:
            break
    texts = sorted(found)
    order.shuffle(texts)
    return texts


def _documentation(path: pathlib.Path) -> Iterator[str]:
    """Every documentation string of one source file, as one line each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the file's own, about its escapes
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            text = ast.get_docstring(node)
            if text:
                yield " ".join(text.split())


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer, so that every text can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """All texts as one row of token ids, each closed by the end token."""
    end = tokenizer.token_to_id(END)
    assert end is not None
    return [token for encoding in tokenizer.encode_batch(list(texts)) for token in (*encoding.ids, end)]
