"""What a user may say about how models are asked."""

from pydantic import Field

from lepta.core.settings import Section


class Thinking(Section):
    """Whether a model that can think does so before it answers. Its thinking is no part of the answer."""

    thinking: bool = Field(default=False, description="Let the model think before it answers; it must be able to")
    thinking_tokens: int = Field(default=1024, ge=1, description="Most tokens of thinking, which is then ended")

    @property
    def budget(self) -> int:
        """Tokens of thinking, 0 for none."""
        return self.thinking_tokens if self.thinking else 0
