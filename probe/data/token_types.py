"""The type of every position of a batch.

Attention is summed by token type, so every result depends on this table. `TokenTypes` keeps the
fine role and the turn of each position, so that one encoded batch can be read in the paper's three
types, in the fine ones, or in the user's own:

    inputs.types.as_types("fine").mask("last")           # (batch, token)
    inputs.types.as_types({"dog": dog_patches})          # the rest keeps the paper's types
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from probe.errors import ProbeError, one_of

PAPER = ("instruction", "vision", "response")
FINE = ("bos", "system", "vision", "instruction", "last", "response")
PADDING = -1
BOS, SYSTEM, VISION, INSTRUCTION, LAST, RESPONSE = range(len(FINE))
# What a processor writes around and between vision tokens: rows, tiles, start and end of an image.
# Instruction in the paper's types; a fine type of its own where there are any.
MARKER = len(FINE)
# Words into which the LLM itself compresses an image (VoCo-LLaMA). A type of its own in the paper's
# types and in the fine ones where there are any: neither vision nor text.
VOCO = MARKER + 1
ROLES = (*FINE, "marker", "voco")

Types = str | Sequence[object] | np.ndarray | Mapping[Any, object]


@dataclass(frozen=True)
class TokenTypes:
    """The type of every position: `names[ids[row, token]]`, where -1 is padding.

    The types are derived from `role`, the fine role (index into FINE, the answers of all turns as
    "response"), and `turn`, the number of the exchange of user and assistant that a position
    belongs to; both are -1 for padding.
    """

    names: tuple[str, ...]
    ids: Int[np.ndarray, "batch token"]
    vision: Bool[np.ndarray, "batch token"]  # also where the user's own types rename them
    role: Int[np.ndarray, "batch token"]
    turn: Int[np.ndarray, "batch token"]

    @property
    def is_query(self) -> Bool[np.ndarray, "batch token"]:
        """Positions that count as queries: all but padding and the last token of a response.

        During decoding the last response token is never fed back, so its query row does not exist.
        """
        queries = self.role != PADDING
        for row, end in enumerate(_ends(self.role)):
            if self.role[row, end - 1] != LAST:  # something follows the prompt
                queries[row, end - 1] = False
        return queries

    @property
    def prompt_length(self) -> Int[np.ndarray, "batch"]:
        """Tokens of each row's prompt, without padding."""
        is_end = self.role == LAST
        ends_from_here = np.cumsum(is_end[:, ::-1], axis=1)[:, ::-1]
        is_prompt = ends_from_here > 0
        return (is_prompt & (self.role != PADDING)).sum(axis=1)

    def mask(self, name: str) -> Bool[np.ndarray, "batch token"]:
        """The positions of one type."""
        one_of("types.mask", "one of", name, self.names)
        return self.ids == self.names.index(name)

    def as_types(self, types: Types = "paper", turns: str = "last") -> "TokenTypes":
        """The same positions in other types.

        `types`: "paper", "fine", one name (or number) for each position, or {name: mask} for the
        user's own, which come first; positions these do not cover ("" or None in an array) keep the
        paper's type. An array as long as the prompt leaves the response uncovered. `turns`: whether
        earlier answers are instruction ("last") or response ("all"). Raises ProbeError for an
        unknown name, a mask of another size, or masks that overlap.
        """
        if turns not in ("last", "all"):
            raise ProbeError("turns", expected="'last' or 'all'", got=repr(turns))
        fine = self._roles(turns)
        if isinstance(types, str):
            return replace(self, **_named(types, fine, self.vision))
        if not isinstance(types, Mapping):
            return replace(self, **self._with_own(_masks_of_names(types), fine))
        masks = {str(name): mask for name, mask in types.items()}
        for name in masks:
            if name in (*PAPER, ROLES[VOCO]):
                raise ProbeError(
                    "types", expected="names of your own", got=repr(name), fix="it is the paper's"
                )
        return replace(self, **self._with_own(masks, fine))

    def _roles(self, turns: str) -> np.ndarray:
        """The fine roles, with earlier answers as instruction unless all turns count."""
        if turns == "all":
            return self.role
        earlier = (self.role == RESPONSE) & (self.turn < self.turn.max(axis=1, keepdims=True))
        return np.where(earlier, INSTRUCTION, self.role)

    def _with_own(self, masks: Mapping[str, object], fine: np.ndarray) -> dict:
        """Names and ids of the user's types, which come first, and the paper's for the rest."""
        paper = _named("paper", fine, self.vision)
        names = (*(name for name in masks if name not in paper["names"]), *paper["names"])
        shift = len(names) - len(paper["names"])
        ids = np.where(paper["ids"] == PADDING, PADDING, paper["ids"] + shift)
        covered = np.zeros_like(self.vision)
        for name, values in masks.items():
            mask = self._fit(name, values)
            shared = np.flatnonzero((mask & covered).any(axis=0))
            if len(shared):
                got = f"{name!r}, which shares {len(shared)} positions with another, "
                got += f"first {shared[0]}"
                raise ProbeError("types", expected="masks that do not overlap", got=got)
            covered |= mask
            ids[mask & (ids != PADDING)] = names.index(name)
        return {"names": names, "ids": ids}

    def _fit(self, name: str, values: object) -> np.ndarray:
        """A user's mask as (batch, token) booleans."""
        mask = np.atleast_2d(np.asarray(values))
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            raise ProbeError(
                "types", expected=f"a mask of booleans for {name!r}", got=f"values of {mask.dtype}"
            )
        mask = mask.astype(bool)
        batch, tokens = self.ids.shape
        if mask.shape == (batch, tokens):
            return mask
        prompt = int(self.prompt_length[0])
        if batch == 1 and mask.shape == (1, prompt):
            start = int((self.role[0] != PADDING).argmax())
            return np.pad(mask, ((0, 0), (start, tokens - start - prompt)))
        expected = f"{tokens} positions"
        expected += f" (or {prompt}, the prompt)" if prompt != tokens else ""
        raise ProbeError(
            "types",
            expected=expected if batch == 1 else f"{batch} x {expected}",
            got=f"{' x '.join(map(str, mask.shape))} for {name!r}",
        )

    def with_response(self, response: int, closing: int = 0) -> "TokenTypes":
        """One row (batch = 1) followed by `response` answer tokens and `closing` end-of-turn
        tokens.
        """
        roles = [RESPONSE] * response + [INSTRUCTION] * closing
        ids = [self.names.index(FINE[role]) for role in roles]
        added = ((0, 0), (0, len(roles)))

        def followed_by(values: np.ndarray, more: list[int]) -> np.ndarray:
            return np.concatenate([values, np.array([more], dtype=values.dtype)], axis=1)

        return replace(
            self,
            ids=followed_by(self.ids, ids),
            vision=np.pad(self.vision, added),
            role=followed_by(self.role, roles),
            turn=np.pad(self.turn, added, mode="edge"),
        )


