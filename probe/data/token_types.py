"""Which token is what: the type of every position of a batch, and where in the image a vision token
lies.

Attention is summed by token type, so everything this package says rests on these two tables.
`TokenTypes` keeps the fine role and the turn of each position, so that one encoded batch can be
read in the paper's three types, in the fine ones, or in the user's own:

    inputs.types.as_types("fine").mask("last")           # (batch, token)
    inputs.types.as_types({"dog": dog_patches})          # the rest keeps the paper's types
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from probe.errors import ProbeError

PAPER = ("instruction", "vision", "response")
FINE = ("bos", "system", "vision", "instruction", "last", "response")
PADDING = -1
BOS, SYSTEM, VISION, INSTRUCTION, LAST, RESPONSE = range(len(FINE))

Types = str | Sequence[object] | np.ndarray | Mapping[Any, object]


@dataclass(frozen=True)
class TokenTypes:
    """The type of every position: `names[ids[row, token]]`, where -1 is padding.

    `role` and `turn` are what the types are made from: the fine role (index into FINE, the answers
    of all turns as "response") and the number of the exchange of user and assistant a position
    belongs to, both -1 for padding.
    """

    names: tuple[str, ...]
    ids: Int[np.ndarray, "batch token"]
    vision: Bool[np.ndarray, "batch token"]  # whatever the user's own types call these positions
    role: Int[np.ndarray, "batch token"]
    turn: Int[np.ndarray, "batch token"]

    @property
    def is_query(self) -> Bool[np.ndarray, "batch token"]:
        """Positions whose row of attention is counted: all real ones but the last token of a
        response.

        Decoding never feeds that one back, so in a teacher-forced forward its row is a row that
        never was.
        """
        queries = self.role != PADDING
        for row, end in enumerate(_ends(self.role)):
            if self.role[row, end - 1] != LAST:  # something follows the prompt
                queries[row, end - 1] = False
        return queries

    @property
    def prompt_length(self) -> Int[np.ndarray, "batch"]:
        """Tokens of each row's prompt, without padding."""
        is_prompt = np.cumsum((self.role == LAST)[:, ::-1], axis=1)[:, ::-1].astype(bool)
        return (is_prompt & (self.role != PADDING)).sum(axis=1)

    def mask(self, name: str) -> Bool[np.ndarray, "batch token"]:
        """The positions of one type."""
        if name not in self.names:
            raise ProbeError(
                "types.mask", expected=f"one of {', '.join(self.names)}", got=repr(name)
            )
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
        own = (
            {str(k): mask for k, mask in types.items()}
            if isinstance(types, Mapping)
            else _masks_of_names(types)
        )
        return replace(
            self, **self._with_own(own, fine, given_as_names=not isinstance(types, Mapping))
        )

    def _roles(self, turns: str) -> np.ndarray:
        """The fine roles, with earlier answers as instruction unless all turns count."""
        if turns == "all":
            return self.role
        earlier = (self.role == RESPONSE) & (self.turn < self.turn.max(axis=1, keepdims=True))
        return np.where(earlier, INSTRUCTION, self.role)

    def _with_own(self, own: Mapping[str, object], fine: np.ndarray, given_as_names: bool) -> dict:
        paper = _named("paper", fine, self.vision)["ids"]
        names = (*(name for name in own if name not in PAPER), *PAPER)
        ids = np.where(paper == PADDING, PADDING, paper + len(names) - len(PAPER))
        covered = np.zeros_like(self.vision)
        for name, given in own.items():
            if name in PAPER and not given_as_names:
                raise ProbeError(
                    "types", expected="names of your own", got=repr(name), fix="it is the paper's"
                )
            mask = self._fit(name, given)
            if (mask & covered).any():
                shared = np.flatnonzero((mask & covered).any(axis=0))
                raise ProbeError(
                    "types",
                    expected="masks that do not overlap",
                    got=f"{name!r}, which shares {len(shared)} positions with another, first {shared[0]}",
                )
            covered |= mask
            ids[mask & (ids != PADDING)] = names.index(name)
        return {"names": names, "ids": ids}

    def _fit(self, name: str, given: object) -> np.ndarray:
        """A user's mask as (batch, token) booleans."""
        mask = np.atleast_2d(np.asarray(given))
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            raise ProbeError(
                "types", expected=f"a mask of booleans for {name!r}", got=f"values of {mask.dtype}"
            )
        whole = self.ids.shape
        if mask.shape == whole:
            return mask.astype(bool)
        prompt = int(self.prompt_length[0])
        if whole[0] == 1 and mask.shape == (1, prompt):
            start = int((self.role[0] != PADDING).argmax())
            return np.pad(mask.astype(bool), ((0, 0), (start, whole[1] - start - prompt)))
        expected = f"{whole[1]} positions" + (
            f" (or {prompt}, the prompt)" if prompt != whole[1] else ""
        )
        expected = expected if whole[0] == 1 else f"{whole[0]} x {expected}"
        raise ProbeError(
            "types", expected=expected, got=f"{' x '.join(map(str, mask.shape))} for {name!r}"
        )

    def with_response(self, response: int, closing: int = 0) -> "TokenTypes":
        """One row (batch = 1) with `response` answer tokens and `closing` end-of-turn tokens behind
        it.
        """
        tail = np.array(
            [[RESPONSE] * response + [INSTRUCTION] * closing], dtype=self.role.dtype
        ).reshape(1, -1)
        ids = [[self.names.index(FINE[role]) for role in tail[0]]]
        return replace(
            self,
            ids=np.concatenate(
                [self.ids, np.array(ids, dtype=self.ids.dtype).reshape(1, -1)], axis=1
            ),
            vision=np.pad(self.vision, ((0, 0), (0, tail.shape[1]))),
            role=np.concatenate([self.role, tail], axis=1),
            turn=np.pad(self.turn, ((0, 0), (0, tail.shape[1])), mode="edge"),
        )


