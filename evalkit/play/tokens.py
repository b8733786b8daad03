"""Token mode: a served model asked with token ids, which answers with ids, logprobs and versions.

POST /inference/v1/generate. What was sampled is never tokenised again: where a prompt only goes on
from the last turn's, its ids are those ids, and the new message's after them. So what is trained
on is what was sampled. How messages become ids is a `Renderer`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import orjson

from evalkit.errors import BadConfig, CallFailed, ContextOverflow, Failure
from evalkit.play.calls import post
from evalkit.play.limits import Patience
from evalkit.play.policy import Ask, Completion, Policy
from evalkit.play.strategies import Message, Messages, message
from evalkit.play.transport import Response, Transport

_PATH = "/inference/v1/generate"


class Renderer(Protocol):
    """Turns messages into the ids that a model expects, and ids into text."""

    def render(self, messages: Messages) -> list[int]:
        """Return the ids of a whole prompt, up to where the assistant begins to speak."""
        ...

    def goes_on(self, reply: Sequence[int], said: Message) -> list[int] | None:
        """Return the ids from the end of the sampled `reply` over what is `said` to the next one.

        None where the model expects earlier replies in another form than it sampled them.
        """
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of sampled ids, without special tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTurn:
    """One call, token by token."""

    prompt: tuple[int, ...]
    sampled: tuple[int, ...]
    """The ids that the policy chose, its end-of-turn token among them."""
    logprobs: tuple[float, ...]
    """In nats, of the distribution that was sampled from: one for each sampled id."""
    versions: tuple[int, ...]
    """The version of the weights that chose it: one for each sampled id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSampling:
    """How completions are drawn."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 64

    def fields(self) -> dict[str, Any]:
        """Return vLLM's `sampling_params`, but for the seed."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "logprobs": 0,
        }


class TokenModel:
    """A served model that is asked with ids; shared by all episodes. Closes its transport."""

    def __init__(
        self,
        transport: Transport,
        *,
        model: str,
        renderer: Renderer,
        sampling: TokenSampling,
        patience: Patience,
        max_len: int,
    ) -> None:
        """`transport` carries to the server's root; `max_len` bounds prompt and completion."""
        if sampling.max_tokens >= max_len:
            raise BadConfig(
                f"max_tokens {sampling.max_tokens} leaves no room for a prompt: {max_len} in all"
            )
        self.renderer = renderer
        self.model = model
        self._transport = transport
        self._patience = patience
        self._max_prompt = max_len - sampling.max_tokens
        self._params = orjson.dumps(sampling.fields())[:-1]
        self._head = b'{"model":%b,"token_ids":' % orjson.dumps(model)

    async def generate(self, ask: Ask, prompt: Sequence[int]) -> tuple[TokenTurn, Completion]:
        """Let the model go on from `prompt`, trying again within the limits of `Patience`.

        Raises:
            ContextOverflow: prompt and completion may not fit.
            CallFailed: there is no answer, and it is not the model's doing.

        """
        if len(prompt) > self._max_prompt:
            raise ContextOverflow(f"a prompt of {len(prompt)} tokens, at most {self._max_prompt}")
        body = partial(self._body, prompt, ask.seed)
        return await self._patience.call(partial(self._attempt, ask, tuple(prompt), body))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    def _body(self, prompt: Sequence[int], seed: int) -> bytes:
        ids = orjson.dumps(list(prompt))
        return b'%b%b,"sampling_params":%b,"seed":%d}}' % (self._head, ids, self._params, seed)

    async def _attempt(
        self, ask: Ask, prompt: tuple[int, ...], body: partial[bytes], number: int
    ) -> tuple[TokenTurn, Completion]:
        response = await post(
            self._transport,
            _PATH,
            body,
            ask,
            attempt=number,
            model=self.model,
            timeout_s=self._patience.limits.timeout_s,
        )
        turn, finish_reason = read_tokens(response, prompt)
        completion = Completion(
            text=self.renderer.text(turn.sampled),
            finish_reason=finish_reason,
            prompt_tokens=len(turn.prompt),
            completion_tokens=len(turn.sampled),
            model=self.model,
            policy_version=str(turn.versions[-1]),
            elapsed_s=response.elapsed_s,
            attempts=number,
        )
        return turn, completion


class TokenPolicy(Policy):
    """Plays one episode in token mode, and keeps its turns. Made anew for each episode."""

    def __init__(self, model: TokenModel) -> None:
        self.turns: list[TokenTurn] = []
        self._model = model
        self._said: Messages = ()
        """The last prompt and the reply to it, as messages."""

    async def complete(self, ask: Ask) -> Completion:
        """Answer `ask` from ids: the last turn's where the messages go on from it."""
        if ask.pattern is not None:
            raise BadConfig("token mode gives no guided answers")
        turn, completion = await self._model.generate(ask, self._prompt(ask.messages))
        self.turns.append(turn)
        self._said = (*ask.messages, message("assistant", completion.text))
        return completion

    def _prompt(self, messages: Messages) -> Sequence[int]:
        renderer = self._model.renderer
        if self.turns and messages[:-1] == self._said and messages[-1].role == "user":
            last = self.turns[-1]
            more = renderer.goes_on(last.sampled, messages[-1])
            if more is not None:
                return (*last.prompt, *last.sampled, *more)
        return renderer.render(messages)


def read_tokens(response: Response, prompt: tuple[int, ...]) -> tuple[TokenTurn, str]:
    """Read an answer of /inference/v1/generate; return it with its finish_reason.

    Raises:
        CallFailed: `BAD_REPLY`, when it is not one, or does not say which weights made it.

    """
    try:
        choice = orjson.loads(response.body)["choices"][0]
        sampled = tuple(choice["token_ids"])
        logprobs = tuple(float(each["logprob"]) for each in choice["logprobs"]["content"])
        versions = _versions(response.headers, choice.get("weight_versions") or (), len(sampled))
        finish_reason = str(choice["finish_reason"])
        if not sampled or len(logprobs) != len(sampled) or finish_reason == "abort":
            raise ValueError(f"{len(sampled)} tokens, {len(logprobs)} logprobs, {finish_reason}")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        start = response.body[:200].decode("utf-8", "replace")
        raise CallFailed(
            Failure.BAD_REPLY, f"not a generation ({error!r}): {start}", status=200
        ) from error
    turn = TokenTurn(prompt=prompt, sampled=sampled, logprobs=logprobs, versions=versions)
    return turn, finish_reason


def _versions(
    headers: Mapping[str, str], spans: Sequence[Mapping[str, Any]], count: int
) -> tuple[int, ...]:
    """Return the version of each token.

    The gateway says which version answered, an adapter's too; where that changed on the way, the
    engine's own spans say where. `NAME@8?` are the weights of version 8 before the gateway has
    proved that they compute what they should; it takes them out where they do not.
    """
    first = int(headers["x-policy-version"])
    last = headers.get("x-policy-version-end")
    if last is None or int(last) == first:
        return (first,) * count
    versions: list[int] = []
    for span in spans:
        version = int(str(span["version"]).rpartition("@")[2].removesuffix("?"))
        versions += [version] * (span["end"] - span["start"])
    if len(versions) != count:
        raise ValueError(f"the spans cover {len(versions)} of {count} tokens")
    return tuple(versions)