def label(
    role: Int[np.ndarray, "token"],
    turn: Int[np.ndarray, "token"],
    vision: Bool[np.ndarray, "token"],
    types: Types = "paper",
    turns: str = "last",
    voco: Bool[np.ndarray, "token"] | None = None,
) -> TokenTypes:
    """The types of one row (batch = 1) from the fine role and the turn of its positions. `voco`:
    the words into which the LLM compresses its image.
    """
    role = np.where(vision & (role != LAST), VISION, role)
    if voco is not None:
        role = np.where(voco & (role != LAST), VOCO, role)
    by_role = TokenTypes(ROLES, role[None], vision[None], role[None], turn[None])
    return by_role.as_types(types, turns)


def stack(rows: Sequence[TokenTypes], side: Literal["left", "right"] = "left") -> TokenTypes:
    """Rows of different lengths as one batch, padded on one side; names that only some rows have
    are kept.
    """
    own_names = dict.fromkeys(name for types in rows for name in types.names if name not in PAPER)
    names = (*own_names, *PAPER)
    if all(types.names[: len(FINE)] == FINE for types in rows):
        names = max((types.names for types in rows), key=len)
    width = max(types.ids.shape[1] for types in rows)

    def padded(arrays: Iterable[np.ndarray], fill: int | bool = PADDING) -> np.ndarray:
        batch = []
        for values in arrays:
            missing = width - values.shape[1]
            edges = (missing, 0) if side == "left" else (0, missing)
            batch.append(np.pad(values, ((0, 0), edges), constant_values=fill))
        return np.concatenate(batch)

    def renumbered(types: TokenTypes) -> np.ndarray:
        numbers = [names.index(name) for name in types.names]
        return np.array([*numbers, PADDING])[types.ids]  # padding is -1: the last entry

    return TokenTypes(
        names=names,
        ids=padded(renumbered(types) for types in rows),
        vision=padded((types.vision for types in rows), fill=False),
        role=padded(types.role for types in rows),
        turn=padded(types.turn for types in rows),
    )


def _ends(role: np.ndarray) -> list[int]:
    """One past the last real position of each row."""
    return [int(np.flatnonzero(row != PADDING)[-1]) + 1 for row in role]


def _named(types: str, fine: np.ndarray, vision: np.ndarray) -> dict:
    present = tuple(role for role in (MARKER, VOCO) if (fine == role).any())
    if types == "fine":
        names = (*FINE, *(ROLES[role] for role in present))
        places = [names.index(name) if name in names else 0 for name in ROLES]
        index = np.array([*places, PADDING])
        return {"names": names, "ids": index[fine]}  # padding is -1: the last entry
    if types != "paper":
        raise ProbeError(
            "types", expected="'paper', 'fine', an array of names or {name: mask}", got=repr(types)
        )
    ids = np.where(fine == RESPONSE, PAPER.index("response"), PAPER.index("instruction"))
    ids = np.where(vision, PAPER.index("vision"), ids)
    names = PAPER
    if VOCO in present:
        names = (ROLES[VOCO], *PAPER)
        ids = np.where(fine == VOCO, 0, ids + 1)
    return {"names": names, "ids": np.where(fine == PADDING, PADDING, ids)}


def _masks_of_names(types: Sequence[object] | np.ndarray) -> dict[str, np.ndarray]:
    array = np.asarray(types, dtype=object)
    values = array.ravel().tolist()
    if values and all(isinstance(value, bool | np.bool_) for value in values):
        raise ProbeError(
            "types", expected="a name for each position", got="booleans", fix="pass {name: mask}"
        )
    # numbers are names too: 0 is "0"
    words = ["" if value is None else str(value) for value in values]
    names = np.array(words, dtype=object).reshape(array.shape)
    return {name: names == name for name in dict.fromkeys(words) if name}
