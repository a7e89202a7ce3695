"""Log-probabilities in OpenAI's two shapes."""

from collections.abc import Iterable

from router.api.openai_structs import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from router.scheduling.request import Request
from router.text.tokenizer import Token
from shard.messages import TokenOutput


def chat_logprobs(tokens: Iterable[Token]) -> ChatLogprobs:
    return ChatLogprobs([_chat_logprob(token) for token in tokens])


def _chat_logprob(token: Token) -> TokenLogprob:
    top = [TopLogprob(alone.text, logprob, list(alone.raw)) for _, alone, logprob in token.top]
    return TokenLogprob(token.alone.text, token.logprob, list(token.alone.raw), top)


def completion_logprobs(tokens: Iterable[Token], offset: int = 0) -> CompletionLogprobs:
    """`offset` is where in the choice's text the first of the tokens begins."""
    shape = CompletionLogprobs([], [], [], [])
    for token in tokens:
        text = token.alone.text
        shape.tokens.append(text)
        shape.token_logprobs.append(token.logprob)
        shape.top_logprobs.append(_alternatives(token, text))
        shape.text_offset.append(offset)
        offset += 0 if token.special else len(token.text)
    return shape


def prompt_logprobs(request: Request) -> CompletionLogprobs:
    """Scores of the prompt's own tokens. Nothing predicts the first one, so its entries are null."""
    detokenizer = request.tokenizer.detokenizer([])
    first = TokenOutput(request.prompt_token_ids[0], 0.0, 0)
    scored = [detokenizer.push(score) for score in (first, *request.prompt_scores)]
    shape = completion_logprobs(scored)
    shape.token_logprobs[0] = shape.top_logprobs[0] = None
    return shape


def joined(prompt: CompletionLogprobs, answer: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        prompt.tokens + answer.tokens,
        prompt.token_logprobs + answer.token_logprobs,
        prompt.top_logprobs + answer.top_logprobs,
        prompt.text_offset + answer.text_offset,
    )


def _alternatives(token: Token, text: str) -> dict[str, float]:
    """Maps text to log-probability, for the alternatives and the token itself."""
    best: dict[str, float] = {}
    for _, alternative, logprob in token.top:
        best.setdefault(alternative.text, logprob)
    best.setdefault(text, token.logprob)
    return best
