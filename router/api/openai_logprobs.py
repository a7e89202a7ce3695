"""Log-probabilities in OpenAI's two shapes."""

from collections.abc import Iterable

import msgspec

from router.api.openai_structs import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from router.scheduling.request import Request
from router.text.tokenizer import Token
from shard.messages import TokenOutput


def chat_logprobs(tokens: Iterable[Token]) -> ChatLogprobs:
    return ChatLogprobs([_chat_logprob(token) for token in tokens])


def _chat_logprob(token: Token) -> TokenLogprob:
    top = [TopLogprob(alone.text, logprob, list(alone.raw)) for _, alone, logprob in token.top]
    raw = list(token.alone.raw)
    return TokenLogprob(token.alone.text, token.logprob, raw, top, token.exit_layer, token.confidence)


def completion_logprobs(tokens: Iterable[Token], offset: int = 0) -> CompletionLogprobs:
    """`offset` is where in the choice's text the first of the tokens begins."""
    shape = CompletionLogprobs([], [], [], [], [], [])
    for token in tokens:
        text = token.alone.text
        shape.tokens.append(text)
        shape.token_logprobs.append(token.logprob)
        shape.top_logprobs.append(_alternatives(token, text))
        shape.text_offset.append(offset)
        shape.exit_layers.append(token.exit_layer)
        shape.confidences.append(token.confidence)
        offset += 0 if token.special else len(token.text)
    return shape


def prompt_logprobs(request: Request) -> CompletionLogprobs:
    """Scores of the prompt's own tokens. Nothing predicts the first one, so its entries are null."""
    detokenizer = request.tokenizer.detokenizer([])
    first = TokenOutput(request.prompt_token_ids[0], 0.0, 0)
    scored = [detokenizer.push(score) for score in (first, *request.prompt_scores)]
    shape = completion_logprobs(scored)
    shape.token_logprobs[0] = shape.top_logprobs[0] = None
    nothing = [None] * len(scored)
    return msgspec.structs.replace(shape, exit_layers=nothing, confidences=nothing)


def joined(prompt: CompletionLogprobs, answer: CompletionLogprobs) -> CompletionLogprobs:
    fields = CompletionLogprobs.__struct_fields__
    return CompletionLogprobs(*(getattr(prompt, name) + getattr(answer, name) for name in fields))


def _alternatives(token: Token, text: str) -> dict[str, float]:
    """Maps text to log-probability, for the alternatives and the token itself."""
    best: dict[str, float] = {}
    for _, alternative, logprob in token.top:
        best.setdefault(alternative.text, logprob)
    best.setdefault(text, token.logprob)
    return best