def label(
    role: Int[np.ndarray, "token"],
    turn: Int[np.ndarray, "token"],
    vision: Bool[np.ndarray, "token"],
    types: Types = "paper",
    turns: str = "last",
) -> TokenTypes:
    """The types of one row (batch = 1) from the fine role and the turn of its positions."""
    role = np.where(vision & (role != LAST), VISION, role)
    return TokenTypes(FINE, role[None], vision[None], role[None], turn[None]).as_types(types, turns)


def stack(rows: Sequence[TokenTypes], side: Literal["left", "right"] = "left") -> TokenTypes:
    """Rows of different lengths as one batch, padded on one side; names that only some rows have
    are kept.
    """
    names = tuple(
        dict.fromkeys(name for types in rows for name in types.names if name not in PAPER)
    )
    names = (*names, *PAPER) if not all(types.names == FINE for types in rows) else FINE
    width = max(types.ids.shape[1] for types in rows)

    def padded(values: np.ndarray, fill: int | bool) -> np.ndarray:
        missing = width - values.shape[1]
        return np.pad(
            values, ((0, 0), (missing, 0) if side == "left" else (0, missing)), constant_values=fill
        )

    def renamed(types: TokenTypes) -> np.ndarray:
        table = np.array(
            [*(names.index(name) for name in types.names), PADDING]
        )  # the last one serves -1
        return table[types.ids]

    return TokenTypes(
        names=names,
        ids=np.concatenate([padded(renamed(types), PADDING) for types in rows]),
        vision=np.concatenate([padded(types.vision, False) for types in rows]),
        role=np.concatenate([padded(types.role, PADDING) for types in rows]),
        turn=np.concatenate([padded(types.turn, PADDING) for types in rows]),
    )


def _ends(role: np.ndarray) -> list[int]:
    """One past the last real position of each row."""
    return [int(np.flatnonzero(row != PADDING)[-1]) + 1 for row in role]


def _named(types: str, fine: np.ndarray, vision: np.ndarray) -> dict:
    if types == "fine":
        return {"names": FINE, "ids": fine}
    if types != "paper":
        raise ProbeError(
            "types", expected="'paper', 'fine', an array of names or {name: mask}", got=repr(types)
        )
    ids = np.where(fine == RESPONSE, PAPER.index("response"), PAPER.index("instruction"))
    ids = np.where(vision, PAPER.index("vision"), ids)
    return {"names": PAPER, "ids": np.where(fine == PADDING, PADDING, ids)}


def _masks_of_names(types: Sequence[object] | np.ndarray) -> dict[str, np.ndarray]:
    given = np.asarray(types, dtype=object)
    words = [
        "" if name is None else str(name) for name in given.ravel()
    ]  # numbers are names too: 0 is "0"
    if words and all(isinstance(name, bool | np.bool_) for name in given.ravel()):
        raise ProbeError(
            "types", expected="a name for each position", got="booleans", fix="pass {name: mask}"
        )
    names = np.array(words, dtype=object).reshape(given.shape)
    return {name: names == name for name in dict.fromkeys(words) if name}
