"""The bodies of requests and answers, as OpenAPI describes them."""

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from cora.serving.answers import Answer

if TYPE_CHECKING:
    from typing import Self

MOST_PROMPTS = 1000  # of one request
# Ids are int64, or text as long as anybody's ids are.
Id = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | Annotated[StrictStr, Field(min_length=1, max_length=256)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user: Id = Field(description="User id as in the data; one that the run does not know has the mean vector.")
    delta: StrictBool = Field(True, description="Whether the method's deltas are on; off, the language model is alone.")


class ScoreRequest(_Request):
    items: list[Id] = Field(min_length=1, max_length=MOST_PROMPTS, description="Item ids as in the data.")


class RecommendRequest(_Request):
    top: StrictInt = Field(10, ge=1, le=MOST_PROMPTS, description="Items in the answer, at most.")
    candidates: StrictInt = Field(
        100,
        ge=1,
        le=MOST_PROMPTS,
        description="Unseen items that are scored, the best by the collaborative vectors; from `top` on.",
    )


class _Item(BaseModel):
    item: Id
    title: str
    probability: float

    @classmethod
    def all_of(cls, answer: Answer) -> "list[Self]":
        """The rows of the answer's table."""
        rows = answer.table.rename(columns={"item_id": "item"})[list(cls.model_fields)]
        return [cls(**row) for row in rows.to_dict("records")]


class Scored(_Item):
    score: float = Field(description="Logit of a like.")


class Recommended(_Item):
    collaborative_rank: int = Field(description="Place among the candidates by the collaborative vectors alone.")


class _Response(BaseModel):
    user: Id
    known: bool = Field(description="Whether the run knows the user.")
    delta: bool


class Scores(_Response):
    items: list[Scored]

    @classmethod
    def of(cls, request: ScoreRequest, answer: Answer) -> "Scores":
        return cls(user=request.user, known=answer.known, delta=request.delta, items=Scored.all_of(answer))


class Recommendations(_Response):
    history: list[str] = Field(description="Titles that the user liked, oldest first, the newest of them.")
    items: list[Recommended] = Field(description="The best first; none for a user who has rated everything.")

    @classmethod
    def of(cls, request: RecommendRequest, answer: Answer) -> "Recommendations":
        items, known, history = Recommended.all_of(answer), answer.known, answer.history
        return cls(user=request.user, known=known, delta=request.delta, history=history, items=items)


class Health(BaseModel):
    status: str = Field(description='"ok", or "closing" with a 503.')
    method: str
    waiting: int = Field(description="Requests in the queue.")


class Problem(BaseModel):
    """Why there is no answer, in one line."""

    detail: str
