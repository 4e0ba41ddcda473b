# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's tokenizer.json, read with the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders

from ascend_dsv4.errors import CheckpointError, RequestError

# The released tokenizer.json has 6.4 MB; the limit keeps a weight shard given by mistake out of memory.
MAX_FILE_BYTES = 64 << 20


def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE's alphabet (GPT-2): printable Latin-1 stands for itself, the 68 other bytes start at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


BYTE_OF_CHAR = _byte_of_char()


class Tokenizer:
    """Byte-level BPE of one checkpoint. Nothing changes after loading, so threads may share an instance."""

    def __init__(
        self, backend: tokenizers.Tokenizer, path: Path, *, bos_token: str | None = None, eos_token: str | None = None
    ) -> None:
        """Wrap `backend`, loaded from the file `path`. Use `from_folder` or `from_file`.

        raises   CheckpointError if the tokenizer is not byte-level, or a named token is not in its vocabulary
        """
        if not isinstance(backend.decoder, decoders.ByteLevel):
            raise CheckpointError(
                f"{path}: decoder is {type(backend.decoder).__name__}, expected ByteLevel: every DeepSeek tokenizer is "
                "byte-level BPE, and text is put together from token bytes. Use the tokenizer.json of the checkpoint."
            )
        backend.no_truncation()  # a length limit saved in the file would cut prompts silently
        backend.no_padding()
        self._backend = backend
        self.path = path
        self.vocab_size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.special_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.bos_token, self.bos_token_id = bos_token, self._named_id("bos_token", bos_token)
        self.eos_token, self.eos_token_id = eos_token, self._named_id("eos_token", eos_token)

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Load tokenizer.json of a checkpoint folder, and the BOS and EOS names of tokenizer_config.json if present.

        raises   CheckpointError if a file is missing, too large or unreadable
        """
        folder = Path(path)
        backend = _load_backend(folder / "tokenizer.json")
        config = _load_config(folder / "tokenizer_config.json")
        names = {key: _token_name(config, key, folder / "tokenizer_config.json") for key in ("bos_token", "eos_token")}
        return cls(backend, folder / "tokenizer.json", **names)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Load one tokenizer.json; BOS and EOS stay unnamed.

        raises   CheckpointError if the file is missing, too large or unreadable
        """
        return cls(_load_backend(Path(path)), Path(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Spelled control tokens become their ids; BOS and EOS are never added.

        raises   RequestError if `text` holds half a surrogate pair, which UTF-8 cannot express
        """
        try:
            # A batch of one: unlike `encode` it lets other threads run, and without offsets it takes half the time.
            return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except TypeError as error:
            raise RequestError(
                f"text: got {type(text).__name__} that is not Unicode text, expected a str without lone surrogates: "
                "tokens are made of UTF-8 bytes. Decode the input with errors='replace' first."
            ) from error

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Only tokens flagged special are skipped: in the released vocabulary `<think>` and `｜DSML｜` stay visible.

        raises   RequestError if an id is outside the vocabulary
        """
        checked = [self._checked(token_id) for token_id in ids]
        return self._backend.decode(checked, skip_special_tokens=skip_special_tokens)

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token: none stands for more characters."""
        return max(len(self.token_bytes(token_id)) for token_id in range(self.vocab_size))

    def token_id(self, token: str) -> int | None:
        """Id of a token as spelled in the vocabulary, None if there is none."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Spelling of a token, None for an id the vocabulary leaves out.

        raises   RequestError if the id is outside the vocabulary
        """
        return self._backend.id_to_token(self._checked(token_id))

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes a token adds to the text; they may begin or end inside a character.

        Follows the ByteLevel decoder of `tokenizers`: a token with a character outside the byte alphabet is literal.

        raises   RequestError if the id is outside the vocabulary
        """
        token = self.id_to_token(token_id) or ""
        try:
            return bytes([BYTE_OF_CHAR[char] for char in token])
        except KeyError:
            return token.encode()

    def _checked(self, token_id: int) -> int:
        if 0 <= token_id < self.vocab_size:
            return int(token_id)
        raise RequestError(
            f"token ids: got {token_id}, expected 0 to {self.vocab_size - 1}: that is the vocabulary of {self.path}. "
            "Encode the text with the tokenizer of the checkpoint that is loaded."
        )

    def _named_id(self, key: str, token: str | None) -> int | None:
        token_id = None if token is None else self.token_id(token)
        if token is not None and token_id is None:
            raise CheckpointError(
                f"{self.path}: no token {token!r}, expected the {key} of tokenizer_config.json in the vocabulary: its "
                "id marks where a text starts or ends. Take both files from the same checkpoint."
            )
        return token_id


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    _check_file(path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        if type(error) is not Exception:  # `tokenizers` reports a malformed file with exactly this class
            raise
        raise CheckpointError(
            f"{path}: {error}, expected the JSON of a `tokenizers` tokenizer: nothing can be encoded without it. "
            "Download the file again (a git-lfs pointer or an error page saved in its place looks like this)."
        ) from error


def _load_config(path: Path) -> dict[str, Any]:
    """Contents of tokenizer_config.json, empty if the checkpoint has none."""
    if not path.exists():
        return {}
    _check_file(path)
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not JSON ({error}), expected an object: it names the BOS and EOS tokens. Download it again."
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path}: got a JSON {type(config).__name__}, expected an object: it names the BOS and EOS tokens. "
            "Download it again."
        )
    return config


def _token_name(config: dict[str, Any], key: str, path: Path) -> str | None:
    """A token written as text, as a serialised AddedToken, or as null."""
    entry = config.get(key)
    name = entry.get("content") if isinstance(entry, dict) else entry
    if name is None or isinstance(name, str):
        return name
    raise CheckpointError(
        f"{path}: {key}={entry!r}, expected a string, an object with 'content', or null: those are the forms in which "
        "tokens are published. Correct the entry."
    )


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file, expected a tokenizer file: prompts cannot be encoded without it. Copy it from the "
            "model repository, or pass the folder that holds it."
        )
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{path}: {size} bytes, expected at most {MAX_FILE_BYTES}: a DeepSeek tokenizer has about 6 MB, so this is "
            "another kind of file. Pass the tokenizer file of the checkpoint."
        )
