"""What every codec is told, as it stands in a cache's identity and in every prefix's header."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class CodecSpec(BaseModel):
    """What every codec has. Unknown keys are errors; values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    zstd: int = Field(
        1,
        ge=0,
        le=19,
        description="Level of the lossless stage; 0 leaves it out. At 1 a GPU does it for what it codes, by Huffman "
        "codes alone.",
    )
