"""What is asked of a model: one named workload of a family, at fixed sizes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Workload(BaseModel):
    """One workload. Sizes are fixed, so that every arm does the same work: outputs stop at no end-of-sequence token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Family.member, as in the scenario: LLM.single_request")
    batch: int = Field(ge=1, description="requests in one batch")
    requests: int = Field(ge=1, description="requests served in one block; batches of `batch`, the last may be smaller")
    input_tokens: tuple[int, ...] = Field(
        default=(), description="prompt lengths in tokens; several are taken in turn, batch by batch"
    )
    output_tokens: int = Field(default=0, ge=0, description="tokens generated for each request; 0 where none are")
    rate: float = Field(
        default=0.0, ge=0, description="requests per second, as a Poisson process brings them; 0: a batch comes at once"
    )
    size: tuple[int, ...] = Field(default=(), description="of an input that is no text: image height and width, frames")

    @property
    def family(self) -> str:
        """The part before the dot.

        >>> Workload(name="LLM.mixed", batch=1, requests=1, input_tokens=(8,), output_tokens=4).family
        'LLM'
        """
        return self.name.partition(".")[0]
